//! Writes the seeds of the fuzzers: small valid files of each kind, into `corpus/*/seed_*`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tinyforge_compiler::import::gguf::{self, Array, Value};
use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_plan::DType;

#[path = "../compiler/tests/mcu_file/mod.rs"]
mod mcu_file;
#[path = "../compiler/tests/tflite_file/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod tflite_file;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed_{name}")), bytes)
    };
    put("safetensors_header", "file", &safetensors_file())?;
    put("safetensors_header", "index", br#"{"metadata":{"total_size":8},"weight_map":{"a":"b.safetensors"}}"#)?;
    for architecture in ["llama", "qwen2", "gpt2"] {
        put("gguf_header", architecture, &gguf_header(architecture))?;
    }
    for (name, json) in CONFIGS {
        put("hf_config", name, json.as_bytes())?;
    }
    put("tflite_model", "small", &tflite_file::small().bytes())?;
    put("tflite_model", "everything", &tflite_file::everything().bytes())?;
    put("tflite_model", "between_floats", &tflite_file::between_floats().bytes())?;
    put("mcu_network", "small", &mcu_network())?;
    put("adapter_config", "lora", ADAPTER.as_bytes())?;
    put("adapter_config", "name", b"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
}

fn safetensors_file() -> Vec<u8> {
    let tensors = [NewTensor::new("a.weight", DType::F32, &[2, 3]), NewTensor::new("b", DType::BF16, &[4])];
    let metadata = BTreeMap::from([("format".into(), "pt".into())]);
    let layout = safetensors::layout(&tensors, &metadata).expect("a valid layout");
    let mut file = layout.header;
    file.resize(layout.file_bytes as usize, 0);
    file
}

/// The structure's length, the structure, the weights.
fn mcu_network() -> Vec<u8> {
    let (json, weights) = mcu_file::tiny();
    [&(json.len() as u32).to_le_bytes()[..], json.as_bytes(), &weights].concat()
}

fn gguf_header(architecture: &str) -> Vec<u8> {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut metadata = vec![("general.architecture".to_owned(), Value::String(architecture.into()))];
    for (name, value) in [("embedding_length", 8), ("block_count", 1), ("context_length", 16)] {
        metadata.push((key(name), Value::U32(value)));
    }
    metadata.push((key("feed_forward_length"), Value::U32(8)));
    metadata.push((key("attention.head_count"), Value::U32(2)));
    metadata.push((key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)));
    metadata.push((key("attention.layer_norm_epsilon"), Value::F32(1e-5)));
    metadata.push((key("rope.scaling.type"), Value::String("yarn".into())));
    metadata.push((key("rope.scaling.factor"), Value::F32(2.0)));
    metadata.push(("tokenizer.ggml.model".into(), Value::String("gpt2".into())));
    let tokens = ["a", "b"].map(String::from).to_vec();
    metadata.push(("tokenizer.ggml.tokens".into(), Value::Array(Array::String(tokens))));
    metadata.push(("tokenizer.ggml.scores".into(), Value::Array(Array::F32(vec![0.0, 1.0]))));
    metadata.push(("tokenizer.ggml.eos_token_id".into(), Value::U32(1)));
    metadata.push(("nested".into(), Value::Array(Array::Array(vec![Array::U8(vec![1, 2])]))));
    let tensors = [
        NewTensor::new("token_embd.weight", DType::Q8_0, &[2, 32]),
        NewTensor::new("blk.0.attn_q.weight", DType::F32, &[8, 8]),
        NewTensor::new("rope_freqs.weight", DType::F32, &[2]),
    ];
    gguf::layout(&metadata, &tensors).expect("a valid layout").header
}

const CONFIGS: [(&str, &str); 6] = [
    (
        "llama3",
        r#"{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[1,2]}"#,
    ),
    (
        "yarn",
        r#"{"model_type":"qwen2","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"vocab_size":100,"use_sliding_window":true,"sliding_window":8,"max_window_layers":1,"rope_parameters":{"rope_type":"yarn","rope_theta":1e6,"factor":4.0,"beta_fast":32,"mscale":0.7,"mscale_all_dim":0.5,"truncate":false,"original_max_position_embeddings":64}}"#,
    ),
    (
        "longrope",
        r#"{"model_type":"mistral","hidden_size":16,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":4,"vocab_size":100,"sliding_window":null,"rope_scaling":{"type":"longrope","short_factor":[1.0,1.1],"long_factor":[2,3],"original_max_position_embeddings":64}}"#,
    ),
    (
        "linear",
        r#"{"model_type":"qwen3","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"head_dim":8,"vocab_size":100,"attention_bias":true,"layer_types":["full_attention","sliding_attention"],"use_sliding_window":true,"rope_scaling":{"type":"linear","factor":2.0}}"#,
    ),
    (
        "dynamic",
        r#"{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,"vocab_size":100,"mlp_bias":true,"hidden_act":"gelu","rope_scaling":{"type":"dynamic","factor":2.0}}"#,
    ),
    (
        "gpt2",
        r#"{"model_type":"gpt2","n_embd":48,"n_layer":2,"n_head":4,"n_positions":32,"vocab_size":50,"n_inner":null,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,"bos_token_id":49}"#,
    ),
];

const ADAPTER: &str = r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"use_rslora":false,"target_modules":["q_proj"],"rank_pattern":{"q_proj":4},"alpha_pattern":{"^model.layers.0.self_attn.q_proj":2.5},"modules_to_save":["lm_head"],"fan_in_fan_out":false,"lora_dropout":0.0,"bias":"none","base_model_name_or_path":"a/b"}"#;
