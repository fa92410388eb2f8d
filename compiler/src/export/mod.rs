//! Plans as something else: source code for a microcontroller.
//!
//! An exporter takes a finished plan and the bytes that its stored tensors start with; it decides nothing.

pub mod rust;
