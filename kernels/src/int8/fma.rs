//! The fused multiply-add, rounded once, on every machine.

/// `a * b + c`, rounded once.
#[cfg(all(target_arch = "arm", has_fpu))]
#[inline(always)]
#[expect(unsafe_code, reason = "one instruction that the language has no stable name for without the standard library")]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let sum: f32;
    // The compiler hands out float registers only where there are double ones too, so the operands go by way of the
    // integer ones.
    // SAFETY: reads and writes registers only; `has_fpu` says that the target has FPv4 or later.
    unsafe {
        core::arch::asm!("vmov s0, {a}", "vmov s1, {b}", "vmov s2, {c}", "vfma.f32 s2, s0, s1", "vmov {sum}, s2",
            a = in(reg) a, b = in(reg) b, c = in(reg) c, sum = lateout(reg) sum,
            out("s0") _, out("s1") _, out("s2") _,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `a * b + c`, rounded once.
#[cfg(all(feature = "std", not(all(target_arch = "arm", has_fpu))))]
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// `a * b + c`, rounded once.
#[cfg(not(any(feature = "std", all(target_arch = "arm", has_fpu))))]
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    libm::fmaf(a, b, c)
}
