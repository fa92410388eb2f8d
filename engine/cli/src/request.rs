//! What `plan`, `train` and `resume` have in common: a model, its tokenizer, the fixed parts, and a plan that fits.

use crate::error::CommandError;
use crate::fixed::{self, GpuSizes, Sizes};
use crate::knobs::Knobs;
use crate::model::Model;
use crate::planning::{self, Planned, Settings, Wanted};
use crate::report;
use crate::sizes::show;
use crate::streaming::{Streaming, frugal, least_parts, least_window};
use std::ops::Range;
use std::path::Path;
use tinyforge::runner::DeviceChoice;
use tinyforge_compiler::compile::CompileError;
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::{DType, Fixed};

/// The fixed parts beside the arena of a process that trains or runs this model: of the process's memory, or of a
/// card's, which holds none of the process.
pub fn fixed_parts(model: &Model, settings: &Settings, tokenizer_bytes: u64) -> Vec<Fixed> {
    if settings.device == DeviceChoice::Cuda {
        return fixed::cuda_parts();
    }
    if settings.gpu.is_some() {
        return fixed::gpu_parts(&GpuSizes {
            seq: settings.seq,
            batch: settings.batch,
            layers: model.config.layers as u32,
            vocab: model.config.vocab as u32,
        });
    }
    fixed::parts(&Sizes {
        threads: settings.threads,
        tokenizer_bytes,
        seq: settings.seq,
        batch: settings.batch,
        layers: model.config.layers as u32,
    })
}

/// Plans of all phases: one, or one for every group of a `cycle`.
///
/// # Errors
/// The scheme does not suit the model, or the budget cannot be met: with numbers, and what would fit.
pub fn plan_phases(
    model: &Model,
    settings: &Settings,
    wanted: Wanted,
    fixed: &[Fixed],
) -> Result<Vec<Planned>, CommandError> {
    let longest = model.config.max_positions as u32;
    if settings.seq > longest {
        return Err(CommandError::request(format!(
            "--seq {} is longer than the model's context, {longest}",
            settings.seq
        )));
    }
    planning::plan_groups(model, settings, wanted, fixed, 0..planning::phases(model, settings, wanted)).map_err(
        |error| {
            let fixed_bytes = fixed.iter().map(|f| f.bytes).sum();
            let hints = hints(model, settings, wanted, fixed, &error);
            CommandError::request(report::refusal(&error, fixed_bytes, settings.memory.unwrap_or(u64::MAX), &hints))
        },
    )
}

/// The nearest settings that fit, for a budget that was refused. Each was planned; what a sum of bytes rules out is
/// not tried, and what is tried is planned once, in the way that takes least.
fn hints(model: &Model, settings: &Settings, wanted: Wanted, fixed: &[Fixed], refused: &CompileError) -> Vec<String> {
    let &CompileError::Budget { need, limit, stored, .. } = refused else { return Vec::new() };
    let least_of = |settings: Settings| Settings {
        micro_batch: settings.micro_batch.or((wanted == Wanted::Train).then_some(1)),
        spill: settings.spill.or(Some(true)),
        ..frugal(&settings)
    };
    let blocks = least_window(model, settings);
    let parts = if blocks == 1 { least_parts(settings.window) } else { 1 };
    let least = Streaming::Window(Window { blocks, prefetch: 1, parts });
    // A model that does not stream is small enough to be planned in both ways.
    let ways: &[Streaming] = match settings.window {
        Streaming::Auto { .. } if blocks == 1 => &[least],
        Streaming::Auto { .. } => &[least, Streaming::Never],
        _ => std::slice::from_ref(&settings.window),
    };
    let total = |settings: Settings, groups: Range<u32>| {
        let with = |&window: &Streaming| {
            let settings = Settings { window, ..least_of(settings.clone()) };
            let plans = planning::plan_groups(model, &settings, wanted, fixed, groups.clone()).ok()?;
            plans.iter().map(|p| p.compiled.plan.total_bytes()).max()
        };
        ways.iter().filter_map(with).min()
    };
    let attempt = |what: String, changed: Settings| {
        let groups = 0..planning::phases(model, &changed, wanted);
        let bytes =
            total(changed.clone(), groups.clone()).filter(|_| is_planned(model, &changed, wanted, (fixed, groups)));
        bytes.map(|bytes| format!("`{what}` fits in {}", show(bytes)))
    };
    let mut hints = Vec::new();
    // At best, what is not stored shrinks with the rows.
    let could_fit = |seq: &u32| {
        let share = f64::from(*seq) / f64::from(settings.seq);
        *seq >= SEQ_MIN && stored as f64 + (need - stored) as f64 * share <= limit as f64
    };
    let flag = if wanted == Wanted::Generate { "--context" } else { "--seq" };
    let lengths: Vec<u32> = [2, 4, 8].map(|divisor| settings.seq / divisor).into_iter().filter(could_fit).collect();
    let shorter = |seq| attempt(format!("{flag} {seq}"), Settings { seq, context: seq, ..settings.clone() });
    // Where the shortest does not fit none does.
    if let Some((&shortest, longer)) = lengths.split_last() {
        hints.extend(shorter(shortest).map(|hint| longer.iter().find_map(|&seq| shorter(seq)).unwrap_or(hint)));
    }
    if wanted == Wanted::Train && planning::weight_bytes_min(model, settings) < limit {
        let others = SMALLER_SCHEMES.iter().filter_map(|name| Some((name, Scheme::parse(name).ok()?)));
        let mut others = others.filter(|(_, scheme)| *scheme != settings.scheme);
        let other = |(name, scheme)| attempt(format!("--scheme {name}"), Settings { scheme, ..settings.clone() });
        hints.extend(others.find_map(other));
    }
    let phases = planning::phases(model, settings, wanted);
    // One micro-batch needs no sums of gradients, many need fewer activations. Backward is longest for the lowest
    // group, which may have fewer blocks than the one above it.
    let of = |micro_batch| Settings { memory: None, micro_batch, ..settings.clone() };
    let is_free = wanted == Wanted::Train && settings.micro_batch.is_none() && settings.batch > 1;
    let whole = is_free.then(|| of(Some(settings.batch)));
    let ways = std::iter::once(of(settings.micro_batch)).chain(whole);
    let least = ways.filter_map(|settings| total(settings, phases.saturating_sub(2)..phases)).min();
    let is_enough = |mib: u64| {
        let settings = Settings { memory: Some(mib << 20), ..settings.clone() };
        is_planned(model, &settings, wanted, (fixed, phases.saturating_sub(2)..phases))
    };
    let least = least.map(|bytes| bytes.div_ceil(1 << 20));
    let least = least.and_then(|least| (least..least + MORE_MIB).find(|&mib| is_enough(mib)));
    hints.extend(least.map(|mib| format!("these settings need `--memory {mib}MiB`")));
    hints
}

/// Rows that are no use when they are shorter.
const SEQ_MIN: u32 = 16;

/// Schemes to propose, those that change most first.
const SMALLER_SCHEMES: [&str; 4] = ["last:4", "lora", "last:1", "bias"];

/// Whether these groups of a `cycle` can be planned together: they keep to the window that the lowest one chose, which
/// need not be the one that takes least of all. One plan alone takes what it needs.
fn is_planned(model: &Model, settings: &Settings, wanted: Wanted, (fixed, groups): (&[Fixed], Range<u32>)) -> bool {
    let settings = Settings { recompute: settings.recompute.least(), ..settings.clone() };
    let has_groups = planning::phases(model, &settings, wanted) > 1;
    !has_groups || planning::plan_groups(model, &settings, wanted, fixed, groups).is_ok()
}

/// By how many MiB what groups need together may be above what each needs.
const MORE_MIB: u64 = 16;

/// Opens a model named on the command line.
///
/// # Errors
/// It is not there, or is none.
pub fn open(path: &Path, knobs: &Knobs) -> Result<Model, CommandError> {
    let is_new = knobs.from_scratch.unwrap_or(false);
    Ok(if is_new { Model::new(path)? } else { Model::open(path)? })
}

/// Opens a model that is only planned: of a Hugging Face directory `config.json` is enough, `stored` says then how its
/// tensors are stored.
///
/// # Errors
/// As [`open`].
pub fn open_to_plan(path: &Path, knobs: &Knobs, stored: Option<DType>) -> Result<Model, CommandError> {
    if knobs.from_scratch.unwrap_or(false) {
        return open(path, knobs);
    }
    Ok(Model::open_to_plan(path, stored)?)
}

/// A configuration file's settings, or the flags' alone.
///
/// # Errors
/// The file cannot be read.
pub fn configured(first: &Path, flags: &Knobs, set: &[String]) -> Result<(std::path::PathBuf, Knobs), CommandError> {
    let (model, mut knobs) = match first.extension().is_some_and(|e| e == "toml") {
        true => {
            let (model, knobs) = Knobs::read(first)?;
            let model =
                model.ok_or_else(|| CommandError::request(format!("{}: `model` is missing", first.display())))?;
            (model, knobs.overlaid(flags)?)
        }
        false => (first.to_path_buf(), flags.clone()),
    };
    for pair in set {
        knobs.set(pair)?;
    }
    Ok((model, knobs))
}
