//! A training run: what was asked for, where it writes, and the loop around the steps.
//!
//! The output folder holds `run.json` (what was asked, versions, machine), `metrics.jsonl` (one line a step or
//! evaluation), `checkpoint.bin`, the rows of the data, and at the end `adapter/` or `model/`.

use crate::clock::{Clock, Speed};
use crate::debug;
use crate::error::CommandError;
use crate::fixed;
use crate::host;
use crate::knobs::{AUTO, Knobs};
use crate::model::Model;
use crate::output;
use crate::planning::{Settings, Wanted};
use crate::profile::{self, Profile};
use crate::progress::Bar;
use crate::request;
use crate::sampling;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tinyforge::data::{self, DataOptions, DataSet, Row, RowReader};
use tinyforge::files::{FileError, ReadAt, write_atomic};
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge::text::Tokenizer;
use tinyforge::train::checkpoint;
use tinyforge::train::{StepReport, TrainError, TrainOptions, Trainer};

/// What a run was asked for, as `run.json` keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// The model's path.
    pub model: PathBuf,
    /// The settings as given.
    pub config: Knobs,
    /// Version of Tinyforge.
    pub version: String,
    /// Operating system and architecture.
    pub platform: String,
    /// The processor's name and number of cores.
    pub processor: String,
    /// The plan's bytes: arena and total.
    pub plan_bytes: [u64; 2],
    /// Steps of the whole run.
    pub steps: u64,
    /// The model's files as they were when it began: name, and CRC-32 of samples of the contents.
    pub model_files: Vec<(String, u32)>,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Steps done, of the steps asked for.
    pub steps: [u64; 2],
    /// Validation loss before and after; the training loss's first and last where nothing is held out.
    pub loss: [f64; 2],
    /// Whether the two are of held-out data.
    pub is_validation: bool,
    /// Trained tokens a second.
    pub tokens_per_second: f64,
    /// Peak resident memory, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// The plan's total.
    pub plan_total_bytes: u64,
    /// Where the time of a step went; absent where there were too few.
    pub speed: Option<Speed>,
    /// Where the result lies; absent when the run was interrupted.
    pub output: Option<PathBuf>,
}

/// A run, ready to go.
pub struct Run {
    model: Model,
    tokenizer: Tokenizer,
    data: DataSet,
    knobs: Knobs,
    settings: Settings,
    trainer: Trainer,
    out: PathBuf,
    run_key: String,
    plan_total: u64,
    clock: Clock,
}

/// Name of the run's record in its folder.
pub const RECORD: &str = "run.json";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINT: &str = "checkpoint.bin";
const WORK: &str = "work.bin";

/// Steps between checkpoints where nothing else is asked for.
const CHECKPOINT_EVERY: u64 = 100;

impl Run {
    /// Opens the model and the data, plans, and loads; `resumed` is the record of the run that goes on.
    ///
    /// # Errors
    /// The request cannot be met; nothing has been written but rows of data.
    pub fn prepare(model_path: &Path, knobs: &Knobs, resumed: Option<&RunRecord>) -> Result<Run, CommandError> {
        let (mut settings, profile) = settings_and_profile(knobs)?;
        // What was chosen once stays: a run that goes on goes on there.
        let is_chosen = knobs.device.as_deref() == Some(AUTO);
        let named = is_chosen.then(|| Knobs { device: Some(settings.device.name().to_string()), ..knobs.clone() });
        let knobs = named.as_ref().unwrap_or(knobs);
        let (Some(data_path), Some(out)) = (knobs.data.clone(), knobs.out.clone()) else {
            return Err(CommandError::request("training needs --data FILE and --out FOLDER"));
        };
        let model = request::open(model_path, knobs)?;
        let model_files = model_files(&model)?;
        if let Some(record) = resumed {
            check_files(&record.model_files, &model_files, &out)?;
        }
        let tokenizer = model.tokenizer()?;
        let fixed = request::fixed_parts(&model, &settings, tokenizer.estimated_bytes() as u64);
        // The plan comes first: a budget that cannot be met is refused before anything is written.
        let plans = request::plan_phases(&model, &settings, Wanted::Train, &fixed)?;
        host::check(&plans)?;
        let clock = Clock::new(profile, &plans, settings.batch);
        // Settings that do not depend on the data are refused before it is read.
        knobs.lr_schedule(1, settings.batch)?;
        make_folder(&out, knobs.overwrite.unwrap_or(false), resumed.is_some())?;
        // A killed run's, which may have needed one where this does not.
        remove_if_there(&out.join(WORK))?;
        settings.micro_batch = Some(plans[0].micro_rows);
        let data = read_data(&data_path, &out, knobs, &settings, &tokenizer)?;
        let schedule = knobs.lr_schedule(data.train.rows(), settings.batch)?;
        let options = TrainOptions {
            batch: settings.batch as usize,
            micro_rows: plans[0].micro_rows as usize,
            seq: settings.seq as usize,
            schedule,
            beta1: settings.optimizer.beta1,
            beta2: settings.optimizer.beta2,
            seed: knobs.seed.unwrap_or(0),
            phase_steps: knobs.cycle_steps.unwrap_or(50),
            keep_states: settings.keep_states,
        };
        let plan_total = plans.iter().map(|p| p.compiled.plan.total_bytes()).max().unwrap_or(0);
        let plans: Vec<_> = plans.into_iter().map(|p| p.compiled.plan).collect();
        let record = RunRecord {
            model: model_path.to_path_buf(),
            config: knobs.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor(),
            plan_bytes: [plans.iter().map(|p| p.arena_bytes()).max().unwrap_or(0), plan_total],
            steps: schedule.steps,
            model_files,
        };
        let run_key = run_key(&record)?;
        // A timed step of a GPU costs a pass of its own, marks or a wait, so only where that is asked for.
        let count_times = settings.device == DeviceChoice::Cpu || debug::level() >= 2;
        let run_options = RunOptions { count_times, work: Some(out.join(WORK)), ..settings.run_options() };
        let mut runner = Runner::with_phases(plans, run_options)?;
        runner.load(&model.files, options.seed)?;
        if tokenizer.vocab_len() > model.config.vocab {
            check_tokens(&*data.train, model.config.vocab)?;
        }
        if resumed.is_none() {
            begin(&out, &record)?;
        }
        let rows = data.train.rows();
        let trainer = Trainer::new(runner, options, rows);
        Ok(Run { model, tokenizer, data, knobs: knobs.clone(), settings, trainer, out, run_key, plan_total, clock })
    }

    /// Takes the run up where its last checkpoint left it, if there is one.
    ///
    /// # Errors
    /// The checkpoint is damaged or of another run.
    pub fn restore(&mut self) -> Result<u64, CommandError> {
        let path = self.out.join(CHECKPOINT);
        if !path.exists() {
            trim_metrics(&self.out.join(METRICS), 0)?;
            return Ok(0);
        }
        let found = checkpoint::open(&path)?;
        if found.run() != self.run_key {
            return Err(CommandError::request(format!("{} is of another run", path.display())));
        }
        let progress = found.progress().clone();
        let runner = self.trainer.runner_mut();
        runner.activate(progress.phase as usize);
        runner.clear_states()?;
        let list = checkpoint::tensors(runner.plans(), runner.phase());
        found.restore(&list, runner)?;
        trim_metrics(&self.out.join(METRICS), progress.step)?;
        self.trainer.progress = progress;
        Ok(self.trainer.progress.step)
    }

    fn save_checkpoint(&mut self) -> Result<(), CommandError> {
        let runner = self.trainer.runner_mut();
        let list = checkpoint::tensors(runner.plans(), runner.phase());
        let (path, progress) = (self.out.join(CHECKPOINT), self.trainer.progress.clone());
        let runner = self.trainer.runner_mut();
        Ok(checkpoint::save(&path, &self.run_key, &progress, &list, runner)?)
    }

    /// Trains to the end, or until interrupted.
    ///
    /// # Errors
    /// The loss is not finite, or the disk fails; the last checkpoint stands.
    pub fn go(&mut self, interrupted: &Arc<AtomicBool>) -> Result<Outcome, CommandError> {
        let threads = self.trainer.runner().threads();
        threads.enter(|| self.train(interrupted))
    }

    fn train(&mut self, interrupted: &Arc<AtomicBool>) -> Result<Outcome, CommandError> {
        let steps = self.trainer.options().schedule.steps;
        let mut metrics = open_metrics(&self.out.join(METRICS))?;
        let before = self.validate(&mut metrics)?;
        self.sample("before")?;
        let mut bar = Bar::new(steps, self.trainer.progress.step);
        let mut losses: Option<[f64; 2]> = None;
        let (started, first_tokens) = (Instant::now(), self.trainer.progress.seen_tokens);
        while self.trainer.progress.step < steps && !interrupted.load(Ordering::Relaxed) {
            self.clock.begin(self.trainer.runner());
            let report = self.trainer.step(&*self.data.train)?;
            self.clock.end(self.trainer.runner());
            losses = Some([losses.map_or(report.loss, |l| l[0]), report.loss]);
            write_metrics(&mut metrics, &step_line(&report, started.elapsed().as_secs_f64()))?;
            bar.step(&report, fixed::rss_bytes());
            self.between(&report, &mut metrics, &mut bar)?;
        }
        bar.finish();
        if debug::level() >= 2 {
            debug::print_times(self.trainer.runner());
        }
        let seconds = started.elapsed().as_secs_f64();
        let seen = self.trainer.progress.seen_tokens - first_tokens;
        let done = self.trainer.progress.step;
        self.save_checkpoint()?;
        let after = self.validate(&mut metrics)?;
        let output = if done == steps {
            self.sample("after")?;
            Some(self.save_result(&self.out.clone())?)
        } else {
            None
        };
        let is_validation = before.is_some();
        let train = losses.unwrap_or([f64::NAN; 2]);
        Ok(Outcome {
            steps: [done, steps],
            loss: [before.unwrap_or(train[0]), after.unwrap_or(train[1])],
            is_validation,
            tokens_per_second: seen as f64 / seconds.max(1e-9),
            peak_rss_bytes: fixed::peak_rss_bytes(),
            plan_total_bytes: self.plan_total,
            speed: self.clock.speed(),
            output,
        })
    }

    /// What is due between steps: evaluation, samples, checkpoint.
    fn between(&mut self, report: &StepReport, metrics: &mut File, bar: &mut Bar) -> Result<(), CommandError> {
        let due = |every: Option<u64>, default: u64| {
            let every = every.unwrap_or(default);
            every > 0 && report.step.is_multiple_of(every) && report.step < self.trainer.options().schedule.steps
        };
        let (evaluate, sample) = (due(self.knobs.eval_every, 50), due(self.knobs.sample_every, 0));
        let checkpoint = due(self.knobs.checkpoint_every, CHECKPOINT_EVERY);
        if evaluate && let Some(loss) = self.validate(metrics)? {
            bar.note(&format!("step {}: validation loss {loss:.4}", report.step));
            let best = self.trainer.progress.best_valid_bits.map_or(f64::INFINITY, f64::from_bits);
            if loss < best {
                self.trainer.progress.best_valid_bits = Some(loss.to_bits());
                if self.knobs.keep_best.unwrap_or(false) {
                    self.save_result(&self.out.join("best"))?;
                }
            }
        }
        if sample {
            self.sample(&format!("step {}", report.step))?;
        }
        if checkpoint {
            self.save_checkpoint()?;
        }
        Ok(())
    }

    fn validate(&mut self, metrics: &mut File) -> Result<Option<f64>, CommandError> {
        let Some(valid) = &self.data.valid else { return Ok(None) };
        let most = self.knobs.eval_rows.unwrap_or(64);
        let loss = self.trainer.evaluate(&**valid, most)?;
        let line = serde_json::json!({ "step": self.trainer.progress.step, "valid_loss": loss });
        write_metrics(metrics, &line)?;
        Ok(Some(loss))
    }

    fn sample(&mut self, when: &str) -> Result<(), CommandError> {
        let tokens = self.knobs.sample_tokens.unwrap_or(48);
        for prompt in self.knobs.sample.clone().unwrap_or_default() {
            let text = sampling::continue_text(self.trainer.runner_mut(), &self.tokenizer, &prompt, tokens)?;
            eprintln!("[{when}] {prompt}{text}");
        }
        Ok(())
    }

    fn save_result(&mut self, folder: &Path) -> Result<PathBuf, CommandError> {
        output::save(&self.model, &self.tokenizer, self.trainer.runner_mut(), &self.settings.scheme, folder)
    }
}

/// What is asked for, with what the device has where nothing is said; and the device's profile, if there is one.
fn settings_and_profile(knobs: &Knobs) -> Result<(Settings, Option<Profile>), CommandError> {
    let mut settings = knobs.settings()?;
    // Without a budget the memory that is there is one: results do not depend on it.
    settings.memory = settings.memory.or_else(|| fixed::near_bytes(settings.device));
    // What `bench` wrote is of the processor; a card's profile is named.
    let is_of_device = settings.device == DeviceChoice::Cpu || knobs.profile.is_some();
    let profile = profile::of_this_machine(knobs.profile.as_deref())?.filter(|_| is_of_device);
    settings.machine = profile.as_ref().map(|p| p.machine.clone());
    Ok((settings, profile))
}

/// What makes two runs the same run: everything but where they write and how often they save.
fn run_key(record: &RunRecord) -> Result<String, CommandError> {
    let mut config = record.config.clone();
    (config.out, config.overwrite, config.checkpoint_every, config.threads) = (None, None, None, None);
    (config.memory, config.micro_batch, config.recompute, config.clip_by) = (None, None, None, None);
    (config.window, config.prefetch, config.block_parts, config.profile) = (None, None, None, None);
    (config.embeddings, config.activations, config.gradients, config.host_memory) = (None, None, None, None);
    let json = serde_json::to_vec(&(&record.model, &config)).map_err(CommandError::run)?;
    Ok(format!("{:08x}", tinyforge_plan::encode::crc32(&json)))
}

/// What tells whether a model's files are those of before: each with what was sampled of it.
fn model_files(model: &Model) -> Result<Vec<(String, u32)>, CommandError> {
    let config = model.path.join("config.json");
    let config = config.exists().then(|| ReadAt::open(&config)).transpose()?;
    let sampled = |file: &ReadAt| {
        let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned());
        Ok((name.unwrap_or_default(), file.sampled_crc()?))
    };
    config.iter().chain(&model.files).map(sampled).collect()
}

/// Refuses a model whose files have changed since the run began: what is frozen would be another's.
fn check_files(before: &[(String, u32)], now: &[(String, u32)], out: &Path) -> Result<(), CommandError> {
    let changed = before.iter().find(|file| !now.contains(file)).or(now.iter().find(|file| !before.contains(file)));
    let Some((name, _)) = changed else { return Ok(()) };
    Err(CommandError::request(format!(
        "{name} of the model is not what it was when the run in {} began: put it back, or begin again with `tinyforge \
         train --overwrite`",
        out.display()
    )))
}

fn make_folder(out: &Path, overwrite: bool, is_resumed: bool) -> Result<(), CommandError> {
    if out.join(RECORD).exists() && !is_resumed && !overwrite {
        let why = format!("{} holds a run already: `tinyforge resume {0}`, or --overwrite", out.display());
        return Err(CommandError::request(why));
    }
    Ok(std::fs::create_dir_all(out).map_err(|e| FileError::new(out, "cannot make the folder", e))?)
}

/// Looks for tokens that the model has not, where its tokenizer can make some.
fn check_tokens(rows: &dyn RowReader, vocab: usize) -> Result<(), CommandError> {
    let mut row = Row::padding(rows.seq(), 0);
    for i in 0..rows.rows() {
        rows.read(i, &mut row.buf())?;
        if let Some(&token) = row.tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(TrainError::Token { token, vocab }.into());
        }
    }
    Ok(())
}

/// Starts a run in a folder where everything else is ready: only now what an earlier run left there is removed.
fn begin(out: &Path, record: &RunRecord) -> Result<(), CommandError> {
    for name in [CHECKPOINT, METRICS] {
        remove_if_there(&out.join(name))?;
    }
    let json = serde_json::to_vec_pretty(record).map_err(CommandError::run)?;
    Ok(write_atomic(&out.join(RECORD), |file| file.write_all(&json))?)
}

fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FileError::new(path, "cannot remove", e)),
        _ => Ok(()),
    }
}

fn read_data(
    path: &Path,
    out: &Path,
    knobs: &Knobs,
    settings: &Settings,
    tokenizer: &Tokenizer,
) -> Result<DataSet, CommandError> {
    let options = DataOptions {
        pack: knobs.pack.unwrap_or(true),
        mask_prompt: knobs.mask_prompt.unwrap_or(true),
        valid_fraction: knobs.valid_fraction.unwrap_or(0.0),
        seed: knobs.seed.unwrap_or(0),
        ..DataOptions::new(settings.seq as usize)
    };
    let mut quiet = |_| ControlFlow::Continue(());
    let set = data::prepare(path, knobs.valid.as_deref(), Some(out), &options, tokenizer, &mut quiet)?;
    if let Some(warning) = &set.warning {
        eprintln!("warning: {warning}");
    }
    Ok(set)
}

/// The processor's name and its number of cores.
pub fn processor() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown processor");
    format!("{}, {cores} cores", name.trim_start_matches([' ', '\t', ':']))
}

fn open_metrics(path: &Path) -> Result<File, CommandError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    Ok(file.map_err(|e| FileError::new(path, "cannot write", e))?)
}

fn write_metrics(file: &mut File, line: &serde_json::Value) -> Result<(), CommandError> {
    writeln!(file, "{line}").map_err(|e| CommandError::run(format!("{METRICS}: {e}")))
}

fn step_line(report: &StepReport, seconds: f64) -> serde_json::Value {
    serde_json::json!({
        "step": report.step, "loss": report.loss, "lr": report.lr, "grad_norm": report.grad_norm,
        "trained_tokens": report.trained_tokens, "seen_tokens": report.seen_tokens, "seconds": seconds,
    })
}

/// Drops the lines of steps after `step`, which a resumed run does again.
fn trim_metrics(path: &Path, step: u64) -> Result<(), CommandError> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
    let kept: Vec<String> =
        BufReader::new(file).lines().map_while(Result::ok).filter(|l| of(l).is_some_and(|s| s <= step)).collect();
    Ok(write_atomic(path, |out| kept.iter().try_for_each(|l| writeln!(out, "{l}")))?)
}
