//! Attention to a cache of keys and values, for generation: forward only.
//!
//! Few tokens go one by one, elements of a head in lanes, which reads the cache once; many go in the tiles of the
//! training's forward pass. Bound: the bytes of keys and values seen over memory bandwidth, or as in training.

use super::forward::{forward_elems, forward_tile};
use super::{Attention, QUERIES, QueryTile};
use crate::f32::index::{OutOfRange, check};
use crate::f32::math::exp;
use crate::f32::parts::{PerWorker, Tiles, run_parts};
use crate::f32::row::{load_any, row_sum, store_any};
use crate::f32::scratch::{Scratch, piece_bytes};
use crate::f32::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;

/// Keys whose scores exist at a time when tokens go one by one.
const CHUNK: usize = 8 * LANES;
/// Tokens from which tiles are worth it.
const TILED_TOKENS: usize = 8;

/// Shapes of one attention to a cache.
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether a token sees only the last `window` positions, its own included.
    pub window: Option<usize>,
}

impl CachedAttention {
    /// The training's view of it, for `tokens` queries.
    fn dims(&self, tokens: usize) -> Attention {
        Attention {
            rows: 1,
            seq: tokens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            is_causal: true,
            window: self.window,
        }
    }
}

/// Bytes of scratch of [`attention_cached`] for `tokens` queries and a cache of `context` positions.
pub fn attention_cached_scratch_bytes(dims: &CachedAttention, tokens: usize, context: usize, threads: usize) -> usize {
    if tokens < TILED_TOKENS {
        return 0;
    }
    piece_bytes::<f32>(forward_elems(&dims.dims(tokens)) * threads) + piece_bytes::<i32>(context)
}

/// `o[t, h] = sum over j <= positions[t] of softmax(scale q[t, h] . keys[j, h'])_j values[j, h']`.
///
/// `q`, `o`: `f32[T, heads * head_dim]`; `keys`, `values`: `f32[context, kv_heads * head_dim]`; a token at a negative
/// position gets zeros. Tokens from 8 on are taken in tiles, so the order of sums depends on `T`; not on `context`.
/// Errors: a position is not below `context`; `o` is then as it was.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn attention_cached(
    par: &Par,
    cached: &CachedAttention,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    positions: &[i32],
    o: &mut [f32],
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    let dims = &cached.dims(positions.len());
    let context = keys.len() / dims.kv_cols().max(1);
    assert!(positions.is_empty() || super::attention_supports(dims), "unsupported attention {cached:?}");
    assert!(q.len() == dims.tokens() * dims.q_cols() && o.len() == q.len(), "a row for every position");
    assert!(values.len() == keys.len() && keys.len() == context * dims.kv_cols(), "the cache's length");
    check("position", positions, context, |position| position < 0)?;
    if positions.is_empty() {
        return Ok(());
    }
    if positions.len() < TILED_TOKENS {
        let o = Tiles::new(o, dims.q_cols(), 1, (1, dims.head_dim));
        run_parts(par, o.count(), o, |index, mut o| {
            let (token, head) = (index / dims.heads, index % dims.heads);
            let q = &q[index * dims.head_dim..(index + 1) * dims.head_dim];
            simd::dispatch(OneQuery { dims, q, keys, values, head, position: positions[token], o: o.row(0) });
        });
        return Ok(());
    }
    let mut scratch = Scratch::new(scratch);
    let elems = forward_elems(dims);
    let work = PerWorker::new(scratch.take::<f32>(elems * par.threads()), elems);
    // Every key is of segment 0.
    let segments = scratch.take::<i32>(context);
    segments.fill(0);
    let o = Tiles::new(o, dims.q_cols(), dims.seq, (QUERIES, dims.head_dim));
    run_parts(par, o.count(), (o, work), |index, (mut o, work)| {
        let first = index / dims.heads * QUERIES;
        let tile = QueryTile::of_positions(segments, positions, first, index % dims.heads);
        forward_tile(dims, &tile, (q, keys, values), &mut o, None, work);
    });
    Ok(())
}

impl<'a> QueryTile<'a> {
    /// The queries from `first` of a list of positions in the cache.
    fn of_positions(segments: &'a [i32], positions: &[i32], first: usize, head: usize) -> Self {
        let count = QUERIES.min(positions.len() - first);
        let mine = &positions[first..first + count];
        let mut tile = QueryTile {
            segments,
            key_row: 0,
            query_row: first,
            count,
            head,
            query_segments: [-1; QUERIES],
            positions: [-1; QUERIES],
            span: (0, 0),
            ids: None,
        };
        tile.positions[..count].copy_from_slice(mine);
        for (segment, &position) in tile.query_segments.iter_mut().zip(mine) {
            *segment = if position < 0 { -1 } else { 0 };
        }
        let seen = || mine.iter().copied().filter(|&position| position >= 0);
        if let Some((low, high)) = seen().min().zip(seen().max()) {
            tile.span = (low as usize, high as usize);
            tile.ids = Some((0, 0));
        }
        tile
    }
}

/// One query of one head.
struct OneQuery<'a> {
    dims: &'a Attention,
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    head: usize,
    position: i32,
    o: &'a mut [f32],
}

impl Kernel for OneQuery<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (dims, hd) = (self.dims, self.dims.head_dim);
        self.o.fill(0.0);
        // No key for a negative position.
        let end = (self.position + 1).max(0) as usize;
        let low = dims.window.map_or(0, |window| end.saturating_sub(window));
        let offset = self.head / dims.group() * hd;
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        for start in (low / CHUNK * CHUNK..end).step_by(CHUNK) {
            let mut p = [f32::NEG_INFINITY; CHUNK];
            let mut new_max = max;
            for j in start.max(low)..end.min(start + CHUNK) {
                let key = &self.keys[j * dims.kv_cols() + offset..][..hd];
                let score = row_sum!(s, (self.q => q, key => k), hd, |sum| s.fma(q, k, sum)) * dims.scale;
                p[j - start] = score;
                new_max = new_max.max(score);
            }
            let shift = s.splat(new_max);
            for x in p.as_chunks_mut::<LANES>().0 {
                let e = exp(s, s.sub(s.load(x), shift));
                s.store(e, x);
            }
            let mut alpha = [max; LANES];
            s.store(exp(s, s.sub(s.load(&alpha), shift)), &mut alpha);
            (max, sum) = (new_max, sum * alpha[0] + p.iter().sum::<f32>());
            for at in (0..hd).step_by(LANES) {
                let mut o = s.mul(load_any(s, self.o, at), s.splat(alpha[0]));
                for j in start.max(low)..end.min(start + CHUNK) {
                    let value = &self.values[j * dims.kv_cols() + offset..][..hd];
                    o = s.fma(s.splat(p[j - start]), load_any(s, value, at), o);
                }
                store_any(s, o, self.o, at);
            }
        }
        let inverse = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        self.o.iter_mut().for_each(|o| *o *= inverse);
    }
}

/// `cache[positions[t], :] = x[t, :]` for `cache[context, cols]`, `x[T, cols]`; negative positions are skipped, of
/// equal ones the last stays.
///
/// Errors: a position is not below `context`; the cache is then as it was.
pub fn kv_write(cols: usize, x: &[f32], positions: &[i32], cache: &mut [f32]) -> Result<(), OutOfRange> {
    assert!(cols > 0 && x.len() == positions.len() * cols, "a row for every position");
    check("position", positions, cache.len() / cols, |position| position < 0)?;
    for (x, &position) in x.chunks_exact(cols).zip(positions).filter(|(_, position)| **position >= 0) {
        cache[position as usize * cols..][..cols].copy_from_slice(x);
    }
    Ok(())
}
