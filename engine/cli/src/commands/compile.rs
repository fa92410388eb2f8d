//! `tinyforge compile`: training as source code for a microcontroller.

use super::Common;
use crate::error::CommandError;
use crate::int8::{Int8Args, model, planning, report};
use std::path::{Path, PathBuf};
use tinyforge::files::write_atomic;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::export::rust;
use tinyforge_plan::{Plan, encode};

/// What is written.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// Rust: model.rs, flash.bin, start.bin
    Rust,
    /// The plan's bytes: model.plan
    Plan,
}

/// Compiles an int8 network's training for a microcontroller
#[derive(clap::Args, Debug)]
pub struct CompileArgs {
    #[command(flatten)]
    int8: Int8Args,
    /// What to write; without it the plan is printed
    #[arg(long)]
    emit: Option<Emit>,
    /// The folder to write to
    #[arg(short, long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Plans, prints, writes.
///
/// # Errors
/// The request cannot be met, or the folder cannot be written.
pub fn run(args: &CompileArgs) -> Result<(), CommandError> {
    let settings = args.int8.settings()?;
    let opened = model::open(&args.int8, None)?;
    let name = args.int8.model.file_stem().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let compiled = planning::plan(&name, &opened.model, &settings)?;
    let mut runner = Runner::new(compiled.plan.clone(), RunOptions::default())?;
    runner.load(&opened.files, args.int8.seed)?;
    let hash = rust::hash(&compiled.plan, runner.arena().bytes());
    print!("{}", report::words(&compiled.plan, &opened.model, hash, [settings.memory, settings.flash]));
    if let Some(emit) = args.emit {
        let out = args.out.as_deref().ok_or_else(|| CommandError::request("--emit needs a folder: -o DIR"))?;
        write(emit, out, &compiled.plan, runner.arena().bytes(), [settings.memory, settings.flash])?;
    }
    if args.common.json {
        println!("{}", report::json(&compiled.plan, hash));
    }
    Ok(())
}

fn write(emit: Emit, out: &Path, plan: &Plan, image: &[u8], limits: [u64; 2]) -> Result<(), CommandError> {
    std::fs::create_dir_all(out).map_err(|e| CommandError::run(format!("{}: {e}", out.display())))?;
    let file = |name: &str, bytes: &[u8]| write_atomic(&out.join(name), |f| f.write_all(bytes));
    match emit {
        Emit::Rust => {
            let source = rust::export(&rust::Request { plan, image, limits }).map_err(CommandError::request)?;
            file("flash.bin", &source.flash)?;
            file("start.bin", &source.start)?;
            file("model.rs", source.model.as_bytes())?;
        }
        Emit::Plan => file("model.plan", &encode::encode(plan))?,
    }
    Ok(())
}
