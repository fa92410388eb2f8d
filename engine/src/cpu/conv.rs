//! Convolutions and their gradients.

use super::call::Call;
use super::{Kernel, KernelError, Query, plain};
use tinyforge_kernels::f32::conv::{self as k, Conv, Window};

pub(super) const KERNELS: &[Kernel] = &[
    Kernel { name: "conv2d", run: conv2d, scratch: |q| scratch(q, 0, 1) },
    Kernel { name: "conv2d_grad_x", run: grad_x, scratch: grad_x_scratch },
    Kernel { name: "conv2d_grad_w", run: grad_w, scratch: grad_w_scratch },
    plain("sum_channels", |c| {
        let [images, channels, height, width] = image(&c.step.args[0].shape);
        let window = Window { kernel: [1; 2], stride: [1; 2], pad: [0; 2], pad_end: [0; 2], dilation: [1; 2] };
        let dims = dims([images, channels, height, width], [channels, 1, 1, 1], channels, window);
        let x = c.arg(0);
        let (y, accumulate) = c.accumulator(1, 0);
        k::conv2d_grad_b(c.par, &dims, x, accumulate, y);
        Ok(())
    }),
];

/// Four lengths of a shape that the op's row has checked.
pub(super) fn image(shape: &[u32]) -> [usize; 4] {
    let mut lens = [1; 4];
    lens.iter_mut().zip(shape).for_each(|(l, &d)| *l = d as usize);
    lens
}

/// A window that moves as the attributes say; `int` gives one by name.
pub(super) fn window(kernel: [usize; 2], int: impl Fn(&str) -> i64) -> Window {
    let size = |v: i64| usize::try_from(v).unwrap_or(0);
    let (stride, pad) = (int("stride"), int("pad"));
    let stride_w = if int("stride_w") == 0 { stride } else { int("stride_w") };
    let pad_w = if int("pad_w") < 0 { pad } else { int("pad_w") };
    let pad_end = [size(pad + int("extra_h")), size(pad_w + int("extra_w"))];
    Window { kernel, stride: [size(stride), size(stride_w)], pad: [size(pad), size(pad_w)], pad_end, dilation: [1; 2] }
}

/// `x`: `[B,C,H,W]`, `w`: `[O,C/groups,R,S]`.
fn dims(x: [usize; 4], w: [usize; 4], groups: usize, window: Window) -> Conv {
    Conv { images: x[0], in_channels: x[1], out_channels: w[0], groups, size: [x[2], x[3]], window }
}

fn supported(dims: Conv) -> Result<Conv, String> {
    if k::conv2d_supports(&dims) { Ok(dims) } else { Err(format!("{dims:?} is not supported")) }
}

fn query_dims(q: &Query, x: &[u32], w: &[u32]) -> Result<Conv, String> {
    let (x, w) = (image(x), image(w));
    supported(dims(x, w, q.size("groups"), window([w[2], w[3]], |name| q.int(name))))
}

fn scratch(q: &Query, x: usize, w: usize) -> Result<usize, String> {
    Ok(k::conv2d_scratch_bytes(&query_dims(q, q.args[x].dims, q.args[w].dims)?, q.threads))
}

fn grad_x_scratch(q: &Query) -> Result<usize, String> {
    Ok(k::conv2d_scratch_bytes(&query_dims(q, q.outs[0].dims, q.args[1].dims)?, q.threads))
}

fn grad_w_scratch(q: &Query) -> Result<usize, String> {
    Ok(k::conv2d_grad_w_scratch_bytes(&query_dims(q, q.args[1].dims, q.outs[0].dims)?, q.threads))
}

fn step_dims(c: &Call, x: &[u32], w: &[u32]) -> Conv {
    let (x, w) = (image(x), image(w));
    dims(x, w, c.step.size("groups"), window([w[2], w[3]], |name| c.step.int(name)))
}

fn conv2d(c: &mut Call) -> Result<(), KernelError> {
    let dims = step_dims(c, &c.step.args[0].shape, &c.step.args[1].shape);
    let b = (c.step.args.len() > 2).then(|| c.arg(2));
    let (x, w, y, scratch) = (c.arg(0), c.arg(1), c.out(0), c.scratch());
    k::conv2d(c.par, &dims, x, w, b, y, scratch);
    Ok(())
}

fn grad_x(c: &mut Call) -> Result<(), KernelError> {
    let dims = step_dims(c, &c.step.outs[0].shape, &c.step.args[1].shape);
    let (dy, w, dx, scratch) = (c.arg(0), c.arg(1), c.out(0), c.scratch());
    k::conv2d_grad_x(c.par, &dims, w, dy, dx, scratch);
    Ok(())
}

fn grad_w(c: &mut Call) -> Result<(), KernelError> {
    let dims = step_dims(c, &c.step.args[1].shape, &c.step.outs[0].shape);
    let (dy, x, scratch) = (c.arg(0), c.arg(1), c.scratch());
    let (dw, accumulate) = c.accumulator(2, 0);
    k::conv2d_grad_w(c.par, &dims, x, dy, accumulate, dw, scratch);
    Ok(())
}
