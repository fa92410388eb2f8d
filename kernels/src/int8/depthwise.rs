//! Depthwise convolution with a rounded output.
//!
//! ```text
//! y[p, c m + j] = round of the sum over r, s of (x[.., c] - zero_x) w[r, s, c m + j] + bias[c m + j], as in `conv`
//! ```

use super::round::{Rounder, set_bit};
use super::{Conv, Quant, Weights, lengths, mask_bytes, part};

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
    _scratch: &mut [u8],
) {
    let o = dims.out_channels;
    let mask_len = mask.as_ref().map_or(mask_bytes(y.len()), |m| m.len());
    let fits = lengths([
        (x.len(), dims.x_len()),
        (y.len(), dims.y_len()),
        (weights.w.len(), dims.depthwise_w_len()),
        (weights.bias.len(), o),
        (weights.scale.len(), o),
        (mask_len, mask_bytes(dims.y_len())),
        (dims.multiplier() * dims.in_channels, o),
    ]);
    if !fits {
        return;
    }
    let mask = mask.unwrap_or(&mut []);
    mask.fill(0);
    let rounder = Rounder::of(quant);
    let width = dims.out_size[1].max(1);
    let pixels = dims.out_pixels().max(1);
    let multiplier = dims.multiplier().max(1);
    for (p, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let (n, at) = (p / pixels, p % pixels);
        let x = part(x, n * dims.in_pixels() * dims.in_channels, dims.in_pixels() * dims.in_channels);
        for (k, ((y, bias), scale)) in y.iter_mut().zip(weights.bias).zip(weights.scale).enumerate() {
            let acc = window(dims, quant.zero_x, x, weights.w, [at / width, at % width], k, k / multiplier);
            let (value, is_inside) = rounder.sum(bias.wrapping_add(acc), *scale);
            *y = value;
            set_bit(mask, p * o + k, is_inside);
        }
    }
}

/// The sum of products of one window in one image: output channel `k` over input channel `c`.
fn window(dims: &Conv, zero: i32, x: &[i8], w: &[i8], out: [usize; 2], k: usize, c: usize) -> i32 {
    let mut acc = 0i32;
    for r in dims.taps_inside(0, out[0]) {
        for s in dims.taps_inside(1, out[1]) {
            let row = out[0] * dims.stride[0] + r - dims.pad[0];
            let column = out[1] * dims.stride[1] + s - dims.pad[1];
            let x = x.get((row * dims.in_size[1] + column) * dims.in_channels + c).copied().unwrap_or_default();
            let w = w.get((r * dims.kernel[1] + s) * dims.out_channels + k).copied().unwrap_or_default();
            acc = acc.wrapping_add((i32::from(x) - zero).wrapping_mul(i32::from(w)));
        }
    }
    acc
}
