//! Data files: lines of JSON, or text. The first byte says which, and how rows are made of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::LazyLock;
use tinyforge::data::{DataOptions, IGNORED, Row, RowReader, prepare};
use tinyforge::text::{GgufVocab, Tokenizer};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// One token a byte-level character, and two control tokens; with and without a template.
static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
    let mut tokens: Vec<String> =
        (33..=126u32).chain(161..=323).map(|c| String::from_iter(char::from_u32(c))).collect();
    let end = tokens.len() as u32;
    tokens.extend(["<|im_end|>", "<|im_start|>"].map(str::to_owned));
    let token_types = (0..tokens.len() as u32).map(|id| if id < end { 1 } else { 3 }).collect();
    let vocab = GgufVocab { model: "gpt2".into(), tokens, token_types, eos: Some(end), ..GgufVocab::default() };
    let with_template = GgufVocab { chat_template: Some(TEMPLATE.into()), ..vocab.clone() };
    [vocab, with_template].map(|vocab| Tokenizer::from_gguf(&vocab).expect("a small vocabulary"))
});

fuzz_target!(|data: &[u8]| {
    let Some((&how, content)) = data.split_first() else { return };
    let extension = ["jsonl", "txt", "data"][usize::from(how) % 3];
    let path = PathBuf::from(format!("{}/tinyforge-fuzz-{}.{extension}", scratch(), std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    let tokenizer = &TOKENIZERS[usize::from(how >> 4 & 1)];
    let options = DataOptions {
        pack: how & 32 != 0,
        mask_prompt: how & 64 == 0,
        valid_fraction: if how & 128 == 0 { 0.0 } else { 0.5 },
        ..DataOptions::new(24)
    };
    match prepare(&path, None, None, &options, tokenizer, &mut |_| ControlFlow::Continue(())) {
        Err(error) => assert!(error.to_string().len() < 10_000),
        Ok(set) => {
            set.inspect(tokenizer).expect("rows were made");
            check(&*set.train, tokenizer.vocab_len() as u32);
            if let Some(valid) = &set.valid {
                check(&**valid, tokenizer.vocab_len() as u32);
            }
        }
    }
});

/// A folder in memory where there is one.
fn scratch() -> String {
    let shared = "/dev/shm";
    let is_there = std::path::Path::new(shared).is_dir();
    if is_there { shared.to_owned() } else { std::env::temp_dir().display().to_string() }
}

fn check(rows: &dyn RowReader, vocab: u32) {
    let mut row = Row::padding(rows.seq(), 0);
    assert!(rows.rows() > 0);
    for at in 0..rows.rows() {
        rows.read(at, &mut row.buf()).expect("a row of the set");
        let mut trained = 0;
        for t in 0..rows.seq() {
            let (label, weight) = (row.labels[t], row.loss_weight[t]);
            assert!(row.tokens[t] < vocab && (label == IGNORED || (0..vocab as i32).contains(&label)));
            assert!(weight.is_finite() && weight >= 0.0 && (weight == 0.0 || label != IGNORED));
            trained += u32::from(label != IGNORED);
            let continues = t > 0 && row.segments[t] >= 0 && row.segments[t] == row.segments[t - 1];
            assert!(!continues || row.positions[t] == row.positions[t - 1] + 1);
        }
        assert!(trained > 0, "a row that trains nothing");
    }
}
