//! Tokenizers of Hugging Face model directories: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
//!
//! Byte-pair vocabularies are read straight into the compact form; the general reader of the tokenizers crate would
//! hold the whole JSON tree beside it. Nothing here opens files: the caller hands over their bytes.

use super::TextError;
use super::bpe::{Bpe, BpeRules, MAX_ID, Merge, Vocab};
use super::fingerprint::Fingerprint;
use super::tokenizer::{Added, Parts, Tokenizer, Words, guarded, tokenize_error};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::{
    AddedToken, AddedVocabulary, Encoding, NormalizerWrapper, PostProcessor as _, PostProcessorWrapper, Token,
};

/// The bytes of a model directory's tokenizer files.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: names of the special tokens, begin and end switches, chat template.
    pub config: Option<&'a [u8]>,
    /// `special_tokens_map.json`: names of the special tokens where the config lacks them.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `chat_template.jinja`; goes before the template in the config.
    pub chat_template: Option<&'a str>,
}

#[derive(Deserialize)]
struct TokenizerJson<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct ModelJson<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    unk_token: Option<Box<RawValue>>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

/// A special token is given by its text, or by an object with `content`.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Object { content: String },
}

impl TokenName {
    fn into_text(self) -> String {
        match self {
            TokenName::Text(text) | TokenName::Object { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateJson {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize, Default)]
struct ConfigJson {
    bos_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    unk_token: Option<TokenName>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<TemplateJson>,
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, TextError> {
    guarded(|| serde_json::from_slice(bytes).map_err(|error| TextError::Json { what, message: error.to_string() }))
}

fn parse_part<'a, T: Deserialize<'a>>(what: &'static str, raw: Option<&'a RawValue>) -> Result<Option<T>, TextError> {
    raw.map(|raw| parse(what, raw.get().as_bytes())).transpose()
}

impl Tokenizer {
    /// Reads a tokenizer from the files of a model directory.
    /// Errors: JSON that does not parse, merges or special tokens outside the vocabulary, unknown kinds of parts.
    pub fn from_huggingface(files: TokenizerFiles<'_>) -> Result<Tokenizer, TextError> {
        let json: TokenizerJson<'_> = parse("tokenizer.json", files.tokenizer)?;
        let config: ConfigJson =
            files.config.map(|bytes| parse("tokenizer_config.json", bytes)).transpose()?.unwrap_or_default();
        let map: ConfigJson = files
            .special_tokens_map
            .map(|bytes| parse("special_tokens_map.json", bytes))
            .transpose()?
            .unwrap_or_default();
        let words = read_model(json.model)?;
        let normalizer: Option<NormalizerWrapper> = parse_part("tokenizer.json, normalizer", json.normalizer)?;
        let post: Option<PostProcessorWrapper> = parse_part("tokenizer.json, post_processor", json.post_processor)?;
        let tokens = json.added_tokens.into_iter().map(|added| (added.id, added.token)).collect();
        let (added, added_list) = added_vocabulary(tokens, normalizer.as_ref())?;
        let id_of = |name: Option<TokenName>| {
            let text = name?.into_text();
            let added_id = added_list.iter().find(|added| added.content == text).map(|added| added.id);
            added_id.or_else(|| match &words {
                Words::Bpe(bpe) => bpe.vocab.id(&text),
                Words::Other(model) => tokenizers::Model::token_to_id(&**model, &text),
            })
        };
        let (bos, eos) = (id_of(config.bos_token.or(map.bos_token)), id_of(config.eos_token.or(map.eos_token)));
        let (mut prefix, mut suffix) = wrapping(post.as_ref())?;
        set_wrapping(&mut prefix, bos, config.add_bos_token);
        set_wrapping(&mut suffix, eos, config.add_eos_token);
        let template = files.chat_template.map(str::to_owned).or_else(|| config.chat_template.and_then(pick_template));
        Tokenizer::from_parts(Parts {
            pre: parse_part("tokenizer.json, pre_tokenizer", json.pre_tokenizer)?,
            decoder: parse_part("tokenizer.json, decoder", json.decoder)?,
            pad: id_of(config.pad_token.or(map.pad_token)),
            unk: id_of(config.unk_token.or(map.unk_token)),
            words,
            normalizer,
            added,
            added_list,
            prefix,
            suffix,
            bos,
            eos,
            ends: Vec::new(),
            warning: None,
            fingerprint: fingerprint(&files, template.as_deref()),
            chat_template: template,
        })
    }
}

fn fingerprint(files: &TokenizerFiles<'_>, template: Option<&str>) -> u64 {
    let mut digest = Fingerprint::new();
    digest.field(files.tokenizer);
    digest.field(files.config.unwrap_or_default());
    digest.field(files.special_tokens_map.unwrap_or_default());
    digest.field(template.unwrap_or_default().as_bytes());
    digest.finish()
}

fn pick_template(template: TemplateJson) -> Option<String> {
    match template {
        TemplateJson::One(source) => Some(source),
        TemplateJson::Named(list) => list.into_iter().find(|named| named.name == "default").map(|named| named.template),
    }
}

/// Applies `add_bos_token` or `add_eos_token`, which go before the post-processor's own template.
fn set_wrapping(ids: &mut Vec<u32>, token: Option<u32>, is_wanted: Option<bool>) {
    let Some(token) = token else { return };
    match is_wanted {
        Some(true) if !ids.contains(&token) => ids.push(token),
        Some(false) => ids.retain(|&id| id != token),
        _ => {}
    }
}

/// What the post-processor puts before and after a text: it is run on one marked token.
fn wrapping(post: Option<&PostProcessorWrapper>) -> Result<(Vec<u32>, Vec<u32>), TextError> {
    let Some(post) = post else { return Ok((Vec::new(), Vec::new())) };
    let marked = Encoding::from_tokens(vec![Token::new(u32::MAX, "a".to_owned(), (0, 1))], 0);
    let encoding = guarded(|| post.process(marked, None, true).map_err(tokenize_error))?;
    let ids = encoding.get_ids();
    let at = ids.iter().position(|&id| id == u32::MAX).unwrap_or(ids.len());
    Ok((ids[..at].to_vec(), ids.get(at + 1..).unwrap_or_default().to_vec()))
}

/// The search structure over added tokens, keeping the ids they came with, and the same tokens in the order of ids.
pub(crate) fn added_vocabulary(
    mut tokens: Vec<(u32, AddedToken)>,
    normalizer: Option<&NormalizerWrapper>,
) -> Result<(AddedVocabulary, Vec<Added>), TextError> {
    tokens.retain(|(_, token)| !token.content.is_empty());
    tokens.sort_by_key(|(id, _)| *id);
    if let Some((id, _)) = tokens.last().filter(|(id, _)| *id >= MAX_ID) {
        return Err(TextError::Vocabulary(format!("an added token has the id {id}")));
    }
    let list: Vec<Added> = tokens
        .iter()
        .map(|(id, token)| Added { id: *id, content: token.content.clone(), is_special: token.special })
        .collect();
    let ids = list.iter().map(|added| (added.content.clone(), added.id)).collect();
    let ids = WordLevel::builder().vocab(ids).unk_token(String::new()).build().map_err(tokenize_error)?;
    let mut added = AddedVocabulary::new();
    added.add_tokens(tokens.into_iter().map(|(_, token)| token), &ids, normalizer).map_err(tokenize_error)?;
    Ok((added, list))
}

fn read_model(raw: &RawValue) -> Result<Words, TextError> {
    const WHAT: &str = "tokenizer.json, model";
    let model: ModelJson<'_> = parse(WHAT, raw.get().as_bytes())?;
    let is_bpe = match model.kind.as_deref() {
        Some(kind) => kind == "BPE",
        None => model.merges.is_some(),
    };
    let (true, Some(vocab), Some(merges)) = (is_bpe, model.vocab, model.merges) else {
        return Ok(Words::Other(Box::new(parse(WHAT, raw.get().as_bytes())?)));
    };
    let json_error = |error: serde_json::Error| TextError::Json { what: WHAT, message: error.to_string() };
    let (text, entries) =
        VocabSeed.deserialize(&mut serde_json::Deserializer::from_str(vocab.get())).map_err(json_error)?;
    let vocab = Vocab::new(&text, entries)?;
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    let seed = MergesSeed { vocab: &vocab, prefix: &prefix };
    let merges = seed.deserialize(&mut serde_json::Deserializer::from_str(merges.get())).map_err(json_error)?;
    let unk: Option<String> = parse_part(WHAT, model.unk_token.as_deref())?;
    let unk = match unk {
        Some(unk) => Some(vocab.id(&unk).ok_or_else(|| missing(&unk, "the unknown token"))?),
        None => None,
    };
    let rules = BpeRules {
        unk,
        fuse_unk: model.fuse_unk.unwrap_or(false),
        byte_fallback: model.byte_fallback.unwrap_or(false),
        ignore_merges: model.ignore_merges.unwrap_or(false),
        continuing_prefix: prefix,
        word_suffix: model.end_of_word_suffix.unwrap_or_default(),
    };
    Ok(Words::Bpe(Box::new(Bpe::new(vocab, merges, rules))))
}

fn missing(piece: &str, what: &str) -> TextError {
    TextError::Vocabulary(format!("{what} `{piece}` is not in the vocabulary"))
}

/// The merge of two pieces by their texts; `prefix` is what pieces inside a word begin with, dropped in the middle.
pub(crate) fn merge_of(vocab: &Vocab, left: &str, right: &str, prefix: &str, rank: u32) -> Result<Merge, TextError> {
    let id = |piece: &str| vocab.id(piece).ok_or_else(|| missing(piece, "a piece of a merge"));
    let joined = format!("{left}{}", right.strip_prefix(prefix).unwrap_or(right));
    Ok(Merge { left: id(left)?, right: id(right)?, rank, id: id(&joined)? })
}

/// Reads `{"piece": id, ...}` into one string and `(id, start, end)` ranges.
struct VocabSeed;

impl<'de> DeserializeSeed<'de> for VocabSeed {
    type Value = (String, Vec<(u32, u32, u32)>);

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for VocabSeed {
    type Value = (String, Vec<(u32, u32, u32)>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from pieces to ids")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let (mut text, mut entries) = (String::new(), Vec::new());
        while let Some((piece, id)) = map.next_entry::<std::borrow::Cow<'_, str>, u32>()? {
            let start = text.len() as u32;
            text.push_str(&piece);
            if text.len() >= u32::MAX as usize {
                return Err(M::Error::custom("the vocabulary is larger than 4 GiB"));
            }
            entries.push((id, start, text.len() as u32));
        }
        Ok((text, entries))
    }
}

/// Reads a list of merges, each `"left right"` or `["left", "right"]`.
struct MergesSeed<'a> {
    vocab: &'a Vocab,
    prefix: &'a str,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Line(String),
    Pair(String, String),
}

impl<'de> DeserializeSeed<'de> for MergesSeed<'_> {
    type Value = Vec<Merge>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed<'_> {
    type Value = Vec<Merge>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        let mut merges = Vec::new();
        while let Some(json) = seq.next_element::<MergeJson>()? {
            let (left, right) = match &json {
                MergeJson::Pair(left, right) => (left.as_str(), right.as_str()),
                MergeJson::Line(line) => split_merge(line).ok_or_else(|| S::Error::custom(bad_merge(line)))?,
            };
            let merge = merge_of(self.vocab, left, right, self.prefix, merges.len() as u32);
            merges.push(merge.map_err(S::Error::custom)?);
        }
        Ok(merges)
    }
}

/// `"left right"`, with exactly one space.
pub(crate) fn split_merge(line: &str) -> Option<(&str, &str)> {
    line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
}

pub(crate) fn bad_merge(line: &str) -> String {
    format!("the merge `{line}` is not two pieces with a space between them")
}
