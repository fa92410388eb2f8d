//! Every setting of a run, in one table: the flags of the command line and the keys of a configuration file are the
//! same. What is not given takes the default that stands here.

use crate::error::CommandError;
use crate::host;
use crate::planning::{self, Settings};
use crate::sizes;
use crate::streaming::Streaming;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tinyforge::gpu::{self, Choice, GpuKernels};
use tinyforge::runner::DeviceChoice;
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_compiler::compile::{Embeddings, Recompute};
use tinyforge_compiler::optimizer::{RULES, rule_index};
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::passes::update::{ClipBy, Optimizer};
use tinyforge_compiler::scheme::{Scheme, SchemeKind};
use tinyforge_plan::DType;

/// Settings as given; absent ones take defaults.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knobs {
    /// Training data: a jsonl or text file, or a folder of them
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder for the run's results
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What is trained: full, last:N, bias[:N], lora[:RANK], sparse[:N], cycle:N, each with +head +embed; or a file
    #[arg(long)]
    pub scheme: Option<String>,
    /// Rank of low-rank adapters [8]
    #[arg(long)]
    pub rank: Option<u32>,
    /// Scale of low-rank adapters: the product is multiplied by alpha / rank [2 rank]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Modules that get adapters, by the last part of their names, or all-linear [the attention's projections]
    #[arg(long, value_delimiter = ',')]
    pub targets: Option<Vec<String>>,
    /// Tokens a row [256]
    #[arg(long)]
    pub seq: Option<u32>,
    /// Rows a step [4]
    #[arg(long)]
    pub batch: Option<u32>,
    /// Rows a micro-batch [as many as fit]
    #[arg(long)]
    pub micro_batch: Option<u32>,
    /// Steps to train [from --epochs]
    #[arg(long)]
    pub steps: Option<u64>,
    /// Passes over the data [1]
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Highest learning rate [2e-4 for lora, 5e-5 otherwise]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Share of the highest rate at which the decay ends [0]
    #[arg(long)]
    pub lr_floor: Option<f64>,
    /// Steps of warm-up [3 % of the steps]
    #[arg(long)]
    pub warmup: Option<u64>,
    /// Decay of the rate: constant, linear or cosine [cosine]
    #[arg(long)]
    pub decay: Option<String>,
    /// Update rule: sgd, adamw or adamw8 [adamw]
    #[arg(long)]
    pub optimizer: Option<String>,
    /// Decay of the first moment, or momentum [0.9]
    #[arg(long)]
    pub beta1: Option<f64>,
    /// Decay of the second moment [0.999]
    #[arg(long)]
    pub beta2: Option<f64>,
    /// Added to the root of the second moment [1e-8]
    #[arg(long)]
    pub eps: Option<f64>,
    /// Decay of matrices [0.01]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Largest global gradient norm; 0 does not clip [0]
    #[arg(long)]
    pub clip: Option<f64>,
    /// Storage and arithmetic of matrices: f32 or bf16, or tf32 for storage in f32 and products that NVIDIA's library
    /// may round to TF32 [f32]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Memory for everything: 64MiB, 2GiB [no limit]
    #[arg(long)]
    pub memory: Option<String>,
    /// The host's memory that holds what streams to a device with memory of its own; 0 leaves all of it in files [three
    /// quarters of what is free]
    #[arg(long)]
    pub host_memory: Option<String>,
    /// The host updates what streams to a device with memory of its own, beside the device's backward: weights, states
    /// and gradients of blocks then rest in the host's memory [by CUDA what a profile predicts to be faster, else the
    /// device updates]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub host_optimizer: Option<bool>,
    /// This machine's profile, for predicted times and efficiency [what `bench` wrote]
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// What runs the kernels: cpu, wgpu, cuda, or auto for a graphics card where there is one; without the flag the
    /// processor, so that memory limits and results mean the same on every machine [cpu]
    #[arg(long)]
    pub device: Option<String>,
    /// Worker threads [the cores]
    #[arg(long)]
    pub threads: Option<u32>,
    /// What is computed again instead of kept: auto, nothing or all [auto]
    #[arg(long)]
    pub recompute: Option<String>,
    /// Blocks in memory at a time, the others streaming from disk: all, auto or a number [auto]
    #[arg(long)]
    pub window: Option<String>,
    /// Blocks that come in together, at most the window [1]
    #[arg(long)]
    pub prefetch: Option<u32>,
    /// Parts that a block comes and goes in, with a window, which then counts parts [1, or more where a block is too
    /// much]
    #[arg(long)]
    pub block_parts: Option<u32>,
    /// Where embeddings and heads as large as a block live, with a window: near, far, from where they come and go as
    /// blocks do, parts, where they do so piece by piece, trained ones with --gradients panels, or auto [the first that
    /// fits]
    #[arg(long)]
    pub embeddings: Option<String>,
    /// Where activations rest from forward to backward, with a window: near, far or auto [far where nothing else fits]
    #[arg(long)]
    pub activations: Option<String>,
    /// How gradients larger than a block are made, with a window: whole, by panels of rows or auto [what fits]
    #[arg(long)]
    pub gradients: Option<String>,
    /// How clipping knows the norm: keep gradients, or a second backward [what fits]
    #[arg(long)]
    pub clip_by: Option<String>,
    /// Seed of shuffling, initial values and rounding [0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Held-out data
    #[arg(long)]
    pub valid: Option<PathBuf>,
    /// Share of the documents held out [0]
    #[arg(long)]
    pub valid_fraction: Option<f64>,
    /// Steps between evaluations [50 where there is held-out data]
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Rows of an evaluation at most [64]
    #[arg(long)]
    pub eval_rows: Option<u64>,
    /// Steps between checkpoints; 0 for one at the end [100]
    #[arg(long)]
    pub checkpoint_every: Option<u64>,
    /// Keep the weights of the best evaluation in OUT/best
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub keep_best: Option<bool>,
    /// Several documents in one row [true]
    #[arg(long)]
    pub pack: Option<bool>,
    /// Learn the answers only, not the prompts [true]
    #[arg(long)]
    pub mask_prompt: Option<bool>,
    /// Steps for each group of cycle:N [50]
    #[arg(long)]
    pub cycle_steps: Option<u64>,
    /// Keep the optimizer's state of every group of cycle:N [dropped when the next group takes its turn]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub keep_state: Option<bool>,
    /// A text to continue before, after and during training
    #[arg(long)]
    pub sample: Option<Vec<String>>,
    /// Steps between samples; 0 for before and after only [0]
    #[arg(long)]
    pub sample_every: Option<u64>,
    /// Tokens of a sample [48]
    #[arg(long)]
    pub sample_tokens: Option<u32>,
    /// Start from random parameters: of MODEL only config.json and the tokenizer are read
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub from_scratch: Option<bool>,
    /// Write over an earlier run in OUT
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub overwrite: Option<bool>,
}

impl Knobs {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// It cannot be read, or has a key that does not exist.
    pub fn read(path: &Path) -> Result<(Option<PathBuf>, Knobs), CommandError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
        let mut table: toml::Table =
            toml::from_str(&text).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
        let model = table.remove("model").and_then(|m| m.as_str().map(PathBuf::from));
        let knobs = Knobs::deserialize(table).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
        Ok((model, knobs))
    }

    /// Sets one key, as `--set key=value` does.
    ///
    /// # Errors
    /// There is no such key, or the value does not suit it.
    pub fn set(&mut self, pair: &str) -> Result<(), CommandError> {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| CommandError::request(format!("`--set {pair}`: write key=value")))?;
        let mut table = toml::Table::try_from(&*self).map_err(CommandError::request)?;
        let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
        table.insert(key.trim().to_string(), parsed.unwrap_or(toml::Value::String(value.to_string())));
        *self = Knobs::deserialize(table).map_err(|e| CommandError::request(format!("--set {pair}: {e}")))?;
        Ok(())
    }

    /// These settings with those of `over` in their place where they are given.
    ///
    /// # Errors
    /// Never in practice: settings are plain data.
    pub fn overlaid(&self, over: &Knobs) -> Result<Knobs, CommandError> {
        let mut table = toml::Table::try_from(self).map_err(CommandError::request)?;
        table.extend(toml::Table::try_from(over).map_err(CommandError::request)?);
        Knobs::deserialize(table).map_err(CommandError::request)
    }

    /// The scheme, with the adapter settings.
    ///
    /// # Errors
    /// It is none.
    pub fn scheme(&self) -> Result<Scheme, CommandError> {
        let text = self.scheme.as_deref().unwrap_or("lora");
        let mut scheme = match std::path::Path::new(text).extension().is_some_and(|e| e == "toml") {
            true => {
                let file = std::fs::read_to_string(text)
                    .map_err(|e| CommandError::request(format!("scheme file {text}: {e}")))?;
                Scheme::parse_file(&file)?
            }
            false => Scheme::parse(text)?,
        };
        if let SchemeKind::Lora(lora) = &mut scheme.kind {
            if let Some(rank) = self.rank {
                (lora.rank, lora.alpha) = (positive("rank", rank)?, 2.0 * f64::from(rank));
            }
            lora.alpha = self.alpha.unwrap_or(lora.alpha);
            lora.targets = self.targets.clone().unwrap_or(std::mem::take(&mut lora.targets));
        } else if self.rank.is_some() || self.alpha.is_some() || self.targets.is_some() {
            return Err(CommandError::request(format!(
                "--rank, --alpha and --targets belong to lora, not to {scheme}"
            )));
        }
        Ok(scheme)
    }

    /// What the planner is asked.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn settings(&self) -> Result<Settings, CommandError> {
        let seq = positive("seq", self.seq.unwrap_or(256))?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let clip_by = match self.clip_by.as_deref() {
            None => None,
            Some("keep") => Some(ClipBy::Keeping),
            Some("second") => Some(ClipBy::SecondBackward),
            Some(other) => return Err(CommandError::request(format!("--clip-by {other}: keep or second"))),
        };
        let (dtype, tf32) = match self.dtype.as_deref().unwrap_or("f32") {
            "f32" => (DType::F32, false),
            "tf32" => (DType::F32, true),
            "bf16" => (DType::BF16, false),
            other => return Err(CommandError::request(format!("--dtype {other}: f32, tf32 or bf16"))),
        };
        let batch = positive("batch", self.batch.unwrap_or(4))?;
        if u64::from(batch) * u64::from(seq) > TOKENS_MAX {
            let why = format!("--batch {batch} of --seq {seq} is more than {TOKENS_MAX} tokens a step");
            return Err(CommandError::request(why));
        }
        let (scheme, optimizer) = (self.scheme()?, self.optimizer()?);
        let micro_batch = self.micro_batch.map(|m| positive("micro-batch", m)).transpose()?;
        if let Some(micro) = micro_batch.filter(|m| !batch.is_multiple_of(*m)) {
            return Err(CommandError::request(format!("--micro-batch {micro} does not divide --batch {batch}")));
        }
        let (device, gpu) = self.device()?;
        if tf32 && device != DeviceChoice::Cuda {
            let why =
                format!("--dtype tf32 is for --device cuda; {} multiplies f32 as it is: --dtype f32", device.name());
            return Err(CommandError::request(why));
        }
        let window = self.window()?;
        let host_memory = host::most(self.host_memory.as_deref(), gpu.as_ref())?;
        let embeddings = choice("--embeddings", self.embeddings.as_deref(), &PLACES)?;
        let spill = choice("--activations", self.activations.as_deref(), &[("near", false), ("far", true)])?;
        let panels = choice("--gradients", self.gradients.as_deref(), &[("whole", false), ("panels", true)])?;
        Ok(Settings {
            keep_states: self.keep_states(&scheme, &optimizer)?,
            scheme,
            group: 0,
            batch,
            micro_batch,
            seq,
            context: seq,
            sample: self.sample.as_ref().is_some_and(|s| !s.is_empty()),
            dtype,
            tf32,
            optimizer,
            recompute: self.recompute()?,
            window,
            embeddings,
            spill,
            panels,
            clip_by,
            memory: self.memory()?,
            host_memory,
            host_optimizer: host::optimizer(self.host_optimizer, gpu.as_ref())?,
            threads: positive("threads", self.threads.unwrap_or(cores))?.min(256),
            target: planning::target(device),
            device,
            gpu,
            machine: None,
        })
    }

    fn recompute(&self) -> Result<Recompute, CommandError> {
        Ok(match self.recompute.as_deref().unwrap_or("auto") {
            "auto" => Recompute::Auto,
            "nothing" => Recompute::Nothing,
            "all" => Recompute::All,
            other => match other.parse() {
                Ok(step) => Recompute::Step(step),
                Err(_) => return Err(CommandError::request(format!("--recompute {other}: auto, nothing or all"))),
            },
        })
    }

    /// What runs the kernels, and what they can do where that is not the CPU. What `auto` takes is told on stderr.
    fn device(&self) -> Result<(DeviceChoice, Option<GpuKernels>), CommandError> {
        let name = self.device.as_deref().unwrap_or("cpu");
        let device = match DeviceChoice::from_name(name) {
            Some(device) => device,
            None if name == AUTO => {
                let Choice { device, why } = gpu::choose();
                eprintln!("device: {}, {why}", device.name());
                device
            }
            None => {
                let known: Vec<&str> = DeviceChoice::ALL.iter().map(|(name, _)| *name).collect();
                return Err(CommandError::request(format!("--device {name}: {AUTO}, {}", known.join(" or "))));
            }
        };
        let gpu = gpu::kernels(device).map_err(|e| CommandError::request(format!("--device {name}: {e}")))?;
        Ok((device, gpu))
    }

    fn window(&self) -> Result<Streaming, CommandError> {
        let prefetch = positive("prefetch", self.prefetch.unwrap_or(1))?;
        let parts = self.block_parts.map(|n| from_one("block-parts", n, PARTS_MOST)).transpose()?;
        let window = match self.window.as_deref().unwrap_or("auto") {
            "auto" => return Ok(Streaming::Auto { prefetch, parts }),
            "all" => return Ok(Streaming::Never),
            text => text.parse().ok().filter(|&n: &u32| n > 0),
        };
        let Some(blocks) = window else {
            let why = format!("--window {}: all, auto or a number from 1", self.window.clone().unwrap_or_default());
            return Err(CommandError::request(why));
        };
        if prefetch > blocks {
            return Err(CommandError::request(format!("--prefetch {prefetch} is more than --window {blocks}")));
        }
        Ok(Streaming::Window(Window { blocks, prefetch, parts: parts.unwrap_or(1) }))
    }

    fn keep_states(&self, scheme: &Scheme, optimizer: &Optimizer) -> Result<bool, CommandError> {
        let is_kept = self.keep_state.unwrap_or(false);
        if is_kept && !matches!(scheme.kind, SchemeKind::Cycle(_)) {
            return Err(CommandError::request(format!("--keep-state belongs to cycle:N, not to {scheme}")));
        }
        // Moments are corrected by a count of steps, one a group; what is trained in every group has had more.
        if is_kept && (scheme.head || scheme.embed) && RULES[optimizer.rule].name != "sgd" {
            let why = "--keep-state counts steps by group, and head and embedding are trained in all of them: leave \
                       out +head and +embed, or take --optimizer sgd";
            return Err(CommandError::request(why));
        }
        Ok(is_kept)
    }

    fn memory(&self) -> Result<Option<u64>, CommandError> {
        match self.memory.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => sizes::parse(text).map(Some).map_err(|e| CommandError::request(format!("--memory: {e}"))),
        }
    }

    fn optimizer(&self) -> Result<Optimizer, CommandError> {
        let name = self.optimizer.as_deref().unwrap_or("adamw");
        let is_for_floats = |rule: &usize| RULES[*rule].eval.is_some();
        let rule = rule_index(name).filter(is_for_floats).ok_or_else(|| {
            let known: Vec<&str> = RULES.iter().filter(|r| r.eval.is_some()).map(|r| r.name).collect();
            CommandError::request(format!("--optimizer {name}: one of {}", known.join(", ")))
        })?;
        let clip = self.clip.unwrap_or(0.0);
        let optimizer = Optimizer {
            rule,
            beta1: within("beta1", self.beta1.unwrap_or(0.9), 0.0, 1.0)?,
            beta2: within("beta2", self.beta2.unwrap_or(0.999), 0.0, 1.0)?,
            eps: within("eps", self.eps.unwrap_or(1e-8), 0.0, 1.0)?,
            weight_decay: within("weight-decay", self.weight_decay.unwrap_or(0.01), 0.0, 10.0)?,
            clip: (within("clip", clip, 0.0, 1e30)? > 0.0).then_some(clip),
        };
        Ok(optimizer)
    }

    /// The learning rates of a run over `rows` rows.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn lr_schedule(&self, rows: u64, batch: u32) -> Result<LrSchedule, CommandError> {
        let per_epoch = rows.div_ceil(u64::from(batch)).max(1);
        let epochs = within("epochs", self.epochs.unwrap_or(1.0), 0.0, 1e9)?;
        let steps = self.steps.unwrap_or((epochs * per_epoch as f64).ceil() as u64);
        if !(1..=STEPS_MAX).contains(&steps) {
            return Err(CommandError::request(format!("{steps} steps; there must be between 1 and {STEPS_MAX}")));
        }
        let is_lora = matches!(self.scheme()?.kind, SchemeKind::Lora(_));
        let decay = match self.decay.as_deref().unwrap_or("cosine") {
            "constant" => Decay::Constant,
            "linear" => Decay::Linear,
            "cosine" => Decay::Cosine,
            other => return Err(CommandError::request(format!("--decay {other}: constant, linear or cosine"))),
        };
        Ok(LrSchedule {
            peak: within("lr", self.lr.unwrap_or(if is_lora { 2e-4 } else { 5e-5 }), 0.0, 1e3)?,
            floor: within("lr-floor", self.lr_floor.unwrap_or(0.0), 0.0, 1.0)?,
            warmup_steps: self.warmup.unwrap_or((steps * 3).div_ceil(100)).min(steps),
            steps,
            decay,
        })
    }
}

/// What leaves the choice of a device to the machine.
pub const AUTO: &str = "auto";

/// Parts of a block, far above the tensors that one has.
const PARTS_MOST: u32 = 64;

/// Tokens of a step that can be counted everywhere.
const TOKENS_MAX: u64 = i32::MAX as u64;

/// The longest run, far above what ends in a lifetime.
const STEPS_MAX: u64 = 1 << 40;

fn positive(name: &str, value: u32) -> Result<u32, CommandError> {
    from_one(name, value, 1 << 24)
}

fn from_one(name: &str, value: u32, most: u32) -> Result<u32, CommandError> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(CommandError::request(format!("--{name} is {value}, must be between 1 and {most}")))
}

/// Where embeddings and heads can live.
const PLACES: [(&str, Embeddings); 3] =
    [("near", Embeddings::Near), ("far", Embeddings::Far), ("parts", Embeddings::Parts)];

/// Which of these ways a flag names; `None` where it is left to the planner.
fn choice<T: Copy>(flag: &str, named: Option<&str>, known: &[(&str, T)]) -> Result<Option<T>, CommandError> {
    let named = named.unwrap_or("auto");
    if named == "auto" {
        return Ok(None);
    }
    let found = known.iter().find(|(name, _)| *name == named).map(|(_, value)| *value);
    found.map(Some).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        CommandError::request(format!("{flag} {named}: {} or auto", names.join(", ")))
    })
}

fn within(name: &str, value: f64, least: f64, most: f64) -> Result<f64, CommandError> {
    if value >= least && value <= most {
        return Ok(value);
    }
    Err(CommandError::request(format!("--{name} is {value}, must be between {least} and {most}")))
}
