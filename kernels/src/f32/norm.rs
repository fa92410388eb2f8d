//! Root-mean-square and layer normalisation over the last axis.
//!
//! ```text
//! for t in 0..rows { inv = 1 / sqrt(mean(x[t, :]^2) + eps); for c in 0..cols { y[t, c] = x[t, c] * inv * w[c] } }
//! ```
//! A row is one normalised vector; with `groups > 1` a token's row is so many vectors that share the weight (queries
//! and keys normalised head by head). Sums over a row run in four vectors of lanes, fixed by its length.
//! Bound: 8 bytes an element forward, 12 backward, over memory bandwidth.

use super::parts::{Chunks, run_parts};
use super::row::{load_any, row_sum, store_any};
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;

/// Elements of one task.
const TASK_ELEMS: usize = 8 * 1024;
/// Columns of one task of a weight's gradient.
const TASK_COLS: usize = 4 * LANES;

/// What the kernels of the family share.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Elements of a normalised vector: the weight's length.
    pub cols: usize,
    /// Vectors in a token's row; 1 but for head-wise norms.
    pub groups: usize,
    /// Tokens of a packed row; orders the sums of weight gradients.
    pub seq: usize,
    /// Added to the mean square or the variance.
    pub eps: f32,
}

impl Norm {
    /// Vectors in a matrix of `len` elements.
    fn vectors(&self, len: usize) -> usize {
        assert!(self.cols > 0 && len.is_multiple_of(self.cols), "{len} elements are not vectors of {}", self.cols);
        len / self.cols
    }

    /// Elements of whole vectors in a task.
    fn chunk(&self) -> usize {
        (TASK_ELEMS / self.cols).max(1) * self.cols
    }
}

/// Runs `f(x, y, vector)` for every vector of `y`.
fn each_vector(par: &Par, norm: &Norm, y: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let chunk = norm.chunk();
    let tasks = y.len().div_ceil(chunk);
    norm.vectors(y.len());
    run_parts(par, tasks, Chunks::new(y, chunk), |index, y: &mut [f32]| {
        for (i, y) in y.chunks_exact_mut(norm.cols).enumerate() {
            f(index * (chunk / norm.cols) + i, y);
        }
    });
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let sum = row_sum!(s, (x => v), x.len(), |sum| s.fma(v, v, sum));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `y[t, :] = x[t, :] * w / sqrt(mean(x[t, :]^2) + eps)`.
///
/// `x`, `y`: `f32[rows, groups * cols]`; `w[cols]`. `x == None`: `y` holds `x`. Scratch: 0 bytes.
/// Source: Zhang and Sennrich 2019.
pub fn rms_norm(par: &Par, norm: &Norm, x: Option<&[f32]>, w: &[f32], y: &mut [f32]) {
    assert_eq!(w.len(), norm.cols, "the weight's length");
    let cols = norm.cols;
    each_vector(par, norm, y, |i, y| {
        if let Some(x) = x {
            y.copy_from_slice(&x[i * cols..(i + 1) * cols]);
        }
        simd::dispatch(RmsNorm { w, y, eps: norm.eps });
    });
}

struct RmsNorm<'a> {
    w: &'a [f32],
    y: &'a mut [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inverse = s.splat(inverse_rms(s, self.y, self.eps));
        for at in (0..self.y.len()).step_by(LANES) {
            let y = s.mul(s.mul(load_any(s, self.y, at), inverse), load_any(s, self.w, at));
            store_any(s, y, self.y, at);
        }
    }
}

/// `sum = x + r`, `y = rms_norm(sum)`. `x == None`: `sum` holds `x`. Otherwise as [`rms_norm`].
pub fn add_rms_norm(par: &Par, norm: &Norm, x: Option<&[f32]>, r: &[f32], w: &[f32], sum: &mut [f32], y: &mut [f32]) {
    assert_eq!(w.len(), norm.cols, "the weight's length");
    assert_eq!(sum.len(), y.len(), "the outputs differ in length");
    let (chunk, cols) = (norm.chunk(), norm.cols);
    let tasks = y.len().div_ceil(chunk);
    norm.vectors(y.len());
    run_parts(par, tasks, (Chunks::new(sum, chunk), Chunks::new(y, chunk)), |index, (sum, y)| {
        for (i, (sum, y)) in sum.chunks_exact_mut(cols).zip(y.chunks_exact_mut(cols)).enumerate() {
            let start = index * chunk + i * cols;
            if let Some(x) = x {
                sum.copy_from_slice(&x[start..start + cols]);
            }
            sum.iter_mut().zip(&r[start..start + cols]).for_each(|(sum, r)| *sum += r);
            y.copy_from_slice(sum);
            simd::dispatch(RmsNorm { w, y, eps: norm.eps });
        }
    });
}

/// `dx = inv (w dy) - x inv^3 mean(x w dy)`, `inv = 1 / sqrt(mean(x^2) + eps)`; added to `dx` with `accumulate`.
///
/// Shapes as in [`rms_norm`]. `dy == None`: `dx` holds `dy` (not with `accumulate`). Scratch: 0 bytes.
pub fn rms_norm_grad_x(
    par: &Par,
    norm: &Norm,
    x: &[f32],
    w: &[f32],
    dy: Option<&[f32]>,
    dx: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(w.len(), norm.cols, "the weight's length");
    assert!(dy.is_some() || !accumulate, "a gradient cannot be both the input and added to");
    let cols = norm.cols;
    each_vector(par, norm, dx, |i, dx| {
        let part = i * cols..(i + 1) * cols;
        let dy = dy.map(|dy| &dy[part.clone()]);
        simd::dispatch(RmsNormGrad { x: &x[part], w, dy, dx, eps: norm.eps, accumulate });
    });
}

struct RmsNormGrad<'a> {
    x: &'a [f32],
    w: &'a [f32],
    dy: Option<&'a [f32]>,
    dx: &'a mut [f32],
    eps: f32,
    accumulate: bool,
}

impl Kernel for RmsNormGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, w, len) = (self.x, self.w, self.x.len());
        let inverse = inverse_rms(s, x, self.eps);
        let g = self.dy.unwrap_or(self.dx);
        let dot = row_sum!(s, (x => v, w => f, g => d), len, |sum| s.fma(s.mul(d, f), v, sum));
        let pull = s.splat(-(inverse * inverse * inverse) * (dot / len as f32));
        let inverse = s.splat(inverse);
        for at in (0..len).step_by(LANES) {
            let d = load_any(s, self.dy.unwrap_or(self.dx), at);
            let dw = s.mul(d, load_any(s, w, at));
            let mut dx = s.fma(load_any(s, x, at), pull, s.mul(dw, inverse));
            if self.accumulate {
                dx = s.add(load_any(s, self.dx, at), dx);
            }
            store_any(s, dx, self.dx, at);
        }
    }
}

/// Bytes of scratch of [`rms_norm_grad_w`] and [`layer_norm_grad_w`] over `len` elements.
pub fn norm_grad_w_scratch_bytes(norm: &Norm, len: usize, _threads: usize) -> usize {
    2 * piece_bytes::<f32>(len / norm.cols.max(1))
}

/// `dw[c] (+)= sum over t of dy[t, c] x[t, c] inv[t]`, packed row by packed row.
///
/// Shapes as in [`rms_norm`]; a packed row of `seq` tokens is summed from zero and then added to `dw`.
pub fn rms_norm_grad_w(
    par: &Par,
    norm: &Norm,
    x: &[f32],
    dy: &[f32],
    accumulate: bool,
    dw: &mut [f32],
    scratch: &mut [u8],
) {
    let vectors = norm.vectors(x.len());
    let mut scratch = Scratch::new(scratch);
    let (mean, inverse) = (scratch.take::<f32>(vectors), scratch.take::<f32>(vectors));
    mean.fill(0.0);
    let per_task = norm.chunk() / norm.cols;
    run_parts(par, vectors.div_ceil(per_task), Chunks::new(&mut *inverse, per_task), |index, inverse: &mut [f32]| {
        for (i, inverse) in inverse.iter_mut().enumerate() {
            let start = (index * per_task + i) * norm.cols;
            *inverse = simd::dispatch(InverseRms { x: &x[start..start + norm.cols], eps: norm.eps });
        }
    });
    grad_w(par, norm, x, dy, (mean, inverse), accumulate, dw);
}

struct InverseRms<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Kernel for InverseRms<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        inverse_rms(s, self.x, self.eps)
    }
}

/// `dw[c] (+)= sum of dy (x - mean) inverse` with `(mean, inverse)` of every vector.
fn grad_w(par: &Par, norm: &Norm, x: &[f32], dy: &[f32], stats: (&[f32], &[f32]), accumulate: bool, dw: &mut [f32]) {
    assert_eq!(dw.len(), norm.cols, "the weight's length");
    assert_eq!(x.len(), dy.len(), "input and gradient differ in length");
    assert!(norm.vectors(x.len()).is_multiple_of(norm.groups * norm.seq), "not whole packed rows");
    let tasks = norm.cols.div_ceil(TASK_COLS);
    run_parts(par, tasks, Chunks::new(dw, TASK_COLS), |index, dw: &mut [f32]| {
        if !accumulate {
            dw.fill(0.0);
        }
        simd::dispatch(GradW { norm, x, dy, stats, start: index * TASK_COLS, dw });
    });
}

struct GradW<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    dy: &'a [f32],
    stats: (&'a [f32], &'a [f32]),
    start: usize,
    dw: &'a mut [f32],
}

impl Kernel for GradW<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cols, width) = (self.norm.cols, self.dw.len());
        let per_row = self.norm.seq * self.norm.groups;
        for first in (0..self.stats.0.len()).step_by(per_row) {
            let mut sums = [s.zero(); TASK_COLS / LANES];
            for i in first..first + per_row {
                let part = i * cols + self.start..i * cols + self.start + width;
                let (x, dy) = (&self.x[part.clone()], &self.dy[part]);
                let (mean, inverse) = (s.splat(self.stats.0[i]), s.splat(self.stats.1[i]));
                for (k, sum) in sums.iter_mut().enumerate() {
                    if k * LANES < width {
                        let x = s.mul(s.sub(load_any(s, x, k * LANES), mean), inverse);
                        *sum = s.fma(load_any(s, dy, k * LANES), x, *sum);
                    }
                }
            }
            for (k, &sum) in sums.iter().enumerate() {
                if k * LANES < width {
                    let dw = s.add(load_any(s, self.dw, k * LANES), sum);
                    store_any(s, dw, self.dw, k * LANES);
                }
            }
        }
    }
}

/// `(mean, 1 / sqrt(variance + eps))`, the variance from the differences to the mean.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = row_sum!(s, (x => v), x.len(), |sum| s.add(sum, v)) / len;
    let center = s.splat(mean);
    // Lanes beyond a ragged end hold 0 - mean; their squares are taken off again by leaving them out.
    let whole = x.len() / LANES * LANES;
    let mut square = row_sum!(s, (&x[..whole] => v), whole, |sum| {
        let d = s.sub(v, center);
        s.fma(d, d, sum)
    });
    for &x in &x[whole..] {
        square = (x - mean).mul_add(x - mean, square);
    }
    (mean, 1.0 / (square / len + eps).sqrt())
}

/// `y[t, :] = (x[t, :] - mean) / sqrt(variance + eps) * w + b`.
///
/// `x`, `y`: `f32[rows, groups * cols]`; `w[cols]`, `b[cols]` or none. `x == None`: `y` holds `x`. Scratch: 0 bytes.
pub fn layer_norm(par: &Par, norm: &Norm, x: Option<&[f32]>, w: &[f32], b: Option<&[f32]>, y: &mut [f32]) {
    assert_eq!(w.len(), norm.cols, "the weight's length");
    assert!(b.is_none_or(|b| b.len() == norm.cols), "the bias's length");
    let cols = norm.cols;
    each_vector(par, norm, y, |i, y| {
        if let Some(x) = x {
            y.copy_from_slice(&x[i * cols..(i + 1) * cols]);
        }
        simd::dispatch(LayerNorm { w, b, y, eps: norm.eps });
    });
}

struct LayerNorm<'a> {
    w: &'a [f32],
    b: Option<&'a [f32]>,
    y: &'a mut [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mean, inverse) = moments(s, self.y, self.eps);
        let (mean, inverse) = (s.splat(mean), s.splat(inverse));
        for at in (0..self.y.len()).step_by(LANES) {
            let x = s.mul(s.sub(load_any(s, self.y, at), mean), inverse);
            let b = self.b.map_or(s.zero(), |b| load_any(s, b, at));
            store_any(s, s.fma(x, load_any(s, self.w, at), b), self.y, at);
        }
    }
}

/// `dx = inv (g - mean(g) - n mean(g n))`, `g = w dy`, `n = (x - mean) inv`; added to `dx` with `accumulate`.
///
/// Shapes as in [`layer_norm`]. `dy == None`: `dx` holds `dy` (not with `accumulate`). Scratch: 0 bytes.
pub fn layer_norm_grad_x(
    par: &Par,
    norm: &Norm,
    x: &[f32],
    w: &[f32],
    dy: Option<&[f32]>,
    dx: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(w.len(), norm.cols, "the weight's length");
    assert!(dy.is_some() || !accumulate, "a gradient cannot be both the input and added to");
    let cols = norm.cols;
    each_vector(par, norm, dx, |i, dx| {
        let part = i * cols..(i + 1) * cols;
        let dy = dy.map(|dy| &dy[part.clone()]);
        simd::dispatch(LayerNormGrad { x: &x[part], w, dy, dx, eps: norm.eps, accumulate });
    });
}

struct LayerNormGrad<'a> {
    x: &'a [f32],
    w: &'a [f32],
    dy: Option<&'a [f32]>,
    dx: &'a mut [f32],
    eps: f32,
    accumulate: bool,
}

impl Kernel for LayerNormGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, w, len) = (self.x, self.w, self.x.len());
        let (mean, inverse) = moments(s, x, self.eps);
        let (mean, inverse) = (s.splat(mean), s.splat(inverse));
        let g = self.dy.unwrap_or(self.dx);
        let sum_g = row_sum!(s, (w => f, g => d), len, |sum| s.fma(d, f, sum));
        let sum_gn = row_sum!(s, (x => v, w => f, g => d), len, |sum| {
            s.fma(s.mul(d, f), s.mul(s.sub(v, mean), inverse), sum)
        });
        let (mean_g, mean_gn) = (s.splat(sum_g / len as f32), s.splat(sum_gn / len as f32));
        for at in (0..len).step_by(LANES) {
            let g = s.mul(load_any(s, self.dy.unwrap_or(self.dx), at), load_any(s, w, at));
            let n = s.mul(s.sub(load_any(s, x, at), mean), inverse);
            let mut dx = s.mul(inverse, s.neg_fma(n, mean_gn, s.sub(g, mean_g)));
            if self.accumulate {
                dx = s.add(load_any(s, self.dx, at), dx);
            }
            store_any(s, dx, self.dx, at);
        }
    }
}

/// `dw[c] (+)= sum over t of dy[t, c] (x[t, c] - mean[t]) inv[t]`, packed row by packed row, as [`rms_norm_grad_w`].
/// The bias's gradient is [`super::elementwise::sum_rows`].
pub fn layer_norm_grad_w(
    par: &Par,
    norm: &Norm,
    x: &[f32],
    dy: &[f32],
    accumulate: bool,
    dw: &mut [f32],
    scratch: &mut [u8],
) {
    let vectors = norm.vectors(x.len());
    let mut scratch = Scratch::new(scratch);
    let (mean, inverse) = (scratch.take::<f32>(vectors), scratch.take::<f32>(vectors));
    let per_task = norm.chunk() / norm.cols;
    let parts = (Chunks::new(&mut *mean, per_task), Chunks::new(&mut *inverse, per_task));
    run_parts(par, vectors.div_ceil(per_task), parts, |index, (mean, inverse)| {
        for (i, (mean, inverse)) in mean.iter_mut().zip(inverse).enumerate() {
            let start = (index * per_task + i) * norm.cols;
            (*mean, *inverse) = simd::dispatch(Moments { x: &x[start..start + norm.cols], eps: norm.eps });
        }
    });
    grad_w(par, norm, x, dy, (mean, inverse), accumulate, dw);
}

struct Moments<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Kernel for Moments<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        moments(s, self.x, self.eps)
    }
}
