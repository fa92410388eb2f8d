//! Pooling and its gradients.

use super::call::GROUP;
use super::conv::{image, moves};
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

pub(super) const ROWS: &[Row] = &[
    Row { name: "max_pool", work: |c| Ok(forward(c, "max_pool")) },
    Row { name: "max_pool_grad", work: |c| Ok(backward(c, "max_pool_grad")) },
    Row { name: "avg_pool", work: |c| Ok(forward(c, "avg_pool")) },
    Row { name: "avg_pool_grad", work: |c| Ok(backward(c, "avg_pool_grad")) },
    Row { name: "global_avg_pool", work: |c| Ok(forward(c, "global_avg_pool")) },
    Row { name: "global_avg_pool_grad", work: |c| Ok(backward(c, "global_avg_pool_grad")) },
];

/// Images `x` and what they are pooled to, with all operands and then the result; an invocation an element of it.
fn launch(c: &Call, entry: &'static str, x: &[u32], y: &[u32]) -> Work {
    let (x, y) = (image(x), image(y));
    let high = c.size("kernel");
    let wide = if c.int("kernel_w") == 0 { high } else { c.size("kernel_w") };
    let params = Params::new().sizes(&[x[0] * x[1], x[2], x[3], high, wide, y[2], y[3]]).sizes(&moves(c));
    let operands = (0..c.args()).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let grid = grid_of(c.out_elems(0).div_ceil(GROUP));
    Work::one(Launch { kernel: Kernel::plain("pool", entry), operands, params, grid, in_units: None })
}

fn forward(c: &Call, entry: &'static str) -> Work {
    launch(c, entry, c.dims(0), c.out_dims(0))
}

fn backward(c: &Call, entry: &'static str) -> Work {
    launch(c, entry, c.out_dims(0), c.dims(0))
}
