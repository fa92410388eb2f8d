//! A plan played on a machine that is not here: the executor's own order of steps and copies against the fake clock.
//!
//! Nothing is computed and no byte moves, so a model of any size is played in the memory of its plan. What begins
//! when, and what waits for what, is what a run does: the same code hands copies to a carrier and asks for them. Not
//! for results, and not for what kernels reach: their seconds come from whoever knows the machine.

use super::clock::{Clock, Link, Rates, Report};
use crate::arena::Arena;
use crate::far::{Carrier, Far, Move, Near, Span};
use crate::runner::RunError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tinyforge_plan::{Plan, Step, check};

/// What a machine takes for what plans do.
pub struct Paper<'a> {
    /// From the far memory to the near one.
    pub inward: Link,
    /// From the near memory to the far one.
    pub outward: Link,
    /// From files to the host's memory and back, where the far memory that feeds the near one is the host's.
    pub files: Option<[Link; 2]>,
    /// Whether copies and kernels take turns.
    pub single_queue: bool,
    /// Seconds of a step, alone.
    pub seconds: &'a dyn Fn(&Step) -> f64,
}

/// Where the time goes when each entry is run so many times, one after the other. Copies that an entry finds there when
/// it begins are not counted the first time: they are there from the step before, where no other entry came between.
///
/// # Errors
/// The plan is damaged, or the system refuses the addresses of its arena.
pub fn played(plan: &Plan, runs: &[(usize, u32)], paper: &Paper) -> Result<Report, RunError> {
    if let Some(fault) = check::check(plan).into_iter().next() {
        return Err(RunError::Plan(fault));
    }
    let &Paper { inward, outward, files, single_queue, .. } = paper;
    let rates = Rates { inward, outward, files, single_queue, ..Rates::default() };
    let updates = plan.entries.iter().map(|e| plan.host_steps(e).len()).max().unwrap_or(0);
    let clock = Shared(Arc::new(Mutex::new(Clock::new(rates, updates))));
    let reserved = Arena::sparse(plan.arena_start(), plan.arena_bytes());
    let mut arena = reserved.map_err(|e| RunError::System { what: "cannot reserve addresses", why: e.to_string() })?;
    let mut far = Far::played(plan, |most, copies| {
        clock.clock().name_copies(copies);
        Box::new(Told { clock: clock.clone(), under_way: Vec::with_capacity(most), given: 0 })
    });
    if let Some(&(first, _)) = runs.first() {
        let mut near = On { plan, entry: first, paper, clock: &clock };
        far.enter((0, first), &mut arena, &mut near)?;
        clock.clock().forget();
    }
    for &(entry, times) in runs {
        let mut near = On { plan, entry, paper, clock: &clock };
        let count = plan.entries[entry].steps.len();
        for _ in 0..times {
            far.enter((0, entry), &mut arena, &mut near)?;
            far.run(0..count, count, &mut arena, &mut near)?;
        }
    }
    let report = clock.clock().report();
    Ok(report)
}

/// The clock of the steps and of the copies.
#[derive(Clone)]
struct Shared(Arc<Mutex<Clock>>);

impl Shared {
    fn clock(&self) -> MutexGuard<'_, Clock> {
        // Sums are whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A near memory in which steps take their time.
struct On<'a> {
    plan: &'a Plan,
    entry: usize,
    paper: &'a Paper<'a>,
    clock: &'a Shared,
}

impl Near for On<'_> {
    fn came(&mut self, _: &mut Arena, _: (u64, u64)) -> Result<(), RunError> {
        Ok(())
    }

    fn going(&mut self, _: &mut Arena, _: (u64, u64)) -> Result<(), RunError> {
        Ok(())
    }

    fn step(&mut self, i: usize, _: &mut Arena) -> Result<(), RunError> {
        let step = &self.plan.entries[self.entry].steps[i];
        let (seconds, mut clock) = ((self.paper.seconds)(step), self.clock.clock());
        match self.plan.is_on_host(step) {
            true => clock.update(seconds),
            false => clock.pass(seconds),
        }
        Ok(())
    }
}

/// A carrier that is told of moves and lets their time pass.
struct Told {
    clock: Shared,
    /// Number among all, number of the copy, when it is there.
    under_way: Vec<(u64, usize, f64)>,
    given: u64,
}

impl Carrier for Told {
    fn begin(&mut self, m: &Move, _: Span) -> u64 {
        self.given += 1;
        let arrives_s = self.clock.clock().begin(m);
        self.under_way.push((self.given, m.number, arrives_s));
        self.given
    }

    fn wait(&mut self, number: u64) -> Result<(), RunError> {
        if let Some(at) = self.under_way.iter().position(|it| it.0 == number) {
            let (_, copy, arrives_s) = self.under_way.swap_remove(at);
            self.clock.clock().wait(copy, arrives_s);
        }
        Ok(())
    }

    fn wait_all(&mut self) -> Result<(), RunError> {
        let mut clock = self.clock.clock();
        self.under_way.drain(..).for_each(|(_, copy, arrives_s)| clock.wait(copy, arrives_s));
        Ok(())
    }

    fn rest(&mut self) -> Result<(), RunError> {
        self.clock.clock().rest();
        Ok(())
    }

    fn stepped(&mut self) {}

    fn times(&self) -> (Duration, Duration, u64) {
        let Report { waited_s, inward, outward, .. } = self.clock.clock().report();
        let busy_s = inward.busy_s + outward.busy_s;
        (Duration::from_secs_f64(waited_s), Duration::from_secs_f64(busy_s), inward.bytes + outward.bytes)
    }
}
