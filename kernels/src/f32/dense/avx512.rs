//! AVX-512 tiles: 14 rows by 32 columns, two vectors a row, in f32 and with bf16 pairs.
//!
//! A step of `k` costs two vector loads, 14 broadcasts and 28 multiply-adds, so the two multiply-add ports are
//! the bound; the 28 sums, the two vectors and the broadcast fill 31 of the 32 registers.
#![expect(unsafe_code, reason = "SIMD")]

use super::portable;
use super::set::{KernelSet, Right, THIN_ROWS, Tile, TileFn, Words, strip_of_tiles};
use core::arch::x86_64::*;
use half::bf16;

const NR: usize = 32;

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
            $tile::<13, $vectors>,
            $tile::<14, $vectors>,
        ]
    };
}

pub(super) static F32: KernelSet = KernelSet {
    name: "avx512",
    mr: 14,
    nr: NR,
    pairs: false,
    left_by_lane: false,
    word_unit: 1,
    strip,
    thin: Some(thin),
    transpose,
    copy,
    pair_run: portable::pair_run,
    pair_steps: portable::pair_steps,
    pair_stored: portable::pair_stored,
    available: || is_x86_feature_detected!("avx512f"),
};

pub(super) static BF16: KernelSet = KernelSet {
    name: "avx512bf16",
    mr: 14,
    nr: NR,
    pairs: true,
    left_by_lane: false,
    word_unit: 1,
    strip: strip_of_pairs,
    thin: Some(thin_pairs),
    transpose,
    copy,
    pair_run,
    pair_steps,
    pair_stored,
    available: || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
};

/// # Safety
/// See [`super::set::StripFn`].
unsafe fn strip(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    // SAFETY: forwarded contract.
    unsafe { strip_of_tiles((&rows!(tile, 2), &rows!(tile, 1), NR), (rows, words), a, right, strip) }
}

/// # Safety
/// See [`super::set::StripFn`].
unsafe fn strip_of_pairs(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    // SAFETY: forwarded contract.
    unsafe { strip_of_tiles((&rows!(pair_tile, 2), &rows!(pair_tile, 1), NR), (rows, words), a, right, strip) }
}

/// Lanes below `count` of the vector that starts at lane `from`.
fn mask(count: usize, from: usize) -> __mmask16 {
    match count.saturating_sub(from) {
        left @ 0..16 => (1 << left) - 1,
        _ => !0,
    }
}

/// # Safety
/// AVX-512F; see [`TileFn`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize, const V: usize>(words: usize, a: *const u32, b: *const u32, step: usize, tile: &Tile) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    for _ in 0..words {
        // SAFETY: the panels hold `words` steps of `R` and of at least `cols` words (contract of `TileFn`).
        unsafe {
            let mut right = [_mm512_setzero_ps(); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_ps(b.add(16 * v));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*a.add(r));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_fmadd_ps(left, right, *sum);
                }
            }
            a = a.add(R);
            b = b.add(step);
        }
    }
    for (r, &sums) in sums.iter().enumerate() {
        // SAFETY: row `r` is one of the tile's.
        unsafe { finish(sums, tile, r) }
    }
}

/// # Safety
/// AVX-512F and AVX512-BF16; see [`TileFn`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair_tile<const R: usize, const V: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
    step: usize,
    tile: &Tile,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (a.cast::<i32>(), b.cast::<i32>());
    for _ in 0..words {
        // SAFETY: the panels hold `words` steps of `R` and of at least `cols` words (contract of `TileFn`); any 512
        // bits are a vector of bf16.
        unsafe {
            let mut right = [_mm512_setzero_si512(); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_epi32(b.add(16 * v));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_epi32(*a.add(r));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        core::mem::transmute::<__m512i, __m512bh>(left),
                        core::mem::transmute::<__m512i, __m512bh>(right),
                    );
                }
            }
            a = a.add(R);
            b = b.add(step);
        }
    }
    for (r, &sums) in sums.iter().enumerate() {
        // SAFETY: row `r` is one of the tile's.
        unsafe { finish(sums, tile, r) }
    }
}

/// One step of sixteen columns.
///
/// # Safety
/// AVX-512F; `a` is readable.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn multiply(sum: __m512, a: *const u32, words: __m512i) -> __m512 {
    // SAFETY: forwarded contract.
    let left = unsafe { _mm512_set1_ps(*a.cast()) };
    _mm512_fmadd_ps(left, _mm512_castsi512_ps(words), sum)
}

/// One step of sixteen columns, in pairs.
///
/// # Safety
/// AVX-512F and AVX512-BF16; `a` is readable.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn multiply_pairs(sum: __m512, a: *const u32, words: __m512i) -> __m512 {
    // SAFETY: forwarded contract; any 512 bits are a vector of bf16.
    unsafe {
        let left = _mm512_set1_epi32(*a.cast());
        _mm512_dpbf16_ps(
            sum,
            core::mem::transmute::<__m512i, __m512bh>(left),
            core::mem::transmute::<__m512i, __m512bh>(words),
        )
    }
}

macro_rules! thin {
    ($name:ident, $multiply:ident, $features:literal) => {
        /// See [`super::set::ThinFn`].
        ///
        /// # Safety
        /// The instruction set is there; the source has at most 16 rows; `a` has `rows` words for each of the source's
        /// columns.
        unsafe fn $name(rows: usize, src: Words, a: *const u32, sums: &mut [[f32; 16]; THIN_ROWS]) {
            #[target_feature(enable = $features)]
            unsafe fn by_rows<const R: usize>(src: Words, a: *const u32, sums: &mut [[f32; 16]; THIN_ROWS]) {
                let mut acc = [_mm512_setzero_ps(); R];
                for (acc, sums) in acc.iter_mut().zip(&*sums) {
                    // SAFETY: sixteen sums.
                    *acc = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
                }
                for step in (0..src.cols).step_by(16) {
                    // SAFETY: forwarded contract; `left` stays below `R` words for each column.
                    unsafe {
                        let steps = load_16(src, step);
                        let left = a.add(step * R);
                        if step + 16 <= src.cols {
                            for i in 0..16 {
                                for r in 0..R {
                                    acc[r] = $multiply(acc[r], left.add(i * R + r), steps[i]);
                                }
                            }
                        } else {
                            for (i, &words) in steps.iter().enumerate().take(src.cols - step) {
                                for r in 0..R {
                                    acc[r] = $multiply(acc[r], left.add(i * R + r), words);
                                }
                            }
                        }
                    }
                }
                for (acc, sums) in acc.iter().zip(sums) {
                    // SAFETY: sixteen sums.
                    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
                }
            }
            // SAFETY: forwarded contract.
            unsafe {
                match rows {
                    1 => by_rows::<1>(src, a, sums),
                    2 => by_rows::<2>(src, a, sums),
                    3 => by_rows::<3>(src, a, sums),
                    4 => by_rows::<4>(src, a, sums),
                    5 => by_rows::<5>(src, a, sums),
                    6 => by_rows::<6>(src, a, sums),
                    7 => by_rows::<7>(src, a, sums),
                    _ => by_rows::<8>(src, a, sums),
                }
            }
        }
    };
}
thin!(thin, multiply, "avx512f");
thin!(thin_pairs, multiply_pairs, "avx512f,avx512bf16");

/// Row `r` of the tile: `C = (C or 0) + alpha * sums (+ bias)`.
///
/// # Safety
/// AVX-512F; see [`TileFn`].
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn finish<const V: usize>(sums: [__m512; V], tile: &Tile, r: usize) {
    let alpha = _mm512_set1_ps(tile.alpha);
    for (v, sum) in sums.into_iter().enumerate() {
        let mask = mask(tile.cols, 16 * v);
        // SAFETY: the mask keeps the accesses inside row `r` of the tile, and inside the bias.
        unsafe {
            let at = tile.c.wrapping_add(r * tile.stride + 16 * v);
            let old = _mm512_maskz_loadu_ps(if tile.load { mask } else { 0 }, at);
            let mut value = _mm512_add_ps(old, _mm512_mul_ps(alpha, sum));
            if !tile.bias.is_null() {
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, tile.bias.wrapping_add(16 * v)));
            }
            _mm512_mask_storeu_ps(at, mask, value);
        }
    }
}

/// # Safety
/// AVX-512F; at most 16 rows; see [`super::set::LayFn`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    let keep = mask(fill, 0);
    let mut step = 0;
    while step < src.cols {
        // SAFETY: forwarded contract.
        let steps = unsafe { load_16(src, step) };
        for (i, &words) in steps.iter().enumerate().take(src.cols - step) {
            // SAFETY: the mask keeps the store inside the `fill` lanes of a step that exists.
            unsafe { _mm512_mask_storeu_epi32(out.add((step + i) * pitch).cast(), keep, words) };
        }
        step += 16;
    }
}

/// Steps `step..step + 16` of at most 16 source rows, transposed; zeros where there is nothing.
///
/// # Safety
/// AVX-512F; the source is readable.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_16(src: Words, step: usize) -> [__m512i; 16] {
    let columns = mask(src.cols, step);
    let mut rows = [_mm512_setzero_si512(); 16];
    for (r, row) in rows.iter_mut().enumerate() {
        let columns = if r < src.rows { columns } else { 0 };
        let at = src.at.wrapping_byte_add(r * src.stride).wrapping_add(step);
        // SAFETY: the mask keeps the load inside row `r < rows` of the source; nothing is read of other rows.
        *row = unsafe { _mm512_maskz_loadu_epi32(columns, at.cast()) };
    }
    transpose_16(rows)
}

/// Transposes 16 x 16 words: pairs, then quads within 128 bits, then the 128-bit parts.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_16(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Within 128-bit part `p`, `b[4 g + c]` holds column `4 p + c` of rows `4 g .. 4 g + 4`.
    let mut b = a;
    for g in 0..4 {
        b[4 * g] = _mm512_unpacklo_epi64(a[4 * g], a[4 * g + 2]);
        b[4 * g + 1] = _mm512_unpackhi_epi64(a[4 * g], a[4 * g + 2]);
        b[4 * g + 2] = _mm512_unpacklo_epi64(a[4 * g + 1], a[4 * g + 3]);
        b[4 * g + 3] = _mm512_unpackhi_epi64(a[4 * g + 1], a[4 * g + 3]);
    }
    let mut out = b;
    for c in 0..4 {
        let low_01 = _mm512_shuffle_i32x4::<0x44>(b[c], b[4 + c]);
        let high_01 = _mm512_shuffle_i32x4::<0xee>(b[c], b[4 + c]);
        let low_23 = _mm512_shuffle_i32x4::<0x44>(b[8 + c], b[12 + c]);
        let high_23 = _mm512_shuffle_i32x4::<0xee>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low_01, low_23);
        out[4 + c] = _mm512_shuffle_i32x4::<0xdd>(low_01, low_23);
        out[8 + c] = _mm512_shuffle_i32x4::<0x88>(high_01, high_23);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high_01, high_23);
    }
    out
}

/// # Safety
/// AVX-512F; see [`super::set::LayFn`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    for v in 0..fill.div_ceil(16) {
        let (read, write) = (mask(src.cols, 16 * v), mask(fill, 16 * v));
        for step in 0..src.rows {
            // SAFETY: the masks keep the load inside the source row and the store inside the panel's step.
            unsafe {
                let words = _mm512_maskz_loadu_epi32(read, src.at.byte_add(step * src.stride).add(16 * v).cast());
                _mm512_mask_storeu_epi32(out.add(step * pitch + 16 * v).cast(), write, words);
            }
        }
    }
}

/// # Safety
/// AVX-512F and AVX512-BF16. Subnormal values become zero, as they do in the products.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn pair_run(values: &[f32], words: &mut [u32]) {
    assert!(words.len() >= values.len().div_ceil(2));
    for at in (0..values.len()).step_by(32) {
        let (low, high) = (mask(values.len(), at), mask(values.len(), at + 16));
        let write = mask(values.len().div_ceil(2), at / 2);
        // SAFETY: the masks keep the loads inside `values` and the store inside `words`, which is long enough; both
        // vectors are 512 bits.
        unsafe {
            let from = values.as_ptr().wrapping_add(at);
            let low = _mm512_maskz_loadu_ps(low, from);
            let high = _mm512_maskz_loadu_ps(high, from.wrapping_add(16));
            let pairs = core::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(words.as_mut_ptr().wrapping_add(at / 2).cast(), write, pairs);
        }
    }
}

/// # Safety
/// As [`pair_run`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn pair_steps(even: &[f32], odd: &[f32], words: &mut [u32]) {
    assert!(odd.len() == even.len() && words.len() >= even.len());
    for at in (0..even.len()).step_by(16) {
        let mask = mask(even.len(), at);
        // SAFETY: the mask keeps the accesses inside the slices, which are long enough; 16 bf16 are 256 bits.
        unsafe {
            let round = |from: &[f32]| {
                let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.as_ptr().wrapping_add(at)));
                _mm512_cvtepu16_epi32(core::mem::transmute::<__m256bh, __m256i>(rounded))
            };
            let pairs = _mm512_or_si512(round(even), _mm512_slli_epi32::<16>(round(odd)));
            _mm512_mask_storeu_epi32(words.as_mut_ptr().wrapping_add(at).cast(), mask, pairs);
        }
    }
}

/// # Safety
/// AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pair_stored(even: &[bf16], odd: &[bf16], words: &mut [u32]) {
    assert!(odd.len() == even.len() && words.len() >= even.len());
    let whole = even.len() / 16 * 16;
    for at in (0..whole).step_by(16) {
        // SAFETY: sixteen values from `at` on are inside all three slices; 16 bf16 are 256 bits.
        unsafe {
            let wide = |from: &[bf16]| _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().add(at).cast()));
            let pairs = _mm512_or_si512(wide(even), _mm512_slli_epi32::<16>(wide(odd)));
            _mm512_storeu_si512(words.as_mut_ptr().add(at).cast(), pairs);
        }
    }
    // SAFETY: it asks for nothing.
    unsafe { portable::pair_stored(&even[whole..], &odd[whole..], &mut words[whole..]) };
}
