//! Attention, backward: probabilities are recomputed from the forward pass's logarithms of sums.

use super::pack::{RowDots, Scatter, gather};
use super::{Attention, KEYS, Mask, QUERIES, QueryTile, lanes, multiply_keys};
use crate::f32::math::exp;
use crate::f32::parts::{PerWorker, Tile, Tiles, run_parts};
use crate::f32::scratch::{Scratch, piece_bytes};
use crate::f32::simd::{self, Kernel, LANES, Simd};
use crate::f32::tile::{Product, Start};
use crate::par::Par;

/// Elements of a worker's scratch in the backward pass: queries, output gradient and query gradient of a tile, scores
/// and their gradient.
fn backward_elems(dims: &Attention) -> usize {
    QUERIES * (3 * dims.head_dim + 2 * KEYS)
}

/// Bytes of scratch of [`attention_grad`].
pub fn attention_grad_scratch_bytes(dims: &Attention, threads: usize) -> usize {
    piece_bytes::<f32>(backward_elems(dims) * threads)
}

/// What [`attention_grad`] reads: the forward pass's operands and results, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Queries, `f32[rows * seq, heads * head_dim]`.
    pub q: &'a [f32],
    /// Keys, `f32[rows * seq, kv_heads * head_dim]`.
    pub k: &'a [f32],
    /// Values, `f32[rows * seq, kv_heads * head_dim]`.
    pub v: &'a [f32],
    /// Outputs, `f32[rows * seq, heads * head_dim]`.
    pub o: &'a [f32],
    /// Logarithms of the sums, `f32[rows * seq, heads]`.
    pub lse: &'a [f32],
    /// Gradient of the output, `f32[rows * seq, heads * head_dim]`.
    pub d_o: &'a [f32],
    /// Segment ids, `i32[rows * seq]`.
    pub segments: &'a [i32],
}

/// Gradients of [`super::attention`]: `dv = P' do`, `dS = P (do V' - rowsum(do o))`, `dq = scale dS K`,
/// `dk = scale dS' q`, with the probabilities `P = exp(S - lse)` recomputed.
///
/// `dk` and `dv` are summed over query heads and query tiles in order, `dq` over key tiles in order. Tokens that see
/// nothing, or are not seen, get zeros. No output may be an input.
pub fn attention_grad(
    par: &Par,
    dims: &Attention,
    saved: &Saved,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    scratch: &mut [u8],
) {
    dims.check(saved.q, saved.k, saved.v, saved.segments);
    assert!(saved.o.len() == saved.q.len() && saved.d_o.len() == saved.q.len(), "the outputs' length");
    assert_eq!(saved.lse.len(), dims.tokens() * dims.heads, "the statistics' length");
    assert!(dq.len() == saved.q.len(), "the query gradient's length");
    assert!(dk.len() == saved.k.len() && dv.len() == saved.k.len(), "the key and value gradients' length");
    if dims.rows == 0 {
        return;
    }
    let elems = backward_elems(dims);
    let work = Scratch::new(scratch).take::<f32>(elems * par.threads());
    // One pass over scores costs five products a tile; apart, keys take four and queries three, but in more tasks. The
    // sums run in the same order either way.
    let heads = dims.rows * dims.kv_heads;
    if heads.div_ceil(par.threads()) * 5 * par.threads() <= heads * 7 {
        grad_together(par, dims, saved, (dq, dk, dv), PerWorker::new(work, elems));
    } else {
        grad_keys(par, dims, saved, (dk, dv), PerWorker::new(&mut *work, elems));
        grad_queries(par, dims, saved, dq, PerWorker::new(work, elems));
    }
}

/// All gradients in tasks of a packed row and a key head.
fn grad_together(
    par: &Par,
    dims: &Attention,
    saved: &Saved,
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    work: PerWorker<f32>,
) {
    let dq = Tiles::new(dq, dims.q_cols(), dims.seq, (dims.seq, dims.group() * dims.head_dim));
    let dk = Tiles::new(dk, dims.kv_cols(), dims.seq, (dims.seq, dims.head_dim));
    let dv = Tiles::new(dv, dims.kv_cols(), dims.seq, (dims.seq, dims.head_dim));
    run_parts(par, dk.count(), (dq, dk, dv, work), |index, (mut dq, mut dk, mut dv, work)| {
        clear(&mut dk);
        clear(&mut dv);
        for member in 0..dims.group() {
            let head = index % dims.kv_heads * dims.group() + member;
            let mut dq = dq.cols_from(member * dims.head_dim, dims.head_dim);
            for first in (0..dims.seq).step_by(QUERIES) {
                let tile = QueryTile::of_row(dims, saved.segments, index / dims.kv_heads, first, head);
                let mut pass = Pass::new(dims, saved, tile, work);
                for (start, end) in pass.tile.key_tiles(dims) {
                    if pass.scores(start, end) {
                        let count = end - start;
                        pass.add_keys(&mut dk.rows_from(start, count), &mut dv.rows_from(start, count));
                        pass.add_queries(start, end);
                    }
                }
                pass.finish(&mut dq.rows_from(first, pass.tile.count));
            }
        }
    });
}

/// The gradients of keys and values in tasks of a key tile and a key head.
fn grad_keys(par: &Par, dims: &Attention, saved: &Saved, (dk, dv): (&mut [f32], &mut [f32]), work: PerWorker<f32>) {
    let dk = Tiles::new(dk, dims.kv_cols(), dims.seq, (KEYS, dims.head_dim));
    let dv = Tiles::new(dv, dims.kv_cols(), dims.seq, (KEYS, dims.head_dim));
    let blocks = dims.seq.div_ceil(KEYS);
    run_parts(par, dk.count(), (dk, dv, work), |index, (mut dk, mut dv, work)| {
        clear(&mut dk);
        clear(&mut dv);
        let start = index / dims.kv_heads % blocks * KEYS;
        for member in 0..dims.group() {
            let head = index % dims.kv_heads * dims.group() + member;
            for first in (0..dims.seq).step_by(QUERIES) {
                let tile = QueryTile::of_row(dims, saved.segments, index / dims.kv_heads / blocks, first, head);
                // Only as far as the queries of this tile see, as in one pass.
                let Some((start, end)) = tile.key_tiles(dims).find(|keys| keys.0 == start) else { continue };
                if tile.mask(dims, start, end) == Mask::Empty {
                    continue;
                }
                let mut pass = Pass::new(dims, saved, tile, work);
                pass.scores(start, end);
                pass.add_keys(&mut dk.rows_from(0, end - start), &mut dv.rows_from(0, end - start));
            }
        }
    });
}

/// The gradients of queries in tasks of a query tile and a head.
fn grad_queries(par: &Par, dims: &Attention, saved: &Saved, dq: &mut [f32], work: PerWorker<f32>) {
    let dq = Tiles::new(dq, dims.q_cols(), dims.seq, (QUERIES, dims.head_dim));
    let blocks = dims.seq.div_ceil(QUERIES);
    run_parts(par, dq.count(), (dq, work), |index, (mut dq, work)| {
        let (row, first) = (index / dims.heads / blocks, index / dims.heads % blocks * QUERIES);
        let tile = QueryTile::of_row(dims, saved.segments, row, first, index % dims.heads);
        let mut pass = Pass::new(dims, saved, tile, work);
        for (start, end) in pass.tile.key_tiles(dims) {
            if pass.scores(start, end) {
                pass.add_queries(start, end);
            }
        }
        pass.finish(&mut dq);
    });
}

fn clear(tile: &mut Tile<f32>) {
    for row in 0..tile.rows() {
        tile.row(row).fill(0.0);
    }
}

/// One tile of queries on its way over the keys.
struct Pass<'a> {
    dims: &'a Attention,
    saved: &'a Saved<'a>,
    tile: QueryTile<'a>,
    /// Logarithms of the sums; infinite, so that probabilities are zero, where a query sees nothing.
    lse: [f32; QUERIES],
    /// `sum over d of do o`.
    delta: [f32; QUERIES],
    /// `scale q`, transposed.
    queries: &'a mut [f32],
    /// `do`, transposed.
    d_output: &'a mut [f32],
    /// `dq` so far, transposed.
    d_queries: &'a mut [f32],
    /// Probabilities of the current key tile.
    scores: &'a mut [f32],
    /// `scale dS` of the current key tile.
    d_scores: &'a mut [f32],
}

impl<'a> Pass<'a> {
    fn new(dims: &'a Attention, saved: &'a Saved, tile: QueryTile<'a>, work: &'a mut [f32]) -> Pass<'a> {
        let (queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
        let (d_output, work) = work.split_at_mut(QUERIES * dims.head_dim);
        let (d_queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
        let (scores, d_scores) = work.split_at_mut(QUERIES * KEYS);
        gather(dims, &tile, saved.q, dims.scale, queries);
        gather(dims, &tile, saved.d_o, 1.0, d_output);
        d_queries.fill(0.0);
        let (mut lse, mut delta) = ([f32::INFINITY; QUERIES], [0.0; QUERIES]);
        for (i, lse) in lse.iter_mut().enumerate().take(tile.count) {
            let saved = saved.lse[(tile.query_row + i) * dims.heads + tile.head];
            *lse = if saved > f32::NEG_INFINITY { saved } else { f32::INFINITY };
        }
        let at = tile.query_offset(dims);
        let (a, b) = (&saved.o[at..], &saved.d_o[at..]);
        let (rows, cols) = (tile.count, dims.head_dim);
        simd::dispatch(RowDots { a, b, stride: dims.q_cols(), rows, cols, out: &mut delta });
        Pass { dims, saved, tile, lse, delta, queries, d_output, d_queries, scores, d_scores }
    }

    /// Probabilities and gradients of scores of the keys `start..end`; false when the mask leaves none.
    fn scores(&mut self, start: usize, end: usize) -> bool {
        let (dims, mask) = (self.dims, self.tile.mask(self.dims, start, end));
        if mask == Mask::Empty {
            return false;
        }
        let at = self.tile.key_offset(dims, start);
        multiply_keys(dims, &self.saved.k[at..], self.queries, end - start, self.scores);
        multiply_keys(dims, &self.saved.v[at..], self.d_output, end - start, self.d_scores);
        let Pass { tile, lse, delta, scores, d_scores, .. } = self;
        simd::dispatch(ScoreGrad { dims, tile, start, end, mask, scores, d_scores, lse, delta });
        true
    }

    /// Adds to the gradients of the current key tile.
    fn add_keys(&self, dk: &mut Tile<f32>, dv: &mut Tile<f32>) {
        let at = self.tile.query_offset(self.dims);
        self.add_weighted(&self.saved.d_o[at..], self.scores, dv);
        self.add_weighted(&self.saved.q[at..], self.d_scores, dk);
    }

    /// `out[j, :] += sum over i of weights[j, i] x[i, :]`.
    fn add_weighted(&self, x: &[f32], weights: &[f32], out: &mut Tile<f32>) {
        let (k, b_row) = (self.tile.count, self.dims.q_cols());
        simd::dispatch(Product { a: weights, a_row: QUERIES, a_col: 1, b: x, b_row, k, start: Start::Keep, c: out });
    }

    /// Adds what the keys `start..end` give to the gradient of the queries.
    fn add_queries(&mut self, start: usize, end: usize) {
        simd::dispatch(Product {
            a: &self.saved.k[self.tile.key_offset(self.dims, start)..],
            a_row: 1,
            a_col: self.dims.kv_cols(),
            b: self.d_scores,
            b_row: QUERIES,
            k: end - start,
            start: Start::Keep,
            c: &mut Tile::of(self.d_queries, self.dims.head_dim, QUERIES, QUERIES),
        });
    }

    /// Writes the gradient of the queries.
    fn finish(&self, dq: &mut Tile<f32>) {
        simd::dispatch(Scatter { x: self.d_queries, factors: &[1.0; QUERIES], out: dq });
    }
}

/// Turns scores into probabilities and the gradient of probabilities into that of scores, times the scale.
struct ScoreGrad<'a> {
    dims: &'a Attention,
    tile: &'a QueryTile<'a>,
    start: usize,
    end: usize,
    mask: Mask,
    scores: &'a mut [f32],
    d_scores: &'a mut [f32],
    lse: &'a [f32; QUERIES],
    delta: &'a [f32; QUERIES],
}

impl Kernel for ScoreGrad<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scores, _) = self.scores.as_chunks_mut::<LANES>();
        let (d_scores, _) = self.d_scores.as_chunks_mut::<LANES>();
        let scale = s.splat(self.dims.scale);
        for part in 0..QUERIES / LANES {
            let (lse, delta) = (s.load(lanes(self.lse, part)), s.load(lanes(self.delta, part)));
            for j in 0..self.end - self.start {
                let at = j * (QUERIES / LANES) + part;
                let mut p = exp(s, s.sub(s.load(&scores[at]), lse));
                if self.mask == Mask::Mixed {
                    let seen = self.tile.key(self.dims, self.start + j).seen(s, self.tile, part);
                    p = s.select(seen, p, s.zero());
                }
                let d = s.mul(s.mul(p, s.sub(s.load(&d_scores[at]), delta)), scale);
                s.store(p, &mut scores[at]);
                s.store(d, &mut d_scores[at]);
            }
        }
    }
}
