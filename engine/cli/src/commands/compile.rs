//! `tinyforge compile`: training as source code for a microcontroller.

use super::Common;
use crate::error::CommandError;
use crate::int8::{Int8Args, float, report};
use std::path::PathBuf;
use tinyforge_build::{Built, CSettings};

/// What is written.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// Rust: model.rs, flash.bin, start.bin
    Rust,
    /// C: a crate that makes the static library libmodel.a, with headers in include/
    C,
    /// The plan's bytes: model.plan
    Plan,
    /// A graph for graphviz: model.dot
    Dot,
    /// A page that shows memory over the steps: model.html
    Html,
    /// The plan for programs: model.json
    Json,
}

impl From<Emit> for tinyforge_build::Emit {
    fn from(emit: Emit) -> tinyforge_build::Emit {
        match emit {
            Emit::Rust => tinyforge_build::Emit::Rust,
            Emit::C => tinyforge_build::Emit::C,
            Emit::Plan => tinyforge_build::Emit::Plan,
            Emit::Dot => tinyforge_build::Emit::Dot,
            Emit::Html => tinyforge_build::Emit::Html,
            Emit::Json => tinyforge_build::Emit::Json,
        }
    }
}

/// Compiles an int8 network's training for a microcontroller
#[derive(clap::Args, Debug)]
pub struct CompileArgs {
    #[command(flatten)]
    int8: Int8Args,
    /// What to write, one or several with commas; without it the plan is printed
    #[arg(long, value_delimiter = ',')]
    emit: Vec<Emit>,
    /// The folder to write to
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// For C: the folder of the crate tinyforge-firmware [where this command was built]
    #[arg(long)]
    runtime: Option<PathBuf>,
    /// For C: bytes in which the flash for checkpoints is written
    #[arg(long, default_value_t = 8)]
    write_bytes: u32,
    /// For C: bytes in which it is erased
    #[arg(long, default_value_t = 1024)]
    erase_bytes: u32,
    #[command(flatten)]
    common: Common,
}

/// Plans, prints, writes.
///
/// # Errors
/// The request cannot be met, or the folder cannot be written.
pub fn run(args: &CompileArgs) -> Result<(), CommandError> {
    let settings = args.int8.settings()?;
    let (opened, _) = float::open(&args.int8, None)?;
    let built = Built::of_opened(&args.int8.model, opened, &settings, args.int8.seed)?;
    print!("{}", report::words(built.plan(), &built.model, built.hash, [settings.memory, settings.flash]));
    if !args.emit.is_empty() {
        let out = args.out.as_deref().ok_or_else(|| CommandError::request("--emit needs a folder: -o DIR"))?;
        let mut c = CSettings { units: [args.write_bytes, args.erase_bytes], ..CSettings::default() };
        if let Some(runtime) = &args.runtime {
            c.runtime = runtime.canonicalize().unwrap_or_else(|_| runtime.clone());
        }
        for &emit in &args.emit {
            built.write(emit.into(), out, &c)?;
        }
    }
    if args.common.json {
        println!("{}", report::json(built.plan(), built.hash));
    }
    Ok(())
}
