//! Convolution, four output channels at a time.
//!
//! The weights of four channels are widened once and serve all pixels; the input's zero goes into the bias. A 1 x 1
//! convolution reads its input in place, any other copies the windows of a few pixels into columns, padding as the
//! zero.

use super::dot::{Dot4, dot4, dot4_wide};
use super::{minus, products, store4, widen_even, widen_odd};
use crate::int8::conv::{Blocks, conv_portable, gather};
use crate::int8::round::Rounder;
use crate::int8::scratch::Scratch;
use crate::int8::{Bits, Conv, Quant, Weights, part};
use core::ops::Range;

/// Pixels whose results wait in 16 bits for their limits and mask bits.
const WIDE: usize = 16;

/// Pixels for which widened weights are not worth keeping.
const FEW: usize = 2;

/// Some rows of the output of one image, as `conv_rows`.
#[expect(clippy::too_many_arguments, reason = "the kernel's, and which part of it")]
pub(crate) fn conv_rows(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
    scratch: &mut [u8],
) {
    let blocks = Blocks::of(dims);
    let o = dims.out_channels;
    let pixels = rows.len() * dims.out_size[1];
    let fits = x.len() == dims.in_pixels() * dims.in_channels
        && y.len() == pixels * o
        && rows.end <= dims.out_size[0]
        && weights.fit(dims, dims.w_len());
    if !fits || pixels == 0 || blocks.depth == 0 {
        return;
    }
    if pixels <= FEW && blocks.columns == 0 {
        few(dims, quant, x, weights, rows.clone(), y, &mut bits);
        return conv_portable(dims, quant, x, weights, rows, y, bits, o / 4 * 4..o);
    }
    let mut pieces = Scratch::new(scratch);
    let packed = pieces.take::<u32>(blocks.groups * blocks.depth * 2);
    let bias = pieces.take::<i32>(blocks.groups * 4);
    let columns = pieces.take::<i8>(blocks.columns * blocks.depth);
    let mut job = Job { dims, quant, scale: weights.scale, y, bits: &mut bits };
    let (packed, _) = packed.as_chunks_mut::<8>();
    let (bias, _) = bias.as_chunks_mut::<4>();
    let steps = blocks.depth / 4;
    let groups = o / 4;
    for first in (0..groups).step_by(blocks.groups.max(1)) {
        let count = blocks.groups.min(groups - first);
        let block = packed.chunks_exact_mut(steps).zip(bias.iter_mut()).take(count);
        for (group, (packed, bias)) in block.enumerate() {
            pack(dims, quant.zero_x, weights, first + group, packed, bias);
        }
        let block = || packed.chunks_exact(steps).zip(bias.iter()).take(count).enumerate();
        if blocks.columns == 0 {
            for (group, (packed, bias)) in block() {
                in_place(&mut job, x, rows.clone(), first + group, packed, bias);
            }
            continue;
        }
        for at in (0..pixels).step_by(blocks.columns) {
            let count = blocks.columns.min(pixels - at);
            for (p, column) in columns.chunks_exact_mut(blocks.depth).take(count).enumerate() {
                let p = at + p;
                gather(
                    dims,
                    quant.zero_x,
                    x,
                    [rows.start + p / dims.out_size[1].max(1), p % dims.out_size[1].max(1)],
                    column,
                );
            }
            for (group, (packed, bias)) in block() {
                job.run(columns, 0, count, at, first + group, packed, bias);
            }
        }
    }
    conv_portable(dims, quant, x, weights, rows, y, bits, groups * 4..o);
}

/// A few pixels whose inputs serve as they lie: each weight is used as often as it is widened, so it is not kept.
fn few(dims: &Conv, quant: &Quant, x: &[i8], weights: &Weights, rows: Range<usize>, y: &mut [i8], bits: &mut Bits) {
    let (o, depth, width) = (dims.out_channels, dims.in_channels, dims.out_size[1].max(1));
    let rounder = Rounder::of(quant);
    for (p, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let q = (rows.start + p / width) * dims.stride[0] * dims.in_size[1] + p % width * dims.stride[1];
        let x = part(x, q * depth, depth);
        let (fours, _) = y.as_chunks_mut::<4>();
        for (group, y) in fours.iter_mut().enumerate() {
            let row = |j: usize| part(weights.w, (group * 4 + j) * depth, depth);
            let sums = dot(quant.zero_x, x, [row(0), row(1), row(2), row(3)]);
            for (j, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
                let k = group * 4 + j;
                if let (Some(bias), Some(scale)) = (weights.bias.get(k), weights.scale.get(k)) {
                    let (value, is_inside) = rounder.sum(bias.wrapping_add(sum), *scale);
                    *y = value;
                    bits.set(p * o + k, is_inside);
                }
            }
        }
    }
}

/// The sums of products of one input with four rows of weights.
fn dot(zero: i32, x: &[i8], w: [&[i8]; 4]) -> [i32; 4] {
    let word = |bytes: &[i8; 4]| u32::from_le_bytes(bytes.map(|b| b as u8));
    let zero = (zero as u32 & 0xffff) * 0x1_0001;
    let [a, b, c, d] = w.map(|w| w.as_chunks::<4>().0);
    let mut sums = [0; 4];
    for ((((x, a), b), c), d) in x.as_chunks::<4>().0.iter().zip(a).zip(b).zip(c).zip(d) {
        let x = word(x);
        let (even, odd) = (minus(widen_even(x), zero), minus(widen_odd(x), zero));
        for (sum, w) in sums.iter_mut().zip([a, b, c, d]) {
            let w = word(w);
            *sum = products(even, widen_even(w), products(odd, widen_odd(w), *sum));
        }
    }
    sums
}

/// Widens the weights of four channels and takes the input's zero into their bias.
fn pack(dims: &Conv, zero: i32, weights: &Weights, group: usize, packed: &mut [[u32; 8]], bias: &mut [i32; 4]) {
    let depth = dims.depth();
    for (j, bias) in bias.iter_mut().enumerate() {
        let (words, tail) = part(weights.w, (group * 4 + j) * depth, depth).as_chunks::<4>();
        let mut sum = 0;
        let mut store = |packed: &mut [u32; 8], word: u32| {
            let (even, odd) = (widen_even(word), widen_odd(word));
            sum = products(even, 0x1_0001, products(odd, 0x1_0001, sum));
            packed[j] = even;
            packed[4 + j] = odd;
        };
        for (packed, word) in packed.iter_mut().zip(words) {
            store(packed, u32::from_le_bytes(word.map(|w| w as u8)));
        }
        if let Some(packed) = packed.get_mut(words.len()) {
            let word = tail.iter().rev().fold(0, |word, w| word << 8 | u32::from(*w as u8));
            store(packed, word);
        }
        let of_channel = weights.bias.get(group * 4 + j).copied().unwrap_or_default();
        *bias = of_channel.wrapping_sub(zero.wrapping_mul(sum));
    }
}

/// One group of channels over rows of the input as they lie.
fn in_place(job: &mut Job, x: &[i8], rows: Range<usize>, group: usize, packed: &[[u32; 8]], bias: &[i32; 4]) {
    let dims = job.dims;
    let (width, channels) = (dims.out_size[1], dims.in_channels);
    if dims.stride == [1, 1] && width == dims.in_size[1] {
        let x = part(x, rows.start * width * channels, rows.len() * width * channels);
        return job.run(x, 0, rows.len() * width, 0, group, packed, bias);
    }
    for (i, row) in rows.enumerate() {
        let x = part(x, row * dims.stride[0] * dims.in_size[1] * channels, dims.in_size[1] * channels);
        job.run(x, (dims.stride[1] - 1) * channels, width, i * width, group, packed, bias);
    }
}

/// What all groups and pixels share.
struct Job<'a, 'b> {
    dims: &'a Conv,
    quant: &'a Quant,
    scale: &'a [f32],
    y: &'a mut [i8],
    bits: &'a mut Bits<'b>,
}

impl Job<'_, '_> {
    /// `count` pixels from pixel `at`, `gap` bytes between the inputs of two of them.
    #[expect(clippy::too_many_arguments, reason = "one group and one run of pixels")]
    fn run(
        &mut self,
        x: &[i8],
        gap: usize,
        count: usize,
        at: usize,
        group: usize,
        packed: &[[u32; 8]],
        bias: &[i32; 4],
    ) {
        let o = self.dims.out_channels;
        let depth = packed.len() * 4;
        let scale = part(self.scale, group * 4, 4);
        let last = at + count;
        if count == 0 || scale.len() < 4 || x.len() < (depth + gap) * (count - 1) + depth || self.y.len() < last * o {
            return;
        }
        let mut dot = Dot4 {
            x: x.as_ptr(),
            y: core::ptr::null_mut(),
            scale: scale.as_ptr(),
            gap,
            bias: bias.as_ptr(),
            w: packed.as_ptr().cast(),
            w_end: packed.as_ptr_range().end.cast(),
            is_odd: packed.len() % 2,
            zero: self.quant.zero_y,
            y_step: o,
            y_end: core::ptr::null_mut(),
        };
        if self.bits.bytes.is_empty() && self.quant.lo == -128 && self.quant.hi == 127 {
            dot.y = self.y.as_mut_ptr().wrapping_add(at * o + group * 4);
            dot.y_end = dot.y.wrapping_add(count * o);
            // SAFETY: lengths were compared above: `count` pixels of `depth` inputs and `gap` bytes, outputs at
            // `(at + i) o + 4 group` for `i < count`, all inside; `packed` has steps; `group` is below `o / 4`.
            return unsafe { dot4(&dot) };
        }
        let mut wide = [[0i16; 4]; WIDE];
        dot.y_step = size_of::<[i16; 4]>();
        for at in (at..last).step_by(WIDE) {
            let count = WIDE.min(last - at);
            dot.y = wide.as_mut_ptr().cast();
            dot.y_end = dot.y.wrapping_add(count * dot.y_step);
            // SAFETY: as above, with outputs in the first `count <= WIDE` elements of `wide`.
            unsafe { dot4_wide(&dot) };
            dot.x = dot.x.wrapping_add(count * (depth + gap));
            for (p, four) in wide.iter().take(count).enumerate() {
                store4(self.quant, self.y, self.bits, (at + p) * o + group * 4, four);
            }
        }
    }
}
