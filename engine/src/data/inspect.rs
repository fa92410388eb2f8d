//! What a data set holds, in numbers and by one example, for people.

use super::DataError;
use super::cache::RowReader;
use super::rows::{IGNORED, PADDING_SEGMENT, Row};
use crate::text::Tokenizer;
use std::fmt;

/// Tokens of an example that are kept.
const EXAMPLE_TOKENS: usize = 512;

/// Counts of one data set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines with a record, or text files.
    pub documents: u64,
    /// Rows made of them.
    pub rows: u64,
    /// Positions that hold a token, over all rows.
    pub tokens: u64,
    /// Positions with a label, over all rows.
    pub trained_tokens: u64,
    /// Documents cut to one row.
    pub truncated_documents: u64,
    /// Tokens lost by that.
    pub truncated_tokens: u64,
    /// Documents left out because nothing in them is trained.
    pub dropped_documents: u64,
    /// Tokens of the longest document.
    pub longest_tokens: u64,
}

impl Counts {
    pub(crate) fn to_words(self) -> [u64; 8] {
        [
            self.documents,
            self.rows,
            self.tokens,
            self.trained_tokens,
            self.truncated_documents,
            self.truncated_tokens,
            self.dropped_documents,
            self.longest_tokens,
        ]
    }

    pub(crate) fn from_words(words: [u64; 8]) -> Counts {
        let [
            documents,
            rows,
            tokens,
            trained_tokens,
            truncated_documents,
            truncated_tokens,
            dropped_documents,
            longest_tokens,
        ] = words;
        Counts {
            documents,
            rows,
            tokens,
            trained_tokens,
            truncated_documents,
            truncated_tokens,
            dropped_documents,
            longest_tokens,
        }
    }
}

/// One token of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleToken {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no whole character show as the replacement character.
    pub text: String,
    /// Whether it is trained, that is, the label of the token before it.
    pub is_trained: bool,
}

/// The first tokens of the first segment of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Which row.
    pub row: u64,
    /// The tokens, at most 512.
    pub tokens: Vec<ExampleToken>,
    /// Tokens of the segment that are not shown.
    pub hidden_tokens: usize,
}

impl Example {
    /// Reads the first segment of a row.
    pub fn read(rows: &dyn RowReader, row: u64, tokenizer: &Tokenizer) -> Result<Example, DataError> {
        let mut buffer = Row::padding(rows.seq(), 0);
        rows.read(row, &mut buffer.buf())?;
        let len = buffer.segments.iter().take_while(|&&segment| segment == 0).count();
        let mut ids: Vec<(u32, bool)> = Vec::with_capacity(len + 1);
        for at in 0..len {
            let is_trained = at > 0 && buffer.labels[at - 1] != IGNORED;
            ids.push((buffer.tokens[at], is_trained));
        }
        if let Some(&label) = buffer.labels[..len].last().filter(|&&label| label != IGNORED) {
            ids.push((label as u32, true));
        }
        let hidden_tokens = ids.len().saturating_sub(EXAMPLE_TOKENS);
        ids.truncate(EXAMPLE_TOKENS);
        let token = |(id, is_trained)| ExampleToken { id, text: token_text(tokenizer, id), is_trained };
        Ok(Example { row, tokens: ids.into_iter().map(token).collect(), hidden_tokens })
    }
}

/// The text of one token in the middle of others, where decoding it alone would lose a leading space.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let pair = tokenizer.decode(&[id, id], false).unwrap_or_default();
    let single = tokenizer.decode(&[id], false).unwrap_or_default();
    pair.strip_prefix(single.as_str()).map_or(single.clone(), str::to_owned)
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "example: row {}, {} tokens", self.row, self.tokens.len() + self.hidden_tokens)?;
        for run in self.tokens.chunk_by(|a, b| a.is_trained == b.is_trained) {
            let name = if run[0].is_trained { "trained" } else { "masked " };
            let texts: Vec<String> = run.iter().map(|token| visible(&token.text)).collect();
            writeln!(f, "  {name} ({:4}) {}", run.len(), texts.join("|"))?;
        }
        if self.hidden_tokens > 0 {
            writeln!(f, "  and {} more tokens", self.hidden_tokens)?;
        }
        Ok(())
    }
}

/// A token's text on one line: line breaks and other control characters as escapes.
fn visible(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// What `inspect` says of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The fields the rows come from, in words.
    pub kind: String,
    /// Positions of a row.
    pub seq: usize,
    /// Counts of the rows to train on.
    pub train: Counts,
    /// Counts of the rows held out, if any are.
    pub valid: Option<Counts>,
    /// The first row's first document.
    pub example: Example,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind: {}, rows of {} tokens", self.kind, self.seq)?;
        write_counts(f, "train", &self.train, self.seq)?;
        if let Some(valid) = &self.valid {
            write_counts(f, "valid", valid, self.seq)?;
        }
        write!(f, "{}", self.example)
    }
}

fn write_counts(f: &mut fmt::Formatter<'_>, name: &str, counts: &Counts, seq: usize) -> fmt::Result {
    let capacity = counts.rows.saturating_mul(seq as u64).max(1);
    let filled = 100.0 * counts.tokens as f64 / capacity as f64;
    writeln!(f, "{name}: {} documents, {} rows, {:.1} % filled", counts.documents, counts.rows, filled)?;
    writeln!(
        f,
        "  {} tokens, {} of them trained; longest document {} tokens",
        counts.tokens, counts.trained_tokens, counts.longest_tokens
    )?;
    if counts.truncated_documents > 0 {
        let (documents, tokens) = (counts.truncated_documents, counts.truncated_tokens);
        writeln!(
            f,
            "  {documents} documents longer than a row were cut, {tokens} tokens lost: a longer --seq keeps them"
        )?;
    }
    if counts.dropped_documents > 0 {
        writeln!(f, "  {} documents left out: nothing in them is trained", counts.dropped_documents)?;
    }
    Ok(())
}

/// Positions of a row that hold a token.
pub(crate) fn filled(row: &Row) -> u64 {
    row.segments.iter().filter(|&&segment| segment != PADDING_SEGMENT).count() as u64
}
