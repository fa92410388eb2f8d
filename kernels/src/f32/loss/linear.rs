//! The cross-entropy of a linear layer without its logits, whole or by parts of its weight.
//!
//! ```text
//! for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); loss = ln z + m - x[t, label[t]] }
//! dlogits = weights (exp(x - m) / z - onehot(label)); dh = dlogits w; dw = dlogits' h
//! ```
//! The vocabulary is taken in segments of [`VOCAB_SEGMENT`], in order: each has its own largest logit and sum, which
//! are merged one after the other, and no chunk of the sum in `dh` reaches over its end. So a weight that is given in
//! parts of whole segments, one after the other, leads to the bits of the whole. Bound: its three dense products.

use super::super::dense::{Compute, Gemm, Mat, MatData, gemm, gemm_scratch_bytes};
use super::super::index::OutOfRange;
use super::super::parts::{Chunks, run_parts};
use super::super::scratch::{Scratch, piece_bytes};
use super::super::simd::{self, Kernel, Simd};
use super::{check_labels, counts, into_grad, max_and_sum, token_loss};
use crate::par::Par;
use core::ops::Range;

/// Tokens whose logits exist at a time in [`linear_cross_entropy`].
pub const CHUNK_TOKENS: usize = 128;
/// Rows of the weight whose logits are summed apart.
pub const VOCAB_SEGMENT: usize = 1024;
/// Numbers that [`linear_cross_entropy_sums`] keeps of a token: its largest logit `m`, the sum of `exp(x - m)` and the
/// label's logit.
pub const SUMS: usize = 3;

/// What the logits of a row, from number `first` on, add to the sums of those before them.
struct RowSums<'a> {
    x: &'a [f32],
    first: usize,
    label: i32,
    before: Option<[f32; SUMS]>,
}

impl Kernel for RowSums<'_> {
    type Out = [f32; SUMS];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; SUMS] {
        let mut sums = self.before;
        for x in self.x.chunks(VOCAB_SEGMENT) {
            let (max, sum) = max_and_sum(s, x);
            sums = Some(match sums {
                None => [max, sum, 0.0],
                Some([m, z, own]) => {
                    let larger = m.max(max);
                    [larger, z * shrunk(m, larger) + sum * shrunk(max, larger), own]
                }
            });
        }
        let [max, sum, own] = sums.unwrap_or([f32::NEG_INFINITY, 0.0, 0.0]);
        let label = place_of(self.label, self.first).and_then(|at| self.x.get(at));
        [max, sum, label.copied().unwrap_or(own)]
    }
}

/// `exp(m - larger)`: what a sum relative to `m` is multiplied with to be one relative to `larger`.
fn shrunk(m: f32, larger: f32) -> f32 {
    if m == larger { 1.0 } else { libm::expf(m - larger) }
}

/// Where a label is among logits from number `first` on.
fn place_of(label: i32, first: usize) -> Option<usize> {
    usize::try_from(label).ok()?.checked_sub(first)
}

/// Turns logits from number `first` on into their gradient, of a row whose sums are known.
struct PartGrad<'a> {
    x: &'a mut [f32],
    first: usize,
    label: i32,
    weight: f32,
    sums: [f32; SUMS],
}

impl Kernel for PartGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if !counts(self.label, self.weight) {
            return self.x.fill(0.0);
        }
        let [max, sum, _] = self.sums;
        into_grad(s, self.x, [max, sum], self.weight, place_of(self.label, self.first));
    }
}

/// `loss[t] = weights[t] (ln z[t] + m[t] - x[t])` of the sums of all logits, `f32[T, 3]`; 0 where `z[t]` is 0, as it is
/// where a token does not count. Scratch: 0 bytes.
pub fn cross_entropy_of_sums(sums: &[f32], weights: &[f32], loss: &mut [f32]) {
    assert!(sums.len() == SUMS * loss.len() && weights.len() == loss.len(), "sums and a weight for every token");
    for ((loss, sums), weight) in loss.iter_mut().zip(sums.as_chunks::<SUMS>().0).zip(weights) {
        *loss = if sums[1] == 0.0 { 0.0 } else { token_loss(*sums, *weight) };
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
    fn tokens(&self) -> usize {
        self.rows * self.seq
    }

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

    /// Scratch for the logits of one chunk, `vocab` of each token, and for the products that are asked for.
    fn scratch_bytes(&self, threads: usize, grad_h: bool, grad_w: bool) -> usize {
        let (width, vocab, compute) = (self.width, self.vocab, self.compute);
        let of_tokens = |tokens: usize| {
            let of = |wanted: bool, [m, n, k]: [usize; 3]| {
                if wanted { gemm_scratch_bytes(m, n, k, compute, threads) } else { 0 }
            };
            of(true, [tokens, vocab, width])
                .max(of(grad_h, [tokens, width, vocab]))
                .max(of(grad_w, [vocab, width, tokens]))
        };
        let last = self.seq % CHUNK_TOKENS;
        piece_bytes::<f32>(self.chunk() * vocab) + of_tokens(self.chunk()).max(of_tokens(last))
    }
}

/// What the loss is of: operands that all forms share.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Hidden states, `f32[rows * seq, width]`.
    pub h: &'a [f32],
    /// The weight, `[vocab, width]`, or some rows of it.
    pub w: &'a Mat<'a>,
    /// Labels, `i32[T]`; a negative one does not count.
    pub labels: &'a [i32],
    /// Factors of the losses, `f32[T]`; a token with 0 does not count.
    pub weights: &'a [f32],
}

impl<'a> Head<'a> {
    fn check(&self, dims: &LinearCrossEntropy) {
        let tokens = dims.tokens();
        assert!(self.h.len() == tokens * dims.width && self.labels.len() == tokens, "a row for every token");
        assert!(self.w.cols == dims.width && dims.width > 0, "the weight's shape");
    }

    fn counts(&self, t: usize) -> bool {
        counts(self.labels[t], self.weights[t])
    }

    /// Chunks of tokens of which one counts, with their hidden states; `dims.vocab` rows of `w` are multiplied.
    fn chunk<'b>(&'b self, dims: &'b LinearCrossEntropy, w: &'b Mat<'b>, tokens: &Range<usize>) -> Option<Chunk<'b>> {
        let h = &self.h[tokens.start * dims.width..tokens.end * dims.width];
        tokens.clone().any(|t| self.counts(t)).then_some(Chunk { dims, h, w, count: tokens.len() })
    }

    /// Turns the logits of a chunk, from number `first` on, into their gradients.
    fn grads(&self, par: &Par, tokens: &Range<usize>, first: usize, sums: &[f32], logits: &mut [f32]) {
        let vocab = logits.len() / tokens.len();
        run_parts(par, tokens.len(), Chunks::new(logits, vocab), |i, x: &mut [f32]| {
            let t = tokens.start + i;
            let sums = [0, 1, 2].map(|n| sums[SUMS * t + n]);
            simd::dispatch(PartGrad { x, first, label: self.labels[t], weight: self.weights[t], sums });
        });
    }
}

/// Bytes of scratch of [`linear_cross_entropy`]: the logits of one chunk and its sums, and the products' own.
pub fn linear_cross_entropy_scratch_bytes(dims: &LinearCrossEntropy, threads: usize) -> usize {
    piece_bytes::<f32>(dims.tokens() * SUMS) + dims.scratch_bytes(threads, true, true)
}

/// What [`linear_cross_entropy`] writes.
pub struct LinearCrossEntropyOut<'a> {
    /// `loss[t]`, weighted.
    pub loss: &'a mut [f32],
    /// Gradient of the hidden states, `f32[T, width]`.
    pub dh: Option<&'a mut [f32]>,
    /// Gradient of the weight, `f32[vocab, width]`, and whether it is added to what is there.
    pub dw: Option<(&'a mut [f32], bool)>,
    /// What [`linear_cross_entropy_sums`] gives, `f32[T, 3]`.
    pub sums: Option<&'a mut [f32]>,
}

/// Cross-entropy of `logits = logit_scale h w'`, and its gradients, with at most [`CHUNK_TOKENS`] tokens' logits in
/// memory.
///
/// Chunks begin anew with every packed row. Each gives its losses, `dlogits` in place, `dh = logit_scale dlogits w` and
/// `dw += logit_scale dlogits' h` (a chunk is summed from zero, then added). A chunk in which no token counts is
/// skipped: zeros, and nothing added.
///
/// Errors: a label is not below `vocab`; the outputs are then as they were.
pub fn linear_cross_entropy(
    par: &Par,
    dims: &LinearCrossEntropy,
    head: &Head,
    out: LinearCrossEntropyOut,
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    let LinearCrossEntropyOut { loss, mut dh, mut dw, sums } = out;
    head.check(dims);
    assert!(head.w.rows == dims.vocab, "the weight's shape");
    assert!(dh.as_ref().is_none_or(|dh| dh.len() == head.h.len()), "the gradient's length");
    check_labels(head.labels, head.weights, dims.vocab)?;
    let mut scratch = Scratch::new(scratch);
    let own = scratch.take::<f32>(dims.tokens() * SUMS);
    let sums = sums.unwrap_or(own);
    assert!(sums.len() == dims.tokens() * SUMS && loss.len() == dims.tokens(), "sums and a loss for every token");
    let logits = scratch.take::<f32>(dims.chunk() * dims.vocab);
    let scratch = scratch.rest();
    for tokens in dims.chunks() {
        let elems = tokens.start * dims.width..tokens.end * dims.width;
        let Some(chunk) = head.chunk(dims, head.w, &tokens) else {
            sums[SUMS * tokens.start..SUMS * tokens.end].fill(0.0);
            if let Some(dh) = &mut dh {
                dh[elems].fill(0.0);
            }
            continue;
        };
        let logits = &mut logits[..tokens.len() * dims.vocab];
        chunk.logits(par, logits, scratch);
        take_sums(par, head, &tokens, 0, false, logits, sums);
        if dh.is_some() || dw.is_some() {
            head.grads(par, &tokens, 0, sums, logits);
        }
        if let Some(dh) = &mut dh {
            chunk.grad_h(par, logits, false, &mut dh[elems], scratch);
        }
        if let Some((dw, accumulate)) = &mut dw {
            chunk.grad_w(par, logits, *accumulate, dw, scratch);
            *accumulate = true;
        }
    }
    cross_entropy_of_sums(sums, head.weights, loss);
    if let Some((dw, false)) = dw {
        dw.fill(0.0);
    }
    Ok(())
}

/// The sums of a chunk's tokens with its logits from number `first` on, `accumulate` of those before them too.
fn take_sums(
    par: &Par,
    head: &Head,
    tokens: &Range<usize>,
    first: usize,
    accumulate: bool,
    logits: &[f32],
    sums: &mut [f32],
) {
    let vocab = logits.len() / tokens.len();
    let sums = &mut sums[SUMS * tokens.start..SUMS * tokens.end];
    run_parts(par, tokens.len(), Chunks::new(sums, SUMS), |i, sums: &mut [f32]| {
        let t = tokens.start + i;
        if !head.counts(t) {
            return sums.fill(0.0);
        }
        let before = accumulate.then(|| [sums[0], sums[1], sums[2]]);
        let x = &logits[i * vocab..(i + 1) * vocab];
        sums.copy_from_slice(&simd::dispatch(RowSums { x, first, label: head.labels[t], before }));
    });
}

/// Which rows of the weight are given, and of how many.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The first one, a multiple of [`VOCAB_SEGMENT`].
    pub first: usize,
    /// Rows of the whole weight.
    pub vocab: usize,
}

impl Part {
    fn check(&self, dims: &LinearCrossEntropy, head: &Head) {
        head.check(dims);
        assert!(head.w.rows == dims.vocab && self.first + dims.vocab <= self.vocab, "rows of the weight");
        assert!(self.first.is_multiple_of(VOCAB_SEGMENT), "a part begins with a segment of {VOCAB_SEGMENT} rows");
    }
}

/// Bytes of scratch of [`linear_cross_entropy_sums`]; `dims.vocab` is how many rows are given.
pub fn linear_cross_entropy_sums_scratch_bytes(dims: &LinearCrossEntropy, threads: usize) -> usize {
    dims.scratch_bytes(threads, false, false)
}

/// The sums of every token's logits, `f32[T, 3]`: the largest `m`, the sum of `exp(x - m)` and the label's logit;
/// zeros where it does not count. `head.w` has some rows of the weight, `dims.vocab` of them; with `accumulate`, `sums`
/// holds those of the rows before.
///
/// Errors: a label is not below `part.vocab`; `sums` are then as they were.
pub fn linear_cross_entropy_sums(
    par: &Par,
    dims: &LinearCrossEntropy,
    part: Part,
    head: &Head,
    (sums, accumulate): (&mut [f32], bool),
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    part.check(dims, head);
    assert!(sums.len() == dims.tokens() * SUMS, "three sums for every token");
    check_labels(head.labels, head.weights, part.vocab)?;
    let mut scratch = Scratch::new(scratch);
    let logits = scratch.take::<f32>(dims.chunk() * dims.vocab);
    let scratch = scratch.rest();
    for tokens in dims.chunks() {
        let Some(chunk) = head.chunk(dims, head.w, &tokens) else {
            sums[SUMS * tokens.start..SUMS * tokens.end].fill(0.0);
            continue;
        };
        let logits = &mut logits[..tokens.len() * dims.vocab];
        chunk.logits(par, logits, scratch);
        take_sums(par, head, &tokens, part.first, accumulate, logits, sums);
    }
    Ok(())
}

/// Bytes of scratch of [`linear_cross_entropy_grad_h`]; `dims.vocab` is how many rows are given.
pub fn linear_cross_entropy_grad_h_scratch_bytes(dims: &LinearCrossEntropy, threads: usize) -> usize {
    dims.scratch_bytes(threads, true, false)
}

/// What some rows of the weight, `dims.vocab` of them, add to the gradient of the hidden states, from the sums of all
/// logits: rows given in order, each part with `accumulate` but the first, lead to the bits of the whole.
///
/// Errors: a label is not below `part.vocab`; `dh` is then as it was.
pub fn linear_cross_entropy_grad_h(
    par: &Par,
    dims: &LinearCrossEntropy,
    part: Part,
    head: &Head,
    sums: &[f32],
    (dh, accumulate): (&mut [f32], bool),
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    part.check(dims, head);
    assert!(sums.len() == dims.tokens() * SUMS && dh.len() == head.h.len(), "sums and a gradient for every token");
    check_labels(head.labels, head.weights, part.vocab)?;
    let mut scratch = Scratch::new(scratch);
    let logits = scratch.take::<f32>(dims.chunk() * dims.vocab);
    let scratch = scratch.rest();
    for tokens in dims.chunks() {
        let dh = &mut dh[tokens.start * dims.width..tokens.end * dims.width];
        match head.chunk(dims, head.w, &tokens) {
            Some(chunk) => {
                let logits = &mut logits[..tokens.len() * dims.vocab];
                chunk.logits(par, logits, scratch);
                head.grads(par, &tokens, part.first, sums, logits);
                chunk.grad_h(par, logits, accumulate, dh, scratch);
            }
            None if accumulate => {}
            None => dh.fill(0.0),
        }
    }
    Ok(())
}

/// Bytes of scratch of [`linear_cross_entropy_grad_w`] for a panel of so many rows.
pub fn linear_cross_entropy_grad_w_scratch_bytes(dims: &LinearCrossEntropy, panel: usize, threads: usize) -> usize {
    LinearCrossEntropy { vocab: panel, ..*dims }.scratch_bytes(threads, false, true)
}

/// The gradient of the weight of [`linear_cross_entropy`] alone, for the rows from `first_row` on that `dw` has room
/// for: the same bits, from the sums of all logits. `accumulate` adds to what is there. Other rows of the weight are
/// not read, and need not be there: the head's weight may be these rows alone.
///
/// Errors: a label is not below `vocab`; `dw` is then as it was.
pub fn linear_cross_entropy_grad_w(
    par: &Par,
    dims: &LinearCrossEntropy,
    head: &Head,
    sums: &[f32],
    first_row: usize,
    (dw, mut accumulate): (&mut [f32], bool),
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    head.check(dims);
    let panel = dw.len() / dims.width;
    assert!(head.w.rows == dims.vocab || head.w.rows == panel, "the weight's shape");
    assert!(
        dw.len().is_multiple_of(dims.width) && sums.len() == SUMS * dims.tokens(),
        "whole rows, sums of all tokens"
    );
    check_labels(head.labels, head.weights, dims.vocab)?;
    let w = head.w.rows_from(if head.w.rows == panel { 0 } else { first_row }, panel);
    let dims = LinearCrossEntropy { vocab: panel, ..*dims };
    let mut scratch = Scratch::new(scratch);
    let logits = scratch.take::<f32>(dims.chunk() * panel);
    let scratch = scratch.rest();
    for tokens in dims.chunks() {
        let Some(chunk) = head.chunk(&dims, &w, &tokens) else { continue };
        let logits = &mut logits[..tokens.len() * panel];
        chunk.logits(par, logits, scratch);
        head.grads(par, &tokens, first_row, sums, logits);
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

    fn grad_h(&self, par: &Par, dlogits: &[f32], accumulate: bool, dh: &mut [f32], scratch: &mut [u8]) {
        let factors = self.product(self.rows(dlogits, self.dims.vocab), *self.w);
        let g = Gemm { accumulate, k_segment: Some(VOCAB_SEGMENT), ..factors };
        gemm(par, &g, dh, self.dims.width, scratch);
    }

    fn grad_w(&self, par: &Par, dlogits: &[f32], accumulate: bool, dw: &mut [f32], scratch: &mut [u8]) {
        let factors = self.product(self.rows(dlogits, self.dims.vocab), self.rows(self.h, self.dims.width));
        gemm(par, &Gemm { a_trans: true, accumulate, ..factors }, dw, self.dims.width, scratch);
    }
}
