//! Convolution with a rounded output.
//!
//! ```text
//! y[p, o] = clamp(nearest((sum over r, s, i of (x[..] - zero_x) w[o, r, s, i] + bias[o]) * scale[o]) + zero_y, lo,
//! hi)
//! ```
//! Sums are exact, so blocks and vectors may take them in any order.

use super::round::Rounder;
use super::scratch::piece_bytes;
use super::{Bits, Conv, Quant, Weights, lengths, mask_bytes, part, part_mut};
use core::ops::Range;

/// Pixels whose windows are copied into columns at a time.
const COLUMNS: usize = 8;
/// Bytes of widened weights that are kept for all windows of a few pixels.
const PACKED_BYTES: usize = 4096;

/// How a convolution is cut where registers hold four output channels. The same on every machine, so that a plan made
/// on one serves another.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Inputs of an output, rounded up to whole steps of four.
    pub(crate) depth: usize,
    /// Groups of four output channels whose widened weights are held.
    pub(crate) groups: usize,
    /// Pixels whose windows are copied; 0 when the input serves as it lies.
    pub(crate) columns: usize,
}

impl Blocks {
    pub(crate) const fn of(dims: &Conv) -> Blocks {
        let depth = dims.depth().next_multiple_of(4);
        let all = dims.out_channels / 4;
        if dims.reads_in_place() {
            return Blocks { depth, groups: if all < 1 { all } else { 1 }, columns: 0 };
        }
        let fit = PACKED_BYTES / (depth * 8 + 1);
        let groups = if fit < 1 { 1 } else { fit };
        Blocks { depth, groups: if groups < all { groups } else { all }, columns: COLUMNS }
    }
}

/// Bytes of scratch that [`i8_conv2d`] needs, beginning at a multiple of 8.
pub const fn i8_conv2d_scratch_bytes(dims: &Conv) -> usize {
    let Blocks { depth, groups, columns } = Blocks::of(dims);
    if groups == 0 {
        return 0;
    }
    piece_bytes::<u32>(groups * depth * 2) + piece_bytes::<i32>(groups * 4) + piece_bytes::<i8>(columns * depth)
}

/// Convolution: `x` of `dims.x_len()` to `y` of `dims.y_len()`; `mask`, of `mask_bytes(y)`, gets a bit for each output
/// that was inside the limits before it was clamped.
pub fn i8_conv2d(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    y: &mut [i8],
    mask: Option<&mut [u8]>,
    scratch: &mut [u8],
) {
    let mask_len = mask.as_ref().map_or(mask_bytes(y.len()), |m| m.len());
    let fits = lengths([(x.len(), dims.x_len()), (mask_len, mask_bytes(dims.y_len())), (y.len(), dims.y_len())]);
    if !fits || !weights.fit(dims, dims.w_len()) {
        return;
    }
    let mask = mask.unwrap_or(&mut []);
    mask.fill(0);
    let (x_len, y_len) = (dims.in_pixels() * dims.in_channels, dims.out_pixels() * dims.out_channels);
    for n in 0..dims.images {
        let bits = Bits { bytes: mask, at: n * y_len };
        let (x, y) = (part(x, n * x_len, x_len), part_mut(y, n * y_len, y_len));
        conv_rows(dims, quant, x, weights, 0..dims.out_size[0], y, bits, scratch);
    }
}

/// Some rows of the output of one image, `y` of these rows only.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
pub(crate) fn conv_rows(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    bits: Bits,
    scratch: &mut [u8],
) {
    #[cfg(all(has_dsp, has_fpu))]
    return super::dsp::conv::conv_rows(dims, quant, x, weights, rows, y, bits, scratch);
    #[cfg(not(all(has_dsp, has_fpu)))]
    {
        let _ = scratch;
        #[cfg(all(feature = "std", target_arch = "x86_64"))]
        if super::x86::conv::supports(dims) {
            return super::x86::conv::conv_rows(dims, quant, x, weights, rows, y, bits);
        }
        let channels = 0..dims.out_channels;
        #[cfg(feature = "std")]
        super::simd::dispatch(Portable { dims, quant, x, weights, rows, y, bits, channels });
        #[cfg(not(feature = "std"))]
        conv_portable(dims, quant, x, weights, rows, y, bits, channels);
    }
}

/// [`conv_portable`] compiled for each instruction set.
#[cfg(feature = "std")]
struct Portable<'a> {
    dims: &'a Conv,
    quant: &'a Quant,
    x: &'a [i8],
    weights: &'a Weights<'a>,
    rows: Range<usize>,
    y: &'a mut [i8],
    bits: Bits<'a>,
    channels: Range<usize>,
}

#[cfg(feature = "std")]
impl super::simd::Kernel for Portable<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: super::simd::Simd>(self, _: S) {
        let Portable { dims, quant, x, weights, rows, y, bits, channels } = self;
        conv_portable(dims, quant, x, weights, rows, y, bits, channels);
    }
}

/// [`conv_rows`] for some of the output channels, on any machine.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
#[inline(always)]
pub(crate) fn conv_portable(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
    channels: Range<usize>,
) {
    let (o, width) = (dims.out_channels, dims.out_size[1].max(1));
    let rounder = Rounder::of(quant);
    if channels.is_empty() {
        return;
    }
    for (p, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let out = [rows.start + p / width, p % width];
        let w = weights.w.chunks_exact(dims.depth().max(1));
        let all = y.iter_mut().zip(w).zip(weights.bias).zip(weights.scale).enumerate();
        for (k, (((y, w), bias), scale)) in all.skip(channels.start).take(channels.len()) {
            let acc = bias.wrapping_add(window(dims, quant.zero_x, x, w, out));
            let (value, is_inside) = rounder.sum(acc, *scale);
            *y = value;
            bits.set(p * o + k, is_inside);
        }
    }
}

/// Copies the inputs of one window.
#[cfg(any(all(has_dsp, has_fpu), all(feature = "std", target_arch = "x86_64")))]
pub(crate) fn gather(dims: &Conv, zero: i32, x: &[i8], out: [usize; 2], column: &mut [i8]) {
    let (taps, channels) = (dims.taps_inside(1, out[1]), dims.in_channels);
    let rows = dims.taps_inside(0, out[0]);
    if rows.len() < dims.kernel[0] || taps.len() < dims.kernel[1] {
        column.fill(zero as i8);
    }
    let first = (out[1] * dims.stride[1] + taps.start).saturating_sub(dims.pad[1]);
    if rows.len() == dims.kernel[0] && taps.len() == dims.kernel[1] {
        let (len, pitch) = (taps.len() * channels, dims.in_size[1] * channels);
        let top = (out[0] * dims.stride[0]).saturating_sub(dims.pad[0]);
        let x = x.get(top * pitch + first * channels..).unwrap_or(&[]);
        let mut at = 0;
        for to in column.chunks_exact_mut(len.max(1)).take(dims.kernel[0]) {
            copy_few(to, part(x, at, len));
            at += pitch;
        }
        return;
    }
    for r in rows {
        let row = out[0] * dims.stride[0] + r - dims.pad[0];
        let x = part(x, (row * dims.in_size[1] + first) * channels, taps.len() * channels);
        let to = part_mut(column, (r * dims.kernel[1] + taps.start) * channels, x.len());
        copy_few(to, x);
    }
}

/// Copies a few bytes, without the way into a general routine.
#[cfg(any(all(has_dsp, has_fpu), all(feature = "std", target_arch = "x86_64")))]
#[inline(always)]
fn copy_few(to: &mut [i8], from: &[i8]) {
    let ((fours, to), (from_fours, from)) = (to.as_chunks_mut::<4>(), from.as_chunks::<4>());
    for (to, from) in fours.iter_mut().zip(from_fours) {
        *to = *from;
    }
    if let ([a, b, c], [x, y, z]) = (&mut *to, from) {
        (*a, *b, *c) = (*x, *y, *z);
    } else if let ([a, b], [x, y]) = (&mut *to, from) {
        (*a, *b) = (*x, *y);
    } else if let ([a], [x]) = (to, from) {
        *a = *x;
    }
}

/// The sum of products of one window in one image.
#[inline(always)]
fn window(dims: &Conv, zero: i32, x: &[i8], w: &[i8], out: [usize; 2]) -> i32 {
    let columns = dims.taps_inside(1, out[1]);
    let channels = dims.in_channels;
    let mut acc = 0i32;
    if columns.is_empty() {
        return acc;
    }
    for r in dims.taps_inside(0, out[0]) {
        let row = out[0] * dims.stride[0] + r - dims.pad[0];
        let column = out[1] * dims.stride[1] + columns.start - dims.pad[1];
        let x = part(x, (row * dims.in_size[1] + column) * channels, columns.len() * channels);
        let w = part(w, (r * dims.kernel[1] + columns.start) * channels, columns.len() * channels);
        for (x, w) in x.iter().zip(w) {
            acc = acc.wrapping_add((i32::from(*x) - zero).wrapping_mul(i32::from(*w)));
        }
    }
    acc
}
