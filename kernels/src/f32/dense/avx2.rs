//! AVX2 tiles with fused multiply-add: 6 rows by 16 columns, two vectors a row.
//!
//! The 12 sums, the two vectors and the broadcast fill 15 of the 16 registers.
#![expect(unsafe_code, reason = "SIMD")]

use super::portable;
use super::set::{KernelSet, Right, Tile, TileFn, Words, strip_of_tiles};
use core::arch::x86_64::*;

const NR: usize = 16;

macro_rules! rows {
    ($tile:ident, $vectors:literal) => {
        [
            $tile::<1, $vectors> as TileFn,
            $tile::<2, $vectors>,
            $tile::<3, $vectors>,
            $tile::<4, $vectors>,
            $tile::<5, $vectors>,
            $tile::<6, $vectors>,
        ]
    };
}

pub(super) static F32: KernelSet = KernelSet {
    name: "avx2",
    mr: 6,
    nr: NR,
    pairs: false,
    left_by_lane: false,
    word_unit: 1,
    strip,
    thin: None,
    transpose,
    copy,
    pair_run: portable::pair_run,
    pair_steps: portable::pair_steps,
    pair_stored: portable::pair_stored,
    available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
};

/// # Safety
/// See [`super::set::StripFn`].
unsafe fn strip(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    // SAFETY: forwarded contract.
    unsafe { strip_of_tiles((&rows!(tile, 2), &rows!(tile, 1), NR), (rows, words), a, right, strip) }
}

/// All bits of the lanes below `count` of the vector that starts at lane `from`.
#[target_feature(enable = "avx2")]
fn mask(count: usize, from: usize) -> __m256i {
    let left = count.saturating_sub(from).min(8) as i32;
    _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// # Safety
/// AVX2 and FMA; see [`TileFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(words: usize, a: *const u32, b: *const u32, step: usize, tile: &Tile) {
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    for _ in 0..words {
        // SAFETY: the panels hold `words` steps of `R` and of at least `cols` words (contract of `TileFn`).
        unsafe {
            let mut right = [_mm256_setzero_ps(); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = _mm256_loadu_ps(b.add(8 * v));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = _mm256_broadcast_ss(&*a.add(r));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = _mm256_fmadd_ps(left, right, *sum);
                }
            }
            a = a.add(R);
            b = b.add(step);
        }
    }
    let alpha = _mm256_set1_ps(tile.alpha);
    for v in 0..V {
        let mask = mask(tile.cols, 8 * v);
        let old_mask = if tile.load { mask } else { _mm256_setzero_si256() };
        for (r, sums) in sums.iter().enumerate() {
            let at = tile.c.wrapping_add(r * tile.stride + 8 * v);
            // SAFETY: the masks keep the accesses inside row `r` of the tile, and inside the bias.
            unsafe {
                let mut value = _mm256_add_ps(_mm256_maskload_ps(at, old_mask), _mm256_mul_ps(alpha, sums[v]));
                if !tile.bias.is_null() {
                    let bias = tile.bias.wrapping_add(8 * v);
                    value = _mm256_add_ps(value, _mm256_maskload_ps(bias, mask));
                }
                _mm256_maskstore_ps(at, mask, value);
            }
        }
    }
}

/// # Safety
/// AVX2; at most 16 rows; see [`super::set::LayFn`].
#[target_feature(enable = "avx2")]
unsafe fn transpose(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    for lane in (0..fill).step_by(8) {
        let keep = mask(fill, lane);
        for step in (0..src.cols).step_by(8) {
            let columns = mask(src.cols, step);
            let mut rows = [_mm256_setzero_ps(); 8];
            for (r, row) in rows.iter_mut().enumerate() {
                if lane + r < src.rows {
                    let at = src.at.wrapping_byte_add((lane + r) * src.stride).wrapping_add(step);
                    // SAFETY: the mask keeps the load inside a row of the source.
                    *row = unsafe { _mm256_maskload_ps(at.cast(), columns) };
                }
            }
            let steps = transpose_8(rows);
            for (i, &words) in steps.iter().enumerate().take(src.cols - step) {
                let at = out.wrapping_add((step + i) * pitch + lane);
                // SAFETY: the mask keeps the store inside the `fill` lanes of a step that exists.
                unsafe { _mm256_maskstore_ps(at.cast(), keep, words) };
            }
        }
    }
}

/// Transposes 8 x 8 words: pairs, then quads within 128 bits, then the 128-bit parts.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
    let mut a = rows;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Within 128-bit part `p`, `b[4 g + c]` holds column `4 p + c` of rows `4 g .. 4 g + 4`.
    let mut b = a;
    for g in 0..2 {
        b[4 * g] = _mm256_shuffle_ps::<0x44>(a[4 * g], a[4 * g + 2]);
        b[4 * g + 1] = _mm256_shuffle_ps::<0xee>(a[4 * g], a[4 * g + 2]);
        b[4 * g + 2] = _mm256_shuffle_ps::<0x44>(a[4 * g + 1], a[4 * g + 3]);
        b[4 * g + 3] = _mm256_shuffle_ps::<0xee>(a[4 * g + 1], a[4 * g + 3]);
    }
    let mut out = b;
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[4 + c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(b[c], b[4 + c]);
    }
    out
}

/// # Safety
/// AVX2; see [`super::set::LayFn`].
#[target_feature(enable = "avx2")]
unsafe fn copy(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    for lane in (0..fill).step_by(8) {
        let (read, write) = (mask(src.cols, lane), mask(fill, lane));
        for row in 0..src.rows {
            let from = src.at.wrapping_byte_add(row * src.stride).wrapping_add(lane);
            // SAFETY: the masks keep the load inside the source row and the store inside the panel's row.
            unsafe {
                let words = _mm256_maskload_ps(from.cast(), read);
                _mm256_maskstore_ps(out.wrapping_add(row * pitch + lane).cast(), write, words);
            }
        }
    }
}
