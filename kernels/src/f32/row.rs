//! Vectors along a row: sums in a fixed order, and rows whose length is no multiple of the lanes.

use super::simd::{LANES, Simd};

/// `f(x[i..i + 16], ...)` summed over the row in four vectors of lanes; the tail fills the first.
macro_rules! row_sum {
    ($s:ident, ($($x:expr => $v:ident),+), $len:expr, |$sum:ident| $step:expr) => {{
        let mut sums = [$s.zero(); 4];
        let len = $len;
        let mut at = 0;
        while at + 4 * $crate::f32::simd::LANES <= len {
            for k in 0..4 {
                $(let $v = $s.load($crate::f32::row::chunk($x, at + k * $crate::f32::simd::LANES));)+
                let $sum = sums[k];
                sums[k] = $step;
            }
            at += 4 * $crate::f32::simd::LANES;
        }
        let mut k = 0;
        while at < len {
            $(let $v = $crate::f32::row::load_any($s, $x, at);)+
            let $sum = sums[k];
            sums[k] = $step;
            at += $crate::f32::simd::LANES;
            k += 1;
        }
        $s.sum($s.add($s.add(sums[0], sums[1]), $s.add(sums[2], sums[3])))
    }};
}

pub(crate) use row_sum;

/// Sixteen elements from `at`.
#[inline(always)]
pub(crate) fn chunk(x: &[f32], at: usize) -> &[f32; LANES] {
    // The caller's loop bound leaves sixteen elements.
    x[at..at + LANES].first_chunk().unwrap()
}

/// Up to sixteen elements from `at`, zeros beyond the end.
#[inline(always)]
pub(crate) fn load_any<S: Simd>(s: S, x: &[f32], at: usize) -> S::V {
    match x[at..].first_chunk() {
        Some(x) => s.load(x),
        None => s.load_tail(&x[at..]),
    }
}

/// Writes up to sixteen elements from `at`.
#[inline(always)]
pub(crate) fn store_any<S: Simd>(s: S, v: S::V, y: &mut [f32], at: usize) {
    match y[at..].first_chunk_mut() {
        Some(y) => s.store(v, y),
        None => s.store_tail(v, &mut y[at..]),
    }
}
