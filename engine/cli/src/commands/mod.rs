//! The commands, one a file.

pub mod bench;
pub mod compile;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod make_model;
pub mod plan;
pub mod resume;
pub mod search;
pub mod simulate;
pub mod train;

/// What every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Common {
    /// One JSON object as the last line of stdout
    #[arg(long, global = true)]
    pub json: bool,
}
