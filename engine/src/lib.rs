//! Tinyforge: the library that runs plans.
//!
//! Invariants: it never sees IR, the plan is the only bridge to the compiler; nothing is allocated after load;
//! nothing is printed.

pub mod arena;
pub mod cpu;
pub mod data;
pub mod disk;
pub mod far;
pub mod files;
pub mod generate;
pub mod gpu;
pub mod load;
pub mod runner;
pub mod samples;
pub mod sim;
pub mod simulate;
pub mod text;
pub mod train;
