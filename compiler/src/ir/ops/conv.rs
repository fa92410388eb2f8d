//! 2-dimensional convolutions and their gradients.
//!
//! Shapes: images `[B,C,H,W]`, weights `[O,C/groups,R,S]`; a depthwise convolution has `groups = C`.
//! Zero padding `pad` on every side, one `stride` in both directions, unless `stride_w`, `pad_w`, `extra_h` and
//! `extra_w` say otherwise ([`Moves`]).

use super::def::{Acc, OpDef, ROW, Saves, Tensor, expect};
use super::elementwise::{accumulates, start_from};
use crate::ir::attrs::{AttrDef, Attrs, int};
use crate::ir::ops::Op;
use crate::ir::types::Type;

fn dims(ty: &Type, what: &str) -> Result<[u32; 4], String> {
    ty.shape[..].try_into().map_err(|_| format!("{what} must have 4 dimensions, found {ty}"))
}

/// How a window moves over an image, `[down, across]`: strides, zeros before the first pixel and behind the last.
///
/// Down it is `stride`, `pad` and `pad + extra_h`; across `stride_w` (0: `stride`), `pad_w` (-1: `pad`) and that with
/// `extra_w` more. Padding that is more at the end, or less, comes from other conventions than one number a side.
pub struct Moves {
    /// Pixels from one result to the next.
    pub stride: [u32; 2],
    /// Zeros before the first pixel.
    pub pad: [u32; 2],
    /// Zeros behind the last.
    pub pad_end: [u32; 2],
}

impl Moves {
    /// The moves of a node's attributes.
    pub fn of(a: &Attrs) -> Result<Moves, String> {
        let (stride, pad) = (a.size("stride") as u32, a.size("pad") as u32);
        let stride_w = if a.int("stride_w") == 0 { stride } else { a.size("stride_w") as u32 };
        let pad_w = if a.int("pad_w") < 0 { pad } else { a.size("pad_w") as u32 };
        let end = |pad: u32, extra: &str| {
            let end = i64::from(pad) + a.int(extra);
            u32::try_from(end).map_err(|_| format!("padding {pad} and {extra} {} are no length", a.int(extra)))
        };
        let pad_end = [end(pad, "extra_h")?, end(pad_w, "extra_w")?];
        Ok(Moves { stride: [stride, stride_w], pad: [pad, pad_w], pad_end })
    }

    /// Length of one side of the result, down (0) or across (1).
    pub fn out_len(&self, d: usize, len: u32, kernel: u32) -> Result<u32, String> {
        let (stride, pad, end) = (self.stride[d], self.pad[d], self.pad_end[d]);
        let padded = u64::from(len) + u64::from(pad) + u64::from(end);
        if kernel == 0 || stride == 0 || padded < u64::from(kernel) {
            return Err(format!("window {kernel}/{stride} does not fit length {len} padded by {pad} and {end}"));
        }
        let len = (padded - u64::from(kernel)) / u64::from(stride) + 1;
        u32::try_from(len).map_err(|_| format!("padding {pad} and {end} is too wide"))
    }
}

fn out_type(x: &Type, w: &Type, a: &Attrs) -> Result<Type, String> {
    let ([b, c, h, width], [o, ci, r, s]) = (dims(x, "x")?, dims(w, "w")?);
    let (groups, moves) = (a.size("groups") as u32, Moves::of(a)?);
    if groups == 0 || c % groups != 0 || o % groups != 0 {
        return Err(format!("{groups} groups do not divide {c} input and {o} output channels"));
    }
    expect("input channels of w", ci, c / groups)?;
    Ok(Type::f32(&[b, o, moves.out_len(0, h, r)?, moves.out_len(1, width, s)?]))
}

/// Calls `f(index in y, index in x, index in w)` for every product of the convolution.
fn for_products(x: &[usize], w: &[usize], y: &[usize], a: &Attrs, mut f: impl FnMut(usize, usize, usize)) {
    let (groups, moves) = (a.size("groups"), Moves::of(a).expect("the shape rule has read them"));
    let ([down, across], [top, left]) = (moves.stride.map(|d| d as usize), moves.pad.map(|d| d as usize));
    let at = |s: &[usize], i: [usize; 4]| ((i[0] * s[1] + i[1]) * s[2] + i[2]) * s[3] + i[3];
    for b in 0..y[0] {
        for o in 0..y[1] {
            let first = o / (y[1] / groups) * w[1];
            for (i, j) in (0..y[2]).flat_map(|i| (0..y[3]).map(move |j| (i, j))) {
                for c in 0..w[1] {
                    for (r, s) in (0..w[2]).flat_map(|r| (0..w[3]).map(move |s| (r, s))) {
                        let (h, v) = (i * down + r, j * across + s);
                        if h >= top && v >= left && h - top < x[2] && v - left < x[3] {
                            let xi = at(x, [b, first + c, h - top, v - left]);
                            f(at(y, [b, o, i, j]), xi, at(w, [o, c, r, s]));
                        }
                    }
                }
            }
        }
    }
}

fn conv_flops(w: &Type, y: &Type) -> u64 {
    2 * y.elems() * w.elems() / u64::from(w.shape[0])
}

/// Attributes of windows, with `$stride` as the default stride, and `$extra`.
macro_rules! move_attrs {
    ($stride:expr; $($extra:expr),*) => {
        &[
            int("stride", $stride), int("stride_w", 0), int("pad", 0), int("pad_w", -1), int("extra_h", 0),
            int("extra_w", 0), $($extra),*
        ]
    };
}
pub(super) use move_attrs;

const ATTRS: &[AttrDef] = move_attrs![1; int("groups", 1)];

/// `y[b,o,i,j] = bias[o] + Σ_{c,r,s} x[b, g+c, i·stride+r-pad, j·stride_w+s-pad_w] w[o,c,r,s]`.
/// Operands `x, w`, and `bias[O]` or none.
pub const CONV2D: OpDef = OpDef {
    name: "conv2d",
    arity: (2, 3),
    attrs: ATTRS,
    infer: |x, a| {
        let ty = out_type(&x[0], &x[1], a)?;
        if let Some(b) = x.get(2) {
            expect("length of the bias", b.elems(), ty.shape[1])?;
        }
        Ok(vec![ty])
    },
    eval: |x, y, a| {
        let (shape, area) = (y[0].shape.clone(), y[0].shape[2] * y[0].shape[3]);
        if let Some(b) = x.get(2) {
            y[0].data.iter_mut().enumerate().for_each(|(i, y)| *y = b.data[i / area % shape[1]]);
        }
        let (xs, ws): (&Tensor, &Tensor) = (&x[0], &x[1]);
        for_products(&xs.shape, &ws.shape, &shape, a, |yi, xi, wi| y[0].data[yi] += xs.data[xi] * ws.data[wi]);
    },
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let (dy, rows, tx, tw) = (v.dy(), v.rows(), v.arg_ty(0), v.arg_ty(1));
        let shared: Vec<_> = v.attrs.iter().collect();
        let dx = v.needs[0].then(|| {
            let w = v.arg(1);
            let extra = [("h", tx.shape[2].into()), ("w", tx.shape[3].into())];
            v.push(0, Op::Conv2dGradX, &[dy, w], &[&shared[..], &extra].concat())
        });
        let dw = v.needs[1].then(|| {
            let x = v.arg(0);
            let extra = [("kh", tw.shape[2].into()), ("kw", tw.shape[3].into())];
            v.push(1, Op::Conv2dGradW, &[dy, x], &[&shared[..], &extra].concat())
        });
        let mut grads = vec![dx, dw];
        if v.needs.len() > 2 {
            grads.push(v.needs[2].then(|| v.push(2, Op::SumChannels, &[dy], &[("rows", rows.into())])));
        }
        grads
    }),
    flops: |x, y, _| conv_flops(&x[1], &y[0]),
    ..ROW
};

/// `dx` of `conv2d`, for inputs of height `h` and width `w`; operands `dy, w`.
pub const CONV2D_GRAD_X: OpDef = OpDef {
    name: "conv2d_grad_x",
    arity: (2, 2),
    attrs: move_attrs![1; int("groups", 1), int("h", 1), int("w", 1)],
    infer: |x, a| {
        let ([b, ..], [_, ci, ..]) = (dims(&x[0], "dy")?, dims(&x[1], "w")?);
        let channels = ci.checked_mul(a.size("groups") as u32).ok_or("the groups have too many channels")?;
        let ty = Type::f32(&[b, channels, a.size("h") as u32, a.size("w") as u32]);
        let dy = out_type(&ty, &x[1], a)?;
        if dy.shape == x[0].shape { Ok(vec![ty]) } else { Err(format!("dy is {}, must be {dy}", x[0])) }
    },
    eval: |x, y, a| {
        let (dy, w): (&Tensor, &Tensor) = (&x[0], &x[1]);
        let shape = y[0].shape.clone();
        for_products(&shape, &w.shape, &dy.shape, a, |yi, xi, wi| y[0].data[xi] += dy.data[yi] * w.data[wi]);
    },
    flops: |x, _, _| conv_flops(&x[1], &x[0]),
    ..ROW
};

/// `dw` of `conv2d`, image by image, for kernels of `kh x kw`; operands `dy, x`, and `acc` or none.
pub const CONV2D_GRAD_W: OpDef = OpDef {
    name: "conv2d_grad_w",
    arity: (2, 3),
    attrs: move_attrs![1; int("groups", 1), int("kh", 1), int("kw", 1)],
    infer: |x, a| {
        let ([_, o, ..], [_, c, ..]) = (dims(&x[0], "dy")?, dims(&x[1], "x")?);
        let groups = a.size("groups").max(1) as u32;
        let ty = Type::f32(&[o, c / groups, a.size("kh") as u32, a.size("kw") as u32]);
        let dy = out_type(&x[1], &ty, a)?;
        if dy.shape != x[0].shape {
            return Err(format!("dy is {}, must be {dy}", x[0]));
        }
        accumulates(x, 2, ty)
    },
    eval: |x, y, a| {
        start_from(x, 2, y);
        let (dy, xs): (&Tensor, &Tensor) = (&x[0], &x[1]);
        let shape = y[0].shape.clone();
        for_products(&xs.shape, &shape, &dy.shape, a, |yi, xi, wi| y[0].data[wi] += dy.data[yi] * xs.data[xi]);
    },
    in_place: &[(2, 0)],
    flops: |x, y, _| conv_flops(&y[0], &x[0]),
    acc: Some(Acc { arg: 2, out: 0, whole: false }),
    ..ROW
};

/// `y[c] = acc[c] + Σ_{b,i,j} x[b,c,i,j]`, image by image: the gradient of a convolution's bias.
/// Operands `x`, and `acc[C]` or none.
pub const SUM_CHANNELS: OpDef = OpDef {
    name: "sum_channels",
    arity: (1, 2),
    attrs: &[int("rows", 1)],
    infer: |x, _| accumulates(x, 1, Type::f32(&[dims(&x[0], "x")?[1]])),
    eval: |x, y, _| {
        start_from(x, 1, y);
        let (channels, area) = (x[0].shape[1], x[0].shape[2] * x[0].shape[3]);
        x[0].data.iter().enumerate().for_each(|(i, x)| y[0].data[i / area % channels] += x);
    },
    in_place: &[(1, 0)],
    flops: |x, _, _| x[0].elems(),
    acc: Some(Acc { arg: 1, out: 0, whole: false }),
    ..ROW
};
