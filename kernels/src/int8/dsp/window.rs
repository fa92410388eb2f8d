//! Two neighbouring outputs of one channel at a time, along a row of the output.
//!
//! A channel's input rows lie apart, widened to 16 bits, with zeros for padding, so that a word holds two neighbours.
//! Two outputs share their inputs: each word is read once a pair and row. The weights of a row of taps are words of
//! neighbouring taps, in the order that each kernel names.

use core::arch::naked_asm;

/// What a kernel runs over: some rows of the output of one channel. The assembly knows the places of the fields.
#[repr(C)]
pub(super) struct Window {
    /// The channel's first input row under the first output row.
    pub(super) x: *const i16,
    /// Bytes from one input row to the next.
    pub(super) pitch: usize,
    /// Weights of the channel.
    pub(super) w: *const u32,
    /// End of the weights.
    pub(super) w_end: *const u32,
    /// First output.
    pub(super) y: *mut i8,
    /// The channel's factor.
    pub(super) scale: f32,
    /// Where the sums start.
    pub(super) bias: i32,
    /// Stored value of the output's zero.
    pub(super) zero: i32,
    /// Bytes from one output to the next.
    pub(super) y_step: usize,
    /// Where `y` is after the last pair of the first row.
    pub(super) y_end: *mut i8,
    /// Bytes from there to the next row's first output.
    pub(super) y_gap: usize,
    /// Bytes from one row of the output to the next.
    pub(super) y_row: usize,
    /// Bytes from the inputs after the last pair to those of the next row's first.
    pub(super) x_gap: usize,
    /// Rows of the output.
    pub(super) rows: usize,
}

/// Loads the fields: x in r0, lr = y, s2 = scale, and on the stack pitch 0, w_end 4, w 8, bias 12, zero 16, y_step 20,
/// y_end 24, y_gap 28, y_row 32, x_gap 36, rows 40.
macro_rules! begin {
    () => {
        concat!(
            ".fpu fpv4-sp-d16\n",
            "push {{r4-r11, lr}}\n",
            "add r1, r0, #24\n",
            "ldm r1, {{r1-r8}}\n",
            "push {{r1-r8}}\n",
            "ldr r3, [r0, #8]\n",
            "ldr r1, [r0, #4]\n",
            "ldr r2, [r0, #12]\n",
            "push {{r1-r3}}\n",
            "ldr lr, [r0, #16]\n",
            "vldr s2, [r0, #20]\n",
            "ldr r0, [r0]"
        )
    };
}

/// Rounds the sums r11 and r12, stores them at lr by `$store` after saturation to `$bits`, and goes back for the next
/// pair. The second is stored first: with a step of 0 bytes the first one stays.
macro_rules! finish {
    ($bits:literal, $store:literal) => {
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
            "ldrd r3, r4, [sp, #16]\n",
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
            "ldr r3, [sp, #24]\n",
            "add lr, lr, r4, lsl #1\n",
            "cmp lr, r3\n",
            "bne 2b\n",
            // The next row of the output.
            "ldrd r11, r12, [sp, #28]\n",
            "add lr, r11\n",
            "add r3, r12\n",
            "str r3, [sp, #24]\n",
            "ldrd r3, r4, [sp, #36]\n",
            "add r0, r3\n",
            "subs r4, #1\n",
            "str r4, [sp, #40]"
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
                begin!(),
                "ldr r3, [sp, #8]",
                "ldm r3, {{r5-r10}}",
                "ldr r3, [sp]",
                "add r1, r0, r3",
                "add r2, r1, r3",
                "2:",
                "ldr r11, [sp, #12]",
                "mov r12, r11",
                $row!("r0", "r5", "r6"),
                $row!("r1", "r7", "r8"),
                $row!("r2", "r9", "r10"),
                finish!($bits, $store),
                "add r1, r3",
                "add r2, r3",
                "bne 2b",
                "add sp, #44",
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

/// A kernel of any number of rows of taps: `$row` adds the products of the row at r1 with its weights at r2 to r11 and
/// r12. `$advance`: bytes from one pair's inputs to the next one's.
macro_rules! tall {
    ($(#[$doc:meta])* $name:ident, $row:ident, $advance:literal, $bits:literal, $store:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(job: &Window) {
            naked_asm!(
                begin!(),
                "2:",
                "ldrd r2, r11, [sp, #8]",
                "mov r12, r11",
                "mov r1, r0",
                "3:",
                $row!(),
                "ldrd r8, r9, [sp]",
                "add r1, r8",
                "cmp r2, r9",
                "bne 3b",
                concat!("add r0, #", $advance),
                finish!($bits, $store),
                "bne 2b",
                "add sp, #44",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

/// Weights 01, 12, 23, 34.
macro_rules! row5 {
    () => {
        concat!(
            "ldm r1, {{r3-r5}}\n",
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
            "ldm r1, {{r3-r5, r10}}\n",
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
            "ldm r1, {{r3-r6}}\n",
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
            "ldm r1, {{r3-r7}}\n",
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
            /// `x` must be aligned to words and reach, like `w` and `y`, as far as the rows and pairs need.
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
