//! Four output channels over many pixels: `i8` as it lies in memory times weights widened and interleaved.
//!
//! Weights of four channels lie in steps of four input channels, as eight words: inputs 0 and 2 of each channel, then
//! inputs 1 and 3. A step is 13 instructions for 16 products.

use core::arch::naked_asm;

/// What the loops run over; the assembly knows the places of the fields.
#[repr(C)]
pub(super) struct Dot4 {
    /// First input of the first pixel.
    pub(super) x: *const i8,
    /// Outputs of the first pixel.
    pub(super) y: *mut i8,
    /// Factors of the four channels.
    pub(super) scale: *const f32,
    /// Bytes from the end of a pixel's inputs to the next pixel.
    pub(super) gap: usize,
    /// Where the sums start.
    pub(super) bias: *const i32,
    /// Weights, 8 words a step.
    pub(super) w: *const u32,
    /// End of the weights.
    pub(super) w_end: *const u32,
    /// Whether the number of steps is odd.
    pub(super) is_odd: usize,
    /// Stored value of the output's zero.
    pub(super) zero: i32,
    /// Bytes from one pixel's outputs to the next.
    pub(super) y_step: usize,
    /// Where `y` is after the last pixel.
    pub(super) y_end: *mut i8,
}

/// Sixteen products: four inputs at r0 and the weights at r1 of four channels, whose sums are r8-r11.
macro_rules! step {
    () => {
        concat!(
            "ldr r2, [r0], #4\n",
            "ldmia r1!, {{r4-r7}}\n",
            "sxtb16 r3, r2\n",
            "sxtb16 r2, r2, ror #8\n",
            "smlad r8, r3, r4, r8\n",
            "smlad r9, r3, r5, r9\n",
            "smlad r10, r3, r6, r10\n",
            "smlad r11, r3, r7, r11\n",
            "ldmia r1!, {{r4-r7}}\n",
            "smlad r8, r2, r4, r8\n",
            "smlad r9, r2, r5, r9\n",
            "smlad r10, r2, r6, r10\n",
            "smlad r11, r2, r7, r11"
        )
    };
}

/// A kernel whose last part differs: `$tail` stores r8-r11, the four results before the limits, at r12.
macro_rules! dot4 {
    ($(#[$doc:meta])* $name:ident, $($tail:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name(job: &Dot4) {
            naked_asm!(
                ".fpu fpv4-sp-d16",
                "push {{r4-r11, lr}}",
                "ldr r1, [r0, #8]",
                "vldmia r1, {{s4-s7}}",
                "ldr r12, [r0, #4]",
                "add r2, r0, #12",
                "ldm r2, {{r4-r11}}",
                // On the stack from here: gap 0, bias 4, w 8, w_end 12, is_odd 16, zero 20, y_step 24, y_end 28.
                "push {{r4-r11}}",
                "ldr r0, [r0]",
                "2:",
                "ldr r2, [sp, #4]",
                "ldm r2, {{r8-r11}}",
                "ldrd r1, lr, [sp, #8]",
                "ldr r2, [sp, #16]",
                "cbnz r2, 4f",
                "3:",
                step!(),
                "4:",
                step!(),
                "cmp r1, lr",
                "bne 3b",
                "vmov s0, s1, r8, r9",
                "vmov s2, s3, r10, r11",
                "vcvt.f32.s32 s0, s0",
                "vcvt.f32.s32 s1, s1",
                "vcvt.f32.s32 s2, s2",
                "vcvt.f32.s32 s3, s3",
                "vmul.f32 s0, s0, s4",
                "vmul.f32 s1, s1, s5",
                "vmul.f32 s2, s2, s6",
                "vmul.f32 s3, s3, s7",
                // To nearest, ties to even: the mode that the processor starts in.
                "vcvtr.s32.f32 s0, s0",
                "vcvtr.s32.f32 s1, s1",
                "vcvtr.s32.f32 s2, s2",
                "vcvtr.s32.f32 s3, s3",
                "vmov r8, r9, s0, s1",
                "vmov r10, r11, s2, s3",
                "ldrd r2, r3, [sp, #20]",
                "qadd r8, r8, r2",
                "qadd r9, r9, r2",
                "qadd r10, r10, r2",
                "qadd r11, r11, r2",
                $($tail,)*
                "add r12, r3",
                "ldr r2, [sp]",
                "ldr r3, [sp, #28]",
                "add r0, r2",
                "cmp r12, r3",
                "bne 2b",
                "add sp, #32",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

dot4! {
    /// Stores four bytes a pixel, clamped to -128..=127.
    ///
    /// # Safety
    /// `x`, `y`, `scale`, `bias` and `w` must reach as far as the other fields say: at least one pixel and one step.
    dot4,
    "ssat r8, #8, r8",
    "ssat r9, #8, r9",
    "ssat r10, #8, r10",
    "ssat r11, #8, r11",
    "bfi r8, r9, #8, #8",
    "bfi r10, r11, #8, #8",
    "pkhbt r8, r8, r10, lsl #16",
    "str r8, [r12]"
}

dot4! {
    /// Stores four numbers of 16 bits a pixel, clamped to what these hold.
    ///
    /// # Safety
    /// As for [`dot4`]; `y` must be aligned to words.
    dot4_wide,
    "ssat r8, #16, r8",
    "ssat r9, #16, r9",
    "ssat r10, #16, r10",
    "ssat r11, #16, r11",
    "pkhbt r8, r8, r9, lsl #16",
    "pkhbt r10, r10, r11, lsl #16",
    "strd r8, r10, [r12]"
}
