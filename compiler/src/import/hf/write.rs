//! Writes a `config.json`.

use serde_json::{Map, Value, json};
use tinyforge_plan::DType;

use super::DTYPE_NAMES;
use crate::import::config_error::{ConfigError, Findings};
use crate::import::decoder_config::{Activation, DecoderConfig, Family};
use crate::import::rope::RopeScaling;

/// The `config.json` of a model, readable by `transformers` 4 and 5.
///
/// `dtype`: that of the weights. Errors when the model has something that the file cannot say, such as RoPE divisors
/// without a rule, or biases that the family does not have.
pub fn config_json(config: &DecoderConfig, dtype: DType) -> Result<String, ConfigError> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("architectures", json!([config.family.architecture()]));
    put("model_type", json!(config.family.name()));
    put("torch_dtype", json!(dtype_name(dtype)));
    put("vocab_size", json!(config.vocab));
    put("tie_word_embeddings", json!(config.tied));
    put("bos_token_id", json!(config.bos));
    put("eos_token_id", if let [one] = config.eos[..] { json!(one) } else { json_ids(&config.eos) });
    if config.family == Family::Gpt2 {
        put_gpt2(config, &mut map)
    } else {
        put_llama_like(config, &mut map)?
    }
    let text = format!("{:#}\n", Value::Object(map));
    let read = super::config(text.as_bytes())?;
    let lost = [
        ("qkv_bias", read.qkv_bias != config.qkv_bias),
        ("o_bias", read.o_bias != config.o_bias),
        ("mlp_bias", read.mlp_bias != config.mlp_bias),
        ("qk_norm", read.qk_norm != config.qk_norm),
        ("gated", read.gated != config.gated),
        ("norm", read.norm != config.norm),
        ("sliding_window", read.sliding_window != config.sliding_window),
        ("learned_positions", read.learned_positions != config.learned_positions),
        ("rope", read.rope.is_some() != config.rope.is_some()),
    ];
    let mut findings = Findings::default();
    for (key, _) in lost.into_iter().filter(|(_, is_lost)| *is_lost) {
        let help = format!("a `config.json` of type {} cannot say it; export to GGUF instead", config.family.name());
        findings.unsupported(key, "as it is in this model", help);
    }
    findings.finish()?;
    Ok(text)
}

/// The library's name of a dtype; block types have none and are named by what they are dequantised to.
fn dtype_name(dtype: DType) -> &'static str {
    DTYPE_NAMES.iter().find(|row| row.0 == dtype).map_or("float32", |row| row.1)
}

fn json_ids(ids: &[u32]) -> Value {
    if ids.is_empty() { Value::Null } else { json!(ids) }
}

fn put_gpt2(config: &DecoderConfig, map: &mut Map<String, Value>) {
    let entries = [
        ("n_embd", json!(config.hidden)),
        ("n_layer", json!(config.layers)),
        ("n_head", json!(config.heads)),
        ("n_inner", json!(config.ff)),
        ("n_positions", json!(config.max_positions)),
        ("layer_norm_epsilon", short_float(config.norm_eps)),
        ("activation_function", json!(activation_name(config.activation))),
    ];
    map.extend(entries.map(|(key, value)| (key.into(), value)));
}

fn put_llama_like(config: &DecoderConfig, map: &mut Map<String, Value>) -> Result<(), ConfigError> {
    let entries = [
        ("hidden_size", json!(config.hidden)),
        ("num_hidden_layers", json!(config.layers)),
        ("num_attention_heads", json!(config.heads)),
        ("num_key_value_heads", json!(config.kv_heads)),
        ("head_dim", json!(config.head_dim)),
        ("intermediate_size", json!(config.ff)),
        ("max_position_embeddings", json!(config.max_positions)),
        ("rms_norm_eps", short_float(config.norm_eps)),
        ("hidden_act", json!(activation_name(config.activation))),
    ];
    map.extend(entries.map(|(key, value)| (key.into(), value)));
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    match config.family {
        Family::Llama => {
            put("attention_bias", json!(config.o_bias));
            put("mlp_bias", json!(config.mlp_bias));
        }
        Family::Mistral => {
            put("sliding_window", json!(config.sliding_window.as_ref().map(|window| window.size)));
        }
        Family::Qwen2 | Family::Qwen3 => {
            if config.family == Family::Qwen3 {
                put("attention_bias", json!(config.o_bias));
            }
            put("use_sliding_window", json!(config.sliding_window.is_some()));
            put("sliding_window", json!(config.sliding_window.as_ref().map(|window| window.size)));
            if let Some(window) = &config.sliding_window {
                let kind = |&is_sliding: &bool| if is_sliding { "sliding_attention" } else { "full_attention" };
                put("layer_types", window.layers.iter().map(kind).collect());
            }
        }
        Family::Gpt2 => {}
    }
    if let Some(rope) = &config.rope {
        put("rope_theta", json!(rope.theta));
        put("rope_scaling", scaling_json(&rope.scaling)?);
    }
    Ok(())
}

fn scaling_json(scaling: &RopeScaling) -> Result<Value, ConfigError> {
    Ok(match scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } => without_nulls(json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_max_positions,
            "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor,
            "mscale": mscale, "mscale_all_dim": mscale_all_dim, "truncate": truncate,
        })),
        RopeScaling::LongRope { short_factor, long_factor, original_max_positions, attention_factor, factor } => {
            without_nulls(json!({
                "rope_type": "longrope", "short_factor": short_factor, "long_factor": long_factor,
                "original_max_position_embeddings": original_max_positions, "attention_factor": attention_factor,
                "factor": factor,
            }))
        }
        RopeScaling::Divisors => {
            let mut findings = Findings::default();
            let help = "no `config.json` can say them; export to GGUF instead";
            findings.unsupported("rope", "divisors from a file, of no known rule,", help);
            return findings.finish().map(|()| Value::Null);
        }
    })
}

/// The object without its null entries.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, entry| !entry.is_null());
    }
    value
}

/// The shortest decimal that reads back as this f32, as a JSON number.
fn short_float(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().unwrap_or(f64::from(x)))
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
    }
}
