//! From records to documents: tokens, and which of them are trained.
//!
//! Parts that are trained and parts that are not are encoded one after the other, as generation would meet them: no
//! token straddles the line between prompt and answer. Control tokens written out in the data are read as such.

use super::record::Body;
use crate::text::{ChatTemplate, Conversation, Join, TextError, Tokenizer};

/// A tokenised document.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Document {
    pub(crate) tokens: Vec<u32>,
    /// Whether each token is trained, that is, a label.
    pub(crate) is_trained: Vec<bool>,
}

impl Document {
    fn mark_from(&mut self, is_trained: bool) {
        self.is_trained.resize(self.tokens.len(), is_trained);
    }
}

/// Turns records into documents.
pub(crate) struct DocumentEncoder<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) template: &'a ChatTemplate,
    pub(crate) mask_prompt: bool,
}

impl DocumentEncoder<'_> {
    /// The document of a record that is not text; text is encoded as a stream by the caller.
    pub(crate) fn encode(&self, body: &Body) -> Result<Document, TextError> {
        match body {
            Body::Chat(conversation) => self.chat(conversation),
            Body::Turns { user, assistant } if !self.template.is_fallback() => {
                self.chat(&Conversation::pair(user, Some(assistant)))
            }
            Body::Turns { user, assistant } => self.pair(&format!("{user}\n"), assistant),
            Body::Pair { prompt, completion } => self.pair(prompt, completion),
            Body::Text(text) => {
                let mut document = self.start();
                self.append(&mut document, text, Join::Start, true)?;
                self.end(&mut document);
                Ok(document)
            }
        }
    }

    /// A document with the begin-of-text token, if the tokenizer puts one.
    pub(crate) fn start(&self) -> Document {
        let mut document = Document { tokens: self.tokenizer.prefix().to_vec(), is_trained: Vec::new() };
        document.mark_from(!self.mask_prompt);
        document
    }

    /// Appends a text.
    pub(crate) fn append(
        &self,
        document: &mut Document,
        text: &str,
        join: Join,
        is_trained: bool,
    ) -> Result<(), TextError> {
        self.tokenizer.encode_into(text, join, true, &mut document.tokens)?;
        document.mark_from(is_trained);
        Ok(())
    }

    /// Appends the end-of-text token unless the document ends with one.
    pub(crate) fn end(&self, document: &mut Document) {
        let Some(eos) = self.tokenizer.eos() else { return };
        if document.tokens.last() != Some(&eos) {
            document.tokens.push(eos);
            document.mark_from(true);
        }
    }

    fn pair(&self, prompt: &str, completion: &str) -> Result<Document, TextError> {
        let mut document = self.start();
        self.append(&mut document, prompt, Join::Start, !self.mask_prompt)?;
        let join = if prompt.is_empty() { Join::Start } else { Join::Continue };
        self.append(&mut document, completion, join, true)?;
        self.end(&mut document);
        Ok(document)
    }

    /// A template writes its own begin and end tokens; ChatML in its place does not, so they are added to that.
    fn chat(&self, conversation: &Conversation) -> Result<Document, TextError> {
        let rendered = self.template.render_masked(conversation)?;
        let mut document = if self.template.is_fallback() { self.start() } else { Document::default() };
        let mut at = 0;
        for span in &rendered.spans {
            self.append(&mut document, &rendered.text[at..span.start], join_at(at), !self.mask_prompt)?;
            self.append(&mut document, &rendered.text[span.clone()], join_at(span.start), true)?;
            at = span.end;
        }
        let is_end = |&token: &u32| self.tokenizer.end_ids().contains(&token);
        let has_end = rendered.spans.is_empty() || document.tokens.last().is_some_and(is_end);
        let tail = &rendered.text[at..];
        if !has_end && tail.trim().is_empty() {
            self.end(&mut document);
        } else {
            self.append(&mut document, tail, join_at(at), !self.mask_prompt)?;
        }
        Ok(document)
    }
}

fn join_at(at: usize) -> Join {
    if at == 0 { Join::Start } else { Join::Continue }
}
