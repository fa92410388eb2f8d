//! A plan that is loaded and runs.
//!
//! Invariant: after [`Runner::new`] and [`Runner::load`] nothing is allocated; a run touches no byte of the arena
//! past the plan's peak. Copies from a far memory come and go beside the steps, as the plan says.

use crate::arena::Arena;
use crate::cpu::{Code, KernelError};
use crate::far::{self, Far, Near};
use crate::files::{FileError, ReadAt};
use crate::gpu::{Gpu, GpuError};
use crate::load::{self, LoadError};
use crate::sim::{self, Report, Sim, SimError, SimOptions};
use bytemuck::Pod;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tinyforge_kernels::par::Par;
use tinyforge_plan::{Named, Plan, Step, Stored, StoredKind, Tensor, check};

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
    /// A copy could not be moved.
    #[error(transparent)]
    File(#[from] FileError),
    /// A simulated machine failed, as it was told to.
    #[error(transparent)]
    Sim(#[from] SimError),
    /// A GPU is not there, too small, or failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// What runs the kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceChoice {
    /// This computer's processor.
    #[default]
    Cpu,
    /// The best adapter that wgpu finds.
    Wgpu,
    /// A card of NVIDIA.
    Cuda,
}

impl DeviceChoice {
    /// Every device by its name on the command line.
    pub const ALL: [(&'static str, DeviceChoice); 3] =
        [("cpu", DeviceChoice::Cpu), ("wgpu", DeviceChoice::Wgpu), ("cuda", DeviceChoice::Cuda)];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        DeviceChoice::ALL[self as usize].0
    }

    /// The device of this name.
    pub fn from_name(name: &str) -> Option<DeviceChoice> {
        DeviceChoice::ALL.iter().find(|(n, _)| *n == name).map(|(_, device)| *device)
    }
}

/// How a plan is run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Whether the time of every step is counted.
    pub count_times: bool,
    /// Where the work file of a plan with a far memory is made; in the system's folder for such files where none is
    /// named.
    pub work: Option<PathBuf>,
    /// The machine to simulate; without it the plan runs on this one.
    pub sim: Option<SimOptions>,
    /// What runs the kernels; the plan was made for its kernels. A simulated machine's are the CPU's.
    pub device: DeviceChoice,
    /// What opens the card for CUDA; the first that there is where nothing else is named.
    pub driver: Option<crate::gpu::cuda::Open>,
    /// Traits of an adapter, by the names that `tinyforge devices` prints, that a run is not to use.
    pub without: &'static [&'static str],
    /// Whether products of f32 may round their factors to TF32, where a card has a faster way for those.
    pub tf32: bool,
}

/// A plan, bound to kernels where the CPU runs them.
struct Phase {
    plan: Plan,
    code: Option<Code>,
    /// The states that not all phases have.
    own_states: Vec<Tensor>,
}

/// The states that all plans have at one place: what is in them goes from phase to phase.
pub fn common_states<'a>(mut plans: impl Iterator<Item = &'a Plan>) -> impl Iterator<Item = &'a Stored> {
    let first = plans.next();
    let others: Vec<BTreeMap<&str, &Tensor>> =
        plans.map(|p| states(p).map(|s| (s.name.as_str(), &s.tensor)).collect()).collect();
    let is_common = move |s: &&Stored| others.iter().all(|o| o.get(s.name.as_str()) == Some(&&s.tensor));
    first.into_iter().flat_map(states).filter(is_common)
}

fn states(plan: &Plan) -> impl Iterator<Item = &Stored> {
    plan.stored.iter().filter(|s| s.kind == StoredKind::State)
}

/// Plans with their memory, code and threads. Several plans are phases of one run: they share one arena, and tensors
/// that they store at one place keep their bytes from phase to phase.
pub struct Runner {
    phases: Vec<Phase>,
    active: usize,
    work: Option<PathBuf>,
    sim: Option<Sim>,
    /// Before the arena, in which it moves.
    far: Option<Far>,
    /// What runs the kernels instead of the CPU; the arena then holds what goes there and comes back.
    gpu: Option<Gpu>,
    arena: Arena,
    par: Arc<Par>,
}

impl Runner {
    /// Checks and binds a plan and reserves its memory.
    ///
    /// # Errors
    /// The plan is damaged, or the system has not enough memory or threads.
    pub fn new(plan: Plan, options: RunOptions) -> Result<Runner, RunError> {
        Runner::with_phases(vec![plan], options)
    }

    /// Checks and binds the plans of a run's phases and reserves memory for the largest.
    ///
    /// # Errors
    /// As [`Runner::new`].
    ///
    /// # Panics
    /// There is no plan.
    pub fn with_phases(plans: Vec<Plan>, options: RunOptions) -> Result<Runner, RunError> {
        let bytes = plans.iter().map(Plan::arena_bytes).max().expect("a run has a phase");
        let start = plans[0].arena_start();
        if plans.iter().any(|p| p.arena_start() != start) {
            return Err(RunError::Plan("the phases' arenas begin at different addresses".to_string()));
        }
        let threads = plans[0].threads.max(1) as usize;
        let updates = plans.iter().flat_map(|p| p.entries.iter().map(|e| p.host_steps(e).len())).max().unwrap_or(0);
        let sim = options.sim.as_ref().map(|options| Sim::new(options, updates));
        if let Some(sim) = &sim {
            reserve(sim, &plans, bytes, threads)?;
        }
        let common: Vec<Tensor> = common_states(plans.iter()).map(|s| s.tensor.clone()).collect();
        let mut phases = Vec::with_capacity(plans.len());
        for plan in plans {
            if let Some(fault) = check::check(&plan).into_iter().next() {
                return Err(RunError::Plan(fault));
            }
            let code = match options.device {
                DeviceChoice::Cpu => Some(Code::bind(&plan, options.count_times).map_err(RunError::Plan)?),
                DeviceChoice::Wgpu | DeviceChoice::Cuda => None,
            };
            let own = states(&plan).map(|s| &s.tensor).filter(|t| !common.contains(t));
            let own_states = own.cloned().collect();
            phases.push(Phase { plan, code, own_states });
        }
        let gpu = open_gpu(&phases, &options)?;
        let reserved = if gpu.is_some() { Arena::sparse(start, bytes) } else { Arena::new(start, bytes) };
        let arena = reserved.map_err(|e| RunError::System { what: "cannot reserve the arena", why: e.to_string() })?;
        let par = Par::new(threads, STACK_BYTES)
            .map_err(|e| RunError::System { what: "cannot start threads", why: e.to_string() })?;
        Ok(Runner { phases, active: 0, work: options.work, sim, far: None, gpu, arena, par: Arc::new(par) })
    }

    /// Fills the stored tensors of the active phase.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&mut self, files: &[ReadAt], seed: u64) -> Result<(), RunError> {
        let Runner { phases, active, work, sim, far, gpu, arena, .. } = self;
        let plan = &phases[*active].plan;
        if plan.arena_start() > 0 && far.is_none() {
            *far =
                Some(Far::open(phases.iter().map(|p| &p.plan), files, work.as_deref(), (sim.as_ref(), gpu.as_mut()))?);
        }
        Ok(load::load(plan, arena, (far.as_mut(), gpu.as_mut()), files, seed)?)
    }

    /// Makes phase `phase` active. The caller sets what the phases do not share.
    ///
    /// # Panics
    /// There is no such phase.
    pub fn activate(&mut self, phase: usize) {
        assert!(phase < self.phases.len(), "there are {} phases", self.phases.len());
        self.active = phase;
    }

    /// Sets all states of the active phase to zero.
    ///
    /// # Errors
    /// The work file cannot be written.
    pub fn clear_states(&mut self) -> Result<(), RunError> {
        let Runner { phases, active, far, gpu, arena, .. } = self;
        let plan = &phases[*active].plan;
        let mut clear = |t: &Tensor| change(plan, (far.as_mut(), gpu.as_mut()), arena, t, |bytes| bytes.fill(0));
        states(plan).try_for_each(|s| clear(&s.tensor))
    }

    /// Sets the states of the active phase to zero that are not in every phase's plan: those have kept their bytes.
    ///
    /// # Errors
    /// The work file cannot be written.
    pub fn clear_own_states(&mut self) -> Result<(), RunError> {
        let Runner { phases, active, far, gpu, arena, .. } = self;
        let Phase { plan, own_states, .. } = &phases[*active];
        let mut clear = |t: &Tensor| change(plan, (far.as_mut(), gpu.as_mut()), arena, t, |bytes| bytes.fill(0));
        own_states.iter().try_for_each(&mut clear)
    }

    /// The bytes of a stored tensor, wherever it lives; of a far one in the part of the arena that steps use.
    ///
    /// # Errors
    /// The file cannot be read, or the device failed.
    pub fn fetch(&mut self, tensor: &Tensor) -> Result<&[u8], RunError> {
        let Runner { phases, active, far, gpu, arena, .. } = self;
        let plan = &phases[*active].plan;
        match gpu {
            Some(gpu) if !plan.is_far(tensor) => Ok(gpu.fetch(arena, tensor)?),
            _ => Ok(far::fetch(plan, far.as_mut(), arena, tensor)?),
        }
    }

    /// Sets the bytes of a stored tensor, wherever it lives. What `set` is given of a far one is not what it held.
    ///
    /// # Errors
    /// The work file cannot be written.
    ///
    /// # Panics
    /// The tensor lives in the model's file.
    pub fn change<R>(&mut self, tensor: &Tensor, set: impl FnOnce(&mut [u8]) -> R) -> Result<R, RunError> {
        let Runner { phases, active, far, gpu, arena, .. } = self;
        change(&phases[*active].plan, (far.as_mut(), gpu.as_mut()), arena, tensor, set)
    }

    /// Sets every byte of the near memory, wherever it is.
    ///
    /// # Errors
    /// The device failed.
    pub fn fill(&mut self, byte: u8) -> Result<(), RunError> {
        match &mut self.gpu {
            Some(gpu) => Ok(gpu.fill(&self.arena, byte)?),
            None => {
                self.arena_mut().bytes_mut().fill(byte);
                Ok(())
            }
        }
    }

    /// All bytes of the near memory, wherever it is.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&mut self) -> Result<&[u8], RunError> {
        if let Some(gpu) = &mut self.gpu {
            gpu.fetch_all(&mut self.arena)?;
        }
        Ok(self.arena.bytes())
    }

    /// The worker threads. Calls inside [`Par::enter`] go from thread to thread without being queued, and so without
    /// the queue's memory: a loop of many runs belongs in there.
    pub fn threads(&self) -> Arc<Par> {
        Arc::clone(&self.par)
    }

    /// The active phase.
    pub fn phase(&self) -> usize {
        self.active
    }

    /// The plans of all phases.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> + Clone {
        self.phases.iter().map(|p| &p.plan)
    }

    /// The active plan.
    pub fn plan(&self) -> &Plan {
        &self.phases[self.active].plan
    }

    /// The host's memory: all there is where the CPU runs the kernels.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The memory, to be written: copies of what is far are not taken for granted afterwards.
    pub fn arena_mut(&mut self) -> &mut Arena {
        if let Some(far) = &mut self.far {
            far.forget();
        }
        &mut self.arena
    }

    /// Index of the entry of this name.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.plan().entries.iter().position(|e| e.name == name)
    }

    /// An input of an entry, to be filled before a run; empty when the entry has none of this name.
    pub fn input<T: Pod>(&mut self, entry: usize, name: &str) -> &mut [T] {
        match self.phases[self.active].plan.entries[entry].input(name) {
            Some(t) => bytemuck::cast_slice_mut(self.arena.tensor_mut(t)),
            None => &mut [],
        }
    }

    /// An input of one of the micro-batches that an entry does in one run, counted from 0.
    pub fn input_of<T: Pod>(&mut self, (entry, micro): (usize, usize), name: &str) -> &mut [T] {
        match of_micro_batch(&self.phases[self.active].plan.entries[entry].inputs, micro, name) {
            Some(t) => bytemuck::cast_slice_mut(self.arena.tensor_mut(t)),
            None => &mut [],
        }
    }

    /// A result of one of the micro-batches that an entry does in one run, counted from 0.
    pub fn result_of<T: Pod>(&self, (entry, micro): (usize, usize), name: &str) -> &[T] {
        match of_micro_batch(&self.plan().entries[entry].results, micro, name) {
            Some(t) => bytemuck::cast_slice(self.arena.tensor(t)),
            None => &[],
        }
    }

    /// A result of an entry, valid after its run; empty when the entry has none of this name.
    pub fn result<T: Pod>(&self, entry: usize, name: &str) -> &[T] {
        match self.plan().entries[entry].result(name) {
            Some(t) => bytemuck::cast_slice(self.arena.tensor(t)),
            None => &[],
        }
    }

    /// The stored tensor of this name with its bytes, if it lives in the arena; [`Runner::fetch`] finds any other.
    pub fn stored(&self, name: &str) -> Option<(&Tensor, &[u8])> {
        if self.gpu.is_some() {
            return None;
        }
        let stored = self.plan().find(name).filter(|s| !self.plan().is_far(&s.tensor))?;
        Some((&stored.tensor, self.arena.tensor(&stored.tensor)))
    }

    /// How long steps waited for copies, how long copies moved, and their bytes; nothing without a far memory.
    pub fn moved(&self) -> Option<(Duration, Duration, u64)> {
        self.far.as_ref().map(Far::times)
    }

    /// Where the time of a simulated machine went until now; what happens between entries takes none.
    pub fn simulated(&self) -> Option<Report> {
        self.sim.as_ref().map(Sim::report)
    }

    /// Runs an entry.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn run(&mut self, entry: usize) -> Result<(), RunError> {
        self.run_steps(entry, 0..usize::MAX)
    }

    /// Runs some steps of an entry: what is left of it must be run before another one.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn run_steps(&mut self, entry: usize, steps: Range<usize>) -> Result<(), RunError> {
        let Runner { phases, active, sim, far, gpu, arena, par, .. } = self;
        let Phase { plan, code, .. } = &mut phases[*active];
        let (at, count) = ((*active, entry), plan.entries[entry].steps.len());
        if let Some(gpu) = gpu {
            return match far {
                None => gpu.run(plan, at, steps, arena),
                Some(far) => {
                    let mut near = gpu.near(plan, at);
                    far.enter(at, arena, &mut near)?;
                    let result = far.run(steps, count, arena, &mut near);
                    far.leave(result)
                }
            };
        }
        let code = code.as_mut().expect("without a GPU the CPU runs the kernels");
        let sim = sim.as_ref();
        match far {
            None if sim.is_none() => Ok(par.enter(|| code.run(plan, entry, steps, arena, par))?),
            None => {
                let mut steps = steps.start..steps.end.min(code.len(entry));
                par.enter(|| steps.try_for_each(|i| sim::launch(sim, (plan, code), (entry, i), arena, par)))
            }
            Some(far) => {
                let mut near = Here { plan, code, entry, par, sim };
                far.enter(at, arena, &mut near)?;
                let result = par.enter(|| far.run(steps, count, arena, &mut near));
                far.leave(result)
            }
        }
    }

    /// Steps with the nanoseconds spent in them and how often they ran, where that is counted.
    pub fn times(&self) -> impl Iterator<Item = (&Step, u64, u64)> {
        let Phase { plan, code, .. } = &self.phases[self.active];
        let of_gpu = self.gpu.iter().flat_map(move |gpu| {
            plan.entries.iter().enumerate().flat_map(move |(e, entry)| {
                let times = gpu.times((self.active, e)).unwrap_or(&[]);
                entry.steps.iter().zip(times).map(|(step, &(ns, runs))| (step, ns, runs))
            })
        });
        code.iter().flat_map(|code| code.times(plan)).chain(of_gpu)
    }
}

/// Sets the bytes of a stored tensor, wherever it lives.
fn change<R>(
    plan: &Plan,
    (far, gpu): (Option<&mut Far>, Option<&mut Gpu>),
    arena: &mut Arena,
    tensor: &Tensor,
    set: impl FnOnce(&mut [u8]) -> R,
) -> Result<R, RunError> {
    match gpu {
        Some(gpu) if !plan.is_far(tensor) => Ok(gpu.change(arena, tensor, set)?),
        _ => Ok(far::change(plan, far, arena, tensor, set)?),
    }
}

/// The arena as the near memory, and the CPU's kernels.
struct Here<'a> {
    plan: &'a Plan,
    code: &'a mut Code,
    entry: usize,
    par: &'a Par,
    sim: Option<&'a Sim>,
}

impl Near for Here<'_> {
    fn came(&mut self, _: &mut Arena, _: (u64, u64)) -> Result<(), RunError> {
        Ok(())
    }

    fn going(&mut self, _: &mut Arena, _: (u64, u64)) -> Result<(), RunError> {
        Ok(())
    }

    fn step(&mut self, i: usize, arena: &mut Arena) -> Result<(), RunError> {
        sim::launch(self.sim, (self.plan, self.code), (self.entry, i), arena, self.par)
    }
}

/// Opens the device that was asked for, where it is not the CPU.
fn open_gpu(phases: &[Phase], options: &RunOptions) -> Result<Option<Gpu>, RunError> {
    match options.device {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Cuda => {
            let driver = options.driver.unwrap_or(crate::gpu::cuda::open_default)()?;
            let plans: Vec<&Plan> = phases.iter().map(|p| &p.plan).collect();
            let device = crate::gpu::cuda::CudaDevice::new(driver, &plans, options.count_times, options.tf32)?;
            Ok(Some(Gpu::new(Box::new(device))))
        }
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu => {
            let plans: Vec<&Plan> = phases.iter().map(|p| &p.plan).collect();
            let adapter = crate::gpu::wgpu::default_adapter()?;
            let device = crate::gpu::wgpu::WgpuDevice::new(adapter, &plans, options)?;
            Ok(Some(Gpu::new(Box::new(device))))
        }
        #[cfg(not(feature = "wgpu"))]
        DeviceChoice::Wgpu => {
            let _ = phases;
            Err(GpuError::not_built("wgpu").into())
        }
    }
}

/// Takes what a run takes of a simulated machine's near memory.
fn reserve(sim: &Sim, plans: &[Plan], bytes: u64, threads: usize) -> Result<(), RunError> {
    if let Some(why) = plans.iter().find_map(|plan| sim.lacks(plan)) {
        return Err(RunError::System { what: "cannot reserve the plan's memories", why });
    }
    sim.allocate("the arena", bytes)?;
    Ok(sim.allocate("stacks of threads", (threads * STACK_BYTES) as u64)?)
}

fn of_micro_batch<'a>(named: &'a [Named], micro: usize, name: &str) -> Option<&'a Tensor> {
    named.iter().find(|n| n.micro_batch() == (micro as u32, name)).map(|n| &n.tensor)
}
