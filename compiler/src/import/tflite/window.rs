//! The options of operators: windows, padding, fused activations.

use super::flat::{Field, Table};
use super::ops::Stop;
use crate::import::int8::{Image, Limits, Quant, Window};

type Refused<T> = Result<T, Stop>;
type Options<'a, 'b> = Option<&'b Table<'a>>;

const PADDING: Field = Field(0, "padding");
const STRIDE_W: Field = Field(1, "stride_w");
const STRIDE_H: Field = Field(2, "stride_h");
const FILTER_W: Field = Field(3, "filter_width");
const FILTER_H: Field = Field(4, "filter_height");
const BETA: Field = Field(0, "beta");

const SAME: i8 = 0;

/// Where a window's padding is said.
pub enum Padding {
    /// By the options: `SAME` or `VALID`.
    Named,
    /// By a PAD before it: rows above and below, columns left and right; the options must say `VALID`.
    Given([[u32; 2]; 2]),
}

/// Whose kernels an operator runs by, which round the limits of an activation in ways of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// XNNPACK: limits with the zero point, ties to even.
    Xnnpack,
    /// LiteRT's own: without it, ties away from 0.
    BuiltIn,
}

/// The activation that a convolution's options name, as limits.
pub fn fused(options: Options, is_depthwise: bool, quant: Quant) -> Refused<Limits> {
    let first = if is_depthwise { 5 } else { 4 };
    for (i, name) in [(first, "dilation_w_factor"), (first + 1, "dilation_h_factor")] {
        let dilation = options.map_or(Ok(1), |o| o.i32(Field(i, name), 1))?;
        if dilation != 1 {
            return Err(Stop::Why(format!("its {name} is {dilation}, only 1 is taken")));
        }
    }
    fused_at(options, first - 1, quant, Kernels::Xnnpack)
}

/// The activation in this field of the options, as limits.
pub fn fused_at(options: Options, field: u16, quant: Quant, kernels: Kernels) -> Refused<Limits> {
    limits(options.map_or(Ok(0), |o| o.i8(Field(field, "fused_activation_function"), 0))?, quant, kernels)
}

/// The limits of an activation: none, max(x, 0), -1..1, 0..6.
pub fn limits(activation: i8, quant: Quant, kernels: Kernels) -> Refused<Limits> {
    let (scale, zero) = (quant.scale as f32, quant.zero as f32);
    let at = |real: f32| {
        let stored = match kernels {
            Kernels::Xnnpack => (real / scale + zero).round_ties_even(),
            Kernels::BuiltIn => (real / scale).round() + zero,
        };
        stored.clamp(-128.0, 127.0) as i32
    };
    match activation {
        0 => Ok(Limits::ALL),
        1 => Ok(Limits { lo: at(0.0), hi: 127 }),
        2 => Ok(Limits { lo: at(-1.0), hi: at(1.0) }),
        3 => Ok(Limits { lo: at(0.0), hi: at(6.0) }),
        other => Err(Stop::Why(format!("its fused activation has the code {other}, none, RELU and RELU6 are taken"))),
    }
}

/// The size of a pool's window.
pub fn pool_size(options: Options) -> Refused<[u32; 2]> {
    let of = |field: Field| options.map_or(Ok(0), |o| o.i32(field, 0));
    Ok([of(FILTER_H)?, of(FILTER_W)?].map(|d| u32::try_from(d).unwrap_or(0)))
}

/// A softmax's factor of the logits.
pub fn beta(options: Options) -> Refused<f32> {
    Ok(options.map_or(Ok(0.0), |o| o.f32(BETA, 0.0))?)
}

/// The window of `size` that turns `x` into `y`; the options give strides and, where it is `Named`, the padding.
pub fn window(options: Options, size: [u32; 2], x: &Image, y: &Image, padding: Padding) -> Refused<Window> {
    let Some(options) = options else { return Err(Stop::Why("its options are missing".into())) };
    let is_same = options.i8(PADDING, SAME)? == SAME;
    let strides = [options.i32(STRIDE_H, 0)?, options.i32(STRIDE_W, 0)?];
    let given = match padding {
        Padding::Named => [[0, 0]; 2],
        Padding::Given(_) if is_same => return Err(Stop::Why("padding stands before it and it pads again".into())),
        Padding::Given(pads) => pads,
    };
    let (mut stride, mut pad) = ([0; 2], [0; 2]);
    for d in 0..2 {
        stride[d] = u32::try_from(strides[d]).ok().filter(|s| *s > 0).ok_or("its stride is not positive".to_owned())?;
        let step = u64::from(stride[d]);
        let (len, k, out) = (u64::from(x.shape[d]), u64::from(size[d]), u64::from(y.shape[d]));
        let padded = len + u64::from(given[d][0]) + u64::from(given[d][1]);
        let (expected, before) = if is_same {
            let out = len.div_ceil(step);
            (out, ((out - 1) * step + k).saturating_sub(len) / 2)
        } else {
            let room = padded.checked_sub(k).ok_or(format!("a window of {k} does not fit {padded}"))?;
            (room / step + 1, u64::from(given[d][0]))
        };
        if out != expected {
            return Err(Stop::Why(format!("its result measures {out} where a window of {k} gives {expected}")));
        }
        pad[d] = u32::try_from(before).map_err(|_| "its padding is too wide".to_owned())?;
    }
    Ok(Window { size, stride, pad })
}
