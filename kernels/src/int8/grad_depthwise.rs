//! Gradients of a depthwise convolution: those of `grad_conv` with one channel in each sum.
//!
//! ```text
//! gx[q, c]    sums over the taps that reach q (r, then s, then j ascending) of gc[p, c m + j] w[r, s, c m + j]
//! gw[r, s, k] sums over output pixels p ascending of (x[.., k / m] - zero_x) gc[p, k]; a tap outside of x is skipped
//! ```
//! Some neighbouring channels go side by side. Integers are turned into floats once for all their sums: the weights of
//! these channels, or their input, as many rows of it as the tile holds.

use super::fma::fma;
use super::lanes::{LANES, Rect, Runs, add_lanes};
#[cfg(not(feature = "std"))]
use super::scratch::Scratch;
use super::scratch::piece_bytes;
use super::simd::{self, Kernel, Simd};
use super::update::{Update, column, moved_i8};
use super::{Conv, WeightGrad, lengths, part, part_mut};

pub(super) type Lanes = [f32; LANES];

/// Bytes of the input's tile beyond the rows of one window.
const TILE_BYTES: usize = 4096;
/// Pixels of the input's tile where it lies on the stack.
const STACK_TILE: usize = 1024;
/// Channels side by side on a microcontroller, for which scratch is planned; elsewhere tiles lie on the stack.
pub(super) const PLANNED_LANES: usize = 8;
/// Taps whose weights or sums are held; a larger window goes channel by channel.
const TAPS_MAX: usize = 64;

/// Binds so many vectors, on the stack or of the scratch where the stack is small, and what is left of the scratch. No
/// closure gets them: see `tiles` of `grad_conv`.
macro_rules! lanes {
    ($scratch:expr, $len:expr, $tile:ident, $rest:ident) => {
        #[cfg(feature = "std")]
        let mut tile = super::grad_depthwise::NO_LANES;
        #[cfg(feature = "std")]
        let ($tile, $rest) = (super::part_mut(&mut tile, 0, $len), $scratch);
        #[cfg(not(feature = "std"))]
        let ($tile, $rest) = {
            let mut pieces = super::scratch::Scratch::new($scratch);
            let tile = pieces.take::<f32>($len * super::lanes::LANES);
            (tile.as_chunks_mut().0, pieces.rest())
        };
    };
}
pub(super) use lanes;

/// Vectors for the widest window.
#[cfg(feature = "std")]
pub(super) const NO_LANES: [Lanes; TAPS_MAX] = [[0.0; LANES]; TAPS_MAX];

/// Bytes of scratch that [`i8_depthwise_grad_x`] needs, beginning at a multiple of 8.
pub const fn i8_depthwise_grad_x_scratch_bytes(dims: &Conv) -> usize {
    if is_tiled(dims) { piece_bytes::<f32>(dims.taps() * PLANNED_LANES) } else { 0 }
}

/// Bytes of scratch that [`i8_depthwise_grad_w`] and [`i8_depthwise_grad_w_update`] need, beginning at a multiple of
/// 16.
pub const fn i8_depthwise_grad_w_scratch_bytes(dims: &Conv) -> usize {
    if !is_tiled(dims) {
        return 0;
    }
    let rows = (bands(dims) - 1) * dims.stride[0] + dims.kernel[0];
    piece_bytes::<f32>(dims.taps() * PLANNED_LANES) + piece_bytes::<f32>(rows * dims.in_size[1] * PLANNED_LANES)
}

pub(super) const fn is_tiled(dims: &Conv) -> bool {
    dims.taps() <= TAPS_MAX && dims.in_channels == dims.out_channels && dims.stride[0] > 0 && dims.stride[1] > 0
}

/// Rows of the output whose inputs are held at a time.
const fn bands(dims: &Conv) -> usize {
    let fit = TILE_BYTES / (dims.in_size[1] * PLANNED_LANES * size_of::<f32>() + 1);
    let is_narrow = fit < dims.kernel[0] || dims.stride[0] == 0;
    if is_narrow { 1 } else { (fit - dims.kernel[0]) / dims.stride[0] + 1 }
}

/// Gradient with respect to the input: `gc` of `dims.y_len()`, `gx` of `dims.x_len()`.
pub fn i8_depthwise_grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32], scratch: &mut [u8]) {
    if !fits(dims, gc.len(), gx.len()) || !lengths([(w.len(), dims.depthwise_w_len())]) {
        return;
    }
    if is_tiled(dims) {
        simd::dispatch(GradX { dims, gc, w, gx, scratch });
    } else {
        plain_grad_x(dims, gc, w, gx);
    }
}

/// The gradient of the input, compiled for each instruction set.
struct GradX<'a> {
    dims: &'a Conv,
    gc: &'a [f32],
    w: &'a [i8],
    gx: &'a mut [f32],
    scratch: &'a mut [u8],
}

impl Kernel for GradX<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let GradX { dims, gc, w, gx, scratch } = self;
        lanes!(scratch, dims.taps(), wt, _rest);
        grad_x(dims, gc, (w, dims.in_channels), gx, wt);
    }
}

/// The gradient of the weight, compiled for each instruction set.
struct GradW<'a, F> {
    dims: &'a Conv,
    from: &'a WeightGrad<'a>,
    columns: usize,
    scratch: &'a mut [u8],
    done: F,
}

impl<F: FnMut(usize, usize, &[f32])> Kernel for GradW<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let GradW { dims, from, columns, scratch, done } = self;
        grad_w(dims, from, columns, scratch, done);
    }
}

/// The taps of one axis that reach an input pixel: the first, how many, and the output under the first. From one to
/// the next taps grow by the stride and outputs fall by one.
#[inline(always)]
fn reach(dims: &Conv, axis: usize, at: usize) -> (usize, usize, usize) {
    let (stride, shifted) = (dims.stride[axis].max(1), at + dims.pad[axis]);
    let first = shifted.saturating_sub(stride * dims.out_size[axis].saturating_sub(1)).max(shifted % stride);
    // The first tap of the stride's class that is not before the last output's.
    let first = first + (shifted % stride + stride - first % stride) % stride;
    let last = shifted.min(dims.kernel[axis].saturating_sub(1));
    if first > last || dims.out_size[axis] == 0 {
        return (0, 0, 0);
    }
    (first, (last - first) / stride + 1, (shifted - first) / stride)
}

/// The gradient; `w` begins at the first channel's, and its taps lie `pitch` elements apart.
#[inline(always)]
pub(super) fn grad_x(dims: &Conv, gc: &[f32], (w, pitch): (&[i8], usize), gx: &mut [f32], wt: &mut [Lanes]) {
    let channels = dims.in_channels;
    gx.fill(0.0);
    for first in (0..channels).step_by(LANES) {
        let width = LANES.min(channels - first);
        for (tap, wt) in wt.iter_mut().enumerate() {
            *wt = floats(part(w, tap * pitch + first, width), 0);
        }
        for n in 0..dims.images {
            for h in 0..dims.in_size[0] {
                let (r, rows, out_h) = reach(dims, 0, h);
                if rows == 0 {
                    continue;
                }
                let stride = dims.stride[1].max(1);
                for phase in 0..stride.min(dims.in_size[1]) {
                    let mut q = phase;
                    while q < dims.in_size[1] {
                        let (s, columns, out_w) = reach(dims, 1, q);
                        let is_same = |k: usize| {
                            q + k * stride < dims.in_size[1]
                                && reach(dims, 1, q + k * stride) == (s, columns, out_w + k)
                        };
                        let mut count = 1;
                        while is_same(count) {
                            count += 1;
                        }
                        let p = (n * dims.out_size[0] + out_h) * dims.out_size[1] + out_w;
                        let a = Rect {
                            at: p * channels + first,
                            row: (dims.out_size[1] * channels).wrapping_neg(),
                            column: channels.wrapping_neg(),
                        };
                        let b = Rect {
                            at: (r * dims.kernel[1] + s) * LANES,
                            row: dims.stride[0] * dims.kernel[1] * LANES,
                            column: stride * LANES,
                        };
                        let runs = Runs { count, a_next: channels, sums_next: stride * channels };
                        let at = ((n * dims.in_size[0] + h) * dims.in_size[1] + q) * channels + first;
                        let sums = gx.get_mut(at..).unwrap_or(&mut []);
                        add_lanes(sums, [rows, columns], width, runs, (gc, a), (wt.as_flattened(), b));
                        q += count * stride;
                    }
                }
            }
        }
    }
}

/// Integers less a zero as floats, then zeros.
#[inline(always)]
fn floats(x: &[i8], zero: i32) -> Lanes {
    let float = |x: i8| (i32::from(x) - zero) as f32;
    if let Some(x) = x.first_chunk::<LANES>() {
        return x.map(float);
    }
    let mut to = [0.0; LANES];
    for (to, x) in to.iter_mut().zip(x) {
        *to = float(*x);
    }
    to
}

/// [`i8_depthwise_grad_x`] for any multiplier and window.
fn plain_grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32]) {
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

/// The gradient: calls `done` with a tap, the first of some columns and their sums.
#[inline(always)]
fn grad_w(
    dims: &Conv,
    from: &WeightGrad,
    columns: usize,
    scratch: &mut [u8],
    mut done: impl FnMut(usize, usize, &[f32]),
) {
    // On the stack a tile has a fixed size, which the rows of one window must not pass.
    let is_narrow = cfg!(not(feature = "std")) || dims.kernel[0] * dims.in_size[1] <= STACK_TILE;
    if !is_tiled(dims) || !is_narrow || from.index.is_some() {
        for tap in 0..dims.taps() {
            for j in 0..columns {
                let k = column(from.index, j).filter(|k| *k < dims.out_channels);
                done(tap, j, &[k.map_or(0.0, |k| element(dims, from, tap, k))]);
            }
        }
        return;
    }
    let in_width = dims.in_size[1];
    #[cfg(feature = "std")]
    let (mut sums, mut tile) = ([[0.0; LANES]; TAPS_MAX], [[0.0; LANES]; STACK_TILE]);
    #[cfg(feature = "std")]
    let (sums, tile, _) = (part_mut(&mut sums, 0, dims.taps()), tile.as_mut_slice(), scratch);
    #[cfg(not(feature = "std"))]
    let (sums, tile) = {
        let rows = (bands(dims) - 1) * dims.stride[0] + dims.kernel[0];
        let mut pieces = Scratch::new(scratch);
        let sums = pieces.take::<f32>(dims.taps() * LANES);
        (sums.as_chunks_mut().0, pieces.take::<f32>(rows * in_width * LANES).as_chunks_mut().0)
    };
    let step = ((tile.len() / in_width.max(1)).saturating_sub(dims.kernel[0]) / dims.stride[0].max(1)) + 1;
    for first in (0..columns).step_by(LANES) {
        sums.fill([0.0; LANES]);
        for n in 0..dims.images {
            for top in (0..dims.out_size[0]).step_by(step) {
                let rows = top..dims.out_size[0].min(top + step);
                band(dims, from, (n, rows), first, sums, tile);
            }
        }
        for (tap, sums) in sums.iter().enumerate() {
            done(tap, first, part(sums, 0, LANES.min(columns - first)));
        }
    }
}

/// Adds some rows of the output of image `n` to the sums of all taps.
#[inline(always)]
fn band(
    dims: &Conv,
    from: &WeightGrad,
    (n, rows): (usize, core::ops::Range<usize>),
    first: usize,
    sums: &mut [Lanes],
    tile: &mut [Lanes],
) {
    let (channels, in_width) = (dims.in_channels, dims.in_size[1]);
    let width = LANES.min(channels - first);
    let top = (rows.start * dims.stride[0]).saturating_sub(dims.pad[0]);
    let bottom = ((rows.end - 1) * dims.stride[0] + dims.kernel[0]).saturating_sub(dims.pad[0]).min(dims.in_size[0]);
    let pixels = n * dims.in_pixels() + top * in_width;
    for (i, tile) in tile.iter_mut().take(bottom.saturating_sub(top) * in_width).enumerate() {
        *tile = floats(part(from.x, (pixels + i) * channels + first, width), from.zero);
    }
    for (tap, sums) in sums.iter_mut().enumerate() {
        let (r, s) = (tap / dims.kernel[1].max(1), tap % dims.kernel[1].max(1));
        let (all, outs) = (dims.outputs_inside(0, r), dims.outputs_inside(1, s));
        let outs_h = all.start.max(rows.start)..all.end.min(rows.end);
        if outs_h.is_empty() || outs.is_empty() {
            continue;
        }
        let p = (n * dims.out_size[0] + outs_h.start) * dims.out_size[1] + outs.start;
        let row = outs_h.start * dims.stride[0] + r - dims.pad[0] - top;
        let q = row * in_width + outs.start * dims.stride[1] + s - dims.pad[1];
        let a = Rect { at: p * channels + first, row: dims.out_size[1] * channels, column: channels };
        let b = Rect { at: q * LANES, row: dims.stride[0] * in_width * LANES, column: dims.stride[1] * LANES };
        add_lanes(sums, [outs_h.len(), outs.len()], width, Runs::ONE, (from.gc, a), (tile.as_flattened(), b));
    }
}

/// One element of the gradient: output channel `k` of tap `tap`.
fn element(dims: &Conv, from: &WeightGrad, tap: usize, k: usize) -> f32 {
    let (r, s) = (tap / dims.kernel[1].max(1), tap % dims.kernel[1].max(1));
    let c = k / dims.multiplier().max(1);
    let mut acc = 0.0;
    for n in 0..dims.images {
        for row in dims.outputs_inside(0, r) {
            for out in dims.outputs_inside(1, s) {
                let p = (n * dims.out_size[0] + row) * dims.out_size[1] + out;
                let (h, w) = (row * dims.stride[0] + r - dims.pad[0], out * dims.stride[1] + s - dims.pad[1]);
                let q = (n * dims.in_size[0] + h) * dims.in_size[1] + w;
                let pair = (from.x.get(q * dims.in_channels + c), from.gc.get(p * dims.out_channels + k));
                if let (Some(x), Some(gc)) = pair {
                    acc = fma((i32::from(*x) - from.zero) as f32, *gc, acc);
                }
            }
        }
    }
    acc
}

/// Gradient with respect to the weight, `f32[r, s, k]`; with `index` only of these output channels,
/// `f32[r, s, index.len()]`.
pub fn i8_depthwise_grad_w(dims: &Conv, from: &WeightGrad, gw: &mut [f32], scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.out_channels, <[i32]>::len);
    if !fits(dims, from.gc.len(), from.x.len()) || !lengths([(gw.len(), dims.taps() * columns)]) {
        return;
    }
    let done = |tap: usize, first: usize, sums: &[f32]| {
        for (gw, sum) in part_mut(gw, tap * columns + first, sums.len()).iter_mut().zip(sums) {
            *gw = *sum;
        }
    };
    simd::dispatch(GradW { dims, from, columns, scratch, done });
}

/// Calls `done` with a tap, the first of some columns and their sums, for all of the gradient.
#[inline(always)]
pub(crate) fn each_grad_w(dims: &Conv, from: &WeightGrad, scratch: &mut [u8], done: impl FnMut(usize, usize, &[f32])) {
    if fits(dims, from.gc.len(), from.x.len()) {
        let columns = from.index.map_or(dims.out_channels, <[i32]>::len);
        simd::dispatch(GradW { dims, from, columns, scratch, done });
    }
}

/// [`i8_depthwise_grad_w`] and the update of the weight in one: no more than a tile of the gradient is ever held.
pub fn i8_depthwise_grad_w_update(dims: &Conv, from: &WeightGrad, update: &Update, w: &mut [i8], scratch: &mut [u8]) {
    let o = dims.out_channels;
    let columns = from.index.map_or(o, <[i32]>::len);
    let fits = fits(dims, from.gc.len(), from.x.len());
    if !fits || !lengths([(w.len(), dims.depthwise_w_len()), (update.factor.len(), o)]) {
        return;
    }
    let mut dice = update.dice();
    let done = |tap: usize, first: usize, sums: &[f32]| {
        if from.index.is_none() {
            let at = tap * o + first;
            return dice.move_run(at, part_mut(w, at, sums.len()), sums, |i| update.step(first + i));
        }
        for (j, sum) in sums.iter().enumerate() {
            let Some(k) = column(from.index, first + j).filter(|k| *k < o) else { continue };
            if let Some(w) = w.get_mut(tap * o + k) {
                *w = moved_i8(*w, dice.steps(tap * o + k, update.step(k) * sum));
            }
        }
    };
    simd::dispatch(GradW { dims, from, columns, scratch, done });
}
