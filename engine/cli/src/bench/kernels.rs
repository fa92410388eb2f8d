//! What every kernel of training reaches, by its size: small models are planned and run, each step's time is taken.

use super::Options;
use crate::error::CommandError;
use crate::knobs::Knobs;
use crate::model::Model;
use crate::planning::{self, Wanted};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::cost;
use tinyforge_compiler::import::hf;
use tinyforge_compiler::machine::{KernelRate, Limit, Machine};
use tinyforge_kernels::random::Stream;
use tinyforge_plan::DType;

/// A model that is run to have its kernels measured.
struct Sample {
    family: &'static str,
    hidden: u32,
    ff: u32,
    seq: u32,
    scheme: &'static str,
    dtype: &'static str,
    batch: u32,
    /// Blocks of quantised elements that its matrices are stored in.
    blocks: Option<DType>,
}

const fn llama(hidden: u32, ff: u32, seq: u32, scheme: &'static str, dtype: &'static str, batch: u32) -> Sample {
    Sample { family: "llama", hidden, ff, seq, scheme, dtype, batch, blocks: None }
}

/// The same with frozen weights in blocks.
const fn quantised(hidden: u32, ff: u32, seq: u32, dtype: &'static str, blocks: DType) -> Sample {
    Sample { blocks: Some(blocks), ..llama(hidden, ff, seq, "lora", dtype, 1) }
}

/// Sizes a factor of a few apart, each way of training, both number types, and blocks that are decoded for a product.
const SAMPLES: [Sample; 14] = [
    llama(256, 704, 128, "full", "f32", 2),
    llama(256, 704, 128, "lora", "f32", 1),
    llama(256, 704, 128, "full", "bf16", 2),
    llama(576, 1536, 256, "full", "f32", 1),
    llama(576, 1536, 256, "full", "f32", 2),
    llama(576, 1536, 512, "lora", "f32", 1),
    llama(576, 1536, 256, "full", "bf16", 1),
    llama(576, 1536, 512, "lora", "bf16", 1),
    llama(1536, 4096, 256, "lora", "f32", 1),
    llama(1536, 4096, 256, "lora", "bf16", 1),
    quantised(576, 1536, 512, "f32", DType::Q4_1),
    quantised(576, 1536, 512, "bf16", DType::Q4_1),
    quantised(1536, 4096, 256, "bf16", DType::Q8_0),
    Sample { family: "gpt2", ..llama(384, 1536, 256, "full", "f32", 1) },
];

/// Tokens that every sample knows at least, and those whose weights lie beyond every cache: then logits do, too.
const VOCAB: [u32; 2] = [8192, 32768];
/// Blocks of each, at least: the weights of a model that is no toy lie beyond every cache when a step comes to them.
const BLOCKS_MIN: u32 = 2;
/// Bytes of weights that no cache keeps from one step to the next.
pub const BEYOND_CACHES: u64 = 192 << 20;
/// The part of the memory that they may take.
const MEMORY_PART: u64 = 32;
/// Features below which a model's weights do lie in a cache.
const CACHED_HIDDEN: u32 = 384;
/// Runs of each that count, where there is time; one before them does not.
const RUNS: usize = 5;

/// Efficiencies of all kernels that the samples call, against the machine's rates; each sample is run for about
/// `limit`. A product there that is faster than the machine's rate is the rate from then on.
///
/// # Errors
/// The system refuses memory or threads.
pub fn measure(machine: &mut Machine, options: &Options, limit: Duration) -> Result<(), CommandError> {
    let mut calls = Vec::new();
    let &Options { threads, weight_bytes, .. } = options;
    let weight_bytes = machine.spaces[0].bytes.map_or(weight_bytes, |all| weight_bytes.min(all / MEMORY_PART));
    SAMPLES.iter().try_for_each(|sample| run(sample, weight_bytes, (threads, limit), &mut calls))?;
    let best = |factors: DType| {
        let is_such = |work: &cost::Work| cost::factors(machine, work) == factors && work.flops >= LARGE_FLOPS;
        let large = calls.iter().filter(|(work, _)| is_such(work));
        large.fold(0.0f64, |best, (work, seconds)| best.max(work.flops as f64 / seconds))
    };
    let (f32, bf16) = (best(DType::F32), best(DType::BF16));
    machine.rates.f32 = machine.rates.f32.map(|rate| rate.max(f32));
    machine.rates.bf16 = machine.rates.bf16.map(|rate| rate.max(bf16));
    let mut sizes = Sizes::default();
    calls.iter().for_each(|(work, seconds)| sizes.add(work, machine, *seconds));
    machine.kernels = sizes.rows();
    Ok(())
}

/// Arithmetic of a call that is long enough for its time to be exact.
const LARGE_FLOPS: u64 = 500_000_000;

/// Calls by kernel, number types and limit, and by the power of two of their size: ideal seconds, seconds, calls.
#[derive(Default)]
struct Sizes(BTreeMap<Key, BTreeMap<i32, Size>>);

/// Kernel, number type, storage of weights, limit.
type Key = (String, String, String, Limit);
/// Ideal seconds, seconds, calls.
type Size = (f64, f64, u32);

impl Sizes {
    fn add(&mut self, work: &cost::Work, machine: &Machine, seconds: f64) {
        let Some((limit, ideal_s)) = cost::ideal(machine, work) else { return };
        let factors = cost::factors(machine, work);
        let key = (work.kernel.clone(), factors.name().to_string(), work.weights.name().to_string(), limit);
        let size = self.0.entry(key).or_default().entry(ideal_s.log2().floor() as i32).or_default();
        *size = (size.0 + ideal_s, size.1 + seconds, size.2 + 1);
    }

    fn rows(self) -> Vec<KernelRate> {
        let row = |((kernel, factors, weights, limit), sizes): (Key, BTreeMap<i32, Size>)| KernelRate {
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

/// Runs a sample with about so many bytes of weights, for about `limit`, and adds its calls with their median seconds.
fn run(
    sample: &Sample,
    weight_bytes: u64,
    (threads, limit): (u32, Duration),
    calls: &mut Vec<(cost::Work, f64)>,
) -> Result<(), CommandError> {
    let config = hf::config(sample.config(weight_bytes).as_bytes()).map_err(CommandError::run)?;
    let model = Model::from_config(Path::new("sample"), config, sample.blocks)?;
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
    let mut runner = Runner::new(planned.compiled.plan, RunOptions { count_times: true, ..RunOptions::default() })?;
    runner.load(&[], 0)?;
    let entries = runner.plan().entries.len();
    let mut before = times(&runner);
    let mut runs: Vec<Vec<u64>> = vec![Vec::new(); before.len()];
    let pool = runner.threads();
    let started = Instant::now();
    for count in 0..=RUNS {
        if count > 1 && started.elapsed() > limit {
            break;
        }
        pool.enter(|| {
            (0..entries).try_for_each(|entry| {
                // Inputs of one entry lie where another computes.
                fill(&mut runner, entry, sample.seq as usize);
                runner.run(entry)
            })
        })?;
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
        calls.push((cost::work(step), runs[runs.len() / 2] as f64 / 1e9));
    }
    Ok(())
}

fn times(runner: &Runner) -> Vec<u64> {
    runner.times().map(|(_, ns, _)| ns).collect()
}

/// Fills the inputs of an entry with rows that have no padding; a few tokens are the last of a row.
fn fill(runner: &mut Runner, entry: usize, seq: usize) {
    let stream = Stream { seed: 0, step: 0, tensor: 0 };
    let token = |i: usize| (stream.uniform(i as u64) * VOCAB[0] as f32) as u32;
    let inputs = runner.plan().entries[entry].inputs.clone();
    for input in &inputs {
        let words: &mut [u32] = bytemuck::cast_slice_mut(runner.arena_mut().tensor_mut(&input.tensor));
        let len = words.len();
        let first = seq.saturating_sub(len);
        let word = |i: usize| match input.name.as_str() {
            "tokens" | "labels" => token(i),
            "positions" => (first + i % seq) as u32,
            "loss_weights" => (1.0 / len as f32).to_bits(),
            "hyper" => [1e-5f32, 0.1, 0.001, 0.0][i % 4].to_bits(),
            _ => 0,
        };
        words.iter_mut().enumerate().for_each(|(i, w)| *w = word(i));
    }
}

impl Sample {
    /// How many blocks make about so many bytes of weights.
    fn blocks(&self, weight_bytes: u64) -> u32 {
        if self.hidden < CACHED_HIDDEN {
            return BLOCKS_MIN;
        }
        let (hidden, ff) = (u64::from(self.hidden), u64::from(self.ff));
        let stored = self.blocks.unwrap_or(if self.dtype == "bf16" { DType::BF16 } else { DType::F32 });
        let block_bytes = hidden * (3 * hidden + 3 * ff) / stored.block_elems() * stored.block_bytes();
        ((weight_bytes / block_bytes) as u32).max(BLOCKS_MIN)
    }

    fn config(&self, weight_bytes: u64) -> String {
        let Sample { family, hidden, ff, .. } = self;
        let (blocks, vocab) = (self.blocks(weight_bytes), VOCAB[usize::from(*hidden >= CACHED_HIDDEN)]);
        let (heads, kv_heads) = (hidden / 64, (hidden / 192).max(1));
        match *family {
            "gpt2" => format!(
                r#"{{"model_type": "gpt2", "vocab_size": {vocab}, "n_embd": {hidden}, "n_inner": {ff},
                "n_layer": {blocks}, "n_head": {heads}, "n_positions": 1024}}"#
            ),
            _ => format!(
                r#"{{"model_type": "llama", "vocab_size": {vocab}, "hidden_size": {hidden},
                "intermediate_size": {ff}, "num_hidden_layers": {blocks}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "head_dim": 64, "max_position_embeddings": 2048,
                "tie_word_embeddings": true}}"#
            ),
        }
    }
}
