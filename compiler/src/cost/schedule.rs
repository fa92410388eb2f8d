//! The schedule of a plan's entry: its steps, and what moves between the memories beside them.

use super::{CostError, Schedule, Transfer, work};
use crate::machine::Machine;
use std::ops::Range;
use tinyforge_plan::{Direction, Entry, Plan};

/// Every step of the entry with its transfers, over the links that join the machine's near memory and the memory that
/// feeds it. What begins and ends together in one direction is one transfer.
///
/// # Errors
/// The entry transfers, and the machine has no link for that.
pub fn schedule(plan: &Plan, entry: &Entry, machine: &Machine) -> Result<Schedule, CostError> {
    let mut transfers: Vec<Transfer> = Vec::new();
    for event in events(entry) {
        let &tinyforge_plan::Transfer { direction, begins, ends, .. } = &entry.transfers[event.start];
        let bytes = entry.transfers[event].iter().map(|t| plan.stored[t.stored as usize].tensor.bytes()).sum();
        transfers.push(Transfer { link: link(machine, direction)?, bytes, begins, ends });
    }
    Ok(Schedule { works: entry.steps.iter().map(work).collect(), transfers })
}

/// Transfers of an entry that begin and end together in one direction, which a link carries as one: their indices.
pub fn events(entry: &Entry) -> Vec<Range<usize>> {
    let key = |t: &tinyforge_plan::Transfer| (t.direction, t.begins, t.ends);
    let mut next = 0;
    let event = |group: &[tinyforge_plan::Transfer]| {
        next += group.len();
        next - group.len()..next
    };
    entry.transfers.chunk_by(|a, b| key(a) == key(b)).map(event).collect()
}

/// The link into the near memory, or from it back to where that one comes from.
///
/// # Errors
/// There is none.
pub fn link(machine: &Machine, direction: Direction) -> Result<u32, CostError> {
    let into = machine.links.iter().position(|l| l.to == machine.near);
    let found = match direction {
        Direction::In => into,
        Direction::Out => {
            let far = into.map(|i| &machine.links[i].from);
            machine.links.iter().position(|l| l.from == machine.near && Some(&l.to) == far)
        }
    };
    let what = || format!("which link joins `{}` to the memory that blocks stream from", machine.near);
    found.map(|i| i as u32).ok_or_else(|| CostError::NoRate { machine: machine.name.clone(), what: what() })
}
