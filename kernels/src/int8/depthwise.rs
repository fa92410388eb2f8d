//! Depthwise convolution with a rounded output.
//!
//! ```text
//! y[p, c m + j] = round of the sum over r, s of (x[.., c] - zero_x) w[r, s, c m + j] + bias[c m + j], as in `conv`
//! ```

use super::round::Rounder;
use super::scratch::piece_bytes;
use super::{Bits, Conv, Quant, Rows, Weights, lengths, mask_bytes, part, part_mut};
use core::ops::Range;

/// Bytes that the planes of four channels may have beyond the rows of one window.
const PLANE_BYTES: usize = 4096;

/// The widened rows of four channels where registers hold two outputs of one channel. The same on every machine, so
/// that a plan made on one serves another.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    /// Rows of the output that are computed from the planes at a time.
    pub(crate) bands: usize,
    /// Input rows held.
    pub(crate) rows: usize,
    /// Elements of a row of one channel, even, with padding; 0 where the convolution is done without planes.
    pub(crate) width: usize,
    /// Words of the weights of one channel and row of taps.
    pub(crate) words: usize,
}

impl Planes {
    pub(crate) const fn of(dims: &Conv) -> Planes {
        let [height, columns] = dims.kernel;
        let ([step, stride], out) = (dims.stride, dims.out_size);
        let fits = match columns {
            3 => height == 3,
            5 | 7 => height > 0,
            _ => false,
        };
        let has_step = step > 0 && (stride == 1 || stride == 2);
        let has_size = out[0] > 0 && out[1] > 0 && dims.in_channels == dims.out_channels && dims.in_channels >= 4;
        if !fits || !has_step || !has_size {
            return Planes { bands: 0, rows: 0, width: 0, words: 0 };
        }
        let last_pair = (out[1] - 1) / 2 * 2;
        // A pair reads whole words: the window of its second output and up to one element more.
        let width = (last_pair * stride + columns + stride + 1).next_multiple_of(2);
        let fit = PLANE_BYTES / (4 * width * size_of::<i16>() + 1);
        let more = match fit.saturating_sub(height).checked_div(step) {
            Some(more) => more,
            None => 0,
        };
        let bands = 1 + more;
        let bands = if bands < out[0] { bands } else { out[0] };
        Planes { bands, rows: (bands - 1) * step + height, width, words: columns - 1 }
    }
}

impl Planes {
    /// Elements of the rows of one channel's output that are computed at a time; the last pair may need one more.
    pub(crate) const fn wide(&self, dims: &Conv) -> usize {
        self.bands * dims.out_size[1] + 1
    }
}

/// Bytes of scratch that [`i8_depthwise`] needs, beginning at a multiple of 8.
pub const fn i8_depthwise_scratch_bytes(dims: &Conv) -> usize {
    let planes = Planes::of(dims);
    if planes.width == 0 {
        return 0;
    }
    piece_bytes::<i16>(planes.rows * 4 * planes.width)
        + piece_bytes::<u32>(4 * dims.kernel[0] * planes.words)
        + piece_bytes::<i16>(4 * planes.wide(dims))
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
    bits: Bits,
    scratch: &mut [u8],
) {
    #[cfg(all(has_dsp, has_fpu))]
    return super::dsp::depthwise::depthwise_rows(dims, quant, x, weights, rows, y, bits, scratch);
    #[cfg(not(all(has_dsp, has_fpu)))]
    {
        let _ = scratch;
        #[cfg(feature = "std")]
        if dims.in_channels == dims.out_channels {
            return super::simd::dispatch(Vectors { dims, quant, x, weights, rows, y, bits });
        }
        depthwise_portable(dims, quant, x, weights, rows, y, bits, 0..dims.out_channels);
    }
}

/// Channels side by side where vectors are long.
#[cfg(feature = "std")]
const LANES: usize = 16;

/// [`depthwise_rows`] with a multiplier of 1, compiled for each instruction set.
#[cfg(feature = "std")]
struct Vectors<'a> {
    dims: &'a Conv,
    quant: &'a Quant,
    x: Rows<'a>,
    weights: &'a Weights<'a>,
    rows: Range<usize>,
    y: &'a mut [i8],
    bits: Bits<'a>,
}

#[cfg(feature = "std")]
impl super::simd::Kernel for Vectors<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: super::simd::Simd>(mut self, _: S) {
        let (o, width) = (self.dims.out_channels.max(1), self.dims.out_size[1].max(1));
        let y = core::mem::take(&mut self.y);
        for (p, y) in y.chunks_exact_mut(o).enumerate() {
            let out = [self.rows.start + p / width, p % width];
            for (i, y) in y.chunks_mut(LANES).enumerate() {
                self.some(out, i * LANES, p * o + i * LANES, y);
            }
        }
    }
}

#[cfg(feature = "std")]
impl Vectors<'_> {
    /// Some channels, from `first` on, of one pixel; `at` is their place in the output.
    #[inline(always)]
    fn some(&mut self, out: [usize; 2], first: usize, at: usize, y: &mut [i8]) {
        let (dims, len) = (self.dims, y.len());
        let mut acc: [i32; LANES] = lanes(self.weights.bias, first, len);
        let scale: [f32; LANES] = lanes(self.weights.scale, first, len);
        // A difference of two i8 fits i16, and its product with a third one i32.
        let zero = self.quant.zero_x as i16;
        for r in dims.taps_inside(0, out[0]) {
            let row = self.x.row(out[0] * dims.stride[0] + r - dims.pad[0]);
            for s in dims.taps_inside(1, out[1]) {
                let column = out[1] * dims.stride[1] + s - dims.pad[1];
                let x: [i8; LANES] = lanes(row, column * dims.in_channels + first, len);
                let w: [i8; LANES] = lanes(self.weights.w, (r * dims.kernel[1] + s) * dims.out_channels + first, len);
                for ((acc, x), w) in acc.iter_mut().zip(x).zip(w) {
                    *acc = acc.wrapping_add(i32::from(i16::from(x).wrapping_sub(zero)) * i32::from(w));
                }
            }
        }
        let rounder = Rounder::of(self.quant);
        let mut values = [0; LANES];
        let mut inside = 0;
        for (i, ((value, acc), scale)) in values.iter_mut().zip(acc).zip(scale).enumerate() {
            let (stored, is_inside) = rounder.sum(acc, scale);
            *value = stored;
            inside |= u16::from(is_inside) << i;
        }
        y.iter_mut().zip(values).for_each(|(y, value)| *y = value);
        self.bits.set_run(at, inside, len);
    }
}

/// `len` elements from `at`, then zeros.
#[cfg(feature = "std")]
#[inline(always)]
fn lanes<T: Copy + Default>(from: &[T], at: usize, len: usize) -> [T; LANES] {
    let from = part(from, at, len);
    from.first_chunk::<LANES>().copied().unwrap_or_else(|| {
        let mut to = [T::default(); LANES];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        to
    })
}

/// [`depthwise_rows`] for some of the output channels, on any machine.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
pub(crate) fn depthwise_portable(
    dims: &Conv,
    quant: &Quant,
    x: Rows,
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
    channels: Range<usize>,
) {
    let (o, width) = (dims.out_channels, dims.out_size[1].max(1));
    let multiplier = dims.multiplier().max(1);
    let rounder = Rounder::of(quant);
    if channels.is_empty() {
        return;
    }
    for (p, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let out = [rows.start + p / width, p % width];
        let all = y.iter_mut().zip(weights.bias).zip(weights.scale).enumerate();
        for (k, ((y, bias), scale)) in all.skip(channels.start).take(channels.len()) {
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
