//! What a build can fail with.

use tinyforge::files::FileError;
use tinyforge::runner::RunError;
use tinyforge_compiler::export::ExportError;
use tinyforge_compiler::scheme::SchemeError;

/// Why nothing was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The request cannot be met: with numbers and the way out.
    #[error("{0}")]
    Request(String),
    /// Reading, writing or loading failed.
    #[error("{0}")]
    Run(String),
}

impl BuildError {
    /// A request that cannot be met.
    pub fn request(why: impl ToString) -> BuildError {
        BuildError::Request(why.to_string())
    }

    /// A build that failed.
    pub fn run(why: impl ToString) -> BuildError {
        BuildError::Run(why.to_string())
    }
}

impl From<SchemeError> for BuildError {
    fn from(error: SchemeError) -> BuildError {
        BuildError::request(error)
    }
}

impl From<ExportError> for BuildError {
    fn from(error: ExportError) -> BuildError {
        BuildError::request(error)
    }
}

impl From<FileError> for BuildError {
    fn from(error: FileError) -> BuildError {
        BuildError::run(error)
    }
}

impl From<RunError> for BuildError {
    fn from(error: RunError) -> BuildError {
        BuildError::run(error)
    }
}
