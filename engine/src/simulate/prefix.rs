//! What of an entry depends on the sample alone: computed once a sample, then copied back.
//!
//! The leading steps that read neither a tensor that training changes nor an input other than the sample give the
//! same bytes every epoch. What later steps read of them is small beside what it took to make them.

use crate::arena::Arena;
use std::collections::BTreeSet;
use tinyforge_plan::{Entry, Plan, Tensor};

/// Bytes that a cache may take.
pub(super) const CACHE_BYTES_MAX: usize = 4 << 30;

/// The results of an entry's leading steps for every sample.
pub(super) struct Prefix {
    /// How many leading steps depend on the sample alone.
    pub(super) steps: usize,
    /// What the others read of them.
    kept: Vec<Tensor>,
    bytes_each: usize,
    bytes: Vec<u8>,
    filled: Vec<bool>,
}

impl Prefix {
    /// The prefix of an entry whose sample is the input `input`, with room for `samples` samples; none where that
    /// would take more than [`CACHE_BYTES_MAX`].
    pub(super) fn new(plan: &Plan, entry: &Entry, input: &str, samples: usize) -> Prefix {
        let (mut steps, mut kept) = find(plan, entry, input);
        let mut bytes_each: usize = kept.iter().map(|t| t.bytes() as usize).sum();
        if bytes_each.saturating_mul(samples) > CACHE_BYTES_MAX {
            (steps, bytes_each) = (0, 0);
            kept.clear();
        }
        Prefix { steps, kept, bytes_each, bytes: vec![0; bytes_each * samples], filled: vec![false; samples] }
    }

    /// How many samples it is for.
    pub(super) fn samples(&self) -> usize {
        self.filled.len()
    }

    /// What is kept of a sample.
    pub(super) fn kept(&self) -> &[Tensor] {
        &self.kept
    }

    /// Puts a sample's values back; false when they were never kept.
    pub(super) fn restore(&self, sample: usize, arena: &mut Arena) -> bool {
        if self.steps == 0 || !self.filled[sample] {
            return false;
        }
        let mut from = &self.bytes[sample * self.bytes_each..(sample + 1) * self.bytes_each];
        for tensor in &self.kept {
            let (head, tail) = from.split_at(tensor.bytes() as usize);
            arena.tensor_mut(tensor).copy_from_slice(head);
            from = tail;
        }
        true
    }

    /// Keeps a sample's values, right after the leading steps ran.
    pub(super) fn keep(&mut self, sample: usize, arena: &Arena) {
        if self.steps == 0 {
            return;
        }
        let mut to = &mut self.bytes[sample * self.bytes_each..(sample + 1) * self.bytes_each];
        for tensor in &self.kept {
            let (head, tail) = to.split_at_mut(tensor.bytes() as usize);
            head.copy_from_slice(arena.tensor(tensor));
            to = tail;
        }
        self.filled[sample] = true;
    }
}

/// How many leading steps depend on the sample alone, and the values of theirs that others read.
fn find(plan: &Plan, entry: &Entry, input: &str) -> (usize, Vec<Tensor>) {
    let mut unsteady: BTreeSet<u32> = plan.stored.iter().filter(|s| s.changes).map(|s| s.tensor.value).collect();
    unsteady.extend(entry.inputs.iter().filter(|n| n.name != input).map(|n| n.tensor.value));
    let is_steady = |t: &Tensor| !unsteady.contains(&t.value);
    let steps = entry.steps.iter().take_while(|s| s.changes == 0 && s.args.iter().all(is_steady)).count();
    let made: BTreeSet<u32> = entry.steps[..steps].iter().flat_map(|s| &s.outs).map(|t| t.value).collect();
    let later = entry.steps[steps..].iter().flat_map(|s| &s.args).chain(entry.results.iter().map(|r| &r.tensor));
    let mut seen = BTreeSet::new();
    let kept = later.filter(|t| made.contains(&t.value) && seen.insert(t.value)).cloned().collect();
    (steps, kept)
}
