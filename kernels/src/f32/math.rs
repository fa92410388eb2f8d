//! Elementary functions, the same code for every lane.
//!
//! Coefficients are our own minimax fits (Chebyshev interpolation in 40 digits, then rounded to f32). Errors are of
//! the approximation; rounding adds one or two units in the last place.

use super::simd::Simd;

/// Horner's rule from the highest power down.
#[inline(always)]
pub(crate) fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// `e^x`, relative error 1e-8 plus rounding; 0 below -87, infinite above 88.73, NaN for NaN.
///
/// Nothing on the way is subnormal: processors take a hundred times as long over those.
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`; `e^r = 1 + r + r^2 q(r)`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.0;
    let is_zero = s.lt(x, s.splat(LEAST));
    let x = s.max(s.splat(LEAST), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(core::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let q = polynomial(s, r, [0.001_392_617_6, 0.008_363_173, 0.041_666_556, 0.166_665_78, 0.5]);
    let e = s.fma(s.mul(r, r), q, r);
    s.select(is_zero, s.zero(), s.scale2(s.add(e, s.splat(1.0)), n))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.zero(), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// `tanh x`, relative error 2e-8 plus rounding.
///
/// An odd polynomial below 0.625, `1 - 2 / (e^2x + 1)` above.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let z = s.mul(x, x);
    let p = polynomial(s, z, [-0.006_096_714, 0.020_997_18, -0.053_850_908, 0.133_327_7, -0.333_333_3]);
    let small = s.fma(s.mul(z, x), p, x);
    let magnitude = s.abs(x);
    let e = exp(s, s.add(magnitude, magnitude));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let large = s.select(s.lt(x, s.zero()), s.sub(s.zero(), large), large);
    s.select(s.lt(magnitude, s.splat(0.625)), small, large)
}

/// The normal distribution: `(Phi(x), phi(x))`, `phi(x) = e^(-x^2/2) / sqrt(2 pi)`, `Phi` its integral up to `x`.
///
/// `Phi(-|x|) = e^(-x^2/2) erfcx(|x|/sqrt 2) / 2` and `erfcx(a) = t p(t)` with `t = 1 / (1 + 0.4 a)`, relative error
/// 2e-7; so the lower tail keeps its relative accuracy.
#[inline(always)]
pub(crate) fn normal<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const P: [f32; 9] = [
        0.049_126_45,
        -0.178_049_77,
        0.160_447_5,
        0.002_712_850_5,
        0.136_720_31,
        0.170_136_21,
        0.207_530_27,
        0.225_701_7,
        0.225_674_55,
    ];
    let one = s.splat(1.0);
    let e = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let a = s.mul(s.abs(x), s.splat(0.4 * core::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(one, s.add(one, a));
    let tail = s.mul(s.mul(e, s.splat(0.5)), s.mul(t, polynomial(s, t, P)));
    let integral = s.select(s.lt(x, s.zero()), tail, s.sub(one, tail));
    (integral, s.mul(e, s.splat(0.398_942_3)))
}

/// `(sin x, cos x)` for `|x| < 1e8`, absolute error 2e-11; plain arithmetic without branches, so that loops of it
/// become vectors.
#[inline(always)]
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    const TO_INTEGER: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: the sum's low bits are the nearest integer
    let shifted = x * core::f64::consts::FRAC_2_PI + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let quadrant = shifted.to_bits();
    let r = n.mul_add(-core::f64::consts::FRAC_PI_2, x);
    let r = n.mul_add(-6.123_233_995_736_766e-17, r);
    let z = r * r;
    let p = z.mul_add(-1.0 / 39_916_800.0, 1.0 / 362_880.0);
    let p = z.mul_add(z.mul_add(z.mul_add(p, -1.0 / 5040.0), 1.0 / 120.0), -1.0 / 6.0);
    let sin = (z * r).mul_add(p, r);
    let p = z.mul_add(1.0 / 479_001_600.0, -1.0 / 3_628_800.0);
    let p = z.mul_add(z.mul_add(z.mul_add(p, 1.0 / 40_320.0), -1.0 / 720.0), 1.0 / 24.0);
    let cos = z.mul_add(z.mul_add(p, -0.5), 1.0);
    let is_odd = quadrant & 1 == 1;
    let (sin, cos) = (if is_odd { cos } else { sin }, if is_odd { sin } else { cos });
    let sin_sign = (quadrant & 2) << 62;
    let cos_sign = ((quadrant + 1) & 2) << 62;
    (f64::from_bits(sin.to_bits() ^ sin_sign), f64::from_bits(cos.to_bits() ^ cos_sign))
}
