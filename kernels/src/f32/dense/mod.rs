//! Packed dense products `C = op(A) op(B)`, in f32 or with bf16 factors and f32 sums.

mod chunk;
mod drive;
mod pack;
mod portable;
mod set;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use set::{KernelSet, kernel_sets};

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

/// Bytes of scratch that [`gemm`] needs for a product of this shape on `threads` workers, on any machine.
pub fn gemm_scratch_bytes(m: usize, n: usize, k: usize, compute: Compute, threads: usize) -> usize {
    if m == 0 || n == 0 || k == 0 {
        return 0;
    }
    4 * drive::Layout::new(m, n, k, compute).words(threads.max(1)) + ALIGN
}

/// Scratch is used from the first cache line's border.
const ALIGN: usize = 64;

/// Computes `g` into `c`, whose rows are `c_stride` elements apart.
///
/// Every element's sum runs over `k` in an order fixed by `k` and `k_segment` alone: not by `m`, `n`, the number
/// of threads or the scratch. A segment is cut into chunks of at most 512 steps; a chunk is summed from zero,
/// multiplied by `alpha` and added to `C`, one chunk after the other. With `accumulate == false` the first one is
/// added to `+0.0`. The bias comes last.
///
/// Panics when a matrix, `c`, the bias or `scratch` ([`gemm_scratch_bytes`]) is smaller than the shapes say.
pub fn gemm(par: &Par, g: &Gemm, c: &mut [f32], c_stride: usize, scratch: &mut [u8]) {
    let set = kernel_sets(g.compute).next().expect("the portable set is always there");
    gemm_on(set, par, g, c, c_stride, scratch);
}

/// [`gemm`] with one of [`kernel_sets`], for tests and reports. Sets differ in the last bits.
pub fn gemm_on(set: &'static KernelSet, par: &Par, g: &Gemm, c: &mut [f32], c_stride: usize, scratch: &mut [u8]) {
    let (m, n, k) = g.shape();
    let b_steps = if g.b_trans { g.b.cols } else { g.b.rows };
    assert_eq!(k, b_steps, "the factors' inner sizes");
    g.a.check("the left factor");
    g.b.check("the right factor");
    if m == 0 || n == 0 {
        return;
    }
    assert!(c_stride >= n && c.len() >= (m - 1) * c_stride + n, "C is smaller than {m} x {n}");
    assert!(g.bias.is_none_or(|bias| bias.len() >= n), "the bias is shorter than {n}");
    if k == 0 {
        return empty_sum(g, c, c_stride, n);
    }
    let head = scratch.as_ptr().align_offset(ALIGN).min(scratch.len());
    let words = scratch[head..].len() / 4 * 4;
    let words = bytemuck::cast_slice_mut(&mut scratch[head..head + words]);
    drive::run(par, set, g, c, c_stride, words);
}

/// What a matrix stores from element `at` on; nothing behind its last row.
fn from<T>(data: &[T], at: usize) -> &[T] {
    &data[at.min(data.len())..]
}

/// The product over no step at all.
fn empty_sum(g: &Gemm, c: &mut [f32], c_stride: usize, n: usize) {
    let (m, ..) = g.shape();
    for row in c.chunks_mut(c_stride).take(m) {
        for (j, value) in row[..n].iter_mut().enumerate() {
            let old = if g.accumulate { *value } else { 0.0 };
            *value = g.bias.map_or(old, |bias| old + bias[j]);
        }
    }
}

impl<'a> Mat<'a> {
    /// The rows `first..first + rows`.
    ///
    /// Panics when there are not so many.
    pub(crate) fn rows_from(&self, first: usize, rows: usize) -> Mat<'a> {
        assert!(first + rows <= self.rows, "rows {first}..{} of {}", first + rows, self.rows);
        let data = match self.data {
            MatData::F32(data) => MatData::F32(from(data, first * self.stride)),
            MatData::BF16(data) => MatData::BF16(from(data, first * self.stride)),
            MatData::F16(data) => MatData::F16(from(data, first * self.stride)),
            MatData::Blocks(dtype, bytes) => {
                let row_bytes = self.cols / dtype.block_elems() as usize * dtype.block_bytes() as usize;
                MatData::Blocks(dtype, from(bytes, first * row_bytes))
            }
        };
        Mat { data, rows, ..*self }
    }

    fn check(&self, name: &str) {
        assert!(self.stride >= self.cols, "{name}: the stride {} is below the {} columns", self.stride, self.cols);
        let elems = match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.cols,
        };
        let stored = match self.data {
            MatData::F32(data) => data.len(),
            MatData::BF16(data) => data.len(),
            MatData::F16(data) => data.len(),
            MatData::Blocks(dtype, bytes) => {
                assert!(dtype.is_quantised(), "{name}: {} is not a block format", dtype.name());
                assert_eq!(self.stride, self.cols, "{name}: rows of blocks are contiguous");
                assert!(self.cols.is_multiple_of(dtype.block_elems() as usize), "{name}: rows are whole blocks");
                bytes.len() / dtype.block_bytes() as usize * dtype.block_elems() as usize
            }
        };
        assert!(stored >= elems, "{name}: {stored} elements stored, {} x {} needed", self.rows, self.cols);
    }
}
