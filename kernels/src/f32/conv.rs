//! Convolution of images, with groups down to depthwise.
//!
//! ```text
//! for n, for o, for p { y[n, o, p] = b[o] + sum over c, tap of w[o, c, tap] x[n, c, stride p + dilation tap - pad] }
//! ```
//! Windows are unrolled into panels of [`PANEL`] columns, [`DEPTH`] taps at a time, which stay in cache; the product
//! with a panel is [`super::tile`]'s. A 1 x 1 convolution of stride 1 uses the image as it lies. Sums over taps run in
//! one chain a channel's element; weight gradients run image by image. Bound: multiply-adds at the peak of the
//! registers' blocking plus the bytes of the panels.

use super::parts::{Chunks, PerWorker, Tile, Tiles, run_parts};
use super::row::row_sum;
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, LANES, Simd};
use super::tile::{Product, Start};
use crate::par::Par;

/// Columns of a panel.
const PANEL: usize = 128;
/// Rows of a panel.
const DEPTH: usize = 128;

/// How a window moves over an image; `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Taps.
    pub kernel: [usize; 2],
    /// Input pixels from one output to the next.
    pub stride: [usize; 2],
    /// Rows and columns of zeros before the first input pixel.
    pub pad: [usize; 2],
    /// Rows and columns of zeros after the last one.
    pub pad_end: [usize; 2],
    /// Input pixels from one tap to the next.
    pub dilation: [usize; 2],
}

impl Window {
    /// Size of the output along `axis` for an input of `len`; 0 when the window does not fit.
    pub fn out_len(&self, axis: usize, len: usize) -> usize {
        let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        let padded = len + self.pad[axis] + self.pad_end[axis];
        if padded < reach { 0 } else { (padded - reach) / self.stride[axis] + 1 }
    }

    /// The input pixel of output `out` and tap `tap`, if it is not padding.
    #[inline(always)]
    pub(crate) fn input(&self, axis: usize, out: usize, tap: usize, len: usize) -> Option<usize> {
        let at = (out * self.stride[axis] + tap * self.dilation[axis]).wrapping_sub(self.pad[axis]);
        (at < len).then_some(at)
    }

    /// The output whose tap `tap` falls on input pixel `at`, if there is one.
    #[inline(always)]
    fn output(&self, axis: usize, at: usize, tap: usize, out_len: usize) -> Option<usize> {
        let shifted = (at + self.pad[axis]).checked_sub(tap * self.dilation[axis])?;
        let out = shifted / self.stride[axis];
        (shifted.is_multiple_of(self.stride[axis]) && out < out_len).then_some(out)
    }
}

/// Shapes of one convolution: `x[images, in_channels, size]`, `w[out_channels, in_channels / groups, kernel]`,
/// `y[images, out_channels, out_size]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Images.
    pub images: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Groups of channels that do not mix; divides both.
    pub groups: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// How the window moves.
    pub window: Window,
}

impl Conv {
    /// Height and width of the output.
    pub fn out_size(&self) -> [usize; 2] {
        [self.window.out_len(0, self.size[0]), self.window.out_len(1, self.size[1])]
    }

    fn in_pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn out_pixels(&self) -> usize {
        let [height, width] = self.out_size();
        height * width
    }

    /// Taps of a window in one channel.
    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Input channels of a group.
    fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Output channels of a group.
    fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Elements of a window in a group.
    fn depth(&self) -> usize {
        self.group_in() * self.taps()
    }

    /// Whether an output pixel is made of the same input pixel alone.
    fn is_pointwise(&self) -> bool {
        let Window { kernel, stride, pad, pad_end, .. } = self.window;
        kernel == [1, 1] && stride == [1, 1] && pad == [0, 0] && pad_end == [0, 0]
    }

    fn check(&self, x: &[f32], w: &[f32], y: &[f32]) {
        assert!(conv2d_supports(self), "unsupported convolution {self:?}");
        assert_eq!(x.len(), self.images * self.in_channels * self.in_pixels(), "the input's length");
        assert_eq!(w.len(), self.out_channels * self.depth(), "the weight's length");
        assert_eq!(y.len(), self.images * self.out_channels * self.out_pixels(), "the output's length");
    }

    /// One channel of one image.
    fn plane<'a>(&self, x: &'a [f32], image: usize, channel: usize) -> &'a [f32] {
        let pixels = self.in_pixels();
        &x[(image * self.in_channels + channel) * pixels..][..pixels]
    }
}

/// Whether the kernels of the family can do it.
pub fn conv2d_supports(dims: &Conv) -> bool {
    let Window { kernel, stride, dilation, .. } = dims.window;
    let is_positive = |sizes: [usize; 2]| sizes.iter().all(|&size| size > 0);
    is_positive(kernel)
        && is_positive(stride)
        && is_positive(dilation)
        && is_positive(dims.out_size())
        && dims.images > 0
        && dims.groups > 0
        && dims.in_channels > 0
        && dims.out_channels > 0
        && dims.in_channels.is_multiple_of(dims.groups)
        && dims.out_channels.is_multiple_of(dims.groups)
}

/// Bytes of scratch of [`conv2d`] and [`conv2d_grad_x`].
pub fn conv2d_scratch_bytes(_dims: &Conv, threads: usize) -> usize {
    piece_bytes::<f32>(DEPTH * PANEL * threads)
}

/// Bytes of scratch of [`conv2d_grad_w`].
pub fn conv2d_grad_w_scratch_bytes(dims: &Conv, threads: usize) -> usize {
    piece_bytes::<f32>(grad_w_elems(dims) * threads)
}

/// Elements of a worker's scratch for the weight's gradient: a panel, and an image's sum.
fn grad_w_elems(dims: &Conv) -> usize {
    (DEPTH + dims.group_out()) * TAP_COLS
}

/// `y[n, o] = b[o] + sum over c of w[o, c] * x[n, c]`, a convolution without flipping; `b == None` is zero.
pub fn conv2d(par: &Par, dims: &Conv, x: &[f32], w: &[f32], b: Option<&[f32]>, y: &mut [f32], scratch: &mut [u8]) {
    dims.check(x, w, y);
    assert!(b.is_none_or(|b| b.len() == dims.out_channels), "the bias's length");
    let work = Scratch::new(scratch).take::<f32>(DEPTH * PANEL * par.threads());
    let pixels = dims.out_pixels();
    let tiles = Tiles::new(y, pixels, dims.group_out(), (dims.group_out(), PANEL));
    let panels = pixels.div_ceil(PANEL);
    run_parts(par, tiles.count(), (tiles, PerWorker::new(work, DEPTH * PANEL)), |index, (mut y, panel)| {
        let (group, first) = (index / panels, index % panels * PANEL);
        let (image, group) = (group / dims.groups, group % dims.groups);
        for o in 0..y.rows() {
            y.row(o).fill(b.map_or(0.0, |b| b[group * dims.group_out() + o]));
        }
        let width = y.cols();
        let weights = &w[group * dims.group_out() * dims.depth()..];
        for start in (0..dims.depth()).step_by(DEPTH) {
            let depth = DEPTH.min(dims.depth() - start);
            let (panel, panel_row) = if dims.is_pointwise() {
                let channel = group * dims.group_in() + start;
                (&x[(image * dims.in_channels + channel) * pixels + first..], pixels)
            } else {
                unroll(dims, x, (image, group), start..start + depth, first, width, panel);
                (&*panel, PANEL)
            };
            multiply(&weights[start..], (dims.depth(), 1), panel, panel_row, depth, &mut y);
        }
    });
}

/// `c += a b` with `a[m, k]` at `m * strides.0 + k * strides.1`.
fn multiply(a: &[f32], strides: (usize, usize), b: &[f32], b_row: usize, k: usize, c: &mut Tile<f32>) {
    simd::dispatch(Product { a, a_row: strides.0, a_col: strides.1, b, b_row, k, start: Start::Keep, c });
}

/// `panel[i, j]`: what window element `rows.start + i` sees at output pixel `first + j`.
fn unroll(
    dims: &Conv,
    x: &[f32],
    (image, group): (usize, usize),
    rows: core::ops::Range<usize>,
    first: usize,
    width: usize,
    panel: &mut [f32],
) {
    for (row, out) in rows.zip(panel.chunks_exact_mut(PANEL)) {
        let plane = dims.plane(x, image, group * dims.group_in() + row / dims.taps());
        unroll_tap(dims, plane, row % dims.taps(), first, &mut out[..width]);
    }
}

/// What tap `tap` sees of a channel at the output pixels from `first`.
fn unroll_tap(dims: &Conv, plane: &[f32], tap: usize, first: usize, out: &mut [f32]) {
    let [height, width] = dims.size;
    let out_width = dims.out_size()[1];
    let (tap_row, tap_col) = (tap / dims.window.kernel[1], tap % dims.window.kernel[1]);
    let (mut row, mut col) = (first / out_width, first % out_width);
    let mut left = out;
    while !left.is_empty() {
        let (line, rest) = left.split_at_mut((out_width - col).min(left.len()));
        match dims.window.input(0, row, tap_row, height) {
            None => line.fill(0.0),
            Some(at) => {
                let source = &plane[at * width..(at + 1) * width];
                for (i, out) in line.iter_mut().enumerate() {
                    *out = dims.window.input(1, col + i, tap_col, width).map_or(0.0, |at| source[at]);
                }
            }
        }
        (left, row, col) = (rest, row + 1, 0);
    }
}

/// `dx[n, c, at] = sum over o and taps of w[o, c, tap] dy[n, o, the output whose tap falls on at]`.
pub fn conv2d_grad_x(par: &Par, dims: &Conv, w: &[f32], dy: &[f32], dx: &mut [f32], scratch: &mut [u8]) {
    dims.check(dx, w, dy);
    let work = Scratch::new(scratch).take::<f32>(DEPTH * PANEL * par.threads());
    let pixels = dims.in_pixels();
    let tiles = Tiles::new(dx, pixels, dims.group_in(), (dims.group_in(), PANEL));
    let panels = pixels.div_ceil(PANEL);
    run_parts(par, tiles.count(), (tiles, PerWorker::new(work, DEPTH * PANEL)), |index, (mut dx, panel)| {
        let (group, first) = (index / panels, index % panels * PANEL);
        for c in 0..dx.rows() {
            dx.row(c).fill(0.0);
        }
        // Channels of the output before this image's group; those of an image lie group by group.
        let channel = group * dims.group_out();
        let weights = &w[group % dims.groups * dims.group_out() * dims.depth()..];
        for tap in 0..dims.taps() {
            for start in (0..dims.group_out()).step_by(DEPTH) {
                let count = DEPTH.min(dims.group_out() - start);
                for (o, out) in panel.chunks_exact_mut(PANEL).take(count).enumerate() {
                    let plane = &dy[(channel + start + o) * dims.out_pixels()..][..dims.out_pixels()];
                    scatter_tap(dims, plane, tap, first, &mut out[..dx.cols()]);
                }
                let weights = &weights[start * dims.depth() + tap..];
                multiply(weights, (dims.taps(), dims.depth()), panel, PANEL, count, &mut dx);
            }
        }
    });
}

/// The output gradient whose tap `tap` falls on each of the input pixels from `first`; zero where none does.
fn scatter_tap(dims: &Conv, plane: &[f32], tap: usize, first: usize, out: &mut [f32]) {
    let width = dims.size[1];
    let [out_height, out_width] = dims.out_size();
    let (tap_row, tap_col) = (tap / dims.window.kernel[1], tap % dims.window.kernel[1]);
    let (mut row, mut col) = (first / width, first % width);
    let mut left = out;
    while !left.is_empty() {
        let (line, rest) = left.split_at_mut((width - col).min(left.len()));
        match dims.window.output(0, row, tap_row, out_height) {
            None => line.fill(0.0),
            Some(at) => {
                let source = &plane[at * out_width..(at + 1) * out_width];
                for (i, out) in line.iter_mut().enumerate() {
                    *out = dims.window.output(1, col + i, tap_col, out_width).map_or(0.0, |at| source[at]);
                }
            }
        }
        (left, row, col) = (rest, row + 1, 0);
    }
}

/// Window elements of one task of the weight's gradient.
const TAP_COLS: usize = 4 * LANES;

/// `dw[o, c, tap] (+)= sum over n of (sum over p of dy[n, o, p] x[n, c, input of (p, tap)])`: an image is summed from
/// zero, then added.
pub fn conv2d_grad_w(
    par: &Par,
    dims: &Conv,
    x: &[f32],
    dy: &[f32],
    accumulate: bool,
    dw: &mut [f32],
    scratch: &mut [u8],
) {
    dims.check(x, dw, dy);
    let elems = grad_w_elems(dims);
    let work = PerWorker::new(Scratch::new(scratch).take::<f32>(elems * par.threads()), elems);
    let tiles = Tiles::new(dw, dims.depth(), dims.group_out(), (dims.group_out(), TAP_COLS));
    let blocks = dims.depth().div_ceil(TAP_COLS);
    let pixels = dims.out_pixels();
    run_parts(par, tiles.count(), (tiles, work), |index, (mut dw, work)| {
        let (group, first) = (index / blocks, index % blocks * TAP_COLS);
        let (panel, sum) = work.split_at_mut(DEPTH * TAP_COLS);
        let width = dw.cols();
        for image in 0..dims.images {
            sum.fill(0.0);
            let dy = &dy[(image * dims.out_channels + group * dims.group_out()) * pixels..];
            for start in (0..pixels).step_by(DEPTH) {
                let count = DEPTH.min(pixels - start);
                for i in 0..width {
                    let (channel, tap) = ((first + i) / dims.taps(), (first + i) % dims.taps());
                    let plane = dims.plane(x, image, group * dims.group_in() + channel);
                    let mut line = [0.0; DEPTH];
                    unroll_tap(dims, plane, tap, start, &mut line[..count]);
                    panel[i..].iter_mut().step_by(TAP_COLS).zip(&line[..count]).for_each(|(out, x)| *out = *x);
                }
                let mut sum = Tile::of(&mut *sum, dims.group_out(), width, TAP_COLS);
                multiply(&dy[start..], (pixels, 1), panel, TAP_COLS, count, &mut sum);
            }
            for (o, sum) in sum.chunks_exact(TAP_COLS).enumerate() {
                let is_first = image == 0 && !accumulate;
                dw.row(o).iter_mut().zip(sum).for_each(|(dw, sum)| *dw = if is_first { 0.0 } else { *dw } + sum);
            }
        }
    });
}

/// `db[o] (+)= sum over n of (sum over p of dy[n, o, p])`, image by image.
pub fn conv2d_grad_b(par: &Par, dims: &Conv, dy: &[f32], accumulate: bool, db: &mut [f32]) {
    assert_eq!(db.len(), dims.out_channels, "the bias's length");
    assert_eq!(dy.len(), dims.images * dims.out_channels * dims.out_pixels(), "the output's length");
    run_parts(par, dims.out_channels, Chunks::new(db, 1), |channel, db: &mut [f32]| {
        let planes = dy.chunks_exact(dims.out_pixels()).skip(channel).step_by(dims.out_channels);
        let start = if accumulate { db[0] } else { 0.0 };
        db[0] = planes.fold(start, |sum, dy| sum + simd::dispatch(Sum { x: dy }));
    });
}

/// The sum of a slice.
struct Sum<'a> {
    x: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        row_sum!(s, (self.x => x), self.x.len(), |sum| s.add(sum, x))
    }
}
