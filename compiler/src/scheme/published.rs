//! The fifteen published sparse schemes for three networks on microcontrollers, and the memory figure that they are
//! named by. Source: Lin et al. 2022, "On-Device Training Under 256KB Memory".
//!
//! The figure is not what a run needs: it leaves out gradients, the head's parameters and all that is not trained. A
//! plan counts everything; the figure is here to be compared with.

use super::{Scheme, SchemeKind, Sparse, SparseWeight};
use crate::ir::graph::{Graph, Node};
use crate::ir::ops::Op;

/// A published scheme.
pub struct Published {
    /// The network.
    pub net: &'static str,
    /// The figure in KiB, rounded down.
    pub label_kib: u64,
    /// Convolutions from the top whose biases are trained.
    pub bias_last: u32,
    /// Convolutions, counted from the input, whose weights are trained, and the share of input channels.
    pub weights: &'static [(u32, f64)],
}

impl Published {
    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        let weight = |&(layer, ratio): &(u32, f64)| SparseWeight::of_layer(layer, ratio);
        let weights = self.weights.iter().map(weight).collect();
        let kind = SchemeKind::Sparse(Sparse { bias_last: Some(self.bias_last), weights });
        Scheme { kind, head: true, embed: false }
    }
}

const fn row(net: &'static str, label_kib: u64, bias_last: u32, weights: &'static [(u32, f64)]) -> Published {
    Published { net, label_kib, bias_last, weights }
}

const MBV2: &str = "mbv2-w0.35";
const MCUNET: &str = "mcunet-5fps";
const PROXYLESS: &str = "proxyless-w0.3";

/// The published schemes.
#[rustfmt::skip]
pub const PUBLISHED: [Published; 15] = [
    row(MBV2, 49, 16, &[(36, 1.0), (39, 1.0), (40, 0.0), (41, 0.25), (42, 0.125), (45, 0.125), (48, 0.125), (49, 0.125)]),
    row(MBV2, 73, 20, &[(32, 0.125), (33, 0.5), (36, 0.5), (39, 1.0), (41, 0.25), (42, 0.125), (45, 0.125), (48, 1.0)]),
    row(MBV2, 99, 25, &[(27, 1.0), (30, 1.0), (33, 1.0), (36, 1.0), (39, 1.0), (42, 0.125), (45, 0.5), (48, 1.0)]),
    row(MBV2, 123, 31, &[(27, 1.0), (30, 1.0), (33, 1.0), (36, 1.0), (39, 1.0), (42, 0.5), (45, 1.0), (48, 1.0)]),
    row(MBV2, 138, 34, &[(27, 1.0), (30, 1.0), (33, 1.0), (36, 1.0), (39, 1.0), (42, 1.0), (45, 1.0), (48, 1.0)]),
    row(MCUNET, 49, 20, &[(23, 0.0), (24, 0.25), (27, 0.5), (30, 0.5), (33, 0.0), (39, 0.0)]),
    row(MCUNET, 74, 21, &[(21, 1.0), (23, 0.0), (24, 1.0), (26, 0.0), (27, 0.5), (30, 1.0)]),
    row(MCUNET, 99, 22, &[(21, 1.0), (24, 1.0), (27, 1.0), (30, 1.0), (36, 0.125), (39, 0.25)]),
    row(MCUNET, 124, 24, &[(21, 0.25), (24, 1.0), (27, 1.0), (30, 1.0), (33, 0.5), (39, 0.5)]),
    row(MCUNET, 148, 23, &[(21, 1.0), (24, 1.0), (27, 1.0), (30, 1.0), (36, 1.0), (39, 0.5)]),
    row(PROXYLESS, 49, 21, &[(39, 0.25), (42, 1.0), (44, 0.0), (45, 1.0), (50, 0.0), (51, 0.125), (54, 0.25), (57, 0.25)]),
    row(PROXYLESS, 74, 28, &[(33, 0.5), (36, 0.25), (39, 1.0), (42, 1.0), (45, 1.0), (51, 0.5), (54, 0.25), (57, 0.5)]),
    row(PROXYLESS, 98, 25, &[(36, 1.0), (39, 0.5), (42, 1.0), (45, 1.0), (48, 0.25), (51, 0.5), (54, 1.0), (57, 1.0)]),
    row(PROXYLESS, 120, 32, &[(36, 1.0), (39, 1.0), (42, 1.0), (45, 1.0), (48, 0.5), (51, 1.0), (54, 1.0), (57, 1.0)]),
    row(PROXYLESS, 148, 45, &[(36, 1.0), (39, 1.0), (42, 1.0), (45, 1.0), (48, 1.0), (51, 1.0), (54, 1.0), (57, 1.0)]),
];

/// The published figure of a graph after `parameterize`, in bits: for every trained bias of a convolution its mask
/// (one bit an element of the result) and 32 bits a channel; for every trained weight the channels of the input that
/// its gradient reads and its trained elements, 8 bits each; 8 bits an element of the head's input. Of one image.
pub fn published_bits(graph: &Graph, trained: &[String]) -> u64 {
    let convs = graph.nodes.iter().filter(|n| matches!(n.op, Op::I8Conv2d | Op::I8Depthwise));
    convs.map(|node| bits_of(graph, node, trained)).sum()
}

fn bits_of(graph: &Graph, node: &Node, trained: &[String]) -> u64 {
    let is_trained = |i: usize| trained.contains(&graph.info(node.args[i]).name);
    let area = |v| {
        let shape = &graph.ty(v).shape;
        u64::from(shape[1]) * u64::from(shape[2])
    };
    let (x, w, y) = (node.args[0], graph.ty(node.args[1]), node.outs[0]);
    if graph.blocks[node.block as usize] == "head" {
        return 8 * area(x) * u64::from(graph.ty(x).cols());
    }
    let mut bits = 0;
    if is_trained(2) {
        bits += (area(y) + 32) * u64::from(graph.ty(y).cols());
    }
    if is_trained(1) {
        let index = graph.find(&format!("{}.index", graph.info(node.args[1]).name));
        let kept = index.map_or(u64::from(w.cols()), |index| graph.ty(index).elems());
        bits += 8 * kept * (area(x) + u64::from(w.rows()));
    }
    bits
}
