//! Kernel sets: for one instruction set, the tiles and the packing steps that feed them.
//!
//! A packed factor is made of *words*, 32 bits a step of `k`: an f32, or two bf16 (`k` even low, `k` odd high) in the
//! sets with `pairs`. Left panels are `[words][rows of the panel]`, or the other way round in the sets with
//! `left_by_lane`; right panels are `[words][nr]`.
#![expect(unsafe_code, reason = "tiles are called through pointers")]

use super::Compute;
use half::bf16;

/// Where a tile's sums go.
pub(super) struct Tile {
    /// First element in `C`.
    pub(super) c: *mut f32,
    /// Elements from one row of `C` to the next.
    pub(super) stride: usize,
    /// Columns that exist, at most `nr`.
    pub(super) cols: usize,
    /// Multiplies each sum before it is added.
    pub(super) alpha: f32,
    /// Adds to what is in `C`; otherwise to `+0.0`.
    pub(super) load: bool,
    /// `cols` values added last, or null.
    pub(super) bias: *const f32,
}

/// Right panels: packed, or full panels of a matrix where it is stored.
#[derive(Clone, Copy)]
pub(super) struct Right {
    /// First word of the first panel.
    pub(super) at: *const u32,
    /// Words from one step to the next.
    pub(super) step: usize,
    /// Words from one panel to the next.
    pub(super) panel: usize,
}

/// Sums `words` steps of a left and a right panel (whose steps are `step` words apart) from zero and adds the result
/// to `C`.
///
/// Safety: the set's instructions exist; the panels hold `words` steps; `C` and the bias are valid for the tile.
pub(super) type TileFn = unsafe fn(words: usize, a: *const u32, b: *const u32, step: usize, tile: &Tile);

/// Multiplies one left panel of `rows` rows with all right panels of a block; `strip.cols` counts all columns.
///
/// Safety: as for [`TileFn`].
pub(super) type StripFn = unsafe fn(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile);

/// Goes on with the sums of at most [`THIN_ROWS`] rows and 16 columns: `src` holds the next words of the columns, one
/// source row each, `a` those of the left panel, `sums` 16 sums a row. The order is the tiles'.
///
/// Safety: the set's instructions exist; source, left panel and sums are valid.
pub(super) type ThinFn = unsafe fn(rows: usize, src: Words, a: *const u32, sums: &mut [[f32; 16]; THIN_ROWS]);

/// Most rows of a product that goes without right panels.
pub(super) const THIN_ROWS: usize = 8;

impl Tile {
    /// The part of a strip that starts at column `col` and is at most `nr` wide.
    pub(super) fn part(&self, col: usize, nr: usize) -> Tile {
        Tile {
            c: self.c.wrapping_add(col),
            cols: nr.min(self.cols - col),
            bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(col) },
            ..*self
        }
    }
}

impl Tile {
    /// `C = (C or 0) + alpha * sums (+ bias)` for the tile's first row.
    ///
    /// # Safety
    /// `C` and the bias are valid for the row.
    pub(super) unsafe fn finish(&self, sums: &[f32]) {
        for (j, &sum) in sums.iter().enumerate().take(self.cols) {
            // SAFETY: column `j < cols` of the tile is in `C`; a bias that is not null has `cols` values.
            unsafe {
                let at = self.c.add(j);
                let mut value = (if self.load { *at } else { 0.0 }) + self.alpha * sum;
                if !self.bias.is_null() {
                    value += *self.bias.add(j);
                }
                *at = value;
            }
        }
    }
}

/// A strip by one tile after the other; `tiles` and `narrow` by number of rows, less one, `narrow` for at most half
/// of the `nr` columns.
///
/// # Safety
/// See [`StripFn`].
#[inline(always)]
pub(super) unsafe fn strip_of_tiles(
    (tiles, narrow, nr): (&[TileFn], &[TileFn], usize),
    (rows, words): (usize, usize),
    a: *const u32,
    right: Right,
    strip: &Tile,
) {
    for col in (0..strip.cols).step_by(nr) {
        let tile = strip.part(col, nr);
        let tiles = if tile.cols <= nr / 2 { narrow } else { tiles };
        // SAFETY: forwarded contract.
        unsafe { tiles[rows - 1](words, a, right.at.wrapping_add(col / nr * right.panel), right.step, &tile) };
    }
}

/// A matrix of words to be laid into a panel.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// First word; need not be aligned.
    pub(super) at: *const u32,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) cols: usize,
}

/// Lays words into a panel whose rows are `pitch` words apart; where the source has less than `fill`, zeros.
///
/// Safety: the set's instructions exist; the source is readable and the panel writable in its whole size.
pub(super) type LayFn = unsafe fn(src: Words, out: *mut u32, pitch: usize, fill: usize);

/// The kernels of one instruction set.
pub struct KernelSet {
    /// The instruction set, for reports.
    pub name: &'static str,
    /// Rows of the tallest tile.
    pub(super) mr: usize,
    /// Columns of a right panel.
    pub(super) nr: usize,
    /// A word is two bf16 factors.
    pub(super) pairs: bool,
    /// Left panels hold one row after the other.
    pub(super) left_by_lane: bool,
    /// Panels are filled with zeros to a multiple of this many words.
    pub(super) word_unit: usize,
    pub(super) strip: StripFn,
    /// For few rows, if there is one: every right factor is used but once, so panels do not pay.
    pub(super) thin: Option<ThinFn>,
    /// `out[i][j] = src[j][i]`, for at most 16 source rows.
    pub(super) transpose: LayFn,
    /// `out[i][j] = src[i][j]`.
    pub(super) copy: LayFn,
    /// Words of a run of factors, the last one paired with zero when it has no neighbour.
    pub(super) pair_run: unsafe fn(values: &[f32], words: &mut [u32]),
    /// Words of the factors of two steps, lane by lane.
    pub(super) pair_steps: unsafe fn(even: &[f32], odd: &[f32], words: &mut [u32]),
    /// The same of factors that are stored as bf16.
    pub(super) pair_stored: unsafe fn(even: &[bf16], odd: &[bf16], words: &mut [u32]),
    pub(super) available: fn() -> bool,
}

impl KernelSet {
    /// Words that `len` steps of `k` take in a panel.
    pub(super) fn words(&self, len: usize) -> usize {
        self.words_used(len).next_multiple_of(self.word_unit)
    }

    /// The words of these that hold steps.
    pub(super) fn words_used(&self, len: usize) -> usize {
        if self.pairs { len.div_ceil(2) } else { len }
    }
}

const F32: &[&KernelSet] = &[
    #[cfg(target_arch = "x86_64")]
    &super::avx512::F32,
    #[cfg(target_arch = "x86_64")]
    &super::avx2::F32,
    #[cfg(target_arch = "aarch64")]
    &super::neon::F32,
    &super::portable::F32,
];

const BF16: &[&KernelSet] = &[
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    &super::amx::BF16,
    #[cfg(target_arch = "x86_64")]
    &super::avx512::BF16,
    #[cfg(target_arch = "x86_64")]
    &super::avx512::F32,
    #[cfg(target_arch = "x86_64")]
    &super::avx2::F32,
    #[cfg(target_arch = "aarch64")]
    &super::neon::F32,
    &super::portable::F32,
];

/// The kernel sets that this machine can run for `compute`, fastest first.
///
/// With [`Compute::BF16`] a set without bf16 products rounds the factors to bf16 and multiplies them in f32.
pub fn kernel_sets(compute: Compute) -> impl Iterator<Item = &'static KernelSet> {
    let sets = match compute {
        Compute::F32 => F32,
        Compute::BF16 => BF16,
    };
    sets.iter().copied().filter(|set| (set.available)())
}
