//! From the user's file to rows of tokens, in bounded memory.
//!
//! ```text
//! files -> records -> documents -> pieces -> rows -> data.rows
//! ```
//!
//! A *record* is what a line says, a *document* its tokens with the mark which of them are trained, a *piece* at most
//! one row's worth of a document, a *row* what the model is given: `seq` tokens with labels, weights, positions and
//! segments. Rows are written once and read back one at a time, so that memory does not grow with the data.
//! Nothing here prints; errors name file and line.

mod build;
mod cache;
mod document;
mod files;
mod inspect;
mod making;
mod pack;
mod record;
mod rows;
mod split;

pub use build::{DataOptions, DataSet, Progress, buffer_bytes, prepare};
pub use cache::{RowFile, RowReader, RowTable};
pub use inspect::{Counts, Example, ExampleToken, Inspection};
pub use record::Kind;
pub use rows::{IGNORED, PADDING_SEGMENT, Row, RowBuf};
pub use split::{Permutation, Schedule};

use crate::files::FileError;
use crate::text::TextError;
use std::path::{Path, PathBuf};

/// What can be wrong with training data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Reading or writing failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file as a whole cannot be used.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A line cannot be used.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The tokenizer or the chat template refuses a line.
    #[error("{}:{line}: {error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What the tokenizer or the template said.
        error: TextError,
    },
    /// The chat template does not compile.
    #[error(transparent)]
    Template(TextError),
    /// The settings contradict themselves or the data.
    #[error("{0}")]
    Settings(String),
    /// The caller asked to stop.
    #[error("stopped while reading the data")]
    Stopped,
}

impl DataError {
    pub(crate) fn io(path: &Path, error: std::io::Error) -> DataError {
        DataError::Io { path: path.to_owned(), error }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> DataError {
        DataError::File { path: path.to_owned(), message: message.into() }
    }
}

impl From<FileError> for DataError {
    fn from(error: FileError) -> DataError {
        DataError::Io { path: error.path, error: error.source }
    }
}
