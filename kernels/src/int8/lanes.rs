//! Sums of neighbouring channels side by side, over a rectangle of two factors.

use super::fma::fma;
use super::{part, part_mut};

/// Channels side by side: what the registers hold, or a vector.
#[cfg(not(feature = "std"))]
pub(crate) const LANES: usize = 8;
/// Channels side by side: what the registers hold, or a vector.
#[cfg(feature = "std")]
pub(crate) const LANES: usize = 16;

/// Where a rectangle begins, and elements from one row or column to the next; backwards by wrapping around.
#[derive(Clone, Copy)]
pub(crate) struct Rect {
    pub(crate) at: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Rect {
    #[inline(always)]
    pub(crate) fn place(&self, row: usize, column: usize) -> usize {
        self.at.wrapping_add(row.wrapping_mul(self.row)).wrapping_add(column.wrapping_mul(self.column))
    }
}

/// Sums that follow each other: `b` is the same for all.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    pub(crate) count: usize,
    /// Elements from one run's `a` to the next one's.
    pub(crate) a_next: usize,
    /// Elements from one run's sums to the next ones.
    pub(crate) sums_next: usize,
}

impl Runs {
    pub(crate) const ONE: Runs = Runs { count: 1, a_next: 0, sums_next: 0 };
}

/// For each run: `sums[t] += sum over the rectangle, row by row, of a[..][t] b[..][t]`. `a` and the sums have `width`
/// elements in each place, `b` has all.
#[inline(always)]
pub(crate) fn add_lanes(
    sums: &mut [f32],
    size: [usize; 2],
    width: usize,
    runs: Runs,
    a: (&[f32], Rect),
    b: (&[f32], Rect),
) {
    #[cfg(all(has_dsp, has_fpu, not(feature = "std")))]
    if width == LANES {
        return super::dsp::add_lanes(sums, size, runs, a, b);
    }
    for run in 0..runs.count {
        let sums = part_mut(sums, run * runs.sums_next, width);
        let mut acc = [0.0; LANES];
        copy(&mut acc, sums);
        for row in 0..size[0] {
            for column in 0..size[1] {
                let at = a.1.place(row, column).wrapping_add(run.wrapping_mul(runs.a_next));
                let (a, b) = (part(a.0, at, width), part(b.0, b.1.place(row, column), LANES));
                if let (Some(a), Some(b)) = (a.first_chunk::<LANES>(), b.first_chunk::<LANES>()) {
                    for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
                        *acc = fma(*a, *b, *acc);
                    }
                } else {
                    for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
                        *acc = fma(*a, *b, *acc);
                    }
                }
            }
        }
        copy(sums, &acc);
    }
}

#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
