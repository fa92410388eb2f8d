//! Depthwise convolution, four channels at a time.
//!
//! Input rows of four channels are widened into planes, the zero subtracted and padding as zeros, for as many rows of
//! the output as the planes hold. Windows of 3 x 3 and of 5 or 7 columns, with steps of one or two columns; others are
//! the portable kernel's.

use super::window::*;
use super::{minus, store4, widen_even, widen_odd};
use crate::int8::depthwise::{Planes, depthwise_portable};
use crate::int8::scratch::Scratch;
use crate::int8::{Bits, Conv, Quant, Rows, Weights, part, part_mut};
use core::ops::Range;

type Kernel = unsafe extern "C" fn(&Window);

/// The kernels for a window and a step, for bytes and for 16 bits.
fn kernels(dims: &Conv) -> Option<[Kernel; 2]> {
    match (dims.kernel[1], dims.stride[1]) {
        (3, 1) => Some([square3, square3_wide]),
        (3, 2) => Some([square3_stride2, square3_stride2_wide]),
        (5, 1) => Some([tall5, tall5_wide]),
        (5, 2) => Some([tall5_stride2, tall5_stride2_wide]),
        (7, 1) => Some([tall7, tall7_wide]),
        (7, 2) => Some([tall7_stride2, tall7_stride2_wide]),
        _ => None,
    }
}

/// Pairs of neighbouring taps in the order that a row of the kernels reads.
fn pairs(columns: usize) -> &'static [usize] {
    match columns {
        3 => &[0, 1],
        5 => &[0, 1, 2, 3],
        _ => &[0, 2, 4, 1, 3, 5],
    }
}

/// Some rows of the output of one image, as `depthwise_rows`.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
pub(crate) fn depthwise_rows(
    dims: &Conv,
    quant: &Quant,
    x: Rows,
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
    scratch: &mut [u8],
) {
    let channels = dims.out_channels;
    let planes = Planes::of(dims);
    let kernels = kernels(dims).filter(|_| planes.width > 0);
    let (Some(kernels), true) = (kernels, weights.fit(dims, dims.depthwise_w_len())) else {
        return depthwise_portable(dims, quant, x, weights, rows, y, bits, 0..channels);
    };
    if y.len() != rows.len() * dims.out_size[1] * channels || rows.end > dims.out_size[0] {
        return;
    }
    let mut pieces = Scratch::new(scratch);
    let plane = pieces.take::<i16>(planes.rows * 4 * planes.width);
    let packed = pieces.take::<u32>(4 * dims.kernel[0] * planes.words);
    let wide = pieces.take::<i16>(4 * planes.wide(dims));
    if wide.len() < 4 * planes.wide(dims) || plane.len() < planes.rows * 4 * planes.width {
        return;
    }
    plane.fill(0);
    let is_narrow = bits.bytes.is_empty() && quant.lo == -128 && quant.hi == 127;
    let mut job = Job { dims, quant, planes, weights, kernels, plane, packed, wide };
    for channel in (0..channels / 4 * 4).step_by(4) {
        job.pack(channel);
        for first in (0..rows.len()).step_by(planes.bands.max(1)) {
            let band = first..rows.len().min(first + planes.bands);
            job.widen(x, channel, rows.start + first, band.len());
            for c in 0..4 {
                job.run(channel, c, band.clone(), is_narrow, y);
            }
            if !is_narrow {
                job.store(channel, band, y, &mut bits);
            }
        }
    }
    depthwise_portable(dims, quant, x, weights, rows, y, bits, channels / 4 * 4..channels);
}

struct Job<'a> {
    dims: &'a Conv,
    quant: &'a Quant,
    planes: Planes,
    weights: &'a Weights<'a>,
    kernels: [Kernel; 2],
    /// Input rows of four channels: a row of each channel, then the next row.
    plane: &'a mut [i16],
    /// Weights of four channels, row by row of each.
    packed: &'a mut [u32],
    /// Rows of four channels before their limits.
    wide: &'a mut [i16],
}

impl Job<'_> {
    /// Widens the weights of four channels.
    fn pack(&mut self, channel: usize) {
        let (columns, channels) = (self.dims.kernel[1], self.dims.out_channels);
        let words = self.planes.words;
        let of_channel = self.dims.kernel[0] * words;
        let tap = |at: usize| {
            let bytes =
                part(self.weights.w, at * channels + channel, 4).first_chunk::<4>().copied().unwrap_or_default();
            let word = u32::from_le_bytes(bytes.map(|w| w as u8));
            (widen_even(word), widen_odd(word))
        };
        for r in 0..self.dims.kernel[0] {
            for (i, s) in pairs(columns).iter().enumerate() {
                let ((a0, a1), (b0, b1)) = (tap(r * columns + s), tap(r * columns + s + 1));
                for (c, word) in transpose(a0, a1, b0, b1).into_iter().enumerate() {
                    if let Some(packed) = self.packed.get_mut(c * of_channel + r * words + i) {
                        *packed = word;
                    }
                }
            }
        }
    }

    /// Widens the input rows of four channels under `count` rows of the output from row `first` on.
    fn widen(&mut self, x: Rows, channel: usize, first: usize, count: usize) {
        let (dims, planes) = (self.dims, self.planes);
        let row_len = 4 * planes.width;
        let top = first * dims.stride[0];
        for r in 0..(count - 1) * dims.stride[0] + dims.kernel[0] {
            let to = part_mut(self.plane, r * row_len, row_len);
            match (top + r).checked_sub(dims.pad[0]).filter(|row| *row < dims.in_size[0]) {
                Some(row) => widen(dims, self.quant.zero_x, x.row(row), channel, planes, to),
                // With all rows in the planes nothing was written over the zeros.
                None if planes.bands >= dims.out_size[0] => {}
                None => to.fill(0),
            }
        }
    }

    /// Some rows of the output of one of the four channels.
    fn run(&mut self, channel: usize, c: usize, rows: Range<usize>, is_narrow: bool, y: &mut [i8]) {
        let (dims, planes) = (self.dims, self.planes);
        let (width, step, at) = (dims.out_size[1], dims.out_channels, channel + c);
        let of_channel = dims.kernel[0] * planes.words;
        let taps = part(self.packed, c * of_channel, of_channel).as_ptr_range();
        let (Some(bias), Some(scale)) = (self.weights.bias.get(at), self.weights.scale.get(at)) else { return };
        let y_at = rows.start * width * step + at;
        let (start, y_step) = if is_narrow {
            (y.as_mut_ptr().wrapping_add(y_at), step)
        } else {
            (part_mut(self.wide, c * planes.wide(dims), planes.wide(dims)).as_mut_ptr().cast::<i8>(), size_of::<i16>())
        };
        let pitch = 4 * planes.width * size_of::<i16>();
        let odd = width % 2;
        let advance = 2 * dims.stride[1] * size_of::<i16>();
        let mut window = Window {
            x: self.plane.as_ptr().wrapping_add(c * planes.width),
            pitch,
            w: taps.start,
            w_end: taps.end,
            scale: *scale,
            y: start,
            bias: *bias,
            zero: self.quant.zero_y,
            y_step,
            y_end: start.wrapping_add((width - odd) * y_step),
            y_gap: odd * y_step,
            y_row: width * y_step,
            x_gap: (dims.stride[0] * pitch).wrapping_sub(width / 2 * advance),
            rows: rows.len(),
        };
        let kernel = self.kernels[usize::from(!is_narrow)];
        if width >= 2 {
            // SAFETY: `Planes` made the planes wide and high enough for the pairs of `rows`, at most `bands` of them;
            // the weights are those of one channel; `y` was found to have all rows, and `wide` has `bands` rows of
            // each channel.
            unsafe { kernel(&window) };
        }
        if odd == 1 {
            window.x = window.x.wrapping_add((width - 1) * dims.stride[1]);
            window.y = window.y_end;
            window.y_gap = window.y_row;
            window.y_step = 0;
            window.x_gap = (dims.stride[0] * pitch).wrapping_sub(advance);
            // SAFETY: as above; the second output of the pair is stored in the place of the first, which overwrites
            // it.
            unsafe { kernel(&window) };
        }
    }

    /// The limits and mask bits of some rows of the output of four channels, where they wait in 16 bits.
    fn store(&mut self, channel: usize, rows: Range<usize>, y: &mut [i8], bits: &mut Bits) {
        let (width, step, len) = (self.dims.out_size[1], self.dims.out_channels, self.planes.wide(self.dims));
        let row = |c: usize| part(self.wide, c * len, rows.len() * width).iter();
        let mut at = rows.start * width * step + channel;
        for (((a, b), c), d) in row(0).zip(row(1)).zip(row(2)).zip(row(3)) {
            store4(self.quant, y, bits, at, &[*a, *b, *c, *d]);
            at += step;
        }
    }
}

/// From numbers of 16 bits of channels (0, 2) and (1, 3) of two neighbours, the pairs of each channel.
#[inline(always)]
fn transpose(a0: u32, a1: u32, b0: u32, b1: u32) -> [u32; 4] {
    [a0 & 0xffff | b0 << 16, a1 & 0xffff | b1 << 16, a0 >> 16 | b0 & !0xffff, a1 >> 16 | b1 & !0xffff]
}

/// Four channels of a row of the input into planes.
fn widen(dims: &Conv, zero: i32, x: &[i8], channel: usize, planes: Planes, to: &mut [i16]) {
    let (channels, pad) = (dims.in_channels, dims.pad[1]);
    let columns = dims.in_size[1].min(planes.width.saturating_sub(pad));
    let zero = (zero as u32 & 0xffff) * 0x1_0001;
    if x.len() < columns * channels || channel + 4 > channels || to.len() < 4 * planes.width {
        return;
    }
    let read = |column: usize| {
        // SAFETY: `column` is below `columns`, and the four channels are inside of a pixel.
        let word = unsafe { x.as_ptr().add(column * channels + channel).cast::<u32>().read_unaligned() };
        (minus(widen_even(word), zero), minus(widen_odd(word), zero))
    };
    let to = to.as_mut_ptr();
    for column in (0..columns / 2 * 2).step_by(2) {
        let ((a0, a1), (b0, b1)) = (read(column), read(column + 1));
        for (plane, word) in transpose(a0, a1, b0, b1).into_iter().enumerate() {
            // SAFETY: `pad + column + 1 < planes.width`, and there are four planes.
            unsafe { to.add(plane * planes.width + pad + column).cast::<u32>().write_unaligned(word) };
        }
    }
    if columns % 2 == 1 {
        let (a0, a1) = read(columns - 1);
        for (plane, half) in [a0, a1, a0 >> 16, a1 >> 16].into_iter().enumerate() {
            // SAFETY: `pad + columns - 1 < planes.width`, and there are four planes.
            unsafe { *to.add(plane * planes.width + pad + columns - 1) = half as i16 };
        }
    }
}
