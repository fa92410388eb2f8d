//! What can be wrong with a model's configuration; all findings are collected before one error is given.

use std::fmt;

use thiserror::Error;

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A key that the model needs is absent.
    Missing {
        /// The key.
        key: String,
    },
    /// A key holds something that it must not.
    Wrong {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        need: String,
    },
    /// A key asks for something that is not supported.
    Unsupported {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What is supported, or what to do.
        help: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Finding::Missing { key } => write!(f, "`{key}` is missing"),
            Finding::Wrong { key, found, need } => write!(f, "`{key}` is {found}, expected {need}"),
            Finding::Unsupported { key, found, help } => write!(f, "`{key}` = {found} is not supported; {help}"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The text is not JSON, or not an object.
    #[error("the configuration is not a JSON object: {detail}")]
    Json {
        /// Where and why.
        detail: String,
    },
    /// A model type that no importer knows.
    #[error("models of type `{found}` are not supported; supported: {supported}")]
    ModelType {
        /// The type in the file.
        found: String,
        /// The types that are supported.
        supported: String,
    },
    /// Everything else, collected.
    #[error("the configuration cannot be used:{}", lines(.0))]
    Findings(Vec<Finding>),
    /// The GGUF file holds a tensor of RoPE frequency factors, whose data the caller must read and pass.
    #[error("the data of tensor `{tensor}` (f32) must be given: it divides the RoPE frequencies")]
    RopeFactors {
        /// Name of the tensor.
        tensor: String,
    },
    /// GGUF metadata of a wrong type.
    #[error("{0}")]
    Gguf(String),
}

/// Each finding on a line of its own.
fn lines(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n  {finding}")).collect()
}

/// Collects findings while a configuration is read.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn missing(&mut self, key: &str) {
        self.0.push(Finding::Missing { key: key.into() });
    }

    pub(crate) fn wrong(&mut self, key: &str, found: impl fmt::Display, need: impl fmt::Display) {
        self.0.push(Finding::Wrong { key: key.into(), found: found.to_string(), need: need.to_string() });
    }

    pub(crate) fn unsupported(&mut self, key: &str, found: impl fmt::Display, help: impl fmt::Display) {
        self.0.push(Finding::Unsupported { key: key.into(), found: found.to_string(), help: help.to_string() });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` when nothing was found.
    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        if self.0.is_empty() { Ok(()) } else { Err(ConfigError::Findings(self.0)) }
    }
}
