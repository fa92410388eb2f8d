//! A simulated machine: the same plans and the CPU's kernels, with far memories whose copies are carried out at the
//! worst moments that a plan allows, a clock that only the plan moves on, and failures on demand.
//!
//! Invariant: what a run computes does not depend on the seed or the rates; a plan for which it does is wrong. Nothing
//! is allocated between steps. Not for speed: the seconds are those of the machine that [`Rates`] describe.

mod clock;
mod failure;
mod mover;
mod played;

pub use clock::{Link, Rates, Report, Size, Traffic, Wait};
pub use failure::{Failure, FailureKind, SimError};
pub use played::{Paper, played};

pub(crate) use mover::SimMover;

use crate::arena::Arena;
use crate::cpu::Code;
use crate::far::Move;
use crate::runner::RunError;
use clock::Clock;
use failure::Failures;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tinyforge_kernels::par::Par;
use tinyforge_plan::{Direction, Plan, Step};

/// What is simulated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SimOptions {
    /// Decides at which moments, and in which order, copies are carried out.
    pub seed: u64,
    /// What the machine can do.
    pub rates: Rates,
    /// What fails, if anything.
    pub failure: Option<Failure>,
}

/// A simulated machine, shared by who runs steps and who moves copies.
#[derive(Clone)]
pub(crate) struct Sim {
    seed: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    clock: Clock,
    failures: Failures,
}

impl Sim {
    /// A machine that has done nothing yet, for entries of at most so many steps of the host.
    pub(crate) fn new(options: &SimOptions, updates: usize) -> Sim {
        let clock = Clock::new(options.rates.clone(), updates);
        let state = State { clock, failures: Failures::new(options.failure) };
        Sim { seed: options.seed, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters and sums are whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a plan takes of a memory that the machine has less of, in words.
    pub(crate) fn lacks(&self, plan: &Plan) -> Option<String> {
        let state = self.state();
        let lack = |size: &Size| {
            let space = plan.spaces.iter().find(|s| s.name == size.name).filter(|s| s.bytes > size.bytes)?;
            let Size { name, bytes } = size;
            Some(format!("the plan takes {} bytes of `{name}`, the simulated machine has {bytes}", space.bytes))
        };
        state.clock.rates().spaces.iter().find_map(lack)
    }

    /// Counts an allocation.
    ///
    /// # Errors
    /// It is the one that fails.
    pub(crate) fn allocate(&self, what: &str, bytes: u64) -> Result<(), SimError> {
        self.state().failures.count(FailureKind::Allocation, || format!("{bytes} bytes for {what}"))
    }

    /// Counts the launch of a step, by the device or by the host, and lets its time pass.
    ///
    /// # Errors
    /// It is the one that fails.
    pub(crate) fn launch(&self, step: &Step, on_host: bool) -> Result<(), SimError> {
        let mut state = self.state();
        state.failures.count(FailureKind::Launch, || format!("{} {}", step.kernel, step.label))?;
        match on_host {
            true => state.clock.update_bytes(step),
            false => state.clock.compute(step),
        }
        Ok(())
    }

    /// Counts a copy and puts it on its link: when it will be there, and whether it fails.
    fn begin(&self, m: &Move) -> (f64, Option<SimError>) {
        let mut state = self.state();
        let (kind, preposition) = match m.direction {
            Direction::In => (FailureKind::CopyIn, "from"),
            Direction::Out => (FailureKind::CopyOut, "to"),
        };
        let bytes = m.near.1;
        let at = || format!("{bytes} bytes {preposition} the far memory, of `{}` and what moves with it", m.name);
        let failed = state.failures.count(kind, at).err();
        (state.clock.begin(m), failed)
    }

    /// Waits on the clock for a copy.
    fn wait(&self, number: usize, arrives_s: f64) {
        self.state().clock.wait(number, arrives_s);
    }

    /// Waits on the clock for the host's steps, at the end of an entry.
    fn rest(&self) {
        self.state().clock.rest();
    }

    /// Names the copies that there can be waits for, in the order of their numbers.
    pub(crate) fn name_copies(&self, copies: impl Iterator<Item = (String, Direction)>) {
        self.state().clock.name_copies(copies);
    }

    /// Where the time went.
    pub(crate) fn report(&self) -> Report {
        self.state().clock.report()
    }
}

/// Runs one step of an entry, on a simulated machine or for itself.
///
/// # Errors
/// The kernel refused its data, or the machine failed.
pub(crate) fn launch(
    sim: Option<&Sim>,
    (plan, code): (&Plan, &mut Code),
    (entry, i): (usize, usize),
    arena: &mut Arena,
    par: &Par,
) -> Result<(), RunError> {
    let step = &plan.entries[entry].steps[i];
    if let Some(sim) = sim {
        sim.launch(step, plan.is_on_host(step))?;
    }
    Ok(code.step(step, (entry, i), arena, par)?)
}
