//! Gradients of a convolution.
//!
//! ```text
//! gx[q, i]       sums over the taps that reach q (r, then s, then o ascending) of gc[p, o] w[o, r, s, i]
//! gw[o, r, s, i] sums over output pixels p ascending of (x[.., i] - zero_x) gc[p, o]; a tap outside of x is skipped
//! ```
//! Every product is added in one fused operation.

use super::fma::fma;
use super::update::{Update, column, moved_i8};
use super::{Conv, WeightGrad, lengths, part, part_mut};

/// Bytes of scratch that [`i8_conv2d_grad_x`] needs, beginning at a multiple of 16.
pub const fn i8_conv2d_grad_x_scratch_bytes(_dims: &Conv) -> usize {
    0
}

/// Bytes of scratch that [`i8_conv2d_grad_w`] and [`i8_conv2d_grad_w_update`] need, beginning at a multiple of 16.
pub const fn i8_conv2d_grad_w_scratch_bytes(_dims: &Conv) -> usize {
    0
}

/// Gradient with respect to the input: `gc` of `dims.y_len()`, `gx` of `dims.x_len()`.
pub fn i8_conv2d_grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32], _scratch: &mut [u8]) {
    if !lengths([(gc.len(), dims.y_len()), (gx.len(), dims.x_len()), (w.len(), dims.w_len())]) {
        return;
    }
    let (channels, o) = (dims.in_channels, dims.out_channels);
    let (width, pixels) = (dims.in_size[1].max(1), dims.in_pixels().max(1));
    for (q, gx) in gx.chunks_exact_mut(channels.max(1)).enumerate() {
        gx.fill(0.0);
        let (n, at) = (q / pixels, q % pixels);
        for r in 0..dims.kernel[0] {
            let Some(row) = dims.output(0, at / width, r) else { continue };
            for s in 0..dims.kernel[1] {
                let Some(out) = dims.output(1, at % width, s) else { continue };
                let gc = part(gc, ((n * dims.out_size[0] + row) * dims.out_size[1] + out) * o, o);
                for (k, gc) in gc.iter().enumerate() {
                    let w = part(w, ((k * dims.kernel[0] + r) * dims.kernel[1] + s) * channels, channels);
                    for (gx, w) in gx.iter_mut().zip(w) {
                        *gx = fma(*gc, f32::from(*w), *gx);
                    }
                }
            }
        }
    }
}

fn fits(dims: &Conv, gc: &[f32], x: &[i8]) -> bool {
    lengths([(gc.len(), dims.y_len()), (x.len(), dims.x_len())])
}

/// One element of the gradient: output channel `k`, tap `(r, s)`, input channel `c`.
fn element(dims: &Conv, from: &WeightGrad, [k, r, s, c]: [usize; 4]) -> f32 {
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

/// Gradient with respect to the weight, `f32[o, r, s, i]`; with `index` only of these input channels,
/// `f32[o, r, s, index.len()]`.
pub fn i8_conv2d_grad_w(dims: &Conv, from: &WeightGrad, gw: &mut [f32], _scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
    let rows = dims.out_channels * dims.taps();
    if !fits(dims, from.gc, from.x) || !lengths([(gw.len(), rows * columns)]) {
        return;
    }
    for row in 0..rows {
        let place = row_place(dims, row);
        for (j, gw) in part_mut(gw, row * columns, columns).iter_mut().enumerate() {
            *gw = match column(from.index, j).filter(|c| *c < dims.in_channels) {
                Some(c) => element(dims, from, [place[0], place[1], place[2], c]),
                None => 0.0,
            };
        }
    }
}

/// [`i8_conv2d_grad_w`] and the update of the weight in one: no more than a tile of the gradient is ever held.
pub fn i8_conv2d_grad_w_update(dims: &Conv, from: &WeightGrad, update: &Update, w: &mut [i8], _scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
    if !fits(dims, from.gc, from.x) || !lengths([(w.len(), dims.w_len()), (update.factor.len(), dims.out_channels)]) {
        return;
    }
    let mut dice = update.dice();
    for (row, w) in w.chunks_exact_mut(dims.in_channels.max(1)).enumerate() {
        let place = row_place(dims, row);
        for j in 0..columns {
            let Some(c) = column(from.index, j).filter(|c| *c < dims.in_channels) else { continue };
            let g = element(dims, from, [place[0], place[1], place[2], c]);
            let steps = dice.steps(row * dims.in_channels + c, update.step(place[0]) * g);
            if let Some(w) = w.get_mut(c) {
                *w = moved_i8(*w, steps);
            }
        }
    }
}

/// Output channel and tap of row `row` of the weight.
fn row_place(dims: &Conv, row: usize) -> [usize; 3] {
    let (taps, width) = (dims.taps().max(1), dims.kernel[1].max(1));
    [row / taps, row % taps / width, row % taps % width]
}
