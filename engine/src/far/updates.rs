//! The host's part of a step: updates of what rests in its memory, on threads of its own, beside the device's steps.
//!
//! They are given in the plan's order and done one after the other, each on all of the threads. One begins when what it
//! reads has come out; a copy of what it changes begins behind it. Invariant: nothing is allocated between steps, and
//! what is computed does not depend on the number of threads.

use super::carrier::Landing;
use crate::arena::Arena;
use crate::cpu::HostCode;
use crate::runner::{RunError, STACK_BYTES};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tinyforge_kernels::par::Par;

/// A step of the host that was given: phase and entry, which of the host's steps there, and the numbers of the last
/// moves, out and in, that it waits for; 0 for none.
#[derive(Clone, Copy)]
struct Job {
    at: (usize, usize),
    nth: usize,
    landed: [u64; 2],
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    finished: u64,
    failed: Option<RunError>,
    is_over: bool,
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

/// Gives the host its steps, and waits for them.
pub(super) struct Updates {
    shared: Arc<Shared>,
    given: u64,
    /// Steps that were given before the run that is under way.
    before: u64,
    thread: Option<JoinHandle<()>>,
}

impl Updates {
    /// Starts the threads: for the code of every phase, over the host's memory.
    ///
    /// # Errors
    /// The system has no thread.
    pub(super) fn new(
        code: Vec<HostCode>,
        memory: Arena,
        landing: Option<Arc<dyn Landing>>,
        threads: usize,
    ) -> Result<Updates, RunError> {
        let no_thread = |why| RunError::System { what: "cannot start the host's updates", why };
        let par = Par::new(threads, STACK_BYTES).map_err(|e| no_thread(e.to_string()))?;
        let most = code.iter().map(HostCode::most).max().unwrap_or(0);
        let queue = Queue { jobs: VecDeque::with_capacity(most), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), given: Condvar::new(), done: Condvar::new() });
        let mut worker = Worker { shared: Arc::clone(&shared), code, memory, landing };
        let builder = std::thread::Builder::new().name("updates".to_string()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || par.enter(|| worker.work(&par))).map_err(|e| no_thread(e.to_string()))?;
        Ok(Updates { shared, given: 0, before: 0, thread: Some(thread) })
    }

    /// Gives the host its next step of an entry, the `nth`.
    pub(super) fn give(&mut self, at: (usize, usize), nth: usize, landed: [u64; 2]) {
        if nth == 0 {
            self.before = self.given;
        }
        self.given += 1;
        self.shared.queue().jobs.push_back(Job { at, nth, landed });
        self.shared.given.notify_one();
    }

    /// Waits until so many of the host's steps of the entry that runs have ended.
    ///
    /// # Errors
    /// One failed: it is told once, and those behind it were not begun.
    pub(super) fn wait(&mut self, count: usize) -> Result<(), RunError> {
        self.wait_until(self.before + count as u64)
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// As [`Updates::wait`].
    pub(super) fn wait_all(&mut self) -> Result<(), RunError> {
        self.wait_until(self.given)
    }

    fn wait_until(&mut self, number: u64) -> Result<(), RunError> {
        let mut queue = self.shared.queue();
        while queue.finished < number {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Updates {
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

struct Worker {
    shared: Arc<Shared>,
    code: Vec<HostCode>,
    memory: Arena,
    landing: Option<Arc<dyn Landing>>,
}

/// Tells who waits when the thread ends by a panic, so that nobody waits for ever.
struct Farewell<'a>(&'a Shared);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue();
            let why = "their thread ended by a panic".to_string();
            queue.failed.get_or_insert(RunError::System { what: "the host's updates failed", why });
            queue.finished = u64::MAX;
            self.0.done.notify_all();
        }
    }
}

impl Worker {
    fn work(&mut self, par: &Par) {
        let shared = Arc::clone(&self.shared);
        let _farewell = Farewell(&shared);
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
            // Behind a failure nothing is updated until it has been told.
            let is_stopped = queue.failed.is_some();
            drop(queue);
            let result = if is_stopped { Ok(()) } else { self.step(job, par) };
            let mut queue = shared.queue();
            queue.finished += 1;
            if let Err(error) = result {
                queue.finished += queue.jobs.len() as u64;
                queue.jobs.clear();
                queue.failed.get_or_insert(error);
            }
            shared.done.notify_all();
        }
    }

    fn step(&mut self, Job { at, nth, landed }: Job, par: &Par) -> Result<(), RunError> {
        if let Some(landing) = &self.landing {
            landed.into_iter().filter(|&number| number > 0).try_for_each(|number| landing.wait(number))?;
        }
        Ok(self.code[at.0].step((at.1, nth), &mut self.memory, par)?)
    }
}

#[cfg(test)]
mod tests {
    use super::Updates;
    use crate::arena::Arena;
    use crate::cpu::HostCode;
    use crate::far::host::{HostMemory, Ram};
    use tinyforge_plan::{DType, Entry, Number, Part, Plan, Space, Step, Tensor};

    const BYTES: u64 = 4096;

    fn tensor(dtype: DType, elems: u32, offset: u64) -> Tensor {
        Tensor { dtype, shape: vec![elems], offset, value: 0 }
    }

    /// Plain descent of the 16 weights at `offset` by the gradient behind them; rates and counters lie at the start.
    fn update(offset: u64) -> Step {
        let weights = [offset, offset + 64].map(|at| tensor(DType::F32, 16, at));
        let numbers = [tensor(DType::F32, 4, 0), tensor(DType::U32, 4, 64)];
        Step {
            kernel: "update".to_string(),
            args: [weights, numbers].concat(),
            outs: Vec::new(),
            changes: 1,
            attrs: ["rule", "states"].map(|name| (name.to_string(), Number::Int(0))).to_vec(),
            scratch_offset: 0,
            scratch_bytes: 0,
            block: 0,
            part: Part::Update,
            flops: 0,
            label: "w".to_string(),
        }
    }

    /// A failure is told once; what was given behind it is not begun, and what is given later is.
    #[test]
    fn a_failure_stops_what_was_given() {
        let steps: Vec<Step> = (0..8).map(|i| update(128 + 128 * i)).collect();
        let (name, is_host) = ("host".to_string(), true);
        let space = Space { name, first_byte: 0, bytes: BYTES, is_written: true, is_far: true, is_host };
        let plan = Plan { spaces: vec![space], entries: vec![Entry { steps, ..Entry::default() }], ..Plan::default() };
        let memory = Ram::new(BYTES).expect("there is room");
        let set = |at: u64, value: f32| memory.part(at, 4).bytes_mut().copy_from_slice(&value.to_le_bytes());
        let weight = |i: u64| f32::from_le_bytes(memory.part(128 + 128 * i, 4).bytes().try_into().expect("four"));
        set(0, 0.5);
        (0..8).for_each(|i| set(128 + 128 * i + 64, 2.0));
        set(128 + 128 * 3 + 64, f32::NAN);
        let code = vec![HostCode::bind(&plan).expect("binds")];
        let mut updates = Updates::new(code, Arena::over(memory.part(0, BYTES), 0), None, 2).expect("starts");
        let give = |updates: &mut Updates| (0..8).for_each(|nth| updates.give((0, 0), nth, [0; 2]));
        give(&mut updates);
        let said = updates.wait(8).expect_err("the fourth fails").to_string();
        assert!(said.contains("not finite"), "{said}");
        updates.wait_all().expect("told already");
        assert_eq!((0..8).map(weight).collect::<Vec<_>>(), [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        set(128 + 128 * 3 + 64, 2.0);
        give(&mut updates);
        updates.wait(4).expect("nothing fails");
        assert_eq!((0..4).map(weight).collect::<Vec<_>>(), [-2.0, -2.0, -2.0, -1.0]);
        updates.wait_all().expect("nothing fails");
        assert_eq!((4..8).map(weight).collect::<Vec<_>>(), [-1.0; 4]);
    }
}
