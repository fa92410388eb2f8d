//! Depthwise convolution with a rounded output.
//!
//! ```text
//! y[p, c m + j] = round of the sum over r, s of (x[.., c] - zero_x) w[r, s, c m + j] + bias[c m + j], as in `conv`
//! ```

use super::round::Rounder;
use super::{Bits, Conv, Quant, Rows, Weights, lengths, mask_bytes, part, part_mut};
use core::ops::Range;

/// Bytes of scratch that [`i8_depthwise`] needs, beginning at a multiple of 16.
pub const fn i8_depthwise_scratch_bytes(_dims: &Conv) -> usize {
    0
}

/// Depthwise convolution: `x` of `dims.x_len()` to `y` of `dims.y_len()`; `mask` as for a convolution.
pub fn i8_depthwise(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    y: &mut [i8],
    mask: Option<&mut [u8]>,
    scratch: &mut [u8],
) {
    let mask_len = mask.as_ref().map_or(mask_bytes(y.len()), |m| m.len());
    let fits = lengths([
        (x.len(), dims.x_len()),
        (mask_len, mask_bytes(dims.y_len())),
        (y.len(), dims.y_len()),
        (dims.multiplier() * dims.in_channels, dims.out_channels),
    ]);
    if !fits || !weights.fit(dims, dims.depthwise_w_len()) {
        return;
    }
    let mask = mask.unwrap_or(&mut []);
    mask.fill(0);
    let (x_len, y_len) = (dims.in_pixels() * dims.in_channels, dims.out_pixels() * dims.out_channels);
    for n in 0..dims.images {
        let bits = Bits { bytes: mask, at: n * y_len };
        let len = dims.in_size[1] * dims.in_channels;
        let x = Rows { data: part(x, n * x_len, x_len), rows: dims.in_size[0], len };
        let y = part_mut(y, n * y_len, y_len);
        depthwise_rows(dims, quant, x, weights, 0..dims.out_size[0], y, bits, scratch);
    }
}

/// Some rows of the output of one image, `y` of these rows only; `x` holds the rows under their windows.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
pub(crate) fn depthwise_rows(
    dims: &Conv,
    quant: &Quant,
    x: Rows,
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
    _scratch: &mut [u8],
) {
    let (o, width) = (dims.out_channels, dims.out_size[1].max(1));
    let multiplier = dims.multiplier().max(1);
    let rounder = Rounder::of(quant);
    for (p, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let out = [rows.start + p / width, p % width];
        for (k, ((y, bias), scale)) in y.iter_mut().zip(weights.bias).zip(weights.scale).enumerate() {
            let acc = window(dims, quant.zero_x, x, weights.w, out, k, k / multiplier);
            let (value, is_inside) = rounder.sum(bias.wrapping_add(acc), *scale);
            *y = value;
            bits.set(p * o + k, is_inside);
        }
    }
}

/// The sum of products of one window in one image: output channel `k` over input channel `c`.
fn window(dims: &Conv, zero: i32, x: Rows, w: &[i8], out: [usize; 2], k: usize, c: usize) -> i32 {
    let mut acc = 0i32;
    for r in dims.taps_inside(0, out[0]) {
        let row = x.row(out[0] * dims.stride[0] + r - dims.pad[0]);
        for s in dims.taps_inside(1, out[1]) {
            let column = out[1] * dims.stride[1] + s - dims.pad[1];
            let x = row.get(column * dims.in_channels + c).copied().unwrap_or_default();
            let w = w.get((r * dims.kernel[1] + s) * dims.out_channels + k).copied().unwrap_or_default();
            acc = acc.wrapping_add((i32::from(x) - zero).wrapping_mul(i32::from(w)));
        }
    }
    acc
}
