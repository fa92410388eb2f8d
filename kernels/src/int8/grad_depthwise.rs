//! Gradients of a depthwise convolution: those of `grad_conv` with one channel in each sum.
//!
//! ```text
//! gx[q, c]    sums over the taps that reach q (r, then s, then j ascending) of gc[p, c m + j] w[r, s, c m + j]
//! gw[r, s, k] sums over output pixels p ascending of (x[.., k / m] - zero_x) gc[p, k]; a tap outside of x is skipped
//! ```

use super::fma::fma;
use super::update::{Update, column, moved_i8};
use super::{Conv, WeightGrad, lengths, part, part_mut};

/// Bytes of scratch that [`i8_depthwise_grad_x`] needs, beginning at a multiple of 16.
pub const fn i8_depthwise_grad_x_scratch_bytes(_dims: &Conv) -> usize {
    0
}

/// Bytes of scratch that [`i8_depthwise_grad_w`] and [`i8_depthwise_grad_w_update`] need, beginning at a multiple of
/// 16.
pub const fn i8_depthwise_grad_w_scratch_bytes(_dims: &Conv) -> usize {
    0
}

/// Gradient with respect to the input: `gc` of `dims.y_len()`, `gx` of `dims.x_len()`.
pub fn i8_depthwise_grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32], _scratch: &mut [u8]) {
    if !fits(dims, gc.len(), gx.len()) || !lengths([(w.len(), dims.depthwise_w_len())]) {
        return;
    }
    let (o, multiplier) = (dims.out_channels, dims.multiplier().max(1));
    let (width, pixels) = (dims.in_size[1].max(1), dims.in_pixels().max(1));
    for (q, gx) in gx.chunks_exact_mut(dims.in_channels.max(1)).enumerate() {
        gx.fill(0.0);
        let (n, at) = (q / pixels, q % pixels);
        for r in 0..dims.kernel[0] {
            let Some(row) = dims.output(0, at / width, r) else { continue };
            for s in 0..dims.kernel[1] {
                let Some(out) = dims.output(1, at % width, s) else { continue };
                let gc = part(gc, ((n * dims.out_size[0] + row) * dims.out_size[1] + out) * o, o);
                let w = part(w, (r * dims.kernel[1] + s) * o, o);
                let products = gc.chunks_exact(multiplier).zip(w.chunks_exact(multiplier));
                for (gx, (gc, w)) in gx.iter_mut().zip(products) {
                    *gx = gc.iter().zip(w).fold(*gx, |gx, (gc, w)| fma(*gc, f32::from(*w), gx));
                }
            }
        }
    }
}

fn fits(dims: &Conv, gc: usize, x: usize) -> bool {
    let channels = (dims.multiplier() * dims.in_channels, dims.out_channels);
    lengths([(gc, dims.y_len()), (x, dims.x_len()), channels])
}

/// One element of the gradient: tap `(r, s)`, output channel `k`.
fn element(dims: &Conv, from: &WeightGrad, [r, s, k]: [usize; 3]) -> f32 {
    let c = k / dims.multiplier().max(1);
    let mut acc = 0.0;
    for n in 0..dims.images {
        for row in dims.outputs_inside(0, r) {
            for out in dims.outputs_inside(1, s) {
                let p = (n * dims.out_size[0] + row) * dims.out_size[1] + out;
                let (h, w) = (row * dims.stride[0] + r - dims.pad[0], out * dims.stride[1] + s - dims.pad[1]);
                let q = (n * dims.in_size[0] + h) * dims.in_size[1] + w;
                if let (Some(x), Some(gc)) =
                    (from.x.get(q * dims.in_channels + c), from.gc.get(p * dims.out_channels + k))
                {
                    acc = fma((i32::from(*x) - from.zero) as f32, *gc, acc);
                }
            }
        }
    }
    acc
}

/// Gradient with respect to the weight, `f32[r, s, k]`; with `index` only of these output channels,
/// `f32[r, s, index.len()]`.
pub fn i8_depthwise_grad_w(dims: &Conv, from: &WeightGrad, gw: &mut [f32], _scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.out_channels, <[i32]>::len);
    if !fits(dims, from.gc.len(), from.x.len()) || !lengths([(gw.len(), dims.taps() * columns)]) {
        return;
    }
    for tap in 0..dims.taps() {
        let (r, s) = (tap / dims.kernel[1].max(1), tap % dims.kernel[1].max(1));
        for (j, gw) in part_mut(gw, tap * columns, columns).iter_mut().enumerate() {
            *gw = match column(from.index, j).filter(|k| *k < dims.out_channels) {
                Some(k) => element(dims, from, [r, s, k]),
                None => 0.0,
            };
        }
    }
}

/// [`i8_depthwise_grad_w`] and the update of the weight in one: no more than a tile of the gradient is ever held.
pub fn i8_depthwise_grad_w_update(dims: &Conv, from: &WeightGrad, update: &Update, w: &mut [i8], _scratch: &mut [u8]) {
    let o = dims.out_channels;
    let columns = from.index.map_or(o, <[i32]>::len);
    if !fits(dims, from.gc.len(), from.x.len())
        || !lengths([(w.len(), dims.depthwise_w_len()), (update.factor.len(), o)])
    {
        return;
    }
    let mut dice = update.dice();
    for (tap, w) in w.chunks_exact_mut(o.max(1)).enumerate() {
        let (r, s) = (tap / dims.kernel[1].max(1), tap % dims.kernel[1].max(1));
        for j in 0..columns {
            let Some(k) = column(from.index, j).filter(|k| *k < o) else { continue };
            let steps = dice.steps(tap * o + k, update.step(k) * element(dims, from, [r, s, k]));
            if let Some(w) = w.get_mut(k) {
                *w = moved_i8(*w, steps);
            }
        }
    }
}
