//! Trades saved activations for arithmetic.
//!
//! Before: any step. After: the same results; values whose cost to compute again is at most a block's threshold
//! (operations per byte that is no longer kept) are computed again from what is kept, right before backward reads
//! them. What passes from block to block is always kept. Recomputed values are bit-identical to the first ones:
//! the same kernels run on the same operands.

use crate::ir::graph::{Graph, Node, Region, Value, ValueInfo};
use crate::ir::ops::Op;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The highest threshold that recomputes nothing.
pub const KEEP_ALL: f64 = -1.0;

/// All thresholds at which something more is recomputed, ascending; the first is [`KEEP_ALL`].
pub fn ladder(graph: &Graph) -> Vec<f64> {
    let mut scores: Vec<f64> = scores(graph, &saved_and_boundary(graph)).into_iter().flatten().collect();
    scores.sort_by(f64::total_cmp);
    let mut rungs = vec![KEEP_ALL];
    for score in scores {
        // Scores this close differ by rounding or by a row more or less, never by kind of op.
        if score > rungs.last().copied().unwrap_or(KEEP_ALL) {
            rungs.push(score * 1.01 + 1e-9);
        }
    }
    rungs
}

/// Recomputes, with a threshold for every block.
pub fn run(graph: &mut Graph, threshold: impl Fn(u32) -> f64) {
    let read = saved_and_boundary(graph);
    let blocks = def_blocks(graph);
    let again: Vec<bool> =
        scores(graph, &read).iter().enumerate().map(|(i, s)| s.is_some_and(|s| s <= threshold(blocks[i]))).collect();
    if again.contains(&true) {
        let kept = (0..again.len()).map(|i| !again[i] && (read.0[i] || read.1[i])).collect();
        rewrite(graph, &again, kept);
    }
}

fn def_blocks(graph: &Graph) -> Vec<u32> {
    let mut blocks = vec![0; graph.values.len()];
    for node in &graph.nodes {
        node.outs.iter().for_each(|o| blocks[o.index()] = node.block);
    }
    blocks
}

/// Which forward values backward reads, and which another block's forward reads.
fn saved_and_boundary(graph: &Graph) -> (Vec<bool>, Vec<bool>) {
    let n = graph.values.len();
    let (mut saved, mut boundary, mut forward) = (vec![false; n], vec![false; n], vec![false; n]);
    let blocks = def_blocks(graph);
    for node in &graph.nodes {
        if node.region == Region::Forward {
            node.outs.iter().for_each(|o| forward[o.index()] = true);
        }
        for &a in node.args.iter().filter(|a| forward[a.index()]) {
            saved[a.index()] |= node.region != Region::Forward;
            boundary[a.index()] |= node.region == Region::Forward && blocks[a.index()] != node.block;
        }
    }
    graph.results.iter().for_each(|(_, v)| boundary[v.index()] = true);
    (saved, boundary)
}

/// For every saved value that is no boundary: the operations per byte to have it again. Values that cannot be
/// computed again have no score.
fn scores(graph: &Graph, (saved, boundary): &(Vec<bool>, Vec<bool>)) -> Vec<Option<f64>> {
    let mut scores = vec![None; graph.values.len()];
    // What it costs to have each value at hand in backward: nothing for what is kept or computed again anyway.
    let mut cost: Vec<f64> = vec![0.0; graph.values.len()];
    for node in graph.nodes.iter().filter(|n| n.region == Region::Forward) {
        let pure = (node.op.def().mutates)(&node.attrs) == 0;
        let (args, outs) = (graph.types(&node.args), graph.types(&node.outs));
        let own = (node.op.def().flops)(&args, &outs, &node.attrs) as f64;
        let all: f64 = own + node.args.iter().map(|a| cost[a.index()]).sum::<f64>();
        for &out in node.outs.iter().filter(|o| !boundary[o.index()]) {
            match saved[out.index()] {
                true if pure && all.is_finite() => scores[out.index()] = Some(all / graph.ty(out).bytes() as f64),
                true => {}
                // What changed a state cannot run again, and so nothing that needs its result can.
                false => cost[out.index()] = if pure { all } else { f64::INFINITY },
            }
        }
    }
    scores
}

/// Writes the nodes again with copies of what is computed again.
///
/// A copy stands right before its first reader; where a weight that it needs changes before that, it stands before
/// the change. Behind `clip_scale` stands a second backward or the updates: copies made before it end there, so that
/// nothing is kept from one backward to the other.
fn rewrite(graph: &mut Graph, again: &[bool], kept: Vec<bool>) {
    let defs = graph.definitions();
    let nodes = std::mem::take(&mut graph.nodes);
    let mut maker =
        Maker { graph, nodes: &nodes, defs, kept, copies: HashMap::new(), mark: "~".to_string(), out: Vec::new() };
    let wanted = |v: &Value| again.get(v.index()) == Some(&true);
    let early = maker.early(&wanted);
    for (i, node) in nodes.iter().enumerate() {
        if node.op == Op::ClipScale {
            maker.copies.clear();
            maker.mark.push('~');
        }
        let mut node = node.clone();
        if node.region != Region::Forward {
            early.get(&i).into_iter().flatten().for_each(|&v| {
                maker.copy(v);
            });
            node.args.iter_mut().filter(|a| wanted(a)).for_each(|a| *a = maker.copy(*a));
        }
        maker.out.push(node);
    }
    let out = maker.out;
    graph.nodes = out;
}

struct Maker<'a> {
    graph: &'a mut Graph,
    nodes: &'a [Node],
    defs: Vec<Option<u32>>,
    /// Values that are there in backward without being computed again.
    kept: Vec<bool>,
    copies: HashMap<Value, Value>,
    /// Appended to the names of copies.
    mark: String,
    out: Vec<Node>,
}

impl Maker<'_> {
    /// For nodes that change a weight: the values whose copies a later reader wants and that need the old weight.
    fn early(&self, wanted: &impl Fn(&Value) -> bool) -> BTreeMap<usize, Vec<Value>> {
        let mut changed_at: HashMap<Value, usize> = HashMap::new();
        let mut early: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.region != Region::Forward) {
            for &arg in node.args.iter().filter(|a| wanted(a)) {
                let mut reads = HashSet::new();
                self.reads(arg, &mut reads);
                if let Some(&first) = reads.iter().filter_map(|w| changed_at.get(w)).min() {
                    early.entry(first).or_default().push(arg);
                }
            }
            for &arg in &node.args[..(node.op.def().mutates)(&node.attrs)] {
                changed_at.entry(arg).or_insert(i);
            }
        }
        early
    }

    /// All that the copy of a value reads, directly and through other copies.
    fn reads(&self, v: Value, reads: &mut HashSet<Value>) {
        let node = &self.nodes[self.defs[v.index()].expect("forward values have a node") as usize];
        for &arg in &node.args {
            if reads.insert(arg) && self.needs_copy(arg) {
                self.reads(arg, reads);
            }
        }
    }

    fn is_forward(&self, v: Value) -> bool {
        self.defs[v.index()].is_some_and(|d| self.nodes[d as usize].region == Region::Forward)
    }

    /// The copy of a value, its node appended when it does not exist yet, after those of its operands.
    fn copy(&mut self, v: Value) -> Value {
        if let Some(&copy) = self.copies.get(&v) {
            return copy;
        }
        let node = self.nodes[self.defs[v.index()].expect("forward values have a node") as usize].clone();
        let args = node.args.iter().map(|&a| if self.needs_copy(a) { self.copy(a) } else { a }).collect();
        let mut outs = Vec::new();
        for &out in &node.outs {
            let info = self.graph.info(out).clone();
            let copy = self.graph.add_value(ValueInfo { name: format!("{}{}", info.name, self.mark), ..info });
            self.copies.insert(out, copy);
            outs.push(copy);
        }
        self.out.push(Node { args, outs, region: Region::Backward, ..node });
        self.copies[&v]
    }

    /// Whether an operand of a copied node must itself be computed again: nothing keeps it.
    fn needs_copy(&self, v: Value) -> bool {
        self.is_forward(v) && !self.kept[v.index()]
    }
}
