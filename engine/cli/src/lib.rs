//! The `tinyforge` command as a library: the only place that links compiler and engine, and the only one that
//! prints.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod bench;
pub mod clock;
pub mod commands;
pub mod debug;
pub mod error;
pub mod fixed;
pub mod host;
pub mod int8;
pub mod knobs;
pub mod model;
pub mod output;
pub mod planning;
pub mod profile;
pub mod progress;
pub mod report;
pub mod request;
pub mod run;
pub mod sampling;
pub mod search;
pub mod streaming;
pub use tinyforge_build::sizes;
