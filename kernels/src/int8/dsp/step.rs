//! Four weights moved by their gradients, stochastically rounded.

use core::arch::naked_asm;

/// Moves `w` as `update::Dice::steps` and `update::moved_i8` do, with the random words of the four elements.
pub(crate) fn move4(w: &mut [i8; 4], g: &[f32; 4], step: &[f32; 4], words: &[u32; 4]) {
    // SAFETY: each pointer is to four elements.
    unsafe { move4_at(w, g, step, words) };
}

/// # Safety
/// Each pointer must be to four elements.
#[unsafe(naked)]
unsafe extern "C" fn move4_at(w: *mut [i8; 4], g: *const [f32; 4], step: *const [f32; 4], words: *const [u32; 4]) {
    /// Element `$i` of a register class.
    macro_rules! each {
        ($a:literal, $b:literal, $c:literal, $d:literal) => {
            concat!($a, "\n", $b, "\n", $c, "\n", $d)
        };
    }
    /// The words `$word` and what is in s`$move` (integer), s`$random` and s`$fraction` move the byte at `$at`.
    macro_rules! one {
        ($at:literal, $whole:literal, $random:literal, $fraction:literal) => {
            concat!(
                "vmov r1, ",
                $whole,
                "\n",
                "vcmp.f32 ",
                $random,
                ", ",
                $fraction,
                "\n",
                "ldrsb r2, [r0, #",
                $at,
                "]\n",
                "vmrs APSR_nzcv, fpscr\n",
                "it mi\n",
                "addmi r1, r1, #1\n",
                "qadd r1, r1, r2\n",
                "ssat r1, #8, r1\n",
                "cmn r1, #128\n",
                "it eq\n",
                "moveq r1, #-127\n",
                "strb r1, [r0, #",
                $at,
                "]"
            )
        };
    }
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r6, lr}}",
        "vldmia r1, {{s0-s3}}",
        "vldmia r2, {{s4-s7}}",
        "ldm r3, {{r3-r6}}",
        each!("vnmul.f32 s0, s0, s4", "vnmul.f32 s1, s1, s5", "vnmul.f32 s2, s2, s6", "vnmul.f32 s3, s3, s7"),
        // Floors: the mode is towards minus infinity for four conversions.
        "vmrs r1, fpscr",
        "bic r2, r1, #0x00c00000",
        "orr r2, r2, #0x00800000",
        "vmsr fpscr, r2",
        each!("vcvtr.s32.f32 s4, s0", "vcvtr.s32.f32 s5, s1", "vcvtr.s32.f32 s6, s2", "vcvtr.s32.f32 s7, s3"),
        "vmsr fpscr, r1",
        each!("vcvt.f32.s32 s8, s4", "vcvt.f32.s32 s9, s5", "vcvt.f32.s32 s10, s6", "vcvt.f32.s32 s11, s7"),
        each!("vsub.f32 s0, s0, s8", "vsub.f32 s1, s1, s9", "vsub.f32 s2, s2, s10", "vsub.f32 s3, s3, s11"),
        each!("lsr r3, r3, #8", "lsr r4, r4, #8", "lsr r5, r5, #8", "lsr r6, r6, #8"),
        "vmov s8, s9, r3, r4",
        "vmov s10, s11, r5, r6",
        // Words over 2^24.
        each!(
            "vcvt.f32.u32 s8, s8, #24",
            "vcvt.f32.u32 s9, s9, #24",
            "vcvt.f32.u32 s10, s10, #24",
            "vcvt.f32.u32 s11, s11, #24"
        ),
        one!("0", "s4", "s8", "s0"),
        one!("1", "s5", "s9", "s1"),
        one!("2", "s6", "s10", "s2"),
        one!("3", "s7", "s11", "s3"),
        "pop {{r4-r6, pc}}",
    )
}
