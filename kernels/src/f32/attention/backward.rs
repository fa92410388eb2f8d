//! Attention, backward: probabilities are recomputed from the forward pass's logarithms of sums.

use super::{Attention, KEYS, Mask, QUERIES, QueryTile, gather, lanes, multiply_keys};
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

/// Gradients of [`attention`]: `dv = P' do`, `dS = P (do V' - rowsum(do o))`, `dq = scale dS K`, `dk = scale dS' q`,
/// with the probabilities `P = exp(S - lse)` recomputed.
///
/// A task is a packed row and a key head; `dk` and `dv` are summed over query heads and query tiles in order. Tokens
/// that see nothing, or are not seen, get zeros. No output may be an input.
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
    assert!(
        dq.len() == saved.q.len() && dk.len() == saved.k.len() && dv.len() == saved.k.len(),
        "the gradients' length"
    );
    if dims.rows == 0 {
        return;
    }
    let worker_elems = backward_elems(dims);
    let work = Scratch::new(scratch).take::<f32>(worker_elems * par.threads());
    let dq = Tiles::new(dq, dims.q_cols(), dims.seq, (dims.seq, dims.group() * dims.head_dim));
    let dk = Tiles::new(dk, dims.kv_cols(), dims.seq, (dims.seq, dims.head_dim));
    let dv = Tiles::new(dv, dims.kv_cols(), dims.seq, (dims.seq, dims.head_dim));
    let tasks = dk.count();
    run_parts(par, tasks, (dq, dk, dv, PerWorker::new(work, worker_elems)), |index, (mut dq, mut dk, mut dv, work)| {
        for row in 0..dims.seq {
            dk.row(row).fill(0.0);
            dv.row(row).fill(0.0);
        }
        for member in 0..dims.group() {
            let head = index % dims.kv_heads * dims.group() + member;
            let mut dq = dq.cols_from(member * dims.head_dim, dims.head_dim);
            for first in (0..dims.seq).step_by(QUERIES) {
                let tile = QueryTile::of_row(dims, saved.segments, index / dims.kv_heads, first, head);
                let mut dq = dq.rows_from(first, tile.count);
                backward_tile(dims, &tile, saved, (&mut dq, &mut dk, &mut dv), work);
            }
        }
    });
}

fn backward_tile<'a>(
    dims: &Attention,
    tile: &QueryTile,
    saved: &Saved,
    (dq, dk, dv): (&mut Tile<f32>, &mut Tile<'a, f32>, &mut Tile<'a, f32>),
    work: &mut [f32],
) {
    let (queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
    let (d_output, work) = work.split_at_mut(QUERIES * dims.head_dim);
    let (d_queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
    let (scores, d_scores) = work.split_at_mut(QUERIES * KEYS);
    gather(dims, tile, saved.q, dims.scale, queries);
    gather(dims, tile, saved.d_o, 1.0, d_output);
    d_queries.fill(0.0);
    let (lse, delta) = statistics(dims, tile, saved);
    let (start, end) = tile.key_range(dims);
    let query_at = tile.query_offset(dims);
    for start in (start..end).step_by(KEYS) {
        let end = end.min(start + KEYS);
        let mask = tile.mask(dims, start, end);
        if mask == Mask::Empty {
            continue;
        }
        let at = tile.key_offset(dims, start);
        multiply_keys(dims, &saved.k[at..], queries, end - start, scores);
        multiply_keys(dims, &saved.v[at..], d_output, end - start, d_scores);
        simd::dispatch(ScoreGrad { dims, tile, start, end, mask, scores, d_scores, lse: &lse, delta: &delta });
        for (x, weights, out) in [(saved.d_o, &*scores, &mut *dv), (saved.q, &*d_scores, &mut *dk)] {
            simd::dispatch(Product {
                a: weights,
                a_row: QUERIES,
                a_col: 1,
                b: &x[query_at..],
                b_row: dims.q_cols(),
                k: tile.count,
                start: Start::Keep,
                c: &mut out.rows_from(start, end - start),
            });
        }
        simd::dispatch(Product {
            a: &saved.k[at..],
            a_row: 1,
            a_col: dims.kv_cols(),
            b: d_scores,
            b_row: QUERIES,
            k: end - start,
            start: Start::Keep,
            c: &mut Tile::of(d_queries, dims.head_dim, QUERIES, QUERIES),
        });
    }
    for i in 0..tile.count {
        dq.row(i).iter_mut().zip(d_queries[i..].iter().step_by(QUERIES)).for_each(|(dq, x)| *dq = *x);
    }
}

/// `(lse, sum over d of do o)` of the tile's queries; an infinite `lse`, so that probabilities are zero, where a query
/// sees nothing.
fn statistics(dims: &Attention, tile: &QueryTile, saved: &Saved) -> ([f32; QUERIES], [f32; QUERIES]) {
    let (mut lse, mut delta) = ([f32::INFINITY; QUERIES], [0.0; QUERIES]);
    let at = tile.query_offset(dims);
    for i in 0..tile.count {
        let x = saved.lse[(tile.query_row + i) * dims.heads + tile.head];
        if x > f32::NEG_INFINITY {
            lse[i] = x;
        }
        let part = at + i * dims.q_cols()..at + i * dims.q_cols() + dims.head_dim;
        delta[i] = saved.o[part.clone()].iter().zip(&saved.d_o[part]).fold(0.0, |sum, (o, d)| o.mul_add(*d, sum));
    }
    (lse, delta)
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
