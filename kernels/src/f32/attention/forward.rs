//! Attention, forward: one pass over the keys with running statistics.

use super::pack::{Scatter, gather};
use super::{Attention, KEYS, Mask, QUERIES, QueryTile, lanes, lanes_mut, multiply_keys};
use crate::f32::math::exp;
use crate::f32::parts::{PerWorker, Tile, Tiles, run_parts};
use crate::f32::scratch::{Scratch, piece_bytes};
use crate::f32::simd::{self, Kernel, LANES, Simd};
use crate::f32::tile::{Product, Start};
use crate::par::Par;

/// Elements of a worker's scratch in the forward pass: queries, scores and output of a tile.
pub(super) fn forward_elems(dims: &Attention) -> usize {
    QUERIES * (2 * dims.head_dim + KEYS)
}

/// Bytes of scratch of [`attention`].
pub fn attention_scratch_bytes(dims: &Attention, threads: usize) -> usize {
    piece_bytes::<f32>(forward_elems(dims) * threads)
}

/// `o[t, h] = sum over j of softmax(scale q[t, h] . k[j, h'])_j v[j, h']`, and `lse[t, h]`, the logarithm of the sum of
/// exponentials that the backward pass starts from.
///
/// `q`, `o`: `f32[rows * seq, heads * head_dim]`; `k`, `v`: `f32[rows * seq, kv_heads * head_dim]`;
/// `segments`: `i32[rows * seq]`, negative for padding; `lse`: `f32[rows * seq, heads]`. A token that sees nothing gets
/// `o = 0` and `lse = -inf`. `o` must not be `q`.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn attention(
    par: &Par,
    dims: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[i32],
    o: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [u8],
) {
    dims.check(q, k, v, segments);
    assert_eq!(o.len(), q.len(), "the output's length");
    assert_eq!(lse.len(), dims.tokens() * dims.heads, "the statistics' length");
    if dims.rows == 0 {
        return;
    }
    let worker_elems = forward_elems(dims);
    let work = Scratch::new(scratch).take::<f32>(worker_elems * par.threads());
    let o = Tiles::new(o, dims.q_cols(), dims.seq, (QUERIES, dims.head_dim));
    let lse = Tiles::new(lse, dims.heads, dims.seq, (QUERIES, 1));
    let tasks = o.count();
    let blocks = dims.seq.div_ceil(QUERIES);
    run_parts(par, tasks, (o, lse, PerWorker::new(work, worker_elems)), |index, (mut o, mut lse, work)| {
        let (row, first) = (index / dims.heads / blocks, index / dims.heads % blocks * QUERIES);
        let tile = QueryTile::of_row(dims, segments, row, first, index % dims.heads);
        forward_tile(dims, &tile, (q, k, v), &mut o, Some(&mut lse), work);
    });
}

/// The running statistics of a tile's queries.
struct Softmax {
    /// Largest score so far.
    max: [f32; QUERIES],
    /// Sum of `exp(score - max)` so far.
    sum: [f32; QUERIES],
    /// What the last tile multiplies earlier sums by.
    alpha: [f32; QUERIES],
}

pub(super) fn forward_tile(
    dims: &Attention,
    tile: &QueryTile,
    (q, k, v): (&[f32], &[f32], &[f32]),
    o: &mut Tile<f32>,
    lse: Option<&mut Tile<f32>>,
    work: &mut [f32],
) {
    let (queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
    let (output, scores) = work.split_at_mut(QUERIES * dims.head_dim);
    gather(dims, tile, q, dims.scale, queries);
    output.fill(0.0);
    let mut state = Softmax { max: [f32::NEG_INFINITY; QUERIES], sum: [0.0; QUERIES], alpha: [0.0; QUERIES] };
    for (start, end) in tile.key_tiles(dims) {
        let mask = tile.mask(dims, start, end);
        if mask == Mask::Empty {
            continue;
        }
        let at = tile.key_offset(dims, start);
        multiply_keys(dims, &k[at..], queries, end - start, scores);
        simd::dispatch(OnlineSoftmax { dims, tile, start, end, mask, scores, state: &mut state });
        simd::dispatch(Product {
            a: &v[at..],
            a_row: 1,
            a_col: dims.kv_cols(),
            b: scores,
            b_row: QUERIES,
            k: end - start,
            start: Start::Scaled(&state.alpha),
            c: &mut Tile::of(output, dims.head_dim, QUERIES, QUERIES),
        });
    }
    let factors = &state.sum.map(|sum| if sum > 0.0 { 1.0 / sum } else { 0.0 });
    simd::dispatch(Scatter { x: output, factors, out: o });
    if let Some(lse) = lse {
        for i in 0..tile.count {
            let sum = state.sum[i];
            lse.row(i)[0] = if sum > 0.0 { state.max[i] + libm::logf(sum) } else { f32::NEG_INFINITY };
        }
    }
}

/// Masks a tile of scores, updates the running statistics and leaves `exp(score - max)`.
struct OnlineSoftmax<'a> {
    dims: &'a Attention,
    tile: &'a QueryTile<'a>,
    start: usize,
    end: usize,
    mask: Mask,
    scores: &'a mut [f32],
    state: &'a mut Softmax,
}

impl Kernel for OnlineSoftmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scores, _) = self.scores.as_chunks_mut::<LANES>();
        let scores = &mut scores[..(self.end - self.start) * (QUERIES / LANES)];
        let lowest = s.splat(f32::NEG_INFINITY);
        for part in 0..QUERIES / LANES {
            if self.mask == Mask::Mixed {
                for (j, x) in scores.chunks_exact_mut(QUERIES / LANES).enumerate() {
                    let seen = self.tile.key(self.dims, self.start + j).seen(s, self.tile, part);
                    let masked = s.select(seen, s.load(&x[part]), lowest);
                    s.store(masked, &mut x[part]);
                }
            }
            let before = s.load(lanes(&self.state.max, part));
            let mut max = before;
            for x in scores.chunks_exact(QUERIES / LANES) {
                max = s.max(s.load(&x[part]), max);
            }
            // Queries that have seen nothing keep their infinite maximum, but are not subtracted from.
            let shift = s.select(s.lt(lowest, max), max, s.zero());
            let alpha = exp(s, s.sub(before, shift));
            let mut sum = s.mul(s.load(lanes(&self.state.sum, part)), alpha);
            for x in scores.chunks_exact_mut(QUERIES / LANES) {
                let p = exp(s, s.sub(s.load(&x[part]), shift));
                sum = s.add(sum, p);
                s.store(p, &mut x[part]);
            }
            s.store(max, lanes_mut(&mut self.state.max, part));
            s.store(sum, lanes_mut(&mut self.state.sum, part));
            s.store(alpha, lanes_mut(&mut self.state.alpha, part));
        }
    }
}
