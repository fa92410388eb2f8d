//! Convolutions and their gradients.

use super::call::GROUP;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "conv";

pub(super) const ROWS: &[Row] = &[
    Row { name: "conv2d", work: conv2d },
    Row { name: "conv2d_grad_x", work: grad_x },
    Row { name: "conv2d_grad_w", work: grad_w },
    Row { name: "sum_channels", work: sum_channels },
];

/// Four lengths of a shape that the op's row has checked.
pub(super) fn image(dims: &[u32]) -> [usize; 4] {
    let mut lens = [1; 4];
    lens.iter_mut().zip(dims).for_each(|(l, &d)| *l = d as usize);
    lens
}

/// Strides down and across, then zeros above and to the left.
pub(super) fn moves(c: &Call) -> [usize; 4] {
    let (stride, pad) = (c.size("stride"), c.size("pad"));
    let across = if c.int("stride_w") == 0 { stride } else { c.size("stride_w") };
    let left = if c.int("pad_w") < 0 { pad } else { c.size("pad_w") };
    [stride, across, pad, left]
}

/// `x`: `[B,C,H,W]`, `w`: `[O,C/groups,R,S]`, `y`: `[B,O,H',W']`.
fn params(c: &Call, x: &[u32], w: &[u32], y: &[u32], has_more: bool) -> Params {
    let (x, w, y) = (image(x), image(w), image(y));
    let p = Params::new().sizes(&[x[0], x[1], w[0], c.size("groups").max(1), x[2], x[3], w[2], w[3], y[2], y[3]]);
    p.sizes(&moves(c)).word(has_more.into())
}

fn conv2d(c: &Call) -> Result<Work, String> {
    let has_bias = c.args() > 2;
    let bias = if has_bias { Operand::Arg(2) } else { Operand::Out(0) };
    Ok(Work::one(Launch {
        kernel: Kernel::plain(STEM, "conv2d"),
        operands: vec![Operand::Arg(0), Operand::Arg(1), bias, Operand::Out(0)],
        params: params(c, c.dims(0), c.dims(1), c.out_dims(0), has_bias),
        grid: grid_of(c.out_elems(0).div_ceil(GROUP)),
        in_units: None,
    }))
}

fn grad_x(c: &Call) -> Result<Work, String> {
    Ok(Work::one(Launch {
        kernel: Kernel::plain(STEM, "conv2d_grad_x"),
        operands: vec![Operand::Arg(0), Operand::Arg(1), Operand::Out(0)],
        params: params(c, c.out_dims(0), c.dims(1), c.dims(0), false),
        grid: grid_of(c.out_elems(0).div_ceil(GROUP)),
        in_units: None,
    }))
}

fn grad_w(c: &Call) -> Result<Work, String> {
    let accumulate = c.args() > 2;
    let acc = if accumulate { Operand::Arg(2) } else { Operand::Out(0) };
    Ok(Work::one(Launch {
        kernel: Kernel::plain(STEM, "conv2d_grad_w"),
        operands: vec![Operand::Arg(0), Operand::Arg(1), acc, Operand::Out(0)],
        params: params(c, c.dims(1), c.out_dims(0), c.dims(0), accumulate),
        grid: grid_of(c.out_elems(0)),
        in_units: None,
    }))
}

fn sum_channels(c: &Call) -> Result<Work, String> {
    let accumulate = c.args() > 1;
    let acc = if accumulate { Operand::Arg(1) } else { Operand::Out(0) };
    let x = image(c.dims(0));
    Ok(Work::one(Launch {
        kernel: Kernel::plain(STEM, "sum_channels"),
        operands: vec![Operand::Arg(0), acc, Operand::Out(0)],
        params: params(c, c.dims(0), &[1; 4], &[1; 4], accumulate),
        grid: grid_of(x[1]),
        in_units: None,
    }))
}
