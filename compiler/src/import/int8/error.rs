//! What can be wrong with an int8 model.

use thiserror::Error;

use crate::import::safetensors::SafetensorsError;

/// One thing that an importer cannot take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The layer or operator.
    pub layer: String,
    /// Why not.
    pub why: String,
}

/// Why a file gives no int8 model.
#[derive(Debug, Error, PartialEq)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Int8Error {
    #[error("this is no TFLite file: bytes 4 to 8 of its {file_bytes} are not `TFL3`")]
    NotTflite { file_bytes: u64 },
    #[error("the file is damaged at `{what}`: {detail}")]
    Damaged { what: String, detail: String },
    #[error(
        "the model computes in {dtype} ({layer}); int8 is needed: convert it with full-integer quantisation \
         (a representative data set, int8 operators, int8 input and output)"
    )]
    Float { layer: String, dtype: String },
    #[error("the model has {}", refusals(.0))]
    Unsupported(Vec<Refusal>),
    #[error("the structure is not JSON of the expected form: {0}")]
    Json(String),
    #[error("weights: {0}")]
    Safetensors(#[from] SafetensorsError),
    #[error("weights: {0}")]
    Weights(String),
    #[error("{layer}: {why}")]
    Layer { layer: String, why: String },
    #[error(
        "{layer}: the sum of channel {channel} reaches {reach}, an accumulator holds less than 2147483648; \
         the file is damaged or was not made for int8 kernels"
    )]
    Accumulator { layer: String, channel: u32, reach: i64 },
    #[error("{classes} classes are asked for; a head has between 2 and {most}")]
    Classes { classes: u32, most: u32 },
    #[error(
        "the model does not end in a fully connected layer (it ends in {ends_in}), so there is nothing to train as a \
         classifier; give `--classes N` for a new head"
    )]
    NoHead { ends_in: String },
    #[error(
        "the model gives {results} numbers for the {inputs} of its input, without a softmax: it reconstructs or predicts \
         numbers and names no classes, so labels cannot teach it; give `--classes N` for a new head"
    )]
    NoClasses { inputs: u64, results: u64 },
    #[error("a batch of {batch} images of {elems} elements is more than {most} elements")]
    Batch { batch: u32, elems: u64, most: u64 },
}

/// How many refusals are told.
const TOLD: usize = 8;

/// What an importer cannot take, in words.
pub(crate) fn refusals(refusals: &[Refusal]) -> String {
    format!("{} that cannot be imported: {}", count(refusals.len()), list(refusals))
}

fn count(n: usize) -> String {
    if n == 1 { "one part".to_owned() } else { format!("{n} parts") }
}

fn list(refusals: &[Refusal]) -> String {
    let told: Vec<String> = refusals.iter().take(TOLD).map(|r| format!("{}: {}", r.layer, r.why)).collect();
    let rest = refusals.len().saturating_sub(TOLD);
    let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
    told.join("; ") + &more
}
