//! Values that many plans of one network compute alike from a sample, made once.
//!
//! Plans that train different parts of a network agree in what lies before all of those parts. What one plan's leading
//! steps leave behind is kept by name, and another plan starts from there instead of from the sample: the same kernels
//! on the same operands, hence the same bits.

use super::prefix::{CACHE_BYTES_MAX, Prefix};
use super::{SimulateError, put};
use crate::arena::Arena;
use crate::runner::Runner;
use crate::samples::Samples;
use std::collections::{BTreeMap, BTreeSet};
use tinyforge_plan::{Entry, Plan, Tensor};

/// What leading steps leave behind, for every sample.
pub(super) struct Features {
    /// The values: name and a tensor of this storage and shape.
    kept: Vec<(String, Tensor)>,
    bytes_each: usize,
    bytes: Vec<u8>,
}

impl Features {
    /// Runs the leading steps of an entry over all samples; nothing is kept where that would take too much memory.
    pub(super) fn make(runner: &mut Runner, entry: usize, samples: &Samples) -> Result<Features, SimulateError> {
        let prefix = Prefix::new(runner.plan(), &runner.plan().entries[entry], "images", samples.len());
        let names = names(&runner.plan().entries[entry]);
        let kept: Option<Vec<(String, Tensor)>> =
            prefix.kept().iter().map(|t| Some((names.get(&t.value)?.clone(), t.clone()))).collect();
        let kept = kept.unwrap_or_default();
        let bytes_each: usize = kept.iter().map(|(_, t)| t.bytes() as usize).sum();
        if bytes_each == 0 || bytes_each.saturating_mul(samples.len()) > CACHE_BYTES_MAX {
            return Ok(Features { kept: Vec::new(), bytes_each: 0, bytes: Vec::new() });
        }
        let mut bytes = Vec::with_capacity(bytes_each * samples.len());
        for sample in 0..samples.len() {
            put(runner.input::<i8>(entry, "images"), samples.sample(sample));
            runner.run_steps(entry, 0..prefix.steps)?;
            kept.iter().for_each(|(_, t)| bytes.extend_from_slice(runner.arena().tensor(t)));
        }
        Ok(Features { kept, bytes_each, bytes })
    }
}

/// Names of the values that steps make: what a step computes is its first result.
fn names(entry: &Entry) -> BTreeMap<u32, String> {
    entry.steps.iter().filter_map(|s| Some((s.outs.first()?.value, s.label.clone()))).collect()
}

/// Where an entry may start from features.
pub(super) struct Shortcut {
    /// The first step that is run.
    pub(super) first: usize,
    /// What is put where: a tensor of this entry, and its place in a sample's features.
    puts: Vec<(Tensor, usize)>,
}

impl Shortcut {
    /// The latest start, at most at step `last`, for which the features hold all that later steps read of earlier
    /// ones; `None` where there is none but the first step.
    pub(super) fn find(plan: &Plan, entry: &Entry, last: usize, features: &Features) -> Option<Shortcut> {
        let names = names(entry);
        let stored: BTreeSet<u32> = plan.stored.iter().map(|s| s.tensor.value).collect();
        let inputs: BTreeSet<u32> = entry.inputs.iter().map(|n| n.tensor.value).collect();
        let mut at = BTreeMap::new();
        let mut offset = 0;
        for (name, tensor) in &features.kept {
            at.insert(name.as_str(), (tensor, offset));
            offset += tensor.bytes() as usize;
        }
        (1..=last).rev().find_map(|first| {
            let made: BTreeSet<u32> = entry.steps[first..].iter().flat_map(|s| &s.outs).map(|t| t.value).collect();
            let reads = entry.steps[first..].iter().flat_map(|s| &s.args);
            let results = entry.results.iter().map(|r| &r.tensor);
            let mut puts: BTreeMap<u32, (Tensor, usize)> = BTreeMap::new();
            for t in reads.chain(results).filter(|t| !made.contains(&t.value) && !stored.contains(&t.value)) {
                if inputs.contains(&t.value) {
                    // An input's place may be taken by then, so none that steps have passed can be filled again.
                    let is_whole = entry.steps[..first].iter().flat_map(|s| &s.outs).all(|o| !overlaps(o, t));
                    if is_whole {
                        continue;
                    }
                    return None;
                }
                let &(kept, from) = at.get(names.get(&t.value)?.as_str())?;
                if (kept.dtype, &kept.shape) != (t.dtype, &t.shape) {
                    return None;
                }
                puts.insert(t.value, (t.clone(), from));
            }
            Some(Shortcut { first, puts: puts.into_values().collect() })
        })
    }

    /// Puts a sample's features in their places.
    pub(super) fn restore(&self, features: &Features, sample: usize, arena: &mut Arena) {
        let all = &features.bytes[sample * features.bytes_each..][..features.bytes_each];
        for (tensor, from) in &self.puts {
            arena.tensor_mut(tensor).copy_from_slice(&all[*from..][..tensor.bytes() as usize]);
        }
    }
}

fn overlaps(a: &Tensor, b: &Tensor) -> bool {
    a.offset < b.end() && b.offset < a.end()
}
