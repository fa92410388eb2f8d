//! The fused multiply-add, rounded once, on every machine.

/// `a * b + c`, rounded once.
#[cfg(all(target_arch = "arm", has_fpu))]
#[inline(always)]
#[expect(unsafe_code, reason = "one instruction that the language has no stable name for without the standard library")]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let sum: u32;
    // SAFETY: changes the registers it names only; `has_fpu` says that the target has FPv4 or later. The operands are
    // general registers since a target with single precision alone has no stable class of floating ones.
    unsafe {
        core::arch::asm!(
            "vmov s0, {a}", "vmov s1, {b}", "vmov s2, {c}", "vfma.f32 s2, s0, s1", "vmov {sum}, s2",
            a = in(reg) a.to_bits(), b = in(reg) b.to_bits(), c = in(reg) c.to_bits(), sum = lateout(reg) sum,
            out("s0") _, out("s1") _, out("s2") _, options(pure, nomem, nostack, preserves_flags));
    }
    f32::from_bits(sum)
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
