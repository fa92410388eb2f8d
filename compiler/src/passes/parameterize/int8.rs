//! Schemes of int8 graphs, counted in convolutions as the published ones are: from the input for layers, from the top
//! for biases.

use super::{Init, Parameters};
use crate::ir::graph::{Graph, Kind, Node, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::scheme::{SchemeError, Sparse};

/// Share of the input channels that `sparse` trains where it is not told.
const RATIO: f64 = 0.25;

/// Whether the op is an int8 convolution.
pub(super) fn is_conv(op: Op) -> bool {
    matches!(op, Op::I8Conv2d | Op::I8Depthwise)
}

/// A convolution that is not the head.
pub(super) struct Conv {
    weight: String,
    bias: String,
    scale: String,
    /// A 1x1 convolution that a depthwise one reads: what expands a block's channels.
    expands: bool,
}

/// The convolutions of a graph outside the block `head`, from the input.
pub(super) fn convs(graph: &Graph) -> Vec<Conv> {
    // What an importer adds of its own reads constants.
    let is_trainable = |n: &Node| graph.info(n.args[1]).decl == Some(Kind::Weight);
    let in_body = |n: &&Node| is_conv(n.op) && is_trainable(n) && graph.blocks[n.block as usize] != "head";
    let feeds_depthwise = |v: Value| graph.nodes.iter().any(|n| n.op == Op::I8Depthwise && n.args[0] == v);
    let found = graph.nodes.iter().filter(in_body).map(|node| {
        let name = |i: usize| graph.info(node.args[i]).name.clone();
        let is_point = node.op == Op::I8Conv2d && graph.ty(node.args[1]).shape[1..3] == [1, 1];
        let expands = is_point && feeds_depthwise(node.outs[0]);
        Conv { weight: name(1), bias: name(2), scale: name(3), expands }
    });
    found.collect()
}

/// Biases of the last convolutions, or of all.
pub(super) fn train_biases(convs: &[Conv], last: Option<u32>, parameters: &mut Parameters) -> Result<(), SchemeError> {
    let last = last.map_or(convs.len(), |n| n as usize);
    let Some(first) = convs.len().checked_sub(last) else {
        let why = format!("biases of the last {last} convolutions are asked for, the model has {}", convs.len());
        return Err(SchemeError::Misfit(why));
    };
    parameters.trained.extend(convs[first..].iter().map(|c| c.bias.clone()));
    Ok(())
}

/// Biases of the last convolutions and chosen weights, each with a share of its input channels.
pub(super) fn train_sparse(
    graph: &mut Graph,
    convs: &[Conv],
    sparse: &Sparse,
    parameters: &mut Parameters,
) -> Result<(), SchemeError> {
    let last = sparse.bias_last.unwrap_or(convs.len().div_ceil(2) as u32);
    train_biases(convs, Some(last), parameters)?;
    for (conv, ratio) in chosen(convs, sparse)? {
        let weight = graph.find(&conv.weight).expect("the convolution reads it");
        let cols = graph.ty(weight).cols();
        let keep = (f64::from(cols) * ratio) as u32;
        let index = format!("{}.index", conv.weight);
        if keep > 0 && keep < cols && graph.find(&index).is_none() {
            graph.declare(Kind::Const, &index, Type::i32(&[keep]));
            let init = Init::TopColumns { of: conv.weight.clone(), scale: Some(conv.scale.clone()) };
            parameters.added.push((index, init));
        }
        if keep > 0 {
            parameters.trained.push(conv.weight.clone());
        }
    }
    Ok(())
}

/// What the scheme names, or the convolutions that expand channels in the upper quarter.
fn chosen<'c>(convs: &'c [Conv], sparse: &Sparse) -> Result<Vec<(&'c Conv, f64)>, SchemeError> {
    if sparse.weights.is_empty() {
        let upper = &convs[convs.len() - convs.len().div_ceil(4)..];
        return Ok(upper.iter().filter(|c| c.expands).map(|c| (c, RATIO)).collect());
    }
    let find = |weight: &crate::scheme::SparseWeight| {
        let found = convs.iter().enumerate().find(|(layer, c)| weight.means(&c.weight, *layer));
        found.map(|(_, conv)| (conv, weight.ratio)).ok_or_else(|| {
            let what = weight.tensor.clone().unwrap_or(format!("layer {}", weight.layer.unwrap_or(0)));
            SchemeError::Misfit(format!("`{what}` is no convolution; the model has {}", convs.len()))
        })
    };
    sparse.weights.iter().map(find).collect()
}
