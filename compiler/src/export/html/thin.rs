//! Slots that are too small to be seen, drawn as one.

use super::picture::LITTLE;
use crate::export::lives::{Role, Slot};
use std::collections::BTreeMap;

/// So many are drawn one by one whatever their size.
const FEW: usize = 400;

/// The slots, those together that are of one role and lie in the same points of the picture; `size` is the width of a
/// step and the height of a byte.
pub(super) fn thin(slots: &[Slot], size: [f64; 2]) -> Vec<Slot> {
    if slots.len() <= FEW {
        return slots.to_vec();
    }
    let mut cells: BTreeMap<(Role, [i64; 4]), Vec<&Slot>> = BTreeMap::new();
    for slot in slots {
        let [first, last] = slot.steps;
        let across = cell(f64::from(first) * size[0], f64::from(last + 1) * size[0]);
        let up = cell(slot.offset as f64 * size[1], (slot.offset + slot.bytes) as f64 * size[1]);
        cells.entry((slot.role, [across[0], across[1], up[0], up[1]])).or_default().push(slot);
    }
    let mut all: Vec<Slot> = cells.into_values().map(|slots| together(&slots)).collect();
    // What lies over another came later.
    all.sort_by_key(|s| (s.steps, s.offset));
    all
}

/// The points in which an extent begins and ends; of one smaller than a point, the point of its middle.
fn cell(from: f64, to: f64) -> [i64; 2] {
    let point = |x: f64| (x / LITTLE) as i64;
    match to - from < LITTLE {
        true => [point((from + to) / 2.0), -1],
        false => [point(from + LITTLE / 2.0), point(to + LITTLE / 2.0)],
    }
}

fn together(slots: &[&Slot]) -> Slot {
    let [first] = slots else {
        let offset = slots.iter().map(|s| s.offset).min().unwrap_or(0);
        let end = slots.iter().map(|s| s.offset + s.bytes).max().unwrap_or(0);
        let first = slots.iter().map(|s| s.steps[0]).min().unwrap_or(0);
        let last = slots.iter().map(|s| s.steps[1]).max().unwrap_or(0);
        return Slot {
            name: format!("{} places close together", slots.len()),
            role: slots[0].role,
            offset,
            bytes: end - offset,
            steps: [first, last],
            form: String::new(),
            parts: slots.iter().map(|s| (s.name.clone(), s.bytes)).collect(),
        };
    };
    (*first).clone()
}
