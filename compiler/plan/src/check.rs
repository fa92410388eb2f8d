//! The checker of plans. It shares no code with the planner: it replays the steps over a map of the arena and
//! holds every read against what was last written there.
//!
//! Checked: tensors are aligned and inside the arena; stored tensors overlap neither each other nor anything
//! written; every operand's bytes hold the value that is meant; results and scratch overlap nothing that is read
//! or changed by the same step, save a result that takes exactly an operand's place; peaks are what is touched.

use crate::plan::{Entry, Plan, Step, Tensor};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Every tensor starts at a multiple of this.
pub const ALIGN_BYTES: u64 = 64;

/// What the bytes from a key up to the next key hold; `None` is nothing known.
struct Contents(BTreeMap<u64, Option<u32>>);

impl Contents {
    fn new() -> Contents {
        let mut map = BTreeMap::new();
        map.insert(0, None);
        Contents(map)
    }

    fn write(&mut self, start: u64, end: u64, value: Option<u32>) {
        let after = *self.0.range(..=end).next_back().expect("the map starts at 0").1;
        let inside: Vec<u64> = self.0.range(start..end).map(|(&k, _)| k).collect();
        inside.iter().for_each(|k| {
            self.0.remove(k);
        });
        self.0.insert(start, value);
        self.0.insert(end, after);
    }

    fn holds(&self, start: u64, end: u64, value: u32) -> bool {
        let first = self.0.range(..=start).next_back().map(|(_, &v)| v);
        first == Some(Some(value)) && self.0.range(start + 1..end).all(|(_, &v)| v == Some(value))
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn span(t: &Tensor) -> (u64, u64) {
    (t.offset, t.end())
}

/// All faults of a plan; none means that it may run.
pub fn check(plan: &Plan) -> Vec<String> {
    let mut faults = Vec::new();
    let mut contents = Contents::new();
    for (i, stored) in plan.stored.iter().enumerate() {
        in_arena(plan, &stored.tensor, &stored.name, &mut faults);
        for other in &plan.stored[..i] {
            if overlap(span(&stored.tensor), span(&other.tensor)) {
                faults.push(format!("stored `{}` overlaps `{}`", stored.name, other.name));
            }
        }
        contents.write(stored.tensor.offset, stored.tensor.end(), Some(stored.tensor.value));
    }
    for entry in &plan.entries {
        check_entry(plan, entry, Contents(contents.0.clone()), &mut faults);
    }
    faults
}

fn in_arena(plan: &Plan, t: &Tensor, name: &str, faults: &mut Vec<String>) {
    if t.end() > plan.arena_bytes() {
        faults.push(format!("`{name}` ends at {}, the arena at {}", t.end(), plan.arena_bytes()));
    }
    if !t.offset.is_multiple_of(ALIGN_BYTES) {
        faults.push(format!("`{name}` at {} is not aligned to {ALIGN_BYTES}", t.offset));
    }
}

fn check_entry(plan: &Plan, entry: &Entry, mut contents: Contents, faults: &mut Vec<String>) {
    let mut top = plan.stored.iter().map(|s| s.tensor.end()).max().unwrap_or(0);
    for input in &entry.inputs {
        in_arena(plan, &input.tensor, &input.name, faults);
        clear_of_stored(plan, span(&input.tensor), &input.name, faults);
        contents.write(input.tensor.offset, input.tensor.end(), Some(input.tensor.value));
        top = top.max(input.tensor.end());
    }
    for (i, step) in entry.steps.iter().enumerate() {
        let at = format!("{} step {i} ({} {})", entry.name, step.kernel, step.label);
        for arg in &step.args {
            in_arena(plan, arg, &at, faults);
            if !contents.holds(arg.offset, arg.end(), arg.value) {
                faults.push(format!("{at}: operand at {} no longer holds value {}", arg.offset, arg.value));
            }
        }
        check_writes(plan, step, &at, faults);
        let scratch = (step.scratch_offset, step.scratch_offset + step.scratch_bytes);
        if step.scratch_bytes > 0 {
            contents.write(scratch.0, scratch.1, None);
        }
        top = top.max(scratch.1);
        for out in &step.outs {
            in_arena(plan, out, &at, faults);
            contents.write(out.offset, out.end(), Some(out.value));
            top = top.max(out.end());
        }
    }
    for result in &entry.results {
        let t = &result.tensor;
        if !contents.holds(t.offset, t.end(), t.value) {
            faults.push(format!("{}: result `{}` is overwritten", entry.name, result.name));
        }
    }
    if entry.peak.bytes != top {
        faults.push(format!("{}: peak is said to be {}, touched is {top}", entry.name, entry.peak.bytes));
    }
}

fn clear_of_stored(plan: &Plan, written: (u64, u64), at: &str, faults: &mut Vec<String>) {
    if let Some(s) = plan.stored.iter().find(|s| overlap(span(&s.tensor), written)) {
        faults.push(format!("{at}: writes {}..{} over stored `{}`", written.0, written.1, s.name));
    }
}

fn check_writes(plan: &Plan, step: &Step, at: &str, faults: &mut Vec<String>) {
    let scratch = (step.scratch_offset, step.scratch_offset + step.scratch_bytes);
    let changed = &step.args[..(step.changes as usize).min(step.args.len())];
    for (i, out) in step.outs.iter().enumerate() {
        // A result may take the place of a stored accumulator that it was added to: exactly, never in part.
        let takes_place = step.args.iter().any(|a| span(a) == span(out));
        if !takes_place {
            clear_of_stored(plan, span(out), at, faults);
        }
        if overlap(span(out), scratch) {
            faults.push(format!("{at}: result {i} overlaps scratch"));
        }
        for (j, arg) in step.args.iter().enumerate() {
            if overlap(span(out), span(arg)) && span(out) != span(arg) {
                faults.push(format!("{at}: result {i} overlaps operand {j} in part"));
            }
        }
        if step.outs[..i].iter().chain(changed).any(|other| overlap(span(out), span(other))) {
            faults.push(format!("{at}: result {i} overlaps another result or a changed operand"));
        }
    }
    if step.scratch_bytes > 0 {
        clear_of_stored(plan, scratch, at, faults);
        if step.args.iter().any(|a| overlap(span(a), scratch)) {
            faults.push(format!("{at}: scratch overlaps an operand"));
        }
    }
}
