//! The tokenizer that a GGUF file carries, by reference into its metadata.

use super::{Array, Gguf, GgufError};

/// Tokenizer data of a model, as stored; building a tokenizer from it is the engine's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokenizer<'a> {
    /// Kind: `llama` (SentencePiece), `gpt2` (byte-level BPE), `bert`, ...
    pub model: &'a str,
    /// Name of the pre-tokenizer, for example `smollm` or `qwen2`.
    pub pre: Option<&'a str>,
    /// Text of each token, by id.
    pub tokens: &'a [String],
    /// Score of each token; empty when absent.
    pub scores: &'a [f32],
    /// Kind of each token (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte); empty when absent.
    pub token_types: &'a [i32],
    /// Merge rules `left right`, best first; empty when absent.
    pub merges: &'a [String],
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    /// Unknown text.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether `bos` is put before a text.
    pub add_bos: Option<bool>,
    /// Whether `eos` is put after a text.
    pub add_eos: Option<bool>,
    /// Whether a space is put before a text.
    pub add_space_prefix: Option<bool>,
    /// The chat template, in Jinja.
    pub chat_template: Option<&'a str>,
}

impl Gguf {
    /// The tokenizer, or `None` when the file carries none.
    ///
    /// Errors when an entry has another type, a per-token array another length than the tokens, or an id is past
    /// the end of the tokens.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer<'_>>, GgufError> {
        let Some(model) = self.str("tokenizer.ggml.model")? else {
            return Ok(None);
        };
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = self.u32(&key)?;
            match id {
                Some(id) if id as usize >= tokens.len() => Err(GgufError::WrongType {
                    key,
                    found: format!("{id}, of {} tokens", tokens.len()),
                    need: "the id of a token",
                }),
                _ => Ok(id),
            }
        };
        let scores = match self.per_token("tokenizer.ggml.scores", tokens.len())? {
            None => &[][..],
            Some(Array::F32(scores)) => scores,
            Some(other) => return Err(wrong("tokenizer.ggml.scores", other, "an array of f32")),
        };
        let token_types = match self.per_token("tokenizer.ggml.token_type", tokens.len())? {
            None => &[][..],
            Some(Array::I32(types)) => types,
            Some(other) => return Err(wrong("tokenizer.ggml.token_type", other, "an array of i32")),
        };
        Ok(Some(Tokenizer {
            model,
            pre: self.str("tokenizer.ggml.pre")?,
            tokens,
            scores,
            token_types,
            merges: self.strings("tokenizer.ggml.merges")?,
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            add_bos: self.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: self.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: self.bool("tokenizer.ggml.add_space_prefix")?,
            chat_template: self.str("tokenizer.chat_template")?,
        }))
    }

    fn strings(&self, key: &str) -> Result<&[String], GgufError> {
        match self.array(key)? {
            None => Ok(&[]),
            Some(array) => array.as_strings().ok_or_else(|| wrong(key, array, "an array of strings")),
        }
    }

    fn per_token(&self, key: &str, tokens: usize) -> Result<Option<&Array>, GgufError> {
        match self.array(key)? {
            Some(array) if array.len() != tokens => Err(GgufError::WrongType {
                key: key.into(),
                found: format!("an array of {}", array.len()),
                need: "an array with one element a token",
            }),
            other => Ok(other),
        }
    }
}

fn wrong(key: &str, found: &Array, need: &'static str) -> GgufError {
    GgufError::WrongType { key: key.into(), found: format!("an array of {} of another type", found.len()), need }
}
