//! Hostile and broken input: each row gives one clear error, never a panic, a hang or a large allocation.

use serde_json::{Value as Json, json};
use tinyforge_compiler::import::gguf::{self, Value};
use tinyforge_compiler::import::peft::AdapterConfig;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::import::{Catalog, gguf_decoder, hf, safetensors};
use tinyforge_plan::DType;

/// A safetensors file of this header and so many bytes of data, cut or extended to `file_bytes` if given.
fn st_file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

/// The error of a whole file, as a user sees it.
fn st_error(file: &[u8]) -> String {
    safetensors::parse_header(file, file.len() as u64).expect_err("a broken file").to_string()
}

#[test]
fn safetensors_headers() {
    let one = |body: &str| st_file(&format!("{{\"a\":{body}}}"), 8);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "the file has 0 bytes"),
        ("seven bytes", vec![0; 7], "the file has 7 bytes"),
        ("a length past the end", 9u64.to_le_bytes().to_vec(), "claims 9 bytes, the file has only 0"),
        ("a huge length", u64::MAX.to_le_bytes().to_vec(), "the limit is 100000000"),
        ("an empty header", st_file("", 0), "does not begin with `{`"),
        ("a leading space", st_file(" {}", 0), "does not begin with `{`"),
        ("not JSON", st_file("{]", 0), "line 1 column 2"),
        ("two values", st_file("{}{}", 0), "trailing characters"),
        (
            "not UTF-8",
            {
                let mut f = st_file("{\"ab\":1}", 0);
                f[10] = 0xff;
                f
            },
            "invalid unicode",
        ),
        ("a list for a tensor", one("[1]"), "not JSON of the safetensors form"),
        ("deep nesting", st_file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "not JSON of the safetensors form"),
        ("deep unknown field", one(&format!("{{\"x\":{}", "{\"x\":".repeat(100_000))), "unknown field"),
        ("a missing field", one(r#"{"dtype":"F32","shape":[2]}"#), "missing field `data_offsets`"),
        (
            "a repeated field",
            one(r#"{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
            "duplicate field",
        ),
        ("three offsets", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}"#), "safetensors form"),
        ("a negative extent", one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#), "-2"),
        ("a fractional extent", one(r#"{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}"#), "2.5"),
        (
            "an extent over 64 bits",
            one(r#"{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}"#),
            "form",
        ),
        (
            "an unknown dtype",
            one(r#"{"dtype":"F31","shape":[2],"data_offsets":[0,8]}"#),
            "`a` has the unknown dtype `F31`",
        ),
        (
            "offsets backwards",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "ends (0) before it begins (8)",
        ),
        (
            "a shape that overflows",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
            "`a` has the shape [4294967296, 4294967296], whose size overflows",
        ),
        (
            "a size that overflows",
            one(r#"{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8]}"#),
            "size overflows",
        ),
        ("too short", one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), "takes 12 bytes, its offsets give 8"),
        ("half a byte", one(r#"{"dtype":"F4","shape":[1],"data_offsets":[0,1]}"#), "takes 1 bytes"),
        (
            "past the end",
            one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#),
            "byte 16 of the data, which has 8",
        ),
        (
            "an end that overflows with the header",
            one(r#"{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}"#),
            "ends at byte 18446744073709551615",
        ),
        ("a hole before", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), "bytes 0 to 4 of the data"),
        ("a hole after", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), "bytes 4 to 8 of the data"),
        ("data without tensors", st_file("{}", 8), "bytes 0 to 8 of the data belong to no tensor"),
        (
            "two tensors in one place",
            st_file(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            "`b` begins at byte 4 of the data, inside `a`, which ends at 8",
        ),
        (
            "one name twice",
            st_file(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            "tensor `a` is described twice",
        ),
        ("metadata that is a number", st_file(r#"{"__metadata__":{"a":1}}"#, 0), "expected a string"),
    ];
    for (what, file, expected) in cases {
        let error = st_error(&file);
        assert!(error.contains(expected), "{what}: {error}");
        assert!(error.len() < 400, "{what}: {error}");
    }
}

#[test]
fn safetensors_files_cut_anywhere() {
    let file = {
        let tensors = [NewTensor::new("a", DType::F32, &[2, 3]), NewTensor::new("b", DType::BF16, &[4])];
        let layout = safetensors::layout(&tensors, &Default::default()).unwrap();
        let mut file = layout.header;
        file.resize(layout.file_bytes as usize, 0);
        file
    };
    assert!(safetensors::parse_header(&file, file.len() as u64).is_ok());
    for end in 0..file.len() {
        st_error(&file[..end]);
    }
    // One byte changed anywhere: any answer but a panic.
    for at in 0..file.len() {
        for value in [0, 0x22, 0x7f, 0xff] {
            let mut changed = file.clone();
            changed[at] = value;
            let _ = safetensors::parse_header(&changed, file.len() as u64);
        }
    }
}

#[test]
fn safetensors_indices() {
    let error = |text: &str| safetensors::Index::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error("").contains("not JSON"));
    assert!(error("{}").contains("missing field `weight_map`"));
    assert!(error(r#"{"weight_map":{"a":1}}"#).contains("expected a string"));
    assert!(error(r#"{"weight_map":{"a":"../../etc/passwd"}}"#).contains("only plain file names"));
    assert!(error(&"[".repeat(100_000)).contains("not JSON"));
}

/// Builds GGUF headers field by field.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// Magic, version 3, and the two counts.
    fn gguf(tensors: u64, entries: u64) -> Bytes {
        Bytes(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }
    fn u8(mut self, x: u8) -> Bytes {
        self.0.push(x);
        self
    }
    fn u32(mut self, x: u32) -> Bytes {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn u64(mut self, x: u64) -> Bytes {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn str(mut self, text: &[u8]) -> Bytes {
        self = self.u64(text.len() as u64);
        self.0.extend(text);
        self
    }
    /// A row of the tensor table.
    fn info(mut self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Bytes {
        self = self.str(name.as_bytes()).u32(extents.len() as u32);
        for extent in extents {
            self = self.u64(*extent);
        }
        self.u32(kind).u64(offset)
    }
    /// Zeros up to `bytes`.
    fn fill(mut self, bytes: usize) -> Bytes {
        self.0.resize(bytes.max(self.0.len()), 0);
        self
    }
}

#[test]
fn gguf_headers() {
    let tensor = |extents: &[u64], kind, offset| Bytes::gguf(1, 0).info("t", extents, kind, offset).fill(512);
    let entry = |kind: u32| Bytes::gguf(0, 1).str(b"k").u32(kind);
    let nested = (0..6).fold(entry(9), |bytes, _| bytes.u32(9).u64(1)).fill(256);
    let alignment = |value: u32| Bytes::gguf(0, 1).str(b"general.alignment").u32(4).u32(value);
    let cases: Vec<(&str, Bytes, &str)> = vec![
        ("empty file", Bytes::default(), "ends at byte 0, inside the magic"),
        ("another magic", Bytes(b"GGML".to_vec()).u32(3).u64(0).u64(0), "not with `GGUF`"),
        ("version 1", Bytes(b"GGUF".to_vec()).u32(1).u64(0).u64(0), "version 1 is not supported"),
        ("big endian", Bytes(b"GGUF".to_vec()).u32(3 << 24).u64(0).u64(0), "big endian"),
        ("a huge metadata count", Bytes::gguf(0, u64::MAX).fill(64), "inside the metadata"),
        ("a count that just overflows", Bytes::gguf(0, u64::MAX / 13 + 1).fill(64), "inside the metadata"),
        ("a huge tensor count", Bytes::gguf(u64::MAX, 0).fill(64), "inside the tensor table"),
        ("more tensors than bytes", Bytes::gguf(3, 0).fill(64), "inside the tensor table"),
        ("a huge key", Bytes::gguf(0, 1).u64(u64::MAX).fill(64), "inside a metadata key"),
        (
            "a key that is not UTF-8",
            Bytes::gguf(0, 1).str(b"\xff\xfe").u32(4).u32(0),
            "metadata key is not valid UTF-8",
        ),
        ("an unknown type", entry(13).fill(64), "unknown metadata type 13"),
        ("a boolean of 2", entry(7).u8(2), "a boolean holds 2"),
        ("a huge string", entry(8).u64(1 << 62).fill(64), "inside a metadata string"),
        ("a string that is not UTF-8", entry(8).str(b"\xc3\x28"), "metadata string is not valid UTF-8"),
        ("a huge array", entry(9).u32(0).u64(u64::MAX).fill(64), "inside a metadata array"),
        ("an array whose size overflows", entry(9).u32(12).u64(1 << 61).fill(64), "inside a metadata array"),
        ("an array of an unknown type", entry(9).u32(99).u64(1).fill(64), "unknown metadata type 99"),
        ("a huge array of strings", entry(9).u32(8).u64(1 << 40).fill(64), "inside a metadata array"),
        ("a huge array of arrays", entry(9).u32(9).u64(1 << 40).fill(64), "inside a metadata array"),
        ("deep nesting", nested, "nested deeper than 4"),
        ("a key twice", Bytes::gguf(0, 2).str(b"k").u32(0).u8(1).str(b"k").u32(0).u8(2), "`k` occurs twice"),
        ("alignment 0", alignment(0), "`general.alignment` is 0"),
        ("alignment 24", alignment(24), "must be a power of two"),
        ("alignment of text", Bytes::gguf(0, 1).str(b"general.alignment").u32(8).str(b"32"), "is \"32\""),
        ("no dimension", tensor(&[], 0, 0), "has 0 dimensions"),
        ("five dimensions", tensor(&[1; 5], 0, 0), "has 5 dimensions"),
        ("a huge rank", Bytes::gguf(1, 0).str(b"t").u32(u32::MAX).fill(512), "has 4294967295 dimensions"),
        ("an empty tensor", tensor(&[4, 0], 0, 0), "[0, 4], which is empty"),
        ("a shape that overflows", tensor(&[1 << 32, 1 << 32], 0, 0), "overflows"),
        ("a size that overflows", tensor(&[1 << 63], 0, 0), "overflows"),
        ("a size near the limit", tensor(&[(1 << 62) - 1], 0, 0), "it is truncated"),
        ("an unsupported type", tensor(&[256], 10, 0), "tensor `t` is stored as Q2_K, which is not supported"),
        ("an unknown type number", tensor(&[256], 77, 0), "tensor `t` is stored as type 77"),
        ("rows that are not whole blocks", tensor(&[16, 2], 2, 0), "rows of 16 elements are not whole blocks of 32"),
        ("an offset off the grid", tensor(&[4], 0, 8), "byte 8 of the data, which is not a multiple of 32"),
        ("an offset past the end", tensor(&[4], 0, 1 << 40), "it is truncated"),
        ("an offset that overflows", tensor(&[4], 0, u64::MAX - 31), "it is truncated"),
        (
            "two tensors in one place",
            Bytes::gguf(2, 0).info("a", &[16], 0, 0).info("b", &[4], 0, 32).fill(512),
            "tensors `a` and `b` overlap",
        ),
        (
            "one name twice",
            Bytes::gguf(2, 0).info("a", &[4], 0, 0).info("a", &[4], 0, 32).fill(512),
            "tensor `a` is in",
        ),
    ];
    for (what, bytes, expected) in cases {
        let file_bytes = bytes.0.len() as u64;
        let error = gguf::parse(&bytes.0, file_bytes).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(error.len() < 400, "{what}: {error}");
    }
}

#[test]
fn gguf_headers_changed_anywhere() {
    let metadata = [
        ("general.architecture".to_owned(), Value::String("llama".into())),
        ("llama.block_count".to_owned(), Value::U32(2)),
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".into())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(gguf::Array::String(vec!["a".into(), "b".into()]))),
    ];
    let tensors = [NewTensor::new("token_embd.weight", DType::Q4_0, &[2, 32]), NewTensor::new("b", DType::F32, &[3])];
    let layout = gguf::layout(&metadata, &tensors).unwrap();
    for at in 0..layout.header.len() {
        for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
            let mut changed = layout.header.clone();
            changed[at] = value;
            let Ok(gguf) = gguf::parse(&changed, layout.file_bytes) else { continue };
            let _ = gguf.tokenizer();
            if let Ok(catalog) = gguf::catalog(&[("a", &gguf)]) {
                let _ = gguf_decoder::config(&gguf, &catalog, None);
            }
        }
    }
}

/// The error of GGUF metadata as a configuration, with `change` over a small Llama.
fn gguf_error(change: &[(&str, Option<Value>)]) -> String {
    let mut metadata = vec![("general.architecture".to_owned(), Value::String("llama".into()))];
    let numbers = [("embedding_length", 64), ("block_count", 2), ("context_length", 256), ("feed_forward_length", 96)];
    metadata.extend(numbers.map(|(key, value)| (format!("llama.{key}"), Value::U32(value))));
    metadata.push(("llama.attention.head_count".into(), Value::U32(4)));
    metadata.push(("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)));
    metadata.push(("llama.vocab_size".into(), Value::U32(100)));
    for (key, value) in change {
        metadata.retain(|(other, _)| other != key);
        metadata.extend(value.clone().map(|value| ((*key).to_owned(), value)));
    }
    let layout = gguf::layout(&metadata, &[]).unwrap();
    let gguf = gguf::parse(&layout.header, layout.file_bytes).unwrap();
    match gguf_decoder::config(&gguf, &Catalog::new(), None) {
        Ok(_) => "fine".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn gguf_metadata() {
    assert_eq!(gguf_error(&[]), "fine");
    let cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("general.architecture", None, "models of type `(none given)` are not supported; supported: llama, qwen2"),
        ("general.architecture", Some(Value::String("bert".into())), "`bert`"),
        ("general.architecture", Some(Value::U8(1)), "expected a string"),
        ("llama.block_count", None, "`llama.block_count` is missing"),
        ("llama.block_count", Some(Value::U32(0)), "`llama.block_count` is 0, expected a positive integer"),
        ("llama.block_count", Some(Value::U64(u64::MAX)), "expected an integer from 0 to 2147483647"),
        ("llama.block_count", Some(Value::U32(1_000_000)), "`layers` is 1000000, expected 1 to 4096"),
        ("llama.attention.head_count", Some(Value::U32(0)), "`llama.attention.head_count` is 0"),
        ("llama.attention.head_count", Some(Value::U32(7)), "a divisor of the hidden size, 64"),
        ("llama.attention.head_count_kv", Some(Value::U32(3)), "`kv_heads` is 3, expected a divisor of the 4"),
        (
            "llama.attention.head_count_kv",
            Some(Value::Array(gguf::Array::U32(vec![2, 4]))),
            "only one positive number for all blocks is",
        ),
        ("llama.attention.key_length", Some(Value::U32(15)), "an even number"),
        ("llama.attention.key_length", Some(Value::U32(1 << 20)), "an even number from 2 to 65536"),
        ("llama.attention.layer_norm_rms_epsilon", None, "is missing"),
        ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN)), "NaN (f32), expected a finite float"),
        ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(-1.0)), "`norm_eps` is -1"),
        ("llama.rope.freq_base", Some(Value::F32(0.0)), "finite positive frequencies"),
        ("llama.rope.freq_base", Some(Value::F32(f32::INFINITY)), "expected a finite float"),
        ("llama.rope.dimension_count", Some(Value::U32(8)), "only that of the heads, 16, is"),
        ("llama.rope.scaling.type", Some(Value::String("yarn".into())), "`llama.rope.scaling.factor` is missing"),
        ("llama.rope.scaling.type", Some(Value::String("magic".into())), "supported: none, linear, yarn, longrope"),
        ("llama.rope.scaling.type", Some(Value::U8(0)), "of another type than a string"),
        ("llama.rope.scaling.attn_factor", Some(Value::F32(2.0)), "only with yarn and longrope"),
        ("llama.expert_count", Some(Value::U32(8)), "a mixture of experts is not supported"),
        ("llama.context_length", Some(Value::U32(0)), "`llama.context_length` is 0"),
        ("tokenizer.ggml.eos_token_id", Some(Value::String("2".into())), "expected an integer"),
    ];
    for (key, value, expected) in cases {
        let error = gguf_error(&[(key, value)]);
        assert!(error.contains(expected), "{key}: {error}");
    }
    let both = gguf_error(&[("llama.block_count", None), ("llama.context_length", None)]);
    assert!(both.contains("block_count") && both.contains("context_length"), "all faults are listed: {both}");
}

/// The error of a `config.json`, with `change` over a small Llama; null removes a key.
fn hf_error(change: &Json) -> String {
    let mut json = json!({ "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "vocab_size": 100 });
    for (key, value) in change.as_object().unwrap() {
        json[key] = value.clone();
    }
    match hf::config(json.to_string().as_bytes()) {
        Ok(_) => "fine".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn configurations() {
    assert_eq!(hf_error(&json!({})), "fine");
    let scaling = |scaling: Json| json!({ "rope_scaling": scaling });
    let cases: Vec<(Json, &str)> = vec![
        (json!({ "model_type": "bert" }), "`bert` are not supported; supported: llama, mistral, qwen2, qwen3, gpt2"),
        (json!({ "model_type": null }), "`(none given)`"),
        (json!({ "model_type": 3 }), "`(none given)`"),
        (json!({ "hidden_size": null }), "`hidden_size` is missing"),
        (json!({ "hidden_size": "64" }), "`hidden_size` is \"64\", expected a positive integer"),
        (json!({ "hidden_size": 64.5 }), "`hidden_size` is 64.5"),
        (json!({ "hidden_size": -64 }), "`hidden_size` is -64"),
        (json!({ "hidden_size": u64::MAX }), "`hidden_size` is 18446744073709551615"),
        (json!({ "hidden_size": [64] }), "`hidden_size` is a list of 1"),
        (json!({ "vocab_size": 1 << 30 }), "`vocab` is 1073741824, expected 1 to 268435456"),
        (json!({ "num_hidden_layers": 0 }), "`num_hidden_layers` is 0"),
        (json!({ "num_hidden_layers": 2_000_000_000 }), "`layers` is 2000000000, expected 1 to 4096"),
        (json!({ "num_attention_heads": 0 }), "`num_attention_heads` is 0"),
        (json!({ "num_attention_heads": 6 }), "a divisor of the hidden size, 64"),
        (json!({ "num_key_value_heads": 3 }), "`kv_heads` is 3, expected a divisor of the 4 query heads"),
        (json!({ "num_key_value_heads": 0 }), "`num_key_value_heads` is 0"),
        (json!({ "head_dim": 15 }), "`head_dim` is 15, expected an even number"),
        (json!({ "head_dim": 1_000_000_000 }), "`head_dim` is 1000000000"),
        (json!({ "vocab_size": 0 }), "`vocab_size` is 0"),
        (json!({ "rms_norm_eps": "1e-5" }), "`rms_norm_eps` is \"1e-5\""),
        (json!({ "rms_norm_eps": -1.0 }), "`norm_eps` is -1"),
        (json!({ "hidden_act": "relu6" }), "`hidden_act` = relu6 is not supported; supported: silu"),
        (json!({ "tie_word_embeddings": 1 }), "`tie_word_embeddings` is 1, expected true or false"),
        (json!({ "eos_token_id": "</s>" }), "expected a token id or a list of them"),
        (json!({ "eos_token_id": [1, -1] }), "`eos_token_id` is a list of 2"),
        (json!({ "quantization_config": { "bits": 4 } }), "`quantization_config` = an object is not supported"),
        (json!({ "partial_rotary_factor": 0.5 }), "only rotation of the whole head is"),
        (json!({ "rope_theta": 0 }), "a rule with theta 0, expected parameters that give 8 finite positive"),
        (json!({ "rope_theta": -1.0 }), "finite positive frequencies"),
        (json!({ "rope_scaling": "linear" }), "`rope_scaling` is \"linear\", expected an object"),
        (scaling(json!({ "type": "magic" })), "supported: default, linear, dynamic, llama3, yarn, longrope"),
        (scaling(json!({ "type": "linear" })), "`rope_scaling.factor` is missing"),
        (scaling(json!({ "type": "linear", "factor": 0 })), "`rope_scaling.factor` is 0, expected a positive number"),
        (scaling(json!({ "type": "linear", "factor": 1e300 })), "finite positive frequencies"),
        (scaling(json!({ "type": "llama3", "factor": 8.0 })), "`rope_scaling.low_freq_factor` is missing"),
        (
            scaling(json!({ "type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0 })),
            "`rope_scaling.high_freq_factor` is 4, expected more than low_freq_factor",
        ),
        (scaling(json!({ "type": "yarn", "factor": 4.0, "beta_fast": -1 })), "`rope_scaling.beta_fast` is -1"),
        (scaling(json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [1.0] })), "8 finite positive"),
        (
            scaling(json!({ "type": "longrope", "short_factor": vec![0; 8], "long_factor": vec![1; 8] })),
            "8 finite positive",
        ),
        (
            scaling(json!({ "type": "longrope", "short_factor": vec!["1"; 8], "long_factor": vec![1; 8] })),
            "a list of numbers",
        ),
        (
            json!({ "model_type": "qwen2", "use_sliding_window": true, "layer_types": ["full_attention"] }),
            "`layer_types` is a list of 1",
        ),
        (json!({ "model_type": "mistral", "sliding_window": 0 }), "`sliding_window` is 0"),
        (json!({ "model_type": "gpt2" }), "`n_embd` is missing"),
        (
            json!({ "model_type": "gpt2", "n_embd": 10, "n_head": 3, "n_layer": 1 }),
            "`n_head` is 3, expected a divisor of the hidden size, 10",
        ),
        (
            json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "scale_attn_weights": false }),
            "`scale_attn_weights` = false is not supported; only true is",
        ),
        (
            json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "add_cross_attention": true }),
            "`add_cross_attention`",
        ),
    ];
    for (change, expected) in cases {
        let error = hf_error(&change);
        assert!(error.contains(expected), "{change}: {error}");
        assert!(error.len() < 1000, "{change}: {error}");
    }
    let all = hf_error(&json!({ "hidden_size": 0, "vocab_size": -1, "hidden_act": "x", "rope_theta": "y" }));
    for key in ["hidden_size", "vocab_size", "hidden_act", "rope_theta"] {
        assert!(all.contains(key), "all faults are listed: {all}");
    }
}

#[test]
fn texts_that_are_no_configuration() {
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "EOF"),
        (b"[]".to_vec(), "invalid type: sequence"),
        (b"\xff\xfe{}".to_vec(), "expected value"),
        (br#"{"model_type":"llama","rms_norm_eps":NaN}"#.to_vec(), "expected value"),
        (br#"{"model_type":"llama","rope_theta":Infinity}"#.to_vec(), "expected value"),
        (br#"{"model_type":"llama","rope_theta":1e999}"#.to_vec(), "number out of range"),
        (br#"{"model_type":"llama""#.to_vec(), "EOF"),
        ("[".repeat(1_000_000).into_bytes(), "invalid type: sequence"),
        (format!("{{\"a\":{}", "[".repeat(1_000_000)).into_bytes(), "recursion limit"),
        (vec![b' '; (16 << 20) + 1], "the limit is 16777216"),
    ];
    for (text, expected) in cases {
        for error in [hf::config(&text).unwrap_err().to_string(), AdapterConfig::parse(&text).unwrap_err().to_string()]
        {
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}

#[test]
fn configurations_cut_anywhere() {
    let text = hf::config_json(
        &hf::config(br#"{"model_type":"gpt2","n_embd":8,"n_head":2,"n_layer":1,"vocab_size":9}"#).unwrap(),
        DType::F32,
    )
    .unwrap();
    for end in 0..text.trim_end().len() {
        assert!(hf::config(&text.as_bytes()[..end]).is_err(), "{end}");
    }
}
