//! Moves between the far memory and a card's, beside the steps. What rests in pinned memory is copied from there and
//! to there; what rests in files goes from the disk to pinned memory to the card, and back.
//!
//! Copies of what rests in pinned memory are given to streams of their own at once, by the thread that launches steps.
//! Another thread carries out moves between files and the card one after the other, in parts: while one is read from
//! the disk, those before it are copied. Steps and copies wait for each other by events alone, so that the thread that
//! launches them goes on; what took how long, events and the moving thread's clock tell when all has come to rest.

use super::device::Places;
use super::driver::{Driver, Event, Stream};
use crate::far::{Carrier, Chunk, Files, Landing, Move, Place, Span};
use crate::gpu::GpuError;
use crate::runner::RunError;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tinyforge_plan::Direction;

/// Parts of pinned memory that moves between files and the card go through.
pub(super) const SLOTS: u64 = 3;

/// The way of moves: where the plan's addresses are, the first byte of pinned memory that moves from and to files go
/// through, and that of what rests there.
pub(super) struct Way {
    pub(super) places: Places,
    pub(super) slots_first: u64,
    pub(super) host_first: u64,
    /// The card's name.
    pub(super) name: String,
}

/// A move from or to a file on its way.
struct Job {
    place: Place,
    /// First byte on the card, and how many.
    near: (u64, u64),
    direction: Direction,
    /// It follows this event, and is marked by that one.
    begins: Event,
    ends: Event,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Moves ever handed over; those whose copies the streams have; those that are done with.
    given: u64,
    issued: u64,
    finished: u64,
    failed: Option<RunError>,
    is_over: bool,
    /// When moves were carried out, since someone asked last.
    spans: Vec<[Instant; 2]>,
}

struct Shared {
    queue: Mutex<Queue>,
    given: Condvar,
    done: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of a move.
#[derive(Clone, Copy)]
struct Marks {
    /// The steps before it, which it follows.
    begins: Event,
    /// Its first and its last byte, where it does not go by the moving thread.
    copies: [Event; 2],
    /// On the stream for kernels, before it is waited for and behind that.
    waits: [Event; 2],
    /// Which of the moving thread's moves it is; nothing where it is none.
    number: Option<u64>,
}

/// Hands out moves, and makes steps wait for them.
pub(super) struct CudaCarrier {
    driver: Arc<dyn Driver>,
    places: Places,
    host_first: u64,
    name: String,
    shared: Arc<Shared>,
    /// By number among those under way.
    marks: Vec<Marks>,
    given: u64,
    /// The first failure of a move that is none of the moving thread's.
    failed: Option<RunError>,
    thread: Option<JoinHandle<()>>,
    times: Times,
}

/// What is known of times: as of when all came to rest last.
struct Times {
    /// A mark on the stream for kernels, and when it was set; where moves have begun since all was at rest.
    base: Event,
    began: Option<Instant>,
    /// Moves that went by streams, and moves that were waited for, since then.
    copied: Vec<u64>,
    waited: Vec<u64>,
    waited_ns: u64,
    busy_ns: u64,
    bytes: u64,
    /// Where spans are put in order.
    spans: Vec<[u64; 2]>,
}

impl CudaCarrier {
    /// Starts the thread for at most `most` moves between two moments at which all is at rest.
    ///
    /// # Errors
    /// The system has no thread, or the driver no events.
    pub(super) fn new(
        driver: Arc<dyn Driver>,
        way: Way,
        files: Arc<Files>,
        most: usize,
    ) -> Result<CudaCarrier, RunError> {
        let most = most.max(1);
        let lost = |why| GpuError::Lost { device: way.name.clone(), why };
        let (event, timer) = (|| driver.event().map_err(lost), || driver.timer().map_err(lost));
        let marks = || {
            let (copies, waits) = ([timer()?, timer()?], [timer()?, timer()?]);
            Ok::<_, GpuError>(Marks { begins: event()?, copies, waits, number: None })
        };
        let marks = (0..most).map(|_| marks()).collect::<Result<Vec<_>, _>>()?;
        let (base, came_down) = (timer()?, event()?);
        let slots = (0..SLOTS).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        let queue = Queue { jobs: VecDeque::with_capacity(most), spans: Vec::with_capacity(most), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), given: Condvar::new(), done: Condvar::new() });
        let (places, host_first, name) = (way.places, way.host_first, way.name.clone());
        let (of_thread, driver_of_thread) = (Arc::clone(&shared), Arc::clone(&driver));
        let mut porter =
            Porter { driver: driver_of_thread, way, files, chunk: Chunk::new(), slots, next: 0, came_down };
        let builder = std::thread::Builder::new().name("mover".to_string()).stack_size(256 << 10);
        let thread = builder
            .spawn(move || work(&of_thread, &mut porter))
            .map_err(|e| RunError::System { what: "cannot start the moving thread", why: e.to_string() })?;
        let list = || Vec::with_capacity(most);
        let times = Times {
            base,
            began: None,
            copied: list(),
            waited: list(),
            waited_ns: 0,
            busy_ns: 0,
            bytes: 0,
            spans: Vec::with_capacity(2 * most),
        };
        let (given, failed, thread) = (0, None, Some(thread));
        Ok(CudaCarrier { driver, places, host_first, name, shared, marks, given, failed, thread, times })
    }

    fn told<T>(&self, result: Result<T, String>) -> Result<T, RunError> {
        result.map_err(|why| GpuError::Lost { device: self.name.clone(), why }.into())
    }

    fn marks(&self, number: u64) -> Marks {
        self.marks[number as usize % self.marks.len()]
    }

    /// Waits until a count of the moving thread's moves has come so far.
    fn wait_until(&mut self, number: u64, count: fn(&Queue) -> u64) -> Result<(), RunError> {
        let mut queue = self.shared.queue();
        while count(&queue) < number {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let failed = queue.failed.take();
        drop(queue);
        failed.or_else(|| self.failed.take()).map_or(Ok(()), Err)
    }

    /// Sets the mark that times are counted from, where none is set.
    fn set_base(&mut self) -> Result<(), String> {
        if self.times.began.is_none() {
            self.driver.record(self.times.base, Stream::Compute)?;
            self.times.began = Some(Instant::now());
        }
        Ok(())
    }

    /// Gives the streams a move of what rests in pinned memory at byte `at`.
    fn copy(&mut self, m: &Move, at: u64, marks: Marks) -> Result<(), String> {
        let (driver, near, bytes) = (&*self.driver, self.places.of(m.near.0), m.near.1);
        let (stream, pinned) =
            (if m.direction == Direction::In { Stream::In } else { Stream::Out }, self.host_first + at);
        driver.follow(stream, marks.begins)?;
        driver.record(marks.copies[0], stream)?;
        match m.direction {
            Direction::In => driver.up(stream, pinned, near, bytes)?,
            Direction::Out => driver.down(stream, near, pinned, bytes)?,
        }
        driver.record(marks.copies[1], stream)
    }

    /// Hands a move over; it begins once the steps that were launched until now have ended.
    fn hand_over(&mut self, m: &Move) -> Result<(), String> {
        self.set_base()?;
        let at = self.given as usize % self.marks.len();
        self.driver.record(self.marks[at].begins, Stream::Compute)?;
        if let Place::Host(byte) = m.place {
            self.marks[at].number = None;
            self.times.copied.push(self.given);
            return self.copy(m, byte, self.marks[at]);
        }
        let Marks { begins, copies: [_, ends], .. } = self.marks[at];
        let near = (self.places.of(m.near.0), m.near.1);
        let mut queue = self.shared.queue();
        queue.given += 1;
        self.marks[at].number = Some(queue.given);
        queue.jobs.push_back(Job { place: m.place, near, direction: m.direction, begins, ends });
        self.shared.given.notify_one();
        Ok(())
    }

    /// Leaves out what was not counted yet.
    fn forget(&mut self) {
        self.times.began = None;
        self.times.copied.clear();
        self.times.waited.clear();
        self.shared.queue().spans.clear();
    }

    /// Adds what events and the thread's clock tell, once all is at rest.
    fn count(&mut self) -> Result<(), String> {
        let Some(began) = self.times.began.take() else { return Ok(()) };
        let (driver, base) = (&*self.driver, self.times.base);
        let since = |at: Instant| at.saturating_duration_since(began).as_nanos() as u64;
        let mut spans = std::mem::take(&mut self.times.spans);
        for number in self.times.copied.drain(..) {
            let [from, to] = self.marks[number as usize % self.marks.len()].copies;
            spans.push([driver.elapsed_ns(base, from)?, driver.elapsed_ns(base, to)?]);
        }
        spans.extend(self.shared.queue().spans.drain(..).map(|span| span.map(since)));
        for number in self.times.waited.drain(..) {
            let [from, to] = self.marks[number as usize % self.marks.len()].waits;
            driver.wait(to)?;
            self.times.waited_ns += driver.elapsed_ns(from, to)?;
        }
        self.times.busy_ns += union(&mut spans);
        spans.clear();
        self.times.spans = spans;
        Ok(())
    }
}

/// How much time spans cover together.
fn union(spans: &mut [[u64; 2]]) -> u64 {
    spans.sort_unstable();
    let (mut covered, mut end) = (0, 0);
    for &[from, to] in spans.iter() {
        covered += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    covered
}

impl Carrier for CudaCarrier {
    fn begin(&mut self, m: &Move, _: Span) -> u64 {
        self.given += 1;
        self.times.bytes += m.near.1;
        if let Err(why) = self.hand_over(m) {
            let lost = GpuError::Lost { device: self.name.clone(), why };
            self.failed.get_or_insert(lost.into());
        }
        self.given
    }

    /// The steps that are launched from now on follow the move.
    fn wait(&mut self, number: u64) -> Result<(), RunError> {
        let marks = self.marks(number);
        self.told(self.driver.record(marks.waits[0], Stream::Compute))?;
        self.wait_until(marks.number.unwrap_or(0), |q| q.issued)?;
        self.told(self.driver.follow(Stream::Compute, marks.copies[1]))?;
        self.told(self.driver.record(marks.waits[1], Stream::Compute))?;
        self.times.waited.push(number);
        Ok(())
    }

    fn wait_all(&mut self) -> Result<(), RunError> {
        let given = self.shared.queue().given;
        let result = self.wait_until(given, |q| q.finished);
        let first = self.given.saturating_sub(self.marks.len() as u64) + 1;
        let at_rest =
            (first..=self.given).try_for_each(|number| self.told(self.driver.wait(self.marks(number).copies[1])));
        // After a failure events may be missing, and times are of no use.
        let is_whole = result.is_ok() && at_rest.is_ok();
        if !is_whole {
            self.forget();
        }
        let counted = self.count();
        result.and(at_rest).and(self.told(counted))
    }

    /// What goes out is written after the copy that steps waited for.
    fn rest(&mut self) -> Result<(), RunError> {
        self.wait_all()
    }

    fn stepped(&mut self) {}

    fn landing(&self) -> Option<Arc<dyn Landing>> {
        let ends = self.marks.iter().map(|marks| marks.copies[1]).collect();
        Some(Arc::new(Landed { driver: Arc::clone(&self.driver), name: self.name.clone(), ends }))
    }

    fn times(&self) -> (Duration, Duration, u64) {
        let Times { waited_ns, busy_ns, bytes, .. } = self.times;
        (Duration::from_nanos(waited_ns), Duration::from_nanos(busy_ns), bytes)
    }
}

/// Waits for what rests in pinned memory, by the events that mark its copies' ends.
struct Landed {
    driver: Arc<dyn Driver>,
    name: String,
    ends: Vec<Event>,
}

impl Landing for Landed {
    fn wait(&self, number: u64) -> Result<(), RunError> {
        let ended = self.driver.wait(self.ends[number as usize % self.ends.len()]);
        ended.map_err(|why| GpuError::Lost { device: self.name.clone(), why }.into())
    }
}

impl Drop for CudaCarrier {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.is_over = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.given.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told to whoever waited.
            let _ = thread.join();
        }
    }
}

/// Tells who waits when the thread ends by a panic, so that nobody waits for ever.
struct Farewell<'a>(&'a Shared);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue();
            let why = "the moving thread ended by a panic".to_string();
            queue.failed.get_or_insert(RunError::System { what: "cannot move", why });
            (queue.issued, queue.finished) = (u64::MAX, u64::MAX);
            self.0.done.notify_all();
        }
    }
}

fn work(shared: &Shared, porter: &mut Porter) {
    let _farewell = Farewell(shared);
    loop {
        let mut queue = shared.queue();
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.is_over {
                return;
            }
            queue = shared.given.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let mut started = Instant::now();
        let issued = || {
            shared.queue().issued += 1;
            shared.done.notify_all();
        };
        let result = porter.carry(&job, &mut started, issued);
        let mut queue = shared.queue();
        queue.spans.push([started, Instant::now()]);
        queue.finished += 1;
        // A move that failed is not waited for by what it would have been waited for.
        queue.issued = queue.issued.max(queue.finished);
        if let Err(error) = result {
            queue.failed.get_or_insert(error);
        }
        shared.done.notify_all();
    }
}

/// What the thread has.
struct Porter {
    driver: Arc<dyn Driver>,
    way: Way,
    files: Arc<Files>,
    chunk: Chunk,
    /// Marks the last copy from or to each slot.
    slots: Vec<Event>,
    next: usize,
    /// Marks the end of the last move that came down: its place may be filled from then on.
    came_down: Event,
}

/// A part of a move: what of it, and the slot that it goes through.
#[derive(Clone, Copy)]
struct Part {
    at: u64,
    bytes: u64,
    slot: usize,
}

impl Porter {
    fn told<T>(&self, result: Result<T, String>) -> Result<T, RunError> {
        result.map_err(|why| GpuError::Lost { device: self.way.name.clone(), why }.into())
    }

    /// The parts of a move, each through the next slot.
    fn parts(&mut self, bytes: u64) -> Vec<Part> {
        let chunk = self.driver.chunk_bytes();
        let part = |at: u64| {
            let slot = self.next;
            self.next = (self.next + 1) % self.slots.len();
            Part { at, bytes: chunk.min(bytes - at), slot }
        };
        (0..bytes).step_by(chunk as usize).map(part).collect()
    }

    /// The first byte of a part's slot.
    fn slot(&self, part: &Part) -> u64 {
        self.way.slots_first + part.slot as u64 * self.driver.chunk_bytes()
    }

    /// Carries a move out; calls `issued` once the streams have all of its copies. `started` is set to when it moves:
    /// what goes out does when its first part has come down.
    fn carry(&mut self, job: &Job, started: &mut Instant, issued: impl Fn()) -> Result<(), RunError> {
        match job.direction {
            Direction::In => {
                let result = self.bring_in(job);
                issued();
                result
            }
            Direction::Out => self.take_out(job, started, issued),
        }
    }

    /// From the disk to the card.
    fn bring_in(&mut self, job: &Job) -> Result<(), RunError> {
        self.told(self.driver.follow(Stream::FromFiles, job.begins))?;
        self.told(self.driver.follow(Stream::FromFiles, self.came_down))?;
        for part in self.parts(job.near.1) {
            let (slot, event) = (self.slot(&part), self.slots[part.slot]);
            self.told(self.driver.wait(event))?;
            let (files, chunk, place) = (&self.files, &mut self.chunk, job.place.after(part.at as usize));
            let mut read = Ok(());
            self.driver.pinned(slot, part.bytes, &mut |to| read = files.read(place, to, chunk));
            read?;
            self.told(self.driver.up(Stream::FromFiles, slot, job.near.0 + part.at, part.bytes))?;
            self.told(self.driver.record(event, Stream::FromFiles))?;
        }
        self.told(self.driver.record(job.ends, Stream::FromFiles))
    }

    /// From the card to the disk.
    fn take_out(&mut self, job: &Job, started: &mut Instant, issued: impl Fn()) -> Result<(), RunError> {
        self.told(self.driver.follow(Stream::ToFiles, job.begins))?;
        let parts = self.parts(job.near.1);
        let mut sent = 0;
        for (i, part) in parts.iter().enumerate() {
            // The slots of those before are free again.
            while sent < parts.len().min(i + self.slots.len()) {
                self.take_part(job, &parts[sent])?;
                sent += 1;
                if sent == parts.len() {
                    self.told(self.driver.record(job.ends, Stream::ToFiles))?;
                    self.told(self.driver.record(self.came_down, Stream::ToFiles))?;
                    issued();
                }
            }
            self.told(self.driver.wait(self.slots[part.slot]))?;
            if i == 0 {
                *started = Instant::now();
            }
            let (slot, place) = (self.slot(part), job.place.after(part.at as usize));
            let (files, chunk) = (&self.files, &mut self.chunk);
            let mut written = Ok(());
            self.driver.pinned(slot, part.bytes, &mut |data| written = files.write(place, data, chunk));
            written?;
        }
        Ok(())
    }

    /// Copies a part from the card into its slot, once the slot is free.
    fn take_part(&self, job: &Job, part: &Part) -> Result<(), RunError> {
        let event = self.slots[part.slot];
        self.told(self.driver.wait(event))?;
        self.told(self.driver.down(Stream::ToFiles, job.near.0 + part.at, self.slot(part), part.bytes))?;
        self.told(self.driver.record(event, Stream::ToFiles))
    }
}

#[cfg(test)]
mod tests {
    use super::union;

    #[test]
    fn what_runs_together_counts_once() {
        for (mut spans, covered) in [
            (vec![], 0),
            (vec![[3, 5]], 2),
            (vec![[4, 9], [0, 5], [20, 21]], 10),
            (vec![[0, 10], [2, 3], [10, 12]], 12),
        ] {
            assert_eq!(union(&mut spans), covered, "{spans:?}");
        }
    }
}
