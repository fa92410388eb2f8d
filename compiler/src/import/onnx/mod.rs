//! ONNX files of float convolutional networks, read into a [`FloatModel`].
//!
//! | module | does |
//! |---|---|
//! | `wire` | Protocol Buffers: every read checked |
//! | `schema` | the file's messages: nodes, constants, inputs |
//! | `convert` | values, constants, names: what the operators have in common |
//! | `ops` | each operator to ops of the table |
//! | `window` | kernels, strides and padding |
//! | `model` | the program and the places of its weights |
//!
//! Invariant: hostile input gives an error; work and memory are bounded by a multiple of the file's length. The format
//! is read by our own code rather than by a generated parser: such a one copies every weight into vectors of its own
//! before anything can be checked, where this gives each constant's place in the file; and the part of the encoding
//! that the format needs is a hundred lines in which every read is checked.
//!
//! Not for graphs that compute shapes, for control flow, or for sequences: an image, or a vector, goes in, and every
//! shape but the batch is known. Int8 programs come of it by the pass `quantize`.

mod convert;
mod error;
mod model;
mod ops;
mod schema;
mod window;
mod wire;

pub use error::OnnxError;
pub use model::FloatModel;

/// Reads a file. `bytes` is all of it; weights are named by their place in `file_name` or, for external data, in files
/// beside it, of which `len_of` gives the length where there is such a file. The program is for `batch` images.
///
/// # Errors
/// The file is damaged, or has parts that no op stands for; the last lists all of them.
pub fn import(
    bytes: &[u8],
    file_name: &str,
    len_of: &dyn Fn(&str) -> Option<u64>,
    batch: u32,
) -> Result<FloatModel, OnnxError> {
    let file = schema::read(bytes)?;
    convert::convert(&file, file_name, bytes.len() as u64, len_of, batch)
}
