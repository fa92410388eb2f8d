//! Drops gradients that the scheme does not ask for, and all that only they need.
//!
//! Before: a differentiated graph. After: every `grad:` result belongs to a trained tensor, and every backward node
//! is read on the way to one of them. Backward ends at the lowest trained block because nothing below it is read, and
//! results that `differentiate` added for gradients are gone where no gradient reads them.

use super::differentiate::GRAD;
use crate::ir::graph::{Graph, Kind, Value};

/// Keeps the gradients of tensors for which `trained` holds.
pub fn run(graph: &mut Graph, trained: impl Fn(&str) -> bool) {
    graph.results.retain(|(name, _)| name.strip_prefix(GRAD).is_none_or(&trained));
    // Inputs stay: a caller fills the same inputs whatever is trained.
    graph.sweep(|info| info.decl == Some(Kind::Input));
    if drop_tapes(graph) {
        graph.sweep(|info| info.decl == Some(Kind::Input));
    }
}

/// Clears `tape` flags whose result nothing reads; says whether there were any.
fn drop_tapes(graph: &mut Graph) -> bool {
    let uses = graph.uses();
    let mut dropped = false;
    for node in &mut graph.nodes {
        let Some(flag) = node.op.def().tape.filter(|flag| node.attrs.flag(flag)) else { continue };
        let is_read = |v: &Value| !uses[v.index()].is_empty() || graph.results.iter().any(|(_, r)| r == v);
        if node.outs.last().is_some_and(|v| !is_read(v)) {
            node.attrs.set(flag, false.into());
            node.outs.pop();
            dropped = true;
        }
    }
    dropped
}
