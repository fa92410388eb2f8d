//! `tinyforge bench`: what this machine reaches, written as its profile.

use super::Common;
use crate::bench::one_by_one;
use crate::bench::{self, Measured, Options};
use crate::error::CommandError;
use crate::knobs::Knobs;
use crate::planning::{Settings, Wanted};
use crate::{profile, report, request};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tinyforge::data::{DataError, RowBuf, RowReader};
use tinyforge::files::{FileError, write_atomic};
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge::train::{TrainOptions, Trainer};
use tinyforge_compiler::machine::Machine;
use tinyforge_kernels::random::Stream;

/// Measures this machine and writes its profile
#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    /// File for the profile [machine.toml in the user's folder for settings, where `plan` and `train` look for it]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder on the disk to measure, for a temporary file of at most 2 GiB
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// A large file to be read in its place; nothing is written then
    #[arg(long)]
    file: Option<PathBuf>,
    /// Worker threads [the cores]
    #[arg(long)]
    threads: Option<u32>,
    /// A model to train for six steps on random tokens, to compare with the time predicted for them
    #[arg(long)]
    model: Option<PathBuf>,
    /// What is trained of it [lora]
    #[arg(long, requires = "model")]
    scheme: Option<String>,
    /// Its tokens a row [256]
    #[arg(long, requires = "model")]
    seq: Option<u32>,
    /// Its rows a step [1]
    #[arg(long, requires = "model")]
    batch: Option<u32>,
    /// Its storage and arithmetic of matrices: f32 or bf16 [f32]
    #[arg(long, requires = "model")]
    dtype: Option<String>,
    /// Its update rule: sgd, adamw or adamw8 [adamw]
    #[arg(long, requires = "model")]
    optimizer: Option<String>,
    /// Memory for everything that a run of it would take; what has no room comes from its files [no limit]
    #[arg(long, requires = "model")]
    memory: Option<String>,
    /// Time dense products and attention one at a time, each beside what bounds it; nothing is written then
    #[arg(long, conflicts_with_all = ["model", "out", "file"])]
    kernels: bool,
    /// What runs them: cpu, wgpu, cuda or auto [cpu]
    #[arg(long, requires = "kernels")]
    device: Option<String>,
    /// The profile whose rates bound them: a file, or a name that is built in [this machine's on the CPU; elsewhere the
    /// best that is measured]
    #[arg(long, requires = "kernels")]
    profile: Option<String>,
    /// Rows of the products [1024]
    #[arg(long, requires = "kernels")]
    tokens: Option<u32>,
    /// Seconds for each shape; one that would take longer for a single run is left out [2]
    #[arg(long, requires = "kernels")]
    seconds: Option<f64>,
    #[command(flatten)]
    common: Common,
}

/// Steps of a comparison that count; one before them does not.
const STEPS: usize = 5;

/// Measures, prints and writes.
///
/// # Errors
/// The disk cannot be used, or the profile not be written.
pub fn run(args: &BenchArgs) -> Result<(), CommandError> {
    let knobs = args.knobs();
    if args.kernels {
        return kernels(args, &knobs);
    }
    let threads = knobs.settings()?.threads;
    let Some(out) = args.out.clone().or_else(profile::default_path) else {
        return Err(CommandError::request("there is no folder for settings: say --out FILE"));
    };
    let (folder, file) = (args.dir.clone(), args.file.clone());
    let options = Options { threads, folder, file, times: bench::TIMES, weight_bytes: bench::BEYOND_CACHES };
    let measured = bench::measure(&options, &mut |what| eprintln!("measuring: {what}"))?;
    print(&measured);
    if let Some(folder) = out.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| FileError::new(folder, "cannot make the folder", e))?;
    }
    let text = measured.machine.print();
    write_atomic(&out, |file| file.write_all(text.as_bytes()))?;
    println!("written: {}", out.display());
    let compared = args.model.as_ref().map(|model| compare(model, &knobs, &measured.machine)).transpose()?;
    if args.common.json {
        let rates = &measured.machine.rates;
        println!(
            "{}",
            serde_json::json!({
                "threads": threads, "profile": out, "f32_flops": rates.f32, "bf16_flops": rates.bf16,
                "one_thread_flops": measured.one_thread, "copy_bytes_per_second": rates.near_bytes_per_second,
                "adamw_bytes_per_second": measured.adamw_bytes_per_second,
                "disk_read_bytes_per_second": measured.disk.read_bytes_per_second,
                "disk_write_bytes_per_second": measured.disk.write_bytes_per_second,
                "disk_latency_s": measured.disk.latency_s, "disk_is_direct": measured.disk.is_direct,
                "kernels": measured.machine.kernels.len(), "compared": compared,
            })
        );
    }
    Ok(())
}

impl BenchArgs {
    fn knobs(&self) -> Knobs {
        Knobs {
            threads: self.threads,
            scheme: self.scheme.clone(),
            seq: self.seq,
            batch: Some(self.batch.unwrap_or(1)),
            dtype: self.dtype.clone(),
            optimizer: self.optimizer.clone(),
            memory: self.memory.clone(),
            device: self.device.clone(),
            ..Knobs::default()
        }
    }
}

/// Times kernels one at a time and prints them.
fn kernels(args: &BenchArgs, knobs: &Knobs) -> Result<(), CommandError> {
    let settings = knobs.settings()?;
    let seconds = args.seconds.unwrap_or(2.0);
    if !(0.0..=3600.0).contains(&seconds) {
        return Err(CommandError::request(format!("--seconds {seconds}: between 0 and 3600")));
    }
    let tokens = args.tokens.unwrap_or(1024);
    if !(1..=1 << 16).contains(&tokens) {
        return Err(CommandError::request(format!("--tokens {tokens}: between 1 and {}", 1 << 16)));
    }
    let is_cpu = settings.device == DeviceChoice::Cpu;
    let profile = match &args.profile {
        Some(named) => Some(profile::open(named)?),
        None => profile::of_this_machine(None)?.filter(|_| is_cpu),
    };
    let options = one_by_one::Options {
        device: settings.device,
        threads: settings.threads,
        tokens,
        limit: Duration::from_secs_f64(seconds),
        machine: profile.as_ref().map(|p| p.machine.clone()),
    };
    let measured = one_by_one::measure(&options, &mut |what| eprintln!("measuring: {what}"))?;
    let bounds = match &profile {
        Some(profile) => format!("{} ({})", profile.origin, measured.machine.figures),
        None => measured.machine.figures.clone(),
    };
    print_kernels(&measured, &bounds);
    if args.common.json {
        let (rows, left_out) = (&measured.rows, &measured.left_out);
        let device = settings.device.name();
        println!("{}", serde_json::json!({ "device": device, "bounds": bounds, "rows": rows, "left_out": left_out }));
    }
    Ok(())
}

fn print_kernels(measured: &one_by_one::Measured, bounds: &str) {
    println!("bounds: {bounds}");
    println!(
        "{:<16} {:<38} {:<10} {:>11} {:>10} {:>8} {:>11} {:>8} {:>6}",
        "kernel", "shape", "types", "median ms", "GFLOP/s", "GB/s", "bound ms", "by", "ratio"
    );
    for row in &measured.rows {
        let by = format!("{:?}", row.limit).to_lowercase();
        let types = format!("{} {}", row.weights, row.factors);
        println!(
            "{:<16} {:<38} {types:<10} {:>11.3} {:>10.1} {:>8.1} {:>11.3} {by:>8} {:>6.2}",
            row.kernel,
            row.shape,
            1e3 * row.seconds,
            row.flops_per_second / 1e9,
            row.bytes_per_second / 1e9,
            1e3 * row.bound_s,
            row.ratio
        );
    }
    for [name, why] in &measured.left_out {
        println!("left out: {name}: {why}");
    }
}

fn print(measured: &Measured) {
    let Measured { machine, one_thread, adamw_bytes_per_second, disk } = measured;
    let giga = |rate: f64| rate / 1e9;
    println!("{}", machine.figures);
    println!("{:<28} {:>10} {:>14}", "", "one thread", format!("{} threads", machine.threads.unwrap_or(1)));
    let all = [machine.rates.f32, machine.rates.bf16];
    for ((name, one), all) in ["f32", "bf16"].into_iter().zip(one_thread).zip(all) {
        let all = giga(all.unwrap_or(0.0));
        println!("{:<28} {:>10.1} {all:>14.1} GFLOP/s", format!("product, {name}"), giga(*one));
    }
    let line = |name: &str, rate: f64| println!("{name:<28} {:>10} {:>14.2} GB/s", "", giga(rate));
    line("memory, copy", machine.rates.near_bytes_per_second.unwrap_or(0.0));
    line("memory, AdamW in f32", *adamw_bytes_per_second);
    let how = if disk.is_direct { "disk, cold reads" } else { "disk, reads by way of the cache" };
    line(how, disk.read_bytes_per_second);
    if let Some(rate) = disk.write_bytes_per_second {
        line("disk, writes", rate);
    }
    println!("{:<28} {:>10} {:>14.0} us", "disk, latency", "", disk.latency_s * 1e6);
    println!("kernels: {} rows, efficiency of the largest calls", machine.kernels.len());
    for row in &machine.kernels {
        let (Some(ideal), Some(efficiency)) = (row.ideal_s.last(), row.efficiency.last()) else { continue };
        let what = format!("{} {} {}", row.kernel, row.factors, row.weights);
        let limit = format!("{:?}", row.limit).to_lowercase();
        println!("  {what:<40} {limit:>6} {efficiency:>7.2}  at {:>9.1} us", ideal * 1e6);
    }
}

/// Rows of random tokens without padding.
struct RandomRows {
    seq: usize,
    vocab: usize,
}

impl RowReader for RandomRows {
    fn rows(&self) -> u64 {
        1 << 20
    }

    fn seq(&self) -> usize {
        self.seq
    }

    fn read(&self, row: u64, buf: &mut RowBuf<'_>) -> Result<(), DataError> {
        let stream = Stream { seed: 1, step: row as u32, tensor: 0 };
        let token = |i: usize| (f64::from(stream.uniform(i as u64)) * self.vocab as f64) as u32;
        for t in 0..self.seq {
            (buf.tokens[t], buf.labels[t]) = (token(t), token(t + 1) as i32);
            (buf.loss_weight[t], buf.positions[t], buf.segments[t]) = (1.0, t as i32, 0);
        }
        Ok(())
    }
}

/// Trains some steps and prints their median time beside the predicted one.
fn compare(path: &Path, knobs: &Knobs, machine: &Machine) -> Result<serde_json::Value, CommandError> {
    let settings = Settings { machine: Some(machine.clone()), ..knobs.settings()? };
    let model = request::open(path, knobs)?;
    let tokenizer_bytes = model.tokenizer().map_or(0, |t| t.estimated_bytes() as u64);
    let fixed = request::fixed_parts(&model, &settings, tokenizer_bytes);
    let plans = request::plan_phases(&model, &settings, Wanted::Train, &fixed)?;
    let first = &plans[..1];
    let cost = profile::step_cost(machine, first, settings.batch).map_err(CommandError::run)?;
    let options = TrainOptions {
        batch: settings.batch as usize,
        micro_rows: plans[0].micro_rows as usize,
        seq: settings.seq as usize,
        schedule: LrSchedule { peak: 1e-6, floor: 1.0, warmup_steps: 0, steps: 1 << 20, decay: Decay::Constant },
        beta1: settings.optimizer.beta1,
        beta2: settings.optimizer.beta2,
        seed: 0,
        phase_steps: 0,
        keep_states: false,
    };
    let mut runner =
        Runner::new(plans[0].compiled.plan.clone(), RunOptions { count_times: true, ..RunOptions::default() })?;
    runner.load(&model.files, 0)?;
    let rows = RandomRows { seq: settings.seq as usize, vocab: model.config.vocab };
    let pool = runner.threads();
    let mut trainer = Trainer::new(runner, options, rows.rows());
    let mut times = Vec::new();
    for _ in 0..=STEPS {
        let started = std::time::Instant::now();
        pool.enter(|| trainer.step(&rows))?;
        times.push(started.elapsed().as_secs_f64());
    }
    crate::debug::print_beside(trainer.runner(), machine);
    let copies = trainer.runner().moved().filter(|(_, moved, _)| !moved.is_zero());
    let copies = copies.map(|(_, moved, bytes)| bytes as f64 / moved.as_secs_f64());
    times.remove(0);
    times.sort_by(f64::total_cmp);
    let (measured, predicted, bound) = (times[STEPS / 2], cost.prediction_s, cost.bound.seconds());
    println!(
        "{} {}: a step takes {measured:.3} s (median of {STEPS}), predicted {predicted:.3} s ({:+.1} %), bound {bound:.3} s \
         by {}, efficiency {:.2}",
        path.display(),
        settings.scheme,
        100.0 * (predicted / measured - 1.0),
        cost.bound.resource(),
        bound / measured
    );
    if let Some(rate) = copies {
        let (layers, schedule) = (model.config.layers, report::schedule(plans[0].window.as_ref()));
        println!("{schedule} of {layers} blocks, copies at {:.2} GB/s", rate / 1e9);
    }
    Ok(serde_json::json!({
        "measured_s": measured, "predicted_s": predicted, "bound_s": bound, "efficiency": bound / measured,
        "tokens": settings.batch * settings.seq, "copies_bytes_per_second": copies,
    }))
}
