//! What the tests share: values, comparisons, and running a kernel in every way it can run.

use std::sync::Mutex;
use tinyforge_kernels::f32::simd::{Isa, limit_isa};
use tinyforge_kernels::par::Par;
use tinyforge_kernels::random::Stream;

/// Lengths around the sixteen lanes, the four vectors of a row sum and a task.
pub(crate) const LENGTHS: [usize; 10] = [1, 3, 15, 16, 17, 63, 64, 65, 200, 20_000];

/// `len` values in `-1..1`, the same for the same `seed`.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let stream = Stream { seed, step: 0, tensor: 0 };
    (0..len).map(|i| 2.0 * stream.uniform(i as u64) - 1.0).collect()
}

/// `len` values in `low..high`.
pub(crate) fn integers(seed: u64, len: usize, low: i32, high: i32) -> Vec<i32> {
    let stream = Stream { seed, step: 1, tensor: 0 };
    (0..len).map(|i| low + (stream.uniform(i as u64) * (high - low) as f32) as i32).collect()
}

/// As f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Asserts that every element is within `tol * (1 + |expected|)`.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tol: f64) {
    assert_eq!(actual.len(), expected.len(), "lengths");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let a = f64::from(a);
        let is_close = (a - e).abs() <= tol * (1.0 + e.abs()) || a == e;
        assert!(is_close, "element {i}: {a} instead of {e}, tolerance {tol}");
    }
}

/// Asserts that the bits are the same.
#[track_caller]
pub(crate) fn assert_same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let is_same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(is_same, "{what}: element {i} is {a} and {b}");
    }
}

/// One thread.
pub(crate) fn one() -> Par {
    pool(1)
}

fn pool(threads: usize) -> Par {
    Par::new(threads, 1 << 20).expect("threads for a test")
}

/// Runs `f` with one, two and three threads and with every instruction set, asserts that the outputs are the same bits,
/// and returns them. The outputs start as NaN, so one that is not written shows.
#[track_caller]
pub(crate) fn everywhere<const N: usize>(lens: [usize; N], f: impl Fn(&Par, &mut [Vec<f32>; N])) -> [Vec<f32>; N] {
    let run = |par: &Par| {
        let mut out = lens.map(|len| vec![f32::NAN; len]);
        f(par, &mut out);
        out
    };
    let expected = run(&one());
    for threads in [2, 3] {
        let out = run(&pool(threads));
        out.iter().zip(&expected).for_each(|(a, b)| assert_same(a, b, &format!("{threads} threads")));
    }
    // One at a time, so that each is really used; tests that run beside it do not care which it is.
    static LIMIT: Mutex<()> = Mutex::new(());
    let _alone = LIMIT.lock().unwrap_or_else(|failed| failed.into_inner());
    for isa in [Isa::Portable, Isa::Avx2] {
        limit_isa(isa);
        let out = run(&one());
        limit_isa(Isa::Avx512);
        out.iter().zip(&expected).for_each(|(a, b)| assert_same(a, b, &format!("{isa:?}")));
    }
    expected
}

/// Central differences of `f` at `x`.
pub(crate) fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let above = f(&x);
            x[i] = at - STEP;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// `sum of a b`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
