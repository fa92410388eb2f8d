//! A model that was made to measure with: the same bytes each time, and one that trains on any text.

mod common;

use common::Folder;
use std::path::Path;
use std::process::Command;
use tinyforge_cli::model::Model;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;

fn tinyforge(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tinyforge")).args(args).output().expect("runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn make(config: &Path, out: &Path, more: &[&str]) -> (Option<i32>, String) {
    let (config, out) = (config.display().to_string(), out.display().to_string());
    tinyforge(&[&["make-model", "--config", &config, "--out", &out], more].concat())
}

#[test]
fn a_made_model_trains_on_any_text() {
    let folder = Folder::new("make-model");
    let config = folder.0.join("shape.json");
    std::fs::write(&config, CONFIG).expect("written");
    let model = folder.0.join("model");
    let (code, said) = make(&config, &model, &["--seed", "1"]);
    assert_eq!(code, Some(0), "{said}");
    let tokenizer = Model::open(&model).expect("opens").tokenizer().expect("a tokenizer");
    let text = "Größe: 3 µm, \u{0}\u{7f}\u{ad}\n";
    let ids = tokenizer.encode(text, false, false).expect("encodes");
    assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
    let data = folder.0.join("data.txt");
    std::fs::write(&data, "The quick brown fox jumps over the lazy dog.\n".repeat(40)).expect("written");
    let [model, data, out] = [&model, &data, &folder.0.join("out")].map(|p| p.display().to_string());
    let args = ["train", &model, "--data", &data, "--out", &out, "--seq", "32", "--batch", "1", "--steps", "2"];
    let (code, said) = tinyforge(&args);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn weights_follow_from_seed_and_name() {
    let folder = Folder::new("make-model-seeds");
    let config = folder.0.join("shape.json");
    std::fs::write(&config, CONFIG).expect("written");
    let bytes = |name: &str, more: &[&str]| {
        let out = folder.0.join(name);
        let (code, said) = make(&config, &out, more);
        assert_eq!(code, Some(0), "{said}");
        std::fs::read(out.join("model.safetensors")).expect("read")
    };
    let first = bytes("first", &[]);
    assert_eq!(first, bytes("again", &["--seed", "0"]));
    assert_ne!(first, bytes("other", &["--seed", "1"]));
    assert!(bytes("wide", &["--dtype", "f32"]).len() > first.len());
}

#[test]
fn what_cannot_be_made_is_refused() {
    let folder = Folder::new("make-model-refused");
    let config = folder.0.join("shape.json");
    std::fs::write(&config, CONFIG.replace("300", "200")).expect("written");
    let (code, said) = make(&config, &folder.0.join("model"), &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("a vocabulary of 200 has no room for 257 tokens"), "{said}");
    let (code, said) = make(&config, &folder.0.join("model"), &["--dtype", "q8_0"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--dtype q8_0: f32, f16 or bf16"), "{said}");
}
