//! What becomes one layer: an op with the batch norms and the activation behind it.

use super::{Result, image_shape, refuse};
use crate::import::int8::{Limits, Quant, Window};
use crate::ir::graph::{Graph, Node, Value};
use crate::ir::ops::Op;

/// Nodes that become one layer.
pub(super) struct Unit {
    /// The first.
    pub node: usize,
    /// Batch norms that are folded into it.
    pub norms: Vec<usize>,
    /// ReLU or ReLU6 at the end.
    activation: Option<Op>,
    /// What the last gives.
    pub out: Value,
}

impl Unit {
    /// Whether its result has a quantisation of its own; pools, reshapes and softmax keep, or know, theirs.
    pub fn is_measured(&self, graph: &Graph) -> bool {
        let op = graph.nodes[self.node].op;
        matches!(op, Op::Conv2d | Op::Linear | Op::BatchNormEval | Op::Add | Op::Relu | Op::Relu6)
    }

    /// The activation, as limits of a result of this quantisation.
    pub fn limits(&self, quant: Quant) -> Limits {
        let at = |real: f64| quant.store(real).clamp(-128.0, 127.0) as i32;
        match self.activation {
            Some(Op::Relu) => Limits { lo: at(0.0), hi: 127 },
            Some(_) => Limits { lo: at(0.0), hi: at(6.0) },
            None => Limits::ALL,
        }
    }
}

/// Divides a graph into units, in order.
pub(super) fn units(graph: &Graph) -> Result<Vec<Unit>> {
    let uses = graph.uses();
    let mut taken = vec![false; graph.nodes.len()];
    let mut units = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if taken[i] {
            continue;
        }
        check(graph, node)?;
        let activation = Some(node.op).filter(|op| is_activation(*op));
        let mut unit = Unit { node: i, norms: Vec::new(), activation, out: node.outs[0] };
        if unit.is_measured(graph) {
            while let Some(next) = follower(graph, &uses, unit.out) {
                let after = &graph.nodes[next];
                match after.op {
                    // A vector and an image of 1 x 1 are one in int8.
                    Op::Reshape if image_shape(graph.ty(unit.out)) == image_shape(graph.ty(after.outs[0])) => {}
                    Op::BatchNormEval if node.op != Op::Add && unit.activation.is_none() => unit.norms.push(next),
                    op if is_activation(op) && unit.activation.is_none() => unit.activation = Some(op),
                    _ => break,
                }
                (taken[next], unit.out) = (true, after.outs[0]);
            }
        }
        units.push(unit);
    }
    Ok(units)
}

fn is_activation(op: Op) -> bool {
    matches!(op, Op::Relu | Op::Relu6)
}

/// The only node that reads a value, where the value is no result.
fn follower(graph: &Graph, uses: &[Vec<u32>], v: Value) -> Option<usize> {
    let [next] = uses[v.index()][..] else { return None };
    (!graph.results.iter().any(|(_, r)| *r == v)).then_some(next as usize)
}

/// Refuses what no layer stands for.
fn check(graph: &Graph, node: &Node) -> Result<()> {
    let is_known = matches!(
        node.op,
        Op::Conv2d
            | Op::Linear
            | Op::BatchNormEval
            | Op::Add
            | Op::Relu
            | Op::Relu6
            | Op::MaxPool
            | Op::AvgPool
            | Op::GlobalAvgPool
            | Op::Reshape
            | Op::Softmax
    );
    if is_known {
        return Ok(());
    }
    let name = node.outs.first().map_or("", |&v| graph.info(v).name.as_str());
    Err(refuse(name, format!("int8 networks have no layer for {}", node.op.name())))
}

/// Strides and padding of a convolution or pool; the end follows from the result's size.
pub(super) fn moves(node: &Node, size: [u32; 2]) -> std::result::Result<Window, String> {
    let moves = crate::ir::ops::Moves::of(&node.attrs)?;
    Ok(Window { size, stride: moves.stride, pad: moves.pad })
}

/// The window of a pool.
pub(super) fn pool_window(node: &Node) -> std::result::Result<Window, String> {
    let high = node.attrs.size("kernel") as u32;
    let wide = if node.attrs.int("kernel_w") == 0 { high } else { node.attrs.size("kernel_w") as u32 };
    moves(node, [high, wide])
}
