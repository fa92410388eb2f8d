//! Pooling windows: averages, maxima, and their gradients.
//!
//! Padding is outside: an average counts the taps inside, a maximum looks at them only. A window with no tap inside
//! gives the stored zero (an average) or `lo` (a maximum).

use super::add::masked;
use super::round::{Rounder, set_bit};
use super::{Conv, Quant, lengths};
use core::ops::Range;

/// The input pixels under one window of one image.
fn pixels(dims: &Conv, n: usize, at: usize) -> impl Iterator<Item = usize> + Clone {
    let width = dims.out_size[1].max(1);
    let out = [at / width, at % width];
    let inside = |axis: usize| -> Range<usize> {
        let taps = dims.taps_inside(axis, out[axis]);
        let start = (out[axis] * dims.stride[axis] + taps.start).saturating_sub(dims.pad[axis]);
        start..start + taps.len()
    };
    let (rows, columns) = (inside(0), inside(1));
    let (first, width) = (n * dims.in_pixels(), dims.in_size[1]);
    rows.flat_map(move |row| columns.clone().map(move |column| first + row * width + column))
}

/// Every window: its number and its image and place in it.
fn windows(dims: &Conv) -> impl Iterator<Item = (usize, usize)> {
    let count = dims.out_pixels();
    (0..dims.images).flat_map(move |n| (0..count).map(move |at| (n, at)))
}

fn fits(dims: &Conv, x: usize, y: usize) -> bool {
    lengths([(x, dims.x_len()), (y, dims.y_len()), (dims.in_channels, dims.out_channels)])
}

/// `y = clamp(nearest(sum of (x - zero) / taps inside) + zero, lo, hi)`; the output's step and zero are the input's
/// (`quant.zero_x`; `zero_y` is not read).
pub fn i8_avg_pool(dims: &Conv, quant: &Quant, x: &[i8], y: &mut [i8]) {
    let rounder = Rounder::new(quant.zero_x, quant.lo, quant.hi);
    averages(dims, quant, x, y, |sum, count| rounder.stored(sum as f32 / count.max(1) as f32).0);
}

/// Every output from the sum of the `x - zero` inside and their number.
#[inline(always)]
fn averages(dims: &Conv, quant: &Quant, x: &[i8], y: &mut [i8], stored: impl Fn(i32, usize) -> i8) {
    if !fits(dims, x.len(), y.len()) {
        return;
    }
    let channels = dims.in_channels;
    for ((n, at), y) in windows(dims).zip(y.chunks_exact_mut(channels.max(1))) {
        let pixels = pixels(dims, n, at);
        let count = pixels.clone().count();
        for (c, y) in y.iter_mut().enumerate() {
            let taps = pixels.clone().filter_map(|q| x.get(q * channels + c));
            *y = stored(taps.fold(0i32, |sum, x| sum.wrapping_add(i32::from(*x) - quant.zero_x)), count);
        }
    }
}

/// [`i8_avg_pool`] in whole numbers, ties away from zero:
/// `y = clamp(sign(sum) floor((|sum| + floor(taps / 2)) / taps) + zero, lo, hi)`, `sum` of the `x - zero` inside.
pub fn i8_avg_pool_away(dims: &Conv, quant: &Quant, x: &[i8], y: &mut [i8]) {
    let rounder = Rounder::new(quant.zero_x, quant.lo, quant.hi);
    averages(dims, quant, x, y, |sum, count| {
        let count = (count as u32).max(1);
        let mean = (sum.unsigned_abs().wrapping_add(count / 2) / count) as i32;
        rounder.clamp(quant.zero_x + if sum < 0 { -mean } else { mean })
    });
}

/// Factor, offset and limits of sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SumPool {
    /// Of the sum of stored numbers.
    pub scale: f32,
    /// What is added to that product.
    pub offset: f32,
    /// Least stored output.
    pub lo: i32,
    /// Greatest stored output.
    pub hi: i32,
}

/// `y = clamp(nearest(scale * sum of the taps inside + offset), lo, hi)`, product and sum each rounded to f32: means
/// and changes of scale. `mask`, of `mask_bytes(y)`, gets a bit for each output inside the limits.
pub fn i8_sum_pool(dims: &Conv, pool: &SumPool, x: &[i8], y: &mut [i8], mask: Option<&mut [u8]>) {
    if !fits(dims, x.len(), y.len()) {
        return;
    }
    let Some(mask) = masked(mask, y.len()) else { return };
    let (channels, rounder) = (dims.in_channels, Rounder::new(0, pool.lo, pool.hi));
    for (p, ((n, at), y)) in windows(dims).zip(y.chunks_exact_mut(channels.max(1))).enumerate() {
        let pixels = pixels(dims, n, at);
        for (c, y) in y.iter_mut().enumerate() {
            let taps = pixels.clone().filter_map(|q| x.get(q * channels + c));
            let sum = taps.fold(0i32, |sum, x| sum.wrapping_add(i32::from(*x)));
            let (value, is_inside) = rounder.stored(sum as f32 * pool.scale + pool.offset);
            *y = value;
            set_bit(mask, p * channels + c, is_inside);
        }
    }
}

/// `y = clamp(max of the taps inside, lo, hi)`.
pub fn i8_max_pool(dims: &Conv, quant: &Quant, x: &[i8], y: &mut [i8]) {
    if !fits(dims, x.len(), y.len()) {
        return;
    }
    let channels = dims.in_channels;
    for ((n, at), y) in windows(dims).zip(y.chunks_exact_mut(channels.max(1))) {
        let pixels = pixels(dims, n, at);
        for (c, y) in y.iter_mut().enumerate() {
            let taps = pixels.clone().filter_map(|q| x.get(q * channels + c));
            let max = taps.fold(quant.lo, |max, x| max.max(i32::from(*x)));
            *y = max.min(quant.hi) as i8;
        }
    }
}

/// Gradient of [`i8_avg_pool`]: `gx[q, c]` is the sum over the windows `p` that see `q`, ascending, of
/// `g[p, c] / taps inside`.
pub fn i8_avg_pool_grad(dims: &Conv, g: &[f32], gx: &mut [f32]) {
    if !fits(dims, gx.len(), g.len()) {
        return;
    }
    let channels = dims.in_channels;
    gx.fill(0.0);
    for ((n, at), g) in windows(dims).zip(g.chunks_exact(channels.max(1))) {
        let pixels = pixels(dims, n, at);
        let count = pixels.clone().count() as f32;
        for q in pixels {
            let gx = gx.get_mut(q * channels..(q + 1) * channels).unwrap_or(&mut []);
            for (gx, g) in gx.iter_mut().zip(g) {
                *gx += g / count;
            }
        }
    }
}

/// Gradient of [`i8_max_pool`]: each `g[p, c]` is added, `p` ascending, to the first greatest of its window in
/// row-major order.
pub fn i8_max_pool_grad(dims: &Conv, g: &[f32], x: &[i8], gx: &mut [f32]) {
    if !fits(dims, gx.len(), g.len()) || !lengths([(x.len(), gx.len())]) {
        return;
    }
    let channels = dims.in_channels;
    gx.fill(0.0);
    for ((n, at), g) in windows(dims).zip(g.chunks_exact(channels.max(1))) {
        let pixels = pixels(dims, n, at);
        for (c, g) in g.iter().enumerate() {
            let mut best: Option<(i8, usize)> = None;
            for at in pixels.clone().map(|q| q * channels + c) {
                if let Some(x) = x.get(at).filter(|x| best.is_none_or(|(max, _)| **x > max)) {
                    best = Some((*x, at));
                }
            }
            if let Some(gx) = best.and_then(|(_, at)| gx.get_mut(at)) {
                *gx += g;
            }
        }
    }
}
