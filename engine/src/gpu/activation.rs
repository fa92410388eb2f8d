//! Activation functions and their gradients: an invocation an element.

use super::call::GROUP;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "activation";

/// A row whose kernel takes all operands, then all results, and the number of elements.
macro_rules! each {
    ($name:literal, $entry:literal) => {
        Row { name: $name, work: |c| Ok(Work::one(each(c, $entry))) }
    };
}

pub(super) const ROWS: &[Row] = &[
    each!("relu", "relu"),
    each!("relu_grad", "relu_grad"),
    each!("relu6", "relu6"),
    each!("relu6_grad", "relu6_grad"),
    each!("gelu", "gelu"),
    each!("gelu_grad", "gelu_grad"),
    each!("gelu_tanh", "gelu_tanh"),
    each!("gelu_tanh_grad", "gelu_tanh_grad"),
    each!("silu", "silu"),
    each!("silu_grad", "silu_grad"),
    each!("sigmoid", "sigmoid_all"),
    each!("sigmoid_grad", "sigmoid_grad"),
    each!("tanh", "tanh_all"),
    each!("tanh_grad", "tanh_grad"),
    each!("swiglu", "swiglu"),
    each!("swiglu_grad", "swiglu_grad"),
];

fn each(c: &Call, entry: &'static str) -> Launch {
    let operands = (0..c.args()).map(Operand::Arg).chain((0..c.outs()).map(Operand::Out)).collect();
    let len = c.out_elems(0);
    Launch {
        kernel: Kernel::plain(STEM, entry),
        operands,
        params: Params::new().size(len),
        grid: grid_of(len.div_ceil(GROUP)),
    }
}
