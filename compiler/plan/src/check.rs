//! The checker of plans. It shares no code with the planner: it replays the steps over a map of the arena and
//! holds every read against what was last written there.
//!
//! Checked: spaces follow one another; tensors are aligned and inside one space; what is written lies in a written
//! one; stored tensors overlap neither each other nor anything written; every operand's bytes hold the value that is
//! meant; results and scratch overlap nothing that is read or changed by the same step, save a result that takes
//! exactly an operand's place, or lies over the operand of a kernel that writes each byte after its last read
//! ([`rows`]); what is changed is a stored tensor that is said to change; sources are there; peaks
//! are what is touched; steps touch nothing far, but for those of the host. Transfers are checked in `moves`.

use crate::DType;
use crate::moves::Moves;
use crate::plan::{Entry, Plan, Source, Step, Stored, Tensor};
use crate::rows;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What the bytes from a key up to the next key hold; `None` is nothing known.
pub(crate) struct Contents(BTreeMap<u64, Option<u32>>);

impl Contents {
    fn new() -> Contents {
        let mut map = BTreeMap::new();
        map.insert(0, None);
        Contents(map)
    }

    pub(crate) fn write(&mut self, start: u64, end: u64, value: Option<u32>) {
        let after = *self.0.range(..=end).next_back().expect("the map starts at 0").1;
        let inside: Vec<u64> = self.0.range(start..end).map(|(&k, _)| k).collect();
        inside.iter().for_each(|k| {
            self.0.remove(k);
        });
        self.0.insert(start, value);
        self.0.insert(end, after);
    }

    pub(crate) fn holds(&self, start: u64, end: u64, value: u32) -> bool {
        let first = self.0.range(..=start).next_back().map(|(_, &v)| v);
        first == Some(Some(value)) && self.0.range(start + 1..end).all(|(_, &v)| v == Some(value))
    }

    /// Nothing outside `place` holds `value` any more.
    pub(crate) fn forget_elsewhere(&mut self, value: u32, place: (u64, u64)) {
        for (_, v) in self.0.iter_mut().filter(|(at, _)| !(place.0..place.1).contains(*at)) {
            if *v == Some(value) {
                *v = None;
            }
        }
    }
}

pub(crate) fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

pub(crate) fn span(t: &Tensor) -> (u64, u64) {
    (t.offset, t.end())
}

/// First and past-the-last byte of a step's scratch.
fn scratch_span(step: &Step) -> (u64, u64) {
    (step.scratch_offset, step.scratch_offset.saturating_add(step.scratch_bytes))
}

/// All faults of a plan; none means that it may run. Where places or sizes make no sense, nothing else is looked at.
pub fn check(plan: &Plan) -> Vec<String> {
    let mut faults = Vec::new();
    check_places(plan, &mut faults);
    if !faults.is_empty() {
        return faults;
    }
    let mut contents = Contents::new();
    let mut stored: Vec<&Stored> = plan.stored.iter().collect();
    stored.sort_by_key(|s| s.tensor.offset);
    for pair in stored.windows(2) {
        if overlap(span(&pair[0].tensor), span(&pair[1].tensor)) {
            faults.push(format!("stored `{}` overlaps `{}`", pair[1].name, pair[0].name));
        }
    }
    for stored in &plan.stored {
        check_source(plan, stored, &mut faults);
        contents.write(stored.tensor.offset, stored.tensor.end(), Some(stored.tensor.value));
    }
    for entry in &plan.entries {
        check_entry(plan, entry, Contents(contents.0.clone()), &mut faults);
    }
    faults
}

/// Everything lies in the arena, aligned, and has a size.
fn check_places(plan: &Plan, faults: &mut Vec<String>) {
    let mut end = 0;
    for space in &plan.spaces {
        if space.first_byte != end || space.end() == u64::MAX {
            faults.push(format!(
                "space `{}` starts at {}, the one before it ends at {end}",
                space.name, space.first_byte
            ));
        }
        end = space.end();
        if space.is_far && space.first_byte >= plan.arena_start() {
            faults.push(format!("space `{}` is far and comes behind one that is not", space.name));
        }
        if space.is_host && !(space.is_far && space.is_written) {
            faults.push(format!("space `{}` is the host's, and not a far one that may be written", space.name));
        }
    }
    if !plan.align_bytes.is_power_of_two() {
        faults.push(format!("the alignment is {}, which is no power of two", plan.align_bytes));
        return;
    }
    for stored in &plan.stored {
        in_arena(plan, &stored.tensor, &stored.name, faults);
        if stored.changes && !is_writable(plan, stored.tensor.offset, stored.tensor.end()) {
            faults.push(format!("`{}` changes and lies in no written space", stored.name));
        }
    }
    for entry in &plan.entries {
        for named in entry.inputs.iter().chain(&entry.results) {
            in_arena(plan, &named.tensor, &named.name, faults);
            if !is_writable(plan, named.tensor.offset, named.tensor.end()) && plan.spaces.len() > 1 {
                faults.push(format!("`{}` of {} lies in no written space", named.name, entry.name));
            }
        }
        for (i, step) in entry.steps.iter().enumerate() {
            let at = at_step(entry, i);
            step.args.iter().chain(&step.outs).for_each(|t| in_arena(plan, t, &at, faults));
            check_memory(plan, step, &at, faults);
            let end = scratch_span(step).1;
            if step.scratch_bytes > 0 && !is_writable(plan, step.scratch_offset, end) {
                faults.push(format!("{at}: scratch {}..{end} lies in no written space", step.scratch_offset));
            }
            for (k, out) in step.outs.iter().enumerate().filter(|(_, t)| !is_writable(plan, t.offset, t.end())) {
                faults.push(format!("{at}: result {k} at {} lies in no written space", out.offset));
            }
        }
    }
}

/// A step touches no far memory; one of the host touches nothing but the host's.
fn check_memory(plan: &Plan, step: &Step, at: &str, faults: &mut Vec<String>) {
    let start = plan.arena_start();
    let is_on_host = plan.is_on_host(step);
    let is_in_host = |t: &Tensor| plan.space_of(t.offset).is_some_and(|s| s.is_host);
    if !is_on_host && step.args.iter().chain(&step.outs).any(|t| t.offset < start) {
        faults.push(format!("{at}: touches a far memory, which ends at {start}"));
    }
    if is_on_host && !(step.args.iter().all(is_in_host) && step.outs.is_empty() && step.scratch_bytes == 0) {
        faults.push(format!("{at}: is the host's, and touches more than what rests in its memory"));
    }
}

fn at_step(entry: &Entry, i: usize) -> String {
    let step = &entry.steps[i];
    format!("{} step {i} ({} {})", entry.name, step.kernel, step.label)
}

fn in_arena(plan: &Plan, t: &Tensor, name: &str, faults: &mut Vec<String>) {
    if t.bytes() == 0 || t.shape.is_empty() {
        faults.push(format!("`{name}` has a tensor without elements"));
    }
    if plan.space_of(t.offset).is_none_or(|s| t.end() > s.end()) {
        let arena = plan.end_byte();
        faults.push(format!("`{name}` at {}..{} leaves its space; the arena ends at {arena}", t.offset, t.end()));
    }
    if !t.offset.is_multiple_of(u64::from(plan.align_bytes)) {
        faults.push(format!("`{name}` at {} is not aligned to {}", t.offset, plan.align_bytes));
    }
}

/// Whether all of these bytes lie in one space that may be written.
fn is_writable(plan: &Plan, start: u64, end: u64) -> bool {
    plan.space_of(start).is_some_and(|s| s.is_written && end <= s.end())
}

/// What a stored tensor is filled from is there and suits it.
fn check_source(plan: &Plan, stored: &Stored, faults: &mut Vec<String>) {
    let t = &stored.tensor;
    let suits = match &stored.source {
        Source::Zero => true,
        Source::File { file, .. } => (*file as usize) < plan.files.len(),
        Source::Permuted { file, dtype, shape, axes, .. } => {
            let order = axes.iter().map(|&a| shape.get(usize::from(a)).copied());
            let once = (0..axes.len()).all(|d| axes.iter().filter(|&&a| usize::from(a) == d).count() == 1);
            (*file as usize) < plan.files.len()
                && *dtype == t.dtype
                && !dtype.is_quantised()
                && axes.len() == shape.len()
                && once
                && order.eq(t.shape.iter().map(|&d| Some(d)))
        }
        Source::Bytes(bytes) => bytes.len() as u64 == t.bytes(),
        Source::Table(values) => t.dtype == DType::F32 && values.len() as u64 == t.elems(),
        Source::Uniform { bound } => {
            (t.dtype.is_float() && bound.is_finite()) || (t.dtype == DType::I8 && bound.abs() <= 127.0)
        }
        Source::Normal { std } => t.dtype.is_float() && std.is_finite(),
        Source::Fill(value) => t.dtype.is_float() && value.is_finite(),
        Source::TopColumns { of, scale } => {
            t.dtype == DType::I32 && plan.find(of).is_some_and(|w| columns_suit(plan, t, &w.tensor, scale.as_deref()))
        }
    };
    if !suits {
        faults.push(format!("stored `{}` cannot be filled from its source", stored.name));
    }
}

/// Whether a list of columns of `w` can be made: an int8 weight needs its scale.
fn columns_suit(plan: &Plan, list: &Tensor, w: &Tensor, scale: Option<&str>) -> bool {
    let channels = if w.shape.len() == 3 { w.shape.last() } else { w.shape.first() };
    let scale_suits = match scale {
        Some(name) => plan
            .find(name)
            .is_some_and(|s| s.tensor.dtype == DType::F32 && Some(s.tensor.elems()) == channels.map(|&c| u64::from(c))),
        None => true,
    };
    list.elems() <= w.cols() as u64 && (w.dtype == DType::I8) == scale.is_some() && scale_suits
}

/// Kernels that set all of their first operand, whatever it held.
const SETS: &[&str] = &["assign", "zero"];

fn check_entry(plan: &Plan, entry: &Entry, mut contents: Contents, faults: &mut Vec<String>) {
    let mut top = plan.stored_end();
    let Some(mut moves) = Moves::new(plan, entry, &mut contents, faults) else { return };
    for input in &entry.inputs {
        clear_of_stored(plan, span(&input.tensor), &input.name, faults);
        contents.write(input.tensor.offset, input.tensor.end(), Some(input.tensor.value));
        top = top.max(input.tensor.end());
    }
    for (i, step) in entry.steps.iter().enumerate() {
        let at = at_step(entry, i);
        if step.block as usize >= entry.blocks.len() {
            faults.push(format!("{at}: block {} does not exist", step.block));
        }
        moves.before(i, &mut contents, faults);
        for (k, arg) in step.args.iter().enumerate() {
            let is_set = k == 0 && SETS.contains(&step.kernel.as_str()) && is_changed_stored(plan, arg);
            if is_set {
                contents.write(arg.offset, arg.end(), Some(arg.value));
            } else if !contents.holds(arg.offset, arg.end(), arg.value) {
                faults.push(format!("{at}: operand at {} no longer holds value {}", arg.offset, arg.value));
            }
        }
        check_writes(plan, step, &at, faults);
        moves.step(step, &at, &mut contents, faults);
        let scratch = scratch_span(step);
        if step.scratch_bytes > 0 {
            contents.write(scratch.0, scratch.1, None);
            top = top.max(scratch.1);
        }
        for out in &step.outs {
            contents.write(out.offset, out.end(), Some(out.value));
            top = top.max(out.end());
        }
    }
    moves.finish(&mut contents, faults);
    for result in &entry.results {
        let t = &result.tensor;
        if !contents.holds(t.offset, t.end(), t.value) {
            faults.push(format!("{}: result `{}` is overwritten", entry.name, result.name));
        }
    }
    let top = top.max(moves.top);
    if entry.peak.bytes != top {
        faults.push(format!("{}: peak is said to be {}, touched is {top}", entry.name, entry.peak.bytes));
    }
}

/// The stored tensor whose own place a place overlaps.
pub(crate) fn stored_under(plan: &Plan, place: (u64, u64)) -> Option<&Stored> {
    plan.stored.iter().find(|s| overlap(span(&s.tensor), place))
}

fn clear_of_stored(plan: &Plan, written: (u64, u64), at: &str, faults: &mut Vec<String>) {
    if let Some(s) = stored_under(plan, written) {
        faults.push(format!("{at}: writes {}..{} over stored `{}`", written.0, written.1, s.name));
    }
}

/// Whether a tensor is a stored one that the plan says is changed: its place, its extent and its value; or a copy of
/// one that is far.
fn is_changed_stored(plan: &Plan, t: &Tensor) -> bool {
    let is_meant = |s: &Stored| {
        let is_copy = plan.is_far(&s.tensor) && !plan.is_far(t);
        let is_here = if is_copy { s.tensor.bytes() == t.bytes() } else { span(&s.tensor) == span(t) };
        s.changes && s.tensor.value == t.value && is_here
    };
    plan.stored.iter().any(is_meant)
}

fn check_writes(plan: &Plan, step: &Step, at: &str, faults: &mut Vec<String>) {
    let scratch = scratch_span(step);
    if step.changes as usize > step.args.len() {
        faults.push(format!("{at}: changes {} of {} operands", step.changes, step.args.len()));
    }
    let changed = &step.args[..(step.changes as usize).min(step.args.len())];
    for (i, arg) in changed.iter().enumerate() {
        if !is_changed_stored(plan, arg) {
            faults.push(format!("{at}: changes operand {i}, which is no stored tensor that changes"));
        }
    }
    for (i, out) in step.outs.iter().enumerate() {
        // A result may take the place of a stored accumulator that it was added to: exactly, never in part.
        let takes_place = step.args.iter().any(|a| span(a) == span(out)) && is_changed_stored(plan, out);
        if !takes_place {
            clear_of_stored(plan, span(out), at, faults);
        }
        if step.scratch_bytes > 0 && overlap(span(out), scratch) {
            faults.push(format!("{at}: result {i} overlaps scratch"));
        }
        for (j, arg) in step.args.iter().enumerate() {
            let is_row_by_row = (i, j) == (0, 0) && rows::lies_over(step);
            if overlap(span(out), span(arg)) && span(out) != span(arg) && !is_row_by_row {
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
