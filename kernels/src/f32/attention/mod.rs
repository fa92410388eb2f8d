//! Softmax attention, tile by tile: the matrix of scores never exists.
//!
//! ```text
//! for t, for h { for j seen { p[j] = exp(scale * q[t, h] . k[j, h'] - lse) }; o[t, h] = sum of p[j] v[j, h'] }
//! ```
//! A token attends to tokens of its packed row that have its segment id, under a causal mask and a window if asked.
//! Key head `h'` serves `heads / kv_heads` query heads. Tiles are [`QUERIES`] queries, in lanes, by [`KEYS`] keys:
//! scores are held transposed, so that softmax runs over registers instead of across lanes and keys and values are
//! used where they lie. Tiles that the mask empties are skipped, which changes no bit.
//!
//! Scores, softmax and sums of a tile run in an order fixed by the shape. Source: Dao et al. 2022, Milakov and
//! Gimelshein 2018. Bound: `4 * head_dim` operations a score forward, `10 * head_dim` backward, over the peak of
//! the multiply-add units.

mod backward;
mod cached;
mod forward;
mod pack;

pub use backward::{Saved, attention_grad, attention_grad_scratch_bytes};
pub use cached::{CachedAttention, attention_cached, attention_cached_scratch_bytes, kv_write};
pub use forward::{attention, attention_scratch_bytes};

use super::parts::Tile;
use super::simd::{self, LANES, Simd};
use super::tile::{Product, Start};

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

/// The queries of a tile: which they are, and what the mask asks of each.
struct QueryTile<'a> {
    /// Segment ids of the keys.
    segments: &'a [i32],
    /// Row of the first key.
    key_row: usize,
    /// Row of the first query.
    query_row: usize,
    count: usize,
    head: usize,
    /// Segment id of each query; -1 where there is none.
    query_segments: [i32; QUERIES],
    /// Position of each query among the keys.
    positions: [i32; QUERIES],
    /// Least and largest position of a query that sees something.
    span: (usize, usize),
    /// Least and largest segment id of such queries.
    ids: Option<(i32, i32)>,
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
    /// The queries from `first` of packed row `row`.
    fn of_row(dims: &Attention, segments: &'a [i32], row: usize, first: usize, head: usize) -> Self {
        let token = row * dims.seq;
        let segments = &segments[token..token + dims.seq];
        let count = QUERIES.min(dims.seq - first);
        let mut query_segments = [-1; QUERIES];
        query_segments[..count].copy_from_slice(&segments[first..first + count]);
        QueryTile {
            segments,
            key_row: token,
            query_row: token + first,
            count,
            head,
            query_segments,
            positions: core::array::from_fn(|i| (first + i) as i32),
            span: (first, first + count - 1),
            ids: id_range(&query_segments),
        }
    }

    /// The tiles `(start, end)` of keys that some query may see; a tile starts at a multiple of [`KEYS`].
    fn key_tiles(&self, dims: &Attention) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (low, high) = self.span;
        let end = match (dims.is_causal, dims.window) {
            (true, _) => high + 1,
            (false, Some(window)) => high.saturating_add(window),
            (false, None) => self.segments.len(),
        };
        let end = end.min(self.segments.len());
        let start = dims.window.map_or(0, |window| (low + 1).saturating_sub(window));
        (start / KEYS * KEYS..end).step_by(KEYS).map(move |start| (start, end.min(start + KEYS)))
    }

    /// What the mask leaves of the tile with the keys `start..end`.
    fn mask(&self, dims: &Attention, start: usize, end: usize) -> Mask {
        let (Some(ids), Some(keys)) = (self.ids, id_range(&self.segments[start..end])) else {
            return Mask::Empty;
        };
        if keys.1 < ids.0 || ids.1 < keys.0 {
            return Mask::Empty;
        }
        let (low, high) = self.span;
        let is_one_segment = ids.0 == ids.1
            && keys == ids
            && self.query_segments[..self.count].iter().chain(&self.segments[start..end]).all(|&id| id == ids.0);
        let is_before = !dims.is_causal || end <= low + 1;
        let is_near = dims.window.is_none_or(|w| high < start.saturating_add(w) && end <= low.saturating_add(w));
        if is_one_segment && is_before && is_near { Mask::Full } else { Mask::Mixed }
    }

    /// What the mask asks of key `j`.
    #[inline(always)]
    fn key(&self, dims: &Attention, j: usize) -> Key {
        // Positions fit an i32, so a window of 2^30 either way is none.
        let window = dims.window.unwrap_or(1 << 30).min(1 << 30) as i32;
        let segment = self.segments[j];
        let j = j as i32;
        let above = if dims.is_causal { j - 1 } else { j - window };
        Key { segment, above, below: j.saturating_add(window) }
    }

    /// Where key `start` of the tile's key head lies.
    fn key_offset(&self, dims: &Attention, start: usize) -> usize {
        (self.key_row + start) * dims.kv_cols() + self.head / dims.group() * dims.head_dim
    }

    /// Where the tile's first query lies.
    fn query_offset(&self, dims: &Attention) -> usize {
        self.query_row * dims.q_cols() + self.head * dims.head_dim
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
    /// The queries of lanes `part` that see the key.
    #[inline(always)]
    fn seen<S: Simd>(self, s: S, tile: &QueryTile, part: usize) -> S::M {
        let segments = &tile.query_segments.as_chunks::<LANES>().0[part];
        let positions = &tile.positions.as_chunks::<LANES>().0[part];
        let is_segment = s.and(s.eq_i32(segments, self.segment), s.gt_i32(segments, -1));
        let is_late = s.gt_i32(positions, self.below - 1);
        let is_in_time = s.lt(s.select(is_late, s.splat(1.0), s.zero()), s.splat(0.5));
        s.and(s.and(is_segment, s.gt_i32(positions, self.above)), is_in_time)
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

#[inline(always)]
fn lanes(x: &[f32; QUERIES], part: usize) -> &[f32; LANES] {
    &x.as_chunks::<LANES>().0[part]
}

#[inline(always)]
fn lanes_mut(x: &mut [f32; QUERIES], part: usize) -> &mut [f32; LANES] {
    &mut x.as_chunks_mut::<LANES>().0[part]
}
