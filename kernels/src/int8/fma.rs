//! The fused multiply-add, rounded once, on every machine.

/// `a * b + c`, rounded once.
#[cfg(all(target_arch = "arm", has_fpu))]
#[inline(always)]
#[expect(unsafe_code, reason = "one instruction that the language has no stable name for without the standard library")]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let mut sum = c;
    // SAFETY: reads and writes registers only; `has_fpu` says that the target has FPv4 or later.
    unsafe {
        core::arch::asm!("vfma.f32 {sum}, {a}, {b}", sum = inout(sreg) sum, a = in(sreg) a, b = in(sreg) b,
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
