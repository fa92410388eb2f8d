//! Tokenizers as the files of a Hugging Face model directory.
//!
//! For tokenizers that came from a GGUF file: what came from a model directory is copied as it is. The files are
//! written piece by piece, so that no second copy of the vocabulary is held.

use super::bpe::Bpe;
use super::tokenizer::{Tokenizer, Words};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Value, json};
use std::io::{self, Write};

impl Tokenizer {
    /// Writes `tokenizer.json`.
    ///
    /// Pairs whose merges rank equally (the ways to make one SentencePiece piece) are listed in the order of their ids,
    /// as the format knows no equal ranks.
    ///
    /// # Errors
    /// `out` fails.
    pub fn write_huggingface(&self, out: &mut dyn Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, &File(self))?)
    }

    /// The contents of `tokenizer_config.json`.
    pub fn huggingface_config(&self) -> String {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "add_bos_token": !self.prefix().is_empty(),
            "add_eos_token": !self.suffix().is_empty(),
        });
        let named = [
            ("bos_token", self.bos().and_then(|id| self.raw_token(id))),
            ("eos_token", self.eos().and_then(|id| self.raw_token(id))),
            ("pad_token", self.pad().and_then(|id| self.raw_token(id))),
            ("unk_token", self.unk().and_then(|id| self.raw_token(id))),
            ("chat_template", self.chat_template().map(str::to_owned)),
        ];
        for (name, text) in named {
            if let Some(text) = text {
                config[name] = Value::String(text);
            }
        }
        format!("{config:#}\n")
    }

    /// The ids before and after a text, as the format's template.
    fn template(&self) -> Value {
        let piece = |id: &u32| json!({"SpecialToken": {"id": self.name(*id), "type_id": 0}});
        let around = |name: &str, type_id: u32| -> Vec<Value> {
            let text = json!({"Sequence": {"id": name, "type_id": type_id}});
            self.prefix().iter().map(piece).chain([text]).chain(self.suffix().iter().map(piece)).collect()
        };
        let specials = self.prefix().iter().chain(self.suffix());
        let specials: serde_json::Map<String, Value> = specials
            .map(|&id| (self.name(id), json!({"id": self.name(id), "ids": [id], "tokens": [self.name(id)]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        match specials.is_empty() {
            true => Value::Null,
            false => json!({
                "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": specials,
            }),
        }
    }

    fn name(&self, id: u32) -> String {
        self.raw_token(id).unwrap_or_default()
    }
}

/// The whole file.
struct File<'a>(&'a Tokenizer);

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokenizer = self.0;
        let added = tokenizer.added_list().iter().map(|added| {
            json!({
                "id": added.id, "content": added.content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": added.is_special,
            })
        });
        let (normalizer, pre, decoder) = tokenizer.steps();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", "1.0")?;
        map.serialize_entry("truncation", &Value::Null)?;
        map.serialize_entry("padding", &Value::Null)?;
        map.serialize_entry("added_tokens", &added.collect::<Vec<_>>())?;
        map.serialize_entry("normalizer", &normalizer)?;
        map.serialize_entry("pre_tokenizer", &pre)?;
        map.serialize_entry("post_processor", &tokenizer.template())?;
        map.serialize_entry("decoder", &decoder)?;
        match tokenizer.words() {
            Words::Bpe(bpe) => map.serialize_entry("model", &Model(bpe))?,
            Words::Other(model) => map.serialize_entry("model", model)?,
        }
        map.end()
    }
}

struct Model<'a>(&'a Bpe);

impl Serialize for Model<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Model(bpe) = self;
        let affix = |text: &str| if text.is_empty() { Value::Null } else { Value::from(text) };
        let rules = &bpe.rules;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", "BPE")?;
        map.serialize_entry("dropout", &Value::Null)?;
        map.serialize_entry("unk_token", &rules.unk.and_then(|id| bpe.vocab.piece(id)))?;
        map.serialize_entry("continuing_subword_prefix", &affix(&rules.continuing_prefix))?;
        map.serialize_entry("end_of_word_suffix", &affix(&rules.word_suffix))?;
        map.serialize_entry("fuse_unk", &rules.fuse_unk)?;
        map.serialize_entry("byte_fallback", &rules.byte_fallback)?;
        map.serialize_entry("ignore_merges", &rules.ignore_merges)?;
        map.serialize_entry("vocab", &Pieces(bpe))?;
        map.serialize_entry("merges", &Merges(bpe))?;
        map.end()
    }
}

/// Pieces with their ids; of ids with the same text the one that is found by it.
struct Pieces<'a>(&'a Bpe);

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let vocab = &self.0.vocab;
        let mut map = serializer.serialize_map(None)?;
        for id in 0..vocab.len() as u32 {
            if let Some(piece) = vocab.piece(id).filter(|piece| vocab.id(piece) == Some(id)) {
                map.serialize_entry(piece, &id)?;
            }
        }
        map.end()
    }
}

struct Merges<'a>(&'a Bpe);

impl Serialize for Merges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for (left, right) in self.0.merges_by_rank() {
            let piece = |id| self.0.vocab.piece(id).unwrap_or_default();
            seq.serialize_element(&(piece(left), piece(right)))?;
        }
        seq.end()
    }
}
