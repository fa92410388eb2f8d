//! The training loop: rows in, steps, losses out.
//!
//! A step visits `batch` rows in micro-batches; the loss is the mean over all its tokens by weight, so that how the
//! rows are cut changes nothing. Nothing is allocated between steps.

pub mod checkpoint;
pub mod schedule;

use crate::data::{DataError, Row, RowReader, Schedule};
use crate::runner::{RunError, Runner};
use checkpoint::Progress;
use schedule::LrSchedule;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A row cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A kernel refused its data.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The loss is NaN or infinite; nothing of this step was saved.
    #[error(
        "the loss of step {step} is {loss}; training stopped, the last checkpoint stands. A lower --lr or clipping (--clip 1) helps"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// What it is.
        loss: f64,
    },
    /// A row has a token that the model has not.
    #[error("the data has token {token}, the model knows {vocab}: was it tokenised for another model?")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

/// How a run trains.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Rows a step.
    pub batch: usize,
    /// Rows a micro-batch; divides `batch`.
    pub micro_rows: usize,
    /// Tokens a row.
    pub seq: usize,
    /// Learning rates.
    pub schedule: LrSchedule,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Seed of shuffling and stochastic rounding.
    pub seed: u64,
    /// Steps of a phase before the next one takes its turn; 0 where there is one phase.
    pub phase_steps: u64,
    /// Whether states that all phases have outlive their phase's turn.
    pub keep_states: bool,
}

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss by weight.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient, where it is clipped.
    pub grad_norm: Option<f32>,
    /// Tokens with a label.
    pub trained_tokens: u64,
    /// Tokens, padding not counted.
    pub seen_tokens: u64,
}

/// A run in progress.
pub struct Trainer {
    runner: Runner,
    options: TrainOptions,
    visits: Schedule,
    rows: Vec<Row>,
    /// Where the run stands.
    pub progress: Progress,
}

impl Trainer {
    /// A run over `rows` rows with a loaded runner.
    pub fn new(runner: Runner, options: TrainOptions, rows: u64) -> Trainer {
        let visits = Schedule::new(rows, options.seed, true);
        let rows = (0..options.batch).map(|_| Row::padding(options.seq, 0)).collect();
        Trainer { runner, options, visits, rows, progress: Progress::default() }
    }

    /// The runner.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// The runner, to be changed.
    pub fn runner_mut(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// How the run trains.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Does one step.
    ///
    /// # Errors
    /// A row cannot be read, or the loss or a gradient is not finite. The checkpoint on disk is as it was.
    pub fn step(&mut self, data: &dyn RowReader) -> Result<StepReport, TrainError> {
        self.turn()?;
        let step = self.progress.step;
        let (mut trained, mut seen, mut weight) = (0, 0, 0.0f64);
        for (i, row) in self.rows.iter_mut().enumerate() {
            let visit = step * self.options.batch as u64 + i as u64;
            data.read(self.visits.row(visit), &mut row.buf())?;
            trained += row.loss_weight.iter().filter(|w| **w != 0.0).count() as u64;
            seen += row.segments.iter().filter(|s| **s >= 0).count() as u64;
            weight += row.loss_weight.iter().map(|&w| f64::from(w)).sum::<f64>();
        }
        let lr = self.options.schedule.at(step);
        let loss = self.micro_batches(1.0 / weight.max(f64::MIN_POSITIVE), lr)?;
        let grad_norm = self.grad_norm();
        self.progress.step += 1;
        self.progress.phase_step += 1;
        self.progress.trained_tokens += trained;
        self.progress.seen_tokens += seen;
        Ok(StepReport { step: step + 1, loss, lr, grad_norm, trained_tokens: trained, seen_tokens: seen })
    }

    /// Gives the next phase its turn when it is due. Its states start from zero, or where its last turn left them.
    fn turn(&mut self) -> Result<(), TrainError> {
        let phases = self.runner.plans().count() as u64;
        if phases < 2 || self.options.phase_steps == 0 {
            return Ok(());
        }
        let phase = self.progress.step / self.options.phase_steps % phases;
        if phase != self.progress.phase || self.runner.phase() as u64 != phase {
            self.runner.activate(phase as usize);
            self.progress.phase = phase;
            if self.options.keep_states {
                self.runner.clear_own_states()?;
                self.progress.phase_step =
                    self.progress.step / (self.options.phase_steps * phases) * self.options.phase_steps;
            } else {
                self.runner.clear_states()?;
                self.progress.phase_step = 0;
            }
        }
        Ok(())
    }

    fn micro_batches(&mut self, per_weight: f64, lr: f64) -> Result<f64, TrainError> {
        let train = self.runner.entry("train").expect("a training plan has an entry `train`");
        let update = self.runner.entry("update");
        let t = self.progress.phase_step + 1;
        let hyper = [
            lr as f32,
            (1.0 - self.options.beta1.powf(t as f64)) as f32,
            (1.0 - self.options.beta2.powf(t as f64)) as f32,
            0.0,
        ];
        let rng = [self.options.seed as u32, (self.options.seed >> 32) as u32, self.progress.step as u32, 0];
        let micro_rows = self.options.micro_rows;
        // One run does one micro-batch, or all of them layer by layer.
        let per_run = self.runner.plan().entries[train].micro_batches() as usize;
        let mut sum = 0.0;
        for first in (0..self.options.batch).step_by(micro_rows * per_run) {
            for (micro, rows) in self.rows[first..].chunks(micro_rows).take(per_run).enumerate() {
                fill(&mut self.runner, (train, micro), rows, per_weight);
            }
            set(self.runner.input(train, "hyper"), &hyper);
            set(self.runner.input(train, "rng"), &rng);
            let result = self.runner.run(train);
            // One after the other, so that the sum does not depend on how the rows were cut.
            for micro in 0..per_run {
                let losses = self.runner.result_of::<f32>((train, micro), "loss");
                sum = losses.iter().fold(sum, |sum, &l| sum + f64::from(l));
            }
            if !sum.is_finite() {
                return Err(TrainError::NotFinite { step: self.progress.step + 1, loss: sum });
            }
            result?;
        }
        if let Some(update) = update {
            set(self.runner.input(update, "hyper"), &hyper);
            set(self.runner.input(update, "rng"), &rng);
            self.runner.run(update)?;
        }
        Ok(sum)
    }

    fn grad_norm(&self) -> Option<f32> {
        let entry = self.runner.entry("update").or(self.runner.entry("train"))?;
        self.runner.result::<f32>(entry, "clip").get(1).copied()
    }

    /// Mean loss by weight over the first rows of `data`, at most `most`.
    ///
    /// # Errors
    /// A row cannot be read, or a kernel refused its data.
    pub fn evaluate(&mut self, data: &dyn RowReader, most: u64) -> Result<f64, TrainError> {
        evaluate(&mut self.runner, data, most, self.options.micro_rows, &mut self.rows)
    }
}

/// Mean loss by weight over the first `most` rows of `data`, `micro_rows` at a time; `rows` is room for them.
///
/// # Errors
/// A row cannot be read, or a kernel refused its data.
///
/// # Panics
/// The plan has no entry `eval`.
pub fn evaluate(
    runner: &mut Runner,
    data: &dyn RowReader,
    most: u64,
    micro_rows: usize,
    rows: &mut [Row],
) -> Result<f64, TrainError> {
    let eval = runner.entry("eval").expect("the plan has an entry `eval`");
    let count = data.rows().min(most);
    let (mut sum, mut weight) = (0.0, 0.0);
    for first in (0..count).step_by(micro_rows) {
        for (i, row) in rows[..micro_rows].iter_mut().enumerate() {
            data.read((first + i as u64).min(count - 1), &mut row.buf())?;
            if first + i as u64 >= count {
                row.loss_weight.fill(0.0);
            }
            weight += row.loss_weight.iter().map(|&w| f64::from(w)).sum::<f64>();
        }
        fill(runner, (eval, 0), &rows[..micro_rows], 1.0);
        runner.run(eval)?;
        sum = runner.result::<f32>(eval, "loss").iter().fold(sum, |sum, &l| sum + f64::from(l));
    }
    Ok(sum / weight.max(f64::MIN_POSITIVE))
}

fn set<T: Copy>(input: &mut [T], values: &[T]) {
    if input.len() == values.len() {
        input.copy_from_slice(values);
    }
}

/// Fills the inputs of an entry's micro-batch from rows; weights are multiplied by `per_weight`.
fn fill(runner: &mut Runner, at: (usize, usize), rows: &[Row], per_weight: f64) {
    fn gather<T: Copy>(input: &mut [T], rows: &[Row], of: impl Fn(&Row) -> &[T]) {
        let seq = input.len() / rows.len().max(1);
        for (part, row) in input.chunks_exact_mut(seq.max(1)).zip(rows) {
            part.copy_from_slice(of(row));
        }
    }
    gather(runner.input_of::<u32>(at, "tokens"), rows, |r| &r.tokens);
    gather(runner.input_of(at, "labels"), rows, |r| &r.labels);
    gather(runner.input_of(at, "positions"), rows, |r| &r.positions);
    gather(runner.input_of(at, "segments"), rows, |r| &r.segments);
    let weights = runner.input_of::<f32>(at, "loss_weights");
    gather(weights, rows, |r| &r.loss_weight);
    weights.iter_mut().for_each(|w| *w = (f64::from(*w) * per_weight) as f32);
}
