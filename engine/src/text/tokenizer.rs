//! The tokenizer: text to ids and back.
//!
//! One structure whichever file it came from: added tokens are cut out of the text, the rest is normalised, split into
//! words and turned into ids word by word. Long texts are worked on in parts, so the working memory is bounded.

use super::TextError;
use super::bpe::{Bpe, Scratch};
use super::chunk::part_len;
use tokenizers::tokenizer::{OffsetReferential, OffsetType};
use tokenizers::{
    AddedVocabulary, Decoder as _, DecoderWrapper, Model as _, ModelWrapper, NormalizerWrapper, PreTokenizer as _,
    PreTokenizerWrapper,
};

/// How a text stands to what was encoded before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// It begins a document: SentencePiece vocabularies put their leading space before it.
    Start,
    /// It continues one: the ids are those the text has in the middle of a longer text.
    Continue,
}

/// The part that turns one word into ids.
#[derive(Debug)]
pub(crate) enum Words {
    Bpe(Box<Bpe>),
    Other(Box<ModelWrapper>),
}

impl Words {
    fn piece(&self, id: u32) -> Option<String> {
        match self {
            Words::Bpe(bpe) => bpe.vocab.piece(id).map(str::to_owned),
            Words::Other(model) => model.id_to_token(id),
        }
    }

    fn id(&self, piece: &str) -> Option<u32> {
        match self {
            Words::Bpe(bpe) => bpe.vocab.id(piece),
            Words::Other(model) => model.token_to_id(piece),
        }
    }

    fn len(&self) -> usize {
        match self {
            Words::Bpe(bpe) => bpe.vocab.len(),
            Words::Other(model) => model.get_vocab_size(),
        }
    }
}

/// A token that is found in the text as it stands, before any splitting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) content: String,
    /// Control tokens: cut out of the text only when asked, and left out of decoded text when asked.
    pub(crate) is_special: bool,
}

/// Everything a [`Tokenizer`] is made of, filled by the readers of the file formats.
pub(crate) struct Parts {
    pub(crate) words: Words,
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre: Option<PreTokenizerWrapper>,
    pub(crate) decoder: Option<DecoderWrapper>,
    pub(crate) added: AddedVocabulary,
    pub(crate) added_list: Vec<Added>,
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) ends: Vec<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) unk: Option<u32>,
    pub(crate) chat_template: Option<String>,
    pub(crate) fingerprint: u64,
    pub(crate) warning: Option<TokenizerWarning>,
}

/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    words: Words,
    normalizer: Option<NormalizerWrapper>,
    pre: Option<PreTokenizerWrapper>,
    decoder: Option<DecoderWrapper>,
    /// Finds every added token.
    added: AddedVocabulary,
    /// Finds those that are not special: for text whose control tokens are to be read as plain characters.
    added_plain: AddedVocabulary,
    added_list: Vec<Added>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    end_ids: Vec<u32>,
    vocab_len: usize,
    chat_template: Option<String>,
    fingerprint: u64,
    warning: Option<TokenizerWarning>,
    /// Ids of a line break at the start of a text, when a leading space would otherwise be put before a continuation.
    line_break: Option<Vec<u32>>,
}

/// What the caller may want to tell the user about a tokenizer; nothing is printed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerWarning {
    /// A GGUF file of an older converter.
    #[error(
        "the file does not name its word pattern; GPT-2's is used, which may split text otherwise than in training"
    )]
    NoPattern,
}

/// Names under which published models end a turn or a text.
pub(crate) const END_NAMES: [&str; 14] = [
    "</s>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|call|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<turn|>",
];

impl Tokenizer {
    pub(crate) fn from_parts(parts: Parts) -> Result<Tokenizer, TextError> {
        let mut added_plain = parts.added.clone();
        added_plain.set_encode_special_tokens(true);
        let last_added = parts.added_list.iter().map(|added| added.id as usize + 1).max().unwrap_or(0);
        let is_end = |added: &&Added| added.is_special && END_NAMES.contains(&added.content.as_str());
        let mut end_ids: Vec<u32> = parts.added_list.iter().filter(is_end).map(|added| added.id).collect();
        end_ids.extend(parts.eos.iter().chain(&parts.ends));
        end_ids.sort_unstable();
        end_ids.dedup();
        let vocab_len = parts.words.len().max(last_added);
        let named = [("bos", parts.bos), ("eos", parts.eos), ("pad", parts.pad), ("unk", parts.unk)];
        let ends = parts.ends.iter().map(|&id| ("end", Some(id)));
        for (name, id) in named.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= vocab_len) {
                let message = format!("the {name} token is {id}, the vocabulary has {vocab_len} tokens");
                return Err(TextError::Vocabulary(message));
            }
        }
        let mut tokenizer = Tokenizer {
            words: parts.words,
            normalizer: parts.normalizer,
            pre: parts.pre,
            decoder: parts.decoder,
            added: parts.added,
            added_plain,
            added_list: parts.added_list,
            prefix: parts.prefix,
            suffix: parts.suffix,
            bos: parts.bos,
            eos: parts.eos,
            pad: parts.pad,
            unk: parts.unk,
            end_ids,
            vocab_len,
            chat_template: parts.chat_template,
            fingerprint: parts.fingerprint,
            warning: parts.warning,
            line_break: None,
        };
        tokenizer.line_break = tokenizer.find_line_break()?;
        Ok(tokenizer)
    }

    /// Whether a text gets a leading space of its own, seen from what the tokenizer does with a letter.
    fn find_line_break(&self) -> Result<Option<Vec<u32>>, TextError> {
        let (mut alone, mut line_break, mut after) = (Vec::new(), Vec::new(), Vec::new());
        self.encode_part("a", false, &mut alone)?;
        self.encode_part("\n", false, &mut line_break)?;
        self.encode_part("\na", false, &mut after)?;
        let has_leading = after.strip_prefix(line_break.as_slice()).is_some_and(|rest| rest != alone);
        Ok(has_leading.then_some(line_break))
    }

    /// Token ids of `text`.
    ///
    /// `add_special` puts the begin and end tokens of the tokenizer's own configuration around it; `parse_special`
    /// reads control tokens written out in the text (`<|im_start|>`) as those tokens, otherwise they are characters.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        if add_special {
            ids.extend(&self.prefix);
        }
        self.encode_into(text, Join::Start, parse_special, &mut ids)?;
        if add_special {
            ids.extend(&self.suffix);
        }
        Ok(ids)
    }

    /// Appends the ids of `text` to `out`, without begin or end tokens. Working memory is bounded whatever the length.
    pub fn encode_into(
        &self,
        text: &str,
        join: Join,
        parse_special: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let (mut rest, mut join) = (text, join);
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(part_len(rest));
            match (join, &self.line_break) {
                (Join::Continue, Some(line_break)) => self.encode_after_break(part, line_break, parse_special, out)?,
                _ => self.encode_part(part, parse_special, out)?,
            }
            (rest, join) = (tail, Join::Continue);
        }
        Ok(())
    }

    /// Encodes `part` after a line break and drops the break's ids, so that no leading space is put before it.
    fn encode_after_break(
        &self,
        part: &str,
        line_break: &[u32],
        parse_special: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let start = out.len();
        self.encode_part(&format!("\n{part}"), parse_special, out)?;
        if out[start..].starts_with(line_break) {
            out.drain(start..start + line_break.len());
            return Ok(());
        }
        out.truncate(start);
        self.encode_part(part, parse_special, out)
    }

    fn encode_part(&self, part: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<(), TextError> {
        guarded(|| self.encode_unguarded(part, parse_special, out))
    }

    fn encode_unguarded(&self, part: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<(), TextError> {
        let added = if parse_special { &self.added } else { &self.added_plain };
        let mut pieces = added.extract_and_normalize(self.normalizer.as_ref(), part);
        if let Some(pre) = &self.pre {
            pre.pre_tokenize(&mut pieces).map_err(tokenize_error)?;
        }
        let mut scratch = Scratch::default();
        for (word, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match (tokens, &self.words) {
                (Some(tokens), _) => out.extend(tokens.iter().map(|token| token.id)),
                (None, Words::Bpe(bpe)) => bpe.encode_word(word, &mut scratch, out),
                (None, Words::Other(model)) => {
                    let tokens = model.tokenize(word).map_err(tokenize_error)?;
                    out.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
        Ok(())
    }

    /// The text of `ids`; `skip_special` leaves control tokens out. Ids the vocabulary lacks give nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let is_hidden = |id: u32| skip_special && self.is_special(id);
        let shown = ids.iter().filter(|&&id| !is_hidden(id));
        let tokens: Vec<String> = shown.filter_map(|&id| self.raw_token(id)).collect();
        match &self.decoder {
            _ if tokens.is_empty() => Ok(String::new()),
            Some(decoder) => guarded(|| decoder.decode(tokens).map_err(tokenize_error)),
            None => Ok(tokens.join(" ")),
        }
    }

    /// The token as the vocabulary spells it, such as `Ġthe` or `<0x0A>`.
    pub fn raw_token(&self, id: u32) -> Option<String> {
        self.added.simple_id_to_token(id).or_else(|| self.words.piece(id))
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, raw: &str) -> Option<u32> {
        self.added_list.iter().find(|added| added.content == raw).map(|added| added.id).or_else(|| self.words.id(raw))
    }

    /// Whether `id` is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added_list.binary_search_by_key(&id, |added| added.id).is_ok_and(|at| self.added_list[at].is_special)
    }

    /// The texts of all control tokens, in the order of their ids.
    pub fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.added_list.iter().filter(|added| added.is_special).map(|added| added.content.as_str())
    }

    /// One more than the largest token id. A model's embedding may have more rows.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    pub(crate) fn words(&self) -> &Words {
        &self.words
    }

    pub(crate) fn added_list(&self) -> &[Added] {
        &self.added_list
    }

    /// What is done to a text before its words are looked up, and to tokens to have their text.
    pub(crate) fn steps(&self) -> (&Option<NormalizerWrapper>, &Option<PreTokenizerWrapper>, &Option<DecoderWrapper>) {
        (&self.normalizer, &self.pre, &self.decoder)
    }

    /// The begin-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token: what a trained document ends with.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token of what the vocabulary cannot express.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Every token at which generation stops: the end-of-text token and the end-of-turn tokens by their usual names.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// What [`Tokenizer::encode`] puts before a text, such as the begin-of-text token.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// What [`Tokenizer::encode`] puts after a text.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// What the user should hear about the tokenizer.
    pub fn warning(&self) -> Option<TokenizerWarning> {
        self.warning
    }

    /// A digest of everything that decides the ids: tokenised data made with another tokenizer is told by it.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// An upper bound of the memory the tokenizer holds and works with, in bytes: the vocabulary and the merges
    /// exactly, plus what the added tokens, the splitting patterns and the work on one part of a text take.
    pub fn estimated_bytes(&self) -> usize {
        let words = match &self.words {
            Words::Bpe(bpe) => bpe.heap_bytes(),
            Words::Other(model) => OTHER_TOKEN_BYTES * model.get_vocab_size(),
        };
        words + ADDED_TOKEN_BYTES * self.added_list.len() + WORKING_BYTES
    }
}

/// Memory of one token in the vocabularies that are not byte-pair: two hash maps with the text in each.
const OTHER_TOKEN_BYTES: usize = 256;
/// Memory of one added token: its text in several maps and its states in two search automata.
const ADDED_TOKEN_BYTES: usize = 1024;
/// Memory of the compiled splitting patterns, and of splitting a part of a text of which each byte is a word.
const WORKING_BYTES: usize = 5 << 20;

/// Runs a step of the tokenizers crate, which trusts the file that it was configured by: a panic of its on a malformed
/// file becomes an error.
pub(crate) fn guarded<T>(step: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step));
    caught.unwrap_or_else(|_| Err(TextError::Tokenize("the tokenizer's own description contradicts itself".to_owned())))
}

pub(crate) fn tokenize_error(error: Box<dyn std::error::Error + Send + Sync>) -> TextError {
    TextError::Tokenize(error.to_string())
}
