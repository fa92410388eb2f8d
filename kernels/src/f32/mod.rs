//! The f32/bf16 family: SIMD and threads, for the desktop's CPU.

pub mod activation;
pub mod attention;
pub mod dense;
pub mod elementwise;
mod map;
mod math;
pub mod norm;
mod parts;
pub mod quant;
pub mod rope;
mod scratch;
pub mod simd;
mod tile;
