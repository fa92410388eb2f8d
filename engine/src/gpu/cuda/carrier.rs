//! Moves between files and a card's memory, beside the steps: from the disk to pinned memory to the card, and back.
//!
//! A thread carries moves out one after the other, in parts: while one is read from the disk, those before it are
//! copied. Steps and copies wait for each other by events alone, so that the thread that launches them goes on.

use super::device::Places;
use super::driver::{Driver, Event, Stream};
use crate::far::{Carrier, Chunk, Files, Move, Place, Span};
use crate::gpu::GpuError;
use crate::runner::RunError;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tinyforge_plan::Direction;

/// Parts of pinned memory that moves go through.
pub(super) const SLOTS: u64 = 3;

/// The way of moves: where the plan's addresses are, and the first byte of pinned memory that is theirs.
pub(super) struct Way {
    pub(super) places: Places,
    pub(super) first: u64,
    /// The card's name.
    pub(super) name: String,
}

/// A move on its way.
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
    busy_ns: u64,
    bytes: u64,
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

/// Hands moves to the thread, and makes steps wait for them.
pub(super) struct CudaCarrier {
    driver: Arc<dyn Driver>,
    places: Places,
    name: String,
    shared: Arc<Shared>,
    /// What a move follows and what marks it, by its number among those under way.
    events: Vec<(Event, Event)>,
    thread: Option<JoinHandle<()>>,
    waited_ns: u64,
}

impl CudaCarrier {
    /// Starts the thread for at most `most` moves under way.
    ///
    /// # Errors
    /// The system has no thread, or the driver no events.
    pub(super) fn new(
        driver: Arc<dyn Driver>,
        way: Way,
        files: Arc<Files>,
        most: usize,
    ) -> Result<CudaCarrier, RunError> {
        let lost = |why| GpuError::Lost { device: way.name.clone(), why };
        let event = || driver.event().map_err(lost);
        let pair = || Ok::<_, GpuError>((event()?, event()?));
        let events = (0..most.max(1)).map(|_| pair()).collect::<Result<Vec<_>, _>>()?;
        let slots = (0..SLOTS).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        let queue = Queue { jobs: VecDeque::with_capacity(most.max(1)), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), given: Condvar::new(), done: Condvar::new() });
        let (places, name) = (way.places, way.name.clone());
        let mut porter = Porter {
            driver: Arc::clone(&driver),
            way,
            files,
            chunk: Chunk::new(),
            slots,
            next: 0,
            came_down: event_of(&*driver, &name)?,
        };
        let of_thread = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("mover".to_string()).stack_size(256 << 10);
        let thread = builder
            .spawn(move || work(&of_thread, &mut porter))
            .map_err(|e| RunError::System { what: "cannot start the moving thread", why: e.to_string() })?;
        Ok(CudaCarrier { driver, places, name, shared, events, thread: Some(thread), waited_ns: 0 })
    }

    fn told<T>(&self, result: Result<T, String>) -> Result<T, RunError> {
        result.map_err(|why| GpuError::Lost { device: self.name.clone(), why }.into())
    }

    fn events(&self, number: u64) -> (Event, Event) {
        self.events[number as usize % self.events.len()]
    }

    /// Waits until a count of the queue has come so far.
    fn wait_until(&mut self, number: u64, count: fn(&Queue) -> u64) -> Result<(), RunError> {
        let started = Instant::now();
        let mut queue = self.shared.queue();
        while count(&queue) < number {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let failed = queue.failed.take();
        drop(queue);
        self.waited_ns += started.elapsed().as_nanos() as u64;
        failed.map_or(Ok(()), Err)
    }
}

fn event_of(driver: &dyn Driver, name: &str) -> Result<Event, GpuError> {
    driver.event().map_err(|why| GpuError::Lost { device: name.to_string(), why })
}

impl Carrier for CudaCarrier {
    /// It begins once the steps that were launched until now have ended.
    fn begin(&mut self, m: &Move, _: Span) -> u64 {
        let mut queue = self.shared.queue();
        queue.given += 1;
        let number = queue.given;
        let (begins, ends) = self.events(number);
        if let Err(why) = self.driver.record(begins, Stream::Compute) {
            let lost = GpuError::Lost { device: self.name.clone(), why };
            queue.failed.get_or_insert(lost.into());
        }
        let near = (self.places.of(m.near.0), m.near.1);
        queue.jobs.push_back(Job { place: m.place, near, direction: m.direction, begins, ends });
        self.shared.given.notify_one();
        number
    }

    /// The steps that are launched from now on follow the move.
    fn wait(&mut self, number: u64) -> Result<(), RunError> {
        self.wait_until(number, |q| q.issued)?;
        self.told(self.driver.follow(Stream::Compute, self.events(number).1))
    }

    fn wait_all(&mut self) -> Result<(), RunError> {
        let given = self.shared.queue().given;
        let result = self.wait_until(given, |q| q.finished);
        let first = given.saturating_sub(self.events.len() as u64) + 1;
        let at_rest = (first..=given).try_for_each(|number| self.told(self.driver.wait(self.events(number).1)));
        result.and(at_rest)
    }

    /// What goes out is written after the copy that steps waited for.
    fn rest(&mut self) -> Result<(), RunError> {
        self.wait_all()
    }

    fn stepped(&mut self) {}

    fn times(&self) -> (Duration, Duration, u64) {
        let queue = self.shared.queue();
        (Duration::from_nanos(self.waited_ns), Duration::from_nanos(queue.busy_ns), queue.bytes)
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
        let started = Instant::now();
        let issued = || {
            shared.queue().issued += 1;
            shared.done.notify_all();
        };
        let result = porter.carry(&job, issued);
        let mut queue = shared.queue();
        queue.busy_ns += started.elapsed().as_nanos() as u64;
        queue.bytes += job.near.1;
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
        self.way.first + part.slot as u64 * self.driver.chunk_bytes()
    }

    /// Carries a move out; calls `issued` once the streams have all of its copies.
    fn carry(&mut self, job: &Job, issued: impl Fn()) -> Result<(), RunError> {
        match job.direction {
            Direction::In => {
                let result = self.bring_in(job);
                issued();
                result
            }
            Direction::Out => self.take_out(job, issued),
        }
    }

    /// From the disk to the card.
    fn bring_in(&mut self, job: &Job) -> Result<(), RunError> {
        self.told(self.driver.follow(Stream::Up, job.begins))?;
        self.told(self.driver.follow(Stream::Up, self.came_down))?;
        for part in self.parts(job.near.1) {
            let (slot, event) = (self.slot(&part), self.slots[part.slot]);
            self.told(self.driver.wait(event))?;
            let (files, chunk, place) = (&self.files, &mut self.chunk, from(job.place, part.at));
            let mut read = Ok(());
            self.driver.pinned(slot, part.bytes, &mut |to| read = files.read(place, to, chunk));
            read?;
            self.told(self.driver.up(slot, job.near.0 + part.at, part.bytes))?;
            self.told(self.driver.record(event, Stream::Up))?;
        }
        self.told(self.driver.record(job.ends, Stream::Up))
    }

    /// From the card to the disk.
    fn take_out(&mut self, job: &Job, issued: impl Fn()) -> Result<(), RunError> {
        self.told(self.driver.follow(Stream::Down, job.begins))?;
        let parts = self.parts(job.near.1);
        let mut sent = 0;
        for (i, part) in parts.iter().enumerate() {
            // The slots of those before are free again.
            while sent < parts.len().min(i + self.slots.len()) {
                self.take_part(job, &parts[sent])?;
                sent += 1;
                if sent == parts.len() {
                    self.told(self.driver.record(job.ends, Stream::Down))?;
                    self.told(self.driver.record(self.came_down, Stream::Down))?;
                    issued();
                }
            }
            self.told(self.driver.wait(self.slots[part.slot]))?;
            let (slot, place) = (self.slot(part), from(job.place, part.at));
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
        self.told(self.driver.down(job.near.0 + part.at, self.slot(part), part.bytes))?;
        self.told(self.driver.record(event, Stream::Down))
    }
}

/// The place so many bytes on.
fn from(place: Place, bytes: u64) -> Place {
    match place {
        Place::Model(file, offset) => Place::Model(file, offset + bytes),
        Place::Work(offset) => Place::Work(offset + bytes),
    }
}
