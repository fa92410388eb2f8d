//! `tinyforge resume`: goes on with a run from its last checkpoint.

use super::Common;
use super::train::{interrupt_flag, print};
use crate::error::CommandError;
use crate::run::{RECORD, Run, RunRecord};
use std::path::PathBuf;
use tinyforge::files::read_whole;

/// Goes on with a run from its last checkpoint
#[derive(clap::Args, Debug)]
pub struct ResumeArgs {
    /// The run's folder
    pub out: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Resumes.
///
/// # Errors
/// There is no run, or it failed.
pub fn run(args: &ResumeArgs) -> Result<(), CommandError> {
    let path = args.out.join(RECORD);
    let text = read_whole(&path).map_err(|e| CommandError::request(format!("{e}; a run's folder holds a {RECORD}")))?;
    let record: RunRecord =
        serde_json::from_slice(&text).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
    let mut knobs = record.config.clone();
    knobs.out = Some(args.out.clone());
    let mut run = Run::prepare(&record.model, &knobs, Some(&record))?;
    let from = run.restore()?;
    eprintln!("going on from step {from}");
    let outcome = run.go(&interrupt_flag()?)?;
    print(&outcome, &args.common);
    Ok(())
}
