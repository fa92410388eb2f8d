//! Runs the backward pass of int8 bottlenecks by channels where memory is fullest.
//!
//! Before: an ordered graph. After: the same results, bit for bit. The gradients of a projection's input, of a
//! depthwise convolution's and of an expansion's, with masks and updates between them, are one
//! `i8_bottleneck_grad_update`, of whose inner gradients only some channels exist at a time; but only where one of them
//! is at the peak and this lowers it.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Node, Region, Value};
use crate::ir::ops::Op;

/// Fuses where that lowers the peak. `profile` gives the bytes that are live at every node, scratch included, or
/// nothing when the device has no kernel for one of them.
pub fn run(graph: &mut Graph, profile: impl Fn(&Graph) -> Option<Vec<u64>>) {
    let mut all = chains(graph);
    while !all.is_empty() {
        let Some(before) = profile(graph) else { return };
        let peak = before.iter().copied().max().unwrap_or(0);
        let fullest = |profile: &[u64]| profile.iter().filter(|&&bytes| bytes == peak).count();
        let at_peak = |chain: &&Chain| (chain.first()..=chain.last()).any(|i| before[i] == peak);
        let better = all.iter().filter(at_peak).find_map(|chain| {
            let fused = fuse(graph, chain);
            // Less at this place, though another may be as full.
            let after = profile(&fused).filter(|after| after.iter().all(|&bytes| bytes <= peak))?;
            (fullest(&after) < fullest(&before)).then_some(fused)
        });
        let Some(fused) = better else { return };
        *graph = fused;
        all = chains(graph);
    }
}

/// The nodes of one bottleneck's backward pass.
struct Chain {
    /// Gradient of the projection's input, mask, gradient of the depthwise input, mask, gradient of the block's input.
    path: [usize; 5],
    /// Updates of the bias of the depthwise convolution and of the expansion's.
    biases: [usize; 2],
    /// Update of the expansion's weight.
    weight: Option<usize>,
    /// Before which node all operands are there and none has changed yet.
    place: usize,
}

impl Chain {
    fn nodes(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.path.iter().chain(&self.biases).copied().chain(self.weight).collect();
        all.sort_unstable();
        all
    }

    fn first(&self) -> usize {
        self.path[0]
    }

    fn last(&self) -> usize {
        self.nodes().last().copied().unwrap_or(0)
    }
}

/// All chains of a graph.
fn chains(graph: &Graph) -> Vec<Chain> {
    let (defs, uses) = (graph.definitions(), graph.uses());
    (0..graph.nodes.len()).filter_map(|i| chain(graph, i, &defs, &uses)).collect()
}

/// The chain whose gradient of the block's input is node `end`.
fn chain(graph: &Graph, end: usize, defs: &[Option<u32>], uses: &[Vec<u32>]) -> Option<Chain> {
    let node = |i: usize| &graph.nodes[i];
    let before = |i: usize, op: Op| {
        let value = node(i).args[0];
        let d = defs[value.index()]? as usize;
        (node(d).op == op && graph.results.iter().all(|(_, v)| *v != value)).then_some(d)
    };
    // What reads the gradient at node `i` beside the next of the path.
    let others = |i: usize, next: usize| {
        uses[node(i).outs[0].index()].iter().map(|&u| u as usize).filter(move |&u| u != next).collect::<Vec<_>>()
    };
    if !is_point(graph, end) {
        return None;
    }
    let scaled = before(end, Op::I8ScaleGrad)?;
    let depthwise = before(scaled, Op::I8DepthwiseGradX)?;
    let narrow = before(depthwise, Op::I8ScaleGrad)?;
    let project = before(narrow, Op::I8Conv2dGradX).filter(|&i| is_point(graph, i))?;
    let is_masked = |i: usize| node(i).attrs.flag("has_mask");
    let is_alone = others(project, narrow).is_empty() && others(depthwise, scaled).is_empty();
    if !is_masked(scaled) || !is_masked(narrow) || !is_alone || node(depthwise).attrs.int("multiplier") != 1 {
        return None;
    }
    // An update that keeps states is a call of its own.
    let is_plain = |i: usize| (node(i).op.def().mutates)(&node(i).attrs) == 1;
    let is_bias = |i: &usize| node(*i).op == Op::I8GradBUpdate && is_plain(*i);
    let [second] = others(narrow, depthwise)[..].try_into().ok().filter(|[i]: &[usize; 1]| is_bias(i))?;
    let rest = others(scaled, end);
    let first = rest.iter().copied().find(is_bias)?;
    let weight = rest.iter().copied().find(|&i| i != first);
    let suits = |i: usize| node(i).op == Op::I8Conv2dGradWUpdate && is_plain(i) && node(i).args[0] == node(end).args[1];
    if rest.len() > 2 || weight.is_some_and(|i| !suits(i)) {
        return None;
    }
    let mut chain =
        Chain { path: [project, narrow, depthwise, scaled, end], biases: [second, first], weight, place: project };
    // Learning rates and random numbers are the same for all updates.
    let shared = |i: usize, at: usize| node(i).args[at..at + 2].to_vec();
    let agree = shared(first, 3) == shared(second, 3) && weight.is_none_or(|i| shared(i, 4) == shared(first, 3));
    let operands = operands(graph, &chain);
    let made = operands.iter().filter_map(|v| defs[v.index()]).max().map_or(0, |d| d as usize + 1);
    chain.place = chain.place.max(made);
    (agree && may_move(graph, &chain, &operands)).then_some(chain)
}

/// Whether a gradient of an input is that of a 1x1 convolution that moves by 1.
fn is_point(graph: &Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    node.op == Op::I8Conv2dGradX
        && graph.ty(node.args[1]).shape[1..3] == [1, 1]
        && ["stride_h", "stride_w"].iter().all(|name| node.attrs.int(name) == 1)
        && ["pad_top", "pad_left"].iter().all(|name| node.attrs.int(name) == 0)
        && graph.ty(node.args[0]).shape[1..3] == graph.ty(node.outs[0]).shape[1..3]
}

/// Operands of the fused node.
fn operands(graph: &Graph, chain: &Chain) -> Vec<Value> {
    let arg = |i: usize, at: usize| graph.nodes[i].args[at];
    let [project, narrow, depthwise, scaled, end] = chain.path;
    let [second, first] = chain.biases;
    let mut args =
        vec![arg(first, 0), arg(second, 0), arg(end, 1), arg(project, 0), arg(project, 1), arg(depthwise, 1)];
    args.extend([arg(scaled, 1), arg(scaled, 2), arg(first, 2), arg(narrow, 1), arg(narrow, 2), arg(second, 2)]);
    args.extend([arg(first, 3), arg(first, 4)]);
    if let Some(weight) = chain.weight {
        args.extend([arg(weight, 2), arg(weight, 3)]);
        args.extend(graph.nodes[weight].args.get(6));
    }
    args
}

/// Whether nothing between the chain's nodes changes what it reads, or reads what it changes.
fn may_move(graph: &Graph, chain: &Chain, operands: &[Value]) -> bool {
    let own = chain.nodes();
    let changed = &operands[..if chain.weight.is_some() { 3 } else { 2 }];
    let is_apart = operands.iter().enumerate().all(|(i, v)| !operands[..i].contains(v) || !changed.contains(v));
    is_apart
        && (chain.first()..=chain.last()).filter(|i| !own.contains(i)).all(|i| {
            let node = &graph.nodes[i];
            let changes = &node.args[..(node.op.def().mutates)(&node.attrs)];
            node.args.iter().all(|v| !changed.contains(v))
                && (i >= chain.place || changes.iter().all(|v| !operands.contains(v)))
        })
}

/// The graph with a chain in one node.
fn fuse(graph: &Graph, chain: &Chain) -> Graph {
    let def = Op::I8BottleneckGradUpdate.def();
    let [_, _, depthwise, _, end] = chain.path;
    let [second, first] = chain.biases;
    let stream = |i: usize| graph.nodes[i].attrs.int("stream");
    let names = ["stride_h", "stride_w", "pad_top", "pad_left", "out_h", "out_w", "h", "w"];
    let mut given: Vec<(&str, Attr)> =
        names.iter().map(|&name| (name, graph.nodes[depthwise].attrs.int(name).into())).collect();
    given.extend([("stream1", stream(first).into()), ("stream2", stream(second).into())]);
    if let Some(weight) = chain.weight {
        let attr = |name: &str| Attr::from(graph.nodes[weight].attrs.int(name));
        given.extend([("train", 1.into()), ("sub", attr("sub")), ("zero_x", attr("zero_x"))]);
        given.push(("stream_w", attr("stream")));
    }
    let node = Node {
        op: Op::I8BottleneckGradUpdate,
        args: operands(graph, chain),
        attrs: Attrs::of(def.attrs, &given),
        region: Region::Backward,
        ..graph.nodes[end].clone()
    };
    let own = chain.nodes();
    let mut fused = graph.clone();
    fused.nodes.clear();
    for (i, old) in graph.nodes.iter().enumerate() {
        if i == chain.place {
            fused.nodes.push(node.clone());
        }
        fused.nodes.extend((!own.contains(&i)).then(|| old.clone()));
    }
    fused.sweep(|info| info.decl.is_some());
    fused
}
