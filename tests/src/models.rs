//! Language models by their shapes, and contents for their programs.

use crate::random::Random;
use tinyforge_compiler::import::decoder::{INV_FREQ, Mode, program};
use tinyforge_compiler::import::{Activation, DecoderConfig, Family, NormKind, Rope, RopeScaling, SlidingWindow};
use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_plan::DType;

/// The lengths of a model of the Llama kind.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width between blocks.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads, and key and value heads.
    pub heads: [usize; 2],
    /// Inner width.
    pub ff: usize,
}

/// A Llama of these lengths.
pub fn llama(n: Lengths, tied: bool) -> DecoderConfig {
    let head_dim = n.hidden / n.heads[0];
    let max_positions = 2048;
    DecoderConfig {
        family: Family::Llama,
        vocab: n.vocab,
        hidden: n.hidden,
        layers: n.layers,
        heads: n.heads[0],
        kv_heads: n.heads[1],
        head_dim,
        ff: n.ff,
        norm: NormKind::RmsNorm,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        gated: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: Rope::new(1e4, head_dim, RopeScaling::Default, max_positions as u64),
        learned_positions: None,
        tied,
        sliding_window: None,
        max_positions,
        bos: None,
        eos: Vec::new(),
    }
}

/// A GPT-2 of these lengths.
pub fn gpt2(n: Lengths, positions: usize) -> DecoderConfig {
    DecoderConfig {
        family: Family::Gpt2,
        norm: NormKind::LayerNorm,
        activation: Activation::GeluTanh,
        gated: false,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        rope: None,
        learned_positions: Some(positions),
        max_positions: positions,
        ..llama(n, true)
    }
}

const TINY: Lengths = Lengths { vocab: 11, hidden: 8, layers: 2, heads: [4, 2], ff: 12 };

/// Small models of every kind that the builder knows.
pub fn tiny() -> Vec<(&'static str, DecoderConfig)> {
    let qwen2 = DecoderConfig { family: Family::Qwen2, qkv_bias: true, ..llama(TINY, true) };
    let qwen3 = DecoderConfig { family: Family::Qwen3, qk_norm: true, ..llama(TINY, true) };
    let window = SlidingWindow { size: 2, layers: vec![true, false] };
    let mistral = DecoderConfig { family: Family::Mistral, sliding_window: Some(window), ..llama(TINY, false) };
    vec![
        ("llama", llama(TINY, false)),
        ("llama tied", llama(TINY, true)),
        ("qwen2", qwen2),
        ("qwen3", qwen3),
        ("mistral", mistral),
        ("gpt2", gpt2(Lengths { heads: [2, 2], ..TINY }, 16)),
    ]
}

/// Shapes that people train.
pub fn real() -> Vec<(&'static str, DecoderConfig)> {
    let stories = Lengths { vocab: 512, hidden: 64, layers: 5, heads: [8, 4], ff: 172 };
    let smol = Lengths { vocab: 49152, hidden: 576, layers: 30, heads: [9, 3], ff: 1536 };
    let small = Lengths { vocab: 50257, hidden: 768, layers: 12, heads: [12, 12], ff: 3072 };
    vec![("stories260K", llama(stories, true)), ("SmolLM2-135M", llama(smol, true)), ("GPT-2 small", gpt2(small, 1024))]
}

/// The graph of a model's losses, in f32.
pub fn losses(config: &DecoderConfig, rows: u32, seq: u32) -> Graph {
    program(config, Mode::Loss { rows, seq }, 0, &|_| DType::F32).inline()
}

/// What a model is given for a declared tensor: weights depend on their name alone, inputs on their packed row too.
/// `first_row` is the number of the micro-batch's first packed row.
pub fn contents(config: &DecoderConfig, graph: &Graph, v: Value, first_row: u32, seq: u32) -> Tensor {
    let info = graph.info(v);
    let mut tensor = Tensor::zeros(&info.ty);
    let name_seed = info.name.bytes().fold(17u64, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut random = Random::new(name_seed);
    match (info.decl, info.name.as_str()) {
        (_, INV_FREQ) => {
            let rope = config.rope.as_ref().expect("the table is there for rotary positions");
            tensor.data.iter_mut().zip(&rope.inv_freq).for_each(|(x, &f)| *x = f64::from(f));
        }
        (Some(Kind::Weight), name) => {
            let near_one = name.contains("norm") || name.contains("ln_");
            let around = if near_one && name.ends_with("weight") { 1.0 } else { 0.0 };
            tensor.data.iter_mut().for_each(|x| *x = around + random.within(-0.5, 0.5));
        }
        (Some(Kind::Const), _) => tensor.data.iter_mut().enumerate().for_each(|(i, x)| *x = 2.0 * i as f64),
        (Some(Kind::Input), "hyper") => tensor.data.copy_from_slice(&[0.01, 1.0 - 0.9, 1.0 - 0.999, 0.0]),
        (Some(Kind::Input), name) => {
            for (i, x) in tensor.data.iter_mut().enumerate() {
                let (row, t) = (first_row + i as u32 / seq, i as u32 % seq);
                *x = input(config, name, row, t, seq);
            }
        }
        _ => {}
    }
    tensor
}

fn input(config: &DecoderConfig, name: &str, row: u32, t: u32, seq: u32) -> f64 {
    let mut random = Random::new(u64::from(row) << 32 | u64::from(t) << 8 | name.len() as u64);
    let second = t > seq / 2;
    match name {
        "positions" => f64::from(if second { t - seq / 2 - 1 } else { t }),
        "segments" => f64::from(u8::from(second)),
        // The last label of each text is nobody's to predict.
        "labels" if t == seq / 2 || t == seq - 1 => -1.0,
        "tokens" | "labels" => random.below(config.vocab) as f64,
        "loss_weights" => random.within(0.05, 0.15),
        _ => 0.0,
    }
}
