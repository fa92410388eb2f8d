//! The kernels for Armv7E-M and later: packed 16-bit multiply-accumulates, and blocks of sums in FPv4 registers.
//!
//! The inner loops are whole functions in assembly, since compilers know neither `smlad` nor `ldm` well enough, and a
//! target with single precision alone has no register class for floats. Each is called by a safe driver beside it that
//! checks every length; integers are exact, and f32 sums keep the order of the portable kernels.
#![expect(unsafe_code, reason = "assembly: the instructions have no stable name")]

pub(crate) mod add;
pub(crate) mod conv;
pub(crate) mod depthwise;
mod dot;
pub(crate) mod step;
mod sums;
mod window;

use super::lanes::{LANES, Rect, Runs};
use super::round::set_bit;
use super::{Bits, Quant, part, part_mut};
use core::arch::asm;

/// Adds to sums of up to four pixels and four columns, as `tile::add_rows`.
pub(crate) fn add_rows(sums: &mut [f32], pitch: usize, pixels: usize, gc: &[f32], gc_pitch: usize, wt: &[[f32; 4]]) {
    if pixels == 0 || sums.len() < (pixels - 1) * pitch + 4 || gc.len() < (pixels - 1) * gc_pitch + wt.len() {
        return;
    }
    let mut job = sums::Rows4 {
        a: gc.as_ptr(),
        a_pitch: gc_pitch * 4,
        b: wt.as_ptr().cast(),
        c: sums.as_mut_ptr(),
        c_pitch: pitch * 4,
        k: wt.len(),
    };
    let mut left = pixels;
    while left >= 4 {
        // SAFETY: `left` of the pixels whose rows were compared with the lengths above begin at `a` and `c`.
        unsafe { sums::add_rows4(&job) };
        job.a = job.a.wrapping_add(4 * gc_pitch);
        job.c = job.c.wrapping_add(4 * pitch);
        left -= 4;
    }
    (job.a_pitch, job.c_pitch) = (0, 0);
    for _ in 0..left {
        // SAFETY: as above; without pitches it is one row only.
        unsafe { sums::add_rows4(&job) };
        job.a = job.a.wrapping_add(gc_pitch);
        job.c = job.c.wrapping_add(pitch);
    }
}

/// Adds to sums over a rectangle, as `lanes::add_lanes`.
pub(crate) fn add_lanes(sums: &mut [f32], size: [usize; 2], runs: Runs, a: (&[f32], Rect), b: (&[f32], Rect)) {
    let [rows, columns] = size;
    let Runs { count, a_next, sums_next } = runs;
    if rows == 0 || columns == 0 || count == 0 || sums.len() < (count - 1) * sums_next + LANES {
        return;
    }
    // Places grow or fall evenly along each way, so the ends of the diagonals are the least and the greatest.
    let is_inside = |(factor, rect): (&[f32], Rect), next: usize| {
        let end = (count - 1).wrapping_mul(next).wrapping_add(LANES);
        let [first, last] = [rect.at, rect.place(rows - 1, columns - 1)];
        let [right, down] = [rect.place(0, columns - 1), rect.place(rows - 1, 0)];
        [first, last, right, down].into_iter().all(|at| at < factor.len() && at.wrapping_add(end) <= factor.len())
    };
    if !is_inside(a, a_next) || !is_inside(b, 0) {
        return;
    }
    let gap = |rect: Rect| rect.row.wrapping_sub(columns.wrapping_mul(rect.column)).wrapping_mul(4);
    let mut job = sums::Lanes8 {
        a: a.0.as_ptr().wrapping_add(a.1.at),
        b: b.0.as_ptr().wrapping_add(b.1.at),
        c: sums.as_mut_ptr(),
        rows,
        columns,
        a_step: a.1.column.wrapping_mul(4),
        b_step: b.1.column.wrapping_mul(4),
        a_gap: gap(a.1),
        b_gap: gap(b.1),
        runs: count,
        a_next: a_next.wrapping_mul(4),
        c_next: sums_next.wrapping_mul(4),
    };
    // SAFETY: the corners of both rectangles were found to be inside for the first run and the last; places between
    // them lie between. The sums of all runs are inside.
    unsafe { sums::add_lanes8(&mut job) };
}

/// Adds to sums of channels and four columns, as `tile::add_outer`; gives how many channels it did.
pub(crate) fn add_outer(sums: &mut [[f32; 4]], gc: &[f32], gc_pitch: usize, xt: &[[f32; 4]]) -> usize {
    let channels = sums.len() / 4 * 4;
    if xt.is_empty() || channels == 0 || gc.len() < (xt.len() - 1) * gc_pitch + channels {
        return 0;
    }
    for o in (0..channels).step_by(4) {
        let job = sums::Outer4 {
            a: part(gc, o, 1).as_ptr(),
            a_pitch: gc_pitch * 4,
            b: xt.as_ptr().cast(),
            c: part_mut(sums, o, 4).as_mut_ptr().cast(),
            k: xt.len(),
        };
        // SAFETY: the gradients of `xt.len()` pixels and `channels` channels were found to be there; `c` is 4 x 4.
        unsafe { sums::add_outer4(&job) };
    }
    channels
}

/// Rows of four weights as floats, `pitch` elements from one to the next; false where they are not all there.
pub(crate) fn floats(w: &[i8], pitch: usize, to: &mut [[f32; 4]]) -> bool {
    if to.is_empty() || w.len() < (to.len() - 1) * pitch + 4 {
        return false;
    }
    let range = to.as_mut_ptr_range();
    // SAFETY: `to` has rows, and of each four weights were found to be there.
    unsafe { sums::floats4(w.as_ptr(), pitch, range.start.cast(), range.end.cast()) };
    true
}

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

/// The numbers of 16 bits of `a` minus those of `b`.
#[inline(always)]
fn minus(a: u32, b: u32) -> u32 {
    let y: u32;
    // SAFETY: registers only; the flags it sets are not read.
    unsafe {
        asm!("ssub16 {y}, {a}, {b}", a = in(reg) a, b = in(reg) b, y = lateout(reg) y,
            options(pure, nomem, nostack));
    };
    y
}

/// Both numbers of 16 bits of `x`, clamped to those of `lo` and `hi`.
#[inline(always)]
fn clamp2(x: u32, lo: u32, hi: u32) -> u32 {
    let y: u32;
    // SAFETY: registers only; the flags it sets are not read by others.
    unsafe {
        asm!("ssub16 {t}, {x}, {lo}", "sel {y}, {x}, {lo}", "ssub16 {t}, {hi}, {y}", "sel {y}, {y}, {hi}",
            x = in(reg) x, lo = in(reg) lo, hi = in(reg) hi, t = out(reg) _, y = out(reg) y,
            options(pure, nomem, nostack));
    };
    y
}

/// Clamps the results of four channels, at `at` of the output, to the limits and keeps their mask bits.
#[inline(always)]
fn store4(quant: &Quant, y: &mut [i8], bits: &mut Bits, at: usize, four: &[i16; 4]) {
    let Some(y) = part_mut(y, at, 4).first_chunk_mut::<4>() else { return };
    let pair = |a: i16, b: i16| u32::from(a as u16) | u32::from(b as u16) << 16;
    let (lo, hi) = (pair(quant.lo as i16, quant.lo as i16), pair(quant.hi as i16, quant.hi as i16));
    let (front, back) = (pair(four[0], four[1]), pair(four[2], four[3]));
    let (a, b) = (clamp2(front, lo, hi), clamp2(back, lo, hi));
    *y = [a as i8, (a >> 16) as i8, b as i8, (b >> 16) as i8];
    if bits.bytes.is_empty() {
        return;
    }
    let (front, back) = (front ^ a, back ^ b);
    let is_same = |difference: u32| u8::from(difference == 0);
    let inside = is_same(front << 16) | is_same(front >> 16) << 1 | is_same(back << 16) << 2 | is_same(back >> 16) << 3;
    let at = bits.at + at;
    if let (Some(byte), true) = (bits.bytes.get_mut(at / 8), at.is_multiple_of(4)) {
        *byte |= inside << (at % 8);
    } else {
        for i in 0..4 {
            set_bit(bits.bytes, at + i, inside >> i & 1 == 1);
        }
    }
}
