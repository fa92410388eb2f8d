//! A made-up model with a real tokenizer, made-up rows, and runs of the real program.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod devices;
pub mod trace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tinyforge::data::{DataError, IGNORED, PADDING_SEGMENT, RowBuf, RowReader};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge::train::{TrainOptions, Trainer};
use tinyforge_cli::knobs::Knobs;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{Settings, Wanted};
use tinyforge_cli::request;
use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, Plan};

/// Tokens of the quickstart's tokenizer.
pub const VOCAB: u32 = 1024;

/// A folder of its own that goes away with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    /// One of its own, whoever else takes the name.
    pub fn new(name: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tinyforge-{name}-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sizes of a llama.
#[derive(Clone, Copy)]
pub struct Llama {
    pub vocab: u32,
    pub hidden: u32,
    pub layers: u32,
    pub ff: u32,
    pub tied: bool,
}

/// Small enough for many runs in a test.
pub const SMALL: Llama = Llama { vocab: VOCAB, hidden: 32, layers: 3, ff: 52, tied: false };

/// The same, its embedding used twice.
pub const TIED: Llama = Llama { tied: true, ..SMALL };

impl Llama {
    fn config(&self) -> String {
        let Llama { vocab, hidden, layers, ff, tied } = self;
        format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": {vocab},
            "hidden_size": {hidden}, "intermediate_size": {ff}, "num_hidden_layers": {layers},
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": {}, "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 256, "attention_bias": false,
            "mlp_bias": false, "tie_word_embeddings": {tied}, "bos_token_id": 0, "eos_token_id": 0,
            "torch_dtype": "float32"}}"#,
            hidden / 4
        )
    }

    pub fn tensors(&self) -> Vec<NewTensor> {
        let (hidden, ff) = (u64::from(self.hidden), u64::from(self.ff));
        let f32 = |name: String, shape: &[u64]| NewTensor::new(name, DType::F32, shape);
        let mut list = vec![f32("model.embed_tokens.weight".into(), &[u64::from(self.vocab), hidden])];
        for layer in 0..self.layers {
            let in_layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![hidden / 2, hidden]),
                ("self_attn.v_proj", vec![hidden / 2, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![ff, hidden]),
                ("mlp.up_proj", vec![ff, hidden]),
                ("mlp.down_proj", vec![hidden, ff]),
            ];
            list.extend(in_layer.map(|(name, shape)| f32(format!("model.layers.{layer}.{name}.weight"), &shape)));
        }
        list.push(f32("model.norm.weight".into(), &[hidden]));
        if !self.tied {
            list.push(f32("lm_head.weight".into(), &[u64::from(self.vocab), hidden]));
        }
        list
    }

    /// Writes the model with random weights and the quickstart's tokenizer.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(folder.join("config.json"), self.config()).expect("written");
        write_tensors(&folder.join("model.safetensors"), &self.tensors());
        let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart/model");
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(quickstart.join(name), folder.join(name)).expect("the quickstart's tokenizer");
        }
    }
}

/// Writes tensors with values that suit a model: norms about 1, matrices of unit gain.
pub fn write_tensors(path: &Path, tensors: &[NewTensor]) {
    let layout = safetensors::layout(tensors, &BTreeMap::new()).expect("a layout");
    let mut bytes = layout.header.clone();
    for (i, tensor) in layout.tensors.iter().enumerate() {
        let stream = Stream { seed: 7, step: 0, tensor: i as u32 };
        let elems = tensor.shape.iter().product::<u64>() as usize;
        // A period of prime length: a large model is written as fast as a small one is made.
        let period = elems.min(65_521);
        let gain = match tensor.shape[..] {
            [_, cols] => 1.7 / (cols as f32).sqrt(),
            _ => 0.1,
        };
        let offset = if tensor.shape.len() == 1 { 1.0 } else { 0.0 };
        let value = |k| offset + gain * (2.0 * stream.uniform(k as u64) - 1.0);
        let some: Vec<u8> = (0..period).flat_map(|k| value(k).to_le_bytes()).collect();
        let mut left = 4 * elems;
        while left > 0 {
            let n = left.min(some.len());
            bytes.extend_from_slice(&some[..n]);
            left -= n;
        }
    }
    std::fs::write(path, bytes).expect("written");
}

/// Writes the first bytes of the quickstart's text, up to a line's end.
pub fn write_text(path: &Path, bytes: usize) {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart/logbook.txt");
    let text = std::fs::read_to_string(quickstart).expect("the quickstart's text");
    let end = text[..bytes].rfind('\n').expect("lines") + 1;
    std::fs::write(path, &text[..end]).expect("written");
}

/// Rows that have all that rows can have: several documents, masked tokens, weights, padding.
pub struct MadeRows {
    pub rows: u64,
    pub seq: usize,
    pub vocab: u32,
}

impl RowReader for MadeRows {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn seq(&self) -> usize {
        self.seq
    }

    fn read(&self, row: u64, buf: &mut RowBuf<'_>) -> Result<(), DataError> {
        let stream = Stream { seed: 11, step: row as u32, tensor: 0 };
        let token = |k: usize| (stream.uniform(k as u64) * self.vocab as f32) as u32 % self.vocab;
        // The first document ends here; what is behind the second is padding.
        let (first, filled) = (self.seq / 3 + row as usize % 3, self.seq - row as usize % 4);
        for t in 0..self.seq {
            let is_filled = t < filled;
            let is_last = t + 1 == first || t + 1 >= filled;
            let is_trained = is_filled && !is_last && !(t + row as usize).is_multiple_of(5);
            buf.tokens[t] = if is_filled { token(t) } else { 0 };
            buf.labels[t] = if is_trained { token(t + 1) as i32 } else { IGNORED };
            buf.loss_weight[t] = if is_trained { [1.0, 0.5][t % 2] } else { 0.0 };
            buf.positions[t] = if !is_filled { 0 } else { t as i32 - if t < first { 0 } else { first as i32 } };
            buf.segments[t] = if is_filled { i32::from(t >= first) } else { PADDING_SEGMENT };
        }
        Ok(())
    }
}

/// Settings from `key=value`, with few tokens a row where nothing else is said.
pub fn knobs(pairs: &[&str]) -> Knobs {
    let mut knobs = Knobs { seq: Some(24), threads: Some(1), ..Knobs::default() };
    pairs.iter().for_each(|pair| knobs.set(pair).expect("a setting"));
    knobs
}

/// The plans of a run's phases, and how it trains.
pub fn planned(model: &Model, knobs: &Knobs) -> (Vec<Plan>, TrainOptions) {
    planned_in_host(model, knobs, (0, false))
}

/// The same; so many bytes of the host's memory may hold what streams, and the host may update it there.
pub fn planned_in_host(
    model: &Model,
    knobs: &Knobs,
    (host_memory, host_optimizer): (u64, bool),
) -> (Vec<Plan>, TrainOptions) {
    let settings = knobs.settings().expect("settings");
    let (host_memory, host_optimizer) =
        (settings.host_memory.max(host_memory), Some(settings.host_optimizer == Some(true) || host_optimizer));
    let settings = Settings { host_memory, host_optimizer, ..settings };
    let plans = request::plan_phases(model, &settings, Wanted::Train, &[]).expect("plans");
    let options = TrainOptions {
        batch: settings.batch as usize,
        micro_rows: plans[0].micro_rows as usize,
        seq: settings.seq as usize,
        schedule: LrSchedule { peak: 1e-2, floor: 0.1, warmup_steps: 1, steps: 10, decay: Decay::Cosine },
        beta1: settings.optimizer.beta1,
        beta2: settings.optimizer.beta2,
        seed: 3,
        phase_steps: knobs.cycle_steps.unwrap_or(50),
        keep_states: settings.keep_states,
    };
    (plans.into_iter().map(|p| p.compiled.plan).collect(), options)
}

/// A runner for training whose stored tensors are still to be loaded, and how the run trains.
pub fn runner(model: &Model, knobs: &Knobs) -> (Runner, TrainOptions) {
    let (plans, options) = planned(model, knobs);
    let device = knobs.settings().expect("settings").device;
    (Runner::with_phases(plans, RunOptions { device, ..RunOptions::default() }).expect("runs"), options)
}

/// A trainer that is ready for its first step.
pub fn trainer(model: &Model, knobs: &Knobs, rows: u64) -> Trainer {
    let (mut runner, options) = runner(model, knobs);
    runner.load(&model.files, options.seed).expect("loads");
    Trainer::new(runner, options, rows)
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The run, which must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// The object on the last line of stdout.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.stdout.lines().last().unwrap_or_default()).expect("`--json` prints an object")
    }
}

/// The program with these arguments.
pub fn program<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::of(program(args).output().expect("the program starts"))
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
