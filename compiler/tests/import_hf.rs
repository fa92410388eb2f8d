//! `config.json` in the spellings of transformers 4 and 5, its defaults, RoPE variants, and writing it again.

use serde_json::{Value, json};
use tinyforge_compiler::import::{Activation, DecoderConfig, Family, NormKind, Rope, RopeScaling, hf};
use tinyforge_plan::DType;

fn read(config: &Value) -> DecoderConfig {
    hf::config(config.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}\n{config}"))
}

/// A small configuration of a family that is like Llama, with `change` merged in; null removes a key.
fn with(family: &str, change: Value) -> Value {
    let mut config = json!({
        "model_type": family, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases: Value = serde_json::from_str(include_str!("fixtures/rope.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let name = &case["name"];
        let rope = read(&case["config"]).rope.unwrap();
        let expected: Vec<u32> =
            case["inv_freq_bits"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
        let ours: Vec<u32> = rope.inv_freq.iter().map(|x| x.to_bits()).collect();
        assert_eq!(ours, expected, "{name}");
        let theirs = case["attention_factor_bits"].as_u64().unwrap() as u32;
        assert!(rope.attention_factor.to_bits().abs_diff(theirs) <= 1, "{name}: {}", rope.attention_factor);
    }
}

#[test]
fn frequencies_know_how_far_they_hold() {
    let valid = |change| read(&with("llama", change)).rope.unwrap().max_positions_valid;
    assert_eq!(valid(json!({})), None);
    assert_eq!(valid(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })), None);
    assert_eq!(valid(json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } })), Some(256));
    let factors = vec![1.0; 8];
    let longrope = json!({ "rope_scaling": { "type": "longrope", "short_factor": factors, "long_factor": factors,
                                             "original_max_position_embeddings": 64 } });
    assert_eq!(valid(longrope), Some(64));
}

#[test]
fn absent_keys_take_the_defaults_of_the_family() {
    let minimal = |family: &str| {
        read(&json!({ "model_type": family, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2,
                      "num_attention_heads": 8, "vocab_size": 100 }))
    };
    let llama = minimal("llama");
    assert_eq!((llama.kv_heads, llama.head_dim, llama.max_positions, llama.norm_eps), (8, 32, 2048, 1e-6));
    assert_eq!((llama.tied, llama.qkv_bias, llama.bos, llama.eos), (false, false, Some(1), vec![2]));
    assert_eq!(llama.rope.unwrap().theta, 10_000.0);
    let mistral = minimal("mistral");
    assert_eq!((mistral.kv_heads, mistral.max_positions), (8, 131_072));
    assert_eq!(mistral.sliding_window.map(|window| (window.size, window.layers)), Some((4096, vec![true, true])));
    let qwen2 = minimal("qwen2");
    assert_eq!((qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm, qwen2.bos), (true, false, false, None));
    assert_eq!((qwen2.sliding_window, qwen2.eos), (None, vec![]));
    let qwen3 = minimal("qwen3");
    assert_eq!((qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim), (false, false, true, 128));
}

#[test]
fn gpt2_has_its_own_names() {
    let config = read(&json!({ "model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32,
                               "vocab_size": 50, "n_inner": null }));
    assert_eq!((config.family, config.norm, config.gated), (Family::Gpt2, NormKind::LayerNorm, false));
    assert_eq!((config.hidden, config.ff, config.head_dim, config.learned_positions), (48, 192, 12, Some(32)));
    assert_eq!((config.activation, config.tied, config.norm_eps), (Activation::GeluTanh, true, 1e-5));
    assert_eq!((config.qkv_bias, config.o_bias, config.mlp_bias, config.rope), (true, true, true, None));
}

#[test]
fn both_spellings_of_rope_say_the_same() {
    let scaling = json!({ "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192 });
    let mut old = scaling.clone();
    old["type"] = json!("llama3");
    let mut new = scaling;
    new["rope_type"] = json!("llama3");
    new["rope_theta"] = json!(500_000.0);
    let old = read(&with("llama", json!({ "rope_theta": 500_000.0, "rope_scaling": old })));
    let flat = read(&with("llama", json!({ "rope_theta": null, "rope_parameters": new })));
    let nested = json!({ "rope_theta": null, "rope_parameters": { "full_attention": new, "sliding_attention": new } });
    assert_eq!(old, flat);
    assert_eq!(flat, read(&with("llama", nested)));
}

#[test]
fn sliding_windows_name_their_layers() {
    let window = |family: &str, change: Value| {
        read(&with(family, change)).sliding_window.map(|window| (window.size, window.layers))
    };
    assert_eq!(window("mistral", json!({ "sliding_window": null })), None);
    assert_eq!(window("mistral", json!({ "sliding_window": 16 })), Some((16, vec![true; 3])));
    assert_eq!(window("qwen2", json!({ "sliding_window": 16 })), None);
    let some = json!({ "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 1 });
    assert_eq!(window("qwen2", some), Some((16, vec![false, true, true])));
    let types = json!({ "sliding_window": 16, "use_sliding_window": true,
                        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] });
    assert_eq!(window("qwen3", types), Some((16, vec![true, false, true])));
    let none = json!({ "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 28 });
    assert_eq!(window("qwen3", none), None);
}

#[test]
fn ends_of_text_may_be_several() {
    let eos = |value: Value| read(&with("llama", json!({ "eos_token_id": value }))).eos;
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(eos(json!([7, 9])), [7, 9]);
    assert!(eos(Value::Null).is_empty());
    let mut config = read(&with("llama", json!({ "eos_token_id": 7 })));
    hf::apply_generation_config(&mut config, br#"{ "eos_token_id": [7, 8], "temperature": 0.6 }"#).unwrap();
    assert_eq!((config.eos, config.bos), (vec![7, 8], Some(1)));
}

#[test]
fn what_is_written_reads_back_the_same() {
    let short: Vec<f64> = (0..8).map(|i| 1.0 + f64::from(i) * 0.1).collect();
    let configs = [
        with("llama", json!({ "attention_bias": true, "mlp_bias": true, "eos_token_id": [3, 4] })),
        with("llama", json!({ "rope_scaling": { "type": "linear", "factor": 2.5 }, "head_dim": 32 })),
        with("llama", json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 }, "tie_word_embeddings": true })),
        with(
            "llama",
            json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 128 } }),
        ),
        with(
            "llama",
            json!({ "rope_scaling": { "rope_type": "longrope", "short_factor": short,
                              "long_factor": short, "original_max_position_embeddings": 128 } }),
        ),
        with("mistral", json!({ "sliding_window": 32 })),
        with("mistral", json!({ "sliding_window": null, "rms_norm_eps": 1e-6 })),
        with(
            "qwen2",
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "mscale": 0.7,
                              "original_max_position_embeddings": 64 }, "bos_token_id": 1 }),
        ),
        with("qwen2", json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2 })),
        with("qwen3", json!({ "head_dim": 24, "attention_bias": true, "eos_token_id": null })),
        json!({ "model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 50,
                "n_inner": 100, "activation_function": "gelu", "layer_norm_epsilon": 1e-6 }),
    ];
    for json in configs {
        let config = read(&json);
        let written = hf::config_json(&config, DType::BF16).unwrap();
        assert_eq!(hf::config(written.as_bytes()).unwrap(), config, "{written}");
    }
}

#[test]
fn divisors_of_llama3_are_recognised() {
    let scaling =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    let plain = Rope::new(500_000.0, 64, RopeScaling::Default, 131_072).unwrap();
    let scaled = Rope::new(500_000.0, 64, scaling.clone(), 131_072).unwrap();
    let factors: Vec<f32> = plain.inv_freq.iter().zip(&scaled.inv_freq).map(|(p, s)| p / s).collect();
    let divided = plain.clone().divide(&factors).unwrap();
    assert_eq!(divided.scaling, scaling);
    for (ours, rule) in divided.inv_freq.iter().zip(&scaled.inv_freq) {
        assert!((ours - rule).abs() <= 2e-7 * rule, "{ours} {rule}");
    }
    let odd = plain.clone().divide(&[2.0; 32]).unwrap();
    assert_eq!(odd.scaling, RopeScaling::Divisors);
    assert_eq!(odd.inv_freq[0], 0.5);
    let mut config = read(&with("llama", json!({ "head_dim": 64 })));
    config.rope = Some(odd);
    assert!(hf::config_json(&config, DType::F32).unwrap_err().to_string().contains("export to GGUF"));
    assert_eq!(plain.clone().divide(&[1.0; 31]), None);
    assert_eq!(plain.divide(&[0.0; 32]), None);
}

#[test]
fn what_the_file_cannot_say_is_an_error() {
    let mut config = read(&with("mistral", json!({ "sliding_window": null })));
    config.qkv_bias = true;
    let error = hf::config_json(&config, DType::F32).unwrap_err().to_string();
    assert!(error.contains("`qkv_bias`") && error.contains("of type mistral"), "{error}");
}

#[test]
fn dtypes_are_read_in_both_spellings() {
    let declared = |json: Value| hf::declared_dtype(json.to_string().as_bytes()).unwrap();
    assert_eq!(declared(json!({ "torch_dtype": "bfloat16" })), Some(DType::BF16));
    assert_eq!(declared(json!({ "dtype": "float16", "torch_dtype": "float32" })), Some(DType::F16));
    assert_eq!(declared(json!({ "dtype": "torch.float32" })), Some(DType::F32));
    assert_eq!(declared(json!({ "dtype": "auto" })), None);
    assert_eq!(declared(json!({})), None);
}
