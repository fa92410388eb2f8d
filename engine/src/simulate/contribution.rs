//! What training one part of a network contributes, measured on the user's samples.
//!
//! A *trial* trains one plan for some steps and tells the loss on samples that it did not train on. All trials start
//! from the same bytes, see the same samples in the same order and the same learning rates, so that two differ by what
//! they train. The loss is compared, not the accuracy: over some hundred samples a sample more or less that is right
//! is a step of half a per cent up or down, while the loss moves with every logit.

use super::features::{Features, Shortcut};
use super::{Accuracy, Evaluator, SimulateError, SimulateOptions, Simulation};
use crate::runner::{RunOptions, Runner};
use crate::samples::Samples;
use std::sync::Arc;
use tinyforge_plan::Plan;

/// What a trial found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
    /// Mean loss over the samples that were held out.
    pub loss: f64,
    /// How many of them are classified rightly.
    pub accuracy: Accuracy,
}

/// Samples to train on and samples to measure with.
pub struct Trials {
    train: Samples,
    held: Samples,
    options: SimulateOptions,
    steps: u64,
    start: Runner,
    features: [Arc<Features>; 2],
}

impl Trials {
    /// Trials of `steps` steps. `start` is loaded with the weights that all begin with; the less of the network its
    /// plan trains above a frozen part, the later the others may begin: no trial should train below it.
    ///
    /// # Errors
    /// The plan lacks an entry, an input or a result, or cannot be run.
    pub fn new(
        mut start: Runner,
        options: SimulateOptions,
        steps: u64,
        [train, held]: [Samples; 2],
    ) -> Result<Trials, SimulateError> {
        let entry = |name: &'static str| start.entry(name).ok_or(SimulateError::Missing { what: "entry", name });
        let entries = [entry("train")?, entry("infer")?];
        let seen = Features::make(&mut start, entries[0], &train)?;
        let unseen = Features::make(&mut start, entries[1], &held)?;
        Ok(Trials { train, held, options, steps, start, features: [Arc::new(seen), Arc::new(unseen)] })
    }

    /// Trains a plan from the common start and measures it. `runner` is loaded: what the start does not have keeps its
    /// bytes.
    ///
    /// # Errors
    /// The loss is not finite, or a kernel refused its data.
    pub fn measure(&self, mut runner: Runner) -> Result<Outcome, SimulateError> {
        self.begin(&mut runner);
        let plan = runner.plan().clone();
        let mut simulation = Simulation::new(runner, self.options, self.train.len())?;
        simulation.start_from(&self.features[0]);
        for _ in 0..self.steps {
            simulation.step(&self.train)?;
        }
        let mut evaluator = Evaluator::new(&plan, self.held.len(), 1)?;
        evaluator.start_from(&self.features[1]);
        let (accuracy, loss) = evaluator.measure(simulation.runner(), &self.held)?;
        Ok(Outcome { loss, accuracy })
    }

    /// What is measured before anything is trained.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn untrained(&self) -> Result<Outcome, SimulateError> {
        let mut runner = Runner::new(self.start.plan().clone(), RunOptions::default())?;
        self.begin(&mut runner);
        let mut evaluator = Evaluator::new(self.start.plan(), self.held.len(), 1)?;
        evaluator.start_from(&self.features[1]);
        let (accuracy, loss) = evaluator.measure(&runner, &self.held)?;
        Ok(Outcome { loss, accuracy })
    }

    /// Copies what the start stores under the same name: a new head depends on where the plan stores it.
    fn begin(&self, runner: &mut Runner) {
        let plan: Plan = runner.plan().clone();
        for stored in &plan.stored {
            let Some(from) = self.start.plan().find(&stored.name) else { continue };
            if (from.tensor.dtype, &from.tensor.shape) == (stored.tensor.dtype, &stored.tensor.shape) {
                let bytes = self.start.arena().tensor(&from.tensor);
                runner.arena_mut().tensor_mut(&stored.tensor).copy_from_slice(bytes);
            }
        }
    }
}

/// Features with the place where an entry starts from them.
pub(super) struct Start {
    features: Arc<Features>,
    shortcut: Shortcut,
}

impl Start {
    /// Of an entry whose first `steps` steps depend on the sample alone.
    pub(super) fn of(plan: &Plan, entry: usize, steps: usize, features: &Arc<Features>) -> Option<Start> {
        let shortcut = Shortcut::find(plan, &plan.entries[entry], steps, features)?;
        Some(Start { features: Arc::clone(features), shortcut })
    }

    /// Puts a sample's features in place; gives the first step that is left.
    pub(super) fn restore(&self, sample: usize, runner: &mut Runner) -> usize {
        self.shortcut.restore(&self.features, sample, runner.arena_mut());
        self.shortcut.first
    }
}
