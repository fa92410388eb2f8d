//! The f32 kernels against naive f64 forms; gradients against finite differences of those forms; the same bits for
//! every thread count and instruction set, and for micro-batches of any number of rows.

mod activation;
mod attention;
mod batch_norm;
mod common;
mod conv;
mod elementwise;
mod embedding;
mod loss;
mod norm;
mod optimizer;
mod random;
mod rope;
