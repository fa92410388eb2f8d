//! One training of an int8 network on this computer, and what came of it.

use super::Int8Settings;
use crate::error::CommandError;
use tinyforge::files::ReadAt;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::Samples;
use tinyforge::simulate::{Accuracy, Evaluator, SimulateOptions, Simulation};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_plan::Plan;

/// What all trainings of a request have in common.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// Samples to learn from.
    pub train: &'a Samples,
    /// Samples to test on.
    pub test: &'a Samples,
    /// Times through the samples.
    pub epochs: u32,
    /// Steps at most.
    pub steps_max: u64,
    /// Share of the steps in which the rate grows.
    pub warmup: f64,
    /// How the rate decays after that.
    pub decay: Decay,
    /// Whether samples come in a random order.
    pub is_shuffled: bool,
    /// Threads: for testing, or for seeds side by side.
    pub threads: usize,
}

/// The learning rates of one training.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// The highest rate of weights.
    pub lr: f64,
    /// The rate of biases over that of weights.
    pub bias_ratio: f64,
}

/// What an epoch came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Epoch {
    /// Mean loss of its steps.
    pub loss: f64,
    /// On the test samples, after it.
    pub accuracy: Accuracy,
}

/// The course of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct Course {
    /// On the test samples, before the first step.
    pub before: Accuracy,
    /// The epochs.
    pub epochs: Vec<Epoch>,
}

impl Course {
    /// On the test samples, at the end.
    pub fn after(&self) -> Accuracy {
        self.epochs.last().map_or(self.before, |e| e.accuracy)
    }
}

/// A plan that learns, as often as asked.
pub struct Learner<'a> {
    lesson: &'a Lesson<'a>,
    files: &'a [ReadAt],
    batch: usize,
    rates: Rates,
    simulation: Simulation,
    evaluator: Evaluator,
}

impl<'a> Learner<'a> {
    /// A learner with the weights of `files`.
    ///
    /// # Errors
    /// The plan is not one of a network that learns from labelled samples.
    pub fn new(
        lesson: &'a Lesson,
        plan: &Plan,
        files: &'a [ReadAt],
        settings: &Int8Settings,
        rates: Rates,
    ) -> Result<Learner<'a>, CommandError> {
        let runner = Runner::new(plan.clone(), RunOptions::default())?;
        let batch = settings.batch as usize;
        let options = options(lesson, batch, rates, 0);
        let simulation = Simulation::new(runner, options, lesson.train.len()).map_err(CommandError::request)?;
        let evaluator = Evaluator::new(plan, lesson.test.len(), lesson.threads).map_err(CommandError::request)?;
        Ok(Learner { lesson, files, batch, rates, simulation, evaluator })
    }

    /// Steps of a training step that depend on the sample alone, and all.
    pub fn steady_steps(&self) -> (usize, usize) {
        self.simulation.steady_steps()
    }

    /// Steps done since the start.
    pub fn steps(&self) -> u64 {
        self.simulation.steps()
    }

    /// The weights as they are now.
    pub fn runner(&self) -> &Runner {
        self.simulation.runner()
    }

    /// Trains from the start by this seed; `done` hears of every epoch.
    ///
    /// # Errors
    /// The loss is not finite, or a file cannot be read.
    pub fn learn(&mut self, seed: u64, mut done: impl FnMut(usize, &Epoch)) -> Result<Course, CommandError> {
        let lesson = self.lesson;
        let options = options(lesson, self.batch, self.rates, seed);
        self.simulation.restart(self.files, options).map_err(CommandError::run)?;
        let before = self.test()?;
        let mut course = Course { before, epochs: Vec::new() };
        for epoch in 0..lesson.epochs {
            let wanted = per_epoch(lesson, self.batch).min(lesson.steps_max.saturating_sub(self.simulation.steps()));
            if wanted == 0 {
                break;
            }
            let mut sum = 0.0;
            for _ in 0..wanted {
                sum += self.simulation.step(lesson.train).map_err(CommandError::run)?;
            }
            let epoch_done = Epoch { loss: sum / wanted as f64, accuracy: self.test()? };
            done(epoch as usize + 1, &epoch_done);
            course.epochs.push(epoch_done);
        }
        Ok(course)
    }

    fn test(&mut self) -> Result<Accuracy, CommandError> {
        self.evaluator.run(self.simulation.runner(), self.lesson.test).map_err(CommandError::run)
    }
}

/// Steps of an epoch; what fills no batch is left out.
fn per_epoch(lesson: &Lesson, batch: usize) -> u64 {
    (lesson.train.len() / batch).max(1) as u64
}

fn options(lesson: &Lesson, batch: usize, rates: Rates, seed: u64) -> SimulateOptions {
    let steps = per_epoch(lesson, batch) * u64::from(lesson.epochs);
    let warmup_steps = (steps as f64 * lesson.warmup.clamp(0.0, 1.0)) as u64;
    SimulateOptions {
        batch,
        schedule: LrSchedule { peak: rates.lr, floor: 0.0, warmup_steps, steps, decay: lesson.decay },
        bias_lr_ratio: rates.bias_ratio,
        seed,
        is_shuffled: lesson.is_shuffled,
    }
}
