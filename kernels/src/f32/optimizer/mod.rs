//! Optimizer updates: SGD, AdamW, and AdamW with 8-bit states.
//!
//! ```text
//! for i { g = grad_scale grad[i]; m[i], v[i] = ...; w[i] = store(w[i] - lr step(m[i], v[i])) }
//! ```
//! Work goes in blocks of [`BLOCK`] elements along the flat index: weights and states are decoded into registers'
//! reach, updated in f32 and encoded. Additions and products are rounded one by one, so every machine gives the same
//! bits. A tensor may be updated in panels that begin at multiples of `BLOCK`, each with its `offset`: the result is
//! that of one call. Bound: bytes of weights, gradient and states, read and written, over memory bandwidth (28 an
//! element for AdamW in f32, 10 for bf16 weights with 8-bit states).

mod codes;

pub use codes::{Codes, SIGNED, Table, UNSIGNED};

use super::elementwise::Element;
use super::parts::{Chunks, Panel, PanelPart, run_parts};
use super::simd::{self, Kernel, Simd};
use crate::par::Par;
use crate::random::Stream;
use half::bf16;

/// Elements that are updated, and quantised, together.
pub const BLOCK: usize = 256;
/// Elements of one task.
const TASK_ELEMS: usize = 16 * BLOCK;

/// The weights to update.
pub enum Weights<'a> {
    /// In f32.
    F32(&'a mut [f32]),
    /// In bfloat16, rounded stochastically with these random numbers: up with the probability that makes the mean
    /// exact.
    Bf16(&'a mut [bf16], Stream),
}

/// Chosen columns of a matrix of weights; gradient and states have only these, `[rows, index.len()]`.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Columns of the whole matrix.
    pub cols: usize,
    /// The chosen ones, strictly ascending.
    pub index: &'a [i32],
}

/// What an update is applied to.
pub struct Target<'a> {
    /// The weights: of the panel, or, with `columns`, of the panel's rows with all their columns.
    pub weights: Weights<'a>,
    /// Chosen columns, or all.
    pub columns: Option<Columns<'a>>,
    /// Flat index, in the elements that are updated, of the first one; a multiple of [`BLOCK`].
    pub offset: u64,
}

/// Stochastic gradient descent, as PyTorch's `SGD`.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Added to the gradient, times the weight.
    pub weight_decay: f32,
    /// Factor of the gradient: clipping, averaging.
    pub grad_scale: f32,
}

/// Adam with decoupled weight decay, as PyTorch's `AdamW`. Source: Loshchilov and Hutter 2019.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Share of the weight taken off, times `lr`.
    pub weight_decay: f32,
    /// `1 - beta1^t` at step `t`, from 1.
    pub bias1: f32,
    /// `1 - beta2^t`.
    pub bias2: f32,
    /// Factor of the gradient: clipping, averaging.
    pub grad_scale: f32,
}

/// One block of elements, in f32.
type Block = [f32; BLOCK];

/// An update of one block.
trait Rule: Sync {
    /// New weights and states from a gradient; `m` and `v` are zeros where the rule has none.
    fn apply(&self, w: &mut Block, g: &Block, m: &mut Block, v: &mut Block);
}

impl Rule for Sgd {
    #[inline(always)]
    fn apply(&self, w: &mut Block, g: &Block, m: &mut Block, _: &mut Block) {
        for i in 0..BLOCK {
            let grad = g[i] * self.grad_scale + self.weight_decay * w[i];
            m[i] = self.momentum * m[i] + grad;
            w[i] -= self.lr * m[i];
        }
    }
}

impl Rule for AdamW {
    #[inline(always)]
    fn apply(&self, w: &mut Block, g: &Block, m: &mut Block, v: &mut Block) {
        let (rest1, rest2) = (1.0 - self.beta1, 1.0 - self.beta2);
        let (step, keep) = (self.lr / self.bias1, 1.0 - self.lr * self.weight_decay);
        let root = 1.0 / self.bias2.sqrt();
        for i in 0..BLOCK {
            let grad = g[i] * self.grad_scale;
            m[i] = self.beta1 * m[i] + rest1 * grad;
            v[i] = self.beta2 * v[i] + rest2 * (grad * grad);
            w[i] = w[i] * keep - step * (m[i] / (v[i].sqrt() * root + self.eps));
        }
    }
}

/// `m = momentum m + (grad_scale g + weight_decay w)`, `w -= lr m`. Without a momentum buffer `m` is the gradient.
pub fn update_sgd(par: &Par, sgd: &Sgd, target: Target, g: &[f32], m: Option<&mut [f32]>) {
    assert!(m.is_some() || sgd.momentum == 0.0, "momentum needs its buffer");
    update(par, sgd, target, g, (plain(m, g.len()), plain(None, 0)));
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - lr weight_decay) - lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)`, with `grad_scale g` for `g`.
pub fn update_adamw(par: &Par, adamw: &AdamW, target: Target, g: &[f32], m: &mut [f32], v: &mut [f32]) {
    update(par, adamw, target, g, (plain(Some(m), g.len()), plain(Some(v), g.len())));
}

/// [`update_adamw`] with moments of 8 bits: `m` in signed codes, `v` in unsigned ones. A block of [`BLOCK`] elements is
/// decoded, updated, used, and encoded with its new largest magnitude. See [`Codes`].
pub fn update_adamw8(par: &Par, adamw: &AdamW, target: Target, g: &[f32], m: Codes, v: Codes) {
    update(par, adamw, target, g, (coded(m, g.len()), coded(v, g.len())));
}

/// A state, cut into tasks: plain, in codes with their scales, or none.
type State<'a> = (Option<Chunks<'a, f32>>, Option<(Chunks<'a, u8>, Chunks<'a, f32>)>);

/// A task's part of a state.
type StatePart<'p> = (Option<&'p mut [f32]>, Option<(&'p mut [u8], &'p mut [f32])>);

fn plain(state: Option<&mut [f32]>, len: usize) -> State<'_> {
    assert!(state.as_ref().is_none_or(|state| state.len() == len), "the state's length");
    (state.map(|state| Chunks::new(state, TASK_ELEMS)), None)
}

fn coded(state: Codes, len: usize) -> State {
    assert_eq!(state.codes.len(), len, "a code for every element");
    assert_eq!(state.scales.len(), len.div_ceil(BLOCK), "a scale for every block");
    (None, Some((Chunks::new(state.codes, TASK_ELEMS), Chunks::new(state.scales, TASK_ELEMS / BLOCK))))
}

fn update<R: Rule>(par: &Par, rule: &R, target: Target, g: &[f32], states: (State, State)) {
    assert!(target.offset.is_multiple_of(BLOCK as u64), "a panel begins at a multiple of {BLOCK}");
    let Target { weights, columns, offset } = target;
    let columns = columns.map(|columns| (columns.cols, columns.index));
    match weights {
        Weights::F32(w) => {
            let panel = Panel::new(w, columns, TASK_ELEMS);
            update_panel(par, rule, panel, g, states, Exact);
        }
        Weights::Bf16(w, stream) => {
            let panel = Panel::new(w, columns, TASK_ELEMS);
            update_panel(par, rule, panel, g, states, Stochastic { stream, offset });
        }
    }
}

/// How updated weights are stored.
trait Encode<T>: Sync {
    /// Stores a block of which the first element is the `at`-th of the panel.
    fn encode(&self, w: &mut [T; BLOCK], x: &Block, at: usize);
}

/// As they are.
struct Exact;

impl Encode<f32> for Exact {
    #[inline(always)]
    fn encode(&self, w: &mut Block, x: &Block, _: usize) {
        *w = *x;
    }
}

/// In bfloat16, rounded with the random numbers of the element's place in the tensor.
struct Stochastic {
    stream: Stream,
    offset: u64,
}

fn update_panel<T: Element + Default, R: Rule>(
    par: &Par,
    rule: &R,
    panel: Panel<T>,
    g: &[f32],
    (m, v): (State, State),
    encode: impl Encode<T>,
) {
    assert_eq!(panel.len(), g.len(), "a gradient for every updated weight");
    run_parts(par, g.len().div_ceil(TASK_ELEMS), (panel, m, v), |index, (panel, m, v)| {
        let start = index * TASK_ELEMS;
        let g = &g[start..g.len().min(start + TASK_ELEMS)];
        simd::dispatch(UpdateTask { rule, panel, g, m, v, encode: &encode, start });
    });
}

struct UpdateTask<'a, 'p, T, R, E> {
    rule: &'a R,
    panel: PanelPart<'p, T>,
    g: &'a [f32],
    m: StatePart<'p>,
    v: StatePart<'p>,
    encode: &'a E,
    start: usize,
}

impl<T, R, E> Kernel for UpdateTask<'_, '_, T, R, E>
where
    T: Element + Default,
    R: Rule,
    E: Encode<T>,
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut stored = [T::default(); BLOCK];
        let (mut w, mut grad, mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for (block, g) in self.g.chunks(BLOCK).enumerate() {
            let at = block * BLOCK;
            if g.len() < BLOCK {
                // The elements beyond the end are computed and dropped; they must not count in a block's scale.
                (stored, grad, m, v) = ([T::default(); BLOCK], [0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            }
            self.panel.read(at, &mut stored[..g.len()]);
            for i in 0..BLOCK {
                w[i] = stored[i].to_f32();
            }
            grad[..g.len()].copy_from_slice(g);
            load_state(&self.m, &SIGNED, block, &mut m);
            load_state(&self.v, &UNSIGNED, block, &mut v);
            self.rule.apply(&mut w, &grad, &mut m, &mut v);
            store_state(s, &mut self.m, &SIGNED, block, &m);
            store_state(s, &mut self.v, &UNSIGNED, block, &v);
            self.encode.encode(&mut stored, &w, self.start + at);
            self.panel.write(at, &stored[..g.len()]);
        }
    }
}

#[inline(always)]
fn load_state(state: &StatePart, table: &codes::Table, block: usize, x: &mut Block) {
    let at = block * BLOCK;
    match state {
        (Some(plain), _) => {
            let len = BLOCK.min(plain.len() - at);
            x[..len].copy_from_slice(&plain[at..at + len]);
        }
        (_, Some((codes, scales))) => {
            let len = BLOCK.min(codes.len() - at);
            table.decode(&codes[at..at + len], scales[block], x);
        }
        _ => x.fill(0.0),
    }
}

#[inline(always)]
fn store_state<S: Simd>(s: S, state: &mut StatePart, table: &codes::Table, block: usize, x: &Block) {
    let at = block * BLOCK;
    match state {
        (Some(plain), _) => {
            let len = BLOCK.min(plain.len() - at);
            plain[at..at + len].copy_from_slice(&x[..len]);
        }
        (_, Some((codes, scales))) => {
            let len = BLOCK.min(codes.len() - at);
            scales[block] = table.encode(s, x, &mut codes[at..at + len]);
        }
        _ => {}
    }
}

impl Encode<bf16> for Stochastic {
    /// Random numbers in the order of [`Stream::bits16`].
    #[inline(always)]
    fn encode(&self, w: &mut [bf16; BLOCK], x: &Block, at: usize) {
        const LANES: usize = BLOCK / 8;
        let words = self.stream.blocks::<LANES>((self.offset + at as u64) / 8);
        for part in 0..8 {
            let (w, x) = (&mut w[part * LANES..(part + 1) * LANES], &x[part * LANES..(part + 1) * LANES]);
            for i in 0..LANES {
                w[i] = round_stochastic(x[i], (words[part / 2][i] >> (16 * (part % 2))) as u16);
            }
        }
    }
}

/// `x` rounded to bfloat16 stochastically: `random` is added below the last bit that stays, the rest is cut off.
/// Infinities and NaN stay.
#[inline(always)]
pub fn round_stochastic(x: f32, random: u16) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(u32::from(random)) >> 16) as u16;
    let nearest = <bf16 as Element>::from_f32(x);
    bf16::from_bits(if x.is_finite() { rounded } else { nearest.to_bits() })
}
