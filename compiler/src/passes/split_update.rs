//! Updates of a large tensor by panels of rows, so that its states can come and go in parts, and its gradient exists
//! for a panel at a time.
//!
//! Before: updates are emitted. After: an update outside of numbered blocks whose tensor is larger than any of theirs
//! is one update a panel of rows, in order, each with states of its own; no panel is larger than the largest numbered
//! block, or a part of it where blocks come in parts, and those of a table that is to be stored in parts are its parts.
//! The states of a panel are rows of the whole ones, so a checkpoint holds the same either way. Where asked for, every
//! panel's gradient is made right before it is read, from what a loss and a lookup read; for a norm it is made as well,
//! once more.

mod gradient;

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Kind, Node, ValueInfo};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::optimizer::{BLOCK_8BIT, RULES};
use std::collections::BTreeMap;
use tinyforge_plan::PART;

/// How large panels are.
pub struct Panels<'a> {
    /// Whether gradients are made by panels too, if any is large.
    pub gradients: bool,
    /// Parts that a block comes in, if it does: no panel is larger than one of them.
    pub block_parts: u32,
    /// Tables that are to be stored in parts of so many rows, which panels then are.
    pub tables: &'a BTreeMap<String, u32>,
}

/// Splits where there is something to gain; whether gradients are made by panels.
pub fn run(graph: &mut Graph, panels: &Panels) -> bool {
    let largest = graph.largest_block(Type::elems) / u64::from(panels.block_parts);
    let in_parts: Vec<(Vec<u32>, u32)> = (panels.tables.iter())
        .filter_map(|(name, &rows)| Some((graph.ty(graph.find(name)?).shape.clone(), rows)))
        .collect();
    // A gradient is cut as what it is of, which has its shape.
    let rows_of = |ty: &Type| {
        let part = in_parts.iter().find(|(shape, _)| *shape == ty.shape).map(|&(_, rows)| rows);
        part.or_else(|| rows_of(ty, largest))
    };
    for node in std::mem::take(&mut graph.nodes) {
        let gains = gains(graph, &node, panels.gradients);
        match gains.then(|| rows_of(graph.ty(node.args[0]))).flatten() {
            Some(rows) => split(graph, node, rows),
            None => graph.nodes.push(node),
        }
    }
    let splits = panels.gradients && gradient::run(graph, rows_of);
    graph.sweep(|info| info.decl == Some(Kind::Input));
    splits
}

/// Whether there is something to gain by panels of this node's update.
fn gains(graph: &Graph, node: &Node, gradients: bool) -> bool {
    let gains = node.op == Op::Update && (gradients || node.attrs.size("states") > 0) && node.attrs.size("sub") == 0;
    gains && !graph.is_numbered(node.block)
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
