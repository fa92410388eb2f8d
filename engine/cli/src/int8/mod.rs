//! Int8 networks on their way to a microcontroller: opened, planned, reported.

pub mod compare;
pub mod float;
pub mod learning;
pub mod report;

use crate::error::CommandError;
use std::path::PathBuf;
pub use tinyforge_build::settings::Int8Settings;
use tinyforge_build::settings::{Rounding, momentum, scheme, size, target};
pub use tinyforge_build::{model, planning};

/// What every command on int8 networks takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Int8Args {
    /// A model: a TFLite file with int8 tensors, the .json of a network beside its .safetensors, or a float .onnx file
    pub model: PathBuf,
    /// How a float network becomes int8.
    #[command(flatten)]
    pub float: FloatArgs,
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

/// How a float network becomes int8.
#[derive(clap::Args, Clone, Debug)]
pub struct FloatArgs {
    /// Samples that a float network is quantised with: images, an IDX file or raw int8 arrays; labels are not needed
    #[arg(long)]
    pub calibrate: Option<PathBuf>,
    /// How many of them at most, evenly spread
    #[arg(long, default_value_t = 256)]
    pub calibrate_samples: usize,
    /// Where the ranges of a float network's values are cut
    #[arg(long, default_value = "mse")]
    pub ranges: Ranges,
    /// A float network takes (pixel * scale - mean) / std of a pixel of 0 to 255: the scale
    #[arg(long, default_value = "1/255", value_parser = fraction)]
    pub input_scale: f64,
    /// The mean: one number, or one a channel
    #[arg(long, default_value = "0", value_delimiter = ',', allow_hyphen_values = true)]
    pub input_mean: Vec<f64>,
    /// The deviation: one number, or one a channel
    #[arg(long, default_value = "1", value_delimiter = ',')]
    pub input_std: Vec<f64>,
}

/// Where ranges are cut.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ranges {
    /// Not at all
    MinMax,
    /// Where the mean squared error is least
    Mse,
    /// At 99.99 % of the values
    Percentile,
}

/// A number, or one over another.
fn fraction(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().map_err(|e| format!("`{text}`: {e}"));
    match text.split_once('/') {
        Some((over, under)) => Ok(number(over)? / number(under)?),
        None => number(text),
    }
}

impl Int8Args {
    /// Reads the texts.
    ///
    /// # Errors
    /// One of them says nothing that can be done.
    pub fn settings(&self) -> Result<Int8Settings, CommandError> {
        if self.batch == 0 {
            return Err(CommandError::request("--batch must be at least 1"));
        }
        Ok(Int8Settings {
            scheme: scheme(&self.scheme)?,
            target: target(&self.target)?,
            memory: size(&self.memory)?,
            flash: size(&self.flash)?,
            stack: size(&self.stack)?,
            batch: self.batch,
            is_scaled: !self.no_qas,
            update: self.update,
            momentum: momentum(self.momentum)?,
        })
    }
}
