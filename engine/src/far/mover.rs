//! The threads that move, and the list of what they move in an entry.
//!
//! Neighbouring transfers that begin and end together are one move, where their bytes lie together on both sides.
//! Moves begin in the plan's order, and count as ended in that order. While one thread puts what it has read in its
//! place, another reads: a disk is not idle meanwhile.

use super::direct::piece_bytes;
use super::{BLOCK_BYTES, Carrier, Chunk, Files, Place, Span, place};
use crate::files::FileError;
use crate::runner::RunError;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tinyforge_plan::{Direction, Entry, Plan, Transfer};

/// Threads that move, each with a buffer and a stack of its own.
pub const MOVING_THREADS: usize = 2;
/// Bytes of their stacks.
pub const MOVING_STACK_BYTES: usize = 256 << 10;

/// One move: what lies where, and between which steps.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    /// The first tensor that moves.
    pub(crate) name: String,
    /// Which one of all that there are.
    pub(crate) number: usize,
    pub(crate) place: Place,
    /// First address of the copy, and its bytes.
    pub(crate) near: (u64, u64),
    pub(crate) direction: Direction,
    pub(crate) begins: usize,
    pub(crate) ends: usize,
    /// How many of the entry's steps of the host it follows.
    pub(crate) follows: usize,
}

/// The moves of an entry, in order.
pub(crate) fn moves(plan: &Plan, entry: &Entry) -> Vec<Move> {
    let host_steps = plan.host_steps(entry);
    let follows = |t: &Transfer| plan.changed_by(entry, &host_steps, t).map_or(0, |nth| nth + 1);
    let copy = |t: &Transfer| (t.stored, t.near_byte, t.direction, [t.begins, t.ends], follows(t));
    joined(plan, entry.transfers.iter().map(copy))
}

/// The copies that must be there when an entry begins, as moves that come in.
pub(crate) fn residents(plan: &Plan, entry: &Entry) -> Vec<Move> {
    joined(plan, entry.residents.iter().map(|r| (r.stored, r.near_byte, Direction::In, [0, 0], 0)))
}

/// Copies as moves: the stored tensor, its place in the near memory, which way, between which steps, and how many of
/// the host's it follows.
fn joined(plan: &Plan, copies: impl Iterator<Item = (u32, u64, Direction, [u32; 2], usize)>) -> Vec<Move> {
    let mut found: Vec<Move> = Vec::new();
    for (stored, near_byte, direction, [begins, ends], follows) in copies {
        let stored = &plan.stored[stored as usize];
        let next = Move {
            name: stored.name.clone(),
            number: 0,
            place: place(plan, stored),
            near: (near_byte, stored.tensor.bytes()),
            direction,
            begins: begins as usize,
            ends: ends as usize,
            follows,
        };
        join(&mut found, next, u64::from(plan.align_bytes));
    }
    found
}

/// Adds a move, or makes the last one longer. The gap that alignment leaves between two tensors moves along in the
/// work file and the host's memory, whose gaps are the same; in the model's file there is none to move.
fn join(found: &mut Vec<Move>, next: Move, align: u64) {
    if let Some(last) = found.last_mut() {
        let gap = next.near.0.checked_sub(last.near.0 + last.near.1);
        let together = (last.direction, last.begins, last.ends) == (next.direction, next.begins, next.ends);
        let fits = match (last.place, next.place, gap) {
            (Place::Work(a), Place::Work(b), Some(gap)) | (Place::Host(a), Place::Host(b), Some(gap)) => {
                gap < align && a + last.near.1 + gap == b
            }
            (Place::Model(f, a), Place::Model(g, b), Some(0)) => f == g && a + last.near.1 == b,
            _ => false,
        };
        if together && fits {
            last.near.1 = next.near.0 + next.near.1 - last.near.0;
            last.follows = last.follows.max(next.follows);
            return;
        }
    }
    found.push(next);
}

struct Job {
    place: Place,
    span: Span,
    direction: Direction,
    /// Bytes of it that threads have taken, and how many pieces they have not finished.
    begun: usize,
    under_way: u32,
}

impl Job {
    /// Whether two jobs touch a block of the work file together, or of the host's memory.
    fn shares_blocks(&self, other: &Job) -> bool {
        let blocks = |job: &Job| {
            let first = job.place.offset();
            (first / BLOCK_BYTES, (first + job.span.bytes as u64).div_ceil(BLOCK_BYTES))
        };
        let (a, b) = (blocks(self), blocks(other));
        let places = (self.place, other.place);
        let is_one = matches!(places, (Place::Work(_), Place::Work(_)) | (Place::Host(_), Place::Host(_)));
        is_one && a.0 < b.1 && b.0 < a.1
    }
}

/// What one thread does of a job at a time.
struct Piece {
    /// The job's number among all.
    number: u64,
    place: Place,
    span: Span,
    direction: Direction,
}

#[derive(Default)]
struct Queue {
    /// What is not finished, in order.
    jobs: VecDeque<Job>,
    /// Jobs ever handed over, and how many from the first on are finished.
    given: u64,
    finished: u64,
    failed: Option<FileError>,
    is_over: bool,
    /// Whether a thread has ended by a panic: nothing moves any more.
    is_dead: bool,
    /// Since when anything moves, and how many pieces do.
    since: Option<Instant>,
    under_way: u32,
    /// Nanoseconds in which anything moved, and bytes moved.
    busy_ns: u64,
    bytes: u64,
}

impl Queue {
    /// What a thread does next. What comes in is taken by pieces, so that one is read while another is put in its
    /// place. What goes out is taken whole, one at a time: two that change the blocks at their ends could meet there.
    fn next(&mut self) -> Option<Piece> {
        let at = (0..self.jobs.len()).find(|&at| !self.is_dead && self.is_free(at))?;
        let job = &mut self.jobs[at];
        let (place, left) = (job.place.after(job.begun), job.span.bytes - job.begun);
        let bytes = if job.direction == Direction::In { piece_bytes(place.offset(), left) } else { left };
        let span = job.span.part(job.begun, bytes);
        job.begun += bytes;
        job.under_way += 1;
        if self.under_way == 0 {
            self.since = Some(Instant::now());
        }
        self.under_way += 1;
        Some(Piece { number: self.finished + 1 + at as u64, place, span, direction: job.direction })
    }

    /// Whether more of job `at` may be done beside what is before it.
    fn is_free(&self, at: usize) -> bool {
        let job = &self.jobs[at];
        let goes = |job: &Job| job.direction == Direction::Out;
        let is_apart = |before: &Job| match (goes(before), goes(job)) {
            (true, true) => false,
            (false, false) => true,
            _ => !job.shares_blocks(before),
        };
        job.begun < job.span.bytes && self.jobs.iter().take(at).all(is_apart)
    }

    /// A piece has ended.
    fn end(&mut self, piece: &Piece, result: Result<(), FileError>) {
        self.bytes += piece.span.bytes as u64;
        self.under_way -= 1;
        if let Some(since) = self.since.take_if(|_| self.under_way == 0) {
            self.busy_ns += since.elapsed().as_nanos() as u64;
        }
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        // Where it is over, the jobs are gone.
        if let Some(job) = self.jobs.get_mut((piece.number - self.finished - 1) as usize) {
            job.under_way -= 1;
        }
        self.settle();
    }

    /// Counts what is finished.
    fn settle(&mut self) {
        while self.jobs.front().is_some_and(|job| job.begun == job.span.bytes && job.under_way == 0) {
            self.jobs.pop_front();
            self.finished += 1;
        }
    }
}

struct Shared {
    queue: Mutex<Queue>,
    given: Condvar,
    finished: Condvar,
}

/// The moving threads.
pub(crate) struct Mover {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Nanoseconds that steps have waited for moves.
    waited_ns: u64,
}

impl Mover {
    /// Starts the threads for at most `most` moves under way.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn new(files: Arc<Files>, most: usize) -> std::io::Result<Mover> {
        let queue = Queue { jobs: VecDeque::with_capacity(most.max(1)), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), given: Condvar::new(), finished: Condvar::new() });
        let mut mover = Mover { shared, threads: Vec::with_capacity(MOVING_THREADS), waited_ns: 0 };
        for _ in 0..MOVING_THREADS {
            let (shared, files, mut chunk) = (Arc::clone(&mover.shared), Arc::clone(&files), Chunk::new());
            let builder = std::thread::Builder::new().name("mover".to_string()).stack_size(MOVING_STACK_BYTES);
            mover.threads.push(builder.spawn(move || work(&shared, &files, &mut chunk))?);
        }
        Ok(mover)
    }

    /// Waits until so many moves have ended.
    fn wait_for(&mut self, number: u64) -> Result<(), RunError> {
        let started = Instant::now();
        let mut queue = self.shared.queue.lock().expect("the mover does not panic");
        while queue.finished < number && !queue.is_dead {
            queue = self.shared.finished.wait(queue).expect("the mover does not panic");
        }
        let dead = queue.is_dead.then(dead);
        let failed = queue.failed.take().or(dead);
        drop(queue);
        self.waited_ns += started.elapsed().as_nanos() as u64;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Carrier for Mover {
    fn begin(&mut self, m: &Move, span: Span) -> u64 {
        let mut queue = self.shared.queue.lock().expect("the mover does not panic");
        queue.given += 1;
        if !queue.is_dead {
            queue.jobs.push_back(Job { place: m.place, span, direction: m.direction, begun: 0, under_way: 0 });
            queue.settle();
            self.shared.given.notify_all();
        }
        queue.given
    }

    /// All before it have ended then, too.
    fn wait(&mut self, number: u64) -> Result<(), RunError> {
        self.wait_for(number)
    }

    fn wait_all(&mut self) -> Result<(), RunError> {
        let given = self.shared.queue.lock().expect("the mover does not panic").given;
        self.wait_for(given)
    }

    fn stepped(&mut self) {}

    fn times(&self) -> (Duration, Duration, u64) {
        let queue = self.shared.queue.lock().expect("the mover does not panic");
        (Duration::from_nanos(self.waited_ns), Duration::from_nanos(queue.busy_ns), queue.bytes)
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        if let Ok(mut queue) = self.shared.queue.lock() {
            queue.is_over = true;
            queue.jobs.clear();
        }
        self.shared.given.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there has been seen by whoever waited.
            let _ = thread.join();
        }
    }
}

/// Tells who waits when a thread ends by a panic, so that nobody waits for ever.
struct Farewell<'a>(&'a Shared);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut queue = self.0.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        queue.is_dead = true;
        self.0.finished.notify_all();
        self.0.given.notify_all();
    }
}

fn work(shared: &Shared, files: &Files, chunk: &mut Chunk) {
    let _farewell = Farewell(shared);
    let mut queue = shared.queue.lock().expect("nobody panics with the queue");
    loop {
        let Some(mut piece) = queue.next() else {
            if queue.is_over || queue.is_dead {
                return;
            }
            queue = shared.given.wait(queue).expect("nobody panics with the queue");
            continue;
        };
        drop(queue);
        let result = carry_out(&mut piece, files, chunk);
        queue = shared.queue.lock().expect("nobody panics with the queue");
        queue.end(&piece, result);
        shared.finished.notify_all();
        // What goes out may have waited for this, and what comes in for what went out.
        shared.given.notify_all();
    }
}

fn carry_out(piece: &mut Piece, files: &Files, chunk: &mut Chunk) -> Result<(), FileError> {
    match piece.direction {
        Direction::In => files.read(piece.place, piece.span.bytes_mut(), chunk),
        Direction::Out => files.write(piece.place, piece.span.bytes(), chunk),
    }
}

fn dead() -> FileError {
    let why = std::io::Error::other("a moving thread ended by a panic");
    FileError::new(std::path::Path::new("far memory"), "cannot move", why)
}

#[cfg(test)]
mod tests {
    use super::super::{CHUNK_BYTES, Direct, Files, Place, Span, Work};
    use super::{Carrier, Move, Mover, join};
    use std::path::PathBuf;
    use std::ptr::NonNull;
    use std::sync::Arc;
    use tinyforge_plan::Direction;

    const BYTES: usize = 10_000;

    /// Files of a far memory: a model of [`BYTES`] bytes that count up, and no work file.
    struct Desk {
        path: PathBuf,
        files: Arc<Files>,
        near: Vec<u8>,
    }

    impl Desk {
        fn new(name: &str) -> Desk {
            let path = std::env::temp_dir().join(format!("tinyforge-mover-{name}-{}", std::process::id()));
            let bytes: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, bytes).expect("written");
            let model = vec![Direct::open(&path).expect("opens")];
            let files = Arc::new(Files { model, stamps: Vec::new(), work: None, host: None });
            Desk { path, files, near: vec![0; BYTES] }
        }

        fn span(&mut self, from: usize, bytes: usize) -> Span {
            Span { start: NonNull::from(&mut self.near[from..from + bytes]).cast(), bytes }
        }
    }

    impl Drop for Desk {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn coming(place: Place, near: (u64, u64)) -> Move {
        Move { name: "w".to_string(), number: 0, place, near, direction: Direction::In, begins: 0, ends: 0, follows: 0 }
    }

    /// Hands over a move of 100 bytes from `place` to byte `near`.
    fn begin(mover: &mut Mover, desk: &mut Desk, place: Place, near: usize) -> u64 {
        let span = desk.span(near, 100);
        mover.begin(&coming(place, (near as u64, 100)), span)
    }

    #[test]
    fn moves_are_done_when_they_were_waited_for() {
        let mut desk = Desk::new("done");
        let mut mover = Mover::new(Arc::clone(&desk.files), 100).expect("a thread");
        let numbers: Vec<u64> =
            (0..100).map(|i| begin(&mut mover, &mut desk, Place::Model(0, 99 * i as u64), 100 * i)).collect();
        assert_eq!(numbers, (1..=100).collect::<Vec<u64>>());
        mover.wait(50).expect("nothing fails");
        let copy = |i: usize| (0..100).map(move |k| ((99 * i + k) % 251) as u8);
        assert!((0..50).all(|i| desk.near[100 * i..100 * i + 100].iter().copied().eq(copy(i))));
        mover.wait_all().expect("nothing fails");
        assert!((0..100).all(|i| desk.near[100 * i..100 * i + 100].iter().copied().eq(copy(i))));
        assert_eq!(mover.times().2, BYTES as u64);
    }

    #[test]
    fn an_error_is_told_once_and_the_rest_is_moved() {
        let mut desk = Desk::new("error");
        let mut mover = Mover::new(Arc::clone(&desk.files), 8).expect("a thread");
        let past = BYTES as u64 - 50;
        begin(&mut mover, &mut desk, Place::Model(0, past), 0);
        let last = begin(&mut mover, &mut desk, Place::Model(0, 7), 200);
        let error = mover.wait(last).expect_err("the file ends before").to_string();
        assert!(error.contains(desk.path.to_str().expect("plain")), "{error}");
        mover.wait(last).expect("told already");
        mover.wait_all().expect("told already");
        let wanted: Vec<u8> = (7..107).map(|i| i as u8).collect();
        assert_eq!(desk.near[200..300], wanted);
        // Two failures, of which one is told: when everything has come to rest.
        begin(&mut mover, &mut desk, Place::Model(0, past), 0);
        begin(&mut mover, &mut desk, Place::Model(0, past + 1), 0);
        begin(&mut mover, &mut desk, Place::Model(0, 9), 300);
        mover.wait_all().expect_err("the file ends before");
        assert_eq!(desk.near[300], 9);
        mover.wait_all().expect("told already");
    }

    /// A file that there is not is a fault of ours and panics.
    #[test]
    fn a_panic_of_a_thread_is_an_error_of_every_later_move() {
        let mut desk = Desk::new("panic");
        let mut mover = Mover::new(Arc::clone(&desk.files), 8).expect("a thread");
        let first = begin(&mut mover, &mut desk, Place::Model(9, 0), 0);
        let second = begin(&mut mover, &mut desk, Place::Model(0, 0), 100);
        for number in [second, first, second] {
            let error = mover.wait(number).expect_err("nothing moves any more").to_string();
            assert!(error.contains("panic"), "{error}");
        }
        let third = begin(&mut mover, &mut desk, Place::Model(0, 0), 100);
        mover.wait(third).expect_err("nothing moves any more");
        mover.wait_all().expect_err("nothing moves any more");
    }

    /// Moves of several pieces, at no block's beginning, in the work file: each thread takes some. What comes in after
    /// what goes out is what went out.
    #[test]
    fn what_comes_in_by_pieces_is_whole_and_what_went_out_before() {
        let bytes = 3 * CHUNK_BYTES + 777;
        let path = std::env::temp_dir().join(format!("tinyforge-mover-pieces-{}", std::process::id()));
        let file = Direct::create(&path, bytes as u64 + 100).expect("made");
        let files =
            Arc::new(Files { model: Vec::new(), stamps: Vec::new(), work: Some(Work { file, path }), host: None });
        let mut mover = Mover::new(Arc::clone(&files), 6).expect("threads");
        let out: Vec<u8> = (0..bytes).map(|i| (i % 249) as u8).collect();
        let mut near = [out.clone(), vec![0; bytes], out.iter().map(|b| b ^ 1).collect(), vec![0; bytes]];
        for (i, part) in near.iter_mut().enumerate() {
            let span = Span { start: NonNull::from(&mut part[..]).cast(), bytes };
            let direction = if i % 2 == 0 { Direction::Out } else { Direction::In };
            mover.begin(&Move { direction, ..coming(Place::Work(55), (0, bytes as u64)) }, span);
        }
        mover.wait_all().expect("nothing fails");
        assert!(near[1] == out && near[3] == near[2], "what came in is not what went out");
        assert_eq!(mover.times().2, 4 * bytes as u64);
    }

    #[test]
    fn moves_are_dropped_with_the_mover() {
        let mut desk = Desk::new("dropped");
        let mut mover = Mover::new(Arc::clone(&desk.files), 100).expect("a thread");
        for _ in 0..100 {
            begin(&mut mover, &mut desk, Place::Model(0, 0), 0);
        }
        drop(mover);
        assert!(Arc::strong_count(&desk.files) == 1, "a thread still has the files");
    }

    #[test]
    fn neighbours_move_together() {
        let joined = |list: &[(Place, (u64, u64))]| {
            let mut found = Vec::new();
            list.iter().for_each(|&(place, near)| join(&mut found, coming(place, near), 64));
            found.iter().map(|m| (m.place, m.near)).collect::<Vec<_>>()
        };
        let (model, work) = (|at| Place::Model(0, at), Place::Work);
        // In the model's file only what lies together on both sides.
        assert_eq!(joined(&[(model(8), (64, 64)), (model(72), (128, 10))]), [(model(8), (64, 74))]);
        for apart in [model(73), Place::Model(1, 72), work(72)] {
            assert_eq!(joined(&[(model(8), (64, 64)), (apart, (128, 10))]).len(), 2, "{apart:?}");
        }
        assert_eq!(joined(&[(model(8), (64, 60)), (model(72), (128, 10))]).len(), 2);
        // In the work file with the gap that alignment leaves.
        assert_eq!(joined(&[(work(0), (64, 60)), (work(64), (128, 10))]), [(work(0), (64, 74))]);
        assert_eq!(joined(&[(work(0), (64, 60)), (work(64), (192, 10))]).len(), 2);
        assert_eq!(joined(&[(work(64), (128, 10)), (work(0), (64, 60))]).len(), 2);
    }
}
