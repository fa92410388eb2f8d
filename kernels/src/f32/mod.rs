//! The f32/bf16 family: SIMD and threads, for the desktop's CPU.

pub mod dense;
pub mod quant;
