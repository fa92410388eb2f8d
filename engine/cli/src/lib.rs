//! The `tinyforge` command as a library: the only place that links compiler and engine, and the only one that
//! prints.
#![forbid(unsafe_code)]

pub mod error;
pub mod fixed;
pub mod knobs;
pub mod model;
pub mod planning;
pub mod sizes;
