//! AMX tiles: 32 rows by 32 columns as two by two tile registers of 16 by 16, with bf16 pairs.
//!
//! A step of 16 words (32 of `k`) loads four registers of 1 KiB and multiplies them crosswise, 4 x 16 cycles.
//! Left panels are stored row by row, so that a tile register is 16 of their rows; right panels are as elsewhere.
#![expect(unsafe_code, reason = "SIMD and the system call that asks for it")]

use super::avx512;
use super::set::{KernelSet, Right, Tile};
use core::arch::asm;
use core::arch::x86_64::*;
use core::sync::atomic::{AtomicU8, Ordering};

const MR: usize = 32;
const NR: usize = 32;
/// Words of a step: a row of a tile register.
const UNIT: usize = 16;

pub(super) static BF16: KernelSet = KernelSet {
    name: "amx",
    mr: MR,
    nr: NR,
    pairs: true,
    left_by_lane: true,
    word_unit: UNIT,
    strip,
    thin: None,
    transpose: avx512::transpose,
    copy: avx512::copy,
    pair_run: avx512::pair_run,
    pair_steps: avx512::pair_steps,
    pair_stored: avx512::pair_stored,
    available,
};

/// Whether the processor has AMX for bf16 and the system lets this process use it; asked once.
fn available() -> bool {
    static STATE: AtomicU8 = AtomicU8::new(0);
    match STATE.load(Ordering::Relaxed) {
        0 => {
            let found = (avx512::BF16.available)() && has_amx() && allow_tiles();
            STATE.store(1 + u8::from(found), Ordering::Relaxed);
            found
        }
        state => state == 2,
    }
}

/// AMX-TILE and AMX-BF16 of the processor.
fn has_amx() -> bool {
    __cpuid(0).eax >= 7 && {
        let edx = __cpuid_count(7, 0).edx;
        edx >> 24 & 1 == 1 && edx >> 22 & 1 == 1
    }
}

/// Asks Linux for the tile registers, which every process must before it touches them.
fn allow_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: the call gives this process's threads a larger register file, or an error; it touches no memory.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The shapes of the tile registers, as LDTILECFG reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers 0 to 3 are sums, 4 and 5 left factors of the upper and lower rows, 6 and 7 right factors.
    fn new(rows: usize) -> Shapes {
        let (upper, lower) = (rows.min(16) as u8, rows.saturating_sub(16).max(1) as u8);
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill(64);
        shapes.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, 16, 16]);
        shapes
    }
}

/// The sums of one tile.
#[repr(align(64))]
struct Sums([[f32; NR]; MR]);

/// # Safety
/// AMX is available; see [`super::set::StripFn`].
#[target_feature(enable = "avx512f")]
unsafe fn strip(rows: usize, words: usize, a: *const u32, right: Right, strip: &Tile) {
    let shapes = Shapes::new(rows);
    let mut sums = Sums([[0.0; NR]; MR]);
    // SAFETY: AMX is available, and `shapes` is a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly)) };
    for col in (0..strip.cols).step_by(NR) {
        let tile = strip.part(col, NR);
        // SAFETY: the registers are configured for `rows`; both panels hold `words` steps, a multiple of `UNIT`.
        unsafe {
            match rows > 16 {
                true => sum_two(words, a, right.at.wrapping_add(col / NR * right.panel), &mut sums),
                false => sum_one(words, a, right.at.wrapping_add(col / NR * right.panel), &mut sums),
            }
        }
        for (r, sums) in sums.0.iter().enumerate().take(rows) {
            // SAFETY: `sums` has 32 columns; row `r` is one of the tile's.
            unsafe {
                let sums = [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))];
                avx512::finish(sums, &tile, r);
            }
        }
    }
    // SAFETY: the registers are in use by this function only.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Two by two registers.
///
/// # Safety
/// The registers are configured for more than 16 rows; the panels hold `words` steps.
unsafe fn sum_two(words: usize, a: *const u32, b: *const u32, sums: &mut Sums) {
    // SAFETY: the loop reads `words / UNIT` steps of both panels; the stores fill at most 32 rows of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{b} + {b_row}]",
            "tileloadd tmm4, [{a} + {a_row}]",
            "tileloadd tmm7, [{b} + {b_row} + 64]",
            "tileloadd tmm5, [{lower} + {a_row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {lower}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {b_row}], tmm0",
            "tilestored [{sums} + {b_row} + 64], tmm1",
            "tilestored [{sums} + {b_row} + 2048], tmm2",
            "tilestored [{sums} + {b_row} + 2112], tmm3",
            a = inout(reg) a => _,
            lower = inout(reg) a.wrapping_add(16 * words) => _,
            b = inout(reg) b => _,
            a_row = in(reg) 4 * words,
            b_row = in(reg) 4 * NR,
            steps = inout(reg) words / UNIT => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// One by two registers.
///
/// # Safety
/// The registers are configured for at most 16 rows; the panels hold `words` steps.
unsafe fn sum_one(words: usize, a: *const u32, b: *const u32, sums: &mut Sums) {
    // SAFETY: the loop reads `words / UNIT` steps of both panels; the stores fill at most 16 rows of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {a_row}]",
            "tileloadd tmm6, [{b} + {b_row}]",
            "tileloadd tmm7, [{b} + {b_row} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {b_row}], tmm0",
            "tilestored [{sums} + {b_row} + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            a_row = in(reg) 4 * words,
            b_row = in(reg) 4 * NR,
            steps = inout(reg) words / UNIT => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm4") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
