//! Tokenizers from the metadata of a GGUF file.
//!
//! Two kinds: `gpt2`, byte-level pieces with a merge list, whose word pattern is named by `pre`; and `llama`,
//! SentencePiece pieces with scores, where the pair whose joined piece scores highest is merged first.

use super::TextError;
use super::bpe::{Bpe, BpeRules, Merge, Vocab};
use super::fingerprint::Fingerprint;
use super::huggingface::{added_vocabulary, bad_merge, merge_of, split_merge};
use super::tokenizer::{END_NAMES, Parts, Tokenizer, TokenizerWarning, Words, tokenize_error};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::strip::Strip as StripDecoder;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// The `tokenizer.*` metadata of a GGUF file, by its keys without `tokenizer.ggml.`.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `model`: `gpt2` or `llama`.
    pub model: String,
    /// `pre`: the name of the word pattern of a `gpt2` vocabulary.
    pub pre: Option<String>,
    /// `tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `scores`: of a `llama` vocabulary, one a token; otherwise empty.
    pub scores: Vec<f32>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; one a token, or empty.
    pub token_types: Vec<i32>,
    /// `merges`: of a `gpt2` vocabulary, each `left right`, first merged first.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `eot_token_id`, `eom_token_id`: further tokens at which generation stops.
    pub ends: Vec<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; true for `llama` vocabularies unless the file says otherwise.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER: i32 = 4;

/// SentencePiece's visible space.
const SPACE: &str = "\u{2581}";

/// The word pattern of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The word pattern of Llama 3: as GPT-4's, numbers in groups of three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The word pattern of Qwen 2: as Llama 3's, each digit for itself.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The word pattern of GPT-4o: letters split where lower case meets upper case.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The word pattern of Mistral's Tekken: as GPT-4o's, without contractions and each digit for itself.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a `pre` name splits text.
struct Pre {
    names: &'static [&'static str],
    pattern: &'static str,
    each_digit: bool,
    nfc: bool,
    ignore_merges: bool,
    add_bos: bool,
}

const PLAIN: Pre =
    Pre { names: &["default"], pattern: GPT2, each_digit: false, nfc: false, ignore_merges: false, add_bos: false };

/// The names in use, as llama.cpp defines them.
const PRE: [Pre; 9] = [
    PLAIN,
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling", "mellum"],
        ..PLAIN
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        each_digit: true,
        ..PLAIN
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        pattern: LLAMA3,
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], pattern: LLAMA3, ..PLAIN },
    Pre { names: &["qwen2", "deepseek-r1-qwen", "megrez"], pattern: QWEN2, nfc: true, ..PLAIN },
    Pre { names: &["stablelm2", "hunyuan", "kormo", "grok-2"], pattern: QWEN2, ..PLAIN },
    Pre { names: &["gpt-4o", "llama4"], pattern: GPT4O, ..PLAIN },
    Pre { names: &["tekken"], pattern: TEKKEN, ignore_merges: true, add_bos: true, ..PLAIN },
];

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata.
    /// Errors: kinds that are not built in, lists of different lengths, merges or ids outside the vocabulary.
    pub fn from_gguf(gguf: &GgufVocab) -> Result<Tokenizer, TextError> {
        let n = gguf.tokens.len();
        let lists = [("scores", gguf.scores.len()), ("token types", gguf.token_types.len())];
        for (what, len) in lists {
            if len != n && len != 0 {
                return Err(TextError::Vocabulary(format!("{len} {what} for {n} tokens")));
            }
        }
        match gguf.model.as_str() {
            "gpt2" => byte_level(gguf),
            "llama" => sentence_piece(gguf),
            name => Err(TextError::Unsupported {
                what: "model",
                name: name.to_owned(),
                supported: "gpt2, llama".to_owned(),
            }),
        }
    }
}

fn token_type(gguf: &GgufVocab, id: usize) -> i32 {
    gguf.token_types.get(id).copied().unwrap_or(TYPE_NORMAL)
}

fn added_tokens(gguf: &GgufVocab) -> Vec<(u32, AddedToken)> {
    let mut added = Vec::new();
    for (id, content) in gguf.tokens.iter().enumerate() {
        let is_special = match token_type(gguf, id) {
            TYPE_UNKNOWN | TYPE_CONTROL => true,
            // Files made by older converters have end-of-turn tokens among the others.
            TYPE_NORMAL | TYPE_USER if content.starts_with("<|") && END_NAMES.contains(&content.as_str()) => true,
            TYPE_USER => false,
            _ => continue,
        };
        added.push((id as u32, AddedToken::from(content.clone(), is_special).normalized(false)));
    }
    added
}

/// The ids put before and after a text.
fn wrapping(gguf: &GgufVocab, add_bos: bool) -> (Vec<u32>, Vec<u32>) {
    let prefix = gguf.bos.filter(|_| gguf.add_bos.unwrap_or(add_bos));
    let suffix = gguf.eos.filter(|_| gguf.add_eos.unwrap_or(false));
    (prefix.into_iter().collect(), suffix.into_iter().collect())
}

fn fingerprint(gguf: &GgufVocab) -> u64 {
    let mut digest = Fingerprint::new();
    let flags = [gguf.add_bos, gguf.add_eos, gguf.add_space_prefix];
    let ids = [gguf.bos, gguf.eos, gguf.pad, gguf.unk];
    let head = format!("{} {:?} {flags:?} {ids:?} {:?} {:?}", gguf.model, gguf.pre, gguf.ends, gguf.chat_template);
    digest.field(head.as_bytes());
    for text in gguf.tokens.iter().chain(&gguf.merges) {
        digest.field(text.as_bytes());
    }
    gguf.scores.iter().for_each(|score| digest.update(&score.to_bits().to_le_bytes()));
    gguf.token_types.iter().for_each(|kind| digest.update(&kind.to_le_bytes()));
    digest.finish()
}

fn byte_level(gguf: &GgufVocab) -> Result<Tokenizer, TextError> {
    let name = gguf.pre.as_deref().unwrap_or("default");
    let pre = PRE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| TextError::Unsupported {
        what: "pre-tokenizer",
        name: name.to_owned(),
        supported: PRE.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", "),
    })?;
    let vocab = Vocab::from_list(&gguf.tokens)?;
    let mut merges = Vec::with_capacity(gguf.merges.len());
    for (rank, line) in gguf.merges.iter().enumerate() {
        let (left, right) = split_merge(line).ok_or_else(|| TextError::Vocabulary(bad_merge(line)))?;
        merges.push(merge_of(&vocab, left, right, "", rank as u32)?);
    }
    let rules = BpeRules { ignore_merges: pre.ignore_merges, ..BpeRules::default() };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.each_digit {
        steps.push(Digits::new(true).into());
    }
    let pattern = SplitPattern::Regex(pre.pattern.to_owned());
    steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(tokenize_error)?.into());
    steps.push(ByteLevel::new(false, true, false).into());
    let (added, added_list) = added_vocabulary(added_tokens(gguf), None)?;
    let (prefix, suffix) = wrapping(gguf, pre.add_bos);
    Tokenizer::from_parts(Parts {
        words: Words::Bpe(Box::new(Bpe::new(vocab, merges, rules))),
        normalizer: pre.nfc.then(|| NormalizerWrapper::NFC(NFC)),
        pre: Some(PreTokenizers::new(steps).into()),
        decoder: Some(DecoderWrapper::ByteLevel(ByteLevel::new(false, true, false))),
        added,
        added_list,
        prefix,
        suffix,
        bos: gguf.bos,
        eos: gguf.eos,
        ends: gguf.ends.clone(),
        pad: gguf.pad,
        unk: gguf.unk,
        chat_template: gguf.chat_template.clone(),
        warning: gguf.pre.is_none().then_some(TokenizerWarning::NoPattern),
        fingerprint: fingerprint(gguf),
    })
}

fn sentence_piece(gguf: &GgufVocab) -> Result<Tokenizer, TextError> {
    let vocab = Vocab::from_list(&gguf.tokens)?;
    let merges = score_merges(gguf, &vocab)?;
    let unk = gguf.unk.filter(|&id| vocab.piece(id).is_some());
    let rules = BpeRules { unk, fuse_unk: true, byte_fallback: true, ..BpeRules::default() };
    let has_prefix = gguf.add_space_prefix.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if has_prefix {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(tokenize_error)?.into());
    let normalizer: NormalizerWrapper = Normalizers::new(normalizers).into();
    let mut decoders: Vec<DecoderWrapper> = vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(tokenize_error)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if has_prefix {
        decoders.push(DecoderWrapper::Strip(StripDecoder::new(' ', 1, 0)));
    }
    let (added, added_list) = added_vocabulary(added_tokens(gguf), Some(&normalizer))?;
    let (prefix, suffix) = wrapping(gguf, true);
    Tokenizer::from_parts(Parts {
        words: Words::Bpe(Box::new(Bpe::new(vocab, merges, rules))),
        normalizer: Some(normalizer),
        pre: None,
        decoder: Some(DecoderWrapper::Sequence(tokenizers::decoders::sequence::Sequence::new(decoders))),
        added,
        added_list,
        prefix,
        suffix,
        bos: gguf.bos,
        eos: gguf.eos,
        ends: gguf.ends.clone(),
        pad: gguf.pad,
        unk: gguf.unk,
        chat_template: gguf.chat_template.clone(),
        warning: None,
        fingerprint: fingerprint(gguf),
    })
}

/// Every way to write a normal piece as two pieces, ranked by the joined piece's score: highest first, equal scores
/// equal, so that the leftmost is taken.
fn score_merges(gguf: &GgufVocab, vocab: &Vocab) -> Result<Vec<Merge>, TextError> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(TextError::Vocabulary(format!(
            "no scores for the {} tokens of a llama vocabulary",
            gguf.tokens.len()
        )));
    }
    if let Some(id) = gguf.scores.iter().position(|score| score.is_nan()) {
        return Err(TextError::Vocabulary(format!("the score of token {id} is not a number")));
    }
    let mut levels: Vec<f32> = gguf.scores.clone();
    levels.sort_unstable_by(|a, b| b.total_cmp(a));
    levels.dedup();
    let mut merges = Vec::new();
    for (id, piece) in gguf.tokens.iter().enumerate() {
        if !matches!(token_type(gguf, id), TYPE_NORMAL | TYPE_USER) || piece.len() > MAX_PIECE_BYTES {
            continue;
        }
        let score = gguf.scores[id];
        let rank = levels.partition_point(|&level| level > score) as u32;
        for (at, _) in piece.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (vocab.id(&piece[..at]), vocab.id(&piece[at..])) {
                merges.push(Merge { left, right, rank, id: id as u32 });
            }
        }
    }
    Ok(merges)
}

/// Longer pieces are never the result of a merge: looking for their halves would take time squared in the length.
const MAX_PIECE_BYTES: usize = 1024;
