//! What the data tests share: a tokenizer whose tokens are bytes, scratch folders, reading all rows.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tinyforge::data::{DataError, DataOptions, DataSet, Row, RowReader, prepare};
use tinyforge::text::{GgufVocab, Tokenizer};

pub(crate) const EOS: u32 = 256;
pub(crate) const BOS: u32 = 257;
pub(crate) const PAD: u32 = 258;

/// A byte-level tokenizer without merges: one token a byte, in the order of the byte-level alphabet, and three
/// control tokens. Ids of bytes are looked up through the tokenizer itself.
pub(crate) fn byte_tokenizer(add_bos: bool, chat_template: Option<&str>) -> Tokenizer {
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let mut shifted = 256;
    let mut tokens: Vec<String> = Vec::new();
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    tokens.extend(["<|im_end|>", "<|im_start|>", "<pad>"].map(str::to_owned));
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3, 3]);
    let vocab = GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        eos: Some(EOS),
        bos: Some(BOS),
        pad: Some(PAD),
        add_bos: Some(add_bos),
        chat_template: chat_template.map(str::to_owned),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

/// The folder of real models and texts, `None` (with a line saying so) where it is absent.
pub(crate) fn assets() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = std::env::var_os("TINYFORGE_ASSETS").map_or(root.join("../shared/assets"), PathBuf::from);
    let path = path.exists().then_some(path);
    if path.is_none() {
        println!("skipped: no assets folder (set TINYFORGE_ASSETS)");
    }
    path
}

/// A folder that is removed when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tinyforge-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn make(
    data: &Path,
    out: Option<&Path>,
    options: &DataOptions,
    tokenizer: &Tokenizer,
) -> Result<DataSet, DataError> {
    prepare(data, None, out, options, tokenizer, &mut |_| ControlFlow::Continue(()))
}

pub(crate) fn read_all(rows: &dyn RowReader) -> Vec<Row> {
    let mut all = Vec::new();
    let mut row = Row::padding(rows.seq(), 0);
    for at in 0..rows.rows() {
        rows.read(at, &mut row.buf()).unwrap();
        all.push(row.clone());
    }
    all
}

/// The segments of a row: the tokens of each with the label of the last, and which of them are trained.
pub(crate) fn segments(row: &Row) -> Vec<(Vec<u32>, Vec<bool>)> {
    let mut out: Vec<(Vec<u32>, Vec<bool>)> = Vec::new();
    for at in 0..row.tokens.len() {
        let segment = row.segments[at];
        if segment < 0 {
            break;
        }
        if segment as usize == out.len() {
            out.push((vec![row.tokens[at]], vec![false]));
        }
        let is_last = row.segments.get(at + 1) != Some(&segment);
        let label = row.labels[at];
        let (tokens, trained) = out.last_mut().unwrap();
        if !is_last {
            tokens.push(row.tokens[at + 1]);
            trained.push(label >= 0);
            assert!(label == -100 || label as u32 == row.tokens[at + 1]);
        } else if label >= 0 {
            tokens.push(label as u32);
            trained.push(true);
        }
    }
    out
}
