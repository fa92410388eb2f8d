//! Drops gradients that the scheme does not ask for, and all that only they need.
//!
//! Before: a differentiated graph. After: every `grad:` result belongs to a trained tensor, and every backward node
//! is read on the way to one of them. Backward ends at the lowest trained block because nothing below it is read.

use super::differentiate::GRAD;
use crate::ir::graph::{Graph, Kind};

/// Keeps the gradients of tensors for which `trained` holds.
pub fn run(graph: &mut Graph, trained: impl Fn(&str) -> bool) {
    graph.results.retain(|(name, _)| name.strip_prefix(GRAD).is_none_or(&trained));
    // Inputs stay: a caller fills the same inputs whatever is trained.
    graph.sweep(|info| info.decl == Some(Kind::Input));
}
