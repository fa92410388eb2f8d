//! Packed dense products `C = op(A) op(B)`, in f32 or with bf16 factors and f32 sums.

use crate::par::Par;
use half::{bf16, f16};
use tinyforge_plan::DType;

/// The elements of a stored matrix.
#[derive(Clone, Copy)]
pub enum MatData<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// IEEE half.
    F16(&'a [f16]),
    /// GGML blocks of this format; rows are contiguous.
    Blocks(DType, &'a [u8]),
}

/// A stored matrix, row-major, `rows x cols`, with `stride` elements from one row to the next
/// (`stride == cols` for block formats).
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The elements.
    pub data: MatData<'a>,
    /// Stored rows.
    pub rows: usize,
    /// Stored columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// The number type in which factors enter the products. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Factors in f32.
    F32,
    /// Factors rounded to bf16 (nearest even) while packing.
    BF16,
}

/// One dense product: `C[m,n] (+)= alpha * op(A)[m,k] op(B)[k,n] (+ bias[n])`.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// Left factor; stored `m x k`, or `k x m` when `a_trans`.
    pub a: Mat<'a>,
    /// Whether `A` is stored transposed.
    pub a_trans: bool,
    /// Right factor; stored `k x n`, or `n x k` when `b_trans` (a linear layer's weight).
    pub b: Mat<'a>,
    /// Whether `B` is stored transposed.
    pub b_trans: bool,
    /// Number type of the factors.
    pub compute: Compute,
    /// Factor of the product.
    pub alpha: f32,
    /// Added to every row of the result, `n` long.
    pub bias: Option<&'a [f32]>,
    /// Adds to `C` instead of replacing it.
    pub accumulate: bool,
    /// The sum over `k` runs in segments of this length (the tokens of one packed row): each segment is summed
    /// from zero, then added to `C`, in order. `None` is one segment.
    pub k_segment: Option<usize>,
}

impl Gemm<'_> {
    /// `(m, n, k)` of the product.
    pub fn shape(&self) -> (usize, usize, usize) {
        let (m, k) = if self.a_trans { (self.a.cols, self.a.rows) } else { (self.a.rows, self.a.cols) };
        (m, if self.b_trans { self.b.rows } else { self.b.cols }, k)
    }
}

/// Bytes of scratch that [`gemm`] needs for a product of this shape on `threads` workers.
pub fn gemm_scratch_bytes(m: usize, n: usize, k: usize, compute: Compute, threads: usize) -> usize {
    let _ = (m, n, k, compute, threads);
    0
}

/// Computes `g` into `c`, whose rows are `c_stride` elements apart.
///
/// Every element's sum runs over `k` in an order fixed by `k` and `k_segment` alone: not by `m`, `n`, the number
/// of threads or the scratch. With `accumulate == false` the first segment is added to `+0.0`.
pub fn gemm(par: &Par, g: &Gemm, c: &mut [f32], c_stride: usize, scratch: &mut [u8]) {
    let _ = (par, g, c, c_stride, scratch);
    unimplemented!("being written")
}
