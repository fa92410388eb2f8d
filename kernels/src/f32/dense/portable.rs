//! Tiles in plain Rust, for machines without a set of their own: products are rounded before they are added.
//! Rows are summed one after the other: sixteen sums are what compilers keep in registers everywhere.
#![expect(unsafe_code, reason = "tiles and packing work on raw panels, like the SIMD sets")]

use super::set::{KernelSet, Right, Tile, TileFn, Words, strip_of_tiles};
use half::bf16;

const NR: usize = 16;

pub(super) static F32: KernelSet = KernelSet {
    name: "portable",
    mr: 4,
    nr: NR,
    pairs: false,
    left_by_lane: false,
    word_unit: 1,
    strip,
    thin: None,
    transpose,
    copy,
    pair_run,
    pair_steps,
    pair_stored,
    available: || true,
};

const TILES: [TileFn; 4] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>];

/// # Safety
/// See [`super::set::StripFn`].
unsafe fn strip(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    // SAFETY: forwarded contract.
    unsafe { strip_of_tiles((&TILES, &TILES, NR), (rows, words), a, right, strip) }
}

/// # Safety
/// See [`TileFn`].
unsafe fn tile<const R: usize>(words: usize, a: *const u32, b: *const u32, step: usize, tile: &Tile) {
    for r in 0..R {
        let mut sums = [0.0f32; NR];
        for word in 0..words {
            // SAFETY: the panels hold `words` steps of `R` and of `NR` words (contract of `TileFn`).
            let (a, b) = unsafe { (*a.add(word * R + r).cast::<f32>(), &*b.add(word * step).cast::<[f32; NR]>()) };
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        let row = Tile { c: tile.c.wrapping_add(r * tile.stride), ..*tile };
        // SAFETY: row `r < R` of the tile is in `C` (contract of `TileFn`).
        unsafe { row.finish(&sums) };
    }
}

/// # Safety
/// See [`super::set::LayFn`].
pub(super) unsafe fn transpose(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    for step in 0..src.cols {
        for lane in 0..fill {
            // SAFETY: `lane < rows` and `step < cols` are inside the source, `lane < fill` inside the panel.
            unsafe {
                let word = match lane < src.rows {
                    true => src.at.byte_add(lane * src.stride).add(step).read_unaligned(),
                    false => 0,
                };
                *out.add(step * pitch + lane) = word;
            }
        }
    }
}

/// # Safety
/// See [`super::set::LayFn`].
pub(super) unsafe fn copy(src: Words, out: *mut u32, pitch: usize, fill: usize) {
    for step in 0..src.rows {
        // SAFETY: a source row has `cols` words, a panel step room for `fill >= cols`.
        unsafe {
            let to = out.add(step * pitch);
            core::ptr::copy_nonoverlapping(src.at.byte_add(step * src.stride).cast::<u8>(), to.cast(), src.cols * 4);
            core::ptr::write_bytes(to.add(src.cols), 0, fill - src.cols);
        }
    }
}

/// The bits of `value` rounded to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
pub(super) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// # Safety
/// None; the signature is the SIMD sets'.
pub(super) unsafe fn pair_run(values: &[f32], words: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (word, &[even, odd]) in words.iter_mut().zip(pairs) {
        *word = bf16_bits(even) | bf16_bits(odd) << 16;
    }
    if let [last] = rest {
        words[pairs.len()] = bf16_bits(*last);
    }
}

/// # Safety
/// None; the signature is the SIMD sets'.
pub(super) unsafe fn pair_steps(even: &[f32], odd: &[f32], words: &mut [u32]) {
    for ((word, &even), &odd) in words.iter_mut().zip(even).zip(odd) {
        *word = bf16_bits(even) | bf16_bits(odd) << 16;
    }
}

/// # Safety
/// None; the signature is the SIMD sets'.
pub(super) unsafe fn pair_stored(even: &[bf16], odd: &[bf16], words: &mut [u32]) {
    for ((word, &even), &odd) in words.iter_mut().zip(even).zip(odd) {
        *word = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
    }
}
