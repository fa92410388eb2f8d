//! Tiles of queries into lanes and back: transpositions of sixteen rows by sixteen columns.

use super::{Attention, QUERIES, QueryTile};
use crate::f32::parts::Tile;
use crate::f32::row::{load_any, row_sum};
use crate::f32::simd::{self, Kernel, LANES, Simd};

/// `out[d, i] = factor * x[i, d]` for the tile's queries; zero where there is none.
pub(super) fn gather(dims: &Attention, tile: &QueryTile, x: &[f32], factor: f32, out: &mut [f32]) {
    let x = &x[tile.query_offset(dims)..];
    simd::dispatch(Gather { x, stride: dims.q_cols(), rows: tile.count, cols: dims.head_dim, factor, out });
}

/// Sixteen vectors, to be transposed.
#[inline(always)]
fn block<S: Simd>(s: S) -> [S::V; LANES] {
    [s.zero(); LANES]
}

struct Gather<'a> {
    x: &'a [f32],
    stride: usize,
    rows: usize,
    cols: usize,
    factor: f32,
    out: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.splat(self.factor);
        let (out, _) = self.out.as_chunks_mut::<LANES>();
        for first in (0..QUERIES).step_by(LANES) {
            for col in (0..self.cols).step_by(LANES) {
                let mut lanes = block(s);
                for (i, lane) in lanes.iter_mut().enumerate().take(self.rows.saturating_sub(first)) {
                    let row = &self.x[(first + i) * self.stride..][..self.cols];
                    *lane = load_any(s, row, col);
                }
                for (d, v) in s.transpose(lanes).into_iter().enumerate().take(self.cols - col) {
                    s.store(s.mul(v, factor), &mut out[((col + d) * QUERIES + first) / LANES]);
                }
            }
        }
    }
}

/// `out[i, d] = factors[i] * x[d, i]`, for the rows of `out`.
pub(super) struct Scatter<'a, 'o> {
    pub(super) x: &'a [f32],
    pub(super) factors: &'a [f32; QUERIES],
    pub(super) out: &'a mut Tile<'o, f32>,
}

impl Kernel for Scatter<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, _) = self.x.as_chunks::<LANES>();
        let (rows, cols) = (self.out.rows(), self.out.cols());
        for first in (0..rows).step_by(LANES) {
            for col in (0..cols).step_by(LANES) {
                let mut lanes = block(s);
                for (d, lane) in lanes.iter_mut().enumerate().take(cols - col) {
                    *lane = s.load(&x[((col + d) * QUERIES + first) / LANES]);
                }
                for (i, v) in s.transpose(lanes).into_iter().enumerate().take(rows - first) {
                    let v = s.mul(v, s.splat(self.factors[first + i]));
                    crate::f32::row::store_any(s, v, self.out.row(first + i), col);
                }
            }
        }
    }
}

/// `out[i] = sum over d of a[i, d] b[i, d]` for `rows` rows of `cols` elements, `stride` apart.
pub(super) struct RowDots<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) out: &'a mut [f32; QUERIES],
}

impl Kernel for RowDots<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.iter_mut().enumerate().take(self.rows) {
            let part = i * self.stride..i * self.stride + self.cols;
            let (a, b) = (&self.a[part.clone()], &self.b[part]);
            *out = row_sum!(s, (a => a, b => b), self.cols, |sum| s.fma(a, b, sum));
        }
    }
}
