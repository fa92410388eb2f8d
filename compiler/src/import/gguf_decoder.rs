//! GGUF metadata to a [`DecoderConfig`].
//!
//! Files of architecture `llama` (Mistral's too) hold the rows of q and k so that the pairs of the rotation are
//! neighbours: [`Rope::interleaved`] is set, nothing is permuted. Those of `qwen2`, `qwen3` are in plain order. Not
//! for weights; see [`super::weight_map::bind_gguf`].

use super::config_error::{ConfigError, Findings};
use super::decoder_config::{Activation, DecoderConfig, Family, HEADS_MAX, LAYERS_MAX, NormKind, SlidingWindow};
use super::gguf::{Gguf, GgufError, Value};
use super::rope::{Rope, RopeScaling};
use super::source::Catalog;

/// Tensors that divide the RoPE frequencies, in the order they are looked for.
const FACTOR_TENSORS: [&str; 2] = ["rope_freqs.weight", "rope_factors_short.weight"];

impl From<GgufError> for ConfigError {
    fn from(error: GgufError) -> ConfigError {
        ConfigError::Gguf(error.to_string())
    }
}

/// The tensor of RoPE frequency divisors that [`config`] needs the data of, if the file has one.
pub fn rope_factors_tensor(catalog: &Catalog) -> Option<&super::TensorRef> {
    FACTOR_TENSORS.iter().find_map(|name| catalog.get(name))
}

/// Reads the configuration from a file's metadata and tensors.
///
/// `gguf`: the header of the (first) file; `catalog`: all tensors, from [`super::gguf::catalog`]; `rope_factors`: the
/// data of [`rope_factors_tensor`], an error when there is such a tensor and it is not given. What the metadata does
/// not say (biases, tied head, rows of the vocabulary) is taken from which tensors are there.
pub fn config(gguf: &Gguf, catalog: &Catalog, rope_factors: Option<&[f32]>) -> Result<DecoderConfig, ConfigError> {
    let found = gguf.str("general.architecture")?.unwrap_or("(none given)");
    let family = match found {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "gpt2" => Family::Gpt2,
        _ => {
            let (found, supported) = (found.chars().take(60).collect(), "llama, qwen2, qwen3, gpt2".into());
            return Err(ConfigError::ModelType { found, supported });
        }
    };
    let mut keys = Keys { gguf, architecture: found, findings: Findings::default() };
    let config = decoder(family, &mut keys, catalog, rope_factors)?;
    let mut findings = keys.findings;
    if findings.is_empty() {
        config.collect(&mut findings);
    }
    findings.finish()?;
    Ok(config)
}

fn decoder(
    family: Family,
    keys: &mut Keys,
    catalog: &Catalog,
    rope_factors: Option<&[f32]>,
) -> Result<DecoderConfig, ConfigError> {
    let is_gpt2 = family == Family::Gpt2;
    let window = keys.number("attention.sliding_window").filter(|&size| size > 0);
    // Mistral goes by the architecture `llama`; its window tells it apart, and no Llama has one.
    let family = if family == Family::Llama && window.is_some() { Family::Mistral } else { family };
    let (hidden, layers) = (keys.dim("embedding_length"), keys.dim("block_count"));
    let heads = keys.heads("attention.head_count", None);
    let head_dim = head_dim(keys, hidden, heads);
    let max_positions = keys.dim("context_length");
    if keys.number("expert_count").is_some_and(|experts| experts > 0) {
        keys.unsupported("expert_count", "a mixture of experts", "dense models are supported");
    }
    let eps = if is_gpt2 { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let has = |name: &str| catalog.get(name).is_some();
    let vocab = match catalog.get("token_embd.weight") {
        Some(tensor) if tensor.shape.len() == 2 => usize::try_from(tensor.shape[0]).unwrap_or(usize::MAX),
        _ => keys.dim("vocab_size"),
    };
    let rope = if is_gpt2 { None } else { rope(family, keys, catalog, rope_factors, head_dim, max_positions)? };
    Ok(DecoderConfig {
        family,
        vocab,
        hidden,
        layers,
        heads,
        kv_heads: keys.heads("attention.head_count_kv", Some(heads)),
        head_dim,
        ff: keys.heads("feed_forward_length", None),
        norm: if is_gpt2 { NormKind::LayerNorm } else { NormKind::RmsNorm },
        norm_eps: keys.required_float(eps) as f32,
        activation: if is_gpt2 { Activation::GeluTanh } else { Activation::Silu },
        gated: !is_gpt2,
        qkv_bias: is_gpt2 || has("blk.0.attn_q.bias"),
        o_bias: is_gpt2 || has("blk.0.attn_output.bias"),
        mlp_bias: is_gpt2 || has("blk.0.ffn_up.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        rope,
        learned_positions: is_gpt2.then_some(max_positions),
        tied: !has("output.weight"),
        sliding_window: window
            .filter(|_| layers <= LAYERS_MAX)
            .map(|size| SlidingWindow { size, layers: vec![true; layers] }),
        max_positions,
        bos: keys.gguf.u32("tokenizer.ggml.bos_token_id")?,
        eos: end_tokens(keys.gguf)?,
    })
}

/// Ends of text, turn and message, each once.
fn end_tokens(gguf: &Gguf) -> Result<Vec<u32>, ConfigError> {
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = gguf.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    Ok(ends)
}

fn head_dim(keys: &mut Keys, hidden: usize, heads: usize) -> usize {
    let key = keys.number("attention.key_length");
    let value = keys.number("attention.value_length");
    if let (Some(key), Some(value)) = (key, value)
        && key != value
    {
        keys.unsupported("attention.value_length", value, &format!("only that of the keys, {key}, is"));
    }
    if let Some(head_dim) = key.or(value) {
        return head_dim;
    }
    if heads > 0 && !hidden.is_multiple_of(heads) {
        keys.wrong("attention.head_count", heads, &format!("a divisor of the hidden size, {hidden}"));
    }
    hidden.checked_div(heads).unwrap_or(0)
}

fn rope(
    family: Family,
    keys: &mut Keys,
    catalog: &Catalog,
    factors: Option<&[f32]>,
    head_dim: usize,
    max_positions: usize,
) -> Result<Option<Rope>, ConfigError> {
    if let Some(rotary_dim) = keys.number("rope.dimension_count")
        && rotary_dim != head_dim
    {
        keys.unsupported("rope.dimension_count", rotary_dim, &format!("only that of the heads, {head_dim}, is"));
    }
    // A width of zero was reported where it came from, or will be.
    if head_dim > HEADS_MAX || !head_dim.is_multiple_of(2) {
        keys.wrong("attention.key_length", head_dim, &format!("an even number from 2 to {HEADS_MAX}"));
    }
    let theta = keys.float("rope.freq_base").unwrap_or(10_000.0);
    let scaling = scaling(keys, max_positions);
    scaling.check("rope.scaling", &mut keys.findings);
    if !keys.findings.is_empty() || head_dim == 0 {
        return Ok(None);
    }
    let mut rope = Rope::new(theta, head_dim, scaling, max_positions as u64);
    if let Some(tensor) = rope_factors_tensor(catalog) {
        let Some(factors) = factors else {
            return Err(ConfigError::RopeFactors { tensor: tensor.name.clone() });
        };
        rope = rope.and_then(|rope| rope.divide(factors));
    }
    let Some(mut rope) = rope else {
        let need = format!("parameters that give {} finite positive frequencies", head_dim / 2);
        keys.wrong("rope.freq_base", theta, &need);
        return Ok(None);
    };
    if let Some(factor) = keys.float("rope.scaling.attn_factor") {
        scale_attention(keys, &mut rope, factor);
    }
    // Of the two sets of divisors the short one was taken.
    if catalog.get("rope_factors_long.weight").is_some() {
        rope.max_positions_valid = keys.number("rope.scaling.original_context_length").map(|length| length as u64);
    }
    rope.interleaved = family.gguf_interleaves();
    Ok(Some(rope))
}

/// Multiplies the attention factor; only variants that have one can be scaled.
fn scale_attention(keys: &mut Keys, rope: &mut Rope, factor: f64) {
    rope.attention_factor *= factor as f32;
    match &mut rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } => *attention_factor = Some(rope.attention_factor.into()),
        RopeScaling::Divisors => {}
        _ if factor == 1.0 => {}
        _ => keys.unsupported("rope.scaling.attn_factor", factor, "only with yarn and longrope it is"),
    }
    if !(rope.attention_factor.is_finite() && rope.attention_factor > 0.0) {
        keys.wrong("rope.scaling.attn_factor", factor, "a positive number");
    }
}

fn scaling(keys: &mut Keys, max_positions: usize) -> RopeScaling {
    let kind = match keys.gguf.get(&keys.key("rope.scaling.type")).map(Value::as_str) {
        None => "none".to_owned(),
        Some(Some(kind)) => kind.to_owned(),
        Some(None) => "of another type than a string".to_owned(),
    };
    let factor = keys.float("rope.scaling.factor");
    let original = keys.number("rope.scaling.original_context_length").unwrap_or(max_positions) as u64;
    match (kind.as_str(), factor) {
        // Files of Llama 3 carry their rule as divisors, those of long-context ones as two sets of them.
        ("none" | "longrope", _) => match keys.float("rope.scale_linear") {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::Default,
        },
        ("linear", Some(factor)) => RopeScaling::Linear { factor },
        ("yarn", Some(factor)) => RopeScaling::Yarn {
            factor,
            original_max_positions: original,
            beta_fast: keys.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            beta_slow: keys.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        },
        ("linear" | "yarn", None) => {
            let key = keys.key("rope.scaling.factor");
            keys.findings.missing(&key);
            RopeScaling::Default
        }
        _ => {
            keys.unsupported("rope.scaling.type", format!("{kind:.60}"), "supported: none, linear, yarn, longrope");
            RopeScaling::Default
        }
    }
}

/// Metadata under the architecture's prefix; faults are collected.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    findings: Findings,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn wrong(&mut self, name: &str, found: impl std::fmt::Display, need: &str) {
        let key = self.key(name);
        self.findings.wrong(&key, found, need);
    }

    fn unsupported(&mut self, name: &str, found: impl std::fmt::Display, help: &str) {
        let key = self.key(name);
        self.findings.unsupported(&key, found, help);
    }

    /// An integer that may be absent.
    fn number(&mut self, name: &str) -> Option<usize> {
        let value = self.gguf.get(&self.key(name))?;
        let number = value.as_u64().filter(|&x| x < 1 << 31).map(|x| x as usize);
        if number.is_none() {
            self.wrong(name, value.describe(), "an integer from 0 to 2147483647");
        }
        number
    }

    /// A required extent; zero, with a finding, when absent or wrong.
    fn dim(&mut self, name: &str) -> usize {
        let key = self.key(name);
        if self.gguf.get(&key).is_none() {
            self.findings.missing(&key);
            return 0;
        }
        match self.number(name) {
            Some(0) => {
                self.wrong(name, 0, "a positive integer");
                0
            }
            other => other.unwrap_or(0),
        }
    }

    /// An extent that some files give block by block; all blocks must agree.
    fn heads(&mut self, name: &str, default: Option<usize>) -> usize {
        match (self.gguf.get(&self.key(name)), default) {
            (None, Some(default)) => default,
            (Some(Value::Array(array)), _) => {
                let numbers = array.to_u64s().unwrap_or_default();
                match numbers.first() {
                    Some(&first) if first > 0 && first < 1 << 31 && numbers.iter().all(|&x| x == first) => {
                        first as usize
                    }
                    _ => {
                        let found = format!("an array of {}", array.len());
                        self.unsupported(name, found, "only one positive number for all blocks is");
                        0
                    }
                }
            }
            _ => self.dim(name),
        }
    }

    fn required_float(&mut self, name: &str) -> f64 {
        let key = self.key(name);
        if self.gguf.get(&key).is_none() {
            self.findings.missing(&key);
        }
        self.float(name).unwrap_or(0.0)
    }

    fn float(&mut self, name: &str) -> Option<f64> {
        let value = self.gguf.get(&self.key(name))?;
        let float = value.as_f64().filter(|x| x.is_finite());
        if float.is_none() {
            self.wrong(name, value.describe(), "a finite float");
        }
        float
    }
}
