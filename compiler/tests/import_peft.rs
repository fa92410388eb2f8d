//! PEFT adapters: settings, tensor names, and the match with a base model.

use serde_json::{Value, json};
use tinyforge_compiler::import::peft::{self, AdapterConfig, Side, TargetModules, parse_tensor_name, tensor_name};
use tinyforge_compiler::import::source::TensorRef;
use tinyforge_compiler::import::weight_map::bind_hf;
use tinyforge_compiler::import::{Catalog, WeightMap, hf};
use tinyforge_plan::DType;

/// Settings as PEFT writes them, with `change` merged in.
fn settings(change: Value) -> Value {
    let mut json = json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "base_model_name_or_path": "org/base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
        "loftq_config": {}, "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "peft_version": "0.18.0",
        "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": null,
        "target_modules": ["q_proj", "v_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
        "trainable_token_indices": null, "use_dora": false, "use_qalora": false, "use_rslora": false,
    });
    for (key, value) in change.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

fn parse(json: &Value) -> Result<AdapterConfig, String> {
    AdapterConfig::parse(json.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn settings_read_and_write() {
    let config = parse(&settings(json!({}))).unwrap();
    assert_eq!((config.rank, config.alpha, config.rank_stabilised, config.dropout), (8, 16.0, false, 0.05));
    let targets = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
    assert_eq!((&config.target_modules, config.fan_in_fan_out), (&targets, false));
    assert_eq!(config.base_model.as_deref(), Some("org/base"));
    for change in [
        json!({}),
        json!({ "use_rslora": true, "lora_alpha": 2.5, "target_modules": "all-linear", "fan_in_fan_out": true }),
        json!({ "rank_pattern": { "q_proj": 4 }, "alpha_pattern": { "^model.layers.0.self_attn.q_proj": 3.0 } }),
        json!({ "modules_to_save": ["lm_head"], "base_model_name_or_path": null }),
    ] {
        let config = parse(&settings(change)).unwrap();
        let written: Value = serde_json::from_str(&config.to_json()).unwrap();
        assert_eq!(written["lora_alpha"].is_i64(), config.alpha.fract() == 0.0);
        assert_eq!(parse(&written).unwrap(), config);
    }
}

#[test]
fn scales_follow_the_patterns() {
    let config = parse(&settings(json!({ "rank_pattern": { "q_proj": 4, "layers.1.mlp.up_proj": 2 },
                                         "alpha_pattern": { "^model.layers.0.self_attn.q_proj": 3.0 } })))
    .unwrap();
    assert_eq!(config.scale("model.layers.0.self_attn.v_proj"), 2.0);
    assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 0.75);
    assert_eq!(config.scale("model.layers.1.self_attn.q_proj"), 4.0);
    assert_eq!(config.scale("model.layers.1.mlp.up_proj"), 8.0);
    assert_eq!(config.scale("model.layers.11.mlp.up_proj"), 2.0);
    assert_eq!(config.scale("model.layers.1.self_attn.seq_proj"), 2.0, "a part of a name is not its end");
    let stabilised = parse(&settings(json!({ "use_rslora": true, "r": 16 }))).unwrap();
    assert_eq!(stabilised.scale("x"), 4.0);
}

#[test]
fn other_kinds_are_refused_by_name() {
    for (change, expected) in [
        (json!({ "peft_type": "PREFIX_TUNING" }), "`peft_type` = PREFIX_TUNING is not supported; only LORA is"),
        (json!({ "use_dora": true }), "`use_dora` = true is not supported"),
        (json!({ "bias": "all" }), "`bias` = all is not supported"),
        (json!({ "layer_replication": [[0, 4]] }), "`layer_replication` = a list of 1 is not supported"),
        (json!({ "r": 0 }), "`r` is 0, expected a positive integer"),
        (json!({ "r": null }), "`r` is missing"),
        (json!({ "lora_alpha": "16" }), "`lora_alpha` is \"16\", expected a number"),
        (json!({ "rank_pattern": { "q_proj": -1 } }), "`rank_pattern` is -1 at `q_proj`"),
        (json!({ "rank_pattern": { ".*q_proj": 1 } }), "only names of modules are"),
        (json!({ "target_modules": [1] }), "`target_modules` is something else"),
    ] {
        let error = parse(&settings(change)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tensor_names_read_and_write() {
    let name = tensor_name("model.layers.0.self_attn.q_proj", Side::A);
    assert_eq!(name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(parse_tensor_name(&name), Some(("model.layers.0.self_attn.q_proj", Side::A)));
    assert_eq!(parse_tensor_name("base_model.model.a.lora_B.default.weight"), Some(("a", Side::B)));
    assert_eq!(parse_tensor_name("a.b.lora_B.weight"), Some(("a.b", Side::B)));
    for other in ["base_model.model.lora_A.weight", "a.lora_A.bias", "a.lora_A.x.y.weight", "a.weight", "lora_B"] {
        assert_eq!(parse_tensor_name(other), None, "{other}");
    }
}

/// A catalog of f32 tensors without a file behind it.
fn catalog(tensors: &[(String, Vec<u64>)]) -> Catalog {
    let mut catalog = Catalog::new();
    let file = catalog.add_file("test");
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<u64>();
        let tensor = TensorRef { name: name.clone(), file, offset: 0, bytes, dtype: DType::F32, shape: shape.clone() };
        catalog.insert(tensor).unwrap();
    }
    catalog
}

fn base() -> WeightMap {
    let json = json!({ "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100 });
    let mut config = hf::config(json.to_string().as_bytes()).unwrap();
    let tensors: Vec<_> = config.params().into_iter().map(|param| (param.name, param.shape)).collect();
    bind_hf(&mut config, &catalog(&tensors)).unwrap()
}

#[test]
fn adapters_match_their_base() {
    let config = parse(&settings(json!({ "rank_pattern": { "v_proj": 4 } }))).unwrap();
    let q = "model.layers.1.self_attn.q_proj";
    let adapter = catalog(&[
        (tensor_name(q, Side::A), vec![8, 64]),
        (tensor_name(q, Side::B), vec![64, 8]),
        ("base_model.model.layers.0.self_attn.v_proj.lora_A.weight".into(), vec![4, 64]),
        ("base_model.model.layers.0.self_attn.v_proj.lora_B.weight".into(), vec![32, 4]),
        ("base_model.model.lm_head.weight".into(), vec![100, 64]),
    ]);
    let map = peft::bind(&config, &adapter, &base()).unwrap();
    let pairs: Vec<_> = map.pairs.iter().map(|pair| (pair.param.as_str(), pair.rank, pair.scale)).collect();
    assert_eq!(
        pairs,
        [("model.layers.0.self_attn.v_proj.weight", 4, 4.0), ("model.layers.1.self_attn.q_proj.weight", 8, 2.0)]
    );
    assert_eq!((map.pairs[1].a.shape.as_slice(), map.pairs[1].b.shape.as_slice()), (&[8, 64][..], &[64, 8][..]));
    assert_eq!(map.replaced[0].0, "lm_head.weight");
}

#[test]
fn everything_that_does_not_fit_is_listed() {
    let config = parse(&settings(json!({}))).unwrap();
    let adapter = catalog(&[
        (tensor_name("model.layers.0.self_attn.q_proj", Side::A), vec![8, 32]),
        (tensor_name("model.layers.0.self_attn.q_proj", Side::B), vec![64, 8]),
        (tensor_name("model.layers.0.self_attn.v_proj", Side::A), vec![8, 64]),
        (tensor_name("model.layers.7.self_attn.q_proj", Side::A), vec![8, 64]),
        (tensor_name("model.norm", Side::A), vec![8, 64]),
        (tensor_name("model.norm", Side::B), vec![64, 8]),
        ("base_model.model.lm_head.weight".into(), vec![101, 64]),
    ]);
    let error = peft::bind(&config, &adapter, &base()).unwrap_err().to_string();
    for part in [
        "q_proj.lora_A.weight` has the shape [8, 32], expected [8, 64]",
        "v_proj.weight` has only one of",
        "layers.7.self_attn.q_proj.lora_A.weight` belongs to no parameter",
        "`model.norm.weight` is not a matrix",
        "lm_head.weight` has the shape [101, 64]",
    ] {
        assert!(error.contains(part), "{part}\n{error}");
    }
    let empty = peft::bind(&config, &Catalog::new(), &base()).unwrap_err().to_string();
    assert!(empty.ends_with("it holds no tensor"));
}
