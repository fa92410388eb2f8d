//! Vectors as arrays: the definition of every operation, and what aarch64 compiles to NEON.

use super::{LANES, Simd};
use core::array::from_fn;

/// Plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; LANES];

/// `2^n` for `n` in -126..=127.
#[inline(always)]
fn power2(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

impl Simd for Portable {
    type V = V;
    type M = [bool; LANES];
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> V {
        *x
    }
    #[inline(always)]
    fn store(self, v: V, y: &mut [f32; LANES]) {
        *y = v;
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        from_fn(|i| a[i].abs())
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        from_fn(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    fn scale2(self, a: V, n: V) -> V {
        from_fn(|i| {
            let n = n[i] as i32;
            a[i] * power2(n >> 1) * power2(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn lt(self, a: V, b: V) -> [bool; LANES] {
        from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn eq_i32(self, a: &[i32; LANES], b: i32) -> [bool; LANES] {
        from_fn(|i| a[i] == b)
    }
    #[inline(always)]
    fn gt_i32(self, a: &[i32; LANES], b: i32) -> [bool; LANES] {
        from_fn(|i| a[i] > b)
    }
    #[inline(always)]
    fn and(self, a: [bool; LANES], b: [bool; LANES]) -> [bool; LANES] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn select(self, m: [bool; LANES], a: V, b: V) -> V {
        from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn transpose(self, rows: [V; LANES]) -> [V; LANES] {
        from_fn(|j| from_fn(|i| rows[i][j]))
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        let eight: [f32; 8] = from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
}
