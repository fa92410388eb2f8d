//! What `plan`, `train` and `resume` have in common: a model, its tokenizer, the fixed parts, and a plan that fits.

use crate::error::CommandError;
use crate::fixed::{self, Sizes};
use crate::knobs::Knobs;
use crate::model::Model;
use crate::planning::{self, Planned, Settings, Wanted};
use crate::report;
use crate::sizes::show;
use std::path::Path;
use tinyforge_compiler::compile::CompileError;
use tinyforge_compiler::scheme::{Scheme, SchemeKind};
use tinyforge_plan::Fixed;

/// The fixed parts of a process that trains or runs this model.
pub fn fixed_parts(model: &Model, settings: &Settings, tokenizer_bytes: u64) -> Vec<Fixed> {
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
    let groups = match (&settings.scheme.kind, wanted) {
        (SchemeKind::Cycle(n), Wanted::Train) => (model.config.layers as u32).div_ceil((*n).max(1)),
        _ => 1,
    };
    let mut refused = None;
    // All phases have the same micro-batches: the largest with which each of them fits.
    let sizes: Vec<Option<u32>> = match groups {
        1 => vec![settings.micro_batch],
        _ => planning::micro_batches(settings).into_iter().map(Some).collect(),
    };
    for micro_batch in sizes {
        let of_group = |group| Settings { group, micro_batch, ..settings.clone() };
        // The lowest group's backward is the longest: what does not fit shows there first.
        let plan =
            |group| planning::plan(model, &of_group(group), wanted, fixed).map_err(|e| Box::new((e, of_group(group))));
        match (0..groups).rev().map(plan).collect::<Result<Vec<Planned>, _>>() {
            Ok(mut plans) => {
                plans.reverse();
                return Ok(plans);
            }
            Err(error) if matches!(error.0, CompileError::Budget { .. }) => refused = Some(error),
            Err(error) => return Err(refuse(model, &error.1, wanted, fixed, &error.0)),
        }
    }
    let error = refused.expect("a batch has micro-batches");
    Err(refuse(model, &error.1, wanted, fixed, &error.0))
}

fn refuse(model: &Model, settings: &Settings, wanted: Wanted, fixed: &[Fixed], error: &CompileError) -> CommandError {
    let fixed_bytes = fixed.iter().map(|f| f.bytes).sum();
    let hints = match error {
        CompileError::Budget { .. } => hints(model, settings, wanted, fixed),
        _ => Vec::new(),
    };
    CommandError::request(report::refusal(error, fixed_bytes, &hints))
}

/// The nearest settings that fit, each tried by planning.
fn hints(model: &Model, settings: &Settings, wanted: Wanted, fixed: &[Fixed]) -> Vec<String> {
    let mut hints = Vec::new();
    let mut attempt = |what: &str, changed: Settings| {
        if let Ok(planned) = planning::plan(model, &changed, wanted, fixed) {
            hints.push(format!("`{what}` fits in {}", show(planned.compiled.plan.total_bytes())));
            return true;
        }
        false
    };
    for divisor in [2, 4, 8] {
        let seq = settings.seq / divisor;
        let flag = if wanted == Wanted::Generate { "--context" } else { "--seq" };
        if seq >= 16 && attempt(&format!("{flag} {seq}"), Settings { seq, context: seq, ..settings.clone() }) {
            break;
        }
    }
    if wanted == Wanted::Train {
        for name in ["last:4", "lora", "last:1", "bias"] {
            let Ok(scheme) = Scheme::parse(name) else { continue };
            if scheme != settings.scheme
                && attempt(&format!("--scheme {name}"), Settings { scheme, ..settings.clone() })
            {
                break;
            }
        }
    }
    // What the smallest budget for these settings is: everything recomputed, one row at a time.
    let least = Settings {
        memory: None,
        micro_batch: Some(1),
        recompute: tinyforge_compiler::compile::Recompute::All,
        ..settings.clone()
    };
    if let Ok(planned) = planning::plan(model, &least, wanted, fixed) {
        hints.push(format!("these settings need `--memory {}`", mib_up(planned.compiled.plan.total_bytes())));
    }
    hints
}

fn mib_up(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// Opens a model named on the command line.
///
/// # Errors
/// It is not there, or is none.
pub fn open(path: &Path, knobs: &Knobs) -> Result<Model, CommandError> {
    let is_new = knobs.from_scratch.unwrap_or(false);
    Ok(if is_new { Model::new(path)? } else { Model::open(path)? })
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
