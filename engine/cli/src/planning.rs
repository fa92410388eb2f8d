//! From a model and settings to a plan that fits the budget.

use crate::error::CommandError;
use crate::model::{Format, Model};
use crate::streaming::{self, Asked, Streamed, Streaming};
use std::ops::Range;
use tinyforge::cpu::CpuKernels;
use tinyforge::gpu::GpuKernels;
use tinyforge::runner::{DeviceChoice, RunOptions};
use tinyforge_compiler::compile::{self, CompileError, Compiled, Embeddings, Entry, Recompute, Request, Role};
use tinyforge_compiler::import::decoder::{COMPUTE_BF16, COMPUTE_F32, Mode};
use tinyforge_compiler::import::weight_map::Binding;
use tinyforge_compiler::machine::Machine;
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::passes::update::{ClipBy, Optimizer};
use tinyforge_compiler::scheme::{Scheme, SchemeKind};
use tinyforge_compiler::target::Target;
use tinyforge_plan::{DType, Fixed, Kernels};

/// A float storage type that a flag names.
///
/// # Errors
/// It is none.
pub fn storage(flag: &str, name: &str) -> Result<DType, CommandError> {
    match DType::from_name(name) {
        Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Ok(dtype),
        _ => Err(CommandError::request(format!("{flag} {name}: f32, f16 or bf16"))),
    }
}

/// What plans for a device are made for.
pub fn target(device: DeviceChoice) -> Target {
    match device {
        DeviceChoice::Cpu => Target::CPU,
        DeviceChoice::Wgpu => Target::WGPU,
        DeviceChoice::Cuda => Target::CUDA,
    }
}

/// What a plan is asked to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is trained.
    pub scheme: Scheme,
    /// Active group of a `cycle`, counted from the top.
    pub group: u32,
    /// Whether the states of all groups are kept.
    pub keep_states: bool,
    /// Packed rows a step.
    pub batch: u32,
    /// Packed rows a micro-batch; `None` takes as many as fit.
    pub micro_batch: Option<u32>,
    /// Tokens a row.
    pub seq: u32,
    /// Tokens of the key/value cache, for entries that generate.
    pub context: u32,
    /// Whether a training plan can also continue texts.
    pub sample: bool,
    /// Storage and arithmetic of matrices: f32 or bf16.
    pub dtype: DType,
    /// Whether a library may round the factors of products of f32 to TF32.
    pub tf32: bool,
    /// The update rule.
    pub optimizer: Optimizer,
    /// How much is recomputed.
    pub recompute: Recompute,
    /// What streams from disk.
    pub window: Streaming,
    /// Where large embeddings and heads live; `None` leaves it to the budget.
    pub embeddings: Option<Embeddings>,
    /// Whether activations go to the disk between forward and backward; `None` leaves it to the budget.
    pub spill: Option<bool>,
    /// Whether gradients larger than a block are made by panels of rows; `None` leaves it to the budget.
    pub panels: Option<bool>,
    /// How clipping knows the norm; `None` leaves it to the budget.
    pub clip_by: Option<ClipBy>,
    /// The budget for arena and fixed parts.
    pub memory: Option<u64>,
    /// The most of the host's memory that holds what streams to a device with memory of its own; files hold the rest.
    pub host_memory: u64,
    /// Whether the host updates what streams; `None` leaves it to what is predicted to be faster.
    pub host_optimizer: Option<bool>,
    /// Worker threads.
    pub threads: u32,
    /// The machine that the plan is made for.
    pub target: Target,
    /// What runs the kernels.
    pub device: DeviceChoice,
    /// What its kernels can do, where it is not the CPU.
    pub gpu: Option<GpuKernels>,
    /// Its rates, where they are known: what fits is then chosen by what it costs.
    pub machine: Option<Machine>,
}

impl Settings {
    /// How plans are run: on their device, with products as they were asked for.
    pub fn run_options(&self) -> RunOptions {
        RunOptions { device: self.device, tf32: self.tf32, ..RunOptions::default() }
    }
}

/// Entries of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Training and evaluation on packed rows.
    Train,
    /// Evaluation alone.
    Eval,
    /// Continuing texts: `prefill` and `decode`.
    Generate,
    /// Logits of packed rows.
    Logits,
}

/// Tokens that a prefill takes at a time.
pub const PREFILL_TOKENS: u32 = 64;

/// Rows of the micro-batches to try, largest first: the divisors of the batch. Only training can do with fewer rows.
fn micro_batches(settings: &Settings, wanted: Wanted) -> Vec<u32> {
    match settings.micro_batch {
        Some(rows) => vec![rows.clamp(1, settings.batch)],
        None if wanted != Wanted::Train => vec![settings.batch],
        None => (1..=settings.batch).rev().filter(|r| settings.batch.is_multiple_of(*r)).collect(),
    }
}

/// A plan with the number of micro-batches a step that it was made for.
pub struct Planned {
    /// The plan and the compiler's choices.
    pub compiled: Compiled,
    /// Packed rows a micro-batch.
    pub micro_rows: u32,
    /// Blocks that the near memory holds at a time; `None` where it holds all.
    pub window: Option<Window>,
    /// Windows that fit, with the seconds a step that they were predicted to take; empty where there was no choice.
    pub considered: Vec<(Option<Window>, f64)>,
    /// The same of updates by the device and by the host, where either would do.
    pub optimizers: Option<[f64; 2]>,
}

/// How many plans take turns.
pub fn phases(model: &Model, settings: &Settings, wanted: Wanted) -> u32 {
    match (&settings.scheme.kind, wanted) {
        (SchemeKind::Cycle(n), Wanted::Train) => (model.config.layers as u32).div_ceil((*n).max(1)),
        _ => 1,
    }
}

/// Compiles a plan that fits; `fixed` are the parts of the process outside the arena.
///
/// # Errors
/// See [`CompileError`]; where the budget cannot be met, for the micro-batch that needs least.
pub fn plan(model: &Model, settings: &Settings, wanted: Wanted, fixed: &[Fixed]) -> Result<Planned, CompileError> {
    let groups = settings.group..settings.group + 1;
    Ok(plan_groups(model, settings, wanted, fixed, groups)?.remove(0))
}

/// Compiles a plan for each of some groups of a `cycle`, all with the same micro-batches, the largest that fit, and the
/// same window and embeddings in one place, since they take turns over one arena.
///
/// # Errors
/// As [`plan`].
pub fn plan_groups(
    model: &Model,
    settings: &Settings,
    wanted: Wanted,
    fixed: &[Fixed],
    groups: Range<u32>,
) -> Result<Vec<Planned>, CompileError> {
    largest(&micro_batches(settings, wanted), |micro_rows| {
        let (mut window, mut embeddings) = (settings.window, settings.embeddings);
        let of_group = |group| -> Result<Planned, CompileError> {
            let settings = Settings { group, window, embeddings, ..settings.clone() };
            let asked = Asked {
                model,
                settings: &settings,
                wanted,
                fixed,
                rows: micro_rows,
                phases: phases(model, &settings, wanted).into(),
            };
            let found = streaming::plan(&asked)?;
            window = found.window.map_or(Streaming::Never, Streaming::Window);
            embeddings = Some(found.compiled.choice.embeddings);
            let Streamed { compiled, window, considered, optimizers } = found;
            Ok(Planned { compiled, micro_rows, window, considered, optimizers })
        };
        // The lowest group's backward is the longest: what does not fit shows there first.
        let mut plans = groups.clone().rev().map(of_group).collect::<Result<Vec<Planned>, CompileError>>()?;
        plans.reverse();
        Ok(plans)
    })
}

/// What `attempt` makes of the first of `sizes`, largest first, that fits. Few are tried: the whole batch, whose
/// gradients need no place to add up in; the smallest, since what does not fit then never does; and then by halving.
fn largest<T>(sizes: &[u32], attempt: impl Fn(u32) -> Result<T, CompileError>) -> Result<T, CompileError> {
    let (&first, rest) = sizes.split_first().expect("a batch has micro-batches");
    let whole = match attempt(first) {
        Err(error) if needs(&error).is_some() && !rest.is_empty() => error,
        result => return result,
    };
    let mut best = match attempt(rest[rest.len() - 1]) {
        Err(error) if needs(&error) >= needs(&whole) => return Err(whole),
        result => result?,
    };
    // Invariant: `rest[end]` fits and is `best`; nothing before `rest[start]` does.
    let (mut start, mut end) = (0, rest.len() - 1);
    while start < end {
        let middle = start + (end - start) / 2;
        match attempt(rest[middle]) {
            Ok(found) => (end, best) = (middle, found),
            Err(error) if needs(&error).is_some() => start = middle + 1,
            Err(error) => return Err(error),
        }
    }
    Ok(best)
}

/// The arena that a refusal says is needed.
pub(crate) fn needs(error: &CompileError) -> Option<u64> {
    if let CompileError::Budget { need, .. } = error { Some(*need) } else { None }
}

/// The least that weights take in any plan with this storage: what is trained takes no less than what is frozen.
pub fn weight_bytes_min(model: &Model, settings: &Settings) -> u64 {
    let bytes = |binding: &Binding| {
        let elem_bytes = if settings.dtype == DType::BF16 && binding.shape.len() > 1 { 2 } else { 4 };
        let elems: u64 = binding.shape.iter().product();
        binding.tensor.bytes.min(elem_bytes * elems)
    };
    model.weights.iter().map(bytes).sum()
}

fn entries(model: &Model, settings: &Settings, wanted: Wanted, rows: u32) -> Vec<Entry> {
    let compute = if settings.dtype == DType::BF16 { COMPUTE_BF16 } else { COMPUTE_F32 };
    let entry = |name: &str, mode, role| Entry { name: name.to_string(), graph: model.graph(mode, compute), role };
    let (seq, context) = (settings.seq, settings.context);
    let cached = || {
        let tokens = PREFILL_TOKENS.min(context);
        [("prefill", tokens), ("decode", 1)]
            .map(|(name, tokens)| entry(name, Mode::Cached { tokens, context }, Role::Forward))
    };
    match wanted {
        Wanted::Train => {
            let micro_batches = settings.batch.div_ceil(rows);
            let mut entries = vec![
                entry("train", Mode::Loss { rows, seq }, Role::Train { micro_batches }),
                entry("eval", Mode::Loss { rows, seq }, Role::Forward),
            ];
            if settings.sample {
                entries.extend(cached());
            }
            entries
        }
        Wanted::Eval => vec![entry("eval", Mode::Loss { rows, seq }, Role::Forward)],
        Wanted::Logits => vec![entry("logits", Mode::Logits { rows, seq }, Role::Forward)],
        Wanted::Generate => cached().into(),
    }
}

/// A plan with this window, in what the budget leaves beside the fixed parts.
pub(crate) fn compile_window(asked: &Asked, window: Option<Window>) -> Result<Compiled, CompileError> {
    let &Asked { model, settings, wanted, fixed, rows, .. } = asked;
    let fixed_bytes: u64 = fixed.iter().map(|f| f.bytes).sum();
    let name = match model.format {
        Format::HuggingFace => model.path.file_name(),
        Format::Gguf => model.path.file_stem(),
    };
    let name = name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let cpu = CpuKernels { threads: settings.threads };
    let frozen = (settings.dtype == DType::BF16).then_some(DType::BF16);
    let request = Request {
        name: format!("{name} {}", settings.scheme),
        entries: entries(model, settings, wanted, rows),
        scheme: settings.scheme.clone(),
        group: settings.group,
        keep_states: settings.keep_states,
        storage: Storage { trained: settings.dtype, frozen },
        optimizer: settings.optimizer.clone(),
        clip_by: settings.clip_by,
        recompute: settings.recompute,
        arena_bytes_max: settings.memory.map(|m| m.saturating_sub(fixed_bytes)),
        host_bytes_max: settings.host_memory,
        host_updates: settings.host_optimizer == Some(true),
        window,
        embeddings: settings.embeddings,
        spill: settings.spill,
        panels: settings.panels,
        target: settings.target,
        kernels: settings.gpu.as_ref().map_or(&cpu as &dyn Kernels, |gpu| gpu),
        source: &|name| model.source(name),
        files: model.file_names(),
        threads: settings.threads,
        dump: None,
    };
    let mut compiled = compile::compile(&request)?;
    compiled.plan.fixed = fixed.to_vec();
    Ok(compiled)
}
