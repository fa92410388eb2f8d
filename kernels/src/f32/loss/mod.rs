//! Softmax and losses; in a file of its own the cross-entropy of a linear layer without its logits.
//!
//! ```text
//! for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, label[t]] }
//! ```
//! A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros.
//! Bound: softmax reads a row twice and writes it once, in cache.

mod linear;

use super::index::{OutOfRange, check};
use super::map::{Op, Src, map};
use super::math::exp;
use super::parts::{Chunks, run_parts};
use super::row::{load_any, row_sum, store_any};
use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;
pub use linear::*;

/// Elements of one task.
const TASK_ELEMS: usize = 16 * 1024;

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
            let (max, sum) = simd::dispatch(MaxAndSum { x });
            token_loss([max, sum, x[labels[t] as usize]], weights[t])
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

/// The loss of a token whose largest logit, sum of `exp(x - largest)` and label's logit these are.
fn token_loss([max, sum, own]: [f32; 3], weight: f32) -> f32 {
    weight * (libm::logf(sum) + max - own)
}

/// Turns logits of a token that counts into their gradient, from the largest and the sum of all; the label's is at this
/// place, if it is among them.
#[inline(always)]
fn into_grad<S: Simd>(s: S, x: &mut [f32], [max, sum]: [f32; 2], weight: f32, label: Option<usize>) {
    scaled_exp(s, x, max, weight / sum);
    if let Some(x) = label.and_then(|at| x.get_mut(at)) {
        *x -= weight;
    }
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
        simd::dispatch(TokenGrad { x: dx, label: labels[t], weight: weights[t] });
    });
    Ok(())
}

/// Turns a row of logits into its gradient.
struct TokenGrad<'a> {
    x: &'a mut [f32],
    label: i32,
    weight: f32,
}

impl Kernel for TokenGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if !counts(self.label, self.weight) {
            return self.x.fill(0.0);
        }
        let (max, sum) = max_and_sum(s, self.x);
        into_grad(s, self.x, [max, sum], self.weight, Some(self.label as usize));
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
