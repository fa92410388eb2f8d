//! Continues texts: a prompt is fed through `prefill`, then token after token through `decode`.
//!
//! Invariant: the cache holds keys and values of exactly the tokens in [`Generator::text`]. Nothing is allocated
//! after [`Generator::new`], and nothing depends on how a prompt was cut into calls but rounding.

mod sample;
mod stop;

pub use sample::Sampling;
pub use stop::StopTexts;

use crate::runner::{RunError, Runner};
use sample::Sampler;
use std::ops::ControlFlow;

/// Up to so many tokens it costs less to decode them one by one than to fill a chunk of a prefill.
const DECODED_TOKENS: usize = 1;

/// Why a text cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The plan is for something else.
    #[error("the plan has no entry `{0}` that continues texts: plan for generation")]
    Plan(&'static str),
    /// There is nothing to continue.
    #[error("the prompt is empty, and the model has no begin-of-text token to start from")]
    Empty,
    /// The text is longer than the cache.
    #[error(
        "the text has {text} tokens and {more} more are to be read, the context holds {context}: \
         shorten the prompt or plan a longer context"
    )]
    Full {
        /// Tokens that are in the cache.
        text: usize,
        /// Tokens to be read.
        more: usize,
        /// Capacity of the cache.
        context: usize,
    },
    /// The prompt was made for another model.
    #[error("token {id} of the prompt is not below {vocab}, the model's vocabulary: is the tokenizer the model's?")]
    Token {
        /// The token.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The settings make no sense.
    #[error("{0}")]
    Sampling(String),
    /// The model is broken.
    #[error("the logits after {text} tokens are not numbers: the model is damaged or diverged")]
    NotFinite {
        /// Tokens that were read.
        text: usize,
    },
    /// Running failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// What ends a generation, and how tokens are chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Request<'a> {
    /// The most tokens.
    pub tokens_max: usize,
    /// Tokens that end it; they are handed out and counted, but not read.
    pub end_ids: &'a [u32],
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// An end token was chosen.
    EndToken,
    /// As many tokens as were asked for.
    TokensMax,
    /// The cache is full.
    Context,
    /// The caller said so.
    Caller,
}

/// A text in the making.
pub struct Generator<'r> {
    runner: &'r mut Runner,
    prefill: usize,
    decode: usize,
    chunk: usize,
    context: usize,
    vocab: usize,
    /// The entry that ran last: its logits are the valid ones.
    latest: usize,
    text: Vec<u32>,
    sampler: Sampler,
}

impl<'r> Generator<'r> {
    /// Starts with no text. The runner's plan has the entries `prefill` and `decode`, and its weights are loaded.
    ///
    /// # Errors
    /// The plan is for something else.
    pub fn new(runner: &'r mut Runner) -> Result<Generator<'r>, GenerateError> {
        let find = |name| runner.entry(name).ok_or(GenerateError::Plan(name));
        let (prefill, decode) = (find("prefill")?, find("decode")?);
        let plan = runner.plan();
        let chunk = plan.entries[prefill].input("tokens").map(|t| t.elems() as usize);
        let vocab = plan.entries[decode].result("logits").map(|t| t.elems() as usize);
        let is_cache = |s: &&tinyforge_plan::Stored| s.name.ends_with(".k_cache");
        let context = plan.stored.iter().find(is_cache).map(|s| s.tensor.rows());
        let is_one = plan.entries[decode].input("tokens").is_some_and(|t| t.elems() == 1);
        let (Some(chunk), Some(vocab), Some(context), true) = (chunk, vocab, context, is_one) else {
            return Err(GenerateError::Plan("decode"));
        };
        let (text, sampler) = (Vec::with_capacity(context), Sampler::new(vocab));
        Ok(Generator { runner, prefill, decode, chunk, context, vocab, latest: decode, text, sampler })
    }

    /// Bytes that a generator takes beside the arena.
    pub fn bytes(vocab: usize, context: usize) -> usize {
        Sampler::bytes(vocab) + context * size_of::<u32>()
    }

    /// The tokens that were read.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// The most tokens that can be read.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Forgets the text.
    pub fn reset(&mut self) {
        self.text.clear();
    }

    /// Reads `ids` behind the text so far and returns the logits of the token after them: `f32[vocab]`.
    ///
    /// # Errors
    /// There are none, or too many, or one is not in the vocabulary: the text is then as it was. Or a kernel failed.
    pub fn feed(&mut self, ids: &[u32]) -> Result<&[f32], GenerateError> {
        if ids.is_empty() {
            return Err(GenerateError::Empty);
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(GenerateError::Token { id, vocab: self.vocab });
        }
        let text = self.text.len();
        if ids.len() > self.context - text {
            return Err(GenerateError::Full { text, more: ids.len(), context: self.context });
        }
        for part in ids.chunks(self.chunk) {
            match part.len() <= DECODED_TOKENS {
                true => part.chunks(1).try_for_each(|one| self.read(self.decode, 1, one))?,
                false => self.read(self.prefill, self.chunk, part)?,
            }
        }
        Ok(self.runner.result(self.latest, "logits"))
    }

    /// Runs an entry that takes `slots` tokens over `part`.
    fn read(&mut self, entry: usize, slots: usize, part: &[u32]) -> Result<(), GenerateError> {
        let (first, last) = (self.text.len(), part.len() - 1);
        // Slots that are left over repeat the last token: they store what is stored there already.
        let used = |slot: usize| slot.min(last);
        let tokens = self.runner.input::<i32>(entry, "tokens");
        (0..slots).for_each(|slot| tokens[slot] = part[used(slot)] as i32);
        let positions = self.runner.input::<i32>(entry, "positions");
        (0..slots).for_each(|slot| positions[slot] = (first + used(slot)) as i32);
        self.runner.input::<i32>(entry, "last")[0] = last as i32;
        self.runner.run(entry)?;
        self.latest = entry;
        self.text.extend_from_slice(part);
        Ok(())
    }

    /// Reads `prompt` behind the text so far and continues it. `each` is called with every chosen token and may end
    /// the generation. A token is read when the next one is chosen; the last one is not.
    ///
    /// # Errors
    /// As [`Generator::feed`]; the settings make no sense; or the model is broken.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        request: &Request,
        mut each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Ended, GenerateError> {
        if let Some(fault) = request.sampling.fault() {
            return Err(GenerateError::Sampling(fault));
        }
        self.feed(prompt)?;
        for count in 1..=request.tokens_max {
            let logits = self.runner.result(self.latest, "logits");
            let id = self.sampler.sample(logits, &self.text, &request.sampling);
            let id = id.ok_or(GenerateError::NotFinite { text: self.text.len() })?;
            let is_stopped = each(id).is_break();
            if request.end_ids.contains(&id) {
                return Ok(Ended::EndToken);
            }
            if is_stopped {
                return Ok(Ended::Caller);
            }
            if count < request.tokens_max && self.text.len() == self.context {
                return Ok(Ended::Context);
            }
            if count < request.tokens_max {
                self.feed(&[id])?;
            }
        }
        Ok(Ended::TokensMax)
    }
}
