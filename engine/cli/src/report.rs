//! What a plan looks like to a person.

use crate::host;
use crate::planning::Planned;
use crate::sizes::show;
use std::fmt::Write;
use tinyforge_compiler::compile::{CompileError, Embeddings};
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::passes::update::ClipBy;
use tinyforge_plan::{Direction, Entry, Part, Plan, Stored, StoredKind};

/// A plan in words: totals, peaks, what holds them, and the fixed parts.
pub fn plan(planned: &Planned, memory: Option<u64>) -> String {
    let plan = &planned.compiled.plan;
    let mut out = String::new();
    let _ = writeln!(out, "plan {}: {} threads, {} rows a micro-batch", plan.name, plan.threads, planned.micro_rows);
    let total = plan.total_bytes();
    let near = plan.spaces.last().map_or("", |s| s.name.as_str());
    let _ = write!(out, "  {:<11} {total:>14} bytes  ({})", format!("{near} total"), show(total));
    match memory {
        Some(limit) => {
            let _ = writeln!(out, " of {} asked for", show(limit));
        }
        None => out.push('\n'),
    }
    let _ = writeln!(out, "    arena     {:>14} bytes", plan.arena_bytes());
    for space in plan.spaces.iter().filter(|s| s.is_far) {
        let (where_to, what) = (if space.is_host { "host" } else { "disk" }, host::words(plan, space.first_byte));
        let _ = writeln!(out, "  {where_to:<11} {:>14} bytes {what}, from where blocks stream", space.bytes);
    }
    let kinds = [("weights", StoredKind::Weight), ("states", StoredKind::State), ("constants", StoredKind::Const)];
    for (name, kind) in kinds {
        let bytes = plan.stored_bytes(|s| s.kind == kind);
        let changed = plan.stored_bytes(|s| s.kind == kind && s.changes);
        let far = plan.stored_bytes(|s| s.kind == kind && plan.is_far(&s.tensor));
        let far = if far > 0 { format!(", {far} are far") } else { String::new() };
        let _ = writeln!(out, "      {name:<9} {bytes:>12} bytes, {changed} of them change{far}");
    }
    for part in &plan.fixed {
        let _ = writeln!(out, "    {:<13} {:>10} bytes", part.name, part.bytes);
    }
    entries(&mut out, plan);
    windows(&mut out, planned);
    optimizer(&mut out, planned);
    let choice = &planned.compiled.choice;
    let _ = writeln!(out, "  recomputation: step {} of {}", choice.recompute_step, choice.recompute_steps);
    if choice.spills {
        let spilled = plan.stored.iter().filter(|s| s.is_spilled());
        let bytes = show(plan.stored_bytes(Stored::is_spilled));
        let _ = writeln!(
            out,
            "  activations: {}, {bytes}, rest in the far memory from forward to backward",
            spilled.count()
        );
    }
    let how = match choice.embeddings {
        _ if plan.arena_start() == 0 => None,
        Embeddings::Near => None,
        Embeddings::Far => Some("come and go as blocks do, and count as blocks of the window"),
        Embeddings::Parts => Some("come and go in parts no larger than those of the window"),
    };
    if let Some(how) = how {
        let _ = writeln!(out, "  embeddings: {how}");
    }
    if choice.panels {
        let _ = writeln!(out, "  gradients: those larger than a block are made a panel of rows at a time");
    }
    if let Some(by) = choice.clip_by {
        let how = if by == ClipBy::Keeping { "keeping gradients" } else { "a second backward" };
        let _ = writeln!(out, "  clipping: by {how}");
    }
    let trained = &planned.compiled.parameters.trained;
    let elems: u64 = trained.iter().map(|name| trained_elems(plan, name)).sum();
    let _ = writeln!(out, "  trained: {} tensors, {elems} elements", trained.len());
    out
}

/// Elements of a stored weight that are trained: all, or its chosen columns.
fn trained_elems(plan: &Plan, name: &str) -> u64 {
    let index = plan.find(&format!("{name}.index"));
    let of = |weight: &Stored| match index {
        Some(index) => weight.tensor.rows() as u64 * index.tensor.elems(),
        None => weight.tensor.elems(),
    };
    plan.parts_of(name).into_iter().map(of).sum()
}

fn entries(out: &mut String, plan: &Plan) {
    for entry in &plan.entries {
        let peak = &entry.peak;
        let step = entry.steps.get(peak.step as usize);
        let at = step.map_or(String::new(), |s| {
            format!("{} {} in {}", s.kernel, s.label, entry.blocks.get(s.block as usize).map_or("", String::as_str))
        });
        let _ = writeln!(
            out,
            "  {}: peak {} bytes at step {} of {} ({at}), lower bound {}",
            entry.name,
            peak.bytes - plan.arena_start().min(peak.bytes),
            peak.step + 1,
            entry.steps.len(),
            peak.lower_bound_bytes - plan.arena_start().min(peak.lower_bound_bytes)
        );
        let held: Vec<String> = peak.holders.iter().take(6).map(|h| format!("{} {}", h.name, show(h.bytes))).collect();
        if !held.is_empty() {
            let _ = writeln!(out, "    held there: {}", held.join(", "));
        }
        if entry.name == "train" {
            let count = |part| entry.steps.iter().filter(|s| s.part == part).count();
            let _ = writeln!(
                out,
                "    {} steps forward, {} backward, {} update; {:.1} GFLOP; backward reaches down to {}",
                count(Part::Forward),
                count(Part::Backward),
                count(Part::Update),
                entry.flops() as f64 / 1e9,
                lowest_block(plan)
            );
        }
        moved(out, plan, entry);
    }
}

/// A window in words.
pub fn schedule(window: Option<&Window>) -> String {
    match window {
        Some(Window { blocks, prefetch, parts: 1 }) => format!("window {blocks}, prefetch {prefetch}"),
        Some(Window { blocks, prefetch, parts }) => {
            format!("window {blocks} (parts of blocks, {parts} each), prefetch {prefetch}")
        }
        None => "all blocks in memory".to_string(),
    }
}

/// What the host updates, and who else was considered.
fn optimizer(out: &mut String, planned: &Planned) {
    let plan = &planned.compiled.plan;
    let count: usize = plan.entries.iter().map(|e| plan.host_steps(e).len()).sum();
    match planned.optimizers {
        _ if count > 0 => {
            let _ = writeln!(out, "  optimizer: the host updates {count} tensors in its memory, beside backward");
        }
        Some(_) => out.push_str("  optimizer: the device updates all tensors\n"),
        None => {}
    }
    if let Some([by_device, by_host]) = planned.optimizers {
        let said = format!("by the device {by_device:.3} s a step, by the host {by_host:.3}");
        let _ = writeln!(out, "    predicted: with updates {said}");
    }
}

/// Which blocks stream, and what else was considered.
fn windows(out: &mut String, planned: &Planned) {
    let _ = writeln!(out, "  schedule: {}", schedule(planned.window.as_ref()));
    for (window, seconds) in &planned.considered {
        let _ = writeln!(out, "    {}: predicted {seconds:.3} s a step", schedule(window.as_ref()));
    }
}

/// What an entry moves between the far memories and the near one, and what it finds there.
fn moved(out: &mut String, plan: &Plan, entry: &Entry) {
    let ((come, read), (go, written)) = (plan.moved(entry, Direction::In), plan.moved(entry, Direction::Out));
    let resident: u64 = entry.residents.iter().map(|r| plan.stored[r.stored as usize].tensor.bytes()).sum();
    if come + go + entry.residents.len() > 0 {
        let _ = writeln!(
            out,
            "    {come} copies come in, {}, and {go} go back, {}; {} stay from run to run, {}",
            show(read),
            show(written),
            entry.residents.len(),
            show(resident)
        );
    }
}

/// Name of the lowest block for which the training entry has backward steps.
pub fn lowest_block(plan: &Plan) -> String {
    let Some(entry) = plan.entry("train") else { return String::new() };
    let blocks = entry.steps.iter().filter(|s| s.part != Part::Forward).map(|s| s.block);
    let lowest = blocks.filter(|&b| b > 0).min();
    lowest.and_then(|b| entry.blocks.get(b as usize)).cloned().unwrap_or_default()
}

/// A budget that cannot be met, in words; other errors as they are.
pub fn refusal(error: &CompileError, fixed_bytes: u64, budget: u64, hints: &[String]) -> String {
    let (need, entry, peak, at, steps, stored, beside) = match error {
        CompileError::Budget { need, entry, peak, at, steps, stored, beside, .. } => {
            (need, entry, peak, at, steps, stored, beside)
        }
        CompileError::HostMemory { need, .. } => {
            let mib = need.div_ceil(1 << 20);
            return format!(
                "{error}\n  help: `--host-memory {mib}MiB`, or `--host-optimizer=false`: the device updates"
            );
        }
        other => return other.to_string(),
    };
    let total = need + fixed_bytes;
    let mut out = format!(
        "plan needs {}, the budget is {} ({} over)\n  peak at {at} (step {} of {steps} of {entry}): stored tensors {}",
        show(total),
        show(budget),
        show(total.saturating_sub(budget)),
        peak.step + 1,
        show(*stored)
    );
    for holder in peak.holders.iter().take(4) {
        let _ = write!(out, ", {} {}", holder.name, show(holder.bytes));
    }
    let _ = write!(out, "; outside the arena {}", show(fixed_bytes + beside));
    for hint in hints {
        let _ = write!(out, "\n  help: {hint}");
    }
    out
}
