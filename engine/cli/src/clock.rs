//! Where the time of training steps goes, and how far it is from the bound.

use crate::planning::Planned;
use crate::profile::{self, Profile};
use serde::Serialize;
use std::time::Instant;
use tinyforge::runner::Runner;
use tinyforge_compiler::cost::StepCost;
use tinyforge_plan::Part;

/// Counts the time of steps.
pub struct Clock {
    /// A profile's name, and what a step of every phase costs on its machine.
    costs: Option<(String, Vec<StepCost>)>,
    /// Arithmetic of a step of every phase.
    flops: Vec<f64>,
    /// Steps that were counted, of every phase.
    steps: Vec<u64>,
    seconds: f64,
    /// Kernels of forward and backward; of updates.
    kernels_ns: [u64; 2],
    /// How long steps waited for copies, how long copies moved, and their bytes.
    copies: [f64; 3],
    /// When the step began, and what the phase's kernels and copies had taken by then.
    began: Option<(Instant, [u64; 2], [f64; 3])>,
    /// The phase of the last step.
    phase: Option<usize>,
}

/// Where the time of a step went, in seconds, and what it should have taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// The mean time of a step.
    pub step_s: f64,
    /// Of that, kernels of the forward and backward pass.
    pub compute_s: f64,
    /// Of that, updates.
    pub update_s: f64,
    /// The rest: waiting for transfers, reading rows; nothing where kernels are not timed one by one, on a GPU.
    pub waiting_s: f64,
    /// Arithmetic a second, what is computed again counted.
    pub flops_per_second: f64,
    /// The share of the time of copies for which no step waited; absent where nothing is copied.
    pub overlap: Option<f64>,
    /// Bytes that copies moved in a second in which any did; absent where nothing is copied.
    pub copies_bytes_per_second: Option<f64>,
    /// The machine's profile, where there is one with rates.
    pub profile: Option<String>,
    /// What the step takes at least on the profile's machine.
    pub bound_s: Option<f64>,
    /// Which resource says so.
    pub bound_by: Option<String>,
    /// What it was predicted to take.
    pub predicted_s: Option<f64>,
    /// The bound over the time that was measured.
    pub efficiency: Option<f64>,
}

impl Clock {
    /// A clock for a run of these plans, with what a step costs on the machine of a profile. Where that lacks a rate,
    /// there is no efficiency.
    pub fn new(profile: Option<Profile>, plans: &[Planned], batch: u32) -> Clock {
        let costs = profile.and_then(|p| Some((p.origin, profile::phase_costs(&p.machine, plans, batch).ok()?)));
        let flops = plans.iter().map(|plan| profile::step_flops(std::slice::from_ref(plan), batch)).collect();
        let (steps, kernels_ns, copies) = (vec![0; plans.len()], [0; 2], [0.0; 3]);
        Clock { costs, flops, steps, seconds: 0.0, kernels_ns, copies, began: None, phase: None }
    }

    /// A step begins.
    pub fn begin(&mut self, runner: &Runner) {
        self.began = Some((Instant::now(), kernels_ns(runner), copies(runner)));
    }

    /// It has ended. The first step of a phase is not counted: it touches its memory for the first time.
    pub fn end(&mut self, runner: &Runner) {
        let Some((started, before, copies_before)) = self.began.take() else { return };
        let seconds = started.elapsed().as_secs_f64();
        if self.phase.replace(runner.phase()) != Some(runner.phase()) {
            return;
        }
        self.steps[runner.phase()] += 1;
        self.seconds += seconds;
        let after = kernels_ns(runner);
        self.kernels_ns
            .iter_mut()
            .zip(after.iter().zip(before))
            .for_each(|(sum, (after, before))| *sum += after - before);
        let copies = copies(runner);
        (0..3).for_each(|i| self.copies[i] += copies[i] - copies_before[i]);
    }

    /// What was counted; `None` where there were too few steps.
    pub fn speed(&self) -> Option<Speed> {
        let steps = self.steps.iter().sum::<u64>() as f64;
        if steps == 0.0 {
            return None;
        }
        let step_s = self.seconds / steps;
        let weights = self.steps.iter().map(|&steps| steps as f64);
        let flops = self.flops.iter().zip(weights.clone()).map(|(flops, weight)| flops * weight).sum::<f64>() / steps;
        let [compute_s, update_s] = self.kernels_ns.map(|ns| ns as f64 / 1e9 / steps);
        // Phases differ, and a run may end before all of them have had their turn.
        let cost = self.costs.as_ref().map(|(_, costs)| StepCost::mean(&costs.iter().zip(weights).collect::<Vec<_>>()));
        let bound_s = cost.as_ref().map(|c| c.bound.seconds());
        let [waited, moved, bytes] = self.copies;
        Some(Speed {
            step_s,
            compute_s,
            update_s,
            waiting_s: if self.kernels_ns == [0; 2] { 0.0 } else { (step_s - compute_s - update_s).max(0.0) },
            flops_per_second: flops / step_s,
            overlap: (moved > 0.0).then(|| (1.0 - waited / moved).max(0.0)),
            copies_bytes_per_second: (moved > 0.0).then(|| bytes / moved),
            profile: self.costs.as_ref().map(|(origin, _)| origin.clone()),
            bound_s,
            bound_by: cost.as_ref().map(|c| c.bound.resource().to_string()),
            predicted_s: cost.as_ref().map(|c| c.prediction_s),
            efficiency: bound_s.map(|bound| bound / step_s),
        })
    }
}

/// Nanoseconds of the active phase's kernels that do no update, and of those that do.
fn kernels_ns(runner: &Runner) -> [u64; 2] {
    let mut sums = [0; 2];
    runner.times().for_each(|(step, ns, _)| sums[usize::from(step.part == Part::Update)] += ns);
    sums
}

/// Seconds that steps have waited for copies, and that copies have moved, and their bytes.
fn copies(runner: &Runner) -> [f64; 3] {
    let found = runner.moved();
    found.map_or([0.0; 3], |(waited, moved, bytes)| [waited.as_secs_f64(), moved.as_secs_f64(), bytes as f64])
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Speed { step_s, compute_s, update_s, waiting_s, .. } = self;
        write!(f, "time: {step_s:.3} s a step")?;
        if compute_s + update_s > 0.0 {
            write!(f, ": compute {compute_s:.3}, updates {update_s:.3}, waiting and reading {waiting_s:.3}")?;
        }
        write!(f, "; {:.1} GFLOP/s", self.flops_per_second / 1e9)?;
        if let Some(overlap) = self.overlap {
            write!(f, "; {:.0} % of the time of copies beside kernels", 100.0 * overlap)?;
        }
        if let Some(rate) = self.copies_bytes_per_second {
            write!(f, ", at {:.2} GB/s", rate / 1e9)?;
        }
        if let (Some(bound), Some(by), Some(predicted)) = (self.bound_s, &self.bound_by, self.predicted_s) {
            let efficiency = self.efficiency.unwrap_or(0.0);
            write!(f, "\nefficiency: {efficiency:.2} of the bound, {bound:.3} s by {by}; predicted {predicted:.3} s")?;
        }
        Ok(())
    }
}
