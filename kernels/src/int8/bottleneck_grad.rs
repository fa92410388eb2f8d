//! The backward pass of a bottleneck in a single kernel, some of its inner channels at a time.
//!
//! ```text
//! for some inner channels: gradient of the projection's input; mask and scale; bias of the depthwise convolution;
//!                          gradient of its input; mask and scale; bias of the expansion; its part of the gradient of
//!                          the block's input, and its weight
//! ```
//! Nothing is computed twice, and the results are the bits of the kernels one after the other: sums over inner channels
//! go on from where they were, and all others belong to one channel. But of the two wide gradients only the channels at
//! hand exist. For a 1 x 1 expansion, a depthwise convolution without multiplier whose weight stays, and a 1 x 1
//! projection.

use super::grad_conv::{Matrix, Tile, add_product, grad_w, tiles};
use super::grad_depthwise::{self, Lanes, PLANNED_LANES, is_tiled, lanes};
use super::round::bit;
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, Simd};
use super::tile::tile_bytes;
use super::update::{Update, column, moved_i8};
use super::{Conv, WeightGrad, lengths, mask_bytes, part, part_mut};

/// Bytes of the larger of the two gradients that are held.
const TILE_BYTES: usize = 8192;
/// Channels at a time, at least and at most.
const GROUP: (usize, usize) = (8, 64);

/// Geometry of a bottleneck: `x[images, in_size, in_channels]` to `[images, out_size, out_channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BottleneckGrad {
    /// The depthwise convolution between the others.
    pub depthwise: Conv,
    /// Channels before the expansion.
    pub in_channels: usize,
    /// Channels after the projection.
    pub out_channels: usize,
}

impl BottleneckGrad {
    const fn in_pixels(&self) -> usize {
        self.depthwise.images * self.depthwise.in_pixels()
    }

    const fn out_pixels(&self) -> usize {
        self.depthwise.images * self.depthwise.out_pixels()
    }

    const fn inner(&self) -> usize {
        self.depthwise.in_channels
    }

    /// Inner channels at a time: whole bytes of a mask.
    const fn group(&self) -> usize {
        let (a, b) = (self.in_pixels(), self.out_pixels());
        let pixels = if a > b { a } else { b };
        let fit = TILE_BYTES / (pixels * size_of::<f32>() + 1) / 8 * 8;
        if fit < GROUP.0 {
            GROUP.0
        } else if fit > GROUP.1 {
            GROUP.1
        } else {
            fit
        }
    }
}

/// A convolution to the inner channels: what its gradient passes through, and its bias, which is updated.
#[derive(Debug)]
pub struct Hidden<'a> {
    /// Where its output was inside the limits.
    pub mask: &'a [u8],
    /// `f32[inner]`: its forward factors.
    pub scale: &'a [f32],
    /// `i32[inner]`.
    pub bias: &'a mut [i32],
    /// The update of the bias.
    pub update: Update<'a>,
}

/// The weight of the expansion, `i8[inner, 1, 1, in_channels]`.
#[derive(Debug)]
pub enum Expand<'a> {
    /// It stays.
    Frozen(&'a [i8]),
    /// It is updated, as by [`super::i8_conv2d_grad_w_update`].
    Trained {
        /// The weight.
        w: &'a mut [i8],
        /// Its update.
        update: Update<'a>,
        /// The block's input.
        x: &'a [i8],
        /// Stored value of the input's zero.
        zero: i32,
        /// The trained input channels, all of them when there is none.
        index: Option<&'a [i32]>,
    },
}

impl Expand<'_> {
    fn w(&self) -> &[i8] {
        match self {
            Expand::Frozen(w) => w,
            Expand::Trained { w, .. } => w,
        }
    }
}

/// What a bottleneck is made of.
#[derive(Debug)]
pub struct BottleneckLayers<'a> {
    /// Weight of the projection, `i8[out_channels, 1, 1, inner]`.
    pub project_w: &'a [i8],
    /// Weight of the depthwise convolution, `i8[r, s, inner]`.
    pub depthwise_w: &'a [i8],
    /// The depthwise convolution.
    pub depthwise: Hidden<'a>,
    /// Weight of the expansion.
    pub expand_w: Expand<'a>,
    /// The expansion.
    pub expand: Hidden<'a>,
}

/// Whether there is a kernel for this geometry.
pub const fn i8_bottleneck_grad_update_supports(dims: &BottleneckGrad) -> bool {
    is_tiled(&dims.depthwise)
}

/// Bytes of scratch that [`i8_bottleneck_grad_update`] needs, beginning at a multiple of 16.
pub const fn i8_bottleneck_grad_update_scratch_bytes(dims: &BottleneckGrad) -> usize {
    let group = dims.group();
    piece_bytes::<f32>(dims.out_pixels() * group)
        + piece_bytes::<f32>(dims.in_pixels() * group)
        + piece_bytes::<f32>(dims.depthwise.taps() * PLANNED_LANES)
        + tile_bytes(2)
}

/// From `gc`, the gradient of the projection's sums, of `[pixels, out_channels]`, to the gradient of the block's input
/// `gx`, of `[pixels, in_channels]`; updates the inner biases and, where it is trained, the expansion's weight.
pub fn i8_bottleneck_grad_update(
    dims: &BottleneckGrad,
    gc: &[f32],
    layers: &mut BottleneckLayers,
    gx: &mut [f32],
    scratch: &mut [u8],
) {
    let (inner, conv) = (dims.inner(), &dims.depthwise);
    let fits = lengths([
        (gc.len(), dims.out_pixels() * dims.out_channels),
        (gx.len(), dims.in_pixels() * dims.in_channels),
        (layers.project_w.len(), dims.out_channels * inner),
        (layers.depthwise_w.len(), conv.depthwise_w_len()),
        (layers.expand_w.w().len(), inner * dims.in_channels),
    ]);
    let has_input = match &layers.expand_w {
        Expand::Frozen(_) => true,
        Expand::Trained { x, update, .. } => lengths([(x.len(), gx.len()), (update.factor.len(), inner)]),
    };
    let hidden = layers.depthwise.fits(inner, dims.out_pixels()) && layers.expand.fits(inner, dims.in_pixels());
    if fits && has_input && hidden && is_tiled(conv) {
        simd::dispatch(Job { dims, gc, layers, gx, scratch });
    }
}

/// The pass, compiled for each instruction set.
struct Job<'a, 'b> {
    dims: &'a BottleneckGrad,
    gc: &'a [f32],
    layers: &'a mut BottleneckLayers<'b>,
    gx: &'a mut [f32],
    scratch: &'a mut [u8],
}

impl Kernel for Job<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Job { dims, gc, layers, gx, scratch } = self;
        let mut pieces = Scratch::new(scratch);
        let second = pieces.take::<f32>(dims.out_pixels() * dims.group());
        let first = pieces.take::<f32>(dims.in_pixels() * dims.group());
        lanes!(pieces.rest(), dims.depthwise.taps(), lanes, rest);
        tiles!(rest, a, b);
        run(dims, gc, layers, gx, [first, second], (lanes, a, b));
    }
}

#[inline(always)]
fn run(
    dims: &BottleneckGrad,
    gc: &[f32],
    layers: &mut BottleneckLayers,
    gx: &mut [f32],
    [first_wide, second_wide]: [&mut [f32]; 2],
    (lanes, wt, sums): (&mut [Lanes], &mut Tile, &mut Tile),
) {
    let (inner, pixels) = (dims.inner(), dims.out_pixels());
    gx.fill(0.0);
    for first in (0..inner).step_by(dims.group()) {
        let width = dims.group().min(inner - first);
        let second = part_mut(second_wide, 0, pixels * width);
        second.fill(0.0);
        let from = Matrix { data: gc, pitch: dims.out_channels, rows: pixels, columns: dims.out_channels };
        add_product(second, width, from, (layers.project_w.get(first..).unwrap_or(&[]), inner), wt);
        layers.depthwise.pass(second, first, width);
        let conv = Conv { in_channels: width, out_channels: width, ..dims.depthwise };
        let wide = part_mut(first_wide, 0, dims.in_pixels() * width);
        let w = layers.depthwise_w.get(first..).unwrap_or(&[]);
        grad_depthwise::grad_x(&conv, second, (w, inner), wide, lanes);
        layers.expand.pass(wide, first, width);
        expand(dims, wide, (first, width), &mut layers.expand_w, gx, (wt, sums));
    }
}

/// Adds what some inner channels give to the gradient of the input, and then updates their weights.
#[inline(always)]
fn expand(
    dims: &BottleneckGrad,
    wide: &[f32],
    (first, width): (usize, usize),
    weight: &mut Expand,
    gx: &mut [f32],
    (wt, sums): (&mut Tile, &mut Tile),
) {
    let (ins, pixels) = (dims.in_channels, dims.in_pixels());
    let from = Matrix { data: wide, pitch: width, rows: pixels, columns: width };
    add_product(gx, ins, from, (weight.w().get(first * ins..).unwrap_or(&[]), ins), wt);
    let Expand::Trained { w, update, x, zero, index } = weight else { return };
    let size = [1, pixels];
    let conv = Conv {
        images: 1,
        in_size: size,
        in_channels: ins,
        out_size: size,
        out_channels: width,
        kernel: [1, 1],
        stride: [1, 1],
        pad: [0, 0],
    };
    let from = WeightGrad { zero: *zero, gc: wide, x, index: *index };
    let mut dice = update.dice();
    let columns = index.map_or(ins, <[i32]>::len);
    grad_w(&conv, &from, columns, wt, sums, |row, start, sums| {
        let (step, row) = (update.step(first + row), (first + row) * ins);
        if from.index.is_none() {
            return dice.move_run(row + start, part_mut(w, row + start, sums.len()), sums, |_| step);
        }
        for (j, sum) in sums.iter().enumerate() {
            let Some(c) = column(from.index, start + j).filter(|c| *c < ins) else { continue };
            if let Some(w) = w.get_mut(row + c) {
                *w = moved_i8(*w, dice.steps(row + c, step * sum));
            }
        }
    });
}

impl Hidden<'_> {
    fn fits(&self, channels: usize, pixels: usize) -> bool {
        lengths([
            (self.mask.len(), mask_bytes(channels * pixels)),
            (self.scale.len(), channels),
            (self.bias.len(), channels),
            (self.update.factor.len(), channels),
        ])
    }

    /// Masks and scales the gradient of `width` channels from `first` on, and updates their biases.
    #[inline(always)]
    fn pass(&mut self, g: &mut [f32], first: usize, width: usize) {
        let channels = self.scale.len();
        let mut dice = self.update.dice();
        let is_whole = channels.is_multiple_of(8) && first.is_multiple_of(8);
        let whole = if is_whole { width / 8 * 8 } else { 0 };
        for at in (0..whole).step_by(8) {
            let scale = part(self.scale, first + at, 8).first_chunk::<8>().copied().unwrap_or_default();
            let mut sums = [0.0f32; 8];
            let masks = self.mask.get((first + at) / 8..).unwrap_or(&[]).iter().step_by((channels / 8).max(1));
            for (g, mask) in g.chunks_exact_mut(width.max(1)).zip(masks) {
                let Some(g) = part_mut(g, at, 8).first_chunk_mut::<8>() else { continue };
                for i in 0..8 {
                    g[i] = if mask >> i & 1 == 1 { g[i] * scale[i] } else { 0.0 };
                    sums[i] += g[i];
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                self.move_bias(first + at + i, *sum, &mut dice);
            }
        }
        for at in whole..width {
            let (k, mut sum) = (first + at, 0.0f32);
            let scale = self.scale.get(k).copied().unwrap_or_default();
            for (p, g) in g.iter_mut().skip(at).step_by(width.max(1)).enumerate() {
                *g = if bit(self.mask, p * channels + k) { *g * scale } else { 0.0 };
                sum += *g;
            }
            self.move_bias(k, sum, &mut dice);
        }
    }

    #[inline(always)]
    fn move_bias(&mut self, k: usize, sum: f32, dice: &mut super::update::Dice) {
        let steps = dice.steps(k, self.update.step(k) * sum);
        if let Some(bias) = self.bias.get_mut(k) {
            *bias = bias.saturating_add(steps);
        }
    }
}
