//! What a step costs in time on a machine: a bound, and a prediction.
//!
//! A [`Schedule`] says what is computed in which order and what is transferred meanwhile, in amounts and not in
//! seconds; a [`Machine`] gives the rates. From both come two numbers that are never mixed:
//!
//! ```text
//! bound      = the busiest resource's work at the machine's rates, were nothing ever to wait
//! prediction = the time of the last event when the schedule is played, kernels at what they were measured to reach
//! ```
//!
//! Invariant: the bound of a schedule is at most its prediction. Pure functions: nothing here knows a plan's places, a
//! device or a clock. `schedule` makes the schedule of a plan.

mod bound;
mod schedule;
mod seconds;
mod simulate;
mod work;

pub use bound::{Bound, Resource, bound};
pub use schedule::{Path, events, path, schedule};
pub use seconds::{Measured, factors, ideal, seconds};
pub use simulate::{Prediction, Span, simulate};
pub use work::{work, work_in};

use crate::machine::{Link, Machine};
use tinyforge_plan::{DType, Part};

/// One thing that is computed: a kernel call, in amounts.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// The kernel.
    pub kernel: String,
    /// Number type of its arithmetic as it is asked for, f32, f16, bf16 or i8; on a machine, that of [`factors`].
    pub factors: DType,
    /// How its weights are stored.
    pub weights: DType,
    /// Arithmetic.
    pub flops: u64,
    /// Bytes that it reads and writes in the near memory.
    pub near_bytes: u64,
    /// Bytes of weights, gradients and states that an update reads and writes; 0 for what is no update.
    pub optimizer_bytes: u64,
    /// Whether the host does it, beside the device: an update of weights that live in the host's memory.
    pub on_host: bool,
    /// Index of the block that it belongs to.
    pub block: u32,
    /// Which part of a step it is.
    pub part: Part,
}

/// Bytes that cross a link while works run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Index of the link, which is one direction, in [`Machine::links`].
    pub link: u32,
    /// Index of the link to or from files that the bytes cross as well, piece by piece: it is asked for them first.
    pub files: Option<u32>,
    /// Bytes on the wire.
    pub bytes: u64,
    /// It may start when all works before this index are done: what it reads is there, what it writes is free.
    pub begins: u32,
    /// The work at this index waits for it; the number of works where only the end does. At least `begins`.
    pub ends: u32,
    /// Index of the work of the host, before `begins`, that it waits for: it brings what that has changed.
    pub follows: Option<u32>,
}

/// What an entry does in one run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Schedule {
    /// In the order of execution. Works of the host take part in the order: they wait for what comes before them, and
    /// what comes after them waits only by way of a transfer that follows them.
    pub works: Vec<Work>,
    /// In the order in which they are asked for; those of one link run one after the other, in this order.
    pub transfers: Vec<Transfer>,
}

/// Why a schedule has no cost.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CostError {
    /// The machine's description lacks a figure.
    #[error("the profile `{machine}` does not say {what}: `tinyforge bench` measures it, or write it into the file")]
    NoRate {
        /// The machine.
        machine: String,
        /// The figure.
        what: String,
    },
    /// A transfer names works or a link that do not exist, ends before it begins, or begins before what it follows.
    #[error("transfer {index} goes from work {begins} to {ends} of {works}, over link {link} of {links}")]
    Order {
        /// The transfer.
        index: usize,
        /// Its first index.
        begins: u32,
        /// Its last.
        ends: u32,
        /// Works of the schedule.
        works: usize,
        /// Its link.
        link: u32,
        /// Links of the machine.
        links: usize,
    },
    /// A transfer is waited for behind one of the same link that waits for a later work.
    #[error("work {work} waits for transfer {index}, which comes behind one that begins later")]
    Deadlock {
        /// The work that waits.
        work: usize,
        /// What it waits for.
        index: usize,
    },
}

/// Cost of an optimizer step made of entries that run one after the other.
#[derive(Clone, PartialEq, Debug)]
pub struct StepCost {
    /// What it takes at least, and which resource says so.
    pub bound: Bound,
    /// What it is expected to take.
    pub prediction_s: f64,
    /// Of that, when the compute queue waited for a transfer or the host.
    pub waiting_s: f64,
    /// Of that, what updates took on the compute queue.
    pub update_s: f64,
    /// The share of the compute queue's time that measured kernels account for.
    pub measured_share: f64,
}

impl StepCost {
    /// The mean of costs with these weights, whose sum is above 0: of steps that take turns, each as often as that.
    pub fn mean(parts: &[(&StepCost, f64)]) -> StepCost {
        let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
        let mean = |of: fn(&StepCost) -> f64| parts.iter().map(|(cost, weight)| weight / all * of(cost)).sum();
        let bounds: Vec<(Bound, f64)> = parts.iter().map(|(cost, weight)| (cost.bound.clone(), weight / all)).collect();
        StepCost {
            bound: Bound::sum(&bounds),
            prediction_s: mean(|cost| cost.prediction_s),
            waiting_s: mean(|cost| cost.waiting_s),
            update_s: mean(|cost| cost.update_s),
            measured_share: mean(|cost| cost.measured_share),
        }
    }
}

/// The cost of schedules that run one after the other, each so many times.
///
/// # Errors
/// A rate is missing, or a schedule's order cannot be kept.
pub fn step(machine: &Machine, runs: &[(&Schedule, u32)]) -> Result<StepCost, CostError> {
    let mut parts = Vec::new();
    let (mut prediction_s, mut waiting_s, mut update_s, mut busy_s, mut measured_s) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for &(schedule, times) in runs {
        let n = f64::from(times);
        parts.push((bound(machine, schedule)?, n));
        let played = simulate(machine, schedule)?;
        prediction_s += n * played.seconds;
        waiting_s += n * played.waiting_s;
        for (work, span) in schedule.works.iter().zip(&played.works).filter(|(work, _)| !work.on_host) {
            let s = n * span.seconds();
            busy_s += s;
            update_s += if work.part == Part::Update { s } else { 0.0 };
            measured_s += if seconds(machine, work)?.is_measured { s } else { 0.0 };
        }
    }
    let measured_share = if busy_s > 0.0 { measured_s / busy_s } else { 0.0 };
    Ok(StepCost { bound: Bound::sum(&parts), prediction_s, waiting_s, update_s, measured_share })
}

/// Seconds of so many bytes on a link, alone.
fn link_s(machine: &Machine, link: u32, bytes: u64) -> Result<f64, CostError> {
    let Link { from, to, bytes_per_second, latency_s } = &machine.links[link as usize];
    let rate = bytes_per_second.ok_or_else(|| no_rate(machine, format!("bytes_per_second from {from} to {to}")))?;
    Ok(latency_s + bytes as f64 / rate)
}

/// Whether transfers over the link take the place of kernels in the device's one queue.
fn takes_queue(machine: &Machine, link: u32) -> bool {
    let Link { from, to, .. } = &machine.links[link as usize];
    machine.traits.single_queue && machine.near != "ram" && [from, to].contains(&&machine.near)
}

fn no_rate(machine: &Machine, what: impl Into<String>) -> CostError {
    CostError::NoRate { machine: machine.name.clone(), what: what.into() }
}

/// The transfers, checked against works and links.
fn check(machine: &Machine, schedule: &Schedule) -> Result<(), CostError> {
    let (works, links) = (schedule.works.len(), machine.links.len());
    for (index, &Transfer { link, files, begins, ends, follows, .. }) in schedule.transfers.iter().enumerate() {
        let link = files.unwrap_or(link).max(link);
        let is_behind = follows.is_none_or(|work| work < begins);
        if !is_behind || begins > ends || ends as usize > works || link as usize >= links {
            return Err(CostError::Order { index, begins, ends, works, link, links });
        }
    }
    Ok(())
}
