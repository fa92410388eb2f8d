//! Binding parameters to tensors, in checkpoints of both kinds that the tests make themselves.

use serde_json::{Value as Json, json};
use tinyforge_compiler::import::gguf::{self, Gguf, Value};
use tinyforge_compiler::import::source::{NewTensor, TensorRef};
use tinyforge_compiler::import::weight_map::{bind_gguf, bind_hf, interleaved_row_sources, plain_row_sources};
use tinyforge_compiler::import::{
    Activation, Catalog, ConfigError, DecoderConfig, RopeScaling, RowOrder, SlidingWindow, gguf_decoder, gguf_export,
    hf,
};
use tinyforge_plan::DType;

fn llama(family: &str) -> Json {
    json!({ "model_type": family, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
            "max_position_embeddings": 256 })
}

fn gpt2() -> Json {
    json!({ "model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 50 })
}

fn config(json: &Json) -> DecoderConfig {
    hf::config(json.to_string().as_bytes()).unwrap()
}

/// A catalog of f32 tensors without a file behind it.
fn catalog(tensors: &[(&str, &[u64])]) -> Catalog {
    let mut catalog = Catalog::new();
    let file = catalog.add_file("test");
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<u64>();
        let tensor =
            TensorRef { name: (*name).into(), file, offset: 0, bytes, dtype: DType::F32, shape: shape.to_vec() };
        catalog.insert(tensor).unwrap();
    }
    catalog
}

const LLAMA_BLOCK: [(&str, &[u64]); 9] = [
    ("input_layernorm.weight", &[64]),
    ("self_attn.q_proj.weight", &[64, 64]),
    ("self_attn.k_proj.weight", &[32, 64]),
    ("self_attn.v_proj.weight", &[32, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("post_attention_layernorm.weight", &[64]),
    ("mlp.gate_proj.weight", &[96, 64]),
    ("mlp.up_proj.weight", &[96, 64]),
    ("mlp.down_proj.weight", &[64, 96]),
];

/// Tensors of the small Llama with `prefix` before the names of the body, without `lm_head.weight`.
fn llama_tensors(prefix: &str) -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![(format!("{prefix}embed_tokens.weight"), vec![100, 64])];
    for layer in 0..2 {
        for (name, shape) in LLAMA_BLOCK {
            tensors.push((format!("{prefix}layers.{layer}.{name}"), shape.to_vec()));
        }
    }
    tensors.push((format!("{prefix}norm.weight"), vec![64]));
    tensors
}

fn borrowed(tensors: &[(String, Vec<u64>)]) -> Catalog {
    catalog(&tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect::<Vec<_>>())
}

#[test]
fn llama_parameters_are_asked_for_in_forward_order() {
    let params = config(&llama("llama")).params();
    let names: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
    let mut expected: Vec<String> = llama_tensors("model.").into_iter().map(|tensor| tensor.0).collect();
    expected.push("lm_head.weight".into());
    assert_eq!(names, expected);
    assert_eq!(params.iter().map(|param| param.block).collect::<Vec<_>>()[8..12], [Some(0), Some(0), Some(1), Some(1)]);
}

#[test]
fn a_body_may_lack_its_prefix_and_a_head() {
    for prefix in ["model.", ""] {
        let mut tensors = llama_tensors(prefix);
        let mut tied = config(&llama("llama"));
        let map = bind_hf(&mut tied, &borrowed(&tensors)).unwrap();
        assert!(tied.tied && map.get("lm_head.weight").is_none());
        let q = map.get("model.layers.1.self_attn.q_proj.weight").unwrap();
        assert_eq!(q.tensor.name, format!("{prefix}layers.1.self_attn.q_proj.weight"));
        assert_eq!((q.transpose, q.rows, q.block), (false, RowOrder::Plain, Some(1)));

        tensors.push(("lm_head.weight".into(), vec![100, 64]));
        let mut untied = config(&llama("llama"));
        let map = bind_hf(&mut untied, &borrowed(&tensors)).unwrap();
        assert!(!untied.tied && map.get("lm_head.weight").is_some());
    }
}

#[test]
fn a_tied_embedding_may_go_by_the_name_of_the_head() {
    let mut tensors = llama_tensors("model.");
    tensors[0].0 = "lm_head.weight".into();
    let mut json = llama("llama");
    json["tie_word_embeddings"] = json!(true);
    let mut config = config(&json);
    let map = bind_hf(&mut config, &borrowed(&tensors)).unwrap();
    assert_eq!(map.get("model.embed_tokens.weight").unwrap().tensor.name, "lm_head.weight");
}

#[test]
fn everything_that_does_not_fit_is_listed() {
    let mut tensors = llama_tensors("model.");
    tensors.retain(|tensor| tensor.0 != "model.layers.0.mlp.up_proj.weight" && tensor.0 != "model.norm.weight");
    tensors[2].1 = vec![64, 32];
    tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![64]));
    let mut catalog = borrowed(&tensors);
    catalog.note_unsupported("model.norm.weight", "F8_E4M3");
    let error = bind_hf(&mut config(&llama("llama")), &catalog).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the files do not hold the model that its configuration describes:\
         \n  `model.layers.0.mlp.up_proj.weight` is missing\
         \n  `model.layers.0.self_attn.q_proj.weight` has the shape [64, 32], expected [64, 64]\
         \n  `model.norm.weight` is stored as F8_E4M3, which is not supported"
    );
    let empty = bind_hf(&mut config(&llama("llama")), &Catalog::new()).unwrap_err();
    assert_eq!(empty.missing.len(), 20);
    let mut many = config(&llama("llama"));
    many.layers = 1000;
    let message = bind_hf(&mut many, &Catalog::new()).unwrap_err().to_string();
    assert!(message.ends_with("and 8982 more") && message.len() < 2000, "{message}");
}

#[test]
fn leftover_tensors_are_named() {
    let mut tensors = llama_tensors("model.");
    for name in ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        tensors.push((name.into(), vec![64]));
    }
    let map = bind_hf(&mut config(&llama("llama")), &borrowed(&tensors)).unwrap();
    assert_eq!(map.unused(), ["model.layers.0.self_attn.q_proj.bias"]);
}

#[test]
fn qwen_has_biases_or_normalised_heads() {
    let names = |family: &str| {
        let params = config(&llama(family)).params();
        params
            .into_iter()
            .filter(|param| param.block == Some(1))
            .map(|param| (param.name, param.shape))
            .collect::<Vec<_>>()
    };
    let qwen2 = names("qwen2");
    assert_eq!(qwen2.len(), 12);
    assert_eq!(qwen2[4], ("model.layers.1.self_attn.k_proj.bias".into(), vec![32]));
    let qwen3 = names("qwen3");
    assert_eq!(qwen3.len(), 11);
    assert_eq!(qwen3[5], ("model.layers.1.self_attn.q_norm.weight".into(), vec![16]));
}

const GPT2_BLOCK: [(&str, &str, &[u64]); 12] = [
    ("ln_1.weight", "attn_norm.weight", &[48]),
    ("ln_1.bias", "attn_norm.bias", &[48]),
    ("attn.c_attn.weight", "attn_qkv.weight", &[48, 144]),
    ("attn.c_attn.bias", "attn_qkv.bias", &[144]),
    ("attn.c_proj.weight", "attn_output.weight", &[48, 48]),
    ("attn.c_proj.bias", "attn_output.bias", &[48]),
    ("ln_2.weight", "ffn_norm.weight", &[48]),
    ("ln_2.bias", "ffn_norm.bias", &[48]),
    ("mlp.c_fc.weight", "ffn_up.weight", &[48, 192]),
    ("mlp.c_fc.bias", "ffn_up.bias", &[192]),
    ("mlp.c_proj.weight", "ffn_down.weight", &[192, 48]),
    ("mlp.c_proj.bias", "ffn_down.bias", &[48]),
];

#[test]
fn gpt2_products_are_transposed_in_checkpoints() {
    for prefix in ["transformer.", ""] {
        let mut tensors = vec![
            (format!("{prefix}wte.weight"), vec![50, 48]),
            (format!("{prefix}wpe.weight"), vec![32, 48]),
            (format!("{prefix}ln_f.weight"), vec![48]),
            (format!("{prefix}ln_f.bias"), vec![48]),
            (format!("{prefix}h.0.attn.bias"), vec![1, 1, 32, 32]),
        ];
        for (layer, (name, _, shape)) in (0..2).flat_map(|layer| GPT2_BLOCK.map(|row| (layer, row))) {
            tensors.push((format!("{prefix}h.{layer}.{name}"), shape.to_vec()));
        }
        let mut config = config(&gpt2());
        let map = bind_hf(&mut config, &borrowed(&tensors)).unwrap();
        assert_eq!((map.len(), map.unused().len(), config.tied), (4 + 24, 0, true));
        let qkv = map.get("transformer.h.1.attn.c_attn.weight").unwrap();
        assert_eq!((qkv.transpose, qkv.shape.as_slice()), (true, &[144, 48][..]));
        assert!(!map.get("transformer.wte.weight").unwrap().transpose);
        assert!(!map.get("transformer.h.1.attn.c_attn.bias").unwrap().transpose);
    }
}

/// The metadata of a small GGUF model.
fn metadata(architecture: &str, change: &[(&str, Value)]) -> Vec<(String, Value)> {
    let mut metadata = vec![("general.architecture".to_owned(), Value::String(architecture.into()))];
    let numbers = [
        ("embedding_length", 64),
        ("block_count", 2),
        ("context_length", 256),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    metadata.extend(numbers.map(|(key, value)| (format!("{architecture}.{key}"), Value::U32(value))));
    for norm in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
        metadata.push((format!("{architecture}.{norm}"), Value::F32(1e-5)));
    }
    for (key, value) in change {
        let key = format!("{architecture}.{key}");
        metadata.retain(|(other, _)| *other != key);
        metadata.push((key, value.clone()));
    }
    metadata
}

fn gguf_model(metadata: &[(String, Value)], tensors: &[(String, Vec<u64>)]) -> (Gguf, Catalog) {
    let tensors: Vec<NewTensor> =
        tensors.iter().map(|(name, shape)| NewTensor::new(name.as_str(), DType::F32, shape)).collect();
    let layout = gguf::layout(metadata, &tensors).unwrap();
    let gguf = gguf::parse(&layout.header, layout.file_bytes).unwrap();
    let catalog = gguf::catalog(&[("m.gguf", &gguf)]).unwrap();
    (gguf, catalog)
}

const GGUF_BLOCK: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

fn gguf_llama_tensors(extra: &[(&str, &[u64])]) -> Vec<(String, Vec<u64>)> {
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![100, 64]), ("output_norm.weight".to_owned(), vec![64])];
    for layer in 0..2 {
        for (name, (_, shape)) in GGUF_BLOCK.iter().zip(LLAMA_BLOCK) {
            tensors.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
        }
        for (name, shape) in extra.iter().filter(|(name, _)| name.starts_with("attn")) {
            tensors.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        }
    }
    for (name, shape) in extra.iter().filter(|(name, _)| !name.starts_with("attn")) {
        tensors.push(((*name).to_owned(), shape.to_vec()));
    }
    tensors
}

#[test]
fn gguf_families_match_their_checkpoints() {
    type Shapes = &'static [(&'static str, &'static [u64])];
    let cases: [(&str, Shapes, bool); 3] = [
        ("llama", &[("output.weight", &[100, 64])], true),
        ("qwen2", &[("attn_q.bias", &[64]), ("attn_k.bias", &[32]), ("attn_v.bias", &[32])], false),
        ("qwen3", &[("attn_q_norm.weight", &[16]), ("attn_k_norm.weight", &[16])], false),
    ];
    for (family, extra, is_interleaved) in cases {
        let (gguf, catalog) = gguf_model(&metadata(family, &[]), &gguf_llama_tensors(extra));
        let ours = gguf_decoder::config(&gguf, &catalog, None).unwrap();
        let mut theirs = config(&llama(family));
        theirs.rope.as_mut().unwrap().interleaved = is_interleaved;
        theirs.tied = family != "llama";
        theirs.norm_eps = 1e-5;
        (theirs.bos, theirs.eos) = (None, vec![]);
        assert_eq!(ours, theirs);
        let map = bind_gguf(&ours, &catalog).unwrap();
        assert_eq!(map.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), {
            let params = theirs.params();
            params.iter().map(|param| param.name.clone()).collect::<Vec<_>>()
        });
        let rows = map.get("model.layers.0.self_attn.k_proj.weight").unwrap().rows;
        let interleaved = RowOrder::RopeInterleaved { heads: 2, head_dim: 16 };
        assert_eq!(rows, if is_interleaved { interleaved } else { RowOrder::Plain });
        assert_eq!(map.get("model.layers.0.self_attn.v_proj.weight").unwrap().rows, RowOrder::Plain);
        assert!(map.unused().is_empty());
    }
}

#[test]
fn gguf_gpt2_holds_products_as_the_model_uses_them() {
    let change = [
        ("embedding_length", Value::U32(48)),
        ("feed_forward_length", Value::U32(192)),
        ("attention.head_count_kv", Value::U32(4)),
        ("context_length", Value::U32(32)),
    ];
    let mut tensors: Vec<(String, Vec<u64>)> = vec![
        ("token_embd.weight".into(), vec![50, 48]),
        ("position_embd.weight".into(), vec![32, 48]),
        ("output_norm.weight".into(), vec![48]),
        ("output_norm.bias".into(), vec![48]),
        ("output.weight".into(), vec![50, 48]),
    ];
    for (layer, (_, name, shape)) in (0..2).flat_map(|layer| GPT2_BLOCK.map(|row| (layer, row))) {
        tensors.push((format!("blk.{layer}.{name}"), shape.iter().rev().copied().collect()));
    }
    let (gguf, catalog) = gguf_model(&metadata("gpt2", &change), &tensors);
    let ours = gguf_decoder::config(&gguf, &catalog, None).unwrap();
    let mut theirs = config(&gpt2());
    theirs.tied = false;
    (theirs.bos, theirs.eos) = (None, vec![]);
    assert_eq!(ours, theirs);
    let map = bind_gguf(&ours, &catalog).unwrap();
    assert!(map.iter().all(|binding| !binding.transpose && binding.tensor.shape == binding.shape));
}

#[test]
fn rope_factors_must_be_given() {
    let (gguf, catalog) = gguf_model(&metadata("llama", &[]), &gguf_llama_tensors(&[("rope_freqs.weight", &[8])]));
    assert_eq!(gguf_decoder::rope_factors_tensor(&catalog).unwrap().bytes, 32);
    let error = gguf_decoder::config(&gguf, &catalog, None).unwrap_err();
    assert_eq!(error, ConfigError::RopeFactors { tensor: "rope_freqs.weight".into() });
    let plain = config(&llama("llama")).rope.unwrap();
    let divided = gguf_decoder::config(&gguf, &catalog, Some(&[4.0; 8])).unwrap().rope.unwrap();
    assert!(divided.inv_freq.iter().zip(&plain.inv_freq).all(|(divided, plain)| *divided == plain / 4.0));
    let error = gguf_decoder::config(&gguf, &catalog, Some(&[4.0; 7])).unwrap_err();
    assert!(error.to_string().contains("8 finite positive frequencies"), "{error}");
}

#[test]
fn gguf_scaling_is_that_of_the_same_checkpoint() {
    let yarn = [
        ("rope.scaling.type", Value::String("yarn".into())),
        ("rope.scaling.factor", Value::F32(4.0)),
        ("rope.scaling.original_context_length", Value::U32(64)),
    ];
    let linear = [("rope.scaling.type", Value::String("linear".into())), ("rope.scaling.factor", Value::F32(2.5))];
    let old_linear = [("rope.scale_linear", Value::F32(2.5))];
    let yarn_json = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let linear_json = json!({ "type": "linear", "factor": 2.5 });
    let cases: [(&[(&str, Value)], &Json); 3] =
        [(&yarn, &yarn_json), (&linear, &linear_json), (&old_linear, &linear_json)];
    for (change, scaling) in cases {
        let (gguf, catalog) = gguf_model(&metadata("qwen2", change), &gguf_llama_tensors(&[]));
        let ours = gguf_decoder::config(&gguf, &catalog, None).unwrap().rope.unwrap();
        let mut json = llama("qwen2");
        json["rope_scaling"] = scaling.clone();
        assert_eq!(ours, config(&json).rope.unwrap());
    }
}

/// Applies the rotation to one head at a position, in pairs `(i, i + d/2)` or `(2 i, 2 i + 1)`.
fn rotate(head: &[f64], angles: &[f64], is_interleaved: bool) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for (pair, angle) in angles.iter().enumerate() {
        let (a, b) = if is_interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
        out[a] = head[a] * angle.cos() - head[b] * angle.sin();
        out[b] = head[b] * angle.cos() + head[a] * angle.sin();
    }
    out
}

#[test]
fn plain_rows_rotate_to_the_same_values() {
    let (heads, head_dim) = (3, 8);
    let sources = plain_row_sources(heads, head_dim);
    assert_eq!(sources[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
    let mut sorted = sources.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..heads * head_dim).collect::<Vec<_>>());

    let back = interleaved_row_sources(heads, head_dim);
    assert!((0..heads * head_dim).all(|row| back[sources[row]] == row));

    let file: Vec<f64> = (0..heads * head_dim).map(|row| (row as f64 * 0.7).sin()).collect();
    let plain: Vec<f64> = sources.iter().map(|&source| file[source]).collect();
    let angles = [0.3, 1.1, 2.0, -0.4];
    for head in 0..heads {
        let range = head * head_dim..(head + 1) * head_dim;
        let by_file = rotate(&file[range.clone()], &angles, true);
        let by_plain = rotate(&plain[range.clone()], &angles, false);
        for (row, value) in by_plain.iter().enumerate() {
            assert_eq!(*value, by_file[sources[range.start + row] - range.start]);
        }
    }
}

#[test]
fn exported_gguf_reads_as_the_same_model() {
    let scaled = |family: &str, scaling: Json| {
        let mut json = llama(family);
        json["rope_scaling"] = scaling;
        json
    };
    let rule = json!({ "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 8192 });
    let mut windowed = llama("mistral");
    windowed["sliding_window"] = json!(32);
    let yarn =
        json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5 });
    let cases = [
        llama("llama"),
        llama("qwen2"),
        llama("qwen3"),
        gpt2(),
        windowed,
        scaled("llama", rule),
        scaled("llama", json!({ "type": "linear", "factor": 2.5 })),
        scaled("qwen2", yarn),
    ];
    for json in cases {
        let mut theirs = config(&json);
        let mut tensors: Vec<(String, Vec<u64>)> =
            theirs.params().iter().map(|param| (param.gguf_name().to_owned(), param.shape.clone())).collect();
        let divisors = theirs.rope.as_ref().and_then(|rope| rope.divisors());
        if let Some(divisors) = &divisors {
            tensors.push((gguf_export::ROPE_DIVISORS.into(), vec![divisors.len() as u64]));
        }
        let (gguf, catalog) = gguf_model(&gguf_export::metadata(&theirs).unwrap(), &tensors);
        let ours = gguf_decoder::config(&gguf, &catalog, divisors.as_deref()).unwrap();
        // Tokens go with the tokenizer; the order of rows is the file's; divided frequencies are rounded once more.
        (theirs.bos, theirs.eos) = (ours.bos, ours.eos.clone());
        if let (Some(theirs), Some(ours)) = (&mut theirs.rope, &ours.rope) {
            theirs.interleaved = matches!(json["model_type"].as_str(), Some("llama" | "mistral"));
            for (a, b) in theirs.inv_freq.iter_mut().zip(&ours.inv_freq) {
                assert!((*a - b).abs() <= 2e-7 * b, "{a} {b}");
                *a = *b;
            }
            assert!((theirs.attention_factor - ours.attention_factor).abs() < 1e-6);
            theirs.attention_factor = ours.attention_factor;
            if let RopeScaling::Yarn { .. } = theirs.scaling {
                theirs.scaling = ours.scaling.clone();
            }
        }
        assert_eq!(ours, theirs);
        assert_eq!(bind_gguf(&ours, &catalog).unwrap().len(), theirs.params().len());
    }
}

#[test]
fn what_gguf_cannot_say_is_an_error() {
    let mut config = config(&llama("llama"));
    config.activation = Activation::Gelu;
    config.sliding_window = Some(SlidingWindow { size: 8, layers: vec![true, false] });
    let error = gguf_export::metadata(&config).unwrap_err().to_string();
    assert!(error.contains("`activation` = Gelu") && error.contains("in some layers only"), "{error}");
}
