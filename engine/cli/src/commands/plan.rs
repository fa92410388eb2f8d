//! `tinyforge plan`: what a run would take, before anything is allocated for it.

use super::Common;
use crate::error::CommandError;
use crate::host;
use crate::knobs::Knobs;
use crate::planning::{Planned, Settings, Wanted, storage};
use crate::profile::{self, Profile, Simulated};
use crate::report;
use crate::request;
use std::path::PathBuf;
use tinyforge_compiler::cost::StepCost;
use tinyforge_compiler::export::html;
use tinyforge_compiler::target::Target;

/// Prints what training would take
#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    /// A model: a Hugging Face directory, a GGUF file, or a run's configuration (.toml)
    pub model: PathBuf,
    #[command(flatten)]
    knobs: Knobs,
    /// key=value: sets one key of the configuration
    #[arg(long = "set")]
    set: Vec<String>,
    /// How a model stores its weights of which there is only config.json: f32, f16 or bf16 [what it declares, or bf16]
    #[arg(long)]
    stored: Option<String>,
    /// The machine to plan for: a file as in examples/targets, or a name that is built in [this one]
    #[arg(long)]
    target: Option<String>,
    /// Write the plan to this file
    #[arg(long)]
    emit: Option<PathBuf>,
    /// Write a page to this file that shows memory, blocks, transfers and compute over a step
    #[arg(long)]
    html: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Plans and prints.
///
/// # Errors
/// The request cannot be met.
pub fn run(args: &PlanArgs) -> Result<(), CommandError> {
    let (path, mut knobs) = request::configured(&args.model, &args.knobs, &args.set)?;
    // A machine that is described may have what this one has not.
    let is_described = args.target.is_some();
    let host_memory = knobs.host_memory.take_if(|_| is_described);
    let host_optimizer = knobs.host_optimizer.take_if(|_| is_described);
    let mut settings = knobs.settings()?;
    let profile = match &args.target {
        Some(target) => Some(profile::open(target)?),
        None => {
            let is_of_device = settings.gpu.is_none() || knobs.profile.is_some();
            profile::of_this_machine(knobs.profile.as_deref())?.filter(|_| is_of_device)
        }
    };
    settings.machine = profile.as_ref().map(|p| p.machine.clone());
    if let (Some(profile), Some(_)) = (&profile, &args.target) {
        settings.target = profile.machine.target();
        settings.memory = settings.memory.or(profile.machine.near_space().bytes);
        settings.host_memory = host::most_on(host_memory.as_deref(), &profile.machine)?;
        settings.host_optimizer = host::optimizer_on(host_optimizer, &profile.machine)?;
    }
    let stored = args.stored.as_deref().map(|name| storage("--stored", name)).transpose()?;
    let model = request::open_to_plan(&path, &knobs, stored)?;
    let tokenizer_bytes = model.tokenizer().map_or(0, |t| t.estimated_bytes() as u64);
    // A card's memory holds none of the process.
    let is_of_process = settings.target.near == Target::CPU.near || settings.gpu.is_some();
    let fixed = match is_of_process {
        true => request::fixed_parts(&model, &settings, tokenizer_bytes),
        false => Vec::new(),
    };
    let plans = request::plan_phases(&model, &settings, Wanted::Train, &fixed)?;
    let largest = plans.iter().max_by_key(|p| p.compiled.plan.arena_bytes()).expect("a run has a phase");
    print!("{}", report::plan(largest, settings.memory));
    let cost = speed(profile.as_ref(), &plans, &settings);
    // A machine that is not here has nothing but its figures to be run on.
    let simulated = match (&profile, &cost, &args.target) {
        (Some(profile), Some(cost), Some(_)) => {
            let it = profile::simulate(&profile.machine, &plans, settings.batch, cost.bound.seconds())?;
            print!("{}", it.words(&profile.machine.name, u64::from(settings.batch) * u64::from(settings.seq)));
            Some(it)
        }
        _ => None,
    };
    if plans.len() > 1 {
        println!("  {} phases take turns; the largest is shown", plans.len());
    }
    if let Some(out) = &args.emit {
        let bytes = tinyforge_plan::encode::encode(&largest.compiled.plan);
        tinyforge::files::write_atomic(out, |file| file.write_all(&bytes))?;
    }
    if let Some(out) = &args.html {
        let plan = &largest.compiled.plan;
        let near = plan.spaces.last().map_or("", |s| s.name.as_str());
        let limits: Vec<(&str, u64)> = settings.memory.iter().map(|&bytes| (near, bytes)).collect();
        let machine = profile.as_ref().map(|p| &p.machine);
        let page = html::export(&html::Request { plan, hash: None, limits: &limits, machine });
        tinyforge::files::write_atomic(out, |file| file.write_all(page.as_bytes()))?;
    }
    if args.common.json {
        println!("{}", object(largest, cost.as_ref(), simulated.as_ref()));
    }
    Ok(())
}

/// The plan and its times as one object.
fn object(largest: &Planned, cost: Option<&StepCost>, simulated: Option<&Simulated>) -> serde_json::Value {
    let (plan, choice) = (&largest.compiled.plan, &largest.compiled.choice);
    // Addresses of the near memory follow those of the far ones.
    let above = |bytes: u64| bytes - plan.arena_start().min(bytes);
    let entry = |e: &tinyforge_plan::Entry| {
        serde_json::json!({
            "name": e.name, "peak_bytes": above(e.peak.bytes), "lower_bound_bytes": above(e.peak.lower_bound_bytes),
            "steps": e.steps.len(), "flops": e.flops(),
        })
    };
    let entries: Vec<_> = plan.entries.iter().map(entry).collect();
    let fixed: Vec<_> = plan.fixed.iter().map(|f| serde_json::json!({ "name": f.name, "bytes": f.bytes })).collect();
    serde_json::json!({
        "total_bytes": plan.total_bytes(), "arena_bytes": plan.arena_bytes(), "fixed": fixed, "entries": entries,
        "micro_rows": largest.micro_rows, "recompute_step": choice.recompute_step,
        "recompute_steps": choice.recompute_steps, "bound_s": cost.map(|c| c.bound.seconds()),
        "bound_by": cost.map(|c| c.bound.resource().to_string()), "predicted_s": cost.map(|c| c.prediction_s),
        "simulated": simulated,
    })
}

/// Prints what a step would take on the profile's machine; a profile without rates says nothing.
fn speed(profile: Option<&Profile>, plans: &[Planned], settings: &Settings) -> Option<StepCost> {
    let profile = profile?;
    match profile::step_cost(&profile.machine, plans, settings.batch) {
        Ok(cost) => {
            let tokens = u64::from(settings.batch) * u64::from(settings.seq);
            print!("{}", profile::words(profile, &cost, tokens, settings.threads));
            Some(cost)
        }
        Err(why) => {
            println!("  no predicted time: {why}");
            None
        }
    }
}
