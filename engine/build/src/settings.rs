//! What is asked of a build, read from text.

use crate::error::BuildError;
use crate::sizes;
use std::str::FromStr;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;

/// What a plan for a microcontroller is made for.
#[derive(Clone, Debug)]
pub struct Int8Settings {
    /// What is trained.
    pub scheme: Scheme,
    /// What is planned for.
    pub target: Target,
    /// Bytes of SRAM.
    pub memory: u64,
    /// Bytes of flash.
    pub flash: u64,
    /// Bytes of stack.
    pub stack: u64,
    /// Samples a step.
    pub batch: u32,
    /// Whether gradients are scaled by the quantisation.
    pub is_scaled: bool,
    /// How updates are rounded.
    pub update: Rounding,
    /// Momentum of the gradients; 0 for none.
    pub momentum: f64,
}

/// How an update of integers is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// At random, so that the mean is right.
    Stochastic,
    /// To the nearest, with what is left kept for the next step.
    Accumulate,
}

impl FromStr for Rounding {
    type Err = BuildError;

    fn from_str(text: &str) -> Result<Rounding, BuildError> {
        match text {
            "stochastic" => Ok(Rounding::Stochastic),
            "accumulate" => Ok(Rounding::Accumulate),
            other => Err(BuildError::request(format!("`{other}` is no way to round: stochastic or accumulate"))),
        }
    }
}

/// Momentum as it may be.
///
/// # Errors
/// It is not in `0..1`.
pub fn momentum(value: f64) -> Result<f64, BuildError> {
    let why = || BuildError::request(format!("--momentum {value}: at least 0 and below 1"));
    Some(value).filter(|m| (0.0..1.0).contains(m)).ok_or_else(why)
}

/// A microcontroller by name.
///
/// # Errors
/// There is none of this name.
pub fn target(name: &str) -> Result<Target, BuildError> {
    let found = Target::from_name(name).filter(|t| t.fixed.is_some());
    found.ok_or_else(|| BuildError::request(format!("`{name}` is no microcontroller: cortex-m4 or cortex-m7")))
}

/// A size such as `256KiB`.
///
/// # Errors
/// The text is no size.
pub fn size(text: &str) -> Result<u64, BuildError> {
    sizes::parse(text).map_err(BuildError::request)
}

/// A scheme by name, or from a file.
///
/// # Errors
/// The text is no scheme, or the file cannot be read or is none.
pub fn scheme(text: &str) -> Result<Scheme, BuildError> {
    if !text.ends_with(".toml") {
        return Ok(Scheme::parse(text)?);
    }
    let bytes = tinyforge::files::read_whole(text.as_ref())?;
    let toml = String::from_utf8(bytes).map_err(|e| BuildError::request(format!("scheme file {text}: {e}")))?;
    Ok(Scheme::parse_file(&toml)?)
}
