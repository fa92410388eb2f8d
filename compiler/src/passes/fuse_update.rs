//! Puts a weight's gradient and its update together, so that the gradient exists for a panel of rows at a time.
//!
//! Before: updates are emitted. After: a `linear_grad_w` without accumulator that only an `update` reads is part of
//! that update.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Kind, Node};
use crate::ir::ops::Op;

/// Fuses where possible.
pub fn run(graph: &mut Graph) {
    let (defs, uses) = (graph.definitions(), graph.uses());
    for i in 0..graph.nodes.len() {
        if graph.nodes[i].op != Op::Update {
            continue;
        }
        let at = 1 + graph.nodes[i].attrs.size("states");
        let grad = graph.nodes[i].args[at];
        let Some(d) = defs[grad.index()] else { continue };
        let product = &graph.nodes[d as usize];
        let is_result = graph.results.iter().any(|(_, v)| *v == grad);
        if product.op != Op::LinearGradW || product.args.len() != 2 || uses[grad.index()].len() != 1 || is_result {
            continue;
        }
        let mut args = graph.nodes[i].args.clone();
        args.splice(at..=at, product.args.iter().copied());
        let from_product = product.attrs.iter().filter(|(n, _)| ["alpha", "compute", "rows"].contains(n));
        let given: Vec<(&str, Attr)> = graph.nodes[i]
            .attrs
            .iter()
            .filter(|(n, _)| !["alpha", "compute", "rows"].contains(n))
            .chain(from_product)
            .collect();
        let attrs = Attrs::of(Op::LinearGradWUpdate.def().attrs, &given);
        graph.nodes[i] = Node { op: Op::LinearGradWUpdate, args, attrs, ..graph.nodes[i].clone() };
    }
    graph.sweep(|info| info.decl == Some(Kind::Input));
}
