//! Sum of two quantised tensors in whole numbers, ties up.
//!
//! ```text
//! y = clamp(floor((a - zero_a) ra + (b - zero_b) rb + 1/2) + zero_y, lo, hi)
//! ```
//! Exact: over one power of two, [`Add::ra`] and [`Add::rb`] are whole numbers of 21 bits. Bound: the bytes.

use super::add::{Add, masked};
use super::lengths;
use super::round::{Rounder, set_bit};

/// Bits before the last of the larger factor.
const BITS: i32 = 20;

/// A sum's factors as whole numbers over `2^shift`.
struct Whole {
    a: i32,
    b: i32,
    shift: u32,
}

impl Whole {
    /// Of positive factors; others give some numbers.
    fn of(add: &Add) -> Whole {
        let larger = if add.ra > add.rb { add.ra } else { add.rb };
        let exponent = (larger.to_bits() >> 23) as i32 - 127;
        let shift = (BITS - exponent).clamp(1, 30) as u32;
        let unit = (1u32 << shift) as f32;
        Whole { a: (add.ra * unit) as i32, b: (add.rb * unit) as i32, shift }
    }
}

impl Add {
    /// What one element is by whole numbers. With `|a - zero_a| < 2^8` and factors below `2^21`, nothing overflows.
    fn up(&self) -> impl Fn(i8, i8) -> (i8, bool) {
        let (whole, rounder, add) = (Whole::of(self), Rounder::new(self.zero_y, self.lo, self.hi), *self);
        move |a, b| {
            let a = (i32::from(a) - add.zero_a).wrapping_mul(whole.a);
            let b = (i32::from(b) - add.zero_b).wrapping_mul(whole.b);
            let sum = a.wrapping_add(b).wrapping_add(1 << (whole.shift - 1));
            let r = (sum >> whole.shift) + add.zero_y;
            (rounder.clamp(r), rounder.is_inside(r))
        }
    }
}

/// `y = a + b`, ties up; otherwise like [`i8_add`](super::i8_add).
pub fn i8_add_up(add: &Add, a: &[i8], b: &[i8], y: &mut [i8], mask: Option<&mut [u8]>) {
    if !lengths([(a.len(), y.len()), (b.len(), y.len())]) {
        return;
    }
    let Some(mask) = masked(mask, y.len()) else { return };
    let one = add.up();
    for (at, ((y, a), b)) in y.iter_mut().zip(a).zip(b).enumerate() {
        let (value, is_inside) = one(*a, *b);
        *y = value;
        set_bit(mask, at, is_inside);
    }
}

/// [`i8_add_up`] that leaves the sum in `a`.
pub fn i8_add_up_to_a(add: &Add, a: &mut [i8], b: &[i8], mask: Option<&mut [u8]>) {
    if !lengths([(b.len(), a.len())]) {
        return;
    }
    let Some(mask) = masked(mask, a.len()) else { return };
    let one = add.up();
    for (at, (a, b)) in a.iter_mut().zip(b).enumerate() {
        let (value, is_inside) = one(*a, *b);
        *a = value;
        set_bit(mask, at, is_inside);
    }
}

/// [`i8_add_up`] that leaves the sum in `b`.
pub fn i8_add_up_to_b(add: &Add, a: &[i8], b: &mut [i8], mask: Option<&mut [u8]>) {
    let Add { ra, rb, zero_a, zero_b, .. } = *add;
    // Whole numbers may change places.
    i8_add_up_to_a(&Add { ra: rb, rb: ra, zero_a: zero_b, zero_b: zero_a, ..*add }, b, a, mask);
}
