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

    fn rest(&mut self) -> Result<(), RunError> {
        self.sim.rest();
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::super::{Failure, FailureKind, Sim, SimOptions};
    use super::{POISON, SimMover};
    use crate::far::{Carrier, Files, Move, Place, Span};
    use crate::files::ReadAt;
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::ptr::NonNull;
    use tinyforge_plan::{Direction, Plan, Space};

    const BYTES: usize = 64;

    /// A mover over a model's file full of ones and a work file full of zeros.
    struct Desk {
        folder: PathBuf,
        mover: SimMover,
        near: Vec<u8>,
    }

    impl Desk {
        fn new(name: &str, options: &SimOptions) -> Desk {
            let folder = std::env::temp_dir().join(format!("tinyforge-sim-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder");
            let model = folder.join("model");
            std::fs::write(&model, [1; 4 * BYTES]).expect("written");
            let space = Space {
                name: "work".to_string(),
                first_byte: 0,
                bytes: 4096,
                is_written: true,
                is_far: true,
                is_host: false,
            };
            let plan = Plan { spaces: vec![space], ..Plan::default() };
            let files = [ReadAt::open(&model).expect("opens")];
            let files = Files::open(&plan, &files, &folder.join("work"), None).expect("opens");
            Desk { mover: SimMover::new(Sim::new(options, 0), files, 8), near: vec![7; 4 * BYTES], folder }
        }

        fn begin(&mut self, slot: usize, direction: Direction) -> u64 {
            let place = match direction {
                Direction::In => Place::Model(0, 0),
                Direction::Out => Place::Work((slot * BYTES) as u64),
            };
            let near = ((slot * BYTES) as u64, BYTES as u64);
            let m = Move { name: "w".to_string(), number: 0, place, near, direction, begins: 0, ends: 0, follows: 0 };
            let start = NonNull::from(&mut self.near[slot * BYTES..]).cast();
            self.mover.begin(&m, Span { start, bytes: BYTES })
        }

        fn slot(&mut self, slot: usize) -> &mut [u8] {
            &mut self.near[slot * BYTES..][..BYTES]
        }
    }

    impl Drop for Desk {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    fn seed(seed: u64) -> SimOptions {
        SimOptions { seed, ..SimOptions::default() }
    }

    /// What is read before it was waited for is poison under some seeds and there under others; and of two copies
    /// either can be the first.
    #[test]
    fn every_moment_and_order_comes_up() {
        let mut seen = BTreeSet::new();
        for number in 0..60 {
            let mut desk = Desk::new("in", &seed(number));
            let [a, b] = [0, 1].map(|slot| desk.begin(slot, Direction::In));
            desk.mover.stepped();
            let state: Vec<u8> = [0, 1].map(|slot| desk.slot(slot)[5]).to_vec();
            assert!(state.iter().all(|s| [1, POISON].contains(s)), "{state:?}");
            seen.insert(state);
            desk.mover.wait(b).expect("nothing fails");
            assert_eq!(desk.slot(1), [1; BYTES]);
            desk.mover.wait(a).expect("nothing fails");
            assert_eq!(desk.slot(0), [1; BYTES]);
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    /// A change beside a copy that goes out is caught under some seeds and not under others.
    #[test]
    fn what_goes_out_is_read_at_any_moment() {
        let mut seen = BTreeSet::new();
        for number in 0..40 {
            let mut desk = Desk::new("out", &seed(number));
            let out = desk.begin(2, Direction::Out);
            desk.mover.stepped();
            desk.slot(2).fill(9);
            desk.mover.wait(out).expect("nothing fails");
            let work = std::fs::read(desk.folder.join("work")).expect("there");
            seen.insert(work[2 * BYTES..3 * BYTES].to_vec());
        }
        assert_eq!(seen, BTreeSet::from([vec![7; BYTES], vec![9; BYTES]]));
    }

    #[test]
    fn a_copy_that_fails_is_half_there_and_told_once() {
        let failure = Some(Failure { kind: FailureKind::CopyIn, nth: 2 });
        for number in 0..20 {
            let mut desk = Desk::new("fails", &SimOptions { failure, ..seed(number) });
            (0..3).for_each(|slot| assert_eq!(desk.begin(slot, Direction::In), slot as u64 + 1));
            let text = desk.mover.wait_all().expect_err("the second fails").to_string();
            assert!(text.contains("copy in 2: 64 bytes") && text.contains("`w`"), "{text}");
            desk.mover.wait_all().expect("told already");
            let half = [[1; BYTES / 2], [POISON; BYTES / 2]].concat();
            assert_eq!((desk.slot(0).to_vec(), desk.slot(1).to_vec()), (vec![1; BYTES], half));
            assert_eq!(desk.slot(2), [1; BYTES]);
        }
    }
}
