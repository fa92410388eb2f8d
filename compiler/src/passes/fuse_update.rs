//! Puts a weight's gradient and its update together, so that the gradient exists for a panel of rows at a time.
//!
//! Before: updates are emitted. After: a weight gradient without accumulator that only an update reads is part of
//! that update. Int8 weights have one such op a form of convolution, and one for biases.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Kind, Node, Region};
use crate::ir::ops::Op;

/// The op that is an update and the gradient it reads, and which of the two says an attribute that both have.
fn fused(update: Op, gradient: &Node) -> Option<(Op, &'static [&'static str])> {
    match (update, gradient.op) {
        (Op::Update, Op::LinearGradW) if gradient.args.len() == 2 => {
            Some((Op::LinearGradWUpdate, &["alpha", "compute", "rows"]))
        }
        (Op::I8Update, Op::I8Conv2dGradW) => Some((Op::I8Conv2dGradWUpdate, &[])),
        (Op::I8Update, Op::I8DepthwiseGradW) => Some((Op::I8DepthwiseGradWUpdate, &[])),
        (Op::I8Update, Op::I8GradB) => Some((Op::I8GradBUpdate, &[])),
        _ => None,
    }
}

/// Fuses where possible.
pub fn run(graph: &mut Graph) {
    let (defs, uses) = (graph.definitions(), graph.uses());
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let at = match node.op {
            // The host has no part in the gradient.
            _ if node.region == Region::Host => continue,
            Op::Update => 1 + node.attrs.size("states"),
            Op::I8Update => (Op::I8Update.def().mutates)(&node.attrs),
            _ => continue,
        };
        let grad = node.args[at];
        let Some(d) = defs[grad.index()] else { continue };
        let gradient = &graph.nodes[d as usize];
        let is_result = graph.results.iter().any(|(_, v)| *v == grad);
        let Some((op, of_gradient)) = fused(node.op, gradient) else { continue };
        if uses[grad.index()].len() != 1 || is_result {
            continue;
        }
        let mut args = node.args.clone();
        // The list of trained columns stands at the end of both.
        let operands = if node.op == Op::I8Update { gradient.args.len().min(2) } else { gradient.args.len() };
        args.splice(at..=at, gradient.args[..operands].iter().copied());
        let known = |name: &str| op.def().attrs.iter().any(|d| d.name == name);
        let own = node.attrs.iter().filter(|(n, _)| known(n) && !of_gradient.contains(n));
        let given: Vec<(&str, Attr)> = gradient.attrs.iter().filter(|(n, _)| known(n)).chain(own).collect();
        let attrs = Attrs::of(op.def().attrs, &given);
        graph.nodes[i] = Node { op, args, attrs, ..node.clone() };
    }
    graph.sweep(|info| info.decl == Some(Kind::Input));
}
