//! How deep the stack has been.
#![expect(unsafe_code, reason = "reads the painted words below the stack pointer")]

use cortex_m_rt::STACK_PAINT_VALUE;

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// Bytes of the region.
pub fn size_bytes() -> usize {
    (&raw const _stack_start as usize).saturating_sub(&raw const _stack_end as usize)
}

/// Bytes used at the deepest point so far: what is painted no more. A word that was written with the paint's own value
/// or skipped counts as unused.
pub fn used_bytes() -> usize {
    let (bottom, top) = (&raw const _stack_end as usize, &raw const _stack_start as usize);
    let mut at = bottom;
    // SAFETY: the words between the linker's two symbols are memory that nothing refers to below the stack pointer.
    while at < top && unsafe { (at as *const u32).read_volatile() } == STACK_PAINT_VALUE {
        at += 4;
    }
    top - at
}
