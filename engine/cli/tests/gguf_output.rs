//! A model trained from a GGUF file is a Hugging Face directory with a tokenizer: it generates, evaluates and trains
//! on.

mod made;

use made::{Llama, Scratch, arg, run, write_text};
use std::path::Path;
use tinyforge_cli::model::Model;
use tinyforge_compiler::import::gguf::{self, Array, Value};
use tinyforge_compiler::import::gguf_export;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_plan::DType;

/// The byte-level alphabet, a few merged pieces and two control tokens.
fn vocabulary() -> (Vec<String>, Vec<String>, Vec<i32>) {
    let printable = (33..=126u32).chain(161..=172).chain(174..=255);
    let mut tokens: Vec<String> = printable.chain(256..324).filter_map(char::from_u32).map(String::from).collect();
    let merges = ["t h", "th e", "Ġ the", "a n", "an d", "i n", "in g"].map(str::to_owned).to_vec();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    types.extend([3, 3]);
    (tokens, merges, types)
}

/// Writes a small llama with a tokenizer as a GGUF file in f32.
fn write_gguf(scratch: &Scratch, path: &Path) {
    let (tokens, merges, types) = vocabulary();
    let last = tokens.len() as u32 - 1;
    let llama = Llama { vocab: tokens.len() as u32, hidden: 32, layers: 2, ff: 52, tied: false };
    llama.write(&scratch.join("shape"));
    let config = Model::open(&scratch.join("shape")).expect("opens").config;
    let mut metadata = gguf_export::metadata(&config).expect("can be said");
    let strings = |list: Vec<String>| Value::Array(Array::String(list));
    metadata.extend(
        [
            ("model", Value::String("gpt2".into())),
            ("pre", Value::String("smollm".into())),
            ("tokens", strings(tokens)),
            ("merges", strings(merges)),
            ("token_type", Value::Array(Array::I32(types))),
            ("bos_token_id", Value::U32(last - 1)),
            ("eos_token_id", Value::U32(last)),
            ("add_bos_token", Value::Bool(true)),
        ]
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)),
    );
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";
    metadata.push(("tokenizer.chat_template".to_owned(), Value::String(template.into())));
    let params = config.params();
    let list: Vec<NewTensor> = params.iter().map(|p| NewTensor::new(p.gguf_name(), DType::F32, &p.shape)).collect();
    let layout = gguf::layout(&metadata, &list).expect("can be laid out");
    let mut bytes = layout.header;
    for place in &layout.tensors {
        bytes.resize(place.offset as usize, 0);
        let count = place.shape.iter().product::<u64>();
        let value = |k: u64| if place.shape.len() == 1 { 1.0 } else { ((k * 7919 % 200) as f32 - 100.0) / 600.0 };
        bytes.extend((0..count).flat_map(|k| value(k).to_le_bytes()));
    }
    bytes.resize(layout.file_bytes as usize, 0);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn what_a_gguf_file_was_trained_to_is_a_model_with_a_tokenizer() {
    let scratch = Scratch::new("gguf-output");
    let (file, text, out) = (scratch.join("base.gguf"), scratch.join("text.txt"), scratch.join("out"));
    write_gguf(&scratch, &file);
    write_text(&text, 4000);
    let train = ["train", arg(&file), "--data", arg(&text), "--out", arg(&out), "--scheme", "last:1", "--seq", "64"];
    run(train.iter().chain(&["--steps", "2", "--batch", "1", "--threads", "1"])).ok();
    let folder = out.join("model");
    let [base, trained] = [&file, &folder].map(|path| Model::open(path).expect("opens").tokenizer().expect("has one"));
    let text = std::fs::read_to_string(&text).expect("written above");
    for text in [&text, "the thing 2024, and <|im_end|> caf\u{e9} \u{1f600}\n\n", ""] {
        for parse_special in [false, true] {
            let [ours, theirs] = [&trained, &base].map(|t| t.encode(text, true, parse_special).expect("encodes"));
            assert_eq!(ours, theirs);
            assert_eq!(trained.decode(&ours, true).expect("decodes"), base.decode(&theirs, true).expect("decodes"));
        }
    }
    let all = |t: &tinyforge::text::Tokenizer| (t.bos(), t.eos(), t.vocab_len(), t.chat_template().map(str::to_owned));
    assert_eq!(all(&trained), all(&base));
    assert_eq!((trained.prefix(), trained.end_ids()), (base.prefix(), base.end_ids()));
    run(["generate", arg(&folder), "--prompt", "the", "--max-tokens", "4"]).ok();
    run(["eval", arg(&folder), "--data", arg(&scratch.join("text.txt")), "--seq", "64"]).ok();
}
