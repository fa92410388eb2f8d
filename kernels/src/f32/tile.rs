//! Small products whose operands lie in cache: the inner loops of attention and convolution.
//!
//! ```text
//! for m, for n { c[m, n] = start; for k in order { c[m, n] = fma(a[m, k], b[k, n], c[m, n]) } }
//! ```
//! Rows of `b` and `c` are contiguous and go in lanes; `a` is broadcast, from any strides, so nothing is packed or
//! transposed. An element is one chain of fused multiply-adds in the order of `k`: a product over `k` cut in two, the
//! second half started from the first one's result, gives the same bits.
//! Bound: `m n k` multiply-adds at the peak of the registers' blocking (8 x 32 elements, or 4 x 16).
#![expect(unsafe_code, reason = "strided reads in the innermost loop, inside bounds checked at entry")]

use super::parts::Tile;
use super::simd::{Kernel, LANES, Simd};

/// What `c` starts from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Zero.
    Zero,
    /// What is there.
    Keep,
    /// What is there, column `n` multiplied by element `n`.
    Scaled(&'a [f32]),
}

/// One product `c[m, n] = start + sum over k of a[m, k] b[k, n]`, with `m` and `n` of the tile `c`.
pub(crate) struct Product<'a, 'c> {
    /// Left factor: element `(m, k)` at `m * a_row + k * a_col`.
    pub(crate) a: &'a [f32],
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// Right factor: element `(k, n)` at `k * b_row + n`.
    pub(crate) b: &'a [f32],
    pub(crate) b_row: usize,
    /// Length of the sum.
    pub(crate) k: usize,
    pub(crate) start: Start<'a>,
    pub(crate) c: &'a mut Tile<'c, f32>,
}

/// The operands of a block, as pointers.
#[derive(Clone, Copy)]
struct Block<'a> {
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_row: usize,
    k: usize,
    c: *mut f32,
    c_row: usize,
    start: Start<'a>,
    /// First column, for the start's factors.
    n: usize,
}

impl Kernel for Product<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rows, cols) = (self.c.rows(), self.c.cols());
        if rows == 0 || cols == 0 {
            return;
        }
        if self.k > 0 {
            let a_end = (rows - 1) * self.a_row + (self.k - 1) * self.a_col;
            assert!(a_end < self.a.len(), "the left factor ends early");
            assert!((self.k - 1) * self.b_row + cols <= self.b.len(), "the right factor ends early");
        }
        if let Start::Scaled(factors) = self.start {
            assert!(factors.len() >= cols, "a factor for every column");
        }
        let block = Block {
            a: self.a.as_ptr(),
            a_row: self.a_row,
            a_col: self.a_col,
            b: self.b.as_ptr(),
            b_row: self.b_row,
            k: self.k,
            c: self.c.as_mut_ptr(),
            c_row: self.c.stride(),
            start: self.start,
            n: 0,
        };
        let mut row = 0;
        let step = if S::IS_WIDE { 8 } else { 4 };
        while row + step <= rows {
            if S::IS_WIDE {
                stripe::<S, 8, 2>(s, block.rows_from(row), cols);
            } else {
                stripe::<S, 4, 1>(s, block.rows_from(row), cols);
            }
            row += step;
        }
        while row < rows {
            stripe::<S, 1, 2>(s, block.rows_from(row), cols);
            row += 1;
        }
    }
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn rows_from(self, row: usize) -> Self {
        Block { a: self.a.wrapping_add(row * self.a_row), c: self.c.wrapping_add(row * self.c_row), ..self }
    }

    #[inline(always)]
    fn cols_from(self, n: usize) -> Self {
        Block { b: self.b.wrapping_add(n), c: self.c.wrapping_add(n), n, ..self }
    }
}

/// `ROWS` rows of all columns.
#[inline(always)]
fn stripe<S: Simd, const ROWS: usize, const VECTORS: usize>(s: S, block: Block, cols: usize) {
    let mut n = 0;
    while n + VECTORS * LANES <= cols {
        whole::<S, ROWS, VECTORS>(s, block.cols_from(n));
        n += VECTORS * LANES;
    }
    while n + LANES <= cols {
        whole::<S, ROWS, 1>(s, block.cols_from(n));
        n += LANES;
    }
    if n < cols {
        tail::<S, ROWS>(s, block.cols_from(n), cols - n);
    }
}

/// `ROWS x VECTORS * LANES` elements.
#[inline(always)]
fn whole<S: Simd, const ROWS: usize, const VECTORS: usize>(s: S, g: Block) {
    let mut sums = [[s.zero(); VECTORS]; ROWS];
    if !matches!(g.start, Start::Zero) {
        for (i, row) in sums.iter_mut().enumerate() {
            for (j, sum) in row.iter_mut().enumerate() {
                // SAFETY: the block lies inside the tile `c`.
                *sum = s.load(unsafe { &*g.c.add(i * g.c_row + j * LANES).cast() });
                if let Start::Scaled(factors) = g.start {
                    // SAFETY: there are factors for all columns of the tile.
                    *sum = s.mul(*sum, s.load(unsafe { &*factors.as_ptr().add(g.n + j * LANES).cast() }));
                }
            }
        }
    }
    for k in 0..g.k {
        let mut b = [s.zero(); VECTORS];
        for (j, b) in b.iter_mut().enumerate() {
            // SAFETY: row `k < g.k` of the right factor holds the block's columns, checked at entry.
            *b = s.load(unsafe { &*g.b.add(k * g.b_row + j * LANES).cast() });
        }
        for (i, row) in sums.iter_mut().enumerate() {
            // SAFETY: element `(i, k)` of the left factor, checked at entry.
            let a = s.splat(unsafe { *g.a.add(i * g.a_row + k * g.a_col) });
            for (sum, b) in row.iter_mut().zip(b) {
                *sum = s.fma(a, b, *sum);
            }
        }
    }
    for (i, row) in sums.iter().enumerate() {
        for (j, &sum) in row.iter().enumerate() {
            // SAFETY: the block lies inside the tile `c`.
            s.store(sum, unsafe { &mut *g.c.add(i * g.c_row + j * LANES).cast() });
        }
    }
}

/// `ROWS` rows of the last `width < LANES` columns.
#[inline(always)]
fn tail<S: Simd, const ROWS: usize>(s: S, g: Block, width: usize) {
    let mut sums = [s.zero(); ROWS];
    if !matches!(g.start, Start::Zero) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the block lies inside the tile `c`.
            *sum = s.load_tail(unsafe { core::slice::from_raw_parts(g.c.add(i * g.c_row), width) });
            if let Start::Scaled(factors) = g.start {
                *sum = s.mul(*sum, s.load_tail(&factors[g.n..g.n + width]));
            }
        }
    }
    for k in 0..g.k {
        // SAFETY: row `k < g.k` of the right factor holds the block's columns, checked at entry.
        let b = s.load_tail(unsafe { core::slice::from_raw_parts(g.b.add(k * g.b_row), width) });
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: element `(i, k)` of the left factor, checked at entry.
            *sum = s.fma(s.splat(unsafe { *g.a.add(i * g.a_row + k * g.a_col) }), b, *sum);
        }
    }
    for (i, &sum) in sums.iter().enumerate() {
        // SAFETY: the block lies inside the tile `c`.
        s.store_tail(sum, unsafe { core::slice::from_raw_parts_mut(g.c.add(i * g.c_row), width) });
    }
}
