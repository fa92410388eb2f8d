//! GGML's block formats: decoding for the packed products, encoding of the simple ones.
//!
//! Every format has one decoder in plain Rust, compiled once for each vector width; products are rounded before
//! they are added, so all of them give the same bits. Layouts: a scale `d` (and a minimum `m`) in f16 a block of
//! 32, or, in the K formats, a super-block of 256 whose groups of 32 or 16 have small integer scales.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "SIMD: calls of functions compiled for more than the baseline")
)]

use half::f16;
use tinyforge_plan::DType;

/// Elements of the largest block.
pub const BLOCK_ELEMS_MAX: usize = 256;

/// Decodes whole blocks: `out[i]` is element `i` of the blocks in `bytes`.
///
/// Panics when `dtype` is not a block format or the lengths do not fit each other.
pub fn dequantise(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let (block_elems, block_bytes) = (dtype.block_elems() as usize, dtype.block_bytes() as usize);
    assert!(dtype.is_quantised(), "{} is not a block format", dtype.name());
    assert!(
        out.len().is_multiple_of(block_elems) && bytes.len() == out.len() / block_elems * block_bytes,
        "{} bytes of {} do not hold {} elements",
        bytes.len(),
        dtype.name(),
        out.len()
    );
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the features are there; AVX512BW and VL imply AVX-512F and AVX2.
            return unsafe { decode_avx512(dtype, bytes, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 is there.
            return unsafe { decode_avx2(dtype, bytes, out) };
        }
    }
    decode(dtype, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn decode_avx512(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    decode(dtype, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn decode_avx2(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    decode(dtype, bytes, out);
}

#[inline(always)]
fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Q8_0 => blocks(bytes, out, q8_0),
        DType::Q4_0 => blocks(bytes, out, q4_0),
        DType::Q4_1 => blocks(bytes, out, q4_1),
        DType::Q5_0 => blocks(bytes, out, q5_0),
        DType::Q5_1 => blocks(bytes, out, q5_1),
        DType::Q4K => blocks(bytes, out, q4_k),
        DType::Q5K => blocks(bytes, out, q5_k),
        DType::Q6K => blocks(bytes, out, q6_k),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => unreachable!("checked by the caller"),
        DType::I8 | DType::U8 | DType::I32 | DType::U32 => unreachable!("checked by the caller"),
    }
}

#[inline(always)]
fn blocks<const BYTES: usize, const ELEMS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode_block: impl Fn(&[u8; BYTES], &mut [f32; ELEMS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode_block(block, out);
    }
}

/// The f16 at `at`, without the run-time dispatch of the general conversion.
#[inline(always)]
fn f16_at<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    let value = match magnitude >> 23 {
        // Subnormal: the fraction times 2^-24.
        0 => (magnitude >> 13) as f32 * f32::from_bits((127 - 24) << 23),
        // Infinity and NaN keep the largest exponent.
        31 => f32::from_bits(magnitude | 0xff << 23),
        _ => f32::from_bits(magnitude + ((127 - 15) << 23)),
    };
    f32::from_bits(value.to_bits() | sign)
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for j in 0..16 {
        let q = block[2 + j];
        out[j] = (i32::from(q & 15) - 8) as f32 * d;
        out[16 + j] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for j in 0..16 {
        let q = block[4 + j];
        out[j] = i32::from(q & 15) as f32 * d + m;
        out[16 + j] = i32::from(q >> 4) as f32 * d + m;
    }
}

/// The fifth bits of the two elements that share byte `j`.
#[inline(always)]
fn fifth_bits(high: u32, j: usize) -> (u32, u32) {
    ((high >> j & 1) << 4, (high >> (16 + j) & 1) << 4)
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for j in 0..16 {
        let q = u32::from(block[6 + j]);
        let (low_fifth, high_fifth) = fifth_bits(high, j);
        out[j] = ((q & 15 | low_fifth) as i32 - 16) as f32 * d;
        out[16 + j] = ((q >> 4 | high_fifth) as i32 - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for j in 0..16 {
        let q = u32::from(block[8 + j]);
        let (low_fifth, high_fifth) = fifth_bits(high, j);
        out[j] = (q & 15 | low_fifth) as i32 as f32 * d + m;
        out[16 + j] = (q >> 4 | high_fifth) as i32 as f32 * d + m;
    }
}

/// The 6-bit scales and minima of the 8 groups of a `q4_k` or `q5_k` block.
#[inline(always)]
fn group_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        minima[j] = packed[4 + j] & 63;
        scales[4 + j] = packed[8 + j] & 15 | (packed[j] >> 6) << 4;
        minima[4 + j] = packed[8 + j] >> 4 | (packed[4 + j] >> 6) << 4;
    }
    (scales, minima)
}

/// Scale and minimum of each group of 32 of a `q4_k` or `q5_k` block, from its first 16 bytes.
#[inline(always)]
fn group_lines<const N: usize>(block: &[u8; N]) -> [(f32, f32); 8] {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let mut packed = [0; 12];
    packed.copy_from_slice(&block[4..16]);
    let (scales, minima) = group_scales(&packed);
    core::array::from_fn(|j| (d * f32::from(scales[j]), m * f32::from(minima[j])))
}

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let lines = group_lines(block);
    for pair in 0..4 {
        let ((d_low, m_low), (d_high, m_high)) = (lines[2 * pair], lines[2 * pair + 1]);
        let (low, high) = out[64 * pair..64 * pair + 64].split_at_mut(32);
        for ((&q, low), high) in block[16 + 32 * pair..].iter().zip(low).zip(high) {
            *low = d_low * f32::from(q & 15) - m_low;
            *high = d_high * f32::from(q >> 4) - m_high;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let lines = group_lines(block);
    for pair in 0..4 {
        let ((d_low, m_low), (d_high, m_high)) = (lines[2 * pair], lines[2 * pair + 1]);
        let (low, high) = out[64 * pair..64 * pair + 64].split_at_mut(32);
        for l in 0..32 {
            let (fifths, q) = (block[16 + l] >> (2 * pair), block[48 + 32 * pair + l]);
            low[l] = d_low * f32::from(q & 15 | (fifths & 1) << 4) - m_low;
            high[l] = d_high * f32::from(q >> 4 | (fifths & 2) << 3) - m_high;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..128 + 32 * half + 32];
        let scales: [f32; 8] = core::array::from_fn(|i| d * f32::from(block[192 + 8 * half + i] as i8));
        // Quarter `i` of the half takes one nibble of `low` and bits `2 i`, `2 i + 1` of `high`.
        for quarter in 0..4 {
            for sixteen in 0..2 {
                let scale = scales[2 * quarter + sixteen];
                for l in 16 * sixteen..16 * sixteen + 16 {
                    let nibble = low[32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
                    let q = nibble | (high[l] >> (2 * quarter) & 3) << 4;
                    out[128 * half + 32 * quarter + l] = scale * f32::from(q as i8 - 32);
                }
            }
        }
    }
}

/// Encodes whole blocks of `q8_0`, `q4_0` or `q4_1`, as GGML's reference quantiser does; `false` for other types,
/// which are only read.
///
/// Panics when the lengths do not fit each other.
#[must_use]
pub fn quantise(dtype: DType, values: &[f32], bytes: &mut [u8]) -> bool {
    assert_eq!(Some(bytes.len() as u64), dtype.bytes_of(values.len() as u64), "{} needs whole blocks", dtype.name());
    match dtype {
        DType::Q8_0 => encode(values, bytes, encode_q8_0),
        DType::Q4_0 => encode(values, bytes, encode_q4_0),
        DType::Q4_1 => encode(values, bytes, encode_q4_1),
        _ => return false,
    }
    true
}

fn encode<const BYTES: usize>(values: &[f32], bytes: &mut [u8], encode_block: impl Fn(&[f32; 32], &mut [u8; BYTES])) {
    for (values, block) in values.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
        encode_block(values, block);
    }
}

fn put_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn encode_q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
    put_f16(block, 0, d);
    for (q, x) in block[2..].iter_mut().zip(values) {
        *q = (x * inverse(d)).round() as i8 as u8;
    }
}

fn encode_q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    // The extreme value, with its sign, becomes -8.
    let extreme = values.iter().fold(0.0f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    let d = extreme / -8.0;
    put_f16(block, 0, d);
    let q = |x: f32| ((x * inverse(d) + 8.5) as u8).min(15);
    for j in 0..16 {
        block[2 + j] = q(values[j]) | q(values[16 + j]) << 4;
    }
}

fn encode_q4_1(values: &[f32; 32], block: &mut [u8; 20]) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let q = |x: f32| (((x - min) * inverse(d) + 0.5) as u8).min(15);
    for j in 0..16 {
        block[4 + j] = q(values[j]) | q(values[16 + j]) << 4;
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn every_vector_width_gives_the_same_bits() {
        for dtype in DType::all().filter(|dtype| dtype.is_quantised()) {
            let elems = 64 * BLOCK_ELEMS_MAX;
            let len = dtype.bytes_of(elems as u64).expect("whole blocks") as usize;
            let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let run = |decode: &dyn Fn(&mut [f32])| {
                let mut out = vec![0.0; elems];
                decode(&mut out);
                out.into_iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect::<Vec<_>>()
            };
            let plain = run(&|out| decode(dtype, &bytes, out));
            if is_x86_feature_detected!("avx2") {
                // SAFETY: AVX2 is there.
                assert_eq!(plain, run(&|out| unsafe { decode_avx2(dtype, &bytes, out) }), "{}", dtype.name());
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                // SAFETY: the features are there.
                assert_eq!(plain, run(&|out| unsafe { decode_avx512(dtype, &bytes, out) }), "{}", dtype.name());
            }
        }
    }
}
