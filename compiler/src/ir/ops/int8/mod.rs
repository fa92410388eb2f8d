//! Ops on int8 images: forward in int8, backward in f32, updates that round at random.
//!
//! Shapes: images `i8[N,H,W,C]`; weights `i8[O,R,S,I]`, where a fully connected layer is a 1x1 convolution of a 1x1
//! image; depthwise weights `i8[R,S,C*M]`, multiplier `M`, output channel `c*M+m`. Biases `i32[O]`. A value `x` means
//! `scale * (x - zero)`; only `zero` is an attribute here, and `scale[o] = s_x s_w[o] / s_y` is an operand.
//!
//! Every definition is exact: whole numbers are added as whole numbers, and what is rounded is rounded to f32, to
//! nearest with ties to even, in the order that is written here. A kernel gives the same bits. Backward is
//! straight-through: the gradient of an int8 value is f32, and where a result was clamped it is 0. One bit an element
//! says where it was not: element `i` is bit `i % 8` of byte `i / 8`.

/// The attributes of windows that move over an image, and `$extra`.
macro_rules! window_attrs {
    ($($extra:expr),* $(,)?) => {
        &[
            int("stride_h", 1), int("stride_w", 1), int("pad_top", 0), int("pad_left", 0), int("out_h", 1),
            int("out_w", 1), $($extra),*
        ]
    };
}

pub mod bottleneck;
pub mod conv;
pub mod elementwise;
pub mod loss;
pub mod pool;
pub mod update;

use super::def::Tensor;
use crate::ir::attrs::Attrs;
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// Windows that move over an image.
#[derive(Clone, Copy)]
struct Window {
    stride: [usize; 2],
    pad: [usize; 2],
    out: [usize; 2],
}

impl Window {
    fn of(a: &Attrs) -> Window {
        Window::prefixed(a, "")
    }

    /// The window of attributes that start with `prefix`.
    fn prefixed(a: &Attrs, prefix: &str) -> Window {
        let get = |name: &str| a.size(&format!("{prefix}{name}"));
        Window {
            stride: [get("stride_h"), get("stride_w")],
            pad: [get("pad_top"), get("pad_left")],
            out: [get("out_h"), get("out_w")],
        }
    }

    /// Refuses windows of which one lies outside the image.
    fn check(&self, image: [u32; 2], kernel: [u32; 2]) -> Result<(), String> {
        for d in 0..2 {
            let (stride, pad, out) = (self.stride[d] as u64, self.pad[d] as u64, self.out[d] as u64);
            let (len, kernel) = (u64::from(image[d]), u64::from(kernel[d]));
            // Padding at the end is at most one more than at the start, in every convention that there is.
            let fits = stride > 0
                && out > 0
                && (pad + 1..=len + 2 * pad + 1).contains(&kernel)
                && (out - 1) * stride < len + pad;
            if !fits || out > i32::MAX as u64 {
                let what = format!("{out} windows of {kernel}, stride {stride}, padding {pad}");
                return Err(format!("{what} do not all reach into a side of {len}"));
            }
        }
        Ok(())
    }

    /// The place in the image that tap `tap` of window `at` reads, if it is inside; one dimension.
    fn source(&self, d: usize, at: usize, tap: usize, len: usize) -> Option<usize> {
        (at * self.stride[d] + tap).checked_sub(self.pad[d]).filter(|&i| i < len)
    }

    /// The window whose tap `tap` reads place `i` of the image, if there is one; one dimension.
    fn reader(&self, d: usize, i: usize, tap: usize) -> Option<usize> {
        let at = (i + self.pad[d]).checked_sub(tap)?;
        (at.is_multiple_of(self.stride[d]) && at / self.stride[d] < self.out[d]).then(|| at / self.stride[d])
    }
}

/// Where a result's clamp lies.
#[derive(Clone, Copy)]
struct Clamp {
    zero: f64,
    lo: f64,
    hi: f64,
}

impl Clamp {
    fn of(a: &Attrs, zero: &str) -> Clamp {
        Clamp { zero: a.float(zero), lo: a.float("lo"), hi: a.float("hi") }
    }

    fn prefixed(a: &Attrs, prefix: &str) -> Clamp {
        let get = |name: &str| a.float(&format!("{prefix}{name}"));
        Clamp { zero: get("zero_y"), lo: get("lo"), hi: get("hi") }
    }

    fn check(&self) -> Result<(), String> {
        if self.lo > self.hi || self.lo < -128.0 || self.hi > 127.0 {
            return Err(format!("the clamp {}..{} is none of int8", self.lo, self.hi));
        }
        check_zero(self.zero)
    }

    /// A rounded number to int8, and whether it was inside.
    fn apply(&self, rounded: f64) -> (f64, bool) {
        let t = rounded + self.zero;
        (t.clamp(self.lo, self.hi), self.lo <= t && t <= self.hi)
    }
}

fn check_zero(zero: f64) -> Result<(), String> {
    if (-128.0..=127.0).contains(&zero) { Ok(()) } else { Err(format!("zero point {zero} is none of int8")) }
}

/// To the nearest whole number, ties to even, of an f32; the smooth definitions leave numbers as they are.
fn nearest(v: f64, exact: bool) -> f64 {
    if exact { f64::from((v as f32).round_ties_even()) } else { v }
}

/// One f32 product, or the product.
fn product(a: f64, b: f64, exact: bool) -> f64 {
    if exact { f64::from(a as f32 * b as f32) } else { a * b }
}

/// `a b + acc`, rounded once to f32.
fn fma(a: f64, b: f64, acc: f32) -> f32 {
    (a as f32).mul_add(b as f32, acc)
}

/// The type of a mask for a result of this type.
fn mask_type(y: &Type) -> Result<Type, String> {
    let bytes = u32::try_from(y.elems().div_ceil(8)).map_err(|_| format!("{y} is too large for a mask"))?;
    Ok(Type::new(DType::U8, &[bytes]))
}

/// `y`, and its mask where the attributes ask for one.
fn with_mask(y: Type, a: &Attrs) -> Result<Vec<Type>, String> {
    if a.flag("mask") { Ok(vec![y.clone(), mask_type(&y)?]) } else { Ok(vec![y]) }
}

/// Writes element `i` of a result, and of its mask where there is one.
fn put(outs: &mut [Tensor], i: usize, (value, inside): (f64, bool)) {
    outs[0].data[i] = value;
    if let (Some(mask), true) = (outs.get_mut(1), inside) {
        mask.data[i / 8] += f64::from(1u8 << (i % 8));
    }
}

/// Bit `i` of a mask.
fn bit(mask: &Tensor, i: usize) -> bool {
    mask.data[i / 8] as u8 >> (i % 8) & 1 == 1
}

/// Refuses what is no image of this storage.
fn image(ty: &Type, dtype: DType, what: &str) -> Result<[u32; 4], String> {
    match ty.shape[..].try_into() {
        Ok(dims) if ty.dtype == dtype => Ok(dims),
        _ => Err(format!("{what} must be {}[N,H,W,C], found {ty}", dtype.name())),
    }
}

/// Refuses another type.
fn must_be(what: &str, found: &Type, dtype: DType, shape: &[u32]) -> Result<(), String> {
    let wanted = Type::new(dtype, shape);
    if *found == wanted { Ok(()) } else { Err(format!("{what} is {found}, must be {wanted}")) }
}

/// Index of an element of a tensor of 4 dimensions.
fn at(shape: &[usize], i: [usize; 4]) -> usize {
    ((i[0] * shape[1] + i[1]) * shape[2] + i[2]) * shape[3] + i[3]
}

/// All pairs of indices below two lengths, in row-major order.
fn pairs(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |i| (0..cols).map(move |j| (i, j)))
}
