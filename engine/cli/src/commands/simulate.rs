//! `tinyforge simulate`: the training of a microcontroller on the host, bit for bit.

use super::Common;
use crate::error::CommandError;
use crate::int8::{Int8Args, Int8Settings, model, planning, report};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::{self, Location, Samples};
use tinyforge::simulate::{Accuracy, Evaluator, SimulateOptions, Simulation};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_compiler::export::rust;
use tinyforge_plan::Plan;

/// Runs a microcontroller's training on this computer
#[derive(clap::Args, Debug)]
pub struct SimulateArgs {
    #[command(flatten)]
    int8: Int8Args,
    /// Samples: a folder with a folder a class, an IDX file, or raw int8 arrays
    #[arg(long)]
    data: PathBuf,
    /// Labels of an IDX file or of raw arrays
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Samples to test on; without it every tenth of the data is held out
    #[arg(long)]
    test: Option<PathBuf>,
    /// Labels of the test samples
    #[arg(long)]
    test_labels: Option<PathBuf>,
    /// Times through the data
    #[arg(long, default_value_t = 10)]
    epochs: u32,
    /// Highest learning rate of weights
    #[arg(long, default_value_t = 8e-4)]
    lr: f64,
    /// Learning rate of biases over that of weights
    #[arg(long, default_value_t = 0.5)]
    bias_lr_ratio: f64,
    /// Share of the steps in which the rate grows from 0
    #[arg(long, default_value_t = 0.1)]
    warmup: f64,
    /// constant, linear or cosine
    #[arg(long, default_value = "cosine")]
    decay: String,
    /// Take samples in the order of the data, as they would be streamed
    #[arg(long)]
    in_order: bool,
    /// Stop after so many steps
    #[arg(long)]
    steps: Option<u64>,
    /// Write the changed tensors' bytes here at the end
    #[arg(long)]
    state: Option<PathBuf>,
    /// Threads for testing
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    common: Common,
}

/// Trains and tests.
///
/// # Errors
/// The request cannot be met, or the run failed.
pub fn run(args: &SimulateArgs) -> Result<(), CommandError> {
    let settings = args.int8.settings()?;
    let fallback = model::Fallback { data: &args.data, holds_out: args.test.is_none() };
    let mut opened = model::open(&args.int8, Some(fallback))?;
    let shape = opened.model.input().shape.map(|d| d as usize);
    let (train, test) = read(args, shape)?;
    let name = args.int8.model.file_stem().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let plan = planning::plan(&name, &opened.model, &settings)?.plan;
    let classes = opened.model.result().shape[2] as usize;
    if train.classes().max(test.classes()) > classes {
        return Err(CommandError::request(format!(
            "the data has {} classes, the network {classes}: `--classes {}` gives it a new head",
            train.classes().max(test.classes()),
            train.classes().max(test.classes())
        )));
    }
    let mut runner = Runner::new(plan.clone(), RunOptions::default())?;
    runner.load(&opened.files, args.int8.seed)?;
    let hash = rust::hash(&plan, runner.arena().bytes());
    print!("{}", report::words(&plan, &opened.model, hash, [settings.memory, settings.flash]));
    let float = match &mut opened.float {
        Some(float) if args.int8.classes.is_none() => Some(float.accuracy(&test)?),
        _ => None,
    };
    if let Some(share) = float {
        println!("the float network's accuracy {share:.4}");
    }
    let (first, last, losses, seconds) = learn(args, &settings, runner, &plan, &train, &test)?;
    println!("accuracy {:.4} before, {:.4} after, {seconds:.1} s", first.share(), last.share());
    if args.common.json {
        let mut found = report::json(&plan, hash);
        found["accuracy_before"] = first.share().into();
        found["accuracy"] = last.share().into();
        found["accuracy_float"] = json!(float);
        found["losses"] = json!(losses);
        found["seconds"] = seconds.into();
        println!("{found}");
    }
    Ok(())
}

fn read(args: &SimulateArgs, shape: [usize; 3]) -> Result<(Samples, Samples), CommandError> {
    let location = |data: &PathBuf, labels: &Option<PathBuf>| Location { data: data.clone(), labels: labels.clone() };
    let all = samples::read(&location(&args.data, &args.labels), shape).map_err(CommandError::request)?;
    match &args.test {
        None => Ok(all.split(10)),
        Some(test) => {
            let test = samples::read(&location(test, &args.test_labels), shape).map_err(CommandError::request)?;
            Ok((all, test))
        }
    }
}

/// Accuracy before and after, the mean loss of every epoch, and seconds.
fn learn(
    args: &SimulateArgs,
    settings: &Int8Settings,
    runner: Runner,
    plan: &Plan,
    train: &Samples,
    test: &Samples,
) -> Result<(Accuracy, Accuracy, Vec<f64>, f64), CommandError> {
    let batch = settings.batch as usize;
    let per_epoch = (train.len() / batch).max(1) as u64;
    let all = per_epoch * u64::from(args.epochs);
    let decay = match args.decay.as_str() {
        "constant" => Decay::Constant,
        "linear" => Decay::Linear,
        "cosine" => Decay::Cosine,
        other => return Err(CommandError::request(format!("--decay {other}: constant, linear or cosine"))),
    };
    let warmup_steps = (all as f64 * args.warmup.clamp(0.0, 1.0)) as u64;
    let options = SimulateOptions {
        batch,
        schedule: LrSchedule { peak: args.lr, floor: 0.0, warmup_steps, steps: all, decay },
        bias_lr_ratio: args.bias_lr_ratio,
        seed: args.int8.seed,
        is_shuffled: !args.in_order,
    };
    let started = Instant::now();
    let mut simulation = Simulation::new(runner, options, train.len()).map_err(CommandError::request)?;
    let mut evaluator = Evaluator::new(plan, test.len(), args.threads).map_err(CommandError::request)?;
    let first = evaluator.run(simulation.runner(), test).map_err(CommandError::run)?;
    let (steady, steps) = simulation.steady_steps();
    eprintln!(
        "{} samples, {} to test on; {steady} of {steps} steps depend on the sample alone",
        train.len(),
        test.len()
    );
    let (mut last, mut losses) = (first, Vec::new());
    for epoch in 0..args.epochs {
        let wanted = per_epoch.min(args.steps.unwrap_or(u64::MAX).saturating_sub(simulation.steps()));
        if wanted == 0 {
            break;
        }
        let mut sum = 0.0;
        for _ in 0..wanted {
            sum += simulation.step(train).map_err(CommandError::run)?;
        }
        losses.push(sum / wanted as f64);
        last = evaluator.run(simulation.runner(), test).map_err(CommandError::run)?;
        eprintln!("epoch {}: loss {:.4}, accuracy {:.4}", epoch + 1, sum / wanted as f64, last.share());
    }
    if let Some(path) = &args.state {
        write_state(path, simulation.runner())?;
    }
    Ok((first, last, losses, started.elapsed().as_secs_f64()))
}

/// The bytes that a chip's checkpoint holds of the model: the changed tensors as they lie in SRAM.
fn write_state(path: &std::path::Path, runner: &Runner) -> Result<(), CommandError> {
    let near = runner.plan().spaces.last().map_or(0, |s| s.first_byte) as usize;
    let stored = runner.plan().stored.iter().map(|s| s.tensor.end() as usize).max().unwrap_or(near).max(near);
    let bytes = &runner.arena().bytes()[near..stored];
    Ok(tinyforge::files::write_atomic(path, |file| file.write_all(bytes))?)
}
