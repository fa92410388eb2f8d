//! A model that learns where it stands: counters, checks of what comes in, evaluation, checkpoints.
//!
//! Invariant: state and counters change together; what [`Learner::save`] writes and [`Learner::load`] reads is all that
//! the next step depends on beside its examples. Not for reading sensors or keeping examples.

use crate::arena::Span;
use crate::checkpoint::{COUNTER_BYTES, Checkpoints, Layout};
use crate::crc::Crc;
use crate::fault::Fault;
use crate::model::{Model, Step};
use core::ops::Range;
use embedded_storage::nor_flash::NorFlash;

/// Counts of a run; saved with the state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// The run's seed.
    pub seed: u64,
    /// Examples that were learnt from: the place in a stream of them at which to go on.
    pub examples: u64,
    /// Training steps that are complete.
    pub steps: u32,
    /// Times that this run was loaded from flash.
    pub loads: u32,
}

impl Counters {
    fn encode(&self) -> [u8; COUNTER_BYTES] {
        let words = [self.seed, self.examples, u64::from(self.steps) | u64::from(self.loads) << 32, 0];
        let mut bytes = [0; COUNTER_BYTES];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8; COUNTER_BYTES]) -> Counters {
        let mut words = [0; COUNTER_BYTES / 8];
        for (word, from) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*from);
        }
        let [seed, examples, counts, _] = words;
        Counters { seed, examples, steps: counts as u32, loads: (counts >> 32) as u32 }
    }
}

/// Right answers out of all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Score {
    /// Examples of which the class was right.
    pub right: u32,
    /// Examples.
    pub seen: u32,
}

/// A model with its counters.
pub struct Learner<'a, M> {
    model: &'a mut M,
    counters: Counters,
    rate: f32,
    bias_rate: f32,
}

impl<'a, M: Model> Learner<'a, M> {
    /// The model with the weights of its file, at step 0.
    pub fn new(model: &'a mut M, seed: u64, rate: f32, bias_rate: f32) -> Learner<'a, M> {
        let mut learner = Learner { model, counters: Counters::default(), rate, bias_rate };
        learner.start(seed, rate, bias_rate);
        learner
    }

    /// Forgets everything learnt: the weights of the file, step 0.
    pub fn start(&mut self, seed: u64, rate: f32, bias_rate: f32) {
        self.model.start();
        self.counters = Counters { seed, ..Counters::default() };
        self.set_rates(rate, bias_rate);
    }

    /// What to hand to [`Learner::checkpoints`] is at least twice this, in bytes.
    pub fn slot_bytes<F: NorFlash>() -> u32 {
        Checkpoints::<F>::slot_bytes(&Self::layout())
    }

    /// The checkpoints of this model in a region of a flash.
    ///
    /// # Errors
    /// As [`Checkpoints::open`].
    pub fn checkpoints<F: NorFlash>(flash: F, region: Range<u32>) -> Result<Checkpoints<F>, Fault> {
        Checkpoints::open(flash, region, Self::layout())
    }

    const fn layout() -> Layout {
        Layout { hash: M::HASH, spans: M::STATE }
    }

    /// Today's counts.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The model.
    pub fn model(&mut self) -> &mut M {
        self.model
    }

    /// Sets the learning rates of the next step: schedules are the application's.
    pub fn set_rates(&mut self, rate: f32, bias_rate: f32) {
        (self.rate, self.bias_rate) = (rate, bias_rate);
    }

    /// The class of an example.
    ///
    /// # Errors
    /// [`Fault::Input`].
    pub fn infer(&mut self, input: &[i8]) -> Result<u16, Fault> {
        copy(self.model.infer_input(), input)?;
        Ok(self.model.infer())
    }

    /// Learns from one example; gives its loss. The last of `BATCH` examples ends a step.
    ///
    /// # Errors
    /// [`Fault::Input`], [`Fault::Label`], [`Fault::Loss`]: then nothing was changed and the example is not counted.
    pub fn train(&mut self, input: &[i8], label: i32) -> Result<f32, Fault> {
        copy(self.model.train_input(), input)?;
        self.train_in_place(label)
    }

    /// Learns from the example that was written to [`Model::train_input`], without a second buffer for it.
    ///
    /// # Errors
    /// [`Fault::Label`], [`Fault::Loss`]: then nothing was changed and the example is not counted.
    pub fn train_in_place(&mut self, label: i32) -> Result<f32, Fault> {
        if M::BATCH == 0 || label >= M::CLASSES as i32 {
            return Err(Fault::Label);
        }
        let loss = self.model.forward(label);
        if !loss.is_finite() {
            return Err(Fault::Loss);
        }
        let Counters { seed, steps, examples, .. } = self.counters;
        let step = Step { seed, index: steps, rate: self.rate, bias_rate: self.bias_rate };
        self.model.backward(&step);
        self.counters.examples = examples.wrapping_add(1);
        if self.counters.examples.is_multiple_of(M::BATCH as u64) {
            self.model.update(&step);
            self.counters.steps = steps.wrapping_add(1);
        }
        Ok(loss * M::BATCH as f32)
    }

    /// Classes of examples that `next` writes into the model, with their labels, until it gives `None`.
    pub fn evaluate(&mut self, mut next: impl FnMut(&mut [i8]) -> Option<i32>) -> Score {
        let mut score = Score::default();
        while let Some(label) = next(self.model.infer_input()) {
            score.right += u32::from(i32::from(self.model.infer()) == label);
            score.seen += 1;
        }
        score
    }

    /// Saves state and counters; gives the sequence number.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub fn save<F: NorFlash>(&self, checkpoints: &mut Checkpoints<F>) -> Result<u32, Fault> {
        checkpoints.save(&self.counters.encode(), self.model.memory())
    }

    /// Goes on from the newest checkpoint; gives its sequence number.
    ///
    /// # Errors
    /// As [`Checkpoints::load`]; then the model is at its start again, at step 0.
    pub fn load<F: NorFlash>(&mut self, checkpoints: &mut Checkpoints<F>) -> Result<u32, Fault> {
        let mut counters = [0; COUNTER_BYTES];
        let loaded = checkpoints.load(&mut counters, self.model.memory_mut());
        if loaded.is_ok() {
            self.counters = Counters::decode(&counters);
            self.counters.loads = self.counters.loads.wrapping_add(1);
        } else {
            self.start(self.counters.seed, self.rate, self.bias_rate);
        }
        loaded
    }

    /// CRC-32 of the state: equal on host and chip after equal steps.
    pub fn digest(&self) -> u32 {
        let memory = self.model.memory();
        let mut crc = Crc::new();
        for Span { at, len } in M::STATE {
            crc.add(memory.get(*at..).and_then(|rest| rest.get(..*len)).unwrap_or(&[]));
        }
        crc.value()
    }
}

fn copy(to: &mut [i8], from: &[i8]) -> Result<(), Fault> {
    if to.len() != from.len() {
        return Err(Fault::Input);
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    Ok(())
}
