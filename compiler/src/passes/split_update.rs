//! Updates of a large tensor by panels of rows, so that its states can come and go in parts, and its gradient exists
//! for a panel at a time.
//!
//! Before: updates are emitted. After: an update outside of numbered blocks whose tensor is larger than any of theirs
//! is one update a panel of rows, in order, each with states of its own; no panel is larger than the largest numbered
//! block. The states of a panel are rows of the whole ones, so a checkpoint holds the same either way. Where asked for,
//! every panel's gradient is made right before it is read, from what a loss and a lookup read; for a norm it is made
//! as well, once more.

mod gradient;

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Kind, Node, ValueInfo};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::optimizer::{BLOCK_8BIT, RULES};
use tinyforge_plan::PART;

/// Splits where there is something to gain; whether `gradients` are made by panels too, if any is large. Where blocks
/// come in parts, `block_parts` of each, no panel is larger than a part.
pub fn run(graph: &mut Graph, block_parts: u32, gradients: bool) -> bool {
    let largest = graph.largest_block(Type::elems) / u64::from(block_parts);
    for node in std::mem::take(&mut graph.nodes) {
        match panel_rows(graph, &node, largest, gradients) {
            Some(rows) => split(graph, node, rows),
            None => graph.nodes.push(node),
        }
    }
    let splits = gradients && gradient::run(graph, |ty| rows_of(ty, largest));
    graph.sweep(|info| info.decl == Some(Kind::Input));
    splits
}

/// Rows of a panel of this update, if it is split.
fn panel_rows(graph: &Graph, node: &Node, largest: u64, gradients: bool) -> Option<u32> {
    let gains = node.op == Op::Update && (gradients || node.attrs.size("states") > 0) && node.attrs.size("sub") == 0;
    let is_alone = gains && !graph.is_numbered(node.block);
    is_alone.then(|| rows_of(graph.ty(node.args[0]), largest)).flatten()
}

/// Rows of a panel of a tensor that is larger than the largest block: whole blocks of 8-bit states, whatever the width.
fn rows_of(w: &Type, largest: u64) -> Option<u32> {
    let fits = largest / u64::from(w.cols()).max(1) / u64::from(BLOCK_8BIT) * u64::from(BLOCK_8BIT);
    let rows = u32::try_from(fits).unwrap_or(u32::MAX).max(BLOCK_8BIT);
    let is_large = w.shape.len() > 1 && largest > 0 && w.elems() > largest && w.rows() > rows;
    is_large.then_some(rows)
}

fn split(graph: &mut Graph, node: Node, rows: u32) {
    let w = graph.ty(node.args[0]).clone();
    let states = (RULES[node.attrs.size("rule")].states)(&node.attrs);
    for (part, first) in (0..w.rows()).step_by(rows as usize).enumerate() {
        let panel = Type::f32(&[rows.min(w.rows() - first), w.cols()]);
        let mut args = node.args.clone();
        for (arg, state) in args[1..].iter_mut().zip(states) {
            let name = format!("{}{PART}{part}", graph.info(*arg).name);
            *arg = graph.add_value(ValueInfo { name, ty: (state.ty)(&panel), ..graph.info(*arg).clone() });
        }
        let more: [(&str, Attr); 2] = [("first_row", first.into()), ("panel_rows", panel.shape[0].into())];
        let old = node.attrs.iter().filter(|(name, _)| more.iter().all(|(n, _)| n != name));
        let given: Vec<(&str, Attr)> = old.chain(more.iter().copied()).collect();
        let attrs = Attrs::of(node.op.def().attrs, &given);
        graph.nodes.push(Node { args, attrs, ..node.clone() });
    }
}
