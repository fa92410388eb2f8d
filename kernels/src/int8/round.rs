//! The one rounding rule: to the nearest integer, ties to even.

use super::Quant;

/// 1.5 * 2^23: adding it to an f32 of less than 2^22 in absolute value leaves the nearest integer, ties to even, in
/// the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer to `v`, ties to even, for `v` clamped to `lo..=hi`, which lie within 2^22 of zero.
#[inline(always)]
pub fn nearest(v: f32, lo: f32, hi: f32) -> i32 {
    // Comparisons in this form are one instruction each on a vector, and take NaN to `lo`.
    let v = if v > lo { v } else { lo };
    let v = if v < hi { v } else { hi };
    ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

/// Takes real values in steps of the output to stored ones.
#[derive(Clone, Copy, Debug)]
pub struct Rounder {
    zero: i32,
    lo: i32,
    hi: i32,
    /// Just outside the limits, so that what is clamped there is seen to be outside.
    least: f32,
    greatest: f32,
}

impl Rounder {
    /// For stored values of `lo..=hi` whose zero is `zero`.
    #[inline(always)]
    pub fn new(zero: i32, lo: i32, hi: i32) -> Rounder {
        Rounder { zero, lo, hi, least: (lo - zero - 1) as f32, greatest: (hi - zero + 1) as f32 }
    }

    /// For a kernel's output.
    #[inline(always)]
    pub fn of(quant: &Quant) -> Rounder {
        Rounder::new(quant.zero_y, quant.lo, quant.hi)
    }

    /// `r = nearest(v) + zero`, not yet clamped to the limits, but to one step outside of them.
    #[inline(always)]
    pub fn steps(&self, v: f32) -> i32 {
        nearest(v, self.least, self.greatest) + self.zero
    }

    /// `clamp(r, lo, hi)`.
    #[inline(always)]
    pub fn clamp(&self, r: i32) -> i8 {
        r.max(self.lo).min(self.hi) as i8
    }

    /// Whether `r` is inside the limits: the gradient passes.
    #[inline(always)]
    pub fn is_inside(&self, r: i32) -> bool {
        self.lo <= r && r <= self.hi
    }

    /// The stored value of `v`, and whether it was inside the limits.
    #[inline(always)]
    pub fn stored(&self, v: f32) -> (i8, bool) {
        let r = self.steps(v);
        (self.clamp(r), self.is_inside(r))
    }

    /// The stored value of a forward sum.
    #[inline(always)]
    pub fn sum(&self, acc: i32, scale: f32) -> (i8, bool) {
        self.stored(acc as f32 * scale)
    }
}

/// Sets bit `at` of a mask whose bits are zero.
#[inline(always)]
pub fn set_bit(mask: &mut [u8], at: usize, bit: bool) {
    if let Some(byte) = mask.get_mut(at / 8) {
        *byte |= u8::from(bit) << (at % 8);
    }
}

/// Bit `at` of a mask; false outside.
#[inline(always)]
pub fn bit(mask: &[u8], at: usize) -> bool {
    mask.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}
