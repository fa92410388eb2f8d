//! Code compiled once for each instruction set: the f32 family's, or only the target's own without the standard
//! library.

#[cfg(feature = "std")]
pub(crate) use crate::f32::simd::{Kernel, Simd, dispatch};

/// Which instruction set: the target's own.
#[cfg(not(feature = "std"))]
pub(crate) trait Simd {}

#[cfg(not(feature = "std"))]
impl Simd for () {}

/// Work that is compiled for an instruction set.
#[cfg(not(feature = "std"))]
pub(crate) trait Kernel {
    /// What it gives.
    type Out;

    /// Does it.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs with the target's instruction set.
#[cfg(not(feature = "std"))]
#[inline(always)]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(())
}
