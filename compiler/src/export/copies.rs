//! Which blocks are in the near memory when, and what carries them there: a streamed plan's copies, as stays.
//!
//! All is read off the plan alone: a copy is there from the step at which it begins to come in, or from the run
//! before, to the last step that reads it or that it goes back beside; what is resident at the end stays until then.
//! A block belongs to its tensors by the steps that read them.

use std::collections::{BTreeMap, BTreeSet};
use tinyforge_plan::{Direction, Entry, Plan, StoredKind, Transfer};

/// What moves together: the weights of a block, or its optimizer's states.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Group {
    /// The block's name.
    pub block: String,
    /// Whether these are states.
    pub is_state: bool,
}

impl Group {
    /// `layers.3`, `states of layers.3`.
    pub fn name(&self) -> String {
        match self.is_state {
            true => format!("states of {}", self.block),
            false => self.block.clone(),
        }
    }
}

/// A group's copies in the near memory, from the step at which they begin to come to the one after which their place
/// is free.
#[derive(Clone, PartialEq, Debug)]
pub struct Stay {
    /// Whose copies.
    pub group: Group,
    /// The copies: index into [`Plan::stored`] and first byte in the near memory.
    pub copies: Vec<(u32, u64)>,
    /// First and last step.
    pub steps: [u32; 2],
    /// First and last step beside which they come in; `None` when they are there from the run before.
    pub comes: Option<[u32; 2]>,
    /// First and last steps beside which changed ones go back.
    pub goes: Vec<[u32; 2]>,
}

impl Stay {
    /// Bytes of the copies.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        self.copies.iter().map(|&(stored, _)| plan.stored[stored as usize].tensor.bytes()).sum()
    }
}

/// The group of every stored tensor of a far memory that the entry's steps read or its transfers move.
pub fn groups(plan: &Plan, entry: &Entry) -> BTreeMap<u32, Group> {
    let mut block_of: BTreeMap<u32, u32> = BTreeMap::new();
    for step in &entry.steps {
        step.args.iter().for_each(|arg| {
            block_of.entry(arg.value).or_insert(step.block);
        });
    }
    let moved: BTreeSet<u32> =
        entry.transfers.iter().map(|t| t.stored).chain(entry.residents.iter().map(|r| r.stored)).collect();
    let group = |&stored: &u32| {
        let tensor = &plan.stored[stored as usize];
        let block = block_of.get(&tensor.tensor.value).and_then(|&b| entry.blocks.get(b as usize));
        // What no step reads goes by its own name.
        let block = block.unwrap_or(&tensor.name).clone();
        (stored, Group { block, is_state: tensor.kind == StoredKind::State })
    };
    moved.iter().map(group).collect()
}

/// The stays of an entry, by the step at which they begin.
pub fn stays(plan: &Plan, entry: &Entry) -> Vec<Stay> {
    let groups = groups(plan, entry);
    let mut stays: BTreeMap<(u32, u32, Group), Stay> = BTreeMap::new();
    for copy in copies(plan, entry) {
        let group = groups[&copy.stored].clone();
        let key = copy.comes.map_or((0, 0), |[begins, ends]| (begins + 1, ends));
        let new = || Stay { group: group.clone(), copies: vec![], steps: copy.steps, comes: None, goes: vec![] };
        let stay = stays.entry((key.0, key.1, group.clone())).or_insert_with(new);
        stay.copies.push((copy.stored, copy.near_byte));
        stay.steps = [stay.steps[0].min(copy.steps[0]), stay.steps[1].max(copy.steps[1])];
        stay.comes = copy.comes.map(|window| beside(entry, window));
        for window in copy.goes.iter().map(|&window| beside(entry, window)) {
            if !stay.goes.contains(&window) {
                stay.goes.push(window);
            }
        }
    }
    let mut stays: Vec<Stay> = stays.into_values().collect();
    stays.iter_mut().for_each(|stay| stay.copies.sort_by_key(|&(_, near_byte)| near_byte));
    stays
}

/// First and last step beside which a transfer may run that begins and ends before these.
fn beside(entry: &Entry, [begins, ends]: [u32; 2]) -> [u32; 2] {
    let last = entry.steps.len().saturating_sub(1) as u32;
    [begins.min(last), ends.saturating_sub(1).clamp(begins.min(last), last)]
}

/// One tensor's copy.
struct Copy {
    stored: u32,
    near_byte: u64,
    steps: [u32; 2],
    comes: Option<[u32; 2]>,
    goes: Vec<[u32; 2]>,
}

fn copies(plan: &Plan, entry: &Entry) -> Vec<Copy> {
    // Of every place of a tensor: the copies that it held one after the other.
    let mut held: BTreeMap<(u32, u64), Vec<Copy>> = BTreeMap::new();
    for r in &entry.residents {
        let copy = Copy { stored: r.stored, near_byte: r.near_byte, steps: [0, 0], comes: None, goes: vec![] };
        held.entry((r.stored, r.near_byte)).or_default().push(copy);
    }
    for &Transfer { stored, near_byte, direction, begins, ends } in &entry.transfers {
        let copies = held.entry((stored, near_byte)).or_default();
        let [first, last] = beside(entry, [begins, ends]);
        match (direction, copies.last_mut()) {
            (Direction::Out, Some(copy)) => {
                copy.goes.push([begins, ends]);
                copy.steps[1] = copy.steps[1].max(last);
            }
            _ => {
                let comes = (direction == Direction::In).then_some([begins, ends]);
                copies.push(Copy { stored, near_byte, steps: [first, last], comes, goes: vec![] });
            }
        }
    }
    let places: BTreeMap<u32, Vec<(u32, u64)>> = held.keys().fold(BTreeMap::new(), |mut places, &(stored, near)| {
        places.entry(plan.stored[stored as usize].tensor.value).or_insert_with(Vec::new).push((stored, near));
        places
    });
    for (i, step) in entry.steps.iter().enumerate() {
        for arg in &step.args {
            let place = places.get(&arg.value).and_then(|all| all.iter().find(|(_, near)| *near == arg.offset));
            let copies = place.and_then(|place| held.get_mut(place));
            let read = copies.and_then(|all| all.iter_mut().rfind(|copy| copy.steps[0] <= i as u32));
            if let Some(copy) = read {
                copy.steps[1] = copy.steps[1].max(i as u32);
            }
        }
    }
    for r in &entry.residents {
        if let Some(copy) = held.get_mut(&(r.stored, r.near_byte)).and_then(|copies| copies.last_mut()) {
            copy.steps[1] = entry.steps.len().saturating_sub(1) as u32;
        }
    }
    held.into_values().flatten().collect()
}
