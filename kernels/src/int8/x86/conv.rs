//! Convolution with AVX-512 VNNI: 32 output channels of eight pixels in registers, four products an instruction and
//! lane.
//!
//! One factor of the instruction is unsigned: inputs go in with 128 added, which the bias takes out again. That sum,
//! and the wrapping of its parts, are exact modulo 2^32, as is the result.
#![expect(unsafe_code, reason = "instructions that were detected, on pieces whose lengths were compared")]

use crate::f32::simd::{Isa, isa};
use crate::int8::conv::gather;
use crate::int8::{Bits, Conv, Quant, Weights, part, part_mut};
use core::arch::x86_64::*;
use core::ops::Range;

/// Output channels of a block: two vectors.
const CHANNELS: usize = 32;
/// Pixels of a block.
const PIXELS: usize = 8;
/// Inputs of an output that a block's weights can hold.
const DEPTH_MAX: usize = 1024;

/// The inputs of some pixels and the weights of some channels, on the stack.
#[repr(align(64))]
struct Block {
    /// By four inputs, then channel.
    weights: [[i8; CHANNELS * 4]; DEPTH_MAX / 4],
    columns: [[u8; DEPTH_MAX]; PIXELS],
    bias: [i32; CHANNELS],
    scale: [f32; CHANNELS],
}

/// Whether the machine and the shape are such.
pub(crate) fn supports(dims: &Conv) -> bool {
    // For a few pixels laying out the weights would cost more than the products.
    dims.out_pixels() >= 4 && isa() == Isa::Avx512 && fits(dims)
}

/// Whether the instructions are there, and a block holds the depth.
fn fits(dims: &Conv) -> bool {
    (1..=DEPTH_MAX).contains(&dims.depth())
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma")
}

/// Some rows of the output of one image, as `conv_rows`, where [`supports`] holds.
pub(crate) fn conv_rows(
    dims: &Conv,
    quant: &Quant,
    x: &[i8],
    weights: &Weights,
    rows: Range<usize>,
    y: &mut [i8],
    mut bits: Bits,
) {
    let (o, width) = (dims.out_channels, dims.out_size[1]);
    let pixels = rows.len() * width;
    if !fits(dims) || width == 0 || y.len() != pixels * o || !weights.fit(dims, dims.w_len()) {
        return;
    }
    let mut block = Block {
        weights: [[0; CHANNELS * 4]; DEPTH_MAX / 4],
        columns: [[0x80; DEPTH_MAX]; PIXELS],
        bias: [0; CHANNELS],
        scale: [0.0; CHANNELS],
    };
    let steps = dims.depth().div_ceil(4);
    let in_place = dims.reads_in_place();
    for first in (0..o).step_by(CHANNELS) {
        let channels = CHANNELS.min(o - first);
        pack(dims, quant.zero_x, weights, first, channels, &mut block);
        for at in (0..pixels).step_by(PIXELS) {
            let count = PIXELS.min(pixels - at);
            for (p, column) in block.columns.iter_mut().take(count).enumerate() {
                let (row, out) = (rows.start + (at + p) / width, (at + p) % width);
                let column = bytemuck::cast_slice_mut(part_mut(column, 0, steps * 4));
                if in_place {
                    let q = row * dims.stride[0] * dims.in_size[1] + out * dims.stride[1];
                    let x = part(x, q * dims.in_channels, dims.in_channels);
                    column.iter_mut().zip(x).for_each(|(to, x)| *to = *x);
                } else {
                    gather(dims, quant.zero_x, x, [row, out], column);
                }
                column.iter_mut().for_each(|x: &mut i8| *x = (*x as u8 ^ 0x80) as i8);
            }
            let outputs = Outputs { first: at, count, channel: first, channels, o };
            // SAFETY: `fits` found AVX-512 with VNNI.
            unsafe { block_of_outputs(&block, steps, quant, outputs, y, &mut bits) };
        }
    }
}

/// Lays out the weights of some channels, zeros after the last.
fn pack(dims: &Conv, zero: i32, weights: &Weights, first: usize, channels: usize, block: &mut Block) {
    let depth = dims.depth();
    for step in block.weights.iter_mut().take(depth.div_ceil(4)) {
        *step = [0; CHANNELS * 4];
    }
    for k in 0..channels {
        let w = part(weights.w, (first + k) * depth, depth);
        let mut sum = 0i32;
        let (fours, tail) = w.as_chunks::<4>();
        for (step, four) in block.weights.iter_mut().zip(fours) {
            step[k * 4..k * 4 + 4].copy_from_slice(four);
            sum += four.iter().map(|w| i32::from(*w)).sum::<i32>();
        }
        for (i, w) in tail.iter().enumerate() {
            block.weights[fours.len()][k * 4 + i] = *w;
            sum += i32::from(*w);
        }
        let bias = weights.bias.get(first + k).copied().unwrap_or_default();
        block.bias[k] = bias.wrapping_sub((zero + 128).wrapping_mul(sum));
        block.scale[k] = weights.scale.get(first + k).copied().unwrap_or_default();
    }
}

/// Which outputs a block computes: pixels from `first` on, channels from `channel` on, of `o`.
#[derive(Clone, Copy)]
struct Outputs {
    first: usize,
    count: usize,
    channel: usize,
    channels: usize,
    o: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn block_of_outputs(block: &Block, steps: usize, quant: &Quant, outputs: Outputs, y: &mut [i8], bits: &mut Bits) {
    // SAFETY: each half has 16 elements.
    let load_bias = |half: usize| unsafe { _mm512_loadu_si512(block.bias[half * 16..].as_ptr().cast()) };
    let start = [load_bias(0), load_bias(1)];
    let mut acc = [start; PIXELS];
    for (step, w) in block.weights.iter().take(steps).enumerate() {
        // SAFETY: a step has 128 bytes.
        let w = unsafe { [_mm512_loadu_si512(w.as_ptr().cast()), _mm512_loadu_si512(w[64..].as_ptr().cast())] };
        for (acc, column) in acc.iter_mut().zip(&block.columns) {
            let four = [column[step * 4], column[step * 4 + 1], column[step * 4 + 2], column[step * 4 + 3]];
            let x = _mm512_set1_epi32(i32::from_le_bytes(four));
            *acc = [_mm512_dpbusd_epi32(acc[0], x, w[0]), _mm512_dpbusd_epi32(acc[1], x, w[1])];
        }
    }
    for (p, acc) in acc.iter().take(outputs.count).enumerate() {
        for (half, acc) in acc.iter().enumerate() {
            let from = half * 16;
            let len = 16.min(outputs.channels.saturating_sub(from));
            // SAFETY: each half has 16 elements.
            let scale = unsafe { _mm512_loadu_ps(block.scale[from..].as_ptr()) };
            let (values, inside) = round16(*acc, scale, quant);
            let at = (outputs.first + p) * outputs.o + outputs.channel + from;
            for (y, value) in part_mut(y, at, len).iter_mut().zip(values) {
                *y = value;
            }
            bits.set_run(at, inside, len);
        }
    }
}

/// Sixteen sums to stored values, and a bit for each that is inside the limits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn round16(acc: __m512i, scale: __m512, quant: &Quant) -> ([i8; 16], u16) {
    let least = _mm512_set1_ps((quant.lo - quant.zero_y - 1) as f32);
    let greatest = _mm512_set1_ps((quant.hi - quant.zero_y + 1) as f32);
    let v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
    // The second operand where the first is no number: as the portable comparison.
    let v = _mm512_min_ps(_mm512_max_ps(v, least), greatest);
    let r = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
    let r = _mm512_add_epi32(r, _mm512_set1_epi32(quant.zero_y));
    let (lo, hi) = (_mm512_set1_epi32(quant.lo), _mm512_set1_epi32(quant.hi));
    let inside = _mm512_cmple_epi32_mask(lo, r) & _mm512_cmple_epi32_mask(r, hi);
    let y = _mm512_cvtepi32_epi8(_mm512_min_epi32(_mm512_max_epi32(r, lo), hi));
    let mut values = [0; 16];
    // SAFETY: sixteen bytes.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), y) };
    (values, inside)
}
