//! What can be wrong with an ONNX file.

use thiserror::Error;

use crate::import::int8::{Refusal, refusals};

/// Why a file gives no float network.
#[derive(Debug, Error, PartialEq)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum OnnxError {
    #[error("this is no ONNX file: its {file_bytes} bytes hold no graph")]
    NotOnnx { file_bytes: u64 },
    #[error("the file is damaged at `{what}`: {detail}")]
    Damaged { what: String, detail: String },
    #[error("the model has {}", refusals(.0))]
    Unsupported(Vec<Refusal>),
}
