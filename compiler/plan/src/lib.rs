//! The plan: a straight line of kernels, copies and updates over arenas whose sizes are known to the byte.
//!
//! This crate is the only bridge between the compiler, which writes plans, and the engine and the firmware,
//! which run them. It holds the data, their encoding and a checker that shares no code with the planner.
//! It is not for anything that decides: no scheduling, no placement.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod check;
mod dtype;
pub mod encode;
mod moves;
mod plan;
mod rows;

pub use dtype::DType;
pub use plan::*;
