//! What a command can fail with, and the exit code that says whose fault it is.

use crate::model::ModelError;
use tinyforge::data::DataError;
use tinyforge::files::FileError;
use tinyforge::generate::GenerateError;
use tinyforge::runner::RunError;
use tinyforge::train::TrainError;
use tinyforge::train::checkpoint::CheckpointError;
use tinyforge_build::BuildError;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request cannot be met: exit code 2.
    #[error("{0}")]
    Request(String),
    /// The run failed: exit code 1.
    #[error("{0}")]
    Run(String),
}

impl CommandError {
    /// A request that cannot be met.
    pub fn request(why: impl ToString) -> CommandError {
        CommandError::Request(why.to_string())
    }

    /// A run that failed.
    pub fn run(why: impl ToString) -> CommandError {
        CommandError::Run(why.to_string())
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            CommandError::Request(_) => 2,
            CommandError::Run(_) => 1,
        }
    }
}

impl From<GenerateError> for CommandError {
    fn from(error: GenerateError) -> CommandError {
        match error {
            GenerateError::Plan(_) | GenerateError::NotFinite { .. } | GenerateError::Run(_) => {
                CommandError::run(error)
            }
            _ => CommandError::request(error),
        }
    }
}

macro_rules! from {
    ($($kind:ident: $($error:ty),*;)*) => {
        $($(impl From<$error> for CommandError {
            fn from(error: $error) -> CommandError {
                CommandError::$kind(error.to_string())
            }
        })*)*
    };
}

from! {
    Request: ModelError, tinyforge_compiler::scheme::SchemeError;
    Run: FileError, RunError, TrainError, CheckpointError;
}

impl From<BuildError> for CommandError {
    fn from(error: BuildError) -> CommandError {
        match error {
            BuildError::Request(why) => CommandError::Request(why),
            BuildError::Run(why) => CommandError::Run(why),
        }
    }
}

impl From<DataError> for CommandError {
    fn from(error: DataError) -> CommandError {
        match &error {
            // What is not there was asked for wrongly; a disk that fails was not.
            DataError::Io { error: io, .. } if io.kind() != std::io::ErrorKind::NotFound => CommandError::run(error),
            DataError::Stopped => CommandError::run(error),
            _ => CommandError::request(error),
        }
    }
}
