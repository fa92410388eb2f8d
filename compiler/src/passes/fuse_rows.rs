//! Runs int8 bottlenecks by rows where memory is fullest.
//!
//! Before: an ordered graph. After: the same results, bit for bit. Three convolutions in a row (the second depthwise,
//! the third 1x1) whose inner images nothing else reads, and whose masks nobody wants, are one `i8_bottleneck`, of
//! whose inner images only some rows exist at a time; but only where one of the three is at the peak and this lowers
//! it.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Node, Region};
use crate::ir::ops::Op;

/// Fuses where that lowers the peak. `profile` gives the bytes that are live at every node, scratch included, or
/// nothing when the device has no kernel for one of them.
pub fn run(graph: &mut Graph, profile: impl Fn(&Graph) -> Option<Vec<u64>>) {
    let mut chains = chains(graph);
    while !chains.is_empty() {
        let Some(before) = profile(graph) else { return };
        let peak = before.iter().copied().max().unwrap_or(0);
        let most =
            |profile: &[u64], [first, _, last]: [usize; 3]| profile[first..last].iter().copied().max().unwrap_or(0);
        let lower = chains.iter().filter(|&&[a, b, c]| most(&before, [a, b, c + 1]) == peak).find_map(|&chain| {
            let fused = fuse(graph, chain);
            let [a, b, c] = chain;
            // Two nodes fewer stand there now.
            profile(&fused).filter(|after| most(after, [a, b, c - 1]) < peak).map(|_| fused)
        });
        let Some(fused) = lower else { return };
        *graph = fused;
        graph.sweep(|info| info.decl.is_some());
        chains = self::chains(graph);
    }
}

/// Indices of three convolutions behind each other.
fn chains(graph: &Graph) -> Vec<[usize; 3]> {
    let (defs, uses) = (graph.definitions(), graph.uses());
    let is_inner = |node: &Node, reader: usize| {
        let out = node.outs[0];
        node.outs.len() == 1
            && uses[out.index()] == [reader as u32]
            && graph.results.iter().all(|(_, v)| *v != out)
            && node.region == Region::Forward
    };
    let before = |i: usize| {
        let d = defs[graph.nodes[i].args[0].index()]? as usize;
        is_inner(&graph.nodes[d], i).then_some(d)
    };
    let is_point =
        |node: &Node| node.op == Op::I8Conv2d && node.outs.len() == 1 && graph.ty(node.args[1]).shape[1..3] == [1, 1];
    let chain = |c: usize| {
        let b = before(c).filter(|&b| graph.nodes[b].op == Op::I8Depthwise)?;
        let a = before(b).filter(|&a| graph.nodes[a].op == Op::I8Conv2d)?;
        Some([a, b, c])
    };
    (0..graph.nodes.len()).filter(|&i| is_point(&graph.nodes[i])).filter_map(chain).collect()
}

/// The graph with a chain in one node.
fn fuse(graph: &Graph, chain: [usize; 3]) -> Graph {
    let mut fused = graph.clone();
    let parts = chain.map(|i| &graph.nodes[i]);
    let def = Op::I8Bottleneck.def();
    let mut attrs = Attrs::of(def.attrs, &[]);
    for (prefix, part) in ["a_", "b_", "c_"].iter().zip(parts) {
        let set = |attrs: &mut Attrs, name: &str, value: Attr| attrs.set(&format!("{prefix}{name}"), value);
        for (name, value) in part.attrs.iter().filter(|(name, _)| *name != "mask") {
            assert!(set(&mut attrs, name, value), "the bottleneck has the attributes of its parts");
        }
    }
    let args = parts.iter().enumerate().flat_map(|(i, part)| &part.args[usize::from(i > 0)..]).copied().collect();
    let last = parts[2];
    fused.nodes[chain[2]] = Node { op: Op::I8Bottleneck, args, attrs, ..last.clone() };
    fused.nodes.remove(chain[1]);
    fused.nodes.remove(chain[0]);
    fused
}
