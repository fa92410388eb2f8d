//! Rotary position embedding.
//!
//! ```text
//! for t, for h, for i in 0..rotated/2 {
//!     (c, s) = factor * (cos, sin)(positions[t] * inv_freq[i]);
//!     (y[a], y[b]) = (x[a] c - x[b] s, x[b] c + x[a] s)
//! }
//! ```
//! where the pair `(a, b)` of head `h` is `(i, i + rotated/2)`, or `(2 i, 2 i + 1)` when interleaved; elements beyond
//! `rotated` are copied. The rotation is orthogonal, so its gradient is the inverse rotation.
//! A token's sines are computed once for all heads. Bound: 8 bytes an element over memory bandwidth.

use super::math::sin_cos;
use super::parts::{Chunks, run_parts};
use super::simd::{self, Kernel, Simd};
use crate::par::Par;

/// Largest head dimension.
pub const HEAD_DIM_MAX: usize = 1024;
/// Tokens of one task.
const TASK_TOKENS: usize = 8;

/// The rotation.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Heads in a row.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Angle a position, one for every rotated pair; twice their number of elements of a head are rotated.
    pub inv_freq: &'a [f32],
    /// Whether pairs are neighbours instead of lying half the rotated elements apart.
    pub is_interleaved: bool,
    /// Multiplies sines and cosines (1, but for YaRN and longrope).
    pub factor: f32,
    /// Rotates backward: the gradient.
    pub is_inverse: bool,
}

/// Whether [`rope`] can do it.
pub fn rope_supports(heads: usize, head_dim: usize, rotated: usize) -> bool {
    heads > 0 && head_dim <= HEAD_DIM_MAX && rotated.is_multiple_of(2) && rotated <= head_dim
}

/// Rotates `x[T, heads * head_dim]` by `positions[T]`. `x == None`: `y` holds `x`. Scratch: 0 bytes.
///
/// The angle is the f32 product of position and frequency, as the models were trained; its sine and cosine are exact
/// to f32. Source: Su et al. 2021.
pub fn rope(par: &Par, rope: &Rope, x: Option<&[f32]>, positions: &[i32], y: &mut [f32]) {
    let row = rope.heads * rope.head_dim;
    assert!(rope_supports(rope.heads, rope.head_dim, 2 * rope.inv_freq.len()), "unsupported rotation {rope:?}");
    assert_eq!(positions.len() * row, y.len(), "a position for every row");
    run_parts(par, positions.len().div_ceil(TASK_TOKENS), Chunks::new(y, TASK_TOKENS * row), |index, y: &mut [f32]| {
        let positions = &positions[index * TASK_TOKENS..];
        if let Some(x) = x {
            let start = index * TASK_TOKENS * row;
            y.copy_from_slice(&x[start..start + y.len()]);
        }
        for (y, &position) in y.chunks_exact_mut(row).zip(positions) {
            simd::dispatch(Rotate { rope, position, y });
        }
    });
}

struct Rotate<'a> {
    rope: &'a Rope<'a>,
    position: i32,
    y: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rope = self.rope;
        let pairs = rope.inv_freq.len();
        let (mut cos, mut sin) = ([0.0f32; HEAD_DIM_MAX / 2], [0.0f32; HEAD_DIM_MAX / 2]);
        let (cos, sin) = (&mut cos[..pairs], &mut sin[..pairs]);
        let sin_factor = if rope.is_inverse { -rope.factor } else { rope.factor };
        for i in 0..pairs {
            let (s, c) = sin_cos((self.position as f32 * rope.inv_freq[i]) as f64);
            cos[i] = c as f32 * rope.factor;
            sin[i] = s as f32 * sin_factor;
        }
        for head in self.y.chunks_exact_mut(rope.head_dim) {
            if rope.is_interleaved {
                for (pair, (&c, &s)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin.iter())) {
                    *pair = rotate(*pair, c, s);
                }
            } else {
                let (low, high) = head.split_at_mut(pairs);
                for i in 0..pairs {
                    [low[i], high[i]] = rotate([low[i], high[i]], cos[i], sin[i]);
                }
            }
        }
    }
}

#[inline(always)]
fn rotate([a, b]: [f32; 2], c: f32, s: f32) -> [f32; 2] {
    [a.mul_add(c, -(b * s)), b.mul_add(c, a * s)]
}
