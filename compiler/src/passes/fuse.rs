//! Puts ops together that save memory or passes over it. What is fused depends on the graph alone, never on a
//! budget, since some fusions change the rounding.
//!
//! Before: a pruned graph. After: the same results from fewer nodes:
//! 1. `linear` + `cross_entropy` (+ their gradients) -> `linear_cross_entropy(_grad)`: the logits are never stored.
//! 2. `add` + `rms_norm` of the sum -> `add_rms_norm`.
//! 3. `op` + `add` of its whole result -> `op` with an accumulator.
//! 4. `concat_cols` of slices' gradients, each padded with zeros, -> one `concat_cols`.

use crate::ir::attrs::Attrs;
use crate::ir::graph::{Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use std::collections::HashMap;

/// Runs all four.
pub fn run(graph: &mut Graph) {
    cross_entropy(graph);
    add_norm(graph);
    concat_slices(graph);
    accumulate(graph);
    graph.sweep(|info| info.decl == Some(Kind::Input));
}

fn is_result(graph: &Graph, v: Value) -> bool {
    graph.results.iter().any(|(_, r)| *r == v)
}

/// The nodes around one `linear` whose result only a cross-entropy and its gradient read.
struct Head {
    linear: usize,
    loss: usize,
    grad: Option<usize>,
    grad_x: Option<usize>,
    grad_w: Option<usize>,
}

fn cross_entropy(graph: &mut Graph) {
    let heads: Vec<usize> = (0..graph.nodes.len()).filter(|&i| graph.nodes[i].op == Op::CrossEntropy).collect();
    for loss in heads.into_iter().rev() {
        if let Some(head) = find_head(graph, loss) {
            fuse_head(graph, &head);
        }
    }
}

fn find_head(graph: &Graph, loss: usize) -> Option<Head> {
    let (defs, uses) = (graph.definitions(), graph.uses());
    let logits = graph.nodes[loss].args[0];
    let linear = defs[logits.index()]? as usize;
    if graph.nodes[linear].op != Op::Linear || graph.nodes[linear].args.len() != 2 || is_result(graph, logits) {
        return None;
    }
    let mut head = Head { linear, loss, grad: None, grad_x: None, grad_w: None };
    for &user in &uses[logits.index()] {
        match graph.nodes[user as usize].op {
            Op::CrossEntropy if user as usize == loss => {}
            Op::CrossEntropyGrad if head.grad.is_none() => head.grad = Some(user as usize),
            _ => return None,
        }
    }
    if let Some(grad) = head.grad {
        let seed = &graph.nodes[defs[graph.nodes[grad].args[3].index()]? as usize];
        let is_one = seed.op == Op::Fill && seed.attrs.float("value") == 1.0;
        let dlogits = graph.nodes[grad].outs[0];
        for &user in &uses[dlogits.index()] {
            match graph.nodes[user as usize].op {
                Op::LinearGradX if head.grad_x.is_none() => head.grad_x = Some(user as usize),
                Op::LinearGradW if head.grad_w.is_none() => head.grad_w = Some(user as usize),
                _ => return None,
            }
        }
        if !is_one || is_result(graph, dlogits) {
            return None;
        }
    }
    Some(head)
}

fn fuse_head(graph: &mut Graph, head: &Head) {
    let (linear, loss) = (graph.nodes[head.linear].clone(), graph.nodes[head.loss].clone());
    let args = vec![linear.args[0], linear.args[1], loss.args[1], loss.args[2]];
    let tokens = graph.ty(linear.args[0]).rows();
    let seq = if tokens.is_multiple_of(graph.rows) { tokens / graph.rows } else { tokens };
    let mut given = vec![("compute", linear.attrs.int("compute").into()), ("seq", seq.into())];
    let mut outs = vec![loss.outs[0]];
    let mut op = Op::LinearCrossEntropy;
    let mut region = Region::Forward;
    if head.grad.is_some() {
        op = Op::LinearCrossEntropyGrad;
        region = Region::Backward;
        outs.push(match head.grad_x {
            Some(i) => graph.nodes[i].outs[0],
            None => {
                let name = format!("{}.unread", graph.info(linear.args[0]).name);
                let info = crate::ir::graph::ValueInfo { name, ..graph.info(linear.args[0]).clone() };
                graph.add_value(crate::ir::graph::ValueInfo { decl: None, ..info })
            }
        });
        if let Some(i) = head.grad_w {
            given.push(("grad_w", true.into()));
            outs.push(graph.nodes[i].outs[0]);
        }
    }
    let attrs = Attrs::of(op.def().attrs, &given);
    graph.nodes[head.loss] = Node { op, args, attrs, outs, block: loss.block, region };
    let gone = [Some(head.linear), head.grad, head.grad_x, head.grad_w];
    remove(graph, |i| gone.contains(&Some(i)));
}

fn remove(graph: &mut Graph, gone: impl Fn(usize) -> bool) {
    let mut i = 0;
    graph.nodes.retain(|_| {
        i += 1;
        !gone(i - 1)
    });
}

fn add_norm(graph: &mut Graph) {
    let defs = graph.definitions();
    let mut gone = vec![false; graph.nodes.len()];
    for i in 0..graph.nodes.len() {
        let norm = &graph.nodes[i];
        let Some(d) = defs[norm.args.first().map_or(usize::MAX, |a| a.index()).min(defs.len() - 1)] else { continue };
        let sum = &graph.nodes[d as usize];
        let adjacent = (d as usize + 1..i).all(|k| gone[k]) && sum.block == norm.block;
        if norm.op != Op::RmsNorm || sum.op != Op::Add || gone[d as usize] || !adjacent {
            continue;
        }
        let args = vec![sum.args[0], sum.args[1], norm.args[1]];
        let outs = vec![sum.outs[0], norm.outs[0]];
        graph.nodes[i] = Node { op: Op::AddRmsNorm, args, outs, ..norm.clone() };
        gone[d as usize] = true;
    }
    remove(graph, |i| gone[i]);
}

/// `add(a, op(..))`, where only this `add` reads the op's result and the op can start from an accumulator.
fn accumulate(graph: &mut Graph) {
    let (defs, uses) = (graph.definitions(), graph.uses());
    let mut gone = vec![false; graph.nodes.len()];
    for i in 0..graph.nodes.len() {
        if graph.nodes[i].op != Op::Add || graph.nodes[i].args[0] == graph.nodes[i].args[1] {
            continue;
        }
        for (part, base) in [(1, 0), (0, 1)] {
            let (part, base) = (graph.nodes[i].args[part], graph.nodes[i].args[base]);
            let Some(d) = defs[part.index()] else { continue };
            let node = &graph.nodes[d as usize];
            let starts =
                |acc: crate::ir::ops::Acc| acc.whole && acc.arg == node.args.len() && node.outs[acc.out] == part;
            let read_once = uses[part.index()].len() == 1 && !is_result(graph, part);
            if gone[d as usize] || !node.op.def().acc.is_some_and(starts) || !read_once {
                continue;
            }
            let mut fused = node.clone();
            fused.args.push(base);
            fused.outs = graph.nodes[i].outs.clone();
            gone[d as usize] = true;
            graph.nodes[i] = fused;
            break;
        }
    }
    remove(graph, |i| gone[i]);
}

/// Gradients of the slices of one value: `add(concat(dy0, 0), concat(0, dy1))` -> `concat(dy0, dy1)`.
fn concat_slices(graph: &mut Graph) {
    for i in 0..graph.nodes.len() {
        if graph.nodes[i].op != Op::Add {
            continue;
        }
        let defs = graph.definitions();
        let (a, b) = (graph.nodes[i].args[0], graph.nodes[i].args[1]);
        let (Some(pa), Some(pb)) = (parts(graph, &defs, a), parts(graph, &defs, b)) else { continue };
        if let Some(args) = merge(graph, &pa, &pb) {
            let attrs = Attrs::of(Op::ConcatCols.def().attrs, &[]);
            graph.nodes[i] = Node { op: Op::ConcatCols, args, attrs, ..graph.nodes[i].clone() };
        }
    }
}

/// `(value, columns, is zero)` for every part of a `concat_cols`.
fn parts(graph: &Graph, defs: &[Option<u32>], v: Value) -> Option<Vec<(Value, u32, bool)>> {
    let node = &graph.nodes[defs[v.index()]? as usize];
    let is_zero = |v: Value| {
        let mut def = defs[v.index()].map(|d| &graph.nodes[d as usize]);
        if let Some(Node { op: Op::Reshape, args, .. }) = def {
            def = defs[args[0].index()].map(|d| &graph.nodes[d as usize]);
        }
        def.is_some_and(|n| n.op == Op::Fill && n.attrs.float("value") == 0.0)
    };
    (node.op == Op::ConcatCols).then(|| node.args.iter().map(|&a| (a, graph.ty(a).cols(), is_zero(a))).collect())
}

/// Lays two lists of parts over each other where each non-zero part of one lies on zeros of the other.
fn merge(graph: &Graph, a: &[(Value, u32, bool)], b: &[(Value, u32, bool)]) -> Option<Vec<Value>> {
    let starts = |parts: &[(Value, u32, bool)]| {
        let mut at = 0;
        let all = parts.iter().map(|&(v, len, zero)| {
            at += len;
            (at - len, v, len, zero)
        });
        all.collect::<Vec<_>>()
    };
    let mut pieces: HashMap<u32, (Value, u32)> = HashMap::new();
    let both: Vec<_> = starts(a).into_iter().chain(starts(b)).collect();
    let solid: Vec<_> = both.iter().filter(|p| !p.3).collect();
    for &&(start, v, len, _) in &solid {
        pieces.insert(start, (v, len));
    }
    let zeros: Vec<_> = both.iter().filter(|p| p.3).collect();
    let total: u32 = a.iter().map(|p| p.1).sum();
    let (mut at, mut args) = (0, Vec::new());
    while at < total {
        let piece = pieces.get(&at).copied();
        let zero = zeros.iter().filter(|z| z.0 == at).map(|z| (z.1, z.2)).min_by_key(|z| z.1);
        let (v, len) = piece.or(zero)?;
        let covered = solid.iter().filter(|s| s.0 < at + len && at < s.0 + s.2).count();
        if covered > 1 || (piece.is_none() && covered > 0) || graph.ty(v).cols() != len {
            return None;
        }
        args.push(v);
        at += len;
    }
    (at == total).then_some(args)
}
