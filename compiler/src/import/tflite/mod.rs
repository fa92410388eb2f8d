//! TFLite files of full-integer quantisation, read into an [`Int8Model`].
//!
//! | module | does |
//! |---|---|
//! | `flat` | FlatBuffers: every read checked |
//! | `schema` | the file's tables: tensors, operators, places of weights |
//! | `ops` | each operator to layers |
//! | `window` | operators' options: windows, padding, activations |
//! | `litert` | factors by which layers round as LiteRT does |
//!
//! Invariant: hostile input gives an error; work and memory are bounded by a multiple of the file's length. Not for
//! float models: those are refused with the way out.

mod flat;
mod litert;
mod ops;
mod schema;
mod window;

use super::int8::{Int8Error, Int8Model};

/// Reads a file. `bytes` is all of it; weights are named by their place in `file_name`.
///
/// A `quantized_dimension` in the file is ignored: known files carry wrong ones, and the operator says which dimension
/// has the channels. An operator's own names are not kept: the `n`-th convolution or fully connected layer is
/// `layers.n`, the one that gives the logits `head`.
///
/// # Errors
/// The file is damaged, computes in floats, or has operators that no layer stands for; the last lists all of them.
pub fn import(bytes: &[u8], file_name: &str) -> Result<Int8Model, Int8Error> {
    let flat = flat::Flat::new(bytes);
    let file = schema::read(&flat, bytes)?;
    ops::convert(&file, bytes, file_name)
}
