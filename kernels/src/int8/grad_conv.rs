//! Gradients of a convolution.
//!
//! ```text
//! gx[q, i]       sums over the taps that reach q (r, then s, then o ascending) of gc[p, o] w[o, r, s, i]
//! gw[o, r, s, i] sums over output pixels p ascending of (x[.., i] - zero_x) gc[p, o]; a tap outside of x is skipped
//! ```
//! Every product is added in one fused operation. A tile of columns is turned into floats and serves all sums; it is
//! cut where it would be too long, and the sums go on from where they were.

use super::simd::{self, Kernel, Simd};
use super::tile::{COLUMNS, DEPTH, add_outer, add_rows, tile_bytes};
use super::update::{Update, column, moved_i8};
use super::{Conv, WeightGrad, lengths, part, part_mut};

pub(super) type Tile = [[f32; COLUMNS]];

/// Binds two tiles: on the stack, or of the scratch where the stack is small. No closure gets them, since one has none
/// of the instructions that the function around it is compiled for.
macro_rules! tiles {
    ($scratch:ident, $a:ident, $b:ident) => {
        #[cfg(feature = "std")]
        let (mut first, mut second) = (super::grad_conv::NO_TILE, super::grad_conv::NO_TILE);
        #[cfg(feature = "std")]
        let ($a, $b, _): (&mut super::grad_conv::Tile, &mut super::grad_conv::Tile, _) =
            (&mut first, &mut second, $scratch);
        #[cfg(not(feature = "std"))]
        let ($a, $b) = {
            let mut pieces = super::scratch::Scratch::new($scratch);
            let (a, rest) = (pieces.take::<f32>(super::tile::DEPTH * super::tile::COLUMNS), pieces.rest());
            let b = if rest.is_empty() {
                &mut []
            } else {
                super::scratch::Scratch::new(rest).take::<f32>(super::tile::DEPTH * super::tile::COLUMNS)
            };
            (a.as_chunks_mut().0, b.as_chunks_mut::<{ super::tile::COLUMNS }>().0)
        };
    };
}
pub(super) use tiles;

/// A tile before anything is in it.
#[cfg(feature = "std")]
pub(super) const NO_TILE: [[f32; COLUMNS]; DEPTH] = [[0.0; COLUMNS]; DEPTH];

/// Bytes of scratch that [`i8_conv2d_grad_x`] needs, beginning at a multiple of 8.
pub const fn i8_conv2d_grad_x_scratch_bytes(_dims: &Conv) -> usize {
    tile_bytes(1)
}

/// Bytes of scratch that [`i8_conv2d_grad_w`] and [`i8_conv2d_grad_w_update`] need, beginning at a multiple of 8.
pub const fn i8_conv2d_grad_w_scratch_bytes(_dims: &Conv) -> usize {
    tile_bytes(2)
}

/// Gradient with respect to the input: `gc` of `dims.y_len()`, `gx` of `dims.x_len()`.
pub fn i8_conv2d_grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32], scratch: &mut [u8]) {
    if lengths([(gc.len(), dims.y_len()), (gx.len(), dims.x_len()), (w.len(), dims.w_len())]) {
        simd::dispatch(GradX { dims, gc, w, gx, scratch });
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
        tiles!(scratch, wt, _unused);
        grad_x(dims, gc, w, gx, wt);
    }
}

/// The first output pixel, the first input pixel and the length of every stretch of outputs whose tap `(r, s)` is
/// inside, ascending; the input's pixels lie `stride` apart.
#[inline(always)]
fn stretches(dims: &Conv, r: usize, s: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    // Rows of a pointwise convolution follow each other: one stretch.
    let is_pointwise = dims.is_pointwise();
    let (rows, outs) = (dims.outputs_inside(0, r), dims.outputs_inside(1, s));
    let (images, rows) = if is_pointwise { (1, 0..1) } else { (dims.images, rows) };
    let len = if is_pointwise { dims.images * dims.out_pixels() } else { outs.len() };
    let count = if len == 0 { 0 } else { images * rows.len() };
    let dims = *dims;
    (0..count).map(move |i| {
        let (n, row) = (i / rows.len().max(1), rows.start + i % rows.len().max(1));
        let h = row * dims.stride[0] + r - dims.pad[0];
        let w = outs.start * dims.stride[1] + s - dims.pad[1];
        let p = (n * dims.out_size[0] + row) * dims.out_size[1] + outs.start;
        (p, (n * dims.in_size[0] + h) * dims.in_size[1] + w, len)
    })
}

#[inline(always)]
fn grad_x(dims: &Conv, gc: &[f32], w: &[i8], gx: &mut [f32], wt: &mut Tile) {
    let (channels, o) = (dims.in_channels, dims.out_channels);
    gx.fill(0.0);
    for first in (0..channels).step_by(COLUMNS) {
        let width = COLUMNS.min(channels - first);
        for tap in 0..dims.taps() {
            let [_, r, s] = row_place(dims, tap);
            for from in (0..o).step_by(DEPTH) {
                let count = DEPTH.min(o - from);
                let wt = part_mut(wt, 0, count);
                let w = w.get((from * dims.taps() + tap) * channels + first..).unwrap_or(&[]);
                floats(w, dims.taps() * channels, width, wt);
                for (p, q, len) in stretches(dims, r, s) {
                    let pitch = channels * dims.stride[1];
                    let sums = gx.get_mut(q * channels + first..).unwrap_or(&mut []);
                    let gc = gc.get(p * o + from..).unwrap_or(&[]);
                    add_rows(sums, pitch, len, width, gc, o, wt);
                }
            }
        }
    }
}

/// One side of a product of matrices: rows of floats, `pitch` elements from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) pitch: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// `sums[p, i] += sum over o of gc[p, o] w[o w_pitch + i]`, `o` ascending: the gradient of a 1 x 1 convolution's input.
/// The sums have `columns` in a row.
#[inline(always)]
pub(super) fn add_product(sums: &mut [f32], columns: usize, gc: Matrix, (w, w_pitch): (&[i8], usize), wt: &mut Tile) {
    for first in (0..columns).step_by(COLUMNS) {
        let width = COLUMNS.min(columns - first);
        for from in (0..gc.columns).step_by(DEPTH) {
            let wt = part_mut(wt, 0, DEPTH.min(gc.columns - from));
            floats(w.get(from * w_pitch + first..).unwrap_or(&[]), w_pitch, width, wt);
            let (sums, gc_from) = (sums.get_mut(first..).unwrap_or(&mut []), gc.data.get(from..).unwrap_or(&[]));
            add_rows(sums, columns, gc.rows, width, gc_from, gc.pitch, wt);
        }
    }
}

/// `width` weights of each row of a tile as floats, then zeros; rows lie `pitch` elements apart.
#[inline(always)]
fn floats(w: &[i8], pitch: usize, width: usize, to: &mut Tile) {
    #[cfg(all(has_dsp, has_fpu, not(feature = "std")))]
    if width == COLUMNS && super::dsp::floats(w, pitch, to) {
        return;
    }
    for (k, to) in to.iter_mut().enumerate() {
        let w = part(w, k * pitch, width);
        if let Some(w) = w.first_chunk::<COLUMNS>() {
            *to = w.map(f32::from);
            continue;
        }
        *to = [0.0; COLUMNS];
        for (to, w) in to.iter_mut().zip(w) {
            *to = f32::from(*w);
        }
    }
}

/// The gradient, tile by tile: calls `done` with a row of the weight (output channel and tap), the first of some
/// columns and their sums.
#[inline(always)]
pub(super) fn grad_w(
    dims: &Conv,
    from: &WeightGrad,
    columns: usize,
    xt: &mut Tile,
    sums: &mut Tile,
    mut done: impl FnMut(usize, usize, &[f32]),
) {
    let (taps, o) = (dims.taps(), dims.out_channels);
    for first in (0..columns).step_by(COLUMNS) {
        let width = COLUMNS.min(columns - first);
        // A column that is none reads past the end, which gives nothing.
        let places: [usize; COLUMNS] = core::array::from_fn(|t| match column(from.index, first + t) {
            Some(c) if t < width && c < dims.in_channels => c,
            _ => usize::MAX,
        });
        for tap in 0..taps {
            let [_, r, s] = row_place(dims, tap);
            for channel in (0..o).step_by(DEPTH) {
                let sums = part_mut(sums, 0, DEPTH.min(o - channel));
                sums.fill([0.0; COLUMNS]);
                for (p, q, len) in stretches(dims, r, s) {
                    for at in (0..len).step_by(DEPTH) {
                        let xt = part_mut(xt, 0, DEPTH.min(len - at));
                        for (i, xt) in xt.iter_mut().enumerate() {
                            let q = q + (at + i) * dims.stride[1];
                            let x = part(from.x, q * dims.in_channels, dims.in_channels);
                            inputs(x, from.zero, from.index.is_none().then_some(first), &places, xt);
                        }
                        let gc = from.gc.get((p + at) * o + channel..).unwrap_or(&[]);
                        add_outer(sums, gc, o, xt);
                    }
                }
                for (k, sums) in sums.iter().enumerate() {
                    done((channel + k) * taps + tap, first, part(sums, 0, width));
                }
            }
        }
    }
}

/// Inputs of one pixel as floats: the columns from `first` on, or at `places`.
#[inline(always)]
fn inputs(x: &[i8], zero: i32, first: Option<usize>, places: &[usize; COLUMNS], to: &mut [f32; COLUMNS]) {
    let float = |x: i8| (i32::from(x) - zero) as f32;
    if let Some(x) = first.and_then(|first| x.get(first..)).and_then(<[i8]>::first_chunk::<COLUMNS>) {
        *to = x.map(float);
        return;
    }
    for (to, at) in to.iter_mut().zip(places) {
        *to = x.get(*at).map_or(0.0, |x| float(*x));
    }
}

fn fits(dims: &Conv, from: &WeightGrad) -> bool {
    lengths([(from.gc.len(), dims.y_len()), (from.x.len(), dims.x_len())])
}

/// Gradient with respect to the weight, `f32[o, r, s, i]`; with `index` only of these input channels,
/// `f32[o, r, s, index.len()]`.
pub fn i8_conv2d_grad_w(dims: &Conv, from: &WeightGrad, gw: &mut [f32], scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
    if !fits(dims, from) || !lengths([(gw.len(), dims.out_channels * dims.taps() * columns)]) {
        return;
    }
    let done = |row: usize, first: usize, sums: &[f32]| {
        let gw = part_mut(gw, row * columns + first, sums.len());
        for (j, (gw, sum)) in gw.iter_mut().zip(sums).enumerate() {
            let is_column = column(from.index, first + j).is_some_and(|c| c < dims.in_channels);
            *gw = if is_column { *sum } else { 0.0 };
        }
    };
    simd::dispatch(GradW { dims, from, columns, scratch, done });
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
        tiles!(scratch, xt, sums);
        grad_w(dims, from, columns, xt, sums, done);
    }
}

/// Calls `done` with the sums of the gradient, as `grad_w` does.
#[inline(always)]
pub(crate) fn each_grad_w(dims: &Conv, from: &WeightGrad, scratch: &mut [u8], done: impl FnMut(usize, usize, &[f32])) {
    if fits(dims, from) {
        let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
        simd::dispatch(GradW { dims, from, columns, scratch, done });
    }
}

/// [`i8_conv2d_grad_w`] and the update of the weight in one: no more than a tile of the gradient is ever held.
pub fn i8_conv2d_grad_w_update(dims: &Conv, from: &WeightGrad, update: &Update, w: &mut [i8], scratch: &mut [u8]) {
    let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
    if !fits(dims, from) || !lengths([(w.len(), dims.w_len()), (update.factor.len(), dims.out_channels)]) {
        return;
    }
    let mut dice = update.dice();
    let done = |row: usize, first: usize, sums: &[f32]| {
        let step = update.step(row / dims.taps().max(1));
        if from.index.is_none() {
            let at = row * dims.in_channels + first;
            return dice.move_run(at, part_mut(w, at, sums.len()), sums, |_| step);
        }
        for (j, sum) in sums.iter().enumerate() {
            let Some(c) = column(from.index, first + j).filter(|c| *c < dims.in_channels) else { continue };
            let at = row * dims.in_channels + c;
            if let Some(w) = w.get_mut(at) {
                *w = moved_i8(*w, dice.steps(at, step * sum));
            }
        }
    };
    simd::dispatch(GradW { dims, from, columns, scratch, done });
}

/// Output channel and tap of row `row` of the weight.
#[inline(always)]
fn row_place(dims: &Conv, row: usize) -> [usize; 3] {
    let (taps, width) = (dims.taps().max(1), dims.kernel[1].max(1));
    [row / taps, row % taps / width, row % taps % width]
}
