//! GGML's block formats: decoding for the packed products, encoding of the simple ones.
//!
//! Layouts: a scale `d` (and a minimum `m`) in f16 a block of 32, or, in the K formats, a super-block of 256 whose
//! groups of 32 or 16 have small integer scales. Every format has one decoder that takes codes apart sixteen at a
//! time; how sixteen codes become f32 is the instruction set's. Products are rounded before they are added, so all
//! sets give the same bits.
#![expect(unsafe_code, reason = "SIMD")]

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
            return unsafe { x86::decode_avx512(dtype, bytes, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 is there.
            return unsafe { x86::decode_avx2(dtype, bytes, out) };
        }
    }
    decode::<Plain>(dtype, bytes, out);
}

/// Sixteen unsigned codes, a byte each, in two little-endian words: bits of all of them are moved at once.
type Codes = [u64; 2];

/// How sixteen codes become f32.
trait Sixteen {
    /// `out[i] = (codes[i] - zero) * d`.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn scaled(codes: Codes, zero: i32, d: f32, out: &mut [f32; 16]);

    /// `out[i] = codes[i] * d + m`.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn line(codes: Codes, d: f32, m: f32, out: &mut [f32; 16]);
}

/// The baseline.
struct Plain;

impl Sixteen for Plain {
    #[inline(always)]
    unsafe fn scaled(codes: Codes, zero: i32, d: f32, out: &mut [f32; 16]) {
        for (out, code) in out.iter_mut().zip(bytes_of(codes)) {
            *out = (i32::from(code) - zero) as f32 * d;
        }
    }

    #[inline(always)]
    unsafe fn line(codes: Codes, d: f32, m: f32, out: &mut [f32; 16]) {
        for (out, code) in out.iter_mut().zip(bytes_of(codes)) {
            *out = f32::from(code) * d + m;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Codes, DType, Sixteen, decode};
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn decode_avx512(dtype: DType, bytes: &[u8], out: &mut [f32]) {
        decode::<Avx512>(dtype, bytes, out);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn decode_avx2(dtype: DType, bytes: &[u8], out: &mut [f32]) {
        decode::<Avx2>(dtype, bytes, out);
    }

    struct Avx512;

    impl Sixteen for Avx512 {
        #[inline(always)]
        unsafe fn scaled(codes: Codes, zero: i32, d: f32, out: &mut [f32; 16]) {
            // SAFETY: the instruction set is there (contract); `codes` and `out` are 16 long.
            unsafe {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                let codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(zero)));
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(codes, _mm512_set1_ps(d)));
            }
        }

        #[inline(always)]
        unsafe fn line(codes: Codes, d: f32, m: f32, out: &mut [f32; 16]) {
            // SAFETY: the instruction set is there (contract); `codes` and `out` are 16 long.
            unsafe {
                let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast())));
                let scaled = _mm512_mul_ps(codes, _mm512_set1_ps(d));
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(scaled, _mm512_set1_ps(m)));
            }
        }
    }

    struct Avx2;

    impl Sixteen for Avx2 {
        #[inline(always)]
        unsafe fn scaled(codes: Codes, zero: i32, d: f32, out: &mut [f32; 16]) {
            for (out, codes) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes) {
                // SAFETY: the instruction set is there (contract); `codes` and `out` are 8 long.
                unsafe {
                    let codes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes as i64));
                    let codes = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(zero)));
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(codes, _mm256_set1_ps(d)));
                }
            }
        }

        #[inline(always)]
        unsafe fn line(codes: Codes, d: f32, m: f32, out: &mut [f32; 16]) {
            for (out, codes) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes) {
                // SAFETY: the instruction set is there (contract); `codes` and `out` are 8 long.
                unsafe {
                    let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes as i64)));
                    let scaled = _mm256_mul_ps(codes, _mm256_set1_ps(d));
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(scaled, _mm256_set1_ps(m)));
                }
            }
        }
    }
}

/// Runs a block decoder over all blocks.
macro_rules! blocks {
    ($set:ident, $bytes:ident, $out:ident, $decode:ident) => {
        for (block, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            $decode::<$set>(block, out);
        }
    };
}

#[inline(always)]
fn decode<S: Sixteen>(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Q8_0 => blocks!(S, bytes, out, q8_0),
        DType::Q4_0 => blocks!(S, bytes, out, q4_0),
        DType::Q4_1 => blocks!(S, bytes, out, q4_1),
        DType::Q5_0 => blocks!(S, bytes, out, q5_0),
        DType::Q5_1 => blocks!(S, bytes, out, q5_1),
        DType::Q4K => blocks!(S, bytes, out, q4_k),
        DType::Q5K => blocks!(S, bytes, out, q5_k),
        DType::Q6K => blocks!(S, bytes, out, q6_k),
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => unreachable!("checked by the caller"),
        DType::I8 | DType::U8 | DType::I32 | DType::U32 => unreachable!("checked by the caller"),
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

/// The codes that are the sixteen bytes from `at` on.
#[inline(always)]
fn codes_at<const N: usize>(block: &[u8; N], at: usize) -> Codes {
    let (mut low, mut high) = ([0; 8], [0; 8]);
    low.copy_from_slice(&block[at..at + 8]);
    high.copy_from_slice(&block[at + 8..at + 16]);
    [u64::from_le_bytes(low), u64::from_le_bytes(high)]
}

#[inline(always)]
fn bytes_of(codes: Codes) -> impl Iterator<Item = u8> {
    codes.into_iter().flat_map(u64::to_le_bytes)
}

/// The byte `mask` of each code shifted right.
#[inline(always)]
fn bits(codes: Codes, shift: usize, mask: u8) -> Codes {
    codes.map(|codes| (codes >> shift) & (u64::from(mask) * EACH))
}

/// `low + 16 * high`, code by code.
#[inline(always)]
fn join(low: Codes, high: Codes) -> Codes {
    [low[0] | high[0] << 4, low[1] | high[1] << 4]
}

/// A one in every byte.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Bit `i` of `flags` as code `i`.
#[inline(always)]
fn spread(flags: u16) -> Codes {
    flags.to_le_bytes().map(|flags| {
        // Byte `i` keeps bit `i` only; adding 127 moves it, wherever it is, to the byte's top.
        let one_each = (u64::from(flags) * EACH) & 0x8040_2010_0804_0201;
        (one_each + 0x7f * EACH) >> 7 & EACH
    })
}

#[inline(always)]
fn q8_0<S: Sixteen>(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        // Signed codes plus 128 are unsigned.
        let codes = codes_at(block, 2 + 16 * i).map(|codes| codes ^ (0x80 * EACH));
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::scaled(codes, 128, d, out) };
    }
}

/// The codes of a block of 32 with nibbles from `at` on: element `j` low, element `16 + j` high in byte `j`.
#[inline(always)]
fn halves<const N: usize>(block: &[u8; N], at: usize) -> [Codes; 2] {
    let nibbles = codes_at(block, at);
    [bits(nibbles, 0, 15), bits(nibbles, 4, 15)]
}

/// The same with a fifth bit for each element, from `at` on.
#[inline(always)]
fn halves_of_five<const N: usize>(block: &[u8; N], at: usize) -> [Codes; 2] {
    let [low, high] = halves(block, at + 4);
    let fifths = |at: usize| spread(u16::from_le_bytes([block[at], block[at + 1]]));
    [join(low, fifths(at)), join(high, fifths(at + 2))]
}

#[inline(always)]
fn q4_0<S: Sixteen>(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (codes, out) in halves(block, 2).into_iter().zip(out.as_chunks_mut().0) {
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::scaled(codes, 8, d, out) };
    }
}

#[inline(always)]
fn q4_1<S: Sixteen>(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (codes, out) in halves(block, 4).into_iter().zip(out.as_chunks_mut().0) {
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::line(codes, d, m, out) };
    }
}

#[inline(always)]
fn q5_0<S: Sixteen>(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (codes, out) in halves_of_five(block, 2).into_iter().zip(out.as_chunks_mut().0) {
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::scaled(codes, 16, d, out) };
    }
}

#[inline(always)]
fn q5_1<S: Sixteen>(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (codes, out) in halves_of_five(block, 4).into_iter().zip(out.as_chunks_mut().0) {
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::line(codes, d, m, out) };
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
    let mut lines = [(0.0, 0.0); 8];
    for j in 0..8 {
        lines[j] = (d * f32::from(scales[j]), m * f32::from(minima[j]));
    }
    lines
}

/// Sixteen `i` of the block: groups of 32 alternate between the low and the high nibbles of 32 bytes.
#[inline(always)]
fn q4_k<S: Sixteen>(block: &[u8; 144], out: &mut [f32; 256]) {
    let lines = group_lines(block);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let (group, side) = (i / 2, i % 2);
        let codes = bits(codes_at(block, 16 + 32 * (group / 2) + 16 * side), 4 * (group % 2), 15);
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::line(codes, lines[group].0, -lines[group].1, out) };
    }
}

/// As `q4_k`; the fifth bits of group `g` are bits `g` of 32 bytes.
#[inline(always)]
fn q5_k<S: Sixteen>(block: &[u8; 176], out: &mut [f32; 256]) {
    let lines = group_lines(block);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let (group, side) = (i / 2, i % 2);
        let nibbles = bits(codes_at(block, 48 + 32 * (group / 2) + 16 * side), 4 * (group % 2), 15);
        let codes = join(nibbles, bits(codes_at(block, 16 + 16 * side), group, 1));
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::line(codes, lines[group].0, -lines[group].1, out) };
    }
}

/// Quarter `q` of each half takes nibbles of 64 low bytes and bits `2 q`, `2 q + 1` of 32 high bytes.
#[inline(always)]
fn q6_k<S: Sixteen>(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let (half, quarter, side) = (i / 8, i / 2 % 4, i % 2);
        let low = codes_at(block, 64 * half + 32 * (quarter % 2) + 16 * side);
        let high = codes_at(block, 128 + 32 * half + 16 * side);
        let codes = join(bits(low, 4 * (quarter / 2), 15), bits(high, 2 * quarter, 3));
        let scale = d * f32::from(block[192 + i] as i8);
        // SAFETY: `S` is the set that the caller is compiled for.
        unsafe { S::scaled(codes, 32, scale, out) };
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
            let plain = run(&|out| decode::<Plain>(dtype, &bytes, out));
            if is_x86_feature_detected!("avx2") {
                // SAFETY: AVX2 is there.
                assert_eq!(plain, run(&|out| unsafe { x86::decode_avx2(dtype, &bytes, out) }), "{}", dtype.name());
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                // SAFETY: the features are there.
                assert_eq!(plain, run(&|out| unsafe { x86::decode_avx512(dtype, &bytes, out) }), "{}", dtype.name());
            }
        }
    }
}
