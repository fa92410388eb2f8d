//! `tinyforge train`: fine-tunes a model inside the budget.

use super::Common;
use crate::error::CommandError;
use crate::knobs::Knobs;
use crate::request;
use crate::run::{Outcome, Run};
use crate::sizes::show;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Fine-tunes a model
#[derive(clap::Args, Debug)]
pub struct TrainArgs {
    /// A model: a Hugging Face directory, a GGUF file, or a run's configuration (.toml)
    pub model: PathBuf,
    #[command(flatten)]
    knobs: Knobs,
    /// key=value: sets one key of the configuration
    #[arg(long = "set")]
    set: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// A flag that the interrupt and termination signals set; a second one ends the process at once.
///
/// # Errors
/// The system refuses.
pub fn interrupt_flag() -> Result<Arc<AtomicBool>, CommandError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag)).map_err(CommandError::run)?;
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(CommandError::run)?;
    }
    Ok(flag)
}

/// Trains.
///
/// # Errors
/// The request cannot be met, or the run failed.
pub fn run(args: &TrainArgs) -> Result<(), CommandError> {
    let (path, knobs) = request::configured(&args.model, &args.knobs, &args.set)?;
    let mut run = Run::prepare(&path, &knobs, None)?;
    let outcome = run.go(&interrupt_flag()?)?;
    print(&outcome, &args.common);
    Ok(())
}

/// Prints how a run ended.
pub fn print(outcome: &Outcome, common: &Common) {
    let [done, steps] = outcome.steps;
    let [before, after] = outcome.loss;
    let what = if outcome.is_validation { "validation loss" } else { "training loss" };
    println!(
        "{what} {before:.4} -> {after:.4} after {done} of {steps} steps, {:.0} tokens/s",
        outcome.tokens_per_second
    );
    if let Some(peak) = outcome.peak_rss_bytes {
        println!("memory: peak {}, planned {}", show(peak), show(outcome.plan_total_bytes));
    }
    if let Some(speed) = &outcome.speed {
        println!("{speed}");
    }
    match &outcome.output {
        Some(path) => println!("written: {}", path.display()),
        None => println!("interrupted: the checkpoint stands, `tinyforge resume` goes on"),
    }
    if common.json {
        println!("{}", serde_json::json!(outcome));
    }
}
