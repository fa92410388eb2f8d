//! Hugging Face `config.json`: reads the spellings of `transformers` 4 and 5, writes the one that both read.
//!
//! Defaults for absent keys are those of the family's configuration class in `transformers`. Not for weights; see
//! [`crate::import::weight_map::bind_hf`].

mod write;

use serde_json::{Map, Value};
use tinyforge_plan::DType;

pub use write::config_json;

use crate::import::config_error::{ConfigError, Findings};
use crate::import::decoder_config::{
    Activation, DecoderConfig, Family, HEADS_MAX, LAYERS_MAX, NormKind, SlidingWindow,
};
use crate::import::json::{Object, describe, json_object};
use crate::import::rope::{Rope, RopeScaling};

/// Names of the weights' dtypes in configurations.
const DTYPE_NAMES: [(DType, &str); 4] =
    [(DType::F32, "float32"), (DType::F16, "float16"), (DType::BF16, "bfloat16"), (DType::F64, "float64")];

/// The dtype that a `config.json` declares for the weights, if it is one of ours; the files may hold others.
pub fn declared_dtype(bytes: &[u8]) -> Result<Option<DType>, ConfigError> {
    let map = json_object(bytes)?;
    let name = map.get("dtype").or_else(|| map.get("torch_dtype")).and_then(Value::as_str).unwrap_or_default();
    let name = name.strip_prefix("torch.").unwrap_or(name);
    Ok(DTYPE_NAMES.iter().find(|row| row.1 == name).map(|row| row.0))
}

/// Reads a `config.json`. All faults of its values are in one error.
pub fn config(bytes: &[u8]) -> Result<DecoderConfig, ConfigError> {
    let map = json_object(bytes)?;
    let family = family(&map)?;
    let mut object = Object { map: &map, prefix: String::new(), findings: Findings::default() };
    let config = if family == Family::Gpt2 { gpt2(&mut object) } else { llama_like(family, &mut object) };
    let mut findings = object.findings;
    if findings.is_empty() {
        config.collect(&mut findings);
    }
    findings.finish()?;
    Ok(config)
}

/// Takes the end-of-text tokens, and the beginning's, from a `generation_config.json`, where they are more reliable.
pub fn apply_generation_config(config: &mut DecoderConfig, bytes: &[u8]) -> Result<(), ConfigError> {
    let map = json_object(bytes)?;
    let mut object = Object { map: &map, prefix: String::new(), findings: Findings::default() };
    let (bos, eos) = (object.token("bos_token_id"), object.tokens("eos_token_id"));
    object.findings.finish()?;
    config.bos = bos.or(config.bos);
    if !eos.is_empty() {
        config.eos = eos;
    }
    Ok(())
}

fn family(map: &Map<String, Value>) -> Result<Family, ConfigError> {
    let found = map.get("model_type").and_then(Value::as_str).unwrap_or("(none given)");
    Family::from_name(found).ok_or_else(|| {
        let supported = Family::ALL.map(Family::name).join(", ");
        ConfigError::ModelType { found: found.chars().take(60).collect(), supported }
    })
}

fn llama_like(family: Family, object: &mut Object) -> DecoderConfig {
    let heads = object.dim("num_attention_heads");
    let hidden = object.dim("hidden_size");
    let layers = object.dim("num_hidden_layers");
    let max_positions = object.dim_or("max_position_embeddings", default_positions(family));
    let kv_default = if family == Family::Mistral && !object.has("num_key_value_heads") { 8 } else { heads };
    let head_dim = head_dim(family, object, hidden, heads);
    let attention_bias = object.bool_or("attention_bias", false);
    let has_attention_bias = matches!(family, Family::Llama | Family::Qwen3) && attention_bias;
    object.refuse("quantization_config", "use a checkpoint with plain weights, or a GGUF file");
    DecoderConfig {
        family,
        vocab: object.dim("vocab_size"),
        hidden,
        layers,
        heads,
        kv_heads: object.dim_or("num_key_value_heads", kv_default),
        head_dim,
        ff: object.dim("intermediate_size"),
        norm: NormKind::RmsNorm,
        norm_eps: object.f64_or("rms_norm_eps", 1e-6) as f32,
        activation: activation(object, "hidden_act", Activation::Silu),
        gated: true,
        qkv_bias: family == Family::Qwen2 || has_attention_bias,
        o_bias: has_attention_bias,
        mlp_bias: family == Family::Llama && object.bool_or("mlp_bias", false),
        qk_norm: family == Family::Qwen3,
        rope: rope(object, head_dim, max_positions),
        learned_positions: None,
        tied: object.bool_or("tie_word_embeddings", false),
        sliding_window: sliding_window(family, object, layers),
        max_positions,
        bos: object.token_or("bos_token_id", default_token(family, 1)),
        eos: object.tokens_or("eos_token_id", default_token(family, 2)),
    }
}

/// Context length that the family's class assumes.
fn default_positions(family: Family) -> usize {
    match family {
        Family::Llama => 2048,
        Family::Mistral => 131_072,
        Family::Qwen2 | Family::Qwen3 => 32_768,
        Family::Gpt2 => 1024,
    }
}

/// Llama and Mistral assume their first tokenizer's ids, Qwen none.
fn default_token(family: Family, id: u32) -> Option<u32> {
    matches!(family, Family::Llama | Family::Mistral).then_some(id)
}

fn head_dim(family: Family, object: &mut Object, hidden: usize, heads: usize) -> usize {
    if object.value("head_dim").is_some() {
        return object.dim("head_dim");
    }
    if family == Family::Qwen3 {
        return 128;
    }
    if heads > 0 && !hidden.is_multiple_of(heads) {
        let need = format!("a divisor of the hidden size, {hidden}, when `head_dim` is absent");
        object.wrong("num_attention_heads", heads, need);
    }
    hidden.checked_div(heads).unwrap_or(0)
}

fn sliding_window(family: Family, object: &mut Object, layers: usize) -> Option<SlidingWindow> {
    let is_used = match family {
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => object.bool_or("use_sliding_window", false),
        Family::Llama | Family::Gpt2 => false,
    };
    // An explicit null switches the window off; an absent key means the class's default.
    if !is_used || (object.has("sliding_window") && object.value("sliding_window").is_none()) {
        return None;
    }
    let size = object.dim_or("sliding_window", 4096);
    let first = if family == Family::Mistral { 0 } else { object.index_or("max_window_layers", 28) };
    let layers = if layers <= LAYERS_MAX { layers } else { 0 };
    let mut windowed: Vec<bool> = (0..layers).map(|layer| layer >= first).collect();
    if let (Some(types), true) = (object.value("layer_types"), family != Family::Mistral) {
        let is_sliding = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let read: Option<Vec<bool>> = types.as_array().and_then(|types| types.iter().map(is_sliding).collect());
        match read {
            Some(read) if read.len() == layers => windowed = read,
            _ => object.wrong("layer_types", describe(types), "`full_attention` or `sliding_attention`, one a layer"),
        }
    }
    windowed.contains(&true).then_some(SlidingWindow { size, layers: windowed })
}

fn gpt2(object: &mut Object) -> DecoderConfig {
    let hidden = object.dim("n_embd");
    let heads = object.dim("n_head");
    if heads > 0 && !hidden.is_multiple_of(heads) {
        object.wrong("n_head", heads, format!("a divisor of the hidden size, {hidden}"));
    }
    for (key, usual) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)] {
        if object.bool_or(key, usual) != usual {
            object.findings.unsupported(key, !usual, format!("only {usual} is"));
        }
    }
    if object.bool_or("add_cross_attention", false) {
        object.findings.unsupported("add_cross_attention", true, "only decoders without an encoder are");
    }
    object.refuse("quantization_config", "use a checkpoint with plain weights, or a GGUF file");
    let positions = object.dim_or("n_positions", default_positions(Family::Gpt2));
    DecoderConfig {
        family: Family::Gpt2,
        vocab: object.dim("vocab_size"),
        hidden,
        layers: object.dim("n_layer"),
        heads,
        kv_heads: heads,
        head_dim: hidden.checked_div(heads).unwrap_or(0),
        ff: object.dim_or("n_inner", hidden.saturating_mul(4)),
        norm: NormKind::LayerNorm,
        norm_eps: object.f64_or("layer_norm_epsilon", 1e-5) as f32,
        activation: activation(object, "activation_function", Activation::GeluTanh),
        gated: false,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        qk_norm: false,
        rope: None,
        learned_positions: Some(positions),
        tied: object.bool_or("tie_word_embeddings", true),
        sliding_window: None,
        max_positions: positions,
        bos: object.token_or("bos_token_id", Some(50_256)),
        eos: object.tokens_or("eos_token_id", Some(50_256)),
    }
}

/// Reads `rope_parameters` (5) or `rope_scaling` and `rope_theta` (4).
fn rope(object: &mut Object, head_dim: usize, max_positions: usize) -> Option<Rope> {
    const THETA: f64 = 10_000.0;
    let outer_theta = object.f64_or("rope_theta", THETA);
    let outer_partial = object.f64_or("partial_rotary_factor", 1.0);
    let outer_original = object.value("original_max_position_embeddings").is_some();
    let original = match outer_original {
        true => object.dim("original_max_position_embeddings"),
        false => max_positions,
    };
    // `rope_scaling` wins where both are written, as it does in `transformers`.
    let key = if object.value("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    let empty = Map::new();
    let map = match object.value(key) {
        None => &empty,
        Some(Value::Object(map)) => flat_rope(map),
        Some(other) => {
            object.wrong(key, describe(other), "an object");
            return None;
        }
    };
    let findings = std::mem::take(&mut object.findings);
    let mut inner = Object { map, prefix: format!("{key}."), findings };
    let theta = inner.f64_or("rope_theta", outer_theta);
    let partial = inner.f64_or("partial_rotary_factor", outer_partial);
    if partial != 1.0 {
        inner.findings.unsupported("partial_rotary_factor", partial, "only rotation of the whole head is");
    }
    // A length beside the RoPE parameters goes before one among them.
    let original = if outer_original { original } else { inner.dim_or("original_max_position_embeddings", original) };
    let scaling = rope_scaling(&mut inner, original as u64);
    if let Some(scaling) = &scaling {
        scaling.check(key, &mut inner.findings);
    }
    // A width of zero was reported where it came from.
    if head_dim > HEADS_MAX || !head_dim.is_multiple_of(2) {
        inner.findings.wrong("head_dim", head_dim, format!("an even number from 2 to {HEADS_MAX}"));
    }
    object.findings = inner.findings;
    if !object.findings.is_empty() || head_dim == 0 {
        return None;
    }
    let rope = Rope::new(theta, head_dim, scaling?, max_positions as u64);
    if rope.is_none() {
        let need = format!("parameters that give {} finite positive frequencies", head_dim / 2);
        object.wrong(key, format!("a rule with theta {theta}"), need);
    }
    rope
}

/// Parameters nested under layer types, when all types share them, else the map itself.
fn flat_rope(map: &Map<String, Value>) -> &Map<String, Value> {
    let mut nested = ["full_attention", "sliding_attention"].into_iter().filter_map(|key| map.get(key));
    match (nested.next(), nested.next()) {
        (Some(Value::Object(first)), None) => first,
        (Some(Value::Object(first)), Some(second)) if second.as_object() == Some(first) => first,
        _ => map,
    }
}

/// Reads the variant; `None`, with a finding, when it is unknown.
fn rope_scaling(object: &mut Object, original_max_positions: u64) -> Option<RopeScaling> {
    let kind = object.str("rope_type").or_else(|| object.str("type")).unwrap_or_else(|| "default".into());
    Some(match kind.as_str() {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: object.f64("factor") },
        "dynamic" => RopeScaling::Dynamic { factor: object.f64("factor") },
        "llama3" => RopeScaling::Llama3 {
            factor: object.f64("factor"),
            low_freq_factor: object.f64("low_freq_factor"),
            high_freq_factor: object.f64("high_freq_factor"),
            original_max_positions,
        },
        "yarn" => RopeScaling::Yarn {
            factor: object.f64("factor"),
            original_max_positions,
            beta_fast: object.f64_nonzero("beta_fast").unwrap_or(32.0),
            beta_slow: object.f64_nonzero("beta_slow").unwrap_or(1.0),
            attention_factor: object.f64_maybe("attention_factor"),
            mscale: object.f64_maybe("mscale"),
            mscale_all_dim: object.f64_maybe("mscale_all_dim"),
            truncate: object.bool_or("truncate", true),
        },
        "longrope" | "su" => RopeScaling::LongRope {
            short_factor: object.f64s("short_factor"),
            long_factor: object.f64s("long_factor"),
            original_max_positions,
            attention_factor: object.f64_maybe("attention_factor"),
            factor: object.f64_maybe("factor"),
        },
        _ => {
            let help = "supported: default, linear, dynamic, llama3, yarn, longrope";
            object.unsupported("rope_type", format!("{kind:.60}"), help);
            return None;
        }
    })
}

fn activation(object: &mut Object, key: &str, default: Activation) -> Activation {
    match object.str(key).as_deref() {
        None => default,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => {
            object.unsupported(key, format!("{other:.60}"), "supported: silu, gelu, gelu_new, gelu_pytorch_tanh");
            default
        }
    }
}
