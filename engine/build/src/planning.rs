//! From an int8 network and settings to a plan that fits SRAM and flash.

use crate::error::BuildError;
use crate::settings::{Int8Settings, Rounding};
use crate::sizes::show;
use tinyforge::cpu::CpuKernels;
use tinyforge_compiler::compile::{self, CompileError, Compiled, Entry, Request, Role};
use tinyforge_compiler::import::int8::{self, Int8Model};
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::SchemeKind;
use tinyforge_plan::{DType, Fixed, Plan, Source};

/// Compiles the entries `train` and `infer` for one sample at a time. A step of several samples is as many
/// micro-batches of one, whatever the budget: sums of a weight's gradient run over a micro-batch's images, so another
/// size would round otherwise.
///
/// # Errors
/// The scheme does not suit the network, or SRAM or flash are too small: with numbers and what would fit.
pub fn plan(name: &str, model: &Int8Model, settings: &Int8Settings) -> Result<Compiled, BuildError> {
    let compiled = attempt(name, model, settings, Some(settings.memory.saturating_sub(settings.stack)));
    let mut compiled = compiled.map_err(|error| refuse(&error, settings))?;
    let plan = &mut compiled.plan;
    plan.fixed.push(Fixed { name: "stack".to_string(), bytes: settings.stack });
    let flash = flash_bytes(plan);
    if flash > settings.flash {
        return Err(BuildError::request(format!(
            "weights take {flash} bytes of flash, {} are there ({} over)",
            settings.flash,
            flash - settings.flash
        )));
    }
    Ok(compiled)
}

/// Bytes of flash beside the code: what stays there, and what the changed tensors start from.
pub fn flash_bytes(plan: &Plan) -> u64 {
    let fixed: u64 = plan.spaces.iter().filter(|s| !s.is_written).map(|s| s.bytes).sum();
    fixed + plan.stored_bytes(|s| s.changes)
}

fn attempt(
    name: &str,
    model: &Int8Model,
    settings: &Int8Settings,
    limit: Option<u64>,
) -> Result<Compiled, CompileError> {
    let graph = |entry| {
        let graph = model.graph(entry, 1);
        graph.map_err(|e| CompileError::NoKernel { entry: name.to_string(), why: e.to_string() })
    };
    let role = Role::Train { micro_batches: settings.batch };
    let entries = vec![
        Entry { name: "train".to_string(), graph: graph(int8::Entry::Train)?, role },
        Entry { name: "infer".to_string(), graph: graph(int8::Entry::Infer)?, role: Role::Forward },
    ];
    let rule = match settings.update {
        Rounding::Stochastic => "sgd",
        Rounding::Accumulate => "sgd-accumulate",
    };
    let optimizer = Optimizer { beta1: settings.momentum, ..Optimizer::plain(rule) };
    let source = |tensor: &str| match model.source(tensor, settings.is_scaled) {
        Some(Source::Table(factors)) => Source::Table(at_rate(model, settings, tensor, factors)),
        source => source.unwrap_or(Source::Zero),
    };
    compile::compile(&Request {
        scheme: settings.scheme.clone(),
        storage: Storage { trained: DType::I8, frozen: None },
        optimizer,
        arena_bytes_max: limit,
        host_bytes_max: 0,
        target: settings.target,
        source: &source,
        files: model.files.clone(),
        ..Request::plain(&format!("{name} {}", settings.scheme), entries, &CpuKernels { threads: 1 })
    })
}

/// A tensor's table of numbers: the factors of a weight's gradient times the rate that the scheme gives it.
fn at_rate(model: &Int8Model, settings: &Int8Settings, tensor: &str, factors: Vec<f32>) -> Vec<f32> {
    let (SchemeKind::Sparse(sparse), Some(weight)) = (&settings.scheme.kind, tensor.strip_suffix(".factor")) else {
        return factors;
    };
    let layer = model.convs().position(|conv| conv.weight_name() == weight);
    let chosen = layer.and_then(|layer| sparse.weights.iter().find(|w| w.means(weight, layer)));
    let rate = chosen.map_or(1.0, |w| w.rate);
    factors.iter().map(|&factor| (f64::from(factor) * rate) as f32).collect()
}

/// What to say of a plan that does not fit.
fn refuse(error: &CompileError, settings: &Int8Settings) -> BuildError {
    let CompileError::Budget { need, entry, peak, at, stored, .. } = error else {
        return BuildError::request(error);
    };
    let holders: Vec<String> = peak.holders.iter().take(4).map(|h| format!("{} {}", h.name, show(h.bytes))).collect();
    BuildError::request(format!(
        "plan needs {} of SRAM with {} of stack, the budget is {} ({} over)\n  peak at {at} of {entry}: {}; stored tensors \
         {}\n  help: a smaller --scheme, or `--memory {}KiB`",
        show(need + settings.stack),
        show(settings.stack),
        show(settings.memory),
        show(need + settings.stack - settings.memory),
        holders.join(", "),
        show(*stored),
        (need + settings.stack).div_ceil(1024),
    ))
}
