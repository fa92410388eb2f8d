//! Depthwise convolution, four channels at a time.
//!
//! Rows of four channels are widened into planes, the zero subtracted, in a ring of as many rows as the window is high;
//! each input row is widened once, when the first output row needs it. Windows of 3 x 3 and of 5 or 7 columns, with
//! steps of one or two columns; others are the portable kernel's.

use super::window::*;
use super::{widen_even, widen_odd};
use crate::int8::depthwise::{Planes, depthwise_portable};
use crate::int8::scratch::Scratch;
use crate::int8::{Bits, Conv, Quant, Rows, Weights, part, part_mut};
use core::arch::asm;
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
    let ring = pieces.take::<i16>((planes.rows + 1) * 4 * planes.width);
    let packed = pieces.take::<u32>(4 * planes.rows * planes.words);
    let wide = pieces.take::<i16>(planes.wide);
    if wide.len() < planes.wide {
        return;
    }
    ring.fill(0);
    let mut job = Job { dims, quant, planes, weights, kernels, ring, packed, wide };
    for channel in (0..channels / 4 * 4).step_by(4) {
        job.pack(channel);
        job.group(x, channel, rows.clone(), y, &mut bits);
    }
    depthwise_portable(dims, quant, x, weights, rows, y, bits, channels / 4 * 4..channels);
}

struct Job<'a> {
    dims: &'a Conv,
    quant: &'a Quant,
    planes: Planes,
    weights: &'a Weights<'a>,
    kernels: [Kernel; 2],
    /// Rows of four planes; the last row is zeros.
    ring: &'a mut [i16],
    /// Weights of four channels, row by row of each.
    packed: &'a mut [u32],
    /// One row of one channel before its limits.
    wide: &'a mut [i16],
}

impl Job<'_> {
    /// Widens the weights of four channels.
    fn pack(&mut self, channel: usize) {
        let (columns, channels) = (self.dims.kernel[1], self.dims.out_channels);
        let pairs = pairs(columns);
        for (i, packed) in self.packed.chunks_exact_mut(pairs.len()).enumerate() {
            let (c, r) = (i / self.planes.rows.max(1), i % self.planes.rows.max(1));
            let tap = |s: usize| {
                let at = (r * columns + s) * channels + channel + c;
                u32::from(i16::from(self.weights.w.get(at).copied().unwrap_or_default()) as u16)
            };
            for (packed, s) in packed.iter_mut().zip(pairs) {
                *packed = tap(*s) | tap(*s + 1) << 16;
            }
        }
    }

    /// All rows of the output of four channels.
    fn group(&mut self, x: Rows, channel: usize, rows: Range<usize>, y: &mut [i8], bits: &mut Bits) {
        let (dims, planes) = (self.dims, self.planes);
        let row_len = 4 * planes.width;
        let mut widened = 0;
        for (i, out) in rows.enumerate() {
            let taps = dims.taps_inside(0, out);
            let first = (out * dims.stride[0] + taps.start).saturating_sub(dims.pad[0]);
            for row in first.max(widened)..first + taps.len() {
                let to = part_mut(self.ring, row % planes.rows * row_len, row_len);
                widen(dims, self.quant.zero_x, x.row(row), channel, planes, to);
            }
            widened = widened.max(first + taps.len());
            let zeros = self.ring.as_ptr().wrapping_add(planes.rows * row_len);
            let mut table = [core::ptr::null(); Planes::ROWS + 1];
            let mut skipped = 0;
            if dims.kernel[1] == 3 {
                // The kernel of 3 x 3 has its weights in registers and reads zeros where a row is outside.
                for (r, row) in table.iter_mut().take(3).enumerate() {
                    let inside = taps.contains(&r);
                    let at = (first + r).wrapping_sub(taps.start) % planes.rows * row_len;
                    *row = if inside { self.ring.as_ptr().wrapping_add(at) } else { zeros };
                }
            } else if taps.is_empty() {
                table[0] = zeros;
            } else {
                skipped = taps.start;
                for (r, row) in table.iter_mut().take(taps.len().min(Planes::ROWS)).enumerate() {
                    *row = self.ring.as_ptr().wrapping_add((first + r) % planes.rows * row_len);
                }
            }
            for c in 0..4 {
                self.row(&table, skipped, channel, c, i, y, bits);
            }
        }
    }

    /// One row of the output of one channel.
    #[expect(clippy::too_many_arguments, reason = "which row of what")]
    fn row(
        &mut self,
        table: &[*const i16; Planes::ROWS + 1],
        skipped: usize,
        channel: usize,
        c: usize,
        row: usize,
        y: &mut [i8],
        bits: &mut Bits,
    ) {
        let (width, step) = (self.dims.out_size[1], self.dims.out_channels);
        let at = channel + c;
        let taps = part(self.packed, (c * self.planes.rows + skipped) * self.planes.words, self.planes.words);
        let (Some(bias), Some(scale), Some(w)) = (self.weights.bias.get(at), self.weights.scale.get(at), taps.first())
        else {
            return;
        };
        let is_narrow = bits.bytes.is_empty() && self.quant.lo == -128 && self.quant.hi == 127;
        let y_at = row * width * step + at;
        let (start, y_step) = if is_narrow {
            (y.as_mut_ptr().wrapping_add(y_at), step)
        } else {
            (self.wide.as_mut_ptr().cast::<i8>(), size_of::<i16>())
        };
        let mut window = Window {
            rows: table.as_ptr(),
            w,
            scale: *scale,
            y: start,
            bias: *bias,
            zero: self.quant.zero_y,
            y_step,
            y_end: start.wrapping_add(width / 2 * 2 * y_step),
            offset: c * self.planes.width * size_of::<i16>(),
        };
        let kernel = self.kernels[usize::from(!is_narrow)];
        if width >= 2 {
            // SAFETY: `Planes` made every row wide enough for the pairs of a row of the output; the table names rows of
            // the ring, as many as the weights from `skipped` on have, and ends with a null; `y` was found to have all
            // rows of the output, and `wide` one row.
            unsafe { kernel(&window) };
        }
        if width % 2 == 1 {
            window.y = window.y_end;
            window.y_step = 0;
            window.offset += (width - 1) * self.dims.stride[1] * size_of::<i16>();
            // SAFETY: as above; the second output of the pair is stored in the place of the first, which overwrites it.
            unsafe { kernel(&window) };
        }
        if !is_narrow {
            let (lo, hi) = (self.quant.lo, self.quant.hi);
            let y = y.get_mut(y_at..).unwrap_or(&mut []).iter_mut().step_by(step.max(1));
            for (p, (y, r)) in y.zip(self.wide.iter().take(width)).enumerate() {
                let r = i32::from(*r);
                *y = r.max(lo).min(hi) as i8;
                bits.set(y_at + p * step, lo <= r && r <= hi);
            }
        }
    }
}

/// The numbers of 16 bits of `a` minus those of `b`.
#[inline(always)]
fn minus(a: u32, b: u32) -> u32 {
    let y: u32;
    // SAFETY: registers only; the flags it sets are not read.
    unsafe {
        asm!("ssub16 {y}, {a}, {b}", a = in(reg) a, b = in(reg) b, y = lateout(reg) y,
            options(pure, nomem, nostack));
    };
    y
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
        let words = [a0 & 0xffff | b0 << 16, a1 & 0xffff | b1 << 16, a0 >> 16 | b0 & !0xffff, a1 >> 16 | b1 & !0xffff];
        for (plane, word) in words.into_iter().enumerate() {
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
