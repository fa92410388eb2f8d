//! The schedule of a plan's entry: its steps, and what moves between the memories beside them.

use super::{CostError, Schedule, Transfer, work_in};
use crate::machine::Machine;
use std::ops::Range;
use tinyforge_plan::{Direction, Entry, Plan};

/// Every step of the entry with its transfers, over the links that join the machine's near memory with the memory that
/// feeds it, and that one with files. What begins and ends together in one direction, of one far memory, is one
/// transfer.
///
/// # Errors
/// The entry transfers, and the machine has no link for that.
pub fn schedule(plan: &Plan, entry: &Entry, machine: &Machine) -> Result<Schedule, CostError> {
    let mut transfers: Vec<Transfer> = Vec::new();
    let host_steps = plan.host_steps(entry);
    for event in events(plan, entry) {
        let &tinyforge_plan::Transfer { stored, direction, begins, ends, .. } = &entry.transfers[event.start];
        let moved = &entry.transfers[event];
        let bytes = moved.iter().map(|t| plan.stored[t.stored as usize].tensor.bytes()).sum();
        let Path { link, files } = path(machine, direction)?;
        let files = files.filter(|_| !plan.is_in_host(stored));
        let follows = moved.iter().filter_map(|t| plan.changed_by(entry, &host_steps, t)).max();
        let follows = follows.map(|i| host_steps[i]);
        transfers.push(Transfer { link, files, bytes, begins, ends, follows });
    }
    Ok(Schedule { works: entry.steps.iter().map(|step| work_in(plan, step)).collect(), transfers })
}

/// Transfers of an entry that begin and end together in one direction, of tensors in one far memory, which a link
/// carries as one: their indices.
pub fn events(plan: &Plan, entry: &Entry) -> Vec<Range<usize>> {
    let key = |t: &tinyforge_plan::Transfer| (t.direction, plan.is_in_host(t.stored), t.begins, t.ends);
    let mut next = 0;
    let event = |group: &[tinyforge_plan::Transfer]| {
        next += group.len();
        next - group.len()..next
    };
    entry.transfers.chunk_by(|a, b| key(a) == key(b)).map(event).collect()
}

/// Links that transfers of one direction cross.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The one that ends, or begins, at the near memory.
    pub link: u32,
    /// The one that joins files and the memory that feeds the near one, where that is the host's.
    pub files: Option<u32>,
}

/// The link into the near memory, or from it back to where that one comes from; and the one that leads on from there
/// to files, or from them.
///
/// # Errors
/// There is none.
pub fn path(machine: &Machine, direction: Direction) -> Result<Path, CostError> {
    let near = machine.near.as_str();
    let feeds = machine.links.iter().find(|l| l.to == near).map(|l| l.from.as_str());
    let joins = |from, to| machine.link(from, to).map(|i| i as u32);
    let found = feeds.and_then(|feeds| {
        Some(match direction {
            Direction::In => Path { link: joins(feeds, near)?, files: joins(DISK, feeds) },
            Direction::Out => Path { link: joins(near, feeds)?, files: joins(feeds, DISK) },
        })
    });
    let what = || format!("which link joins `{near}` to the memory that blocks stream from");
    found.ok_or_else(|| CostError::NoRate { machine: machine.name.clone(), what: what() })
}

/// Name of the memory that files lie in.
const DISK: &str = "disk";
