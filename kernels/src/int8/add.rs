//! Sum of two quantised tensors, as at the end of a residual block.
//!
//! ```text
//! y = clamp(nearest(fma(b - zero_b, rb, (a - zero_a) ra)) + zero_y, lo, hi)
//! ```
//! Bound: the bytes; both factors and the rounding are a few instructions an element.

use super::fma::fma;
use super::lengths;
use super::mask_bytes;
use super::round::{Rounder, set_bit};

/// Factors and limits of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Add {
    /// Step of `a` over step of the output.
    pub ra: f32,
    /// Step of `b` over step of the output.
    pub rb: f32,
    /// Stored value of zero in `a`.
    pub zero_a: i32,
    /// Stored value of zero in `b`.
    pub zero_b: i32,
    /// Stored value of zero in the output.
    pub zero_y: i32,
    /// Least stored output.
    pub lo: i32,
    /// Greatest stored output.
    pub hi: i32,
}

impl Add {
    #[inline(always)]
    fn one(&self, rounder: &Rounder, a: i8, b: i8) -> (i8, bool) {
        let a = (i32::from(a) - self.zero_a) as f32;
        let b = (i32::from(b) - self.zero_b) as f32;
        rounder.stored(fma(b, self.rb, a * self.ra))
    }

    fn rounder(&self) -> Rounder {
        Rounder::new(self.zero_y, self.lo, self.hi)
    }
}

/// The mask, all bits zero, or nothing to write; `None` where its length is wrong.
pub(super) fn masked(mask: Option<&mut [u8]>, len: usize) -> Option<&mut [u8]> {
    let mask = match mask {
        Some(mask) if !lengths([(mask.len(), mask_bytes(len))]) => return None,
        Some(mask) => mask,
        None => &mut [],
    };
    mask.fill(0);
    Some(mask)
}

/// Elements that a variant for the processor does; an operand that is none lies where the result lies.
fn fast(add: &Add, a: Option<&[i8]>, b: Option<&[i8]>, y: &mut [i8], mask: &mut [u8]) -> usize {
    #[cfg(all(has_dsp, has_fpu))]
    return super::dsp::add::add(add, a, b, y, mask);
    #[cfg(not(all(has_dsp, has_fpu)))]
    {
        let _ = (add, a, b, y, mask);
        0
    }
}

/// `y = a + b`, all of one length; `mask`, of `mask_bytes(y)`, gets a bit for each output inside the limits.
pub fn i8_add(add: &Add, a: &[i8], b: &[i8], y: &mut [i8], mask: Option<&mut [u8]>) {
    if !lengths([(a.len(), y.len()), (b.len(), y.len())]) {
        return;
    }
    let Some(mask) = masked(mask, y.len()) else { return };
    let (done, rounder) = (fast(add, Some(a), Some(b), y, mask), add.rounder());
    for (at, ((y, a), b)) in y.iter_mut().zip(a).zip(b).enumerate().skip(done) {
        let (value, is_inside) = add.one(&rounder, *a, *b);
        *y = value;
        set_bit(mask, at, is_inside);
    }
}

/// [`i8_add`] that leaves the sum in `a`.
pub fn i8_add_to_a(add: &Add, a: &mut [i8], b: &[i8], mask: Option<&mut [u8]>) {
    if !lengths([(b.len(), a.len())]) {
        return;
    }
    let Some(mask) = masked(mask, a.len()) else { return };
    let (done, rounder) = (fast(add, None, Some(b), a, mask), add.rounder());
    for (at, (a, b)) in a.iter_mut().zip(b).enumerate().skip(done) {
        let (value, is_inside) = add.one(&rounder, *a, *b);
        *a = value;
        set_bit(mask, at, is_inside);
    }
}

/// [`i8_add`] that leaves the sum in `b`.
pub fn i8_add_to_b(add: &Add, a: &[i8], b: &mut [i8], mask: Option<&mut [u8]>) {
    if !lengths([(a.len(), b.len())]) {
        return;
    }
    let Some(mask) = masked(mask, b.len()) else { return };
    let (done, rounder) = (fast(add, Some(a), None, b, mask), add.rounder());
    for (at, (a, b)) in a.iter().zip(b).enumerate().skip(done) {
        let (value, is_inside) = add.one(&rounder, *a, *b);
        *b = value;
        set_bit(mask, at, is_inside);
    }
}
