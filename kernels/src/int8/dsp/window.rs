//! Two neighbouring outputs of one channel at a time, along a row of the output.
//!
//! A channel's input rows lie apart, widened to 16 bits, with zeros for padding, so that a word holds two neighbours.
//! Two outputs share their inputs: each word is read once a pair and row. The weights of a row of taps are words of
//! neighbouring taps, in the order that each kernel names.

use core::arch::naked_asm;

/// What a kernel runs over; the assembly knows the places of the fields.
#[repr(C)]
pub(super) struct Window {
    /// The input rows under the window, of all channels, ended by a null.
    pub(super) rows: *const *const i16,
    /// Weights of these rows.
    pub(super) w: *const u32,
    /// The channel's factor.
    pub(super) scale: f32,
    /// First output.
    pub(super) y: *mut i8,
    /// Where the sums start.
    pub(super) bias: i32,
    /// Stored value of the output's zero.
    pub(super) zero: i32,
    /// Bytes from one output to the next.
    pub(super) y_step: usize,
    /// Where `y` is after the last pair.
    pub(super) y_end: *mut i8,
    /// Bytes from the beginning of a row to the channel's part.
    pub(super) offset: usize,
}

/// Rounds the sums r11 and r12, stores them at lr by `$saturate` and `$store`, and goes back for the next pair. The
/// second is stored first: with a step of 0 bytes the first one stays. `$zero`, `$end`: where the stack holds the zero
/// and the step, and the end.
macro_rules! finish {
    ($zero:literal, $end:literal, $bits:literal, $store:literal) => {
        concat!(
            "vmov s0, s1, r11, r12\n",
            "vcvt.f32.s32 s0, s0\n",
            "vcvt.f32.s32 s1, s1\n",
            "vmul.f32 s0, s0, s2\n",
            "vmul.f32 s1, s1, s2\n",
            // To nearest, ties to even: the mode that the processor starts in.
            "vcvtr.s32.f32 s0, s0\n",
            "vcvtr.s32.f32 s1, s1\n",
            "vmov r11, r12, s0, s1\n",
            "ldrd r3, r4, [sp, #",
            $zero,
            "]\n",
            "qadd r11, r11, r3\n",
            "qadd r12, r12, r3\n",
            "ssat r11, #",
            $bits,
            ", r11\n",
            "ssat r12, #",
            $bits,
            ", r12\n",
            $store,
            " r12, [lr, r4]\n",
            $store,
            " r11, [lr]\n",
            "ldr r3, [sp, #",
            $end,
            "]\n",
            "add lr, lr, r4, lsl #1\n",
            "cmp lr, r3\n",
            "bne 2b"
        )
    };
}

/// A kernel of 3 x 3 taps: `$row` adds the products of the row at `$p` with its weights `$a` (taps 0 and 1) and `$b`
/// (taps 1 and 2) to r11 and r12.
macro_rules! square {
    ($(#[$doc:meta])* $name:ident, $row:ident, $bits:literal, $store:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(job: &Window) {
            naked_asm!(
                ".fpu fpv4-sp-d16",
                "push {{r4-r11, lr}}",
                "vldr s2, [r0, #8]",
                "ldr lr, [r0, #12]",
                "ldrd r1, r2, [r0, #16]",
                "ldrd r3, r4, [r0, #24]",
                // On the stack: bias 0, zero 4, y_step 8, y_end 12.
                "push {{r1-r4}}",
                "ldr r1, [r0, #4]",
                "ldm r1, {{r5-r10}}",
                "ldr r3, [r0, #32]",
                "ldr r0, [r0]",
                "ldm r0, {{r0-r2}}",
                "add r0, r3",
                "add r1, r3",
                "add r2, r3",
                "2:",
                "ldr r11, [sp]",
                "mov r12, r11",
                $row!("r0", "r5", "r6"),
                $row!("r1", "r7", "r8"),
                $row!("r2", "r9", "r10"),
                finish!("4", "12", $bits, $store),
                "add sp, #16",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

macro_rules! row3 {
    ($p:literal, $a:literal, $b:literal) => {
        concat!(
            "ldrd r3, r4, [",
            $p,
            "], #4\n",
            "smlad r11, r3, ",
            $a,
            ", r11\n",
            "smlatb r12, r3, ",
            $a,
            ", r12\n",
            "smlabt r11, r4, ",
            $b,
            ", r11\n",
            "smlad r12, r4, ",
            $b,
            ", r12"
        )
    };
}

macro_rules! row3_stride2 {
    ($p:literal, $a:literal, $b:literal) => {
        concat!(
            "ldrd r3, r4, [",
            $p,
            "], #8\n",
            "smlad r11, r3, ",
            $a,
            ", r11\n",
            "smlabt r11, r4, ",
            $b,
            ", r11\n",
            "ldr r3, [",
            $p,
            "]\n",
            "smlad r12, r4, ",
            $a,
            ", r12\n",
            "smlabt r12, r3, ",
            $b,
            ", r12"
        )
    };
}

/// A kernel of any number of rows of taps: `$row` adds the products of the row at r3 with its weights at r2 to r11 and
/// r12. `$advance`: bytes from one pair's inputs to the next one's.
macro_rules! tall {
    ($(#[$doc:meta])* $name:ident, $row:ident, $advance:literal, $bits:literal, $store:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(job: &Window) {
            naked_asm!(
                ".fpu fpv4-sp-d16",
                "push {{r4-r11, lr}}",
                "vldr s2, [r0, #8]",
                "ldr lr, [r0, #12]",
                "ldrd r1, r2, [r0]",
                "ldrd r3, r4, [r0, #16]",
                "ldrd r5, r6, [r0, #24]",
                // On the stack: rows 0, w 4, bias 8, zero 12, y_step 16, y_end 20.
                "push {{r1-r6}}",
                "ldr r0, [r0, #32]",
                "2:",
                "ldrd r1, r2, [sp]",
                "ldr r11, [sp, #8]",
                "mov r12, r11",
                "ldr r3, [r1], #4",
                "3:",
                "add r3, r0",
                $row!(),
                "ldr r3, [r1], #4",
                "cmp r3, #0",
                "bne 3b",
                concat!("add r0, #", $advance),
                finish!("12", "20", $bits, $store),
                "add sp, #24",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

/// Weights 01, 12, 23, 34.
macro_rules! row5 {
    () => {
        concat!(
            "ldm r3, {{r3-r5}}\n",
            "ldmia r2!, {{r6-r9}}\n",
            "smlad r11, r3, r6, r11\n",
            "smlatb r12, r3, r6, r12\n",
            "smlad r11, r4, r8, r11\n",
            "smlad r12, r4, r7, r12\n",
            "smlabt r11, r5, r9, r11\n",
            "smlad r12, r5, r9, r12"
        )
    };
}

macro_rules! row5_stride2 {
    () => {
        concat!(
            "ldm r3, {{r3-r5, r10}}\n",
            "ldmia r2!, {{r6-r9}}\n",
            "smlad r11, r3, r6, r11\n",
            "smlad r12, r4, r6, r12\n",
            "smlad r11, r4, r8, r11\n",
            "smlad r12, r5, r8, r12\n",
            "smlabt r11, r5, r9, r11\n",
            "smlabt r12, r10, r9, r12"
        )
    };
}

/// Weights 01, 23, 45, 12, 34, 56.
macro_rules! row7 {
    () => {
        concat!(
            "ldm r3, {{r3-r6}}\n",
            "ldmia r2!, {{r7-r9}}\n",
            "smlad r11, r3, r7, r11\n",
            "smlatb r12, r3, r7, r12\n",
            "smlad r11, r4, r8, r11\n",
            "smlad r11, r5, r9, r11\n",
            "ldmia r2!, {{r7-r9}}\n",
            "smlad r12, r4, r7, r12\n",
            "smlad r12, r5, r8, r12\n",
            "smlabt r11, r6, r9, r11\n",
            "smlad r12, r6, r9, r12"
        )
    };
}

macro_rules! row7_stride2 {
    () => {
        concat!(
            "ldm r3, {{r3-r7}}\n",
            "ldmia r2!, {{r8-r10}}\n",
            "smlad r11, r3, r8, r11\n",
            "smlad r12, r4, r8, r12\n",
            "smlad r11, r4, r9, r11\n",
            "smlad r12, r5, r9, r12\n",
            "smlad r11, r5, r10, r11\n",
            "smlad r12, r6, r10, r12\n",
            "ldr r10, [r2, #8]\n",
            "add r2, #12\n",
            "smlabt r11, r6, r10, r11\n",
            "smlabt r12, r7, r10, r12"
        )
    };
}

/// Each kernel twice: bytes clamped to -128..=127, and numbers of 16 bits for limits and masks.
macro_rules! both {
    ($form:ident, $narrow:ident, $wide:ident, $row:ident $(, $advance:literal)?) => {
        $form! {
            /// Stores bytes.
            ///
            /// # Safety
            /// `rows` must be aligned to words and reach, like `w` and `y`, as far as the pairs up to `y_end` need.
            $narrow, $row $(, $advance)?, "8", "strb"
        }
        $form! {
            /// Stores numbers of 16 bits.
            ///
            /// # Safety
            /// As for the kernel that stores bytes; `y` must be aligned to 16 bits.
            $wide, $row $(, $advance)?, "16", "strh"
        }
    };
}

both!(square, square3, square3_wide, row3);
both!(square, square3_stride2, square3_stride2_wide, row3_stride2);
both!(tall, tall5, tall5_wide, row5, "4");
both!(tall, tall5_stride2, tall5_stride2_wide, row5_stride2, "8");
both!(tall, tall7, tall7_wide, row7, "4");
both!(tall, tall7_stride2, tall7_stride2_wide, row7_stride2, "8");
