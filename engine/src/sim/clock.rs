//! The fake clock: kernels take the time of their arithmetic or of their bytes, whichever is longer; each direction of
//! a link is a queue, which takes copies one after the other as they begin, beside the kernels.
//!
//! `end = max(now, end of the copy before it) + latency + bytes / rate`. Where files feed the host's memory and that
//! feeds the near one, what lies in files crosses both links, piece by piece: it begins on both when its own is free,
//! and ends when both are done with it. What begins and ends together in one direction
//! is asked for at once, so it has one latency. Where there is a single queue, a copy takes the kernels' time. Waiting
//! for a copy moves the clock to its end. The clock does not decide when bytes move: that is the seed's, so a machine
//! with several queues is covered too.

use crate::far::{Move, Place};
use std::collections::BTreeMap;
use tinyforge_plan::{DType, Direction, Step, Tensor};

/// One direction of a link.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Link {
    /// Rate of large transfers.
    pub bytes_per_second: f64,
    /// From the request of a transfer to its first byte.
    pub latency_s: f64,
}

/// How much there is of a memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Size {
    /// The name that a plan gives it: `ram`, `work`, ...
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// What a machine can do.
#[derive(Clone, PartialEq, Debug)]
pub struct Rates {
    /// Memories whose size matters; of others there is enough.
    pub spaces: Vec<Size>,
    /// From far memories to the near one.
    pub inward: Link,
    /// From the near memory to far ones.
    pub outward: Link,
    /// From files to the host's memory and back, where those are the far memory that feeds the near one.
    pub files: Option<[Link; 2]>,
    /// FLOP/s by the type of a kernel's first operand; types that are not named take the first one's.
    pub flops_per_second: Vec<(DType, f64)>,
    /// Bytes a second that kernels read and write in the near memory.
    pub near_bytes_per_second: f64,
    /// The same of the host's updates in its own.
    pub host_bytes_per_second: f64,
    /// Seconds from one kernel to the next beside their work.
    pub launch_s: f64,
    /// Whether copies and kernels take turns.
    pub single_queue: bool,
}

impl Default for Rates {
    /// A small computer with a flash disk, in round figures.
    fn default() -> Rates {
        Rates {
            spaces: Vec::new(),
            inward: Link { bytes_per_second: 1e9, latency_s: 1e-4 },
            outward: Link { bytes_per_second: 5e8, latency_s: 1e-4 },
            files: None,
            flops_per_second: vec![(DType::F32, 5e10)],
            near_bytes_per_second: 1e10,
            host_bytes_per_second: 1e10,
            launch_s: 1e-6,
            single_queue: false,
        }
    }
}

/// What went over one direction of the link.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Traffic {
    /// Copies.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the link was busy.
    pub busy_s: f64,
}

/// What steps waited for.
#[derive(Clone, PartialEq, Debug)]
pub struct Wait {
    /// The first tensor of the copy.
    pub name: String,
    /// Which way it went.
    pub direction: Direction,
    /// How often it was not there in time.
    pub times: u64,
    /// For how long in all.
    pub seconds: f64,
}

/// Where the time of a simulated run went.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// All of it: computing and waiting, and in a single queue copying.
    pub seconds: f64,
    /// Spent in kernels.
    pub compute_s: f64,
    /// Spent waiting for copies.
    pub waited_s: f64,
    /// Kernels that ran.
    pub launches: u64,
    /// What came in.
    pub inward: Traffic,
    /// What went out.
    pub outward: Traffic,
    /// What was waited for, longest first.
    pub waits: Vec<Wait>,
}

/// The clock and what it has counted.
pub(super) struct Clock {
    rates: Rates,
    now_s: f64,
    compute_s: f64,
    waited_s: f64,
    launches: u64,
    /// Of both directions what went over them, and when they are free again.
    links: [(Traffic, f64); 2],
    /// When the links to and from files are free again, where they are others.
    files_free_s: [f64; 2],
    /// When each of the host's steps of the entry that runs ends.
    updated_s: Vec<f64>,
    /// The copy that began last.
    last: Option<Begun>,
    /// By a copy's number.
    waits: Vec<Wait>,
}

/// What copies share that are asked for together: direction, whether a file is at the other end, and between which
/// steps they move; beside the copy's number.
type Begun = (usize, (Direction, bool, [usize; 2]));

impl Clock {
    /// A clock of a machine whose entries have at most so many steps of the host.
    pub(super) fn new(rates: Rates, updates: usize) -> Clock {
        let links = Default::default();
        let (now_s, compute_s, waited_s) = (0.0, 0.0, 0.0);
        let (files_free_s, waits) = ([0.0; 2], Vec::new());
        let updated_s = Vec::with_capacity(updates);
        Clock { rates, now_s, compute_s, waited_s, launches: 0, links, files_free_s, updated_s, last: None, waits }
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    pub(super) fn name_copies(&mut self, copies: impl Iterator<Item = (String, Direction)>) {
        let wait = |(name, direction)| Wait { name, direction, times: 0, seconds: 0.0 };
        self.waits = copies.map(wait).collect();
    }

    /// Lets the time of a kernel pass.
    pub(super) fn compute(&mut self, step: &Step) {
        let tensors = step.args.iter().chain(&step.outs);
        let bytes: u64 = tensors.map(Tensor::bytes).sum();
        let dtype = step.args.first().or(step.outs.first()).map(|t| t.dtype);
        let flops = &self.rates.flops_per_second;
        let rate = flops.iter().find(|(of, _)| Some(*of) == dtype).or(flops.first()).map_or(f64::INFINITY, |r| r.1);
        let work = (step.flops as f64 / rate).max(bytes as f64 / self.rates.near_bytes_per_second);
        self.pass(work + self.rates.launch_s);
    }

    /// Lets so many seconds of a kernel pass.
    pub(super) fn pass(&mut self, seconds: f64) {
        self.now_s += seconds;
        self.compute_s += seconds;
        self.launches += 1;
    }

    /// Lets the host begin a step that takes so many seconds, beside the kernels.
    pub(super) fn update(&mut self, seconds: f64) {
        let free_s = self.updated_s.last().copied().unwrap_or(0.0);
        self.updated_s.push(self.now_s.max(free_s) + seconds);
    }

    /// The same of a step, by its bytes.
    pub(super) fn update_bytes(&mut self, step: &Step) {
        let bytes: u64 = step.args.iter().map(Tensor::bytes).sum();
        self.update(bytes as f64 / self.rates.host_bytes_per_second);
    }

    /// Waits for the host's steps, at the end of an entry.
    pub(super) fn rest(&mut self) {
        let seconds = (self.updated_s.last().copied().unwrap_or(0.0) - self.now_s).max(0.0);
        self.now_s += seconds;
        self.waited_s += seconds;
        self.updated_s.clear();
    }

    /// Puts a copy on its links; when it is there.
    pub(super) fn begin(&mut self, m: &Move) -> f64 {
        let (link, at) = match m.direction {
            Direction::In => (self.rates.inward, 0),
            Direction::Out => (self.rates.outward, 1),
        };
        let is_of_file = !matches!(m.place, Place::Host(_));
        // What the host changes can be copied when it has.
        let ready_s = m.follows.checked_sub(1).and_then(|nth| self.updated_s.get(nth)).copied().unwrap_or(0.0);
        let ready_s = ready_s.max(self.now_s);
        let files = self.rates.files.filter(|_| is_of_file).map(|links| links[at]);
        let alike = (m.direction, is_of_file, [m.begins, m.ends]);
        let is_together = m.number > 0 && self.last == Some((m.number - 1, alike));
        self.last = Some((m.number, alike));
        let seconds = |link: Link| {
            let latency_s = if is_together { 0.0 } else { link.latency_s };
            latency_s + m.near.1 as f64 / link.bytes_per_second
        };
        // What crosses two links begins when its own, the one to the files, is free; the rest of what is asked for
        // together goes on behind it, on both.
        let from_s = match files {
            Some(_) if is_together => self.files_free_s[at],
            Some(_) => ready_s.max(self.files_free_s[at]),
            None => ready_s,
        };
        let may_s = if is_together { ready_s } else { from_s };
        if self.rates.single_queue {
            self.wait(m.number, may_s);
        }
        let (traffic, free_s) = &mut self.links[at];
        *free_s = free_s.max(may_s) + seconds(link);
        traffic.copies += 1;
        traffic.bytes += m.near.1;
        traffic.busy_s += seconds(link);
        let mut ends_s = *free_s;
        if self.rates.single_queue {
            self.now_s = ends_s;
        }
        if let Some(files) = files {
            self.files_free_s[at] = from_s + seconds(files);
            ends_s = ends_s.max(self.files_free_s[at]);
        }
        ends_s
    }

    /// Counts from now on alone; everything has come to rest.
    pub(super) fn forget(&mut self) {
        let waits = self.waits.drain(..).map(|w| (w.name, w.direction)).collect::<Vec<_>>();
        *self = Clock::new(self.rates.clone(), self.updated_s.capacity());
        self.name_copies(waits.into_iter());
    }

    /// Waits for a copy of this number.
    pub(super) fn wait(&mut self, number: usize, arrives_s: f64) {
        let seconds = arrives_s - self.now_s;
        if seconds <= 0.0 {
            return;
        }
        self.now_s = arrives_s;
        self.waited_s += seconds;
        if let Some(wait) = self.waits.get_mut(number) {
            wait.times += 1;
            wait.seconds += seconds;
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut by_name: BTreeMap<(&str, bool), Wait> = BTreeMap::new();
        for wait in self.waits.iter().filter(|w| w.times > 0) {
            let sum = by_name.entry((&wait.name, wait.direction == Direction::In));
            let sum = sum.or_insert_with(|| Wait { times: 0, seconds: 0.0, ..wait.clone() });
            sum.times += wait.times;
            sum.seconds += wait.seconds;
        }
        let mut waits: Vec<Wait> = by_name.into_values().collect();
        waits.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Report {
            seconds: self.now_s,
            compute_s: self.compute_s,
            waited_s: self.waited_s,
            launches: self.launches,
            inward: self.links[0].0,
            outward: self.links[1].0,
            waits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Link, Move, Place, Rates};
    use tinyforge_plan::{DType, Direction, Part, Step, Tensor};

    fn step(dtype: DType, flops: u64) -> Step {
        let operand = Tensor { dtype, shape: vec![10], offset: 0, value: 0 };
        Step {
            kernel: "relu".to_string(),
            args: vec![operand],
            outs: Vec::new(),
            changes: 0,
            attrs: Vec::new(),
            scratch_offset: 0,
            scratch_bytes: 0,
            block: 0,
            part: Part::Forward,
            flops,
            label: "y".to_string(),
        }
    }

    fn clock() -> Clock {
        let rates = Rates {
            inward: Link { bytes_per_second: 10.0, latency_s: 1.0 },
            outward: Link { bytes_per_second: 5.0, latency_s: 0.5 },
            flops_per_second: vec![(DType::F32, 2.0), (DType::I8, 8.0)],
            near_bytes_per_second: 20.0,
            launch_s: 0.25,
            ..Rates::default()
        };
        let mut clock = Clock::new(rates, 4);
        clock.name_copies([("w".to_string(), Direction::In), ("w".to_string(), Direction::In)].into_iter());
        clock
    }

    #[test]
    fn kernels_take_the_time_of_their_arithmetic_or_their_bytes() {
        let mut clock = clock();
        for (dtype, flops, seconds) in
            [(DType::F32, 8, 4.25), (DType::I8, 8, 1.25), (DType::BF16, 8, 4.25), (DType::F32, 0, 2.25)]
        {
            let before = clock.report().seconds;
            clock.compute(&step(dtype, flops));
            assert_eq!(clock.report().seconds - before, seconds, "{dtype:?}, {flops}");
        }
        assert_eq!((clock.report().compute_s, clock.report().waited_s, clock.report().launches), (12.0, 0.0, 4));
    }

    fn copy(number: usize, direction: Direction, bytes: u64, ends: usize) -> Move {
        let (name, place, near) = ("w".to_string(), Place::Work(0), (0, bytes));
        Move { name, number, place, near, direction, begins: 0, ends, follows: 0 }
    }

    #[test]
    fn what_moves_together_has_one_latency() {
        let mut clock = clock();
        let mut begin = |number, ends| clock.begin(&copy(number, Direction::In, 10, ends));
        assert_eq!([begin(3, 7), begin(4, 7), begin(5, 8), begin(7, 8)], [2.0, 3.0, 5.0, 7.0]);
    }

    #[test]
    fn a_single_queue_has_copies_between_kernels() {
        let mut clock = clock();
        clock.rates.single_queue = true;
        clock.pass(1.0);
        assert_eq!(clock.begin(&copy(0, Direction::In, 20, 4)), 4.0);
        clock.pass(1.0);
        assert_eq!(clock.begin(&copy(1, Direction::Out, 10, 4)), 7.5);
        let report = clock.report();
        assert_eq!((report.seconds, report.compute_s, report.waited_s), (7.5, 2.0, 0.0));
    }

    #[test]
    fn copies_of_one_direction_follow_one_another_beside_the_kernels() {
        let mut clock = clock();
        let ends = [(0, Direction::In), (2, Direction::In), (4, Direction::Out)]
            .map(|(number, way)| clock.begin(&copy(number, way, 20, 9)));
        assert_eq!(ends, [3.0, 6.0, 4.5]);
        clock.compute(&step(DType::F32, 4));
        clock.wait(0, ends[0]);
        clock.wait(1, ends[1]);
        clock.wait(9, ends[2]);
        let report = clock.report();
        assert_eq!((report.seconds, report.compute_s, report.waited_s), (6.0, 2.25, 3.75));
        assert_eq!((report.waits.len(), report.waits[0].times, report.waits[0].seconds), (1, 2, 3.75));
        assert_eq!((report.inward.bytes, report.inward.busy_s, report.outward.copies), (40, 6.0, 1));
        assert_eq!(clock.begin(&copy(8, Direction::Out, 0, 9)), 6.5);
    }

    /// Files at 4 bytes a second behind a link of 10: the host's copies pass between the file's.
    #[test]
    fn what_lies_in_files_crosses_both_links() {
        let mut clock = clock();
        let link = Link { bytes_per_second: 4.0, latency_s: 0.0 };
        clock.rates.files = Some([link; 2]);
        let host = |number| Move { place: Place::Host(0), ..copy(number, Direction::In, 20, 9) };
        assert_eq!(clock.begin(&copy(0, Direction::In, 20, 8)), 5.0);
        assert_eq!(clock.begin(&host(2)), 6.0, "behind the three seconds that the file's takes of the link");
        assert_eq!(clock.begin(&copy(4, Direction::In, 20, 7)), 10.0, "the file's link takes it at 5, the other at 6");
        assert_eq!(clock.begin(&host(6)), 12.0);
        assert_eq!(clock.report().inward.busy_s, 12.0);
    }
}
