//! NEON tiles: 12 rows by 8 columns, two vectors a row.
//!
//! The 24 sums, the two vectors and the broadcasts fit the 32 registers.
#![expect(unsafe_code, reason = "SIMD")]

use super::portable;
use super::set::{KernelSet, Right, Tile, TileFn, strip_of_tiles};
use core::arch::aarch64::*;

const NR: usize = 8;

macro_rules! rows {
    ($tile:ident, $vectors:literal) => {
        [
            $tile::<1, $vectors> as TileFn,
            $tile::<2, $vectors>,
            $tile::<3, $vectors>,
            $tile::<4, $vectors>,
            $tile::<5, $vectors>,
            $tile::<6, $vectors>,
            $tile::<7, $vectors>,
            $tile::<8, $vectors>,
            $tile::<9, $vectors>,
            $tile::<10, $vectors>,
            $tile::<11, $vectors>,
            $tile::<12, $vectors>,
        ]
    };
}

pub(super) static F32: KernelSet = KernelSet {
    name: "neon",
    mr: 12,
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
    pair_stored: portable::pair_stored,
    available: || true,
};

/// # Safety
/// See [`super::set::StripFn`].
unsafe fn strip(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    // SAFETY: forwarded contract.
    unsafe { strip_of_tiles((&rows!(tile, 2), &rows!(tile, 1), NR), (rows, words), a, right, strip) }
}

/// # Safety
/// NEON, which every aarch64 machine has; see [`TileFn`].
#[target_feature(enable = "neon")]
unsafe fn tile<const R: usize, const V: usize>(words: usize, a: *const u32, b: *const u32, step: usize, tile: &Tile) {
    let mut sums = [[vdupq_n_f32(0.0); V]; R];
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    for _ in 0..words {
        // SAFETY: the panels hold `words` steps of `R` and of at least `cols` words (contract of `TileFn`).
        unsafe {
            let mut right = [vdupq_n_f32(0.0); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = vld1q_f32(b.add(4 * v));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = vdupq_n_f32(*a.add(r));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = vfmaq_f32(*sum, left, right);
                }
            }
            a = a.add(R);
            b = b.add(step);
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            let cols = tile.cols.saturating_sub(4 * v).min(4);
            // SAFETY: row `r` of the tile, from column `4 v`, has `cols` columns, and so has the bias.
            unsafe {
                let at = tile.c.wrapping_add(r * tile.stride + 4 * v);
                let old = if tile.load { load(at, cols) } else { vdupq_n_f32(0.0) };
                let mut value = vaddq_f32(old, vmulq_n_f32(sum, tile.alpha));
                if !tile.bias.is_null() {
                    value = vaddq_f32(value, load(tile.bias.wrapping_add(4 * v), cols));
                }
                store(at, cols, value);
            }
        }
    }
}

/// The first `count <= 4` values at `at`; the other lanes are zero.
///
/// # Safety
/// NEON; the values are readable.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load(at: *const f32, count: usize) -> float32x4_t {
    let mut values = [0.0; 4];
    // SAFETY: forwarded contract; `count <= 4`.
    unsafe {
        if count == 4 {
            return vld1q_f32(at);
        }
        core::ptr::copy_nonoverlapping(at, values.as_mut_ptr(), count);
        vld1q_f32(values.as_ptr())
    }
}

/// Stores the first `count <= 4` lanes.
///
/// # Safety
/// NEON; the values are writable.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn store(at: *mut f32, count: usize, value: float32x4_t) {
    let mut values = [0.0; 4];
    // SAFETY: forwarded contract; `count <= 4`.
    unsafe {
        if count == 4 {
            return vst1q_f32(at, value);
        }
        vst1q_f32(values.as_mut_ptr(), value);
        core::ptr::copy_nonoverlapping(values.as_ptr(), at, count);
    }
}
