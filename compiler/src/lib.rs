//! The compiler: a model, an update scheme and a target in; a plan out.
//!
//! Invariants: no device, no thread, no unsafe code; importers take bytes; a pass never calls a pass; what the
//! verifier accepted panics nowhere later.
#![forbid(unsafe_code)]

pub mod compile;
pub mod cost;
pub mod export;
pub mod import;
pub mod ir;
mod lower;
pub mod machine;
pub mod optimizer;
pub mod passes;
pub mod scheme;
pub mod target;
