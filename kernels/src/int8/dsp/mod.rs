//! The kernels for Armv7E-M and later: packed 16-bit multiply-accumulates, and blocks of sums in FPv4 registers.
//!
//! The inner loops are whole functions in assembly, since compilers know neither `smlad` nor `ldm` well enough, and a
//! target with single precision alone has no register class for floats. Each is called by a safe driver beside it that
//! checks every length; integers are exact, and f32 sums keep the order of the portable kernels.
#![expect(unsafe_code, reason = "assembly: the instructions have no stable name")]

pub(crate) mod conv;
pub(crate) mod depthwise;
mod dot;
mod window;

use core::arch::asm;

/// Bytes 0 and 2 of `x`, widened to 16 bits.
#[inline(always)]
fn widen_even(x: u32) -> u32 {
    let y: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("sxtb16 {y}, {x}", x = in(reg) x, y = lateout(reg) y, options(pure, nomem, nostack, preserves_flags))
    };
    y
}

/// Bytes 1 and 3 of `x`, widened to 16 bits.
#[inline(always)]
fn widen_odd(x: u32) -> u32 {
    let y: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("sxtb16 {y}, {x}, ror #8", x = in(reg) x, y = lateout(reg) y,
            options(pure, nomem, nostack, preserves_flags));
    };
    y
}

/// `acc` and both products of 16 bits of `a` and `b`.
#[inline(always)]
fn products(a: u32, b: u32, acc: i32) -> i32 {
    let y: i32;
    // SAFETY: registers only. The flag of an overflow may be set, and is not read.
    unsafe {
        asm!("smlad {y}, {a}, {b}, {c}", a = in(reg) a, b = in(reg) b, c = in(reg) acc, y = lateout(reg) y,
            options(pure, nomem, nostack));
    };
    y
}
