//! A [`DecoderConfig`] to GGUF metadata, for files that other programs load.
//!
//! Together with [`super::weight_map::Param::gguf_name`] and [`super::weight_map::Param::gguf_rows`] this is what
//! [`super::gguf::layout`] needs, but for the tokenizer's entries. Not for moving weights.

use super::config_error::{ConfigError, Findings};
use super::decoder_config::{Activation, DecoderConfig, NormKind};
use super::gguf::Value;
use super::rope::{Rope, RopeScaling};

/// Name of the tensor that [`Rope::divisors`] belong in, `f32[rotary_dim / 2]`.
pub const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The metadata that describes the model, `general.architecture` first.
///
/// When the RoPE has [`Rope::divisors`], the file must hold them as the tensor [`ROPE_DIVISORS`]. Errors with
/// everything that the format, or the programs that read it, have no word for.
pub fn metadata(config: &DecoderConfig) -> Result<Vec<(String, Value)>, ConfigError> {
    let mut findings = Findings::default();
    config.collect(&mut findings);
    let is_rms = config.norm == NormKind::RmsNorm;
    let usual = if is_rms { Activation::Silu } else { Activation::GeluTanh };
    if config.activation != usual {
        findings.unsupported("activation", format!("{:?}", config.activation), format!("GGUF files imply {usual:?}"));
    }
    let mut entries = vec![
        ("context_length", Value::U32(config.max_positions as u32)),
        ("embedding_length", Value::U32(config.hidden as u32)),
        ("block_count", Value::U32(config.layers as u32)),
        ("feed_forward_length", Value::U32(config.ff as u32)),
        ("attention.head_count", Value::U32(config.heads as u32)),
        ("attention.head_count_kv", Value::U32(config.kv_heads as u32)),
        ("vocab_size", Value::U32(config.vocab as u32)),
    ];
    let eps = if is_rms { "attention.layer_norm_rms_epsilon" } else { "attention.layer_norm_epsilon" };
    entries.push((eps, Value::F32(config.norm_eps)));
    if let Some(rope) = &config.rope {
        entries.push(("attention.key_length", Value::U32(config.head_dim as u32)));
        entries.push(("attention.value_length", Value::U32(config.head_dim as u32)));
        put_rope(rope, &mut entries, &mut findings);
    }
    if let Some(window) = &config.sliding_window {
        if window.layers.contains(&false) {
            findings.unsupported("sliding_window", "a window in some layers only", "GGUF files have one for all");
        }
        entries.push(("attention.sliding_window", Value::U32(window.size as u32)));
    }
    findings.finish()?;
    let architecture = config.family.gguf_architecture();
    let mut metadata = vec![("general.architecture".to_owned(), Value::String(architecture.into()))];
    metadata.extend(entries.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)));
    Ok(metadata)
}

fn put_rope(rope: &Rope, entries: &mut Vec<(&str, Value)>, findings: &mut Findings) {
    entries.push(("rope.dimension_count", Value::U32(rope.rotary_dim as u32)));
    entries.push(("rope.freq_base", Value::F32(rope.theta as f32)));
    let mut scaling = |kind: &str, factor: f64| {
        entries.push(("rope.scaling.type", Value::String(kind.into())));
        entries.push(("rope.scaling.factor", Value::F32(factor as f32)));
    };
    match &rope.scaling {
        // Up to the context length the dynamic variant is the plain one; the divisors are a tensor.
        RopeScaling::Default | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Divisors => {}
        RopeScaling::Linear { factor } => scaling("linear", *factor),
        RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate, .. } => {
            scaling("yarn", *factor);
            entries.push(("rope.scaling.original_context_length", Value::U32(*original_max_positions as u32)));
            entries.push(("rope.scaling.yarn_beta_fast", Value::F32(*beta_fast as f32)));
            entries.push(("rope.scaling.yarn_beta_slow", Value::F32(*beta_slow as f32)));
            // Readers multiply by this what follows from the factor.
            let implied = if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            let rest = f64::from(rope.attention_factor) / implied;
            if (rest - 1.0).abs() > 1e-6 {
                entries.push(("rope.scaling.attn_factor", Value::F32(rest as f32)));
            }
            if !truncate {
                findings.unsupported("rope.truncate", "false", "GGUF files imply true");
            }
        }
        RopeScaling::LongRope { .. } => {
            findings.unsupported("rope", "longrope", "export to a Hugging Face directory instead");
        }
    }
}
