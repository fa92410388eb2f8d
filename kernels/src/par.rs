//! Threads: a fixed list of tasks, run by however many workers there are.
//!
//! Invariant: what a task computes depends on its index alone, never on the worker that ran it or on how many
//! there are; so results do not depend on the thread count. Running tasks allocates nothing.

use core::ops::Range;

/// A pool of workers that runs lists of tasks.
pub struct Par {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Par {
    /// A pool of `threads` workers with `stack_bytes` of stack each; one thread means the caller's own.
    ///
    /// Errors: the operating system refused a thread.
    pub fn new(threads: usize, stack_bytes: usize) -> Result<Par, rayon::ThreadPoolBuildError> {
        let threads = threads.max(1);
        if threads == 1 {
            return Ok(Par { pool: None, threads });
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(stack_bytes).build()?;
        Ok(Par { pool: Some(pool), threads })
    }

    /// Workers in the pool; a worker index handed to a task is below this.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Moves the caller onto a worker for the time of `f`, so that the [`Par::run`] calls inside it start without
    /// crossing threads.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// Runs `task(index, worker)` for every index below `tasks`, in any order, and returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => {
                if pool.current_thread_index().is_some() {
                    split(0..tasks, &task);
                } else {
                    pool.install(|| split(0..tasks, &task));
                }
            }
            _ => (0..tasks).for_each(|index| task(index, 0)),
        }
    }
}

fn split(range: Range<usize>, task: &(impl Fn(usize, usize) + Sync)) {
    if range.len() <= 1 {
        let worker = rayon::current_thread_index().unwrap_or(0);
        range.for_each(|index| task(index, worker));
        return;
    }
    let middle = range.start + range.len() / 2;
    rayon::join(|| split(range.start..middle, task), || split(middle..range.end, task));
}

/// The `index`-th of `parts` nearly equal pieces of `0..len`, each but the last a multiple of `unit` long.
pub fn piece(len: usize, unit: usize, parts: usize, index: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let start = units * index / parts * unit;
    let end = units * (index + 1) / parts * unit;
    start.min(len)..end.min(len)
}
