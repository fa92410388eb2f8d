//! `tinyforge simulate`: the training of a microcontroller on the host, bit for bit.

use super::Common;
use crate::error::CommandError;
use crate::int8::compare::{self, Row};
use crate::int8::learning::{Course, Learner, Lesson, Rates};
use crate::int8::model::Opened;
use crate::int8::{Int8Args, float, planning, report};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tinyforge::data::Schedule;
use tinyforge::files::write_atomic;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::{self, Location, Samples, stream};
use tinyforge::train::schedule::Decay;
use tinyforge_compiler::export::rust;

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
    /// Train with so many seeds, from --seed on, and report mean and interval
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Compare the rows of a .toml file: each [[row]] has a name and, where it differs from the command line, scheme,
    /// qas, update, momentum, batch, lr, bias_lr_ratio
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Write loss and accuracy of every epoch here, as .csv
    #[arg(long)]
    curves: Option<PathBuf>,
    /// Write the changed tensors' bytes here at the end
    #[arg(long)]
    state: Option<PathBuf>,
    /// Write into this folder what a board streams: train.samples in the order they were learnt from, test.samples
    #[arg(long)]
    stream: Option<PathBuf>,
    /// Threads, for testing or for several seeds
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    common: Common,
}

/// Trains and tests, once or in comparison.
///
/// # Errors
/// The request cannot be met, or the run failed.
pub fn run(args: &SimulateArgs) -> Result<(), CommandError> {
    let rows = args.compare.as_deref().map(compare::rows).transpose()?;
    if args.seeds == 0 {
        return Err(CommandError::request("--seeds must be at least 1"));
    }
    let fallback = float::Fallback { data: &args.data, holds_out: args.test.is_none() };
    let (opened, mut float) = float::open(&args.int8, Some(fallback))?;
    let shape = opened.model.input().shape.map(|d| d as usize);
    let (train, test) = read(args, shape)?;
    let classes = opened.model.result().shape[2] as usize;
    let found = train.classes().max(test.classes());
    if found > classes {
        return Err(CommandError::request(format!(
            "the data has {found} classes, the network {classes}: `--classes {found}` gives it a new head"
        )));
    }
    let float = match &mut float {
        Some(float) if args.int8.classes.is_none() => Some(float.accuracy(&test)?),
        _ => None,
    };
    if let Some(share) = float {
        println!("accuracy {share:.4} of the float network");
    }
    let lesson = lesson(args, &train, &test)?;
    match rows {
        None if args.seeds == 1 => once(args, &opened, &lesson, float),
        rows => several(args, &opened, &lesson, &rows.unwrap_or_else(|| vec![Row::plain(&args.int8.scheme)])),
    }
}

fn lesson<'a>(args: &SimulateArgs, train: &'a Samples, test: &'a Samples) -> Result<Lesson<'a>, CommandError> {
    let decay = match args.decay.as_str() {
        "constant" => Decay::Constant,
        "linear" => Decay::Linear,
        "cosine" => Decay::Cosine,
        other => return Err(CommandError::request(format!("--decay {other}: constant, linear or cosine"))),
    };
    Ok(Lesson {
        train,
        test,
        epochs: args.epochs,
        steps_max: args.steps.unwrap_or(u64::MAX),
        warmup: args.warmup,
        decay,
        is_shuffled: !args.in_order,
        threads: args.threads,
    })
}

/// The network's name in plans.
fn name(args: &SimulateArgs) -> String {
    args.int8.model.file_stem().map_or(String::new(), |n| n.to_string_lossy().into_owned())
}

fn rates(args: &SimulateArgs) -> Rates {
    Rates { lr: args.lr, bias_ratio: args.bias_lr_ratio }
}

/// `float` is the accuracy of the float network that the int8 one was made of.
fn once(args: &SimulateArgs, opened: &Opened, lesson: &Lesson, float: Option<f64>) -> Result<(), CommandError> {
    let settings = args.int8.settings()?;
    let plan = planning::plan(&name(args), &opened.model, &settings)?.plan;
    let mut runner = Runner::new(plan.clone(), RunOptions::default())?;
    runner.load(&opened.files, args.int8.seed)?;
    let hash = rust::hash(&plan, runner.arena().bytes(), settings.batch);
    print!("{}", report::words(&plan, &opened.model, hash, [settings.memory, settings.flash]));
    let started = Instant::now();
    let mut learner = Learner::new(lesson, &plan, &opened.files, &settings, rates(args))?;
    let (steady, steps) = learner.steady_steps();
    eprintln!(
        "{} samples, {} to test on; {steady} of {steps} steps depend on the sample alone",
        lesson.train.len(),
        lesson.test.len()
    );
    let course = learner.learn(args.int8.seed, |epoch, e| {
        eprintln!("epoch {epoch}: loss {:.4}, accuracy {:.4}", e.loss, e.accuracy.share());
    })?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.state {
        write_state(path, learner.runner())?;
    }
    if let Some(folder) = &args.stream {
        let visits = learner.steps() * u64::from(settings.batch);
        write_stream(folder, lesson, visits, args.int8.seed)?;
    }
    write_curves(args, &[(&args.int8.scheme, std::slice::from_ref(&course))])?;
    println!("accuracy {:.4} before, {:.4} after, {seconds:.1} s", course.before.share(), course.after().share());
    if args.common.json {
        let mut found = report::json(&plan, hash);
        found["accuracy_before"] = course.before.share().into();
        found["accuracy_float"] = float.into();
        found["accuracy"] = course.after().share().into();
        found["losses"] = course.epochs.iter().map(|e| e.loss).collect();
        found["accuracies"] = course.epochs.iter().map(|e| e.accuracy.share()).collect();
        found["seconds"] = seconds.into();
        println!("{found}");
    }
    Ok(())
}

fn several(args: &SimulateArgs, opened: &Opened, lesson: &Lesson, rows: &[Row]) -> Result<(), CommandError> {
    if args.state.is_some() {
        return Err(CommandError::request("--state is of one training: leave out --seeds and --compare"));
    }
    let outcomes = compare::run(&name(args), opened, &args.int8, rates(args), lesson, rows, args.seeds)?;
    print!("{}", compare::words(&outcomes));
    write_curves(args, &compare::courses(&outcomes))?;
    if args.common.json {
        println!("{}", compare::json(&outcomes));
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

fn write_curves(args: &SimulateArgs, rows: &[(&str, &[Course])]) -> Result<(), CommandError> {
    if let Some(path) = &args.curves {
        let text = compare::csv(rows, args.int8.seed);
        tinyforge::files::write_atomic(path, |file| file.write_all(text.as_bytes()))?;
    }
    Ok(())
}

/// The bytes that a chip's checkpoint holds of the model: the changed tensors as they lie in SRAM.
fn write_state(path: &Path, runner: &Runner) -> Result<(), CommandError> {
    let near = runner.plan().spaces.last().map_or(0, |s| s.first_byte) as usize;
    let stored = runner.plan().stored.iter().map(|s| s.tensor.end() as usize).max().unwrap_or(near).max(near);
    let bytes = &runner.arena().bytes()[near..stored];
    Ok(write_atomic(path, |file| file.write_all(bytes))?)
}

/// The samples of both sets as a board reads them: the first `visits` that were learnt from, and all to test on.
fn write_stream(folder: &Path, lesson: &Lesson, visits: u64, seed: u64) -> Result<(), CommandError> {
    let (train, test) = (lesson.train, lesson.test);
    let mut order = Schedule::new(train.len() as u64, seed, lesson.is_shuffled);
    let learnt: Vec<usize> = (0..visits).map(|visit| order.row(visit) as usize).collect();
    let all: Vec<usize> = (0..test.len()).collect();
    std::fs::create_dir_all(folder).map_err(|e| CommandError::run(format!("{}: {e}", folder.display())))?;
    for (name, samples, order) in [("train.samples", train, learnt), ("test.samples", test, all)] {
        write_atomic(&folder.join(name), |file| stream::write(file, samples, &order))?;
    }
    Ok(())
}
