//! Puts all micro-batches of a step into one graph, so that a block's weights are visited once for all of them.
//!
//! Before: a graph that adds the gradients of one micro-batch to states, and the graph that updates from those. After:
//! one graph with a copy of the first for every micro-batch, whose inputs and results are named `m<number>.<name>`
//! from the second copy on; gradient sums are values that pass from copy to copy, and each ends in its update. What is
//! added to what, and in which order, stays the same. [`gather`](super::pipeline::gather) then brings the nodes of a
//! block together.

use crate::ir::graph::{Graph, Kind, Node, Region, Value, ValueInfo};
use crate::ir::ops::Op;
use std::collections::HashMap;
use tinyforge_plan::GRADIENT_SUM;

/// Puts `micro_batches` copies of `step` and one of `update` together.
pub fn run(step: &Graph, update: &Graph, micro_batches: u32) -> Graph {
    let mut whole =
        Whole { graph: Graph { blocks: step.blocks.clone(), ..Graph::new(step.rows) }, sums: HashMap::new() };
    let blocks = blocks_of_weights(step);
    for micro in 0..micro_batches {
        whole.copy(step, &prefix(micro), |_| None);
    }
    whole.copy(update, "", |node| node.args.first().and_then(|&a| blocks.get(&update.info(a).name).copied()));
    whole.graph
}

/// What stands before the names of a micro-batch's inputs and results.
fn prefix(micro: u32) -> String {
    if micro == 0 { String::new() } else { format!("m{micro}.") }
}

/// For every weight the block of the last node that reads it.
fn blocks_of_weights(step: &Graph) -> HashMap<String, u32> {
    let reads = step.nodes.iter().flat_map(|n| n.args.iter().map(move |&a| (a, n.block)));
    let of_weight = reads.filter(|(a, _)| step.info(*a).decl == Some(Kind::Weight));
    of_weight.map(|(a, block)| (step.info(a).name.clone(), block)).collect()
}

/// A sum of gradients, which `update` keeps in a state of this name.
fn is_sum(info: &ValueInfo) -> bool {
    info.decl == Some(Kind::State) && info.name.contains(GRADIENT_SUM)
}

/// Inputs that are the same for all micro-batches.
fn is_common(name: &str) -> bool {
    matches!(name, "hyper" | "rng")
}

struct Whole {
    graph: Graph,
    /// The newest value of every sum, by its state's name; none before the first addition.
    sums: HashMap<String, Value>,
}

impl Whole {
    /// Appends the nodes of a graph; `block_of` says where a node belongs if not in its own block.
    fn copy(&mut self, from: &Graph, prefix: &str, block_of: impl Fn(&Node) -> Option<u32>) {
        let mut taken: HashMap<String, Value> =
            self.graph.values.iter().enumerate().map(|(i, v)| (v.name.clone(), Value(i as u32))).collect();
        let mut copies: HashMap<Value, Value> = HashMap::new();
        for (i, info) in from.values.iter().enumerate().filter(|(_, info)| !is_sum(info)) {
            let is_own = info.decl.is_none() || (info.decl == Some(Kind::Input) && !is_common(&info.name));
            let mut name = if is_own { format!("{prefix}{}", info.name) } else { info.name.clone() };
            while is_own && taken.contains_key(&name) {
                name.push_str(".sum");
            }
            let known = taken.get(&name).copied().filter(|_| !is_own);
            let copy = known.unwrap_or_else(|| {
                let copy = self.graph.add_value(ValueInfo { name: name.clone(), ..info.clone() });
                taken.insert(name, copy);
                copy
            });
            copies.insert(Value(i as u32), copy);
        }
        for node in &from.nodes {
            self.node(from, node, &mut copies, block_of(node));
        }
        let results = from.results.iter().map(|(name, v)| (format!("{prefix}{name}"), copies[v]));
        self.graph.results.extend(results);
    }

    fn node(&mut self, from: &Graph, node: &Node, copies: &mut HashMap<Value, Value>, block: Option<u32>) {
        let sum_of = |v: Value| Some(&from.info(v).name).filter(|_| is_sum(from.info(v)));
        match (node.op, node.args.first().and_then(|&a| sum_of(a))) {
            // The sum is stored, or cleared: here it has a name instead.
            (Op::Assign, Some(sum)) => {
                self.sums.insert(sum.clone(), copies[&node.args[1]]);
                return;
            }
            (Op::Zero, Some(_)) => return,
            // The first contribution is the sum.
            (Op::Add, Some(sum)) if node.region != Region::Update && !self.sums.contains_key(sum) => {
                copies.insert(node.outs[0], copies[&node.args[1]]);
                return;
            }
            _ => {}
        }
        let mut copy = node.clone();
        copy.args.clear();
        for &arg in &node.args {
            match sum_of(arg) {
                None => copy.args.push(copies[&arg]),
                Some(sum) => match self.sums.get(sum) {
                    Some(&value) => copy.args.push(value),
                    // An accumulator is the last operand, and may be left out.
                    None => {
                        copy.attrs.set("running", false.into());
                    }
                },
            }
        }
        copy.outs.iter_mut().for_each(|v| *v = copies[v]);
        copy.block = block.unwrap_or(node.block);
        self.graph.nodes.push(copy);
    }
}
