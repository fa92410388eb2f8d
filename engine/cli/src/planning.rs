//! From a model and settings to a plan that fits the budget.

use crate::model::Model;
use tinyforge::cpu::CpuKernels;
use tinyforge_compiler::compile::{self, CompileError, Compiled, Entry, Recompute, Request, Role};
use tinyforge_compiler::import::decoder::{COMPUTE_BF16, COMPUTE_F32, Mode};
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::update::{ClipBy, Optimizer};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::{DType, Fixed};

/// What a plan is asked to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is trained.
    pub scheme: Scheme,
    /// Active group of a `cycle`, counted from the top.
    pub group: u32,
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
    /// The update rule.
    pub optimizer: Optimizer,
    /// How much is recomputed.
    pub recompute: Recompute,
    /// How clipping knows the norm; `None` leaves it to the budget.
    pub clip_by: Option<ClipBy>,
    /// The budget for arena and fixed parts.
    pub memory: Option<u64>,
    /// Worker threads.
    pub threads: u32,
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

/// Rows of the micro-batches to try, largest first: the divisors of the batch.
pub(crate) fn micro_batches(settings: &Settings) -> Vec<u32> {
    match settings.micro_batch {
        Some(rows) => vec![rows.clamp(1, settings.batch)],
        None => (1..=settings.batch).rev().filter(|r| settings.batch.is_multiple_of(*r)).collect(),
    }
}

/// A plan with the number of micro-batches a step that it was made for.
pub struct Planned {
    /// The plan and the compiler's choices.
    pub compiled: Compiled,
    /// Packed rows a micro-batch.
    pub micro_rows: u32,
}

/// Compiles a plan that fits; `fixed` are the parts of the process outside the arena.
///
/// # Errors
/// See [`CompileError`]; where the budget cannot be met, for the smallest micro-batch.
pub fn plan(model: &Model, settings: &Settings, wanted: Wanted, fixed: &[Fixed]) -> Result<Planned, CompileError> {
    let mut last = None;
    for micro_rows in micro_batches(settings) {
        match plan_rows(model, settings, wanted, fixed, micro_rows) {
            Ok(compiled) => return Ok(Planned { compiled, micro_rows }),
            Err(error @ CompileError::Budget { .. }) if wanted == Wanted::Train => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.expect("at least one micro-batch was tried"))
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

fn plan_rows(
    model: &Model,
    settings: &Settings,
    wanted: Wanted,
    fixed: &[Fixed],
    rows: u32,
) -> Result<Compiled, CompileError> {
    let fixed_bytes: u64 = fixed.iter().map(|f| f.bytes).sum();
    let name = model.path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let frozen = (settings.dtype == DType::BF16).then_some(DType::BF16);
    let request = Request {
        name: format!("{name} {}", settings.scheme),
        entries: entries(model, settings, wanted, rows),
        scheme: settings.scheme.clone(),
        group: settings.group,
        storage: Storage { trained: settings.dtype, frozen },
        optimizer: settings.optimizer.clone(),
        clip_by: settings.clip_by,
        recompute: settings.recompute,
        arena_bytes_max: settings.memory.map(|m| m.saturating_sub(fixed_bytes)),
        target: tinyforge_compiler::target::Target::CPU,
        kernels: &CpuKernels { threads: settings.threads },
        source: &|name| model.source(name),
        files: model.file_names(),
        threads: settings.threads,
        dump: None,
    };
    let mut compiled = compile::compile(&request)?;
    compiled.plan.fixed = fixed.to_vec();
    Ok(compiled)
}
