//! What lies where, from which step to which: a plan's memory as rectangles over steps and addresses.
//!
//! Shared by the exporters that show a plan. All is read off the plan alone, as its checker would: a value lives from
//! the step that makes it to the last that reads it, an input from the first step, a result to the last. Spaces are
//! the plan's own, however many there are; a lane is what one of them holds.

use super::copies::{Stay, stays};
use std::collections::{BTreeMap, BTreeSet};
use tinyforge_plan::{DType, Entry, Part, Plan, Space, Step, Stored, Tensor};

/// What a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A stored tensor that some entry changes.
    Trained,
    /// A stored tensor that stays.
    Frozen,
    /// A copy of what lives in a far memory.
    Copy,
    /// Filled by the caller.
    Input,
    /// Made and read in one part of a step.
    Activation,
    /// Made by the forward part and read by a later one.
    Saved,
    /// Bits that say where a gradient passes, kept by the forward part.
    Mask,
    /// Made by the backward part.
    Gradient,
    /// Lent to a kernel for one call.
    Scratch,
}

impl Role {
    /// Every role, in the order of a legend.
    pub const ALL: [Role; 9] = [
        Role::Trained,
        Role::Frozen,
        Role::Copy,
        Role::Input,
        Role::Activation,
        Role::Saved,
        Role::Mask,
        Role::Gradient,
        Role::Scratch,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Trained => "trained",
            Role::Frozen => "frozen",
            Role::Copy => "copy",
            Role::Input => "input",
            Role::Activation => "activation",
            Role::Saved => "saved",
            Role::Mask => "mask",
            Role::Gradient => "gradient",
            Role::Scratch => "scratch",
        }
    }
}

/// Bytes that hold one thing for some steps.
#[derive(Clone, PartialEq, Debug)]
pub struct Slot {
    /// What it holds.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// First address.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// The first and the last step.
    pub steps: [u32; 2],
    /// Storage and shape, where it is a tensor.
    pub form: String,
    /// What it is made of, with the bytes of each, where it is several.
    pub parts: Vec<(String, u64)>,
}

/// What one space holds while an entry runs.
pub struct Lane<'a> {
    /// The space.
    pub space: &'a Space,
    /// Its slots, by time and then by address.
    pub slots: Vec<Slot>,
}

impl Lane<'_> {
    /// Whether anything in it comes or goes.
    pub fn is_steady(&self) -> bool {
        self.slots.iter().all(|s| matches!(s.role, Role::Trained | Role::Frozen))
    }
}

/// Storage and shape: `i8[1,16,16,8]`.
pub fn form(t: &Tensor) -> String {
    let dims: Vec<String> = t.shape.iter().map(u32::to_string).collect();
    format!("{}[{}]", t.dtype.name(), dims.join(","))
}

/// The names of an entry's values: of stored tensors, inputs and results their own, else what the step that makes
/// them computes.
pub fn names(plan: &Plan, entry: &Entry) -> BTreeMap<u32, String> {
    let mut names: BTreeMap<u32, String> = plan.stored.iter().map(|s| (s.tensor.value, s.name.clone())).collect();
    for step in &entry.steps {
        for (i, out) in step.outs.iter().enumerate() {
            let name = match i {
                0 => step.label.clone(),
                _ if is_mask(out) => format!("{}.mask", step.label),
                _ => format!("{}.{i}", step.label),
            };
            names.entry(out.value).or_insert(name);
        }
    }
    // What a result is called outside says more than the step that makes it.
    for named in entry.inputs.iter().chain(&entry.results) {
        if plan.stored.iter().all(|s| s.tensor.value != named.tensor.value) {
            names.insert(named.tensor.value, named.name.clone());
        }
    }
    names
}

fn is_mask(t: &Tensor) -> bool {
    t.dtype == DType::U8
}

/// The lanes of an entry, in the order of the plan's spaces.
pub fn lanes<'a>(plan: &'a Plan, entry: &Entry) -> Vec<Lane<'a>> {
    let mut slots: Vec<Slot> = plan.stored.iter().filter_map(|s| stored(s, entry)).collect();
    slots.extend(stays(plan, entry).iter().flat_map(|stay| copied(plan, stay)));
    slots.extend(values(plan, entry));
    slots.extend(entry.steps.iter().enumerate().filter(|(_, s)| s.scratch_bytes > 0).map(scratch));
    slots.sort_by_key(|s| (s.steps, s.offset));
    let in_space = |space: &Space, s: &Slot| (space.first_byte..space.end()).contains(&s.offset);
    let lane =
        |space: &'a Space| Lane { space, slots: slots.iter().filter(|slot| in_space(space, slot)).cloned().collect() };
    plan.spaces.iter().map(lane).collect()
}

fn last_step(entry: &Entry) -> u32 {
    entry.steps.len().saturating_sub(1) as u32
}

/// A stored tensor keeps its place over all steps; one without bytes is nowhere.
fn stored(s: &Stored, entry: &Entry) -> Option<Slot> {
    (s.tensor.bytes() > 0).then(|| Slot {
        name: s.name.clone(),
        role: if s.changes { Role::Trained } else { Role::Frozen },
        offset: s.tensor.offset,
        bytes: s.tensor.bytes(),
        steps: [0, last_step(entry)],
        form: form(&s.tensor),
        parts: Vec::new(),
    })
}

/// The places of a stay's copies: one, where they lie side by side.
pub fn copied(plan: &Plan, stay: &Stay) -> Vec<Slot> {
    let tensor = |stored: u32| &plan.stored[stored as usize];
    let end = |&(stored, near_byte): &(u32, u64)| near_byte + tensor(stored).tensor.bytes();
    let align = u64::from(plan.align_bytes.max(1));
    let slot = |run: &[(u32, u64)]| Slot {
        name: stay.group.name(),
        role: Role::Copy,
        offset: run[0].1,
        bytes: run.last().map_or(0, end).saturating_sub(run[0].1),
        steps: stay.steps,
        form: String::new(),
        parts: run.iter().map(|&(i, _)| (tensor(i).name.clone(), tensor(i).tensor.bytes())).collect(),
    };
    stay.copies.chunk_by(|a, b| b.1 <= end(a).next_multiple_of(align)).map(slot).collect()
}

fn scratch((i, step): (usize, &Step)) -> Slot {
    Slot {
        name: format!("scratch of {}", step.label),
        role: Role::Scratch,
        offset: step.scratch_offset,
        bytes: step.scratch_bytes,
        steps: [i as u32, i as u32],
        form: String::new(),
        parts: Vec::new(),
    }
}

/// A value between the step that makes it and the last that reads it.
struct Life<'a> {
    tensor: &'a Tensor,
    steps: [u32; 2],
    made_in: Option<Part>,
    read_in: BTreeSet<u8>,
}

fn values(plan: &Plan, entry: &Entry) -> Vec<Slot> {
    let stored: BTreeSet<u32> = plan.stored.iter().map(|s| s.tensor.value).collect();
    let mut lives: BTreeMap<u32, Life> = BTreeMap::new();
    for named in &entry.inputs {
        let life = Life { tensor: &named.tensor, steps: [0, 0], made_in: None, read_in: BTreeSet::new() };
        lives.insert(named.tensor.value, life);
    }
    for (i, step) in entry.steps.iter().enumerate() {
        for arg in &step.args {
            if let Some(life) = lives.get_mut(&arg.value) {
                life.steps[1] = i as u32;
                life.read_in.insert(step.part as u8);
            }
        }
        for out in step.outs.iter().filter(|out| !stored.contains(&out.value)) {
            let new = Life { tensor: out, steps: [i as u32; 2], made_in: Some(step.part), read_in: BTreeSet::new() };
            lives.entry(out.value).or_insert(new).steps[1] = i as u32;
        }
    }
    for result in &entry.results {
        if let Some(life) = lives.get_mut(&result.tensor.value) {
            life.steps[1] = last_step(entry);
        }
    }
    let names = names(plan, entry);
    let slot = |(value, life): (&u32, &Life)| Slot {
        name: names.get(value).cloned().unwrap_or_default(),
        role: role(life),
        offset: life.tensor.offset,
        bytes: life.tensor.bytes(),
        steps: life.steps,
        form: form(life.tensor),
        parts: Vec::new(),
    };
    lives.iter().filter(|(_, life)| life.tensor.bytes() > 0).map(slot).collect()
}

fn role(life: &Life) -> Role {
    let is_read_later = life.read_in.iter().any(|&part| part != Part::Forward as u8);
    match life.made_in {
        None => Role::Input,
        Some(Part::Forward) if is_read_later && is_mask(life.tensor) => Role::Mask,
        Some(Part::Forward) if is_read_later => Role::Saved,
        Some(Part::Forward) => Role::Activation,
        Some(Part::Backward | Part::Update) => Role::Gradient,
    }
}
