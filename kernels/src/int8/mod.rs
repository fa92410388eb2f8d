//! The int8 family: the same kernels on a computer and on a microcontroller, bit for bit.
//!
//! Images are NHWC `i8[n, h, w, c]`, weights `i8[o, r, s, i]` (depthwise `i8[r, s, c * m]`), row-major. Forward sums
//! are exact in i32 and rounded once, to the nearest integer, ties to even ([`round`]); the backward pass is f32,
//! every multiply-accumulate is one fused operation, and each sum runs in the one order that its kernel states. So a
//! variant may regroup integers as it likes and must keep the order of every f32 sum.
//!
//! Nothing here allocates or panics: lengths are checked once at a kernel's entry, and a kernel that was handed slices
//! of other lengths than its dimensions say leaves them as they are (and asserts in debug builds). Not for floats that
//! are trained in f32: those kernels are in `f32`.

mod add;
mod add_up;
mod bottleneck;
mod bottleneck_grad;
mod conv;
mod depthwise;
#[cfg(all(has_dsp, has_fpu))]
mod dsp;
mod fma;
mod grad;
mod grad_conv;
mod grad_depthwise;
mod lanes;
mod loss;
mod pool;
pub mod round;
mod scratch;
mod simd;
mod softmax;
mod states;
mod tile;
mod update;
#[cfg(all(feature = "std", target_arch = "x86_64"))]
mod x86;

pub use add::{Add, i8_add, i8_add_to_a, i8_add_to_b};
pub use add_up::{i8_add_up, i8_add_up_to_a, i8_add_up_to_b};
pub use bottleneck::{
    Bottleneck, Stage, i8_bottleneck, i8_bottleneck_lead_bytes, i8_bottleneck_overlay, i8_bottleneck_overlay_bytes,
    i8_bottleneck_scratch_bytes,
};
pub use bottleneck_grad::{
    BottleneckGrad, BottleneckLayers, Expand, Hidden, i8_bottleneck_grad_update,
    i8_bottleneck_grad_update_scratch_bytes, i8_bottleneck_grad_update_supports,
};
pub use conv::{i8_conv2d, i8_conv2d_scratch_bytes};
pub use depthwise::{i8_depthwise, i8_depthwise_scratch_bytes};
pub use fma::fma;
pub use grad::{f32_add, f32_add_to, f32_scale, f32_scale_in_place, i8_grad_b, i8_grad_b_update, i8_scale_grad};
pub use grad_conv::{
    i8_conv2d_grad_w, i8_conv2d_grad_w_scratch_bytes, i8_conv2d_grad_w_update, i8_conv2d_grad_x,
    i8_conv2d_grad_x_scratch_bytes,
};
pub use grad_depthwise::{
    i8_depthwise_grad_w, i8_depthwise_grad_w_scratch_bytes, i8_depthwise_grad_w_update, i8_depthwise_grad_x,
    i8_depthwise_grad_x_scratch_bytes,
};
pub use loss::{CrossEntropy, i8_cross_entropy, i8_cross_entropy_grad};
pub use pool::{SumPool, i8_avg_pool, i8_avg_pool_away, i8_avg_pool_grad, i8_max_pool, i8_max_pool_grad, i8_sum_pool};
pub use softmax::{Softmax, i8_softmax};
pub use states::{
    States, i8_conv2d_grad_w_update_with, i8_depthwise_grad_w_update_with, i8_grad_b_update_with, i8_update_with,
    i32_update_with,
};
pub use update::{Shape, Update, i8_update, i32_update, update_stream};

use core::ops::Range;

/// Geometry of a convolution, a depthwise one or a pooling window: `x[images, in_size, in_channels]` to
/// `y[images, out_size, out_channels]`.
///
/// Output pixel `p` sees input pixel `stride * p + tap - pad` through tap `tap`. The output's size is given, so that
/// any padding after the last pixel can be said. A fully connected layer is 1 x 1 on 1 x 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Images.
    pub images: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Channels of the input.
    pub in_channels: usize,
    /// Height and width of the output.
    pub out_size: [usize; 2],
    /// Channels of the output; of a depthwise convolution a multiple of `in_channels`, of a pooling the same.
    pub out_channels: usize,
    /// Taps.
    pub kernel: [usize; 2],
    /// Input pixels from one output to the next.
    pub stride: [usize; 2],
    /// Rows and columns before the first input pixel that count as zero.
    pub pad: [usize; 2],
}

impl Conv {
    /// Elements of the input.
    pub const fn x_len(&self) -> usize {
        self.images * self.in_pixels() * self.in_channels
    }

    /// Elements of the output.
    pub const fn y_len(&self) -> usize {
        self.images * self.out_pixels() * self.out_channels
    }

    /// Elements of a convolution's weight.
    pub const fn w_len(&self) -> usize {
        self.out_channels * self.depth()
    }

    /// Elements of a depthwise convolution's weight.
    pub const fn depthwise_w_len(&self) -> usize {
        self.taps() * self.out_channels
    }

    /// Taps of a window.
    pub const fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Products in one output of a convolution.
    pub const fn depth(&self) -> usize {
        self.taps() * self.in_channels
    }

    pub(crate) const fn in_pixels(&self) -> usize {
        self.in_size[0] * self.in_size[1]
    }

    pub(crate) const fn out_pixels(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Whether output pixel `p` sees input pixel `p` alone.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pad == [0, 0] && self.in_size == self.out_size
    }

    /// Whether each output's inputs lie together in the input, in whole words: 1 x 1, and nothing in padding.
    pub(crate) const fn reads_in_place(&self) -> bool {
        let [height, width] = self.out_size;
        self.kernel[0] == 1
            && self.kernel[1] == 1
            && self.pad[0] == 0
            && self.pad[1] == 0
            && self.in_channels.is_multiple_of(4)
            && height.saturating_sub(1) * self.stride[0] < self.in_size[0]
            && width.saturating_sub(1) * self.stride[1] < self.in_size[1]
    }

    /// Output channels of one input channel of a depthwise convolution.
    pub(crate) fn multiplier(&self) -> usize {
        self.out_channels / self.in_channels.max(1)
    }

    /// The output whose tap `tap` falls on input pixel `at`, if there is one.
    #[inline(always)]
    pub(crate) fn output(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let stride = self.stride[axis].max(1);
        let shifted = (at + self.pad[axis]).checked_sub(tap)?;
        let out = shifted / stride;
        (out * stride == shifted && out < self.out_size[axis]).then_some(out)
    }

    /// The taps of output `out` that fall on pixels of the input.
    #[inline(always)]
    pub(crate) fn taps_inside(&self, axis: usize, out: usize) -> Range<usize> {
        let start = out * self.stride[axis];
        let first = self.pad[axis].saturating_sub(start).min(self.kernel[axis]);
        let end = (self.in_size[axis] + self.pad[axis]).saturating_sub(start).min(self.kernel[axis]);
        first..end.max(first)
    }

    /// The outputs whose tap `tap` falls on pixels of the input.
    #[inline(always)]
    pub(crate) fn outputs_inside(&self, axis: usize, tap: usize) -> Range<usize> {
        let stride = self.stride[axis].max(1);
        let first = self.pad[axis].saturating_sub(tap).div_ceil(stride).min(self.out_size[axis]);
        let end = (self.in_size[axis] + self.pad[axis]).saturating_sub(tap).div_ceil(stride).min(self.out_size[axis]);
        first..end.max(first)
    }
}

/// Zero points and limits of a kernel that maps i8 to i8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant {
    /// Stored value of the input's zero; padding counts as it.
    pub zero_x: i32,
    /// Stored value of the output's zero.
    pub zero_y: i32,
    /// Least stored output.
    pub lo: i32,
    /// Greatest stored output.
    pub hi: i32,
}

/// What a forward convolution reads beside its input: the weight, and per output channel the bias and the factor that
/// takes the sum to the output's steps.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `i8[o, r, s, i]`, depthwise `i8[r, s, c * m]`.
    pub w: &'a [i8],
    /// `i32[o]`, in units of the input's step times the weight's.
    pub bias: &'a [i32],
    /// `f32[o]`: the input's step times the weight's over the output's.
    pub scale: &'a [f32],
}

impl Weights<'_> {
    fn fit(&self, dims: &Conv, w_len: usize) -> bool {
        let o = dims.out_channels;
        lengths([(self.w.len(), w_len), (self.bias.len(), o), (self.scale.len(), o)])
    }
}

/// What the gradient of a weight is made of.
#[derive(Clone, Copy, Debug)]
pub struct WeightGrad<'a> {
    /// Stored value of the input's zero.
    pub zero: i32,
    /// Gradient of the sums, of the output's shape.
    pub gc: &'a [f32],
    /// The layer's input.
    pub x: &'a [i8],
    /// The trained input channels (of a depthwise convolution: output channels), in the order of the gradient's
    /// columns; all of them when there is none.
    pub index: Option<&'a [i32]>,
}

/// Bytes of a mask of `len` elements: element `i` is bit `i % 8` of byte `i / 8`.
pub const fn mask_bytes(len: usize) -> usize {
    len.div_ceil(8)
}

/// `len` elements from `at`; none when that is outside.
#[inline(always)]
pub(crate) fn part<T>(x: &[T], at: usize, len: usize) -> &[T] {
    x.get(at..at.saturating_add(len)).unwrap_or(&[])
}

/// `len` elements from `at`; none when that is outside.
#[inline(always)]
pub(crate) fn part_mut<T>(x: &mut [T], at: usize, len: usize) -> &mut [T] {
    x.get_mut(at..at.saturating_add(len)).unwrap_or(&mut [])
}

/// Rows of one image, as a whole or as a ring that holds the last of them: row `r` is in place `r % rows`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [i8],
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) len: usize,
}

impl<'a> Rows<'a> {
    /// Row `r`.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [i8] {
        part(self.data, r % self.rows.max(1) * self.len, self.len)
    }
}

/// Bits of a mask from `at` on; an empty mask takes none.
pub(crate) struct Bits<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) at: usize,
}

impl Bits<'_> {
    pub(crate) const fn none() -> Bits<'static> {
        Bits { bytes: &mut [], at: 0 }
    }

    /// Sets bit `at`, which is zero so far.
    #[inline(always)]
    pub(crate) fn set(&mut self, at: usize, bit: bool) {
        round::set_bit(self.bytes, self.at + at, bit);
    }

    /// Sets the first `len` bits of `run` from bit `at` on.
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn set_run(&mut self, at: usize, run: u16, len: usize) {
        let at = self.at + at;
        let run = (u32::from(run) & ((1 << len) - 1)) << (at % 8);
        for (i, byte) in self.bytes.iter_mut().skip(at / 8).take(3).enumerate() {
            *byte |= (run >> (8 * i)) as u8;
        }
    }
}

/// Whether lengths are as they must be; a difference is the caller's mistake.
#[inline(always)]
pub(crate) fn lengths<const N: usize>(pairs: [(usize, usize); N]) -> bool {
    let agree = pairs.iter().all(|(is, must)| is == must);
    debug_assert!(agree, "lengths (is, must be): {pairs:?}");
    agree
}
