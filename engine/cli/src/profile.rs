//! Descriptions of machines in files: the one that `bench` wrote for this machine, or one that was named.

use crate::error::CommandError;
use crate::planning::Planned;
use std::path::{Path, PathBuf};
use tinyforge::files::{read_if_there, read_whole};
use tinyforge_compiler::cost::{self, CostError, Schedule, StepCost};
use tinyforge_compiler::machine::Machine;
use tinyforge_plan::Plan;

/// A description and where it was found.
pub struct Profile {
    /// The machine.
    pub machine: Machine,
    /// A file, or a name that is built in.
    pub origin: String,
}

/// Where `bench` writes this machine's description: in the user's folder for settings.
pub fn default_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || Some(set("HOME")?.join(".config"));
    let folder = set("XDG_CONFIG_HOME").or_else(|| if cfg!(windows) { set("APPDATA") } else { home() })?;
    Some(folder.join("tinyforge").join("machine.toml"))
}

/// The description in a file, or of a name that is built in.
///
/// # Errors
/// The file cannot be read, or is none.
pub fn open(named: &str) -> Result<Profile, CommandError> {
    if let Some(machine) = Machine::from_name(named) {
        return Ok(Profile { machine, origin: named.to_string() });
    }
    let path = Path::new(named);
    if !path.exists() {
        let names = Machine::names().collect::<Vec<_>>().join(", ");
        return Err(CommandError::request(format!("{named}: neither a file nor one of {names}")));
    }
    parse(path, read_whole(path)?)
}

/// The description that was named, or else this machine's where `bench` was run; `None` where it was not.
///
/// # Errors
/// As [`open`].
pub fn of_this_machine(named: Option<&Path>) -> Result<Option<Profile>, CommandError> {
    match (named, default_path()) {
        (Some(path), _) => Ok(Some(parse(path, read_whole(path).map_err(CommandError::request)?)?)),
        (None, Some(path)) => read_if_there(&path)?.map(|bytes| parse(&path, bytes)).transpose(),
        (None, None) => Ok(None),
    }
}

fn parse(path: &Path, bytes: Vec<u8>) -> Result<Profile, CommandError> {
    let bad = |why: &dyn std::fmt::Display| CommandError::request(format!("{}: {why}", path.display()));
    let text = String::from_utf8(bytes).map_err(|e| bad(&e))?;
    let machine = Machine::parse(&text).map_err(|e| bad(&e))?;
    Ok(Profile { machine, origin: path.display().to_string() })
}

/// What an optimizer step of `batch` rows costs by a plan for micro-batches of `micro_rows`.
///
/// # Errors
/// The machine's description lacks a rate.
pub fn plan_cost(machine: &Machine, plan: &Plan, micro_rows: u32, batch: u32) -> Result<StepCost, CostError> {
    together(machine, &runs(machine, plan, micro_rows, batch)?)
}

fn together(machine: &Machine, runs: &[(Schedule, u32)]) -> Result<StepCost, CostError> {
    let runs: Vec<(&Schedule, u32)> = runs.iter().map(|(schedule, times)| (schedule, *times)).collect();
    cost::step(machine, &runs)
}

/// The schedules of a step, each with the number of its runs.
fn runs(machine: &Machine, plan: &Plan, micro_rows: u32, batch: u32) -> Result<Vec<(Schedule, u32)>, CostError> {
    let mut runs = Vec::new();
    for (name, times) in [("train", batch.div_ceil(micro_rows)), ("update", 1)] {
        let Some(entry) = plan.entry(name) else { continue };
        // Layer by layer, one run does all micro-batches.
        runs.push((cost::schedule(plan, entry, machine)?, times.div_ceil(entry.micro_batches())));
    }
    Ok(runs)
}

/// What an optimizer step of `batch` rows costs: the mean of all phases.
///
/// # Errors
/// The machine's description lacks a rate.
pub fn step_cost(machine: &Machine, plans: &[Planned], batch: u32) -> Result<StepCost, CostError> {
    let mut runs: Vec<(Schedule, u32)> = Vec::new();
    for planned in plans {
        runs.extend(self::runs(machine, &planned.compiled.plan, planned.micro_rows, batch)?);
    }
    Ok(together(machine, &runs)?.scaled(1.0 / plans.len().max(1) as f64))
}

/// The cost in words.
pub fn words(profile: &Profile, cost: &StepCost, tokens: u64, threads: u32) -> String {
    let Profile { machine, origin } = profile;
    let mut out = format!(
        "  speed on `{}` ({origin}; {}):\n    bound {:.3} s a step, by {}; predicted {:.3} s, {:.0} tokens/s\n",
        machine.name,
        machine.figures,
        cost.bound.seconds(),
        cost.bound.resource(),
        cost.prediction_s,
        tokens as f64 / cost.prediction_s
    );
    if machine.kernels.is_empty() {
        out.push_str("    at the rates as they are given: real kernels reach less of them\n");
    } else if cost.measured_share < 0.99 {
        let share = 100.0 * cost.measured_share;
        out.push_str(&format!(
            "    kernels that were measured are {share:.0} % of it; the others are taken at full rate\n"
        ));
    }
    if let Some(other) = machine.threads.filter(|t| *t != threads) {
        out.push_str(&format!("    the rates are those of {other} threads, this is {threads}\n"));
    }
    out
}
