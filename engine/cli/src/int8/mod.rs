//! Int8 networks on their way to a microcontroller: opened, planned, reported.

pub mod compare;
pub mod learning;
pub mod model;
pub mod planning;
pub mod report;

use crate::error::CommandError;
use crate::sizes;
use std::path::PathBuf;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;

/// What every command on int8 networks takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Int8Args {
    /// A model: a TFLite file with int8 tensors, or the .json of a network beside its .safetensors
    pub model: PathBuf,
    /// Replace the head by a new one of so many classes
    #[arg(long)]
    pub classes: Option<u32>,
    /// What is trained: full, last:N, bias:N, sparse with a .toml file, ... Layers count from the input
    #[arg(long, default_value = "last:1")]
    pub scheme: String,
    /// What is planned for: cortex-m4 or cortex-m7
    #[arg(long, default_value = "cortex-m7")]
    pub target: String,
    /// SRAM for everything: arena, weights that change, masks, stack
    #[arg(long, default_value = "256KiB")]
    pub memory: String,
    /// Flash for weights and constants
    #[arg(long, default_value = "1MiB")]
    pub flash: String,
    /// Stack that is kept free in SRAM
    #[arg(long, default_value = "4KiB")]
    pub stack: String,
    /// Samples a step whose gradients are taken together; more than one keeps gradients in SRAM
    #[arg(long, default_value_t = 1)]
    pub batch: u32,
    /// Plain descent on the stored integers, without quantisation-aware scaling
    #[arg(long)]
    pub no_qas: bool,
    /// How steps below one unit count: rounded at random, or added up in 4 bytes of SRAM for each trained element
    #[arg(long, default_value = "stochastic")]
    pub update: Rounding,
    /// Momentum of the gradients, below 1; takes 4 bytes of SRAM for each trained element
    #[arg(long, default_value_t = 0.0)]
    pub momentum: f64,
    /// Seed of a new head and of rounding
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// How an update of integers is rounded.
#[derive(clap::ValueEnum, serde::Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// At random, so that the mean is right
    Stochastic,
    /// To the nearest, with what is left kept for the next step
    Accumulate,
}

/// The same, read.
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

impl Int8Args {
    /// Reads the texts.
    ///
    /// # Errors
    /// One of them says nothing that can be done.
    pub fn settings(&self) -> Result<Int8Settings, CommandError> {
        let size = |text: &str| sizes::parse(text).map_err(CommandError::request);
        let target = Target::from_name(&self.target).filter(|t| t.fixed.is_some()).ok_or_else(|| {
            CommandError::request(format!("`{}` is no microcontroller: cortex-m4 or cortex-m7", self.target))
        })?;
        if self.batch == 0 {
            return Err(CommandError::request("--batch must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return Err(CommandError::request(format!("--momentum {}: at least 0 and below 1", self.momentum)));
        }
        Ok(Int8Settings {
            scheme: scheme(&self.scheme)?,
            target,
            memory: size(&self.memory)?,
            flash: size(&self.flash)?,
            stack: size(&self.stack)?,
            batch: self.batch,
            is_scaled: !self.no_qas,
            update: self.update,
            momentum: self.momentum,
        })
    }
}

/// A scheme by name, or from a file.
fn scheme(text: &str) -> Result<Scheme, CommandError> {
    if !text.ends_with(".toml") {
        return Ok(Scheme::parse(text)?);
    }
    let bytes = tinyforge::files::read_whole(text.as_ref())?;
    let toml = String::from_utf8(bytes).map_err(|e| CommandError::request(format!("scheme file {text}: {e}")))?;
    Ok(Scheme::parse_file(&toml)?)
}
