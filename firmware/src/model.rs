//! What generated code gives to the runtime.
//!
//! Invariant: everything that outlives a step lies in the spans of [`Model::STATE`], so that copying these bytes is
//! copying the model. Not for the order of kernels: that is written out in the generated code, call by call.

use crate::arena::Span;

/// The numbers that a training step takes beside its examples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Step {
    /// The run's seed.
    pub seed: u64,
    /// The step, from 0: with the seed it is all that the random numbers of an update depend on.
    pub index: u32,
    /// Learning rate of the weights.
    pub rate: f32,
    /// Learning rate of the biases.
    pub bias_rate: f32,
}

impl Step {
    /// The four numbers that update kernels read as `hyper`.
    pub const fn hyper(&self) -> [f32; 4] {
        [self.rate, self.bias_rate, 0.0, 0.0]
    }

    /// The four words that update kernels read as `rng`.
    pub const fn rng(&self) -> [u32; 4] {
        [self.seed as u32, (self.seed >> 32) as u32, self.index, 0]
    }
}

/// A compiled model over its arena. Generated code implements it; an application uses [`crate::Learner`].
///
/// A training step is [`forward`](Model::forward) and [`backward`](Model::backward) for each of its `BATCH` examples,
/// then [`update`](Model::update). Before [`start`](Model::start), or a checkpoint read into [`STATE`](Model::STATE), a
/// model computes nothing of use.
pub trait Model {
    /// Tells models, schemes and layouts of the state apart: a checkpoint of another hash is not loaded.
    const HASH: u64;
    /// Numbers of one example.
    const INPUT_LEN: usize;
    /// Classes; a label is below.
    const CLASSES: usize;
    /// Examples of one training step; 0 where the model does not learn.
    const BATCH: usize;
    /// What outlives an example, as spans of [`memory`](Model::memory), ascending and apart.
    const STATE: &'static [Span];

    /// The arena's bytes.
    fn memory(&self) -> &[u8];

    /// The arena's bytes, to be written.
    fn memory_mut(&mut self) -> &mut [u8];

    /// Writes the state that a run begins with: the weights of the imported file.
    fn start(&mut self);

    /// Where [`infer`](Model::infer) reads its example: `i8[INPUT_LEN]`. The call may overwrite it.
    fn infer_input(&mut self) -> &mut [i8];

    /// The class of the example in [`infer_input`](Model::infer_input); the first of equal ones.
    fn infer(&mut self) -> u16;

    /// Where [`forward`](Model::forward) reads its example: `i8[INPUT_LEN]`. The call may overwrite it.
    fn train_input(&mut self) -> &mut [i8];

    /// The loss of the example in [`train_input`](Model::train_input) over `BATCH`. Leaves the state as it is.
    ///
    /// `label` is below `CLASSES`; a negative one leaves the example out.
    fn forward(&mut self, label: i32) -> f32;

    /// The gradients of what [`forward`](Model::forward) has just computed: with a `BATCH` of 1 each is applied as soon
    /// as it is complete, otherwise it is added to the sums that the state holds.
    fn backward(&mut self, step: &Step);

    /// Applies the sums of `BATCH` examples and clears them; nothing with a `BATCH` of 1.
    fn update(&mut self, step: &Step);
}

/// Told which step of the plan comes next. Generated code calls it between kernels; `()` compiles to nothing.
pub trait Probe {
    /// Step number `step` comes next, counted over the entries of the plan in their order; [`DONE`] behind the last
    /// step of a part.
    fn at(step: u32);
}

/// What a [`Probe`] is told when no step follows.
pub const DONE: u32 = u32::MAX;

impl Probe for () {
    #[inline(always)]
    fn at(_step: u32) {}
}

/// Bytes of the state: the sum over [`Model::STATE`].
pub const fn state_bytes<M: Model>() -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < M::STATE.len() {
        sum += M::STATE[i].len;
        i += 1;
    }
    sum
}

/// The place of the greatest logit; the first of equal ones.
pub fn class_of(logits: &[i8]) -> u16 {
    let mut best = (0, i8::MIN);
    for (class, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (class as u16, logit);
        }
    }
    best.0
}
