//! Sums of four elements at a time.

use super::store4;
use crate::int8::{Add, Bits, Quant};
use core::arch::naked_asm;

/// Fours of sums that wait in 16 bits for their limits and mask bits.
const WIDE: usize = 16;

/// What a kernel runs over; the assembly knows the places of the fields.
#[repr(C)]
struct Fours {
    a: *const i8,
    b: *const i8,
    y: *mut i8,
    /// How many fours.
    count: usize,
    ra: f32,
    rb: f32,
    /// Each zero twice, as 16 bits.
    zero_a: u32,
    zero_b: u32,
    zero_y: i32,
}

/// Adds all whole fours; an operand that is none lies where the result lies. Gives how many elements it did.
pub(crate) fn add(sum: &Add, a: Option<&[i8]>, b: Option<&[i8]>, y: &mut [i8], mask: &mut [u8]) -> usize {
    let len = y.len() / 4 * 4;
    if a.is_some_and(|a| a.len() < len) || b.is_some_and(|b| b.len() < len) || len == 0 {
        return 0;
    }
    let twice = |zero: i32| (zero as u32 & 0xffff) * 0x1_0001;
    let job = |y: &mut [i8], at: usize, count: usize| {
        let base = y.as_mut_ptr();
        let from = |x: Option<&[i8]>| x.map_or(base.cast_const(), <[i8]>::as_ptr).wrapping_add(at);
        let (zero_a, zero_b) = (twice(sum.zero_a), twice(sum.zero_b));
        let y = base.wrapping_add(at);
        Fours { a: from(a), b: from(b), y, count, ra: sum.ra, rb: sum.rb, zero_a, zero_b, zero_y: sum.zero_y }
    };
    if mask.is_empty() && sum.lo == -128 && sum.hi == 127 {
        // SAFETY: `len` elements of operands and result were found to be there.
        unsafe { add4(&job(y, 0, len / 4)) };
        return len;
    }
    let quant = Quant { zero_x: 0, zero_y: sum.zero_y, lo: sum.lo, hi: sum.hi };
    let mut bits = Bits { bytes: mask, at: 0 };
    let mut wide = [[0i16; 4]; WIDE];
    for at in (0..len).step_by(4 * WIDE) {
        let count = WIDE.min((len - at) / 4);
        let job = Fours { y: wide.as_mut_ptr().cast(), ..job(y, at, count) };
        // SAFETY: as above, with results in the first `count <= WIDE` elements of `wide`.
        unsafe { add4_wide(&job) };
        for (i, four) in wide.iter().take(count).enumerate() {
            store4(&quant, y, &mut bits, at + 4 * i, four);
        }
    }
    len
}

macro_rules! add4 {
    ($(#[$doc:meta])* $name:ident, $($tail:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name(job: &Fours) {
            naked_asm!(
                ".fpu fpv4-sp-d16",
                "push {{r4-r11, lr}}",
                "vldr s8, [r0, #16]",
                "vldr s9, [r0, #20]",
                "ldrd r4, r5, [r0, #24]",
                "ldr lr, [r0, #32]",
                "ldm r0, {{r0-r3}}",
                "2:",
                "ldr r6, [r0], #4",
                "ldr r8, [r1], #4",
                "sxtb16 r7, r6, ror #8",
                "sxtb16 r6, r6",
                "sxtb16 r9, r8, ror #8",
                "sxtb16 r8, r8",
                "ssub16 r6, r6, r4",
                "ssub16 r7, r7, r4",
                "ssub16 r8, r8, r5",
                "ssub16 r9, r9, r5",
                "sxth r10, r6",
                "sxth r11, r7",
                "asr r6, r6, #16",
                "asr r7, r7, #16",
                "vmov s0, s1, r10, r11",
                "vmov s2, s3, r6, r7",
                "sxth r10, r8",
                "sxth r11, r9",
                "asr r8, r8, #16",
                "asr r9, r9, #16",
                "vmov s4, s5, r10, r11",
                "vmov s6, s7, r8, r9",
                "vcvt.f32.s32 s0, s0",
                "vcvt.f32.s32 s1, s1",
                "vcvt.f32.s32 s2, s2",
                "vcvt.f32.s32 s3, s3",
                "vcvt.f32.s32 s4, s4",
                "vcvt.f32.s32 s5, s5",
                "vcvt.f32.s32 s6, s6",
                "vcvt.f32.s32 s7, s7",
                "vmul.f32 s0, s0, s8",
                "vmul.f32 s1, s1, s8",
                "vmul.f32 s2, s2, s8",
                "vmul.f32 s3, s3, s8",
                "vfma.f32 s0, s4, s9",
                "vfma.f32 s1, s5, s9",
                "vfma.f32 s2, s6, s9",
                "vfma.f32 s3, s7, s9",
                // To nearest, ties to even: the mode that the processor starts in.
                "vcvtr.s32.f32 s0, s0",
                "vcvtr.s32.f32 s1, s1",
                "vcvtr.s32.f32 s2, s2",
                "vcvtr.s32.f32 s3, s3",
                "vmov r6, r7, s0, s1",
                "vmov r8, r9, s2, s3",
                "qadd r6, r6, lr",
                "qadd r7, r7, lr",
                "qadd r8, r8, lr",
                "qadd r9, r9, lr",
                $($tail,)*
                "subs r3, #1",
                "bne 2b",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

add4! {
    /// Stores bytes, clamped to -128..=127.
    ///
    /// # Safety
    /// `a`, `b` and `y` must reach over `count` fours, of which there is one at least.
    add4,
    "ssat r6, #8, r6",
    "ssat r7, #8, r7",
    "ssat r8, #8, r8",
    "ssat r9, #8, r9",
    "bfi r6, r7, #8, #8",
    "bfi r8, r9, #8, #8",
    "pkhbt r6, r6, r8, lsl #16",
    "str r6, [r2], #4"
}

add4! {
    /// Stores numbers of 16 bits, clamped to what these hold.
    ///
    /// # Safety
    /// As for [`add4`]; `y` must be aligned to words.
    add4_wide,
    "ssat r6, #16, r6",
    "ssat r7, #16, r7",
    "ssat r8, #16, r8",
    "ssat r9, #16, r9",
    "pkhbt r6, r6, r7, lsl #16",
    "pkhbt r8, r8, r9, lsl #16",
    "strd r6, r8, [r2], #8"
}
