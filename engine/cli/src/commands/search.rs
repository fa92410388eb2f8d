//! `tinyforge search`: what to train of an int8 network, measured on the user's samples and chosen under a budget.

use super::Common;
use crate::error::CommandError;
use crate::int8::Int8Settings;
use crate::search::candidates::{self, Candidate, Network, Part, SLACK_BYTES, UNIT, Wanted};
use crate::search::measured::{Measured, Row};
use crate::search::scheme_file::{self, Line};
use crate::sizes::show;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use tinyforge::files::{ReadAt, read_whole, write_atomic};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::{self, Location, Samples};
use tinyforge::simulate::SimulateOptions;
use tinyforge::simulate::contribution::Trials;
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_build::model::{self, Opened};
use tinyforge_build::settings::{Rounding, size, target};
use tinyforge_build::{name_of, planning};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::scheme::select::{SelectError, Selection, select};
use tinyforge_plan::Plan;
use tinyforge_plan::encode::crc32_more;

/// One sample of so many is held out.
const HELD_OUT: usize = 5;

/// Finds what to train of an int8 network under a budget
#[derive(clap::Args, Debug)]
pub struct SearchArgs {
    /// A model: a TFLite file with int8 tensors, or the .json of a network beside its .safetensors
    model: PathBuf,
    /// Samples: a folder with a folder a class, an IDX file, or raw int8 arrays; every fifth is held out
    #[arg(long)]
    data: PathBuf,
    /// Labels of an IDX file or of raw arrays
    #[arg(long)]
    labels: Option<PathBuf>,
    /// The scheme file to write
    #[arg(short, long)]
    out: PathBuf,
    /// Measurements, kept and used again [beside the scheme file, ending in .measured.json]
    #[arg(long)]
    measured: Option<PathBuf>,
    /// Replace the head by a new one of so many classes
    #[arg(long)]
    classes: Option<u32>,
    /// What is planned for: cortex-m4 or cortex-m7
    #[arg(long, default_value = "cortex-m7")]
    target: String,
    /// SRAM for everything: arena, weights that change, masks, stack
    #[arg(long, default_value = "256KiB")]
    memory: String,
    /// Flash for weights and constants
    #[arg(long, default_value = "1MiB")]
    flash: String,
    /// Stack that is kept free in SRAM
    #[arg(long, default_value = "4KiB")]
    stack: String,
    /// Steps of a trial
    #[arg(long, default_value_t = 300)]
    steps: u64,
    /// Shares of the input channels that weights are tried at
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 0.5, 0.25, 0.125])]
    ratios: Vec<f64>,
    /// Depths of biases that are tried at most
    #[arg(long, default_value_t = 8)]
    depths: u32,
    /// Weights that are tried at most, those nearest to the result [all]
    #[arg(long)]
    candidates: Option<u32>,
    /// Highest learning rate of weights
    #[arg(long, default_value_t = 8e-4)]
    lr: f64,
    /// Learning rate of biases over that of weights
    #[arg(long, default_value_t = 0.5)]
    bias_lr_ratio: f64,
    /// Plain descent on the stored integers, without quantisation-aware scaling
    #[arg(long)]
    no_qas: bool,
    /// Seed of a new head, of the order of samples and of rounding
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Trials at a time
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    common: Common,
}

/// Measures, selects, writes.
///
/// # Errors
/// The request cannot be met, or a trial failed.
pub fn run(args: &SearchArgs) -> Result<(), CommandError> {
    let settings = settings(args)?;
    if args.model.is_dir() || args.model.extension().is_some_and(|e| e == "gguf") {
        return Err(CommandError::request(format!(
            "{}: search chooses layers of int8 networks; for a language model name a scheme, such as sparse:4 or lora:8",
            args.model.display()
        )));
    }
    let opened = model::open(&args.model, args.classes)?;
    let samples = read(args, &opened)?;
    let network = Network { name: name_of(&args.model), model: &opened.model, settings: &settings };
    let (head, offered) = candidates::offered(&network, &wanted(args)?)?;
    let path = args.measured.clone().unwrap_or_else(|| args.out.with_extension("measured.json"));
    let mut measured = Measured::open(&path, identity(args, &opened, &samples)?)?;
    let trials =
        Trying { args, opened: &opened, samples, lowest: lowest(&network, &head, &offered), trials: OnceLock::new() };
    let all: Vec<(String, &Plan)> = std::iter::once(("head".to_string(), &head))
        .chain(offered.iter().flatten().map(|c| (c.part.name(), &c.plan)))
        .collect();
    trials.measure(&all, &mut measured)?;
    let base = row(&measured, "head");
    let gain = |part: Part| base.loss - row(&measured, &part.name()).loss;
    let selection = choose(&network, &offered, gain)?;
    let parts = candidates::parts(&offered, &selection.levels);
    let chosen: Vec<(&Candidate, f64)> =
        offered.iter().flatten().filter(|c| parts.contains(&c.part)).map(|c| (c, gain(c.part))).collect();
    let plan = network.plan(&parts)?;
    // The chosen parts together, measured as each of them was alone.
    let name = parts.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    let name = if parts.is_empty() { "head".to_string() } else { name };
    trials.measure(&[(name.clone(), &plan)], &mut measured)?;
    let found = Found { args, selection, base, together: row(&measured, &name), plan, measured: all.len() };
    finish(&network, &found, &chosen)
}

fn settings(args: &SearchArgs) -> Result<Int8Settings, CommandError> {
    if args.steps == 0 || args.threads == 0 {
        return Err(CommandError::request("--steps and --threads must be at least 1"));
    }
    Ok(Int8Settings {
        scheme: candidates::scheme(&[]),
        target: target(&args.target)?,
        memory: size(&args.memory)?,
        flash: size(&args.flash)?,
        stack: size(&args.stack)?,
        batch: 1,
        is_scaled: !args.no_qas,
        update: Rounding::Stochastic,
        momentum: 0.0,
    })
}

fn wanted(args: &SearchArgs) -> Result<Wanted, CommandError> {
    let mut ratios = args.ratios.clone();
    if let Some(bad) = ratios.iter().find(|r| !(**r > 0.0 && **r <= 1.0)) {
        return Err(CommandError::request(format!("--ratios {bad}: a share is above 0 and at most 1")));
    }
    ratios.sort_by(f64::total_cmp);
    ratios.dedup();
    Ok(Wanted { ratios, depths: args.depths, weights: args.candidates })
}

/// Samples to train on and samples to measure with.
fn read(args: &SearchArgs, opened: &Opened) -> Result<[Samples; 2], CommandError> {
    let shape = opened.model.input().shape.map(|d| d as usize);
    let location = Location { data: args.data.clone(), labels: args.labels.clone() };
    let samples = samples::read(&location, shape).map_err(CommandError::request)?;
    let classes = opened.model.result().shape[2] as usize;
    if samples.classes() > classes {
        return Err(CommandError::request(format!(
            "the data has {} classes, the network {classes}: `--classes {0}` gives it a new head",
            samples.classes()
        )));
    }
    if samples.len() < HELD_OUT {
        return Err(CommandError::request(format!("{} samples: at least {HELD_OUT} are needed", samples.len())));
    }
    let (train, held) = samples.split(HELD_OUT);
    Ok([train, held])
}

/// What measurements depend on, in words.
fn identity(args: &SearchArgs, opened: &Opened, samples: &[Samples; 2]) -> Result<String, CommandError> {
    let mut network = crc32_more(0, &read_whole(&args.model)?);
    for file in &opened.files {
        network = crc32_more(network, &read_whole(file.path())?);
    }
    let mut data = 0;
    for part in samples {
        for i in 0..part.len() {
            data = crc32_more(data, &part.labels[i].to_le_bytes());
            data = crc32_more(data, bytes_of(part.sample(i)));
        }
    }
    let SearchArgs { steps, lr, bias_lr_ratio, seed, no_qas, .. } = args;
    let classes = args.classes.map_or("its own".to_string(), |c| c.to_string());
    Ok(format!(
        "network {network:08x}, classes {classes}, samples {data:08x}, {steps} steps at {lr} and {bias_lr_ratio} of it, \
         seed {seed}, scaled {}, target {}",
        !no_qas, args.target
    ))
}

fn bytes_of(sample: &[i8]) -> &[u8] {
    bytemuck::cast_slice(sample)
}

/// The plan that trains deepest: what lies below it is frozen in all.
fn lowest<'a>(network: &Network, head: &'a Plan, offered: &'a [Vec<Candidate>]) -> &'a Plan {
    let convs = network.convs().len() as u32;
    let deepest = offered.iter().flatten().min_by_key(|c| c.part.lowest(convs));
    deepest.map_or(head, |c| &c.plan)
}

fn row(measured: &Measured, name: &str) -> Row {
    measured.get(name).expect("every candidate was measured")
}

/// What trials are made with.
struct Trying<'a> {
    args: &'a SearchArgs,
    opened: &'a Opened,
    samples: [Samples; 2],
    lowest: &'a Plan,
    /// Made when the first trial is.
    trials: OnceLock<Trials>,
}

impl Trying<'_> {
    /// Makes the trials that are not there yet, several at a time; keeps each as soon as it is made.
    fn measure(&self, plans: &[(String, &Plan)], measured: &mut Measured) -> Result<(), CommandError> {
        let missing: Vec<&(String, &Plan)> = plans.iter().filter(|(name, _)| measured.get(name).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let trials = self.trials()?;
        let (next, keeper) = (AtomicUsize::new(0), Mutex::new((measured, plans.len() - missing.len())));
        let work = || -> Result<(), CommandError> {
            while let Some((name, plan)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let runner = load(plan, self.opened, self.args.seed)?;
                let row = Row::from(trials.measure(runner).map_err(CommandError::run)?);
                let mut keeper = keeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                keeper.1 += 1;
                eprintln!(
                    "{} of {}: {name}: loss {:.4}, accuracy {:.4}",
                    keeper.1,
                    plans.len(),
                    row.loss,
                    row.accuracy
                );
                keeper.0.keep(name, row)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.args.threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|w| w.join().expect("a trial does not panic"))
        })
    }

    fn trials(&self) -> Result<&Trials, CommandError> {
        if let Some(made) = self.trials.get() {
            return Ok(made);
        }
        let SearchArgs { steps, lr, bias_lr_ratio, seed, .. } = *self.args;
        let schedule = LrSchedule { peak: lr, floor: 0.0, warmup_steps: steps / 10, steps, decay: Decay::Cosine };
        let options = SimulateOptions { batch: 1, schedule, bias_lr_ratio, seed, is_shuffled: true };
        let start = load(self.lowest, self.opened, seed)?;
        eprintln!("{} samples to train on, {} to measure with", self.samples[0].len(), self.samples[1].len());
        let made = Trials::new(start, options, steps, self.samples.clone()).map_err(CommandError::run)?;
        Ok(self.trials.get_or_init(|| made))
    }
}

fn load(plan: &Plan, opened: &Opened, seed: u64) -> Result<Runner, CommandError> {
    let mut runner = Runner::new(plan.clone(), RunOptions::default())?;
    let files: &[ReadAt] = &opened.files;
    runner.load(files, seed)?;
    Ok(runner)
}

/// The selection, every question being a plan.
fn choose(
    network: &Network,
    offered: &[Vec<Candidate>],
    gain: impl Fn(Part) -> f64,
) -> Result<Selection, CommandError> {
    let groups = candidates::groups(offered, gain);
    let ask = |levels: &[usize]| -> Result<Option<u64>, CommandError> {
        let plan = network.plan(&candidates::parts(offered, levels))?;
        Ok(network.memory(&plan))
    };
    select(&groups, network.settings.memory, SLACK_BYTES, ask).map_err(|error| match error {
        SelectError::Ask(error) => error,
        other => CommandError::request(other),
    })
}

/// What the search ends with.
struct Found<'a> {
    args: &'a SearchArgs,
    selection: Selection,
    base: Row,
    together: Row,
    plan: Plan,
    measured: usize,
}

/// Writes the scheme, checks it by planning from the file, prints.
fn finish(network: &Network, found: &Found, chosen: &[(&Candidate, f64)]) -> Result<(), CommandError> {
    let Found { args, selection, base, together, plan, measured } = found;
    let convs = network.convs();
    let line = |(c, gain): &(&Candidate, f64)| Line {
        part: c.part,
        gain: *gain,
        own_bytes: c.own_bytes,
        tensor: if let Part::Weight(layer, _) = c.part { convs[layer as usize].clone() } else { String::new() },
    };
    let lines: Vec<Line> = chosen.iter().map(line).collect();
    let bytes = plan.total_bytes();
    let head = remarks(network, found);
    let text = scheme_file::text(&head, &lines);
    write_atomic(&args.out, |file| file.write_all(text.as_bytes()))?;
    let scheme = Scheme::parse_file(&text)?;
    let checked = planning::plan(&network.name, network.model, &Int8Settings { scheme, ..network.settings.clone() })?;
    if checked.plan.total_bytes() != bytes {
        return Err(CommandError::run(format!(
            "the written scheme takes {} bytes, the chosen one {bytes}",
            checked.plan.total_bytes()
        )));
    }
    println!("{}: {} of SRAM", args.out.display(), show(bytes));
    head.iter().for_each(|remark| println!("  {remark}"));
    for line in &lines {
        println!("  {:<24} contributes {:>8.4}, trains {:>7} bytes", line.part.name(), line.gain, line.own_bytes);
    }
    if args.common.json {
        let parts: Vec<_> = lines
            .iter()
            .map(|l| json!({ "part": l.part.name(), "contribution": l.gain, "own_bytes": l.own_bytes }))
            .collect();
        println!(
            "{}",
            json!({
                "out": args.out, "sram_bytes": bytes, "budget_bytes": network.settings.memory, "parts": parts,
                "contribution": selection.gain as f64 * UNIT, "contribution_max": selection.gain_max as f64 * UNIT, "planned": selection.asked,
                "measured": measured, "loss_head": base.loss, "loss": together.loss, "accuracy_head": base.accuracy,
                "accuracy": together.accuracy,
            })
        );
    }
    Ok(())
}

/// What the file begins with.
fn remarks(network: &Network, found: &Found) -> Vec<String> {
    let Found { args, selection, base, together, plan, measured } = found;
    let (held, steps) = (HELD_OUT, args.steps);
    let proof = if selection.gain_max > selection.gain {
        format!("no selection contributes more than {:.4} together", selection.gain_max as f64 * UNIT)
    } else {
        "no selection that fits contributes more".to_string()
    };
    vec![
        format!("{}: found by tinyforge search for {} bytes of SRAM", network.name, network.settings.memory),
        format!("takes {} bytes, stack included, on {}", plan.total_bytes(), network.settings.target.name),
        format!(
            "contributions: decrease of the loss after {steps} steps over training the head alone, one sample of {held}"
        ),
        format!("held out; {measured} trials, {} plans; {proof}", selection.asked),
        format!("loss {:.4} and accuracy {:.4} with the head alone", base.loss, base.accuracy),
        format!(
            "loss {:.4} and accuracy {:.4} with all of this; contributions sum up to {:.4}, together they are {:.4}",
            together.loss,
            together.accuracy,
            selection.gain as f64 * UNIT,
            base.loss - together.loss
        ),
    ]
}
