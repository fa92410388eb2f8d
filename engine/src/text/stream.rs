//! Text from ids that arrive one at a time.
//!
//! A character may span several tokens, and a decoder may treat a first token differently; so each step decodes a short
//! window, of which the first tokens are context whose text is out already, and gives out what is new and certain. The
//! window stays a few tokens long however long the text gets.

use super::{TextError, Tokenizer};

/// After this many tokens that do not end in a whole character replacement characters are given out as they are.
const PENDING_TOKENS: usize = 64;

/// Incremental decoding: the pieces given out join to the text of all ids.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    window: Vec<u32>,
    /// Tokens at the start of the window whose text is all out.
    shown: usize,
    /// Text of the window that is out: that of the shown tokens and perhaps more.
    given: String,
}

impl<'t> TextStream<'t> {
    /// Starts with nothing; `skip_special` leaves control tokens out of the text.
    pub fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> TextStream<'t> {
        TextStream { tokenizer, skip_special, window: Vec::new(), shown: 0, given: String::new() }
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
        let all = self.tokenizer.decode(&self.window, self.skip_special)?;
        let certain = if is_forced { &all } else { all.trim_end_matches(char::REPLACEMENT_CHARACTER) };
        let fresh = certain.strip_prefix(self.given.as_str()).unwrap_or_default().to_owned();
        self.given.push_str(&fresh);
        let is_whole = certain.len() == all.len() && !fresh.is_empty();
        if is_whole || is_forced {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
            self.given = self.tokenizer.decode(&self.window, self.skip_special)?;
        }
        Ok(fresh)
    }
}
