//! Writes the seeds of the fuzzers: small valid files of each kind, into `corpus/*/seed_*`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tinyforge::cpu::CpuKernels;
use tinyforge_compiler::compile::{Entry, Recompute, Request, Role, compile};
use tinyforge_compiler::import::gguf::{self, Array, Value};
use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::ir::text::parse_graph;
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;
use tinyforge_plan::encode::encode;
use tinyforge_plan::{DType, Fixed, Source};

#[path = "../compiler/tests/mcu_file/mod.rs"]
mod mcu_file;
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../compiler/tests/onnx_file/mod.rs"]
mod onnx_file;
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../compiler/tests/tflite_file/mod.rs"]
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
    put("tflite_model", "residual", &tflite_file::residual().bytes())?;
    put("tflite_model", "between_floats", &tflite_file::between_floats().bytes())?;
    put("mcu_network", "small", &mcu_network())?;
    put("onnx_model", "small", &onnx_file::small().bytes())?;
    put("adapter_config", "lora", ADAPTER.as_bytes())?;
    put("adapter_config", "name", b"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")?;
    for (name, json) in TOKENIZERS {
        put("tokenizer_json", name, format!("{json}\0{TOKENIZER_CONFIG}").as_bytes())?;
    }
    for (name, fields) in VOCABULARIES {
        put("tokenizer_gguf", name, fields.join("\0").as_bytes())?;
    }
    for (name, how, content) in DATA {
        put("data_file", name, format!("{how}{content}").as_bytes())?;
    }
    put("ir_text", "graph", GRAPH.as_bytes())?;
    put("ir_text", "program", PROGRAM.as_bytes())?;
    for (name, scheme, micro_batches) in [("full", "full", 1), ("sums", "full", 2), ("lora", "lora:2", 1)] {
        put("plan_bytes", name, &plan_body(scheme, micro_batches))?;
    }
    Ok(())
}

/// A small plan without the header that the target puts before it.
fn plan_body(scheme: &str, micro_batches: u32) -> Vec<u8> {
    let graph = parse_graph(GRAPH).expect("a valid graph");
    let optimizer = Optimizer { rule: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: Some(1.0) };
    let request = Request {
        scheme: Scheme::parse(scheme).expect("a scheme"),
        optimizer,
        recompute: Recompute::Auto,
        source: &|_| Source::File { file: 0, offset: 64, dtype: DType::F32, transpose: false },
        files: vec!["model.safetensors".into()],
        ..Request::plain(
            scheme,
            vec![Entry { name: "train".into(), graph, role: Role::Train { micro_batches } }],
            &CpuKernels { threads: 1 },
        )
    };
    let mut plan = compile(&request).expect("a small plan").plan;
    plan.fixed = [("code", u64::MAX - 7), ("heap", 8)].map(|(name, bytes)| Fixed { name: name.into(), bytes }).into();
    encode(&plan).split_off(12)
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

const GRAPH: &str = "rows 2
input %tokens : i32[6]
input %segments : i32[6]
input %labels : i32[6]
input %weights : f32[6]
weight @table : f32[8,4]
weight @q_proj.weight : f32[4,4]
weight @norm : f32[4]
block embed forward
%x = embedding @table, %tokens : f32[6,4]
block layers.0 forward
%n = rms_norm %x, @norm {eps=1e-5} : f32[6,4]
%q = linear %n, @q_proj.weight : f32[6,4]
%o, %o.lse = attention %q, %n, %n, %segments {seq=3, heads=2, kv_heads=2, scale=0.7} : f32[6,4], f32[6,2]
%y = add %x, %o : f32[6,4]
block head forward
%logits = linear %y, @table : f32[6,8]
%loss = cross_entropy %logits, %labels, %weights : f32[6]
return loss = %loss
";

const PROGRAM: &str = "program
rows 1
input %x : f32[4,3]
weight @w : f32[3,3]
body layer
  input %x : f32[4,3]
  weight @w : f32[3,3]
  %y = linear %x, @w : f32[4,3]
  return y = %y
end
call first = layer %x, @w
call second = layer first:0, @w
return out = second:0
";

const TOKENIZER_CONFIG: &str = r#"{"bos_token":{"content":"<s>"},"eos_token":"</s>","unk_token":"a","add_bos_token":true,"add_eos_token":false,"chat_template":"{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"}"#;

const TOKENIZERS: [(&str, &str); 4] = [
    (
        "byte_level",
        r#"{"version":"1.0","added_tokens":[{"id":6,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":7,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?\\p{L}+|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}}],"special_tokens":{"<s>":{"id":"<s>","ids":[6],"tokens":["<s>"]}}},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","unk_token":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,"vocab":{"a":0,"b":1,"ab":2,"\u0120":3,"\u0120a":4,"s":5},"merges":["a b",["\u0120","a"]]}}"#,
    ),
    (
        "sentence_piece",
        r#"{"added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<0x0A>":1,"\u2581":2,"a":3,"b":4,"ab":5},"merges":["a b"]}}"#,
    ),
    (
        "word_piece",
        r###"{"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"##b":2}}}"###,
    ),
    (
        "unigram",
        r#"{"pre_tokenizer":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":true},"decoder":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["\u2581",-1.0],["a",-2.0],["ab",-2.5]],"byte_fallback":false}}"#,
    ),
];

/// Fields in the order of the target: model, pre, tokens, merges, scores, types, ids and switches, template, text.
const VOCABULARIES: [(&str, [&str; 9]); 2] = [
    (
        "gpt2",
        [
            "gpt2",
            "smollm",
            "a\nb\nab\n\u{120}\n1\n<|im_end|>",
            "a b",
            "",
            "1\n1\n1\n1\n1\n3",
            "5\n5\n-\n-\n15",
            "",
            "ab 11<|im_end|>",
        ],
    ),
    (
        "llama",
        [
            "llama",
            "",
            "<unk>\n<s>\n</s>\n<0x0A>\n\u{2581}\na\nb\nab\n\u{2581}ab",
            "",
            "0\n0\n0\n0\n-1\n-2\n-3\n-0.5\n-0.25",
            "2\n3\n3\n6\n1\n1\n1\n1\n1",
            "1\n2\n-\n0\n19",
            "{{ messages[0].content }}",
            "ab ab\n a",
        ],
    ),
];

/// How to read it, and what it says.
const DATA: [(&str, &str, &str); 6] = [
    (
        "messages",
        "3",
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}],"tools":[1]}"#,
    ),
    (
        "pairs",
        "3",
        "{\"prompt\":\"a\",\"completion\":\"b\",\"weight\":0.5}\n\n{\"prompt\":\"\",\"completion\":\"cd\"}\r\n",
    ),
    ("questions", "\u{0}", r#"{"question":"q?","answer":"a","id":[{}]}"#),
    ("instructions", "0", r#"{"instruction":"i","input":"x","output":"y"}"#),
    ("texts", "c", "{\"text\":\"abc def\"}\n{\"text\":\"\\ud83d\\ude00\"}"),
    ("text", "1", "\u{feff}Day 1.\r\nA longer text of several lines,\nwhich goes on in further rows.\n"),
];
