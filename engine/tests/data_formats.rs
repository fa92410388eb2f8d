//! Every format of data files: what becomes of good ones, and what is said of bad ones.

mod data_common;

use data_common::{BOS, EOS, Scratch, assets, byte_tokenizer, make, read_all, segments};
use tinyforge::data::{DataOptions, Kind};
use tinyforge::text::Tokenizer;

/// Makes rows of one file and renders each segment: masked tokens in brackets, trained ones outside.
fn rendered(name: &str, content: &str, options: &DataOptions, tokenizer: &Tokenizer) -> Vec<String> {
    let scratch = Scratch::new(&format!("rendered-{name}"));
    let set = make(&scratch.file(name, content), None, options, tokenizer).unwrap();
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    let mut out = Vec::new();
    for row in read_all(&*set.train) {
        for (tokens, trained) in segments(&row) {
            let runs = tokens.iter().zip(&trained).collect::<Vec<_>>();
            let render = |run: &[(&u32, &bool)]| {
                let ids: Vec<u32> = run.iter().map(|(id, _)| **id).collect();
                if *run[0].1 { text(&ids) } else { format!("[{}]", text(&ids)) }
            };
            out.push(runs.chunk_by(|a, b| a.1 == b.1).map(render).collect());
        }
    }
    out
}

fn error(name: &str, content: impl AsRef<[u8]>) -> String {
    let scratch = Scratch::new(&format!("error-{}-{}", name, content.as_ref().len()));
    let tokenizer = byte_tokenizer(false, None);
    let set = make(&scratch.file(name, content), None, &DataOptions::new(64), &tokenizer);
    match set {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn prompts_are_masked_and_completions_end_with_the_end_token() {
    let tokenizer = byte_tokenizer(false, None);
    let options = DataOptions::new(64);
    let line = r#"{"prompt":"2+2=","completion":"4"}"#;
    assert_eq!(rendered("a.jsonl", line, &options, &tokenizer), ["[2+2=]4<|im_end|>"]);
    let unmasked = DataOptions { mask_prompt: false, ..options };
    assert_eq!(rendered("b.jsonl", line, &unmasked, &tokenizer), ["[2]+2=4<|im_end|>"]);
    let line = r#"{"question":"q?","answer":"a"}"#;
    assert_eq!(rendered("c.jsonl", line, &options, &tokenizer), ["[q?\n]a<|im_end|>"]);
    let line = r#"{"instruction":"do","input":"x","output":"y"}"#;
    assert_eq!(rendered("d.jsonl", line, &options, &tokenizer), ["[do\n\nx\n]y<|im_end|>"]);
    let with_bos = byte_tokenizer(true, None);
    let line = r#"{"prompt":"p","completion":"c<|im_end|>"}"#;
    assert_eq!(rendered("e.jsonl", line, &options, &with_bos), ["[<|im_start|>p]c<|im_end|>"]);
    assert_eq!(with_bos.prefix(), [BOS]);
}

#[test]
fn chats_follow_the_template_and_train_the_answers() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let tokenizer = byte_tokenizer(false, Some(template));
    let options = DataOptions::new(256);
    let line = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"},{"role":"user","content":"?"},{"role":"assistant","content":"!"}]}"#;
    let expected = "[<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n]yo<|im_end|>[\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n]!<|im_end|>";
    assert_eq!(rendered("a.jsonl", line, &options, &tokenizer), [expected]);
    let line = r#"{"question":"hi","answer":"yo"}"#;
    let expected = "[<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n]yo<|im_end|>";
    assert_eq!(rendered("b.jsonl", line, &options, &tokenizer), [expected]);
}

#[test]
fn texts_go_on_in_further_rows() {
    let tokenizer = byte_tokenizer(false, None);
    let options = DataOptions::new(4);
    let expected = ["[a]bcde", "[e]fghi", "[i]<|im_end|>"];
    assert_eq!(rendered("a.txt", "abcdefghi", &options, &tokenizer), expected);
    assert_eq!(rendered("a.jsonl", r#"{"text":"abcdefghi"}"#, &options, &tokenizer), expected);
    assert_eq!(rendered("b.txt", "\u{feff}a\r\nb", &options, &tokenizer), ["[a]\r\nb<|im_end|>"]);
}

#[test]
fn what_is_longer_than_a_row_is_cut_and_counted() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("cut");
    let lines = [
        r#"{"prompt":"abc","completion":"defghij"}"#,
        r#"{"prompt":"a prompt too long","completion":"x"}"#,
        "",
        r#"{"prompt":"a","completion":"b","weight":0.5}"#,
        r#"{"prompt":"a","completion":"b","weight":0}"#,
    ];
    let data = scratch.file("a.jsonl", lines.join("\r\n"));
    let set = make(&data, None, &DataOptions::new(6), &tokenizer).unwrap();
    let counts = set.train_counts;
    assert_eq!((counts.documents, counts.rows, counts.truncated_documents, counts.truncated_tokens), (4, 2, 1, 4));
    assert_eq!((counts.dropped_documents, counts.longest_tokens), (2, 19));
    let rows = read_all(&*set.train);
    assert_eq!(rows[1].loss_weight, [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(rows[1].labels[2..], [-100; 4]);
    assert_eq!(rows[1].segments, [0, 0, -1, -1, -1, -1]);
    assert_eq!(rows[1].labels[1], EOS as i32);
    let inspection = set.inspect(&tokenizer).unwrap().to_string();
    assert!(inspection.contains("masked  (   3) a|b|c\n  trained (   4) d|e|f|g"), "{inspection}");
    assert!(inspection.contains("1 documents longer than a row were cut, 4 tokens lost"), "{inspection}");
}

#[test]
fn a_directory_is_its_files_by_name() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("dir");
    scratch.file("b.jsonl", r#"{"text":"b"}"#);
    scratch.file("a.txt", "a");
    scratch.file("notes.bin", [0xFF]);
    scratch.file(".hidden.txt", "x");
    let set = make(scratch.path(), None, &DataOptions::new(8), &tokenizer).unwrap();
    assert_eq!(set.kind, Kind::Text);
    let first: Vec<u32> = read_all(&*set.train).iter().map(|row| row.tokens[0]).collect();
    assert_eq!(
        first,
        [tokenizer.encode("a", false, false).unwrap(), tokenizer.encode("b", false, false).unwrap()].concat()
    );
    scratch.file("c.jsonl", r#"{"prompt":"p","completion":"c"}"#);
    let error = make(scratch.path(), None, &DataOptions::new(8), &tokenizer).err().unwrap().to_string();
    assert!(error.contains("c.jsonl:1:") && error.contains("of one kind"), "{error}");
}

#[test]
fn bad_files_are_named_with_their_line() {
    let good = "{\"text\":\"a\"}\n";
    let cases: [(&str, Vec<u8>, &str); 12] = [
        ("a.jsonl", b"".to_vec(), "the file is empty"),
        ("a.jsonl", b"\n \r\n".to_vec(), "no line with a record"),
        ("a.jsonl", [good.as_bytes(), b"{\"text\":\"\xFF\"}"].concat(), "a.jsonl:2: byte 10 of the line is not UTF-8"),
        ("a.jsonl", [good.as_bytes(), b"{\"text\":\"a\0\"}"].concat(), "a.jsonl:2: control character"),
        ("a.jsonl", format!("{good}\n{{\"text\":3}}").into_bytes(), "a.jsonl:3: `text` must be a string"),
        ("a.jsonl", format!("{good}{{\"prompt\":\"a\"}}").into_bytes(), "a.jsonl:2: the lines before have `text`"),
        ("a.jsonl", b"[{\"text\":\"a\"}]".to_vec(), "a.jsonl:1: expected one JSON object a line"),
        ("a.jsonl", b"{\"text\":\"\\ud800\"}".to_vec(), "a.jsonl:1: `text` must be a string"),
        ("a.jsonl", b"{\"prompt\":\"a\",\"completion\":\"b\",\"weight\":1e400}".to_vec(), "a.jsonl:1: `weight`"),
        ("a.txt", b"ab\ncd\xC3".to_vec(), "a.txt:2: byte 6 of the file is not UTF-8"),
        ("a.txt", b"ab\xE9cd".to_vec(), "a.txt:1: byte 3 of the file is not UTF-8"),
        ("a.jsonl", b"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}".to_vec(), "no row is left to train on"),
    ];
    for (name, content, expected) in cases {
        let error = error(name, &content);
        assert!(error.contains(expected), "{error} (expected {expected})");
    }
    let long = format!("{{\"text\":\"{}\"}}", "a".repeat(64 << 20));
    assert!(error("a.jsonl", long).contains("longer than 64 MiB"));
    let tokenizer = byte_tokenizer(false, None);
    let missing = make("no/such.jsonl".as_ref(), None, &DataOptions::new(8), &tokenizer).err().unwrap().to_string();
    assert!(missing.starts_with("no/such.jsonl: "), "{missing}");
    let zero = make("x".as_ref(), None, &DataOptions::new(0), &tokenizer).err().unwrap().to_string();
    assert!(zero.contains("a row of 0 tokens"), "{zero}");
}

#[test]
fn real_questions_and_answers_become_rows() {
    let Some(assets) = assets() else { return };
    let tokenizer = byte_tokenizer(false, None);
    let set = make(&assets.join("text/gsm8k-test.jsonl"), None, &DataOptions::new(512), &tokenizer).unwrap();
    let counts = set.train_counts;
    assert_eq!((set.kind, counts.documents), (Kind::QuestionAnswer, 1319));
    assert_eq!(counts.rows + counts.dropped_documents, 1319);
    assert!(counts.truncated_documents > 100 && counts.trained_tokens > 100_000);
}
