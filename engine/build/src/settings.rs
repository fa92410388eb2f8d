//! What is asked of a build, read from text.

use crate::error::BuildError;
use crate::sizes;
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
