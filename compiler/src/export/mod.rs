//! Plans as something else: source code for a microcontroller, and forms to look at or to compute with.
//!
//! An exporter takes a finished plan and, where it writes code, the bytes that its stored tensors start with; it
//! decides nothing.

pub mod c;
pub mod copies;
pub mod dot;
pub mod html;
pub mod json;
pub mod lives;
pub mod rust;

pub use rust::ExportError;
