//! Softmax and losses, and the cross-entropy of a linear layer without its logits.
//!
//! ```text
//! for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, label[t]] }
//! ```
//! A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros.
//! Bound: softmax reads a row twice and writes it once, in cache; the fused loss is its three dense products.

use super::dense::{Compute, Gemm, Mat, MatData, gemm, gemm_scratch_bytes};
use super::index::{OutOfRange, check};
use super::map::{Op, Src, map};
use super::math::exp;
use super::parts::{Chunks, run_parts};
use super::row::{load_any, row_sum, store_any};
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;
use core::ops::Range;

/// Elements of one task.
const TASK_ELEMS: usize = 16 * 1024;
/// Tokens whose logits exist at a time in [`linear_cross_entropy`].
pub const CHUNK_TOKENS: usize = 128;

/// Runs `f(row, y)` for every row of `y`.
fn each_row(par: &Par, cols: usize, y: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    assert!(cols > 0 && y.len().is_multiple_of(cols), "{} elements are not rows of {cols}", y.len());
    let rows = (TASK_ELEMS / cols).max(1);
    let tasks = y.len().div_ceil(rows * cols);
    run_parts(par, tasks, Chunks::new(y, rows * cols), |index, y: &mut [f32]| {
        for (i, y) in y.chunks_exact_mut(cols).enumerate() {
            f(index * rows + i, y);
        }
    });
}

/// Largest element and sum of `exp(x - largest)`; `(-inf, 0)` where all are `-inf`.
#[inline(always)]
fn max_and_sum<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let mut max = s.splat(f32::NEG_INFINITY);
    let (whole, tail) = x.as_chunks::<LANES>();
    for x in whole {
        max = s.max(s.load(x), max);
    }
    let max = tail.iter().copied().fold(s.max_lane(max), f32::max);
    if max == f32::NEG_INFINITY {
        return (max, 0.0);
    }
    let shift = s.splat(max);
    let whole = whole.len() * LANES;
    let sum = row_sum!(s, (&x[..whole] => v), whole, |sum| s.add(sum, exp(s, s.sub(v, shift))));
    if tail.is_empty() {
        return (max, sum);
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    (max, sum + s.sum(exp(s, s.sub(s.load(&lanes), shift))))
}

/// `y[t, i] = exp(x[t, i] - m[t]) / sum over k of exp(x[t, k] - m[t])`, `m[t]` the row's maximum.
///
/// `x`, `y`: `f32[rows, cols]`. `x == None`: `y` holds `x`. A row of `-inf` gives zeros. Scratch: 0 bytes.
pub fn softmax(par: &Par, cols: usize, x: Option<&[f32]>, y: &mut [f32]) {
    each_row(par, cols, y, |row, y| {
        if let Some(x) = x {
            y.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        }
        simd::dispatch(Softmax { y });
    });
}

struct Softmax<'a> {
    y: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, sum) = max_and_sum(s, self.y);
        let (shift, factor) = if sum > 0.0 { (max, 1.0 / sum) } else { (0.0, 0.0) };
        scaled_exp(s, self.y, shift, factor);
    }
}

/// `y = exp(y - shift) * factor`.
#[inline(always)]
fn scaled_exp<S: Simd>(s: S, y: &mut [f32], shift: f32, factor: f32) {
    let (shift, factor) = (s.splat(shift), s.splat(factor));
    for at in (0..y.len()).step_by(LANES) {
        let e = exp(s, s.sub(load_any(s, y, at), shift));
        store_any(s, s.mul(e, factor), y, at);
    }
}

/// `dx = y (dy - sum(dy y))` row by row. Reads the output `y`. `dy == None`: `dx` holds `dy`. Scratch: 0 bytes.
pub fn softmax_grad(par: &Par, cols: usize, y: &[f32], dy: Option<&[f32]>, dx: &mut [f32]) {
    each_row(par, cols, dx, |row, dx| {
        let part = row * cols..(row + 1) * cols;
        if let Some(dy) = dy {
            dx.copy_from_slice(&dy[part.clone()]);
        }
        simd::dispatch(SoftmaxGrad { y: &y[part], dx });
    });
}

struct SoftmaxGrad<'a> {
    y: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for SoftmaxGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dot = s.splat(row_sum!(s, (self.y => y, self.dx => d), self.dx.len(), |sum| s.fma(y, d, sum)));
        for at in (0..self.dx.len()).step_by(LANES) {
            let d = s.sub(load_any(s, self.dx, at), dot);
            store_any(s, s.mul(load_any(s, self.y, at), d), self.dx, at);
        }
    }
}

/// `y[t, i] = x[t, i] - m[t] - ln(sum over k of exp(x[t, k] - m[t]))`, shapes as in [`softmax`]. `x == None`: `y` holds
/// `x`.
pub fn log_softmax(par: &Par, cols: usize, x: Option<&[f32]>, y: &mut [f32]) {
    each_row(par, cols, y, |row, y| {
        if let Some(x) = x {
            y.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        }
        let (max, sum) = simd::dispatch(MaxAndSum { x: y });
        let log = libm::logf(sum);
        y.iter_mut().for_each(|y| *y = *y - max - log);
    });
}

struct MaxAndSum<'a> {
    x: &'a [f32],
}

impl Kernel for MaxAndSum<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        max_and_sum(s, self.x)
    }
}

/// `dx = dy - exp(y) sum(dy)` row by row. Reads the output `y`. `dy == None`: `dx` holds `dy`. Scratch: 0 bytes.
pub fn log_softmax_grad(par: &Par, cols: usize, y: &[f32], dy: Option<&[f32]>, dx: &mut [f32]) {
    each_row(par, cols, dx, |row, dx| {
        let part = row * cols..(row + 1) * cols;
        if let Some(dy) = dy {
            dx.copy_from_slice(&dy[part.clone()]);
        }
        simd::dispatch(LogSoftmaxGrad { y: &y[part], dx });
    });
}

struct LogSoftmaxGrad<'a> {
    y: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for LogSoftmaxGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sum = s.splat(row_sum!(s, (self.dx => d), self.dx.len(), |sum| s.add(sum, d)));
        for at in (0..self.dx.len()).step_by(LANES) {
            let p = exp(s, load_any(s, self.y, at));
            store_any(s, s.neg_fma(p, sum, load_any(s, self.dx, at)), self.dx, at);
        }
    }
}

/// Whether a token counts.
fn counts(label: i32, weight: f32) -> bool {
    label >= 0 && weight != 0.0
}

fn check_labels(labels: &[i32], weights: &[f32], vocab: usize) -> Result<(), OutOfRange> {
    assert_eq!(labels.len(), weights.len(), "a weight for every label");
    check("label", labels, vocab, |label| label < 0)
}

/// `loss[t] = weights[t] (ln(sum over k of exp(x[t, k])) - x[t, labels[t]])`.
///
/// `x`: `f32[T, vocab]`; a negative label or a weight of 0 gives a loss of 0. Scratch: 0 bytes.
/// Errors: a label is not below `vocab`.
pub fn cross_entropy(
    par: &Par,
    x: &[f32],
    labels: &[i32],
    weights: &[f32],
    loss: &mut [f32],
) -> Result<(), OutOfRange> {
    let vocab = vocab_of(x.len(), labels.len());
    check_labels(labels, weights, vocab)?;
    each_row(par, 1, loss, |t, loss| {
        let x = &x[t * vocab..(t + 1) * vocab];
        loss[0] = if counts(labels[t], weights[t]) {
            token_loss(x, labels[t], weights[t], simd::dispatch(MaxAndSum { x }))
        } else {
            0.0
        };
    });
    Ok(())
}

fn vocab_of(elems: usize, tokens: usize) -> usize {
    assert!(elems.is_multiple_of(tokens.max(1)), "logits for every token");
    elems / tokens.max(1)
}

fn token_loss(x: &[f32], label: i32, weight: f32, (max, sum): (f32, f32)) -> f32 {
    weight * (libm::logf(sum) + max - x[label as usize])
}

/// `dx[t, i] = weights[t] (softmax(x[t, :])[i] - [i == labels[t]])`, shapes as in [`cross_entropy`]. `x == None`: `dx`
/// holds `x`. Rows that do not count are zeros.
pub fn cross_entropy_grad(
    par: &Par,
    x: Option<&[f32]>,
    labels: &[i32],
    weights: &[f32],
    dx: &mut [f32],
) -> Result<(), OutOfRange> {
    let vocab = vocab_of(dx.len(), labels.len());
    check_labels(labels, weights, vocab)?;
    each_row(par, vocab.max(1), dx, |t, dx| {
        if let Some(x) = x {
            dx.copy_from_slice(&x[t * vocab..(t + 1) * vocab]);
        }
        simd::dispatch(TokenGrad { x: dx, label: labels[t], weight: weights[t], keeps_logits: false });
    });
    Ok(())
}

/// Turns a row of logits into its gradient, unless it keeps them, and returns the loss, the largest logit and the sum
/// of `exp(x - largest)`.
struct TokenGrad<'a> {
    x: &'a mut [f32],
    label: i32,
    weight: f32,
    keeps_logits: bool,
}

impl Kernel for TokenGrad<'_> {
    type Out = (f32, [f32; 2]);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, [f32; 2]) {
        if !counts(self.label, self.weight) {
            if !self.keeps_logits {
                self.x.fill(0.0);
            }
            return (0.0, [0.0; 2]);
        }
        let (max, sum) = max_and_sum(s, self.x);
        let loss = token_loss(self.x, self.label, self.weight, (max, sum));
        if !self.keeps_logits {
            scaled_exp(s, self.x, max, self.weight / sum);
            self.x[self.label as usize] -= self.weight;
        }
        (loss, [max, sum])
    }
}

/// The same for logits from number `first` on, of a row whose largest logit and sum are known.
struct PanelGrad<'a> {
    x: &'a mut [f32],
    first: usize,
    label: i32,
    weight: f32,
    sums: [f32; 2],
}

impl Kernel for PanelGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if !counts(self.label, self.weight) {
            return self.x.fill(0.0);
        }
        let [max, sum] = self.sums;
        scaled_exp(s, self.x, max, self.weight / sum);
        if let Some(x) = (self.label as usize).checked_sub(self.first).and_then(|at| self.x.get_mut(at)) {
            *x -= self.weight;
        }
    }
}

/// `loss[t] = weights[t] mean over i of (y[t, i] - target[t, i])^2`, for rows of `y.len() / loss.len()` elements.
pub fn mse_loss(par: &Par, y: &[f32], target: &[f32], weights: &[f32], loss: &mut [f32]) {
    assert_eq!(y.len(), target.len(), "a target for every element");
    assert_eq!(weights.len(), loss.len(), "a weight for every row");
    let cols = vocab_of(y.len(), loss.len());
    each_row(par, 1, loss, |t, loss| {
        let part = t * cols..(t + 1) * cols;
        let sum = simd::dispatch(SquaredDistance { a: &y[part.clone()], b: &target[part] });
        loss[0] = weights[t] * (sum / cols as f32);
    });
}

struct SquaredDistance<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for SquaredDistance<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        row_sum!(s, (self.a => a, self.b => b), self.a.len(), |sum| {
            let d = s.sub(a, b);
            s.fma(d, d, sum)
        })
    }
}

#[derive(Clone, Copy)]
struct Difference(f32);

impl Op<2, 1> for Difference {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [a, b]: [S::V; 2]) -> [S::V; 1] {
        [s.mul(s.splat(self.0), s.sub(a, b))]
    }
}

/// `dy[t, i] = weights[t] (2 / cols) (y[t, i] - target[t, i])`. `y == None`: `dy` holds `y`.
pub fn mse_loss_grad(par: &Par, y: Option<&[f32]>, target: &[f32], weights: &[f32], dy: &mut [f32]) {
    let cols = vocab_of(dy.len(), weights.len());
    for (t, (&weight, dy)) in weights.iter().zip(dy.chunks_exact_mut(cols.max(1))).enumerate() {
        let part = t * cols..(t + 1) * cols;
        let y = Src::or(y.map(|y| &y[part.clone()]), 0);
        map(par, Difference(weight * (2.0 / cols as f32)), [y, Src::Slice(&target[part])], [dy]);
    }
}

/// Shapes and options of [`linear_cross_entropy`].
#[derive(Clone, Copy, Debug)]
pub struct LinearCrossEntropy {
    /// Packed rows.
    pub rows: usize,
    /// Tokens of a packed row.
    pub seq: usize,
    /// Elements of a token's hidden state.
    pub width: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// Number type of the products' factors.
    pub compute: Compute,
}

impl LinearCrossEntropy {
    /// Tokens of the longest chunk.
    fn chunk(&self) -> usize {
        CHUNK_TOKENS.min(self.seq)
    }

    /// The tokens of every chunk, in order.
    fn chunks(self) -> impl Iterator<Item = Range<usize>> {
        let starts = (0..self.rows).flat_map(move |row| (0..self.seq).step_by(CHUNK_TOKENS).map(move |at| (row, at)));
        starts.map(move |(row, at)| {
            let first = row * self.seq + at;
            first..first + CHUNK_TOKENS.min(self.seq - at)
        })
    }
}

/// Bytes of scratch of [`linear_cross_entropy`]: the logits of one chunk, and the products' own.
pub fn linear_cross_entropy_scratch_bytes(dims: &LinearCrossEntropy, threads: usize) -> usize {
    let (width, vocab, compute) = (dims.width, dims.vocab, dims.compute);
    let of_tokens = |tokens: usize| {
        gemm_scratch_bytes(tokens, vocab, width, compute, threads)
            .max(gemm_scratch_bytes(tokens, width, vocab, compute, threads))
            .max(gemm_scratch_bytes(vocab, width, tokens, compute, threads))
    };
    let last = dims.seq % CHUNK_TOKENS;
    piece_bytes::<f32>(dims.chunk() * dims.vocab) + of_tokens(dims.chunk()).max(of_tokens(last))
}

/// What [`linear_cross_entropy`] writes.
pub struct LinearCrossEntropyOut<'a> {
    /// `loss[t]`, weighted.
    pub loss: &'a mut [f32],
    /// Gradient of the hidden states, `f32[T, width]`.
    pub dh: Option<&'a mut [f32]>,
    /// Gradient of the weight, `f32[vocab, width]`, and whether it is added to what is there.
    pub dw: Option<(&'a mut [f32], bool)>,
    /// Of every token's logits the largest and the sum of `exp(x - largest)`, `f32[T, 2]`; zeros where it does not
    /// count.
    pub sums: Option<&'a mut [f32]>,
}

/// Cross-entropy of `logits = logit_scale h w'`, and its gradients, with at most [`CHUNK_TOKENS`] tokens' logits in
/// memory.
///
/// `h`: `f32[rows * seq, width]`; `w`: `[vocab, width]`; `labels`, `weights`: as in [`cross_entropy`]. Chunks begin
/// anew with every packed row. Each gives its losses, `dlogits` in place, `dh = logit_scale dlogits w` and
/// `dw += logit_scale dlogits' h` (a chunk is summed from zero, then added). A chunk in which no token counts is
/// skipped: zeros, and nothing added.
///
/// Errors: a label is not below `vocab`; the outputs are then as they were.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn linear_cross_entropy(
    par: &Par,
    dims: &LinearCrossEntropy,
    h: &[f32],
    w: &Mat,
    labels: &[i32],
    weights: &[f32],
    out: LinearCrossEntropyOut,
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    let LinearCrossEntropyOut { loss, mut dh, mut dw, mut sums } = out;
    let tokens = dims.rows * dims.seq;
    assert!(h.len() == tokens * dims.width && labels.len() == tokens && loss.len() == tokens, "a row for every token");
    assert!(w.rows == dims.vocab && w.cols == dims.width, "the weight's shape");
    assert!(dh.as_ref().is_none_or(|dh| dh.len() == h.len()), "the gradient's length");
    assert!(sums.as_ref().is_none_or(|sums| sums.len() == 2 * tokens), "two sums for every token");
    check_labels(labels, weights, dims.vocab)?;
    let mut scratch = Scratch::new(scratch);
    let logits = scratch.take::<f32>(dims.chunk() * dims.vocab);
    let scratch = scratch.rest();
    for range in dims.chunks() {
        let elems = range.start * dims.width..range.end * dims.width;
        let is_empty = !range.clone().any(|t| counts(labels[t], weights[t]));
        let mut sums = sums.as_mut().map(|sums| &mut sums[2 * range.start..2 * range.end]);
        if is_empty {
            loss[range].fill(0.0);
            if let Some(dh) = &mut dh {
                dh[elems].fill(0.0);
            }
            if let Some(sums) = sums {
                sums.fill(0.0);
            }
            continue;
        }
        let chunk = Chunk { dims, h: &h[elems.clone()], w, count: range.len() };
        let logits = &mut logits[..range.len() * dims.vocab];
        chunk.logits(par, logits, scratch);
        let keeps_logits = dh.is_none() && dw.is_none();
        let parts = (
            Chunks::new(&mut loss[range.clone()], 1),
            Chunks::new(&mut *logits, dims.vocab),
            sums.as_mut().map(|sums| Chunks::new(sums, 2)),
        );
        run_parts(par, range.len(), parts, |i, (loss, x, sums)| {
            let t = range.start + i;
            let (of_token, found) = simd::dispatch(TokenGrad { x, label: labels[t], weight: weights[t], keeps_logits });
            loss[0] = of_token;
            if let Some(sums) = sums {
                sums.copy_from_slice(&found);
            }
        });
        if let Some(dh) = &mut dh {
            chunk.grad_h(par, logits, &mut dh[elems], scratch);
        }
        if let Some((dw, accumulate)) = &mut dw {
            chunk.grad_w(par, logits, *accumulate, dw, scratch);
            *accumulate = true;
        }
    }
    if let Some((dw, false)) = dw {
        dw.fill(0.0);
    }
    Ok(())
}

/// Bytes of scratch of [`linear_cross_entropy_grad_w`] for a panel of so many rows: the logits of one chunk, and the
/// products' own.
pub fn linear_cross_entropy_grad_w_scratch_bytes(dims: &LinearCrossEntropy, panel: usize, threads: usize) -> usize {
    let (width, compute) = (dims.width, dims.compute);
    let of_tokens = |tokens: usize| {
        gemm_scratch_bytes(tokens, panel, width, compute, threads)
            .max(gemm_scratch_bytes(panel, width, tokens, compute, threads))
    };
    let last = dims.seq % CHUNK_TOKENS;
    piece_bytes::<f32>(dims.chunk() * panel) + of_tokens(dims.chunk()).max(of_tokens(last))
}

/// The gradient of the weight of [`linear_cross_entropy`] alone, for the rows from `first_row` on that `dw` has room
/// for: the same bits, from the largest logits and sums that it found. `accumulate` adds to what is there. Other rows
/// of the weight are not read.
///
/// Errors: a label is not below `vocab`; `dw` is then as it was.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn linear_cross_entropy_grad_w(
    par: &Par,
    dims: &LinearCrossEntropy,
    h: &[f32],
    w: &Mat,
    labels: &[i32],
    weights: &[f32],
    sums: &[f32],
    first_row: usize,
    (dw, mut accumulate): (&mut [f32], bool),
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    let tokens = dims.rows * dims.seq;
    assert!(h.len() == tokens * dims.width && labels.len() == tokens, "a row for every token");
    assert!(w.rows == dims.vocab && w.cols == dims.width && dims.width > 0, "the weight's shape");
    assert!(dw.len().is_multiple_of(dims.width) && sums.len() == 2 * tokens, "whole rows, two sums for every token");
    check_labels(labels, weights, dims.vocab)?;
    let panel = dw.len() / dims.width;
    let w = w.rows_from(first_row, panel);
    let dims = LinearCrossEntropy { vocab: panel, ..*dims };
    let mut scratch = Scratch::new(scratch);
    let logits = scratch.take::<f32>(dims.chunk() * panel);
    let scratch = scratch.rest();
    for range in dims.chunks().filter(|range| range.clone().any(|t| counts(labels[t], weights[t]))) {
        let h = &h[range.start * dims.width..range.end * dims.width];
        let chunk = Chunk { dims: &dims, h, w: &w, count: range.len() };
        let logits = &mut logits[..range.len() * panel];
        chunk.logits(par, logits, scratch);
        run_parts(par, range.len(), Chunks::new(&mut *logits, panel), |i, x: &mut [f32]| {
            let t = range.start + i;
            let sums = [sums[2 * t], sums[2 * t + 1]];
            simd::dispatch(PanelGrad { x, first: first_row, label: labels[t], weight: weights[t], sums });
        });
        chunk.grad_w(par, logits, accumulate, dw, scratch);
        accumulate = true;
    }
    if !accumulate {
        dw.fill(0.0);
    }
    Ok(())
}

/// Some tokens of one packed row.
struct Chunk<'a> {
    dims: &'a LinearCrossEntropy,
    h: &'a [f32],
    w: &'a Mat<'a>,
    count: usize,
}

impl Chunk<'_> {
    fn product<'a>(&self, a: Mat<'a>, b: Mat<'a>) -> Gemm<'a> {
        Gemm {
            a,
            a_trans: false,
            b,
            b_trans: false,
            compute: self.dims.compute,
            alpha: self.dims.logit_scale,
            bias: None,
            accumulate: false,
            k_segment: None,
        }
    }

    fn rows<'a>(&self, x: &'a [f32], cols: usize) -> Mat<'a> {
        Mat { data: MatData::F32(x), rows: self.count, cols, stride: cols }
    }

    fn logits(&self, par: &Par, out: &mut [f32], scratch: &mut [u8]) {
        let g = Gemm { b_trans: true, ..self.product(self.rows(self.h, self.dims.width), *self.w) };
        gemm(par, &g, out, self.dims.vocab, scratch);
    }

    fn grad_h(&self, par: &Par, dlogits: &[f32], dh: &mut [f32], scratch: &mut [u8]) {
        let g = self.product(self.rows(dlogits, self.dims.vocab), *self.w);
        gemm(par, &g, dh, self.dims.width, scratch);
    }

    fn grad_w(&self, par: &Par, dlogits: &[f32], accumulate: bool, dw: &mut [f32], scratch: &mut [u8]) {
        let factors = self.product(self.rows(dlogits, self.dims.vocab), self.rows(self.h, self.dims.width));
        gemm(par, &Gemm { a_trans: true, accumulate, ..factors }, dw, self.dims.width, scratch);
    }
}
