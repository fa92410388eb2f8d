//! Descriptions of machines in files: the one that `bench` wrote for this machine, or one that was named.

use crate::error::CommandError;
use crate::planning::Planned;
use crate::sizes;
use std::path::{Path, PathBuf};
use tinyforge::files::{read_if_there, read_whole};
use tinyforge::sim::{self, Link, Paper};
use tinyforge_compiler::compile::Compiled;
use tinyforge_compiler::cost::{self, CostError, Schedule, StepCost};
use tinyforge_compiler::machine::Machine;
use tinyforge_plan::{Direction, Plan, Step};

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

/// The entries of a step by their indices, each with the number of its runs.
fn entries(plan: &Plan, micro_rows: u32, batch: u32) -> Vec<(usize, u32)> {
    let of = |(name, times): (&str, u32)| {
        let at = plan.entries.iter().position(|e| e.name == name)?;
        // Layer by layer, one run does all micro-batches.
        Some((at, times.div_ceil(plan.entries[at].micro_batches())))
    };
    [("train", batch.div_ceil(micro_rows)), ("update", 1)].into_iter().filter_map(of).collect()
}

/// The schedules of a step, each with the number of its runs.
fn runs(machine: &Machine, plan: &Plan, micro_rows: u32, batch: u32) -> Result<Vec<(Schedule, u32)>, CostError> {
    let of = |(at, times): (usize, u32)| Ok((cost::schedule(plan, &plan.entries[at], machine)?, times));
    entries(plan, micro_rows, batch).into_iter().map(of).collect()
}

/// Arithmetic of an optimizer step of `batch` rows, the mean of all phases.
pub fn step_flops(plans: &[Planned], batch: u32) -> f64 {
    let of_plan = |Planned { compiled: Compiled { plan, .. }, micro_rows, .. }: &Planned| -> f64 {
        let runs = entries(plan, *micro_rows, batch);
        runs.iter().map(|&(at, times)| plan.entries[at].flops() as f64 * f64::from(times)).sum()
    };
    plans.iter().map(of_plan).sum::<f64>() / plans.len().max(1) as f64
}

/// What an optimizer step of `batch` rows costs in every phase.
///
/// # Errors
/// The machine's description lacks a rate.
pub fn phase_costs(machine: &Machine, plans: &[Planned], batch: u32) -> Result<Vec<StepCost>, CostError> {
    plans.iter().map(|p| plan_cost(machine, &p.compiled.plan, p.micro_rows, batch)).collect()
}

/// What an optimizer step of `batch` rows costs: the mean of all phases.
///
/// # Errors
/// The machine's description lacks a rate.
pub fn step_cost(machine: &Machine, plans: &[Planned], batch: u32) -> Result<StepCost, CostError> {
    let costs = phase_costs(machine, plans, batch)?;
    let parts: Vec<(&StepCost, f64)> = costs.iter().map(|cost| (cost, 1.0)).collect();
    Ok(StepCost::mean(&parts))
}

/// A step as the executor carries it out, on a machine that is not here.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Simulated {
    /// The time of a step.
    pub step_s: f64,
    /// Of that, kernels.
    pub compute_s: f64,
    /// Of that, waiting for copies.
    pub waited_s: f64,
    /// How long each direction of the link was busy: in, out.
    pub links_s: [f64; 2],
    /// Bytes that came in, and that went out.
    pub moved_bytes: [u64; 2],
    /// Arithmetic a second, what is computed again counted.
    pub flops_per_second: f64,
    /// The share of the time of copies in which kernels ran; 1 where nothing is copied.
    pub overlap: f64,
    /// The bound over the time.
    pub efficiency: f64,
    /// What is waited for longest, by the first tensor of a copy, with its seconds.
    pub waits: Vec<(String, f64)>,
}

/// Copies that are named among what is waited for.
const WAITS: usize = 3;

/// Plays a step of `batch` rows by the executor on the machine, the mean of all phases. `bound_s` is the step's.
///
/// # Errors
/// The machine's description lacks a rate.
pub fn simulate(machine: &Machine, plans: &[Planned], batch: u32, bound_s: f64) -> Result<Simulated, CommandError> {
    let transfers = |p: &Planned, of_files: bool| {
        let plan = &p.compiled.plan;
        let mut all = plan.entries.iter().flat_map(|e| &e.transfers);
        all.any(|t| !of_files || !plan.is_in_host(t.stored))
    };
    let ([inward, outward], files) = match plans.iter().any(|p| transfers(p, false)) {
        true => sim_links(machine, plans.iter().any(|p| transfers(p, true)))?,
        false => ([Link { bytes_per_second: f64::INFINITY, latency_s: 0.0 }; 2], None),
    };
    let (mut step_s, mut compute_s, mut waited_s) = (0.0, 0.0, 0.0);
    let (mut links_s, mut moved_bytes) = ([0.0; 2], [0; 2]);
    let mut waits: Vec<(String, f64)> = Vec::new();
    for Planned { compiled, micro_rows, .. } in plans {
        let plan = &compiled.plan;
        let runs = entries(plan, *micro_rows, batch);
        let steps = runs.iter().flat_map(|(at, _)| &plan.entries[*at].steps);
        // What lacks a rate is told before anything is played.
        steps
            .clone()
            .try_for_each(|step| cost::seconds(machine, &cost::work_in(plan, step)).map(drop))
            .map_err(CommandError::run)?;
        let seconds = |step: &Step| cost::seconds(machine, &cost::work_in(plan, step)).map_or(0.0, |it| it.seconds);
        let paper = Paper { inward, outward, files, single_queue: machine.traits.single_queue, seconds: &seconds };
        let report = sim::played(plan, &runs, &paper)?;
        (step_s, compute_s, waited_s) =
            (step_s + report.seconds, compute_s + report.compute_s, waited_s + report.waited_s);
        for (at, traffic) in [report.inward, report.outward].iter().enumerate() {
            (links_s[at], moved_bytes[at]) = (links_s[at] + traffic.busy_s, moved_bytes[at] + traffic.bytes);
        }
        waits.extend(report.waits.into_iter().map(|w| (w.name, w.seconds / plans.len() as f64)));
    }
    waits.sort_by(|a, b| b.1.total_cmp(&a.1));
    waits.truncate(WAITS);
    let (count, busy_s) = (plans.len().max(1) as f64, links_s[0] + links_s[1]);
    let copied_s = if machine.traits.single_queue { busy_s } else { waited_s };
    Ok(Simulated {
        step_s: step_s / count,
        compute_s: compute_s / count,
        waited_s: waited_s / count,
        links_s: links_s.map(|s| s / count),
        moved_bytes: moved_bytes.map(|bytes| bytes / plans.len().max(1) as u64),
        flops_per_second: step_flops(plans, batch) * count / step_s,
        overlap: if busy_s > 0.0 { 1.0 - (copied_s / busy_s).min(1.0) } else { 1.0 },
        efficiency: bound_s * count / step_s,
        waits,
    })
}

/// Both directions of the link that blocks stream over, and, where some lie in files, of the one between those and the
/// memory that feeds the near one, where there is such a memory.
fn sim_links(machine: &Machine, has_files: bool) -> Result<([Link; 2], Option<[Link; 2]>), CommandError> {
    let link = |index: u32| -> Result<Link, CommandError> {
        let link = &machine.links[index as usize];
        let (from, to) = (&link.from, &link.to);
        let what =
            || CommandError::run(format!("`{}` does not say bytes_per_second from {from} to {to}", machine.name));
        Ok(Link { bytes_per_second: link.bytes_per_second.ok_or_else(what)?, latency_s: link.latency_s })
    };
    let path = |way| cost::path(machine, way).map_err(CommandError::run);
    let [inward, outward] = [path(Direction::In)?, path(Direction::Out)?];
    let files = match (inward.files, outward.files) {
        (Some(inward), Some(outward)) if has_files => Some([link(inward)?, link(outward)?]),
        _ => None,
    };
    Ok(([link(inward.link)?, link(outward.link)?], files))
}

impl Simulated {
    /// In words, for a step of so many tokens on the machine of this name.
    pub fn words(&self, machine: &str, tokens: u64) -> String {
        let Simulated { step_s, waited_s, links_s: [up_s, down_s], overlap, efficiency, .. } = self;
        let mut out = format!(
            "  simulated on `{machine}`, the executor's own order of steps and copies:\n    {step_s:.3} s a step, {:.0} \
             tokens/s, {:.1} TFLOP/s, efficiency {efficiency:.2} of the bound\n",
            tokens as f64 / step_s,
            self.flops_per_second / 1e12
        );
        if up_s + down_s > 0.0 {
            let [up, down] = self.moved_bytes.map(sizes::show);
            out.push_str(&format!(
                "    {up} come in ({up_s:.3} s of the link), {down} go out ({down_s:.3} s), {:.0} % of it beside kernels; \
                 kernels wait {waited_s:.3} s\n",
                100.0 * overlap
            ));
            let longest: Vec<String> = self.waits.iter().map(|(name, s)| format!("{name} {s:.3} s")).collect();
            if !longest.is_empty() {
                out.push_str(&format!("    waited for longest: {}\n", longest.join(", ")));
            }
        }
        out
    }
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
