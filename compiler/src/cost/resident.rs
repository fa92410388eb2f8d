//! The schedule of an entry whose tensors all lie in the near memory.

use super::{Schedule, work};
use tinyforge_plan::Entry;

/// Every step of the entry, no transfer.
pub fn resident(entry: &Entry) -> Schedule {
    Schedule { works: entry.steps.iter().map(work).collect(), transfers: Vec::new() }
}
