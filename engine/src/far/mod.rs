//! The far memory: what a plan does not keep in the arena lies in the model's files, read in place, in one work file,
//! and, beside a device with a memory of its own, in the host's memory. Threads of its own carry out the plan's
//! transfers beside the steps.
//!
//! Invariant: a transfer's part of the arena is touched by nothing else from its beginning to its end, as the plan's
//! checker has made sure. Not for results: a work file is worth nothing without its process, and goes with it.

mod carrier;
pub(crate) mod direct;
mod host;
mod mover;
mod updates;

pub(crate) use carrier::{Carrier, Landing, Span};
pub use direct::{BLOCK_BYTES, CHUNK_BYTES, Chunk, Direct};
pub(crate) use host::HostMemory;
pub(crate) use mover::Move;
pub use mover::{MOVING_STACK_BYTES, MOVING_THREADS};

use crate::arena::Arena;
use crate::cpu::HostCode;
use crate::files::{FileError, ReadAt};
use crate::gpu::Gpu;
use crate::runner::RunError;
use crate::sim::{Sim, SimMover};
use host::Ram;
use mover::Mover;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tinyforge_plan::{Direction, Entry, Plan, Source, Step, Stored, Tensor};
use updates::Updates;

/// Where a stored tensor of a far memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In a file of the model, from this byte on.
    Model(usize, u64),
    /// In the work file, from this byte on.
    Work(u64),
    /// In the host's memory, from this byte on.
    Host(u64),
}

/// The files of the far memory, and the host's part of it.
pub(crate) struct Files {
    model: Vec<Direct>,
    /// Of every model file its length and time of change when it was opened.
    stamps: Vec<Stamp>,
    work: Option<Work>,
    host: Option<Box<dyn HostMemory>>,
}

/// Length, and time of change in seconds and nanoseconds where the system tells.
type Stamp = (u64, i64, i64);

/// The work file; it is removed when it is dropped.
struct Work {
    file: Direct,
    path: PathBuf,
}

impl Drop for Work {
    fn drop(&mut self) {
        // Left behind by a kill it is made anew by the next run; an error here has nobody to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Place {
    /// The byte of its file, or of the host's memory.
    pub(crate) fn offset(&self) -> u64 {
        let (Place::Model(_, offset) | Place::Work(offset) | Place::Host(offset)) = *self;
        offset
    }

    /// The place so many bytes behind.
    pub(crate) fn after(&self, bytes: usize) -> Place {
        match *self {
            Place::Model(file, offset) => Place::Model(file, offset + bytes as u64),
            Place::Work(offset) => Place::Work(offset + bytes as u64),
            Place::Host(offset) => Place::Host(offset + bytes as u64),
        }
    }
}

impl Files {
    /// Opens what a plan's far memories need: `work` is where the work file is made, `host` what is the host's of them.
    ///
    /// # Errors
    /// A file is not there, or the disk has no room for the work file.
    pub(crate) fn open(
        plan: &Plan,
        files: &[ReadAt],
        work: &Path,
        host: Option<Box<dyn HostMemory>>,
    ) -> Result<Arc<Files>, FileError> {
        let model = files.iter().map(|f| Direct::open(f.path())).collect::<Result<Vec<_>, _>>()?;
        let stamps = files.iter().map(|f| stamp(f.path())).collect::<Result<Vec<_>, _>>()?;
        let work = match Files::work_bytes(plan) {
            0 => None,
            bytes => Some(Work { file: Direct::create(work, bytes)?, path: work.to_path_buf() }),
        };
        Ok(Arc::new(Files { model, stamps, work, host }))
    }

    /// Bytes of a plan's work file.
    fn work_bytes(plan: &Plan) -> u64 {
        plan.spaces.iter().filter(|s| s.is_far && s.is_written && !s.is_host).map(|s| s.bytes).sum()
    }

    /// Whether the model's files are what they were when the run began.
    ///
    /// # Errors
    /// One has changed, or is gone.
    pub(crate) fn check_unchanged(&self, files: &[PathBuf]) -> Result<(), FileError> {
        for (path, then) in files.iter().zip(&self.stamps) {
            let err = |source| FileError::new(path, "the model's file changed under the run", source);
            let now = stamp(path).map_err(|e| err(e.source))?;
            if now != *then {
                let how = match (then.0, now.0) {
                    (then, now) if then != now => format!("it had {then} bytes and has {now}"),
                    (bytes, _) => format!("its {bytes} bytes were written anew"),
                };
                let why = format!("{how}; put it back as it was and go on from the last checkpoint");
                return Err(err(std::io::Error::other(why)));
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, place: Place, out: &mut [u8], chunk: &mut Chunk) -> Result<(), FileError> {
        match place {
            Place::Model(file, offset) => self.model[file].read(offset, out, chunk),
            Place::Work(offset) => self.work_file().read(offset, out, chunk),
            Place::Host(at) => {
                out.copy_from_slice(self.host().part(at, out.len() as u64).bytes());
                Ok(())
            }
        }
    }

    /// Writes a part of the work file or of the host's memory; what lies around it stays.
    pub(crate) fn write(&self, place: Place, data: &[u8], chunk: &mut Chunk) -> Result<(), FileError> {
        match place {
            Place::Work(offset) => self.work_file().write(offset, data, chunk),
            Place::Host(at) => {
                self.host().part(at, data.len() as u64).bytes_mut().copy_from_slice(data);
                Ok(())
            }
            Place::Model(..) => unreachable!("the model's files are only read"),
        }
    }

    fn host(&self) -> &dyn HostMemory {
        self.host.as_deref().expect("a plan with a part of the host's memory was given it")
    }

    fn work_file(&self) -> &Direct {
        &self.work.as_ref().expect("a plan with a written far memory has a work file").file
    }
}

fn stamp(path: &Path) -> Result<Stamp, FileError> {
    let meta = std::fs::metadata(path).map_err(|e| FileError::new(path, "cannot look at", e))?;
    let (seconds, nanoseconds) = changed(&meta);
    Ok((meta.len(), seconds, nanoseconds))
}

#[cfg(unix)]
fn changed(meta: &std::fs::Metadata) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt;
    (meta.mtime(), meta.mtime_nsec())
}

#[cfg(not(unix))]
fn changed(_: &std::fs::Metadata) -> (i64, i64) {
    (0, 0)
}

/// Where a stored tensor of a far memory lies.
pub(crate) fn place(plan: &Plan, stored: &Stored) -> Place {
    let space = plan.space_of(stored.tensor.offset).expect("the plan was checked");
    match &stored.source {
        _ if space.is_host => Place::Host(stored.tensor.offset - space.first_byte),
        Source::File { file, offset, .. } if !space.is_written => Place::Model(*file as usize, *offset),
        _ => Place::Work(stored.tensor.offset - space.first_byte),
    }
}

/// The bytes of a stored tensor, wherever it lives; of a far one in the part of the arena that steps use.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn fetch<'a>(
    plan: &Plan,
    far: Option<&mut Far>,
    arena: &'a mut Arena,
    tensor: &Tensor,
) -> Result<&'a [u8], FileError> {
    match far {
        Some(far) if plan.is_far(tensor) => far.fetch(plan, tensor, arena),
        _ => Ok(arena.tensor(tensor)),
    }
}

/// Sets the bytes of a stored tensor, wherever it lives. What `set` is given of a far one is not what it held.
///
/// # Errors
/// The work file cannot be written.
pub(crate) fn change<R>(
    plan: &Plan,
    far: Option<&mut Far>,
    arena: &mut Arena,
    tensor: &Tensor,
    set: impl FnOnce(&mut [u8]) -> R,
) -> Result<R, FileError> {
    match far {
        Some(far) if plan.is_far(tensor) => far.change(plan, tensor, arena, set),
        _ => Ok(set(arena.tensor_mut(tensor))),
    }
}

/// Work files that this process has made without being told where.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The moves of one entry.
struct EntryMoves {
    /// In the order in which they begin.
    list: Vec<Move>,
    /// Indices into `list`, in the order in which they end.
    by_end: Vec<usize>,
    residents: Vec<Move>,
    /// The steps of the host, in order, each with the last of the moves before it, out and in, of what it touches.
    updates: Vec<(usize, [Option<usize>; 2])>,
}

impl EntryMoves {
    fn of(plan: &Plan, entry: &Entry) -> EntryMoves {
        let list = mover::moves(plan, entry);
        let mut by_end: Vec<usize> = (0..list.len()).collect();
        by_end.sort_by_key(|&k| list[k].ends);
        let last = |i: usize, way| {
            list.iter().rposition(|m| m.begins <= i && m.direction == way && touches(plan, &entry.steps[i], m))
        };
        let host_steps = plan.host_steps(entry).into_iter().map(|i| i as usize);
        let updates = host_steps.map(|i| (i, [Direction::Out, Direction::In].map(|way| last(i, way)))).collect();
        EntryMoves { list, by_end, residents: mover::residents(plan, entry), updates }
    }

    /// Which of the host's steps step `i` is.
    fn update(&self, i: usize) -> Option<usize> {
        self.updates.binary_search_by_key(&i, |(step, _)| *step).ok()
    }

    /// The moves that step `i` waits for and that have begun before it.
    fn due(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let first = self.by_end.partition_point(|&k| self.list[k].ends < i);
        let due = self.by_end[first..].iter().copied().take_while(move |&k| self.list[k].ends == i);
        due.filter(move |&k| self.list[k].begins < i)
    }
}

/// Whether a move is from or to where a step of the host does something.
fn touches(plan: &Plan, step: &Step, m: &Move) -> bool {
    let Place::Host(first) = m.place else { return false };
    let first = plan.spaces.iter().find(|s| s.is_host).map_or(0, |s| s.first_byte) + first;
    step.args.iter().any(|t| t.offset < first + m.near.1 && first < t.end())
}

/// The near memory: the arena itself, or a device's, to and from which copies pass through the arena.
pub(crate) trait Near {
    /// Bytes have come into the arena, before a step that reads them.
    ///
    /// # Errors
    /// The device failed.
    fn came(&mut self, arena: &mut Arena, at: (u64, u64)) -> Result<(), RunError>;

    /// Bytes will be moved out of the arena.
    ///
    /// # Errors
    /// The device failed.
    fn going(&mut self, arena: &mut Arena, at: (u64, u64)) -> Result<(), RunError>;

    /// Runs step `i`.
    ///
    /// # Errors
    /// A kernel refused its data, or the device failed.
    fn step(&mut self, i: usize, arena: &mut Arena) -> Result<(), RunError>;
}

/// The far memory of a run.
pub(crate) struct Far {
    /// Before the memory in which they work.
    updates: Option<Updates>,
    mover: Box<dyn Carrier>,
    files: Arc<Files>,
    /// For calls between runs.
    chunk: Chunk,
    paths: Vec<PathBuf>,
    /// By phase and entry.
    moves: Vec<Vec<EntryMoves>>,
    /// The phase and entry whose residents are in the arena.
    resident: Option<(usize, usize)>,
    /// The numbers that the moves of the running entry were given.
    numbers: Vec<u64>,
}

impl Far {
    /// Opens the files of a run's phases and starts the moving threads, if the machine is not simulated.
    ///
    /// # Errors
    /// A file is not there, the disk has no room, or the system has no thread.
    pub(crate) fn open<'a>(
        plans: impl Iterator<Item = &'a Plan> + Clone,
        files: &[ReadAt],
        work: Option<&Path>,
        (sim, gpu): (Option<&Sim>, Option<&mut Gpu>),
    ) -> Result<Far, RunError> {
        let (moves, most) = moves_of(plans.clone());
        let name = format!("tinyforge-{}-{}.work", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let work = work.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        let plan = plans.clone().max_by_key(|p| p.arena_start()).expect("a run has a phase");
        if let Some(sim) = sim {
            sim.allocate("the work file", Files::work_bytes(plan))?;
        }
        let host_bytes = plans.clone().map(Plan::host_bytes).max().unwrap_or(0);
        let host = match gpu.as_deref().and_then(|gpu| gpu.host_memory()) {
            _ if host_bytes == 0 => None,
            Some(own) => Some(own),
            None => Some(ram(host_bytes, sim)?),
        };
        let files_of_run = Files::open(plan, files, &work, host)?;
        let own = gpu.map_or(Ok(None), |gpu| gpu.carrier(&files_of_run, most))?;
        let mover: Box<dyn Carrier> = match (own, sim) {
            (Some(carrier), _) => carrier,
            (None, Some(sim)) => {
                sim.allocate("what copies go through", CHUNK_BYTES as u64)?;
                sim.name_copies(named(&moves));
                Box::new(SimMover::new(sim.clone(), Arc::clone(&files_of_run), most))
            }
            (None, None) => Box::new(
                Mover::new(Arc::clone(&files_of_run), most)
                    .map_err(|e| RunError::System { what: "cannot start the moving threads", why: e.to_string() })?,
            ),
        };
        let updates = updates_of(plans, &files_of_run, mover.landing())?;
        let paths = files.iter().map(|f| f.path().to_path_buf()).collect();
        let (chunk, numbers) = (Chunk::new(), vec![0; most]);
        Ok(Far { updates, files: files_of_run, mover, chunk, paths, moves, resident: None, numbers })
    }

    /// The far memory of a plan that is only played: without files, over the carrier that `carrier` makes for at most
    /// so many moves under way, of copies with these names.
    pub(crate) fn played(
        plan: &Plan,
        carrier: impl FnOnce(usize, &mut dyn Iterator<Item = (String, Direction)>) -> Box<dyn Carrier>,
    ) -> Far {
        let (moves, most) = moves_of(std::iter::once(plan));
        let files = Arc::new(Files { model: Vec::new(), stamps: Vec::new(), work: None, host: None });
        let mover = carrier(most, &mut named(&moves));
        let (updates, paths, resident) = (None, Vec::new(), None);
        Far { updates, files, mover, chunk: Chunk::new(), paths, moves, resident, numbers: vec![0; most] }
    }

    /// Brings in what an entry finds there when it begins.
    ///
    /// # Errors
    /// A file cannot be read, or has changed.
    pub(crate) fn enter(&mut self, at: (usize, usize), arena: &mut Arena, near: &mut dyn Near) -> Result<(), RunError> {
        self.files.check_unchanged(&self.paths)?;
        if self.resident == Some(at) {
            return Ok(());
        }
        self.resident = None;
        for coming in &self.moves[at.0][at.1].residents {
            self.mover.begin(coming, arena.part(coming.near.0, coming.near.1));
        }
        let result = self.mover.wait_all();
        self.leave(result)?;
        self.moves[at.0][at.1].residents.iter().try_for_each(|m| near.came(arena, m.near))?;
        self.resident = Some(at);
        Ok(())
    }

    /// Runs steps of the entry that was entered, and the moves beside them.
    ///
    /// # Errors
    /// A kernel refused its data, or a file cannot be read or written.
    pub(crate) fn run(
        &mut self,
        steps: Range<usize>,
        count: usize,
        arena: &mut Arena,
        near: &mut dyn Near,
    ) -> Result<(), RunError> {
        let end = steps.end.min(count);
        for i in steps.start..end {
            self.before(i, arena, near)?;
            self.update(i);
            near.step(i, arena)?;
            self.mover.stepped();
        }
        if end == count {
            self.before(count, arena, near)?;
            self.updates.as_mut().map_or(Ok(()), Updates::wait_all)?;
            self.mover.rest()?;
        }
        Ok(())
    }

    /// Gives the host step `i`, where that is its own.
    fn update(&mut self, i: usize) {
        let at = self.resident.expect("the entry was entered");
        let moves = &self.moves[at.0][at.1];
        if let (Some(updates), Some(nth)) = (&mut self.updates, moves.update(i)) {
            let landed = moves.updates[nth].1.map(|k| k.map_or(0, |k| self.numbers[k]));
            updates.give(at, nth, landed);
        }
    }

    /// Begins what may begin before step `i`, and waits for what must have ended there. What goes out reads what the
    /// steps before have made, and goes first; what comes in may take the place of what has ended only then.
    fn before(&mut self, i: usize, arena: &mut Arena, near: &mut dyn Near) -> Result<(), RunError> {
        self.begin(i, Direction::Out, arena, near)?;
        let (phase, entry) = self.resident.expect("the entry was entered");
        let moves = &self.moves[phase][entry];
        for k in moves.due(i) {
            self.mover.wait(self.numbers[k])?;
            if moves.list[k].direction == Direction::In {
                near.came(arena, moves.list[k].near)?;
            }
        }
        self.begin(i, Direction::In, arena, near)
    }

    /// Begins the moves of one direction that begin before step `i`, and then waits for those that end there too.
    fn begin(&mut self, i: usize, way: Direction, arena: &mut Arena, near: &mut dyn Near) -> Result<(), RunError> {
        let (phase, entry) = self.resident.expect("the entry was entered");
        let list = &self.moves[phase][entry].list;
        let begun = list.partition_point(|m| m.begins < i);
        let beginning = list.iter().enumerate().skip(begun).take_while(|(_, m)| m.begins == i);
        let beginning = beginning.filter(|(_, m)| m.direction == way);
        for (k, m) in beginning.clone() {
            if way == Direction::Out {
                near.going(arena, m.near)?;
            }
            if let Some(updates) = self.updates.as_mut().filter(|_| m.follows > 0) {
                updates.wait(m.follows)?;
            }
            self.numbers[k] = self.mover.begin(m, arena.part(m.near.0, m.near.1));
        }
        for (k, m) in beginning.filter(|(_, m)| m.ends == i) {
            self.mover.wait(self.numbers[k])?;
            if way == Direction::In {
                near.came(arena, m.near)?;
            }
        }
        Ok(())
    }

    /// Ends a run: after a failure nothing in the arena is taken for a copy, once everything has come to rest. A model
    /// that changed meanwhile is a failure, and the reason of any other.
    ///
    /// # Errors
    /// The run's, or a file has changed.
    pub(crate) fn leave(&mut self, result: Result<(), RunError>) -> Result<(), RunError> {
        if result.is_err() {
            // The first error is the one to tell.
            let _ = self.mover.wait_all();
            let _ = self.updates.as_mut().map(Updates::wait_all);
        }
        let result = self.files.check_unchanged(&self.paths).map_err(RunError::from).and(result);
        if result.is_err() {
            self.resident = None;
        }
        result
    }

    /// A far tensor, read into the part of the arena that steps use.
    fn fetch<'a>(&mut self, plan: &Plan, tensor: &Tensor, arena: &'a mut Arena) -> Result<&'a [u8], FileError> {
        self.resident = None;
        let there = borrowed(plan, tensor);
        self.files.read(place_of(plan, tensor), arena.tensor_mut(&there), &mut self.chunk)?;
        Ok(arena.tensor(&there))
    }

    /// Sets a far tensor in the part of the arena that steps use, and writes it where it rests.
    fn change<R>(
        &mut self,
        plan: &Plan,
        tensor: &Tensor,
        arena: &mut Arena,
        set: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, FileError> {
        self.resident = None;
        let there = borrowed(plan, tensor);
        let result = set(arena.tensor_mut(&there));
        self.files.write(place_of(plan, tensor), arena.tensor(&there), &mut self.chunk)?;
        Ok(result)
    }

    /// Takes nothing in the arena for a copy any longer.
    pub(crate) fn forget(&mut self) {
        self.resident = None;
    }

    /// How long steps waited, how long the mover worked, and the bytes it moved.
    pub(crate) fn times(&self) -> (Duration, Duration, u64) {
        self.mover.times()
    }
}

/// What carries out the host's steps of some plans, where there are any.
///
/// # Errors
/// A plan is damaged, or the system has no thread.
fn updates_of<'a>(
    plans: impl Iterator<Item = &'a Plan> + Clone,
    files: &Files,
    landing: Option<Arc<dyn Landing>>,
) -> Result<Option<Updates>, RunError> {
    let code = plans.clone().map(HostCode::bind).collect::<Result<Vec<_>, _>>().map_err(RunError::Plan)?;
    if code.iter().all(|code| code.most() == 0) {
        return Ok(None);
    }
    let plan = plans.max_by_key(|p| p.host_bytes()).expect("a run has a phase");
    let start = plan.spaces.iter().find(|s| s.is_host).map_or(0, |s| s.first_byte);
    let memory = Arena::over(files.host().part(0, plan.host_bytes()), start);
    Updates::new(code, memory, landing, plan.threads.max(1) as usize).map(Some)
}

/// So much of the host's memory, as the system gives it.
///
/// # Errors
/// There is less.
fn ram(bytes: u64, sim: Option<&Sim>) -> Result<Box<dyn HostMemory>, RunError> {
    if let Some(sim) = sim {
        sim.allocate("tensors in the host's memory", bytes)?;
    }
    let memory = Ram::new(bytes).map_err(|e| RunError::System {
        what: "cannot take the host's memory",
        why: format!("{bytes} bytes: {e}; with a smaller --host-memory more lies in files"),
    })?;
    Ok(Box::new(memory))
}

/// The moves of some plans, numbered, and the most that an entry can have under way.
fn moves_of<'a>(plans: impl Iterator<Item = &'a Plan>) -> (Vec<Vec<EntryMoves>>, usize) {
    let of_plan = |plan: &Plan| {
        let of_entry = |entry| EntryMoves::of(plan, entry);
        plan.entries.iter().map(of_entry).collect::<Vec<_>>()
    };
    let mut moves: Vec<Vec<EntryMoves>> = plans.map(of_plan).collect();
    let all = moves.iter_mut().flatten().flat_map(|e| e.list.iter_mut().chain(&mut e.residents));
    all.enumerate().for_each(|(number, m)| m.number = number);
    let most = moves.iter().flatten().map(|e| e.list.len().max(e.residents.len())).max().unwrap_or(0);
    (moves, most)
}

/// Names and directions of moves, in the order of their numbers.
fn named(moves: &[Vec<EntryMoves>]) -> impl Iterator<Item = (String, Direction)> + '_ {
    let all = moves.iter().flatten().flat_map(|e| e.list.iter().chain(&e.residents));
    all.map(|m| (m.name.clone(), m.direction))
}

/// A far tensor in the part of the arena that steps use, behind the stored tensors.
pub(crate) fn borrowed(plan: &Plan, tensor: &Tensor) -> Tensor {
    Tensor { offset: plan.stored_end().next_multiple_of(u64::from(plan.align_bytes)), ..tensor.clone() }
}

fn place_of(plan: &Plan, tensor: &Tensor) -> Place {
    let stored = plan.stored.iter().find(|s| s.tensor.offset == tensor.offset).expect("the tensor is stored");
    place(plan, stored)
}
