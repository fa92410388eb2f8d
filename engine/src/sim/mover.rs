//! Copies at the worst moments: the place of one that comes in is poisoned when it begins and filled at some moment
//! until it is waited for; one that goes out is read at some moment of that span. Which moments, and in which order
//! copies are carried out, the seed decides; order matters to none of them, as no plan may count on it: a machine may
//! have several queues for one direction, and finish a later copy first.

use super::Sim;
use super::failure::SimError;
use crate::far::{Carrier, Chunk, Files, Move, Place, Span};
use crate::files::FileError;
use crate::runner::RunError;
use std::sync::Arc;
use std::time::Duration;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::Direction;

/// What a place holds while its copy is on its way: as floats of any size, none is a number.
const POISON: u8 = 0xff;

/// Moves by a seed.
pub(crate) struct SimMover {
    sim: Sim,
    files: Arc<Files>,
    chunk: Chunk,
    dice: Dice,
    /// Begun and not carried out.
    waiting: Vec<Waiting>,
    given: u64,
    /// When the moves that are under way arrive: number among all, number of the copy, time.
    arrivals: Vec<(u64, usize, f64)>,
    failed: Option<RunError>,
}

struct Waiting {
    number: u64,
    place: Place,
    span: Span,
    direction: Direction,
    /// Of 8 steps those after which it is carried out, as good as; with 0 it waits until it must.
    haste: usize,
    fails: Option<SimError>,
}

impl SimMover {
    /// A mover of at most `most` moves under way.
    pub(crate) fn new(sim: Sim, files: Arc<Files>, most: usize) -> SimMover {
        let dice = Dice { stream: Stream { seed: sim.seed, step: 0, tensor: 0 }, thrown: 0 };
        let (waiting, arrivals) = (Vec::with_capacity(most), Vec::with_capacity(most));
        SimMover { sim, files, chunk: Chunk::new(), dice, waiting, given: 0, arrivals, failed: None }
    }

    /// Carries out one of the waiting moves.
    fn carry_out(&mut self, at: usize) {
        let mut it = self.waiting.swap_remove(at);
        let bytes = it.span.bytes;
        let part = if it.fails.is_some() { bytes / 2 } else { bytes };
        if let Err(error) = self.copy(&mut it, part) {
            self.failed.get_or_insert(error.into());
        }
        if let Some(error) = it.fails {
            self.failed.get_or_insert(error.into());
        }
    }

    fn copy(&mut self, it: &mut Waiting, bytes: usize) -> Result<(), FileError> {
        match it.direction {
            Direction::In => self.files.read(it.place, &mut it.span.bytes_mut()[..bytes], &mut self.chunk),
            Direction::Out => self.files.write(it.place, &it.span.bytes()[..bytes], &mut self.chunk),
        }
    }
}

impl Carrier for SimMover {
    fn begin(&mut self, m: &Move, mut span: Span) -> u64 {
        self.given += 1;
        let (arrives_s, fails) = self.sim.begin(m);
        if m.direction == Direction::In {
            span.bytes_mut().fill(POISON);
        }
        let haste = [0, 0, 1, 4, 8][self.dice.below(5)];
        let (number, place, direction) = (self.given, m.place, m.direction);
        self.arrivals.push((number, m.number, arrives_s));
        self.waiting.push(Waiting { number, place, span, direction, haste, fails });
        if haste == 8 {
            self.carry_out(self.waiting.len() - 1);
        }
        self.given
    }

    fn wait(&mut self, number: u64) -> Result<(), RunError> {
        if let Some(at) = self.arrivals.iter().position(|a| a.0 == number) {
            let (_, copy, arrives_s) = self.arrivals.swap_remove(at);
            self.sim.wait(copy, arrives_s);
        }
        if let Some(at) = self.waiting.iter().position(|w| w.number == number) {
            self.carry_out(at);
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn wait_all(&mut self) -> Result<(), RunError> {
        self.arrivals.drain(..).for_each(|(_, copy, arrives_s)| self.sim.wait(copy, arrives_s));
        while !self.waiting.is_empty() {
            let at = self.dice.below(self.waiting.len());
            self.carry_out(at);
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn stepped(&mut self) {
        // The dice fall once for each: in the order of places in the list, which is as good as any.
        let mut at = 0;
        while at < self.waiting.len() {
            if self.dice.below(8) < self.waiting[at].haste {
                self.carry_out(at);
            } else {
                at += 1;
            }
        }
    }

    fn times(&self) -> (Duration, Duration, u64) {
        let report = self.sim.report();
        let busy_s = report.inward.busy_s + report.outward.busy_s;
        let bytes = report.inward.bytes + report.outward.bytes;
        (Duration::from_secs_f64(report.waited_s), Duration::from_secs_f64(busy_s), bytes)
    }
}

/// Numbers by a seed, the same on every machine.
struct Dice {
    stream: Stream,
    thrown: u64,
}

impl Dice {
    /// A whole number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        self.thrown += 1;
        self.stream.block(self.thrown)[0] as usize % limit
    }
}
