//! Text in and out: tokenizers and chat templates.
//!
//! Invariant: nothing here prints, and nothing depends on the day, the locale or the order of a hash map:
//! the same bytes give the same tokens. It is not for reading data sets; that is `crate::data`.

mod bpe;
pub mod chat;
pub(crate) mod chunk;
mod export;
pub(crate) mod fingerprint;
mod gguf;
mod huggingface;
mod python;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, ChatWarning, Conversation, Rendered};
pub use gguf::GgufVocab;
pub use huggingface::TokenizerFiles;
pub use stream::TextStream;
pub use tokenizer::{Join, Tokenizer, TokenizerWarning};

/// What can be wrong with a tokenizer or a chat template. The caller knows the file's name and adds it.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A JSON file of the tokenizer does not parse or has a field of the wrong type.
    #[error("{what}: {message}")]
    Json {
        /// Which part was being read, such as `tokenizer.json`.
        what: &'static str,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A vocabulary, merge list or score list contradicts itself.
    #[error("tokenizer vocabulary: {0}")]
    Vocabulary(String),
    /// A kind of tokenizer that is not built in.
    #[error(
        "tokenizer {what} `{name}` is not supported (supported: {supported}); put a tokenizer.json beside the model"
    )]
    Unsupported {
        /// `model` or `pre-tokenizer`.
        what: &'static str,
        /// The name in the file.
        name: String,
        /// What could be there instead.
        supported: String,
    },
    /// A step of the tokenizer (normalise, split, decode) failed on a text.
    #[error("tokenizer: {0}")]
    Tokenize(String),
    /// The chat template does not parse, or refuses the conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// The parts of the rendered conversation that belong to the assistant cannot be told from the rest.
    #[error(
        "chat template: the text of assistant turn {turn} cannot be located in the rendered conversation, so prompt \
         tokens could be trained by mistake; mark it in the template with {{% generation %}} ... {{% endgeneration %}}"
    )]
    Mask {
        /// Index of the message, from 0.
        turn: usize,
    },
}
