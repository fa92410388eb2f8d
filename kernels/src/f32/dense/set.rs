//! Kernel sets: for one instruction set, the tiles and the packing steps that feed them.
//!
//! A packed factor is a row of *words*, one 32-bit word a step of `k`: an f32, or two bf16 (`k` even low, `k` odd
//! high) in the sets with `pairs`. Left panels are `[words][rows of the panel]`, right panels `[words][nr]`.

use super::Compute;

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

/// Sums `words` steps of a left and a right panel from zero and adds the result to `C`.
///
/// Safety: the set's instructions exist; the panels hold `words` steps; `C` and the bias are valid for the tile.
pub(super) type TileFn = unsafe fn(words: usize, a: *const u32, b: *const u32, tile: &Tile);

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

/// Lays words into a panel whose steps are `lanes` words apart.
///
/// Safety: the set's instructions exist; the source is readable and the panel writable in its whole size.
pub(super) type LayFn = unsafe fn(src: Words, out: *mut u32, lanes: usize, fill: usize);

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
    /// Tiles by number of rows, less one; `nr` columns wide.
    pub(super) tiles: &'static [TileFn],
    /// The same for at most `nr / 2` columns.
    pub(super) narrow: &'static [TileFn],
    /// Source rows become panel lanes (at most 16 rows); lanes from there to `fill` are zeroed.
    pub(super) transpose: LayFn,
    /// Source rows become panel steps; lanes from `cols` to `fill` are zeroed.
    pub(super) copy: LayFn,
    pub(super) available: fn() -> bool,
}

impl KernelSet {
    /// Words that hold `len` steps of `k`.
    pub(super) fn words(&self, len: usize) -> usize {
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
