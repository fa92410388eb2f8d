//! The f32/bf16 family: SIMD and threads, for the desktop's CPU.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod dense;
pub mod elementwise;
pub mod embedding;
pub mod index;
pub mod loss;
mod map;
mod math;
pub mod norm;
pub mod optimizer;
mod parts;
pub mod pool;
pub mod quant;
pub mod rope;
mod row;
mod scratch;
pub mod simd;
mod tile;

pub use map::Elementwise;
