//! Hugging Face `config.json`: reads the spellings of `transformers` 4 and 5, writes the one that both read.
//!
//! Defaults for absent keys are those of the family's configuration class in `transformers`. Not for weights; see
//! [`super::weight_map::bind_hf`].

use serde_json::{Map, Value, json};

use super::config_error::{ConfigError, Findings};
use super::decoder_config::{Activation, DecoderConfig, Family, HEADS_MAX, LAYERS_MAX, NormKind, SlidingWindow};
use super::rope::{Rope, RopeScaling};

/// Longest `config.json` that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 16 << 20;

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

/// Parses a JSON object within [`CONFIG_BYTES_MAX`].
pub(crate) fn json_object(bytes: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    if bytes.len() > CONFIG_BYTES_MAX {
        let detail = format!("it has {} bytes, the limit is {CONFIG_BYTES_MAX}", bytes.len());
        return Err(ConfigError::Json { detail });
    }
    serde_json::from_slice(bytes).map_err(|error| ConfigError::Json { detail: error.to_string() })
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
        activation: object.activation("hidden_act", Activation::Silu),
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
        activation: object.activation("activation_function", Activation::GeluTanh),
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

/// A JSON object whose faults are collected; accessors return a stand-in after noting one.
pub(crate) struct Object<'a> {
    pub(crate) map: &'a Map<String, Value>,
    /// Put before keys in findings.
    pub(crate) prefix: String,
    pub(crate) findings: Findings,
}

impl<'a> Object<'a> {
    /// Whether the key is there, null or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The value, unless absent or null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&mut self, key: &str, found: impl std::fmt::Display, need: impl std::fmt::Display) {
        self.findings.wrong(&format!("{}{key}", self.prefix), found, need);
    }

    pub(crate) fn unsupported(&mut self, key: &str, found: impl std::fmt::Display, help: impl std::fmt::Display) {
        self.findings.unsupported(&format!("{}{key}", self.prefix), found, help);
    }

    /// Notes that a key which must be absent or null is there.
    pub(crate) fn refuse(&mut self, key: &str, help: &str) {
        if let Some(value) = self.value(key) {
            self.unsupported(key, describe(value), help);
        }
    }

    fn read<T>(&mut self, key: &str, need: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(key)?;
        let read = read(value);
        if read.is_none() {
            self.wrong(key, describe(value), need);
        }
        read
    }

    fn required<T: Default>(&mut self, key: &str, read: impl Fn(&mut Self) -> Option<T>) -> T {
        if self.value(key).is_none() {
            self.findings.missing(&format!("{}{key}", self.prefix));
            return T::default();
        }
        read(self).unwrap_or_default()
    }

    fn dim_maybe(&mut self, key: &str) -> Option<usize> {
        let read = |value: &Value| value.as_u64().filter(|&x| x > 0 && x < 1 << 31).map(|x| x as usize);
        self.read(key, "a positive integer below 2147483648", read)
    }

    /// A required extent.
    pub(crate) fn dim(&mut self, key: &str) -> usize {
        self.required(key, |object| object.dim_maybe(key))
    }

    pub(crate) fn dim_or(&mut self, key: &str, default: usize) -> usize {
        if self.value(key).is_none() { default } else { self.dim(key) }
    }

    /// An integer that may be zero.
    fn index_or(&mut self, key: &str, default: usize) -> usize {
        let read = |value: &Value| value.as_u64().filter(|&x| x < 1 << 31).map(|x| x as usize);
        self.read(key, "an integer from 0 to 2147483647", read).unwrap_or(default)
    }

    pub(crate) fn f64_maybe(&mut self, key: &str) -> Option<f64> {
        self.read(key, "a number", Value::as_f64)
    }

    fn f64_nonzero(&mut self, key: &str) -> Option<f64> {
        self.f64_maybe(key).filter(|&x| x != 0.0)
    }

    pub(crate) fn f64(&mut self, key: &str) -> f64 {
        self.required(key, |object| object.f64_maybe(key))
    }

    pub(crate) fn f64_or(&mut self, key: &str, default: f64) -> f64 {
        self.f64_maybe(key).unwrap_or(default)
    }

    fn f64s(&mut self, key: &str) -> Vec<f64> {
        self.required(key, |object| {
            object.read(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
        })
    }

    pub(crate) fn bool_or(&mut self, key: &str, default: bool) -> bool {
        self.read(key, "true or false", Value::as_bool).unwrap_or(default)
    }

    pub(crate) fn str(&mut self, key: &str) -> Option<String> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn activation(&mut self, key: &str, default: Activation) -> Activation {
        match self.str(key).as_deref() {
            None => default,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => {
                self.unsupported(key, format!("{other:.60}"), "supported: silu, gelu, gelu_new, gelu_pytorch_tanh");
                default
            }
        }
    }

    fn token(&mut self, key: &str) -> Option<u32> {
        self.read(key, "a token id", |value| value.as_u64()?.try_into().ok())
    }

    fn token_or(&mut self, key: &str, default: Option<u32>) -> Option<u32> {
        if self.has(key) { self.token(key) } else { default }
    }

    /// One id or a list of them.
    fn tokens(&mut self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64()?.try_into().ok();
        let read = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        self.read(key, "a token id or a list of them", read).unwrap_or_default()
    }

    fn tokens_or(&mut self, key: &str, default: Option<u32>) -> Vec<u32> {
        if self.has(key) { self.tokens(key) } else { default.into_iter().collect() }
    }
}

/// A JSON value in words, short enough for a message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}

/// The `config.json` of a model, readable by `transformers` 4 and 5.
///
/// `dtype`: name of the weights' dtype there, for example `bfloat16`. Errors when the model has something that the
/// file cannot say: RoPE divisors without a rule.
pub fn config_json(config: &DecoderConfig, dtype: &str) -> Result<String, ConfigError> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("architectures", json!([config.family.architecture()]));
    put("model_type", json!(config.family.name()));
    put("torch_dtype", json!(dtype));
    put("vocab_size", json!(config.vocab));
    put("tie_word_embeddings", json!(config.tied));
    put("bos_token_id", json!(config.bos));
    put("eos_token_id", if let [one] = config.eos[..] { json!(one) } else { json_ids(&config.eos) });
    if config.family == Family::Gpt2 {
        put_gpt2(config, &mut map)
    } else {
        put_llama_like(config, &mut map)?
    }
    Ok(format!("{:#}\n", Value::Object(map)))
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
