//! Sends activations to the far memory between forward and backward.
//!
//! Before: a step in the order in which it will run. After: what backward reads of forward, and other blocks do not
//! need in between, is kept in a state (`<value>.spilled`) that `pipeline` lets live in the far memory: it is set where
//! the value is known, and read in the value's place. A node reads one such state at most.

use crate::ir::graph::{Builder, Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use std::collections::{HashMap, HashSet};
use tinyforge_plan::SPILLED;

/// Blocks that are walked between the last reader in forward and the first in backward, for a copy to be worth it.
const BLOCKS_BETWEEN: usize = 3;

/// Spills what it can.
pub fn run(graph: &mut Graph) {
    let chosen = choose(graph);
    let mut states: HashMap<Value, Value> = HashMap::new();
    let nodes = std::mem::take(&mut graph.nodes);
    let mut b = Builder::new(graph);
    for node in nodes {
        let Node { block, region, .. } = node;
        let args = node.args.iter().map(|a| states.get(a).copied().unwrap_or(*a)).collect();
        let kept: Vec<Value> = node.outs.iter().copied().filter(|v| chosen.contains(v)).collect();
        b.graph.nodes.push(Node { args, ..node });
        b.at(block, region);
        for v in kept {
            let name = format!("{}{SPILLED}", b.graph.info(v).name);
            let state = b.declare(Kind::State, &name, b.graph.ty(v).clone());
            b.push(&name, Op::Assign, &[state, v], &[]);
            states.insert(v, state);
        }
    }
}

/// Bytes of the largest value that would be spilled: the most that spilling can cost where it gains nothing. `None`
/// where nothing would be.
pub fn largest_bytes(graph: &Graph) -> Option<u64> {
    choose(graph).into_iter().map(|v| graph.ty(v).bytes()).max()
}

/// The values that are spilled.
fn choose(graph: &Graph) -> HashSet<Value> {
    let uses = graph.uses();
    let results: HashSet<Value> = graph.results.iter().map(|&(_, v)| v).collect();
    let mut taken = vec![false; graph.nodes.len()];
    let mut chosen = HashSet::new();
    for node in graph.nodes.iter().filter(|n| n.region == Region::Forward) {
        for &v in node.outs.iter().filter(|v| !results.contains(v)) {
            let readers = &uses[v.index()];
            if rests(graph, readers) && readers.iter().all(|&r| !taken[r as usize]) {
                readers.iter().for_each(|&r| taken[r as usize] = true);
                chosen.insert(v);
            }
        }
    }
    chosen
}

/// Whether a value with these readers has a long rest between forward and backward.
fn rests(graph: &Graph, readers: &[u32]) -> bool {
    let is_forward = |r: &&u32| graph.nodes[**r as usize].region == Region::Forward;
    let (Some(&last), Some(&first)) = (readers.iter().rfind(is_forward), readers.iter().find(|r| !is_forward(r)))
    else {
        return false;
    };
    if first < last {
        return false;
    }
    let between = &graph.nodes[last as usize + 1..first as usize];
    let blocks = between.chunk_by(|a, b| a.block == b.block && a.region == b.region);
    blocks.take(BLOCKS_BETWEEN).count() == BLOCKS_BETWEEN
}
