//! Softmax attention, tile by tile: the matrix of scores never exists.
//!
//! ```text
//! for t, for h { for j allowed { p[j] = exp(scale * q[t, h] . k[j, h'] - lse) }; o[t, h] = sum of p[j] v[j, h'] }
//! ```
//! A token attends to tokens of its packed row that have its segment id, under a causal mask and a window if asked.
//! Key head `h'` serves `heads / kv_heads` query heads. Tiles are [`QUERIES`] queries, in lanes, by [`KEYS`] keys:
//! scores are held transposed, so that softmax runs over registers instead of across lanes and keys and values are
//! used where they lie. Tiles that the mask empties are skipped, which changes no bit.
//!
//! Scores, softmax and sums of a tile run in an order fixed by the shape. Source: Dao et al. 2022, Milakov and
//! Gimelshein 2018. Bound: `4 * head_dim` operations a score forward, `10 * head_dim` backward, over the peak of
//! the multiply-add units.

use super::math::exp;
use super::parts::{PerWorker, Tile, Tiles, run_parts};
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, LANES, Simd};
use super::tile::{Product, Start};
use crate::par::Par;

/// Queries of a tile.
pub const QUERIES: usize = 2 * LANES;
/// Keys of a tile.
pub const KEYS: usize = 64;

/// Shapes and mask of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Packed rows.
    pub rows: usize,
    /// Tokens of a packed row.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether a token sees only itself and what is before it.
    pub is_causal: bool,
    /// Whether a token sees only those at most `window - 1` positions away.
    pub window: Option<usize>,
}

impl Attention {
    /// Elements of a token's queries.
    fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a token's keys.
    fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Tokens.
    fn tokens(&self) -> usize {
        self.rows * self.seq
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32], segments: &[i32]) {
        assert!(attention_supports(self), "unsupported attention {self:?}");
        assert_eq!(q.len(), self.tokens() * self.q_cols(), "the queries' length");
        assert_eq!(k.len(), self.tokens() * self.kv_cols(), "the keys' length");
        assert_eq!(v.len(), k.len(), "the values' length");
        assert_eq!(segments.len(), self.tokens(), "a segment id for every token");
    }

    /// The keys of a packed row that some query of `first..first + count` may see, in whole tiles from the left.
    fn key_range(&self, first: usize, count: usize) -> (usize, usize) {
        let last = first + count - 1;
        let end = match (self.is_causal, self.window) {
            (true, _) => last + 1,
            (false, Some(window)) => self.seq.min(last.saturating_add(window)),
            (false, None) => self.seq,
        };
        let start = self.window.map_or(0, |window| (first + 1).saturating_sub(window));
        (start / KEYS * KEYS, end)
    }
}

/// Whether [`attention`] and [`attention_grad`] can do it.
pub fn attention_supports(dims: &Attention) -> bool {
    dims.seq > 0
        && dims.head_dim > 0
        && dims.kv_heads > 0
        && dims.heads > 0
        && dims.heads.is_multiple_of(dims.kv_heads)
        && dims.window != Some(0)
        && dims.tokens() < i32::MAX as usize
}

/// Elements of a worker's scratch in the forward pass: queries, scores and output of a tile.
fn forward_elems(dims: &Attention) -> usize {
    QUERIES * (2 * dims.head_dim + KEYS)
}

/// Elements of a worker's scratch in the backward pass: queries, output gradient and query gradient of a tile, scores
/// and their gradient.
fn backward_elems(dims: &Attention) -> usize {
    QUERIES * (3 * dims.head_dim + 2 * KEYS)
}

/// Bytes of scratch of [`attention`].
pub fn attention_scratch_bytes(dims: &Attention, threads: usize) -> usize {
    piece_bytes::<f32>(forward_elems(dims) * threads)
}

/// Bytes of scratch of [`attention_grad`].
pub fn attention_grad_scratch_bytes(dims: &Attention, threads: usize) -> usize {
    piece_bytes::<f32>(backward_elems(dims) * threads)
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
        let tile = QueryTile::new(dims, segments, row, first, index % dims.heads);
        forward_tile(dims, &tile, (q, k, v), &mut o, &mut lse, work);
    });
}

/// The queries of a tile: which they are, and what the mask asks of each.
struct QueryTile<'a> {
    /// Segment ids of the packed row.
    segments: &'a [i32],
    /// The packed row's first token.
    token: usize,
    /// Position of the first query in its packed row.
    first: usize,
    count: usize,
    head: usize,
    /// Segment id of each query; -1 where there is none.
    query_segments: [i32; QUERIES],
    /// Position of each query in the packed row.
    positions: [i32; QUERIES],
    /// Least and largest segment id that is not padding.
    range: Option<(i32, i32)>,
}

/// How much of a tile the mask leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mask {
    Empty,
    Mixed,
    Full,
}

/// Least and largest id that is not padding.
fn id_range(segments: &[i32]) -> Option<(i32, i32)> {
    let ids = || segments.iter().copied().filter(|&id| id >= 0);
    ids().min().zip(ids().max())
}

impl<'a> QueryTile<'a> {
    fn new(dims: &Attention, segments: &'a [i32], row: usize, first: usize, head: usize) -> Self {
        let token = row * dims.seq;
        let segments = &segments[token..token + dims.seq];
        let count = QUERIES.min(dims.seq - first);
        let mut query_segments = [-1; QUERIES];
        query_segments[..count].copy_from_slice(&segments[first..first + count]);
        let positions = core::array::from_fn(|i| (first + i) as i32);
        let range = id_range(&query_segments);
        QueryTile { segments, token, first, count, head, query_segments, positions, range }
    }

    /// What the mask leaves of the tile with the keys `start..end`.
    fn mask(&self, dims: &Attention, start: usize, end: usize) -> Mask {
        let (Some((low, high)), Some(keys)) = (self.range, id_range(&self.segments[start..end])) else {
            return Mask::Empty;
        };
        if keys.1 < low || high < keys.0 {
            return Mask::Empty;
        }
        let last = self.first + self.count - 1;
        let is_one_segment = low == high
            && keys == (low, high)
            && self.query_segments[..self.count].iter().chain(&self.segments[start..end]).all(|&id| id == low);
        let is_before = !dims.is_causal || end <= self.first + 1;
        let is_near = dims.window.is_none_or(|w| last < start.saturating_add(w) && end <= self.first.saturating_add(w));
        if is_one_segment && is_before && is_near { Mask::Full } else { Mask::Mixed }
    }

    /// What the mask asks of key `j` of the packed row: `(segment, positions at least, positions at most)`.
    fn key(&self, dims: &Attention, j: usize) -> Key {
        let window = dims.window.unwrap_or(dims.seq).min(dims.seq) as i32;
        let j = j as i32;
        Key {
            segment: self.segments[j as usize],
            above: if dims.is_causal { j - 1 } else { j - window },
            below: j + window,
        }
    }
}

/// A key as the mask sees it: queries of its segment at positions strictly between `above` and `below` see it.
#[derive(Clone, Copy)]
struct Key {
    segment: i32,
    above: i32,
    below: i32,
}

impl Key {
    /// The queries `at..at + 16` that see the key.
    #[inline(always)]
    fn seen<S: Simd>(self, s: S, tile: &QueryTile, at: usize) -> S::M {
        // `at` is a multiple of the lanes below the tile's width.
        let segments: &[i32; LANES] = tile.query_segments[at..].first_chunk().unwrap();
        let positions: &[i32; LANES] = tile.positions[at..].first_chunk().unwrap();
        let is_segment = s.and(s.eq_i32(segments, self.segment), s.gt_i32(segments, -1));
        let below = s.select(s.gt_i32(positions, self.below - 1), s.zero(), s.splat(1.0));
        s.and(s.and(is_segment, s.gt_i32(positions, self.above)), s.lt(s.zero(), below))
    }
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

fn forward_tile(
    dims: &Attention,
    tile: &QueryTile,
    (q, k, v): (&[f32], &[f32], &[f32]),
    o: &mut Tile<f32>,
    lse: &mut Tile<f32>,
    work: &mut [f32],
) {
    let (queries, work) = work.split_at_mut(QUERIES * dims.head_dim);
    let (output, scores) = work.split_at_mut(QUERIES * dims.head_dim);
    gather(dims, tile, q, dims.scale, queries);
    output.fill(0.0);
    let mut state = Softmax { max: [f32::NEG_INFINITY; QUERIES], sum: [0.0; QUERIES], alpha: [0.0; QUERIES] };
    let (start, end) = dims.key_range(tile.first, tile.count);
    for start in (start..end).step_by(KEYS) {
        let end = end.min(start + KEYS);
        let mask = tile.mask(dims, start, end);
        if mask == Mask::Empty {
            continue;
        }
        let at = key_offset(dims, tile, start);
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
    for i in 0..tile.count {
        let sum = state.sum[i];
        let inverse = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        let column = output[i..].iter().step_by(QUERIES);
        o.row(i).iter_mut().zip(column).for_each(|(o, x)| *o = x * inverse);
        lse.row(i)[0] = if sum > 0.0 { state.max[i] + libm::logf(sum) } else { f32::NEG_INFINITY };
    }
}

/// Where key `start` of the tile's packed row and key head lies.
fn key_offset(dims: &Attention, tile: &QueryTile, start: usize) -> usize {
    (tile.token + start) * dims.kv_cols() + tile.head / dims.group() * dims.head_dim
}

/// Where the tile's first query lies.
fn query_offset(dims: &Attention, tile: &QueryTile) -> usize {
    (tile.token + tile.first) * dims.q_cols() + tile.head * dims.head_dim
}

/// `out[d, i] = factor * x[i, d]` for the tile's queries; zero where there is none.
fn gather(dims: &Attention, tile: &QueryTile, x: &[f32], factor: f32, out: &mut [f32]) {
    if tile.count < QUERIES {
        out.fill(0.0);
    }
    let at = query_offset(dims, tile);
    for i in 0..tile.count {
        let row = &x[at + i * dims.q_cols()..][..dims.head_dim];
        out[i..].iter_mut().step_by(QUERIES).zip(row).for_each(|(out, x)| *out = x * factor);
    }
}

/// `scores[j, i] = sum over d of x[j, d] queries[d, i]` for `count` rows of keys or values.
fn multiply_keys(dims: &Attention, x: &[f32], queries: &[f32], count: usize, scores: &mut [f32]) {
    simd::dispatch(Product {
        a: x,
        a_row: dims.kv_cols(),
        a_col: 1,
        b: queries,
        b_row: QUERIES,
        k: dims.head_dim,
        start: Start::Zero,
        c: &mut Tile::of(scores, count, QUERIES, QUERIES),
    });
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
                    let seen = self.tile.key(self.dims, self.start + j).seen(s, self.tile, part * LANES);
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

#[inline(always)]
fn lanes(x: &[f32; QUERIES], part: usize) -> &[f32; LANES] {
    &x.as_chunks::<LANES>().0[part]
}

#[inline(always)]
fn lanes_mut(x: &mut [f32; QUERIES], part: usize) -> &mut [f32; LANES] {
    &mut x.as_chunks_mut::<LANES>().0[part]
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
                let tile = QueryTile::new(dims, saved.segments, index / dims.kv_heads, first, head);
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
    let (start, end) = dims.key_range(tile.first, tile.count);
    let query_at = query_offset(dims, tile);
    for start in (start..end).step_by(KEYS) {
        let end = end.min(start + KEYS);
        let mask = tile.mask(dims, start, end);
        if mask == Mask::Empty {
            continue;
        }
        let at = key_offset(dims, tile, start);
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
    let at = query_offset(dims, tile);
    for i in 0..tile.count {
        let x = saved.lse[(tile.token + tile.first + i) * dims.heads + tile.head];
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
                    let seen = self.tile.key(self.dims, self.start + j).seen(s, self.tile, part * LANES);
                    p = s.select(seen, p, s.zero());
                }
                let d = s.mul(s.mul(p, s.sub(s.load(&d_scores[at]), delta)), scale);
                s.store(p, &mut scores[at]);
                s.store(d, &mut d_scores[at]);
            }
        }
    }
}
