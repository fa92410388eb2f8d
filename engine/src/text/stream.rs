//! Text from ids that arrive one at a time.
//!
//! A character may span several tokens, and a decoder may treat a first token differently; so each step decodes a short
//! window twice and gives out the difference. The window stays a few tokens long however long the text gets.

use super::{TextError, Tokenizer};

/// After this many tokens that do not end in a whole character the replacement character is given out.
const PENDING_TOKENS: usize = 8;

/// Incremental decoding: the pieces given out join to the text of all ids.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    window: Vec<u32>,
    /// Tokens at the start of the window whose text is already out; they are context only.
    shown: usize,
}

impl<'t> TextStream<'t> {
    /// Starts with nothing; `skip_special` leaves control tokens out of the text.
    pub fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> TextStream<'t> {
        TextStream { tokenizer, skip_special, window: Vec::new(), shown: 0 }
    }

    /// Takes one id and returns the text that is now certain, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        self.window.push(id);
        self.advance(self.window.len() - self.shown >= PENDING_TOKENS)
    }

    /// Returns what was held back for want of the rest of a character.
    pub fn finish(&mut self) -> Result<String, TextError> {
        self.advance(true)
    }

    fn advance(&mut self, is_forced: bool) -> Result<String, TextError> {
        let shown = self.tokenizer.decode(&self.window[..self.shown], self.skip_special)?;
        let all = self.tokenizer.decode(&self.window, self.skip_special)?;
        if !is_forced && all.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let fresh = all.strip_prefix(shown.as_str()).unwrap_or_default().to_owned();
        if !fresh.is_empty() || is_forced {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
        }
        Ok(fresh)
    }
}
