//! Tokenizers: the published ids of real vocabularies, control tokens, round trips, hostile files.

mod data_common;

use data_common::{BOS, EOS, assets, byte_tokenizer};
use proptest::prelude::*;
use tinyforge::text::{GgufVocab, Join, TextStream, Tokenizer, TokenizerFiles, TokenizerWarning};

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
    for text in [
        "Once upon a time",
        "\u{fffd}\u{fffd}\u{4e2d}\u{fffd} x",
        "caf\u{e9} \u{1f600}  two  spaces\n\nlines \u{4e2d}\u{6587}",
    ] {
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

/// The stories vocabulary as a GGUF file would have it: pieces in the order in which they were made, so that an earlier
/// piece scores higher.
fn stories_as_gguf() -> Option<GgufVocab> {
    let json = std::fs::read(assets()?.join("stories260K/tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let mut tokens = vec![String::new(); 512];
    for (piece, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = piece.clone();
    }
    let kind = |id| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    };
    Some(GgufVocab {
        model: "llama".into(),
        scores: (0..512).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect(),
        token_types: (0..512).map(kind).collect(),
        tokens,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    })
}

#[test]
fn scores_merge_as_the_merge_list_does() {
    let (Some((hf, reference)), Some(vocab)) = (stories(), stories_as_gguf()) else { return };
    let gguf = Tokenizer::from_gguf(&vocab).unwrap();
    let story = reference["tinystories_text"].as_str().unwrap();
    let play = std::fs::read_to_string(assets().unwrap().join("text/tinyshakespeare.txt")).unwrap();
    for text in [story, &play[..100_000], "", " ", "  a  b ", "caf\u{e9}</s>x", "\n\n"] {
        for parse_special in [false, true] {
            let ids = gguf.encode(text, true, parse_special).unwrap();
            assert_eq!(ids, hf.encode(text, true, parse_special).unwrap(), "{:?}", text.get(..20));
        }
        assert_eq!(gguf.decode(&gguf.encode(text, true, false).unwrap(), true).unwrap(), text);
    }
}

#[test]
fn control_tokens_are_read_only_when_asked() {
    let tokenizer = byte_tokenizer(true, None);
    let text = "a<|im_end|>";
    assert_eq!(tokenizer.encode(text, false, true).unwrap()[1..], [EOS]);
    let plain = tokenizer.encode(text, true, false).unwrap();
    assert_eq!((plain.len(), plain[0]), (text.len() + 1, BOS));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&[EOS, BOS, 9999], false).unwrap(), "<|im_end|><|im_start|>");
    assert_eq!(tokenizer.decode(&[EOS, BOS], true).unwrap(), "");
    assert_eq!((tokenizer.end_ids(), tokenizer.is_special(EOS), tokenizer.is_special(0)), (&[EOS][..], true, false));
    assert_eq!((tokenizer.token_id("<|im_start|>"), tokenizer.vocab_len()), (Some(BOS), 259));
    assert_ne!(tokenizer.fingerprint(), byte_tokenizer(false, None).fingerprint());
}

#[test]
fn word_patterns_split_numbers_and_words_as_named() {
    let words = |pre: &str, text: &str| {
        let mut tokens: Vec<String> = (0..10).map(|digit| digit.to_string()).collect();
        tokens.extend(["12", "123", "1234", "12345", "a", "b", "ab", "A", "bA", "\u{120}"].map(str::to_owned));
        let merges = ["1 2", "12 3", "123 4", "1234 5", "a b", "b A"].map(str::to_owned).to_vec();
        let vocab = GgufVocab { model: "gpt2".into(), pre: Some(pre.into()), tokens, merges, ..GgufVocab::default() };
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        let ids = tokenizer.encode(text, false, false).unwrap();
        ids.iter().map(|&id| tokenizer.raw_token(id).unwrap()).collect::<Vec<_>>().join(" ")
    };
    for (pre, expected) in
        [("gpt-2", "12345"), ("smollm", "1 2 3 4 5"), ("llama-bpe", "123 4 5"), ("qwen2", "1 2 3 4 5")]
    {
        assert_eq!(words(pre, "12345"), expected, "{pre}");
    }
    assert_eq!(words("llama-bpe", "abA"), "ab A");
    assert_eq!(words("gpt-4o", "bA"), "b A");
    assert_eq!(words("gpt-2", "bA a"), "bA \u{120} a");
}

fn gguf_error(change: impl FnOnce(&mut GgufVocab)) -> String {
    let mut vocab = GgufVocab {
        model: "gpt2".into(),
        tokens: ["a", "b", "ab"].map(str::to_owned).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    assert!(Tokenizer::from_gguf(&vocab).is_ok());
    change(&mut vocab);
    Tokenizer::from_gguf(&vocab).unwrap_err().to_string()
}

#[test]
fn contradictions_in_metadata_are_errors() {
    assert!(gguf_error(|v| v.model = "bert".into()).contains("`bert` is not supported (supported: gpt2, llama)"));
    assert!(gguf_error(|v| v.pre = Some("new".into())).contains("pre-tokenizer `new`"));
    assert!(gguf_error(|v| v.merges[0] = "a c".into()).contains("`c` is not in the vocabulary"));
    assert!(gguf_error(|v| v.merges[0] = "b a".into()).contains("`ba` is not in the vocabulary"));
    assert!(gguf_error(|v| v.merges[0] = "ab".into()).contains("not two pieces"));
    assert!(gguf_error(|v| v.eos = Some(3)).contains("eos token is 3, the vocabulary has 3"));
    assert!(gguf_error(|v| v.token_types = vec![1]).contains("1 token types for 3 tokens"));
    assert!(gguf_error(|v| v.model = "llama".into()).contains("no scores"));
    let nan = |v: &mut GgufVocab| (v.model, v.scores) = ("llama".into(), vec![0.0, f32::NAN, 0.0]);
    assert!(gguf_error(nan).contains("score of token 1"));
    assert!(gguf_error(|v| v.ends = vec![7]).contains("end token is 7"));
    let empty = Tokenizer::from_gguf(&GgufVocab { model: "gpt2".into(), ..GgufVocab::default() }).unwrap();
    assert_eq!((empty.warning(), byte_tokenizer(false, None).warning()), (Some(TokenizerWarning::NoPattern), None));
}

/// The tokenizer that the files say which another one writes.
fn written_and_read(tokenizer: &Tokenizer) -> Tokenizer {
    let (mut json, config) = (Vec::new(), tokenizer.huggingface_config());
    tokenizer.write_huggingface(&mut json).unwrap();
    let files = TokenizerFiles { tokenizer: &json, config: Some(config.as_bytes()), ..TokenizerFiles::default() };
    Tokenizer::from_huggingface(files).unwrap()
}

#[test]
fn gguf_vocabularies_are_the_same_as_json_files() {
    let mut vocabs = Vec::new();
    for (pre, nfc) in [("gpt-2", false), ("smollm", false), ("llama-bpe", false), ("qwen2", true), ("tekken", false)] {
        let mut tokens: Vec<String> = ('\u{21}'..='\u{7e}').chain('\u{a1}'..='\u{143}').map(String::from).collect();
        tokens.extend(["an", "and", "\u{120}and", "12", "an", "<|end|>", "<|user|>"].map(str::to_owned));
        let mut token_types = vec![1; tokens.len() - 2];
        token_types.extend([3, 4]);
        let merges = ["a n", "an d", "\u{120} and", "1 2"].map(str::to_owned).to_vec();
        let eos = Some(tokens.len() as u32 - 2);
        let (model, pre) = ("gpt2".to_owned(), Some(pre.to_owned()));
        let add_eos = Some(nfc);
        let bos = Some(3);
        vocabs.push(GgufVocab { model, pre, tokens, token_types, merges, eos, bos, add_eos, ..GgufVocab::default() });
    }
    let stories = stories_as_gguf();
    let no_space = stories.clone().map(|vocab| GgufVocab { add_space_prefix: Some(false), ..vocab });
    vocabs.extend(stories.into_iter().chain(no_space));
    for vocab in vocabs {
        let ours = Tokenizer::from_gguf(&vocab).unwrap();
        let theirs = written_and_read(&ours);
        for text in ["", "and an 12 and123 <|end|>And<|user|>and", " two  spaces\n\n caf\u{e9} cafe\u{301} \u{1f600}"] {
            for special in [false, true] {
                let ids = ours.encode(text, special, special).unwrap();
                assert_eq!(theirs.encode(text, special, special).unwrap(), ids, "{:?} {text}", vocab.pre);
                assert_eq!(theirs.decode(&ids, special).unwrap(), ours.decode(&ids, special).unwrap());
            }
        }
        let named = |t: &Tokenizer| [t.bos(), t.eos(), t.pad(), t.unk()];
        assert_eq!((named(&theirs), theirs.end_ids()), (named(&ours), ours.end_ids()), "{:?}", vocab.pre);
        assert_eq!((theirs.prefix(), theirs.suffix()), (ours.prefix(), ours.suffix()));
    }
}

const SMALL_JSON: &str = r#"{"version":"1.0","added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":false,
"rstrip":true,"normalized":false,"special":true}],"normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"Sequence",
"pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+"},"behavior":"Removed","invert":false},{"type":"Digits",
"individual_digits":true}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>",
"type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}}],"special_tokens":
{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},"decoder":{"type":"BPEDecoder","suffix":"</w>"},"model":{"type":"BPE",
"dropout":null,"unk_token":"a","continuing_subword_prefix":null,"end_of_word_suffix":"</w>","fuse_unk":true,
"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b</w>":1,"ab</w>":2},"merges":[["a","b</w>"]]}}"#;

fn read_json(json: &str) -> Result<Tokenizer, String> {
    let files = TokenizerFiles { tokenizer: json.as_bytes(), ..TokenizerFiles::default() };
    Tokenizer::from_huggingface(files).map_err(|error| error.to_string())
}

#[test]
fn the_parts_of_a_json_file_all_count() {
    let tokenizer = read_json(SMALL_JSON).unwrap();
    assert_eq!(tokenizer.encode("AB <s>  ab Q", true, true).unwrap(), [3, 2, 3, 2, 0]);
    assert_eq!(tokenizer.decode(&[2, 2], false).unwrap(), "ab ab");
    let config = br#"{"bos_token":{"content":"<s>"},"add_bos_token":false,"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]}"#;
    let files = |chat_template| TokenizerFiles {
        tokenizer: SMALL_JSON.as_bytes(),
        config: Some(config),
        chat_template,
        ..TokenizerFiles::default()
    };
    let with_config = Tokenizer::from_huggingface(files(None)).unwrap();
    assert_eq!((with_config.bos(), with_config.prefix(), with_config.chat_template()), (Some(3), &[][..], Some("d")));
    let with_file = Tokenizer::from_huggingface(files(Some("own"))).unwrap();
    assert_eq!(with_file.chat_template(), Some("own"));
    let strips = SMALL_JSON
        .replace(r#""type":"BPEDecoder","suffix":"</w>""#, r#""type":"Strip","content":"a","start":0,"stop":99"#);
    let error = read_json(&strips).unwrap().decode(&[0], false).unwrap_err().to_string();
    assert!(error.contains("contradicts itself"), "{error}");
    assert!(read_json("{").unwrap_err().starts_with("tokenizer.json: "));
    assert!(read_json(&SMALL_JSON.replace("\"ab</w>\":2", "\"x\":2")).unwrap_err().contains("`ab</w>`"));
    assert!(read_json(&SMALL_JSON.replace("\"a\":0", "\"a\":4294967295")).unwrap_err().contains("largest id"));
    assert!(read_json(&SMALL_JSON.replace("\"unk_token\":\"a\"", "\"unk_token\":\"z\"")).unwrap_err().contains("`z`"));
}

/// Replaces the `at`-th leaf of a JSON value.
fn replace_leaf(value: &mut serde_json::Value, at: &mut usize, with: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => items.iter_mut().any(|v| replace_leaf(v, at, with)),
        serde_json::Value::Object(map) if !map.is_empty() => map.values_mut().any(|v| replace_leaf(v, at, with)),
        leaf if *at == 0 => {
            *leaf = with.clone();
            true
        }
        _ => {
            *at -= 1;
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_files_never_panic(at in 0usize..50, with in 0usize..12, cut in 0usize..4000) {
        let mut json: serde_json::Value = serde_json::from_str(SMALL_JSON).unwrap();
        let leaves = serde_json::json!([null, true, 0, -1, 1e300, 4294967295u64, "", "<s>", "(", "[", [], {"type": "WordPiece"}]);
        replace_leaf(&mut json, &mut { at }, &leaves[with]);
        if let Ok(tokenizer) = read_json(&json.to_string()) {
            let ids = tokenizer.encode("ab <s> a1 \u{e9}", true, true);
            let _ = tokenizer.decode(&ids.unwrap_or_default(), false);
        }
        let _ = read_json(SMALL_JSON.get(..cut).unwrap_or_default());
    }

    #[test]
    fn any_text_comes_back(text in any::<String>(), parse_special: bool) {
        let tokenizer = byte_tokenizer(false, None);
        let ids = tokenizer.encode(&text, false, parse_special).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        let mut stream = TextStream::new(&tokenizer, false);
        let mut out: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        out.push_str(&stream.finish().unwrap());
        prop_assert_eq!(out, text);
    }
}
