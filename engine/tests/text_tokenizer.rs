//! Tokenizers against the published ids of real vocabularies.

use std::path::{Path, PathBuf};
use tinyforge::text::{GgufVocab, Join, TextStream, Tokenizer, TokenizerFiles};

/// The folder of real models and texts, `None` (with a line saying so) where it is absent.
fn assets() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = std::env::var_os("TINYFORGE_ASSETS").map_or(root.join("../shared/assets"), PathBuf::from);
    let path = path.exists().then_some(path);
    if path.is_none() {
        println!("skipped: no assets folder (set TINYFORGE_ASSETS)");
    }
    path
}

fn stories() -> Option<(Tokenizer, serde_json::Value)> {
    let dir = assets()?.join("stories260K");
    let tokenizer = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let config = std::fs::read(dir.join("tokenizer_config.json")).unwrap();
    let files = TokenizerFiles { tokenizer: &tokenizer, config: Some(&config), ..TokenizerFiles::default() };
    let reference = serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap()).unwrap();
    Some((Tokenizer::from_huggingface(files).unwrap(), reference))
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn stories_ids_are_the_reference_ids() {
    let Some((tokenizer, reference)) = stories() else { return };
    let text = reference["tinystories_text"].as_str().unwrap();
    assert_eq!(tokenizer.encode(text, true, true).unwrap(), ids(&reference["tinystories_ids"]));
    let greedy = &reference["greedy"];
    let prompt = greedy["prompt"].as_str().unwrap();
    assert_eq!(tokenizer.encode(prompt, true, true).unwrap(), ids(&greedy["prompt_ids"]));
    assert_eq!(tokenizer.decode(&ids(&greedy["ids"]), true).unwrap(), greedy["text"].as_str().unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_len()), (Some(1), Some(2), 512));
}

#[test]
fn a_stream_gives_the_text_of_all_ids() {
    let Some((tokenizer, _)) = stories() else { return };
    for text in ["Once upon a time", "caf\u{e9} \u{1f600}  two  spaces\n\nlines \u{4e2d}\u{6587}"] {
        let ids = tokenizer.encode(text, true, false).unwrap();
        let mut stream = TextStream::new(&tokenizer, true);
        let mut out = String::new();
        for &id in &ids {
            out.push_str(&stream.push(id).unwrap());
        }
        out.push_str(&stream.finish().unwrap());
        assert_eq!(out, text);
    }
}

#[test]
fn parts_of_a_long_text_give_the_ids_of_the_whole() {
    let Some((tokenizer, _)) = stories() else { return };
    let line = "the cat sat on the mat.\n";
    let long = line.repeat(4000);
    let ids = tokenizer.encode(&long, false, false).unwrap();
    let (mut first, mut other) = (Vec::new(), Vec::new());
    tokenizer.encode_into(line, Join::Start, false, &mut first).unwrap();
    tokenizer.encode_into(line, Join::Continue, false, &mut other).unwrap();
    let expected: Vec<u32> = first.iter().copied().chain((1..4000).flat_map(|_| other.iter().copied())).collect();
    assert_eq!(ids, expected);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), long);
}

#[test]
fn dump() {
    let Ok(path) = std::env::var("DUMP_VOCAB") else { return };
    let v: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let strings = |k: &str| v[k].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let rss = || {
        let s = std::fs::read_to_string("/proc/self/status").unwrap();
        s.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")).collect::<Vec<_>>().join(" ")
    };
    let g = GgufVocab {
        model: v["ggml.model"].as_str().unwrap().into(),
        pre: v["ggml.pre"].as_str().map(Into::into),
        tokens: strings("ggml.tokens"),
        token_types: v["ggml.token_type"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect(),
        merges: strings("ggml.merges"),
        bos: Some(1),
        eos: Some(2),
        pad: Some(2),
        unk: Some(0),
        add_bos: Some(false),
        chat_template: v["chat_template"].as_str().map(Into::into),
        ..GgufVocab::default()
    };
    drop(v);
    println!("{}", rss());
    let t = Tokenizer::from_gguf(&g).unwrap();
    println!("{} est {}", rss(), t.estimated_bytes());
    drop(g);
    let dir = assets().unwrap();
    let gold: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("goldens/smollm2-135m-q4_1.json")).unwrap()).unwrap();
    for k in ["greedy", "chat"] {
        assert_eq!(t.encode(gold[k]["prompt"].as_str().unwrap(), true, true).unwrap(), ids(&gold[k]["prompt_ids"]));
    }
    assert_eq!(t.decode(&ids(&gold["greedy"]["ids"]), true).unwrap(), gold["greedy"]["text"].as_str().unwrap());
    let s = std::fs::read_to_string(dir.join("text/tinyshakespeare.txt")).unwrap();
    assert_eq!(t.encode(&s[..1200], true, false).unwrap().len(), 339);
    let now = std::time::Instant::now();
    let all = t.encode(&s, true, false).unwrap();
    println!("{} tokens {:?} {}", all.len(), now.elapsed(), rss());
    assert_eq!(t.decode(&all, false).unwrap(), s);
    println!("{}", rss());
}
