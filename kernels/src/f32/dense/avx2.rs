//! AVX2 tiles with fused multiply-add: 6 rows by 16 columns, two vectors a row.
//!
//! The 12 sums, the two vectors and the broadcast fill 15 of the 16 registers.
#![expect(unsafe_code, reason = "SIMD")]

use super::portable;
use super::set::{KernelSet, Right, Tile, TileFn, strip_of_tiles};
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
    transpose: portable::transpose,
    copy: portable::copy,
    pair_run: portable::pair_run,
    pair_steps: portable::pair_steps,
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
