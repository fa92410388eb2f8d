//! What every kernel of training reaches, by its size: small models are planned and run, each step's time is taken.

use crate::error::CommandError;
use crate::knobs::Knobs;
use crate::model::Model;
use crate::planning::{self, Wanted};
use std::collections::BTreeMap;
use std::path::Path;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::cost;
use tinyforge_compiler::import::hf;
use tinyforge_compiler::machine::{KernelRate, Limit, Machine};
use tinyforge_kernels::random::Stream;

/// A model that is run to have its kernels measured.
struct Sample {
    family: &'static str,
    hidden: u32,
    ff: u32,
    seq: u32,
    scheme: &'static str,
    dtype: &'static str,
    batch: u32,
}

const fn llama(hidden: u32, ff: u32, seq: u32, scheme: &'static str, dtype: &'static str, batch: u32) -> Sample {
    Sample { family: "llama", hidden, ff, seq, scheme, dtype, batch }
}

/// Sizes a factor of a few apart, each way of training, both number types.
const SAMPLES: [Sample; 12] = [
    llama(256, 704, 128, "full", "f32", 2),
    llama(256, 704, 128, "lora", "f32", 1),
    llama(256, 704, 128, "full", "bf16", 2),
    llama(576, 1536, 256, "full", "f32", 1),
    llama(576, 1536, 256, "full", "f32", 2),
    llama(576, 1536, 512, "lora", "f32", 1),
    llama(576, 1536, 256, "full", "bf16", 1),
    llama(576, 1536, 512, "lora", "bf16", 1),
    llama(1536, 4096, 256, "full", "f32", 1),
    llama(1536, 4096, 512, "lora", "f32", 1),
    llama(1536, 4096, 512, "lora", "bf16", 1),
    Sample { family: "gpt2", hidden: 384, ff: 1536, seq: 256, scheme: "full", dtype: "f32", batch: 1 },
];

/// Tokens that each sample knows.
const VOCAB: u32 = 16384;
/// Blocks of each.
const BLOCKS: u32 = 2;
/// Runs of each that count; one before them does not.
const RUNS: usize = 5;

/// Efficiencies of all kernels that the samples call, against the machine's rates.
///
/// # Errors
/// The system refuses memory or threads.
pub fn measure(machine: &Machine, threads: u32) -> Result<Vec<KernelRate>, CommandError> {
    let mut sizes = Sizes::default();
    for sample in &SAMPLES {
        run(sample, machine, threads, &mut sizes)?;
    }
    Ok(sizes.rows())
}

/// Calls by kernel, number types and limit, and by the power of two of their size: ideal seconds, seconds, calls.
#[derive(Default)]
struct Sizes(BTreeMap<(String, String, String, Limit), BTreeMap<i32, (f64, f64, u32)>>);

impl Sizes {
    fn add(&mut self, work: &cost::Work, machine: &Machine, seconds: f64) {
        let Some((limit, ideal_s)) = cost::ideal(machine, work) else { return };
        let key = (work.kernel.clone(), work.factors.name().to_string(), work.weights.name().to_string(), limit);
        let size = self.0.entry(key).or_default().entry(ideal_s.log2().floor() as i32).or_default();
        *size = (size.0 + ideal_s, size.1 + seconds, size.2 + 1);
    }

    fn rows(self) -> Vec<KernelRate> {
        let row = |((kernel, factors, weights, limit), sizes): (_, BTreeMap<i32, (f64, f64, u32)>)| KernelRate {
            kernel,
            factors,
            weights,
            limit,
            ideal_s: sizes.values().map(|(ideal, _, calls)| ideal / f64::from(*calls)).collect(),
            efficiency: sizes.values().map(|(ideal, seconds, _)| (ideal / seconds).clamp(1e-4, 999.0)).collect(),
        };
        self.0.into_iter().map(row).collect()
    }
}

fn run(sample: &Sample, machine: &Machine, threads: u32, sizes: &mut Sizes) -> Result<(), CommandError> {
    let config = hf::config(sample.config().as_bytes()).map_err(CommandError::run)?;
    let model = Model::from_config(Path::new("sample"), config)?;
    let knobs = Knobs {
        scheme: Some(sample.scheme.to_string()),
        dtype: Some(sample.dtype.to_string()),
        seq: Some(sample.seq),
        batch: Some(sample.batch),
        micro_batch: Some(1),
        threads: Some(threads),
        sample: Some(vec![String::new()]),
        ..Knobs::default()
    };
    let planned = planning::plan(&model, &knobs.settings()?, Wanted::Train, &[]).map_err(CommandError::run)?;
    let mut runner = Runner::new(planned.compiled.plan, RunOptions { count_times: true })?;
    runner.load(&[], 0)?;
    let entries = runner.plan().entries.len();
    (0..entries).for_each(|entry| fill(&mut runner, entry, sample.seq as usize));
    let mut before = times(&runner);
    let mut runs: Vec<Vec<u64>> = vec![Vec::new(); before.len()];
    let pool = runner.threads();
    for count in 0..=RUNS {
        pool.enter(|| (0..entries).try_for_each(|entry| runner.run(entry)))?;
        let after = times(&runner);
        if count > 0 {
            runs.iter_mut()
                .zip(after.iter().zip(&before))
                .for_each(|(runs, (after, before))| runs.push(after - before));
        }
        before = after;
    }
    for ((step, ..), runs) in runner.times().zip(&mut runs) {
        runs.sort_unstable();
        sizes.add(&cost::work(step), machine, runs[RUNS / 2] as f64 / 1e9);
    }
    Ok(())
}

fn times(runner: &Runner) -> Vec<u64> {
    runner.times().map(|(_, ns, _)| ns).collect()
}

/// Fills the inputs of an entry with rows that have no padding; a few tokens are the last of a row.
fn fill(runner: &mut Runner, entry: usize, seq: usize) {
    let stream = Stream { seed: 0, step: 0, tensor: 0 };
    let token = |i: usize| (stream.uniform(i as u64) * VOCAB as f32) as i32;
    for name in ["tokens", "labels"] {
        runner.input::<i32>(entry, name).iter_mut().enumerate().for_each(|(i, t)| *t = token(i));
    }
    let positions = runner.input::<i32>(entry, "positions");
    let first = seq.saturating_sub(positions.len());
    positions.iter_mut().enumerate().for_each(|(i, p)| *p = (first + i % seq) as i32);
    let weights = runner.input::<f32>(entry, "loss_weights");
    let weight = 1.0 / weights.len().max(1) as f32;
    weights.fill(weight);
    let hyper = runner.input::<f32>(entry, "hyper");
    hyper.iter_mut().zip([1e-5, 0.1, 0.001, 0.0]).for_each(|(h, value)| *h = value);
}

impl Sample {
    fn config(&self) -> String {
        let Sample { family, hidden, ff, .. } = self;
        let (heads, kv_heads) = (hidden / 64, (hidden / 192).max(1));
        match *family {
            "gpt2" => format!(
                r#"{{"model_type": "gpt2", "vocab_size": {VOCAB}, "n_embd": {hidden}, "n_inner": {ff},
                "n_layer": {BLOCKS}, "n_head": {heads}, "n_positions": 1024}}"#
            ),
            _ => format!(
                r#"{{"model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": {hidden},
                "intermediate_size": {ff}, "num_hidden_layers": {BLOCKS}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "head_dim": 64, "max_position_embeddings": 2048,
                "tie_word_embeddings": true}}"#
            ),
        }
    }
}
