//! Training on labelled samples, one at a time: what a microcontroller does, on the host.
//!
//! The same plan, the same kernels, and so the same bits; only what depends on a sample alone is computed once and
//! kept, which changes nothing. The entries of the plan are `train`, with `update` where a step has several samples,
//! and `infer`. Inputs: `images`, `labels`, `loss_weights` (1 / batch), `hyper` (learning rates of weights and of
//! biases) and `rng` (seed, step). Results: `loss`, `logits`.

pub mod contribution;
mod features;
mod prefix;

use crate::data::Schedule;
use crate::files::ReadAt;
use crate::runner::{RunError, RunOptions, Runner};
use crate::samples::Samples;
use crate::train::schedule::LrSchedule;
use contribution::Start;
use features::Features;
use prefix::Prefix;
use std::sync::Arc;
use tinyforge_kernels::int8::{CrossEntropy, i8_cross_entropy};
use tinyforge_plan::{Entry, Plan};

/// Why a simulation stopped.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A kernel refused its data, or the plan cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The plan is not one of a network with labels.
    #[error("the plan has no {what} `{name}`: it is not the plan of a network that learns from labelled samples")]
    Missing {
        /// Entry, input or result.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The loss is NaN or infinite.
    #[error("the loss of step {step} is {loss}; a lower --lr helps")]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// What it is.
        loss: f64,
    },
}

/// How a simulation trains.
#[derive(Clone, Copy, Debug)]
pub struct SimulateOptions {
    /// Samples a step.
    pub batch: usize,
    /// Learning rates of weights.
    pub schedule: LrSchedule,
    /// Learning rate of biases over that of weights.
    pub bias_lr_ratio: f64,
    /// Seed of the order of samples and of rounding.
    pub seed: u64,
    /// Whether samples come in a random order, another one every epoch.
    pub is_shuffled: bool,
}

/// A plan in training.
pub struct Simulation {
    runner: Runner,
    options: SimulateOptions,
    visits: Schedule,
    train: usize,
    update: Option<usize>,
    infer: usize,
    prefix: Prefix,
    /// Steps of `train` after which the loss is known and nothing stored has changed, where there is such a place.
    before_changes: Option<usize>,
    start: Option<Start>,
    visit: u64,
    step: u64,
}

/// How samples were classified.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Accuracy {
    /// Samples whose largest logit is their label's; of equal logits the first counts.
    pub right: usize,
    /// Samples.
    pub samples: usize,
}

impl Accuracy {
    /// The share that is right.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.samples.max(1) as f64
    }
}

impl Simulation {
    /// A simulation over `samples` samples with a runner whose weights are loaded.
    ///
    /// # Errors
    /// The plan lacks an entry, an input or a result.
    pub fn new(runner: Runner, options: SimulateOptions, samples: usize) -> Result<Simulation, SimulateError> {
        let entry = |name: &'static str| runner.entry(name).ok_or(SimulateError::Missing { what: "entry", name });
        let (train, infer) = (entry("train")?, entry("infer")?);
        let plan = runner.plan();
        for name in ["images", "labels", "loss_weights"] {
            if plan.entries[train].input(name).is_none() {
                return Err(SimulateError::Missing { what: "input", name });
            }
        }
        if plan.entries[infer].result("logits").is_none() {
            return Err(SimulateError::Missing { what: "result", name: "logits" });
        }
        let prefix = Prefix::new(plan, &plan.entries[train], "images", samples);
        let (visits, update) =
            (Schedule::new(samples as u64, options.seed, options.is_shuffled), runner.entry("update"));
        let before_changes = before_changes(&plan.entries[train]);
        let start = None;
        Ok(Simulation {
            runner,
            options,
            visits,
            train,
            update,
            infer,
            prefix,
            before_changes,
            start,
            visit: 0,
            step: 0,
        })
    }

    /// Starts every step from features of the samples, as far as they reach.
    fn start_from(&mut self, features: &Arc<Features>) {
        self.start = Start::of(self.runner.plan(), self.train, self.prefix.steps, features);
    }

    /// Begins anew with another seed: the weights of `files`, step 0. What depends on a sample alone stays.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn restart(&mut self, files: &[ReadAt], options: SimulateOptions) -> Result<(), SimulateError> {
        self.runner.load(files, options.seed)?;
        self.visits = Schedule::new(self.prefix.samples() as u64, options.seed, options.is_shuffled);
        (self.options, self.visit, self.step) = (options, 0, 0);
        Ok(())
    }

    /// The runner, with the weights as they are now.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// The runner, to be changed.
    pub fn runner_mut(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Steps of the entry `train` that depend on the sample alone, and of all.
    pub fn steady_steps(&self) -> (usize, usize) {
        (self.prefix.steps, self.runner.plan().entries[self.train].steps.len())
    }

    /// One step over the next samples; gives the mean loss.
    ///
    /// # Errors
    /// The loss is not finite: no weight was updated.
    pub fn step(&mut self, samples: &Samples) -> Result<f64, SimulateError> {
        let lr = self.options.schedule.at(self.step);
        let mut loss = 0.0;
        for _ in 0..self.options.batch {
            let sample = self.visits.row(self.visit) as usize;
            self.visit += 1;
            self.feed(self.train, lr);
            loss += f64::from(self.train_one(samples, sample)?);
        }
        if !loss.is_finite() {
            return Err(SimulateError::NotFinite { step: self.step + 1, loss });
        }
        if let Some(update) = self.update {
            self.feed(update, lr);
            self.runner.run(update)?;
        }
        self.step += 1;
        Ok(loss)
    }

    /// Learning rates and random counters.
    fn feed(&mut self, entry: usize, lr: f64) {
        let (seed, step, ratio) = (self.options.seed, self.step as u32, self.options.bias_lr_ratio);
        put(self.runner.input::<f32>(entry, "hyper"), &[lr as f32, (lr * ratio) as f32, 0.0, 0.0]);
        put(self.runner.input::<u32>(entry, "rng"), &[seed as u32, (seed >> 32) as u32, step, 0]);
    }

    fn train_one(&mut self, samples: &Samples, sample: usize) -> Result<f32, SimulateError> {
        put(self.runner.input::<i32>(self.train, "labels"), &[samples.labels[sample] as i32]);
        put(self.runner.input::<f32>(self.train, "loss_weights"), &[1.0 / self.options.batch as f32]);
        put(self.runner.input::<i8>(self.train, "images"), samples.sample(sample));
        let all = self.runner.plan().entries[self.train].steps.len();
        if !self.prefix.restore(sample, self.runner.arena_mut()) {
            let first = self.start.as_ref().map_or(0, |start| start.restore(sample, &mut self.runner));
            self.runner.run_steps(self.train, first..self.prefix.steps)?;
            self.prefix.keep(sample, self.runner.arena());
        }
        let middle = self.before_changes.unwrap_or(all).max(self.prefix.steps);
        self.runner.run_steps(self.train, self.prefix.steps..middle)?;
        let loss: f32 = self.runner.result::<f32>(self.train, "loss").iter().sum();
        if self.before_changes.is_some() && !loss.is_finite() {
            return Err(SimulateError::NotFinite { step: self.step + 1, loss: loss.into() });
        }
        self.runner.run_steps(self.train, middle..all)?;
        Ok(self.runner.result::<f32>(self.train, "loss").iter().sum())
    }

    /// Classifies one sample: the index of the largest logit.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn infer(&mut self, sample: &[i8]) -> Result<usize, SimulateError> {
        put(self.runner.input::<i8>(self.infer, "images"), sample);
        self.runner.run(self.infer)?;
        Ok(largest(self.runner.result::<i8>(self.infer, "logits")))
    }
}

/// How many leading steps change nothing stored, if the loss is among their results.
fn before_changes(train: &Entry) -> Option<usize> {
    let first = train.steps.iter().position(|s| s.changes > 0)?;
    let loss = train.result("loss")?;
    let is_known = train.steps[..first].iter().any(|s| s.outs.iter().any(|out| out.offset == loss.offset));
    is_known.then_some(first)
}

/// Copies as much as both sides have: an input that no step reads is not in the plan.
fn put<T: Copy>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// The class that logits name: the index of the largest, of equal ones the first.
pub fn largest<T: PartialOrd>(logits: &[T]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// Evaluation by several runners at a time, each with memory of its own.
pub struct Evaluator {
    workers: Vec<Worker>,
}

struct Worker {
    runner: Runner,
    infer: usize,
    first: usize,
    prefix: Prefix,
    start: Option<Start>,
    /// How the network's logits become a loss, where the plan trains.
    loss: Option<CrossEntropy>,
}

impl Evaluator {
    /// `threads` workers for `samples` samples.
    ///
    /// # Errors
    /// The plan cannot be run, or has no entry `infer`.
    pub fn new(plan: &Plan, samples: usize, threads: usize) -> Result<Evaluator, SimulateError> {
        let each = samples.div_ceil(threads.max(1)).max(1);
        let mut workers = Vec::new();
        for first in (0..samples).step_by(each) {
            let runner = Runner::new(Plan { threads: 1, ..plan.clone() }, RunOptions::default())?;
            let infer = runner.entry("infer").ok_or(SimulateError::Missing { what: "entry", name: "infer" })?;
            let prefix = Prefix::new(plan, &plan.entries[infer], "images", each.min(samples - first));
            workers.push(Worker { runner, infer, first, prefix, start: None, loss: loss_of(plan) });
        }
        Ok(Evaluator { workers })
    }

    /// Starts every sample from features of all of them, as far as they reach.
    fn start_from(&mut self, features: &Arc<Features>) {
        for w in &mut self.workers {
            w.start = Start::of(w.runner.plan(), w.infer, w.prefix.steps, features);
        }
    }

    /// Classifies all samples with the weights that `from` has now.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn run(&mut self, from: &Runner, samples: &Samples) -> Result<Accuracy, SimulateError> {
        Ok(self.measure(from, samples)?.0)
    }

    /// Classifies all samples with the weights that `from` has now; gives the mean loss too, NaN where the plan has
    /// none. Losses are added in the order of the samples, whatever the number of workers.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn measure(&mut self, from: &Runner, samples: &Samples) -> Result<(Accuracy, f64), SimulateError> {
        let results = std::thread::scope(|scope| {
            let started: Vec<_> = self.workers.iter_mut().map(|w| scope.spawn(move || w.run(from, samples))).collect();
            started.into_iter().map(|t| t.join().expect("a worker does not panic")).collect::<Vec<_>>()
        });
        let (mut right, mut loss) = (0, 0.0);
        for result in results {
            let (more, losses) = result?;
            right += more;
            loss = losses.iter().fold(loss, |sum, &l| sum + f64::from(l));
        }
        Ok((Accuracy { right, samples: samples.len() }, loss / samples.len().max(1) as f64))
    }
}

/// The loss of a plan that trains a classifier.
fn loss_of(plan: &Plan) -> Option<CrossEntropy> {
    let step = plan.entry("train")?.steps.iter().find(|s| s.kernel == "i8_cross_entropy")?;
    let logits = step.args.first()?;
    Some(CrossEntropy { classes: logits.cols(), scale: step.float("scale"), zero: step.int("zero") as i32 })
}

impl Worker {
    /// How many are right, and the loss of each.
    fn run(&mut self, from: &Runner, samples: &Samples) -> Result<(usize, Vec<f32>), RunError> {
        for stored in &from.plan().stored {
            self.runner.arena_mut().tensor_mut(&stored.tensor).copy_from_slice(from.arena().tensor(&stored.tensor));
        }
        let all = self.runner.plan().entries[self.infer].steps.len();
        let (mut right, mut losses) = (0, Vec::with_capacity(self.prefix.samples()));
        for i in 0..self.prefix.samples() {
            let sample = self.first + i;
            put(self.runner.input::<i8>(self.infer, "images"), samples.sample(sample));
            if !self.prefix.restore(i, self.runner.arena_mut()) {
                let first = self.start.as_ref().map_or(0, |start| start.restore(sample, &mut self.runner));
                self.runner.run_steps(self.infer, first..self.prefix.steps)?;
                self.prefix.keep(i, self.runner.arena());
            }
            self.runner.run_steps(self.infer, self.prefix.steps..all)?;
            let logits = self.runner.result::<i8>(self.infer, "logits");
            right += usize::from(largest(logits) == samples.labels[sample] as usize);
            let mut loss = [f32::NAN];
            if let Some(dims) = &self.loss {
                i8_cross_entropy(dims, logits, &[samples.labels[sample] as i32], &[1.0], &mut loss);
            }
            losses.extend(loss);
        }
        Ok((right, losses))
    }
}
