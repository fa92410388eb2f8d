//! Kernels for x86-64 beyond what the compiler makes of the portable ones.
#![expect(unsafe_code, reason = "instructions that were detected, on pieces whose lengths were compared")]

pub(crate) mod conv;
