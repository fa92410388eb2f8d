//! Kernels for x86-64 beyond what the compiler makes of the portable ones.

pub(crate) mod conv;
