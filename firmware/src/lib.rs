//! The runtime around a compiled plan on a microcontroller.
//!
//! Invariant: no standard library, no allocation, no panic. Every size is a constant of the generated code, every
//! offset is checked while that code compiles, and what can go wrong in the field is a [`Fault`] of one byte. Not for
//! numbers: those are the business of [`kernels`], which the host runs too.
#![no_std]

pub mod abi;
pub mod arena;
pub mod checkpoint;
pub mod crc;
mod fault;
pub mod learner;
pub mod model;

pub use arena::{Arena, Place, Read, Slot, Span, Write};
pub use checkpoint::Checkpoints;
pub use fault::Fault;
pub use learner::{Counters, Learner, Score};
pub use model::{Model, Probe, Step};

pub use embedded_storage;
pub use tinyforge_kernels as kernels;
