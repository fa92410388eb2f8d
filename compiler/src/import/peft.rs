//! LoRA adapters in the form of the PEFT library: `adapter_config.json` and the names of the tensors.
//!
//! An adapter adds `scale * B (A x)` to a linear layer; `A` is `[rank, in]`, `B` is `[out, rank]`, also for GPT-2,
//! whose weights are stored transposed. Not for training adapters; see the passes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use thiserror::Error;

use super::config_error::ConfigError;
use super::json::{Object, describe, json_object};
use super::source::{Catalog, TensorRef};
use super::weight_map::{Binding, WeightMap};

/// LoRA settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(rank)` rather than `alpha / rank`.
    pub rank_stabilised: bool,
    /// Which modules are adapted.
    pub target_modules: TargetModules,
    /// Ranks of modules that differ, by the end of the module's name.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of modules that differ, by the end of the module's name.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Whether the base stores its weights as `[in, out]` (GPT-2).
    pub fan_in_fan_out: bool,
    /// Dropout before A, used in training only.
    pub dropout: f64,
    /// The base model's name, if known.
    pub base_model: Option<String>,
    /// Last parts of the names of the modules that are stored whole, for example `lm_head`.
    pub modules_to_save: Vec<String>,
}

/// Which modules of the base an adapter is for. The tensors of the adapter decide; this is for those who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Last parts of the modules' names, for example `q_proj`.
    Names(Vec<String>),
    /// A regular expression over whole names, or `all-linear`.
    Pattern(String),
}

/// Which matrix of an adapter a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// `[rank, in]`.
    A,
    /// `[out, rank]`.
    B,
}

impl AdapterConfig {
    /// Reads an `adapter_config.json`. All faults are in one error; kinds other than plain LoRA are refused.
    pub fn parse(bytes: &[u8]) -> Result<AdapterConfig, ConfigError> {
        let map = json_object(bytes)?;
        let mut object = Object { map: &map, prefix: String::new(), findings: Default::default() };
        let kind = object.str("peft_type");
        if kind.as_deref() != Some("LORA") {
            object.unsupported("peft_type", format!("{:.60}", kind.unwrap_or("(none)".into())), "only LORA is");
        }
        refuse_variants(&mut object);
        let target_modules = match object.value("target_modules") {
            Some(Value::String(pattern)) => TargetModules::Pattern(pattern.clone()),
            _ => TargetModules::Names(names(&mut object, "target_modules")),
        };
        let rank_pattern = pattern(&mut object, "rank_pattern", |value| {
            value.as_u64().filter(|&rank| rank > 0 && rank < 1 << 31).map(|rank| rank as usize)
        });
        let config = AdapterConfig {
            rank: object.dim("r"),
            alpha: object.f64("lora_alpha"),
            rank_stabilised: object.bool_or("use_rslora", false),
            target_modules,
            rank_pattern,
            alpha_pattern: pattern(&mut object, "alpha_pattern", Value::as_f64),
            fan_in_fan_out: object.bool_or("fan_in_fan_out", false),
            dropout: object.f64_or("lora_dropout", 0.0),
            base_model: object.str("base_model_name_or_path"),
            modules_to_save: names(&mut object, "modules_to_save"),
        };
        object.findings.finish()?;
        Ok(config)
    }

    /// The `adapter_config.json`.
    pub fn to_json(&self) -> String {
        let json = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": whole_or_float(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilised,
            "target_modules": match &self.target_modules {
                TargetModules::Names(names) => json!(names),
                TargetModules::Pattern(pattern) => json!(pattern),
            },
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern.iter().map(|(k, v)| (k.clone(), whole_or_float(*v)))
                .collect::<serde_json::Map<_, _>>(),
            "fan_in_fan_out": self.fan_in_fan_out,
            "bias": "none",
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
        });
        format!("{json:#}\n")
    }

    /// The factor of `B A x` for a module, for example `model.layers.0.self_attn.q_proj`.
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank_of(module) as f64;
        let alpha = find(&self.alpha_pattern, module).copied().unwrap_or(self.alpha);
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// The rank of a module's adapter.
    pub fn rank_of(&self, module: &str) -> usize {
        find(&self.rank_pattern, module).copied().unwrap_or(self.rank)
    }
}

/// The entry whose key is the module or its last parts.
fn find<'a, T>(pattern: &'a BTreeMap<String, T>, module: &str) -> Option<&'a T> {
    let matches = |key: &str| match key.strip_prefix('^') {
        Some(whole) => whole == module,
        None => module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    pattern.iter().find(|(key, _)| matches(key)).map(|(_, value)| value)
}

/// Notes everything that would change the arithmetic and is not supported.
fn refuse_variants(object: &mut Object) {
    for key in ["use_dora", "lora_bias", "use_qalora"] {
        if object.bool_or(key, false) {
            object.unsupported(key, true, "only plain LoRA is");
        }
    }
    let null_or_empty = [
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "velora_config",
        "monteclora_config",
        "alora_invocation_tokens",
        "megatron_config",
    ];
    for key in null_or_empty {
        if let Some(value) = object.value(key)
            && !is_empty(value)
        {
            object.unsupported(key, describe(value), "only plain LoRA is");
        }
    }
    let bias = object.str("bias");
    if let Some(bias) = bias.filter(|bias| bias != "none") {
        object.unsupported("bias", format!("{bias:.60}"), "only none is");
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(is_on) => !is_on,
        _ => false,
    }
}

/// A list of strings, or nothing.
fn names(object: &mut Object, key: &str) -> Vec<String> {
    let names: Option<Vec<String>> = match object.value(key) {
        None => Some(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    names.unwrap_or_else(|| {
        object.wrong(key, "something else", "a list of strings");
        Vec::new()
    })
}

fn pattern<T>(object: &mut Object, key: &str, read: impl Fn(&Value) -> Option<T>) -> BTreeMap<String, T> {
    let mut pattern = BTreeMap::new();
    match object.value(key) {
        None => {}
        Some(Value::Object(entries)) => {
            for (name, value) in entries {
                let is_plain = !name.contains(['*', '+', '?', '[', '(', '|', '\\', '$']);
                match read(value) {
                    _ if !is_plain => object.unsupported(key, format!("{name:.60}"), "only names of modules are"),
                    Some(value) => {
                        pattern.insert(name.clone(), value);
                    }
                    None => object.wrong(key, format!("{} at `{name:.60}`", describe(value)), "a positive number"),
                }
            }
        }
        Some(other) => object.wrong(key, describe(other), "an object"),
    }
    pattern
}

/// An integer where it is one: PEFT declares alpha as an integer.
fn whole_or_float(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Name of an adapter's tensor in `adapter_model.safetensors`.
///
/// `module`: the base's module, for example `model.layers.0.self_attn.q_proj`.
pub fn tensor_name(module: &str, side: Side) -> String {
    let side = match side {
        Side::A => "lora_A",
        Side::B => "lora_B",
    };
    format!("base_model.model.{module}.{side}.weight")
}

/// Module and side of an adapter's tensor; `None` for any other name. An adapter's own name between side and
/// `weight`, as in files saved without PEFT's clean-up, is accepted.
pub fn parse_tensor_name(name: &str) -> Option<(&str, Side)> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name).strip_suffix(".weight")?;
    for (infix, side) in [("lora_A", Side::A), ("lora_B", Side::B)] {
        if let Some((module, adapter)) = name.rsplit_once(infix) {
            let module = module.strip_suffix('.').filter(|module| !module.is_empty())?;
            let is_clean = adapter.is_empty() || (adapter.starts_with('.') && !adapter[1..].contains('.'));
            return is_clean.then_some((module, side));
        }
    }
    None
}

/// The tensors of an adapter, matched with the parameters of its base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterMap {
    /// Low-rank updates, in the order of the base's parameters.
    pub pairs: Vec<Pair>,
    /// Parameters that the adapter replaces: canonical name and tensor.
    pub replaced: Vec<(String, TensorRef)>,
}

/// One low-rank update: `W + scale * B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Canonical name of the parameter, for example `model.layers.3.self_attn.q_proj.weight`. Where the base's binding
    /// is in interleaved row order, the rows of `b` are in plain order and must be brought into the base's.
    pub param: String,
    /// `[rank, in]`.
    pub a: TensorRef,
    /// `[out, rank]`.
    pub b: TensorRef,
    /// Rank.
    pub rank: usize,
    /// Factor of `B A`.
    pub scale: f64,
}

/// What does not fit between an adapter and its base; everything is listed at once.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the adapter does not fit the model:{}", .0.iter().map(|line| format!("\n  {line}")).collect::<String>())]
pub struct AdapterError(pub Vec<String>);

/// Matches the tensors of an adapter with the parameters of its base model.
///
/// Errors with every tensor that belongs to no parameter, has the wrong shape, or lacks its other half.
pub fn bind(config: &AdapterConfig, adapter: &Catalog, base: &WeightMap) -> Result<AdapterMap, AdapterError> {
    let mut faults = Vec::new();
    let mut halves: BTreeMap<&str, [Option<&TensorRef>; 2]> = BTreeMap::new();
    let mut map = AdapterMap::default();
    for tensor in adapter.iter() {
        let whole = tensor.name.strip_prefix("base_model.model.").unwrap_or(&tensor.name);
        if let Some((module, side)) = parse_tensor_name(&tensor.name)
            && let Some(binding) = find_param(base, &format!("{module}.weight"))
        {
            halves.entry(&binding.name).or_default()[side as usize] = Some(tensor);
        } else if let Some(binding) = find_param(base, whole) {
            match tensor.shape == binding.shape || (binding.transpose && reversed(&tensor.shape) == binding.shape) {
                true => map.replaced.push((binding.name.clone(), tensor.clone())),
                false => faults.push(format!("`{}` has the shape {:?}", tensor.name, tensor.shape)),
            }
        } else {
            faults.push(format!("`{}` belongs to no parameter of the model", tensor.name));
        }
    }
    for binding in base.iter() {
        match halves.get(binding.name.as_str()) {
            None => {}
            Some([Some(a), Some(b)]) => match pair(config, binding, a, b) {
                Ok(pair) => map.pairs.push(pair),
                Err(fault) => faults.push(fault),
            },
            Some(_) => faults.push(format!("`{}` has only one of lora_A and lora_B", binding.name)),
        }
    }
    if map.pairs.is_empty() && map.replaced.is_empty() && faults.is_empty() {
        faults.push("it holds no tensor".into());
    }
    if faults.is_empty() { Ok(map) } else { Err(AdapterError(faults)) }
}

/// The parameter of this name, which may lack its leading `model.` or `transformer.`.
fn find_param<'a>(base: &'a WeightMap, name: &str) -> Option<&'a Binding> {
    let prefixed = |prefix: &str| base.get(&format!("{prefix}{name}"));
    base.get(name).or_else(|| prefixed("model.")).or_else(|| prefixed("transformer."))
}

fn reversed(shape: &[u64]) -> Vec<u64> {
    shape.iter().rev().copied().collect()
}

fn pair(config: &AdapterConfig, binding: &Binding, a: &TensorRef, b: &TensorRef) -> Result<Pair, String> {
    let module = binding.name.strip_suffix(".weight").unwrap_or(&binding.name);
    let rank = config.rank_of(module);
    let [out, inner] = binding.shape[..] else {
        return Err(format!("`{}` is not a matrix", binding.name));
    };
    for (tensor, expected) in [(a, [rank as u64, inner]), (b, [out, rank as u64])] {
        if tensor.shape != expected {
            return Err(format!("`{}` has the shape {:?}, expected {expected:?}", tensor.name, tensor.shape));
        }
        if !tensor.dtype.is_float() {
            return Err(format!("`{}` is stored as {}, expected floats", tensor.name, tensor.dtype.name()));
        }
    }
    let (param, scale) = (binding.name.clone(), config.scale(module));
    Ok(Pair { param, a: a.clone(), b: b.clone(), rank, scale })
}
