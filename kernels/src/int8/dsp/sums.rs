//! Blocks of f32 sums that stay in registers, one chain of fused multiply-adds each, in the order of the loop.

use core::arch::naked_asm;

/// A block of four rows and four columns: `c[m][t] += sum over k of a[m][k] b[k][t]`.
#[repr(C)]
pub(super) struct Rows4 {
    /// First row of the left factor.
    pub(super) a: *const f32,
    /// Bytes from one of its rows to the next.
    pub(super) a_pitch: usize,
    /// The right factor, four columns together.
    pub(super) b: *const f32,
    /// First row of the sums.
    pub(super) c: *mut f32,
    /// Bytes from one of its rows to the next; 0 with the same `a_pitch` is one row, four times the same.
    pub(super) c_pitch: usize,
    /// Length of the sums.
    pub(super) k: usize,
}

/// Sixteen products of the left factors `$a` to `$d`, one a row, and s`$t`.. of the right one.
macro_rules! rows4 {
    ($a:literal, $b:literal, $c:literal, $d:literal, $t0:literal, $t1:literal, $t2:literal, $t3:literal) => {
        concat!(
            "vfma.f32 s0, ",
            $a,
            ", ",
            $t0,
            "\nvfma.f32 s1, ",
            $a,
            ", ",
            $t1,
            "\n",
            "vfma.f32 s2, ",
            $a,
            ", ",
            $t2,
            "\nvfma.f32 s3, ",
            $a,
            ", ",
            $t3,
            "\n",
            "vfma.f32 s4, ",
            $b,
            ", ",
            $t0,
            "\nvfma.f32 s5, ",
            $b,
            ", ",
            $t1,
            "\n",
            "vfma.f32 s6, ",
            $b,
            ", ",
            $t2,
            "\nvfma.f32 s7, ",
            $b,
            ", ",
            $t3,
            "\n",
            "vfma.f32 s8, ",
            $c,
            ", ",
            $t0,
            "\nvfma.f32 s9, ",
            $c,
            ", ",
            $t1,
            "\n",
            "vfma.f32 s10, ",
            $c,
            ", ",
            $t2,
            "\nvfma.f32 s11, ",
            $c,
            ", ",
            $t3,
            "\n",
            "vfma.f32 s12, ",
            $d,
            ", ",
            $t0,
            "\nvfma.f32 s13, ",
            $d,
            ", ",
            $t1,
            "\n",
            "vfma.f32 s14, ",
            $d,
            ", ",
            $t2,
            "\nvfma.f32 s15, ",
            $d,
            ", ",
            $t3
        )
    };
}

/// Adds to a block.
///
/// # Safety
/// Every pointer must reach as far as the pitches and `k` say.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn add_rows4(job: &Rows4) {
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "vpush {{d8-d15}}",
        "ldr r1, [r0, #4]",
        "ldrd r4, r5, [r0, #8]",
        "ldrd r6, r7, [r0, #16]",
        "ldr r0, [r0]",
        "add r12, r5, r6",
        "vldmia r5, {{s0-s3}}",
        "vldmia r12, {{s4-s7}}",
        "add r12, r6",
        "vldmia r12, {{s8-s11}}",
        "add r12, r6",
        "vldmia r12, {{s12-s15}}",
        "add r2, r0, r1",
        "add r3, r2, r1",
        "add lr, r3, r1",
        "lsrs r8, r7, #1",
        "beq 3f",
        "2:",
        "vldmia r4!, {{s16-s23}}",
        "vldmia r0!, {{s24-s25}}",
        "vldmia r2!, {{s26-s27}}",
        "vldmia r3!, {{s28-s29}}",
        "vldmia lr!, {{s30-s31}}",
        rows4!("s24", "s26", "s28", "s30", "s16", "s17", "s18", "s19"),
        rows4!("s25", "s27", "s29", "s31", "s20", "s21", "s22", "s23"),
        "subs r8, #1",
        "bne 2b",
        "3:",
        "tst r7, #1",
        "beq 4f",
        "vldmia r4!, {{s16-s19}}",
        "vldr s24, [r0]",
        "vldr s26, [r2]",
        "vldr s28, [r3]",
        "vldr s30, [lr]",
        rows4!("s24", "s26", "s28", "s30", "s16", "s17", "s18", "s19"),
        "4:",
        "vstmia r5, {{s0-s3}}",
        "add r5, r6",
        "vstmia r5, {{s4-s7}}",
        "add r5, r6",
        "vstmia r5, {{s8-s11}}",
        "add r5, r6",
        "vstmia r5, {{s12-s15}}",
        "vpop {{d8-d15}}",
        "pop {{r4-r8, pc}}",
    )
}

/// A block of four rows and four columns: `c[m][t] += sum over k of a[k][m] b[k][t]`.
#[repr(C)]
pub(super) struct Outer4 {
    /// Left factor, four rows together.
    pub(super) a: *const f32,
    /// Bytes from one `k` to the next.
    pub(super) a_pitch: usize,
    /// The right factor, four columns together.
    pub(super) b: *const f32,
    /// The sums, row after row.
    pub(super) c: *mut f32,
    /// Length of the sums.
    pub(super) k: usize,
}

/// Adds to a block.
///
/// # Safety
/// Every pointer must reach as far as the pitch and `k` say.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn add_outer4(job: &Outer4) {
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4, lr}}",
        "vpush {{d8-d15}}",
        "ldrd r1, r2, [r0, #4]",
        "ldrd r3, r4, [r0, #12]",
        "ldr r0, [r0]",
        "vldmia r3, {{s0-s15}}",
        "lsrs r12, r4, #1",
        "beq 3f",
        "2:",
        "vldmia r0, {{s16-s19}}",
        "add r0, r1",
        "vldmia r0, {{s20-s23}}",
        "add r0, r1",
        "vldmia r2!, {{s24-s31}}",
        rows4!("s16", "s17", "s18", "s19", "s24", "s25", "s26", "s27"),
        rows4!("s20", "s21", "s22", "s23", "s28", "s29", "s30", "s31"),
        "subs r12, #1",
        "bne 2b",
        "3:",
        "tst r4, #1",
        "beq 4f",
        "vldmia r0, {{s16-s19}}",
        "vldmia r2!, {{s24-s27}}",
        rows4!("s16", "s17", "s18", "s19", "s24", "s25", "s26", "s27"),
        "4:",
        "vstmia r3, {{s0-s15}}",
        "vpop {{d8-d15}}",
        "pop {{r4, pc}}",
    )
}

/// Runs of eight sums over a rectangle: `c[t] += sum over rows, columns of a[..][t] b[..][t]`. The assembly counts in
/// `a` and `runs`.
#[repr(C)]
pub(super) struct Lanes8 {
    /// First element of one factor.
    pub(super) a: *const f32,
    /// First element of the other.
    pub(super) b: *const f32,
    /// The first sums.
    pub(super) c: *mut f32,
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) columns: usize,
    /// Bytes from one column to the next.
    pub(super) a_step: usize,
    pub(super) b_step: usize,
    /// Bytes from the column after the last one to the next row.
    pub(super) a_gap: usize,
    pub(super) b_gap: usize,
    /// How many runs, all with the same `b`.
    pub(super) runs: usize,
    /// Bytes from one run's factor and sums to the next one's.
    pub(super) a_next: usize,
    pub(super) c_next: usize,
}

/// Adds to runs of eight sums.
///
/// # Safety
/// Every pointer must reach as far as the steps and counts say, of which none is 0.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn add_lanes8(job: &mut Lanes8) {
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r11, lr}}",
        "vpush {{d8-d11}}",
        "mov r11, r0",
        "ldm r0, {{r0-r8}}",
        "2:",
        "vldmia r2, {{s0-s7}}",
        "3:",
        "mov r9, r4",
        "4:",
        "vldmia r0, {{s8-s15}}",
        "vldmia r1, {{s16-s23}}",
        "add r0, r5",
        "add r1, r6",
        "vfma.f32 s0, s8, s16",
        "vfma.f32 s1, s9, s17",
        "vfma.f32 s2, s10, s18",
        "vfma.f32 s3, s11, s19",
        "vfma.f32 s4, s12, s20",
        "vfma.f32 s5, s13, s21",
        "vfma.f32 s6, s14, s22",
        "vfma.f32 s7, s15, s23",
        "subs r9, #1",
        "bne 4b",
        "add r0, r7",
        "add r1, r8",
        "subs r3, #1",
        "bne 3b",
        "vstmia r2, {{s0-s7}}",
        "ldrd r9, r10, [r11, #36]",
        "ldr r12, [r11, #44]",
        "ldrd r0, r1, [r11]",
        "ldr r3, [r11, #12]",
        "add r0, r10",
        "add r2, r12",
        "str r0, [r11]",
        "subs r9, #1",
        "str r9, [r11, #36]",
        "bne 2b",
        "vpop {{d8-d11}}",
        "pop {{r4-r11, pc}}",
    )
}

/// Turns rows of four weights into floats, up to `end`.
///
/// # Safety
/// `w` must reach over as many rows of `pitch` bytes as there are fours from `to` to `end`, of which there is one at
/// least.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn floats4(w: *const i8, pitch: usize, to: *mut f32, end: *mut f32) {
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r6, lr}}",
        "2:",
        "ldr r12, [r0]",
        "add r0, r1",
        "sxtb r4, r12",
        "sxtb r5, r12, ror #8",
        "sxtb r6, r12, ror #16",
        "asr r12, r12, #24",
        "vmov s0, s1, r4, r5",
        "vmov s2, s3, r6, r12",
        "vcvt.f32.s32 s0, s0",
        "vcvt.f32.s32 s1, s1",
        "vcvt.f32.s32 s2, s2",
        "vcvt.f32.s32 s3, s3",
        "vstmia r2!, {{s0-s3}}",
        "cmp r2, r3",
        "bne 2b",
        "pop {{r4-r6, pc}}",
    )
}
