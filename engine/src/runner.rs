//! A plan that is loaded and runs.
//!
//! Invariant: after [`Runner::new`] and [`Runner::load`] nothing is allocated; a run touches no byte of the arena
//! past the plan's peak.

use crate::arena::Arena;
use crate::cpu::{Code, KernelError};
use crate::files::ReadAt;
use crate::load::{self, LoadError};
use bytemuck::Pod;
use tinyforge_kernels::par::Par;
use tinyforge_plan::{Plan, Step, Tensor, check};

/// Stack of a worker thread; kernels use little.
pub const STACK_BYTES: usize = 1 << 20;

/// Why a plan cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The plan is not consistent.
    #[error("the plan is damaged: {0}")]
    Plan(String),
    /// The system gave no memory or threads.
    #[error("{what}: {why}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        why: String,
    },
    /// A kernel refused its data.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Filling the stored tensors failed.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How a plan is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Whether the time of every step is counted.
    pub count_times: bool,
}

/// A plan with its memory, code and threads.
pub struct Runner {
    plan: Plan,
    arena: Arena,
    code: Code,
    par: Par,
}

impl Runner {
    /// Checks and binds a plan and reserves its memory.
    ///
    /// # Errors
    /// The plan is damaged, or the system has not enough memory or threads.
    pub fn new(plan: Plan, options: RunOptions) -> Result<Runner, RunError> {
        if let Some(fault) = check::check(&plan).into_iter().next() {
            return Err(RunError::Plan(fault));
        }
        let code = Code::bind(&plan, options.count_times).map_err(RunError::Plan)?;
        let arena = Arena::new(plan.arena_bytes())
            .map_err(|e| RunError::System { what: "cannot reserve the arena", why: e.to_string() })?;
        let par = Par::new(plan.threads.max(1) as usize, STACK_BYTES)
            .map_err(|e| RunError::System { what: "cannot start threads", why: e.to_string() })?;
        Ok(Runner { plan, arena, code, par })
    }

    /// Fills the stored tensors.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&mut self, files: &[ReadAt], seed: u64) -> Result<(), RunError> {
        Ok(load::load(&self.plan, &mut self.arena, files, seed)?)
    }

    /// Puts another plan in place of this one, in the same arena: its stored tensors keep their bytes where both
    /// plans have them at one place.
    ///
    /// # Errors
    /// The plan is damaged or needs a larger arena.
    pub fn switch(&mut self, plan: Plan) -> Result<Plan, RunError> {
        if plan.arena_bytes() > self.arena.bytes().len() as u64 {
            return Err(RunError::Plan("it needs a larger arena".to_string()));
        }
        if let Some(fault) = check::check(&plan).into_iter().next() {
            return Err(RunError::Plan(fault));
        }
        self.code = Code::bind(&plan, false).map_err(RunError::Plan)?;
        Ok(std::mem::replace(&mut self.plan, plan))
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The memory, to be written.
    pub fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Index of the entry of this name.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.plan.entries.iter().position(|e| e.name == name)
    }

    /// An input of an entry, to be filled before a run; empty when the entry has none of this name.
    pub fn input<T: Pod>(&mut self, entry: usize, name: &str) -> &mut [T] {
        match self.plan.entries[entry].input(name) {
            Some(t) => bytemuck::cast_slice_mut(self.arena.tensor_mut(t)),
            None => &mut [],
        }
    }

    /// A result of an entry, valid after its run; empty when the entry has none of this name.
    pub fn result<T: Pod>(&self, entry: usize, name: &str) -> &[T] {
        match self.plan.entries[entry].result(name) {
            Some(t) => bytemuck::cast_slice(self.arena.tensor(t)),
            None => &[],
        }
    }

    /// The stored tensor of this name with its bytes.
    pub fn stored(&self, name: &str) -> Option<(&Tensor, &[u8])> {
        self.plan.find(name).map(|s| (&s.tensor, self.arena.tensor(&s.tensor)))
    }

    /// Runs an entry.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn run(&mut self, entry: usize) -> Result<(), RunError> {
        let Runner { arena, code, par, .. } = self;
        Ok(par.enter(|| code.run(entry, arena, par))?)
    }

    /// Steps with the nanoseconds spent in them, where they are counted.
    pub fn times(&self) -> impl Iterator<Item = (&Step, u64)> {
        self.code.times()
    }
}
