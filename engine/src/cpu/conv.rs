//! Not bound yet.
use super::Kernel;
pub(super) const KERNELS: &[Kernel] = &[];
