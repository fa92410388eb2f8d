//! Chat templates: from messages to text, and which of the text the assistant said.
//!
//! A template is the Jinja source that came with the model. What belongs to assistant turns is found by
//! `{% generation %}` blocks where the template has them; otherwise by rendering with and without each turn; and where
//! a template renders a turn differently once others follow, by what changes when the turn says something else. Each
//! way is verified against the plain rendering, and a turn that cannot be located is an error, never a guess.
//! Nothing depends on the day: `strftime_now` formats a date that is given, or a fixed one.

use super::python::{json_dumps, strftime};
use super::{TextError, Tokenizer};
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use std::ops::Range;

/// ChatML: the template of a model that has none of its own.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What ends a turn in [`CHATML`].
const CHATML_END: &str = "<|im_end|>";

/// The date given to templates that ask for today's: 26 July 2024, which published templates also fall back to.
pub const FIXED_DATE_UNIX_S: i64 = 1_721_952_000;

/// Characters that are assigned to nothing in Unicode, as marks in rendered text.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// What an assistant turn says instead when it is looked for.
const PROBE: &str = "\u{FDD0}\u{FDD1}";

/// What ends the reasoning that some models write before what they say.
const THOUGHT_END: &str = "</think>";

/// A conversation is refused when locating its turns would render more than this.
const RENDERED_BYTES_MAX: usize = 1 << 30;

/// What the caller may want to tell the user about a template; nothing is printed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChatWarning {
    /// The model brought no template.
    #[error("the model has no chat template; conversations are written as ChatML (<|im_start|>role ... <|im_end|>)")]
    NoTemplate,
}

/// A conversation as the data file has it: each message an object with `role`, `content` and whatever else.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<serde_json::Value>,
    /// Descriptions of the tools that the assistant may call, passed to the template as they are.
    pub tools: Option<serde_json::Value>,
}

impl Conversation {
    /// One question and, if given, its answer.
    pub fn pair(user: &str, assistant: Option<&str>) -> Conversation {
        let message = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let mut messages = vec![message("user", user)];
        messages.extend(assistant.map(|content| message("assistant", content)));
        Conversation { messages, tools: None }
    }
}

/// A rendered conversation and the byte ranges of it that the assistant said, in order and apart from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Assistant turns: content and the token that ends the turn.
    pub spans: Vec<Range<usize>>,
}

/// A compiled chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    has_generation_blocks: bool,
    is_fallback: bool,
    /// The texts of all control tokens.
    specials: Vec<String>,
    /// Those at which generation stops.
    turn_ends: Vec<String>,
    bos_token: String,
    eos_token: String,
    pad_token: String,
    unk_token: String,
}

impl ChatTemplate {
    /// The tokenizer's own template, or ChatML with a warning when it has none.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<(ChatTemplate, Option<ChatWarning>), TextError> {
        match tokenizer.chat_template() {
            Some(source) => Ok((ChatTemplate::new(source, tokenizer, FIXED_DATE_UNIX_S)?, None)),
            None => {
                let mut template = ChatTemplate::new(CHATML, tokenizer, FIXED_DATE_UNIX_S)?;
                template.is_fallback = true;
                template.specials.push(CHATML_END.to_owned());
                template.turn_ends.push(CHATML_END.to_owned());
                Ok((template, Some(ChatWarning::NoTemplate)))
            }
        }
    }

    /// Compiles `source`; the special tokens it may use are the tokenizer's. `now_unix_s` is what `strftime_now` says.
    pub fn new(source: &str, tokenizer: &Tokenizer, now_unix_s: i64) -> Result<ChatTemplate, TextError> {
        let (source, has_generation_blocks) = replace_generation_tags(source);
        let mut environment = Environment::new();
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(template_error)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| strftime(&format, now_unix_s));
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_filter(GENERATION_FILTER, |text: String| format!("{OPEN}{text}{CLOSE}"));
        environment.add_template_owned(NAME, source).map_err(template_error)?;
        let named = |id: Option<u32>| id.and_then(|id| tokenizer.raw_token(id)).unwrap_or_default();
        Ok(ChatTemplate {
            environment,
            has_generation_blocks,
            is_fallback: false,
            specials: tokenizer.special_tokens().map(str::to_owned).collect(),
            turn_ends: tokenizer.end_ids().iter().filter_map(|&id| tokenizer.raw_token(id)).collect(),
            bos_token: named(tokenizer.bos()),
            eos_token: named(tokenizer.eos()),
            pad_token: named(tokenizer.pad()),
            unk_token: named(tokenizer.unk()),
        })
    }

    /// Whether this is ChatML in the place of a missing template.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// The text of a conversation; `add_generation_prompt` ends it where the assistant begins to speak.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String, TextError> {
        let job = Job::new(self, conversation)?;
        let text = job.render(job.messages.clone(), add_generation_prompt)?;
        Ok(if self.has_generation_blocks { text.replace([OPEN, CLOSE], "") } else { text })
    }

    /// The text of a conversation and which of it the assistant said.
    /// Errors: the template refuses the conversation; a turn cannot be located.
    pub fn render_masked(&self, conversation: &Conversation) -> Result<Rendered, TextError> {
        let job = Job::new(self, conversation)?;
        let text = job.render(job.messages.clone(), false)?;
        if self.has_generation_blocks {
            return unmark(&text).ok_or(TextError::Mask { turn: 0 });
        }
        let turns: Vec<usize> = (0..job.messages.len()).filter(|&turn| job.is_assistant(turn)).collect();
        if turns.len().saturating_mul(text.len()) > RENDERED_BYTES_MAX {
            let message = format!("a conversation of {} turns and {} bytes is too long", turns.len(), text.len());
            return Err(TextError::Template(message));
        }
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(turns.len());
        for turn in turns {
            let span = job.span_by_prefix(&text, turn).or_else(|| job.span_by_probe(&text, turn, PROBE));
            let span = span.or_else(|| job.span_by_probe(&text, turn, &job.thoughtful_probe(turn)?));
            let end = spans.last().map_or(0, |last| last.end);
            spans.push(span.filter(|span| span.start >= end).ok_or(TextError::Mask { turn })?);
        }
        Ok(Rendered { text, spans })
    }
}

/// Work a rendering may cost, in interpreter steps: a template that loops for ever ends in an error.
const FUEL: u64 = 1 << 26;

const NAME: &str = "chat template";
const GENERATION_FILTER: &str = "__generation";

/// One conversation being rendered, its messages converted once.
struct Job<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
    messages: Vec<Value>,
    tools: Value,
}

impl<'a> Job<'a> {
    fn new(template: &'a ChatTemplate, conversation: &'a Conversation) -> Result<Job<'a>, TextError> {
        let has_mark = |text: &str| text.contains([OPEN, CLOSE]);
        if conversation.messages.iter().chain(&conversation.tools).any(|value| any_text(value, &has_mark)) {
            let message = "a message contains U+FDD0 or U+FDD1, which are not characters".to_owned();
            return Err(TextError::Template(message));
        }
        Ok(Job {
            template,
            conversation,
            messages: conversation.messages.iter().map(|message| Value::from(Serde(message))).collect(),
            tools: Value::from(Serde(&conversation.tools)),
        })
    }

    fn role(&self, turn: usize) -> Option<&str> {
        self.conversation.messages[turn].get("role")?.as_str()
    }

    fn is_assistant(&self, turn: usize) -> bool {
        self.role(turn) == Some("assistant")
    }

    fn render(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<String, TextError> {
        let template = self.template.environment.get_template(NAME).map_err(template_error)?;
        let values = context! {
            messages => messages,
            tools => self.tools.clone(),
            documents => Value::from(()),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.template.bos_token.as_str(),
            eos_token => self.template.eos_token.as_str(),
            pad_token => self.template.pad_token.as_str(),
            unk_token => self.template.unk_token.as_str(),
        };
        template.render(values).map_err(template_error)
    }

    /// What the rendering gains by an assistant turn over that of the messages before it with the prompt to speak.
    /// `None` when a shorter rendering is not the beginning of the whole one.
    fn span_by_prefix(&self, text: &str, turn: usize) -> Option<Range<usize>> {
        let before = self.render(self.messages[..turn].to_vec(), true).ok()?;
        let after = self.render(self.messages[..=turn].to_vec(), false).ok()?;
        let is_prefix = text.starts_with(&after) && after.starts_with(&before);
        is_prefix.then(|| self.with_turn_end(text, before.len()..after.len()))
    }

    /// What changes in the rendering when the turn says `content`, which ends in the probe, instead. `None` when more
    /// changes than the probe.
    fn span_by_probe(&self, text: &str, turn: usize, content: &str) -> Option<Range<usize>> {
        let mut messages = self.messages.clone();
        messages[turn] = Value::from(Serde(serde_json::json!({"role": self.role(turn), "content": content})));
        let other = self.render(messages, false).ok()?;
        let start = text.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=start).rev().find(|&at| text.is_char_boundary(at))?;
        let (rest, other_rest) = (&text[start..], other.get(start..)?);
        let tail = rest.bytes().rev().zip(other_rest.bytes().rev()).take_while(|(a, b)| a == b).count();
        let tail = (0..=tail).rev().find(|&len| rest.is_char_boundary(rest.len() - len))?;
        let is_only = other_rest.get(..other_rest.len() - tail) == Some(PROBE);
        let span = start..text.len() - tail;
        is_only.then(|| self.with_turn_end(text, span))
    }

    /// The turn's content with the probe in place of what follows its reasoning; `None` without reasoning in it.
    fn thoughtful_probe(&self, turn: usize) -> Option<String> {
        let content = self.conversation.messages[turn].get("content")?.as_str()?;
        let (thought, said) = content.rsplit_once(THOUGHT_END)?;
        let blank = &said[..said.len() - said.trim_start().len()];
        Some(format!("{thought}{THOUGHT_END}{blank}{PROBE}"))
    }

    /// Moves the end of a turn to just after the token that ends it: the last special token of the span when only white
    /// space follows it there, or an end token in the white space after the span.
    fn with_turn_end(&self, text: &str, span: Range<usize>) -> Range<usize> {
        let turn = text[span.clone()].trim_end();
        if self.template.specials.iter().any(|special| turn.ends_with(special.as_str())) {
            return span.start..span.start + turn.len();
        }
        let rest = text[span.end..].trim_start();
        let ends = self.template.turn_ends.iter().filter(|end| rest.starts_with(end.as_str()));
        match ends.map(String::len).max() {
            Some(len) => span.start..text.len() - rest.len() + len,
            None => span,
        }
    }
}

/// Whether any text within a JSON value satisfies `test`. Values come from a parser that limits their depth.
fn any_text(value: &serde_json::Value, test: &impl Fn(&str) -> bool) -> bool {
    match value {
        serde_json::Value::String(text) => test(text),
        serde_json::Value::Array(items) => items.iter().any(|item| any_text(item, test)),
        serde_json::Value::Object(map) => map.iter().any(|(key, item)| test(key) || any_text(item, test)),
        _ => false,
    }
}

/// Takes the marks out of a text; `None` when they are not in pairs.
fn unmark(marked: &str) -> Option<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = None;
    for character in marked.chars() {
        match character {
            OPEN if open.is_none() => open = Some(text.len()),
            CLOSE => spans.push(open.take()?..text.len()),
            OPEN => return None,
            _ => text.push(character),
        }
    }
    open.is_none().then_some(Rendered { text, spans })
}

/// Turns `{% generation %}` and `{% endgeneration %}` into a filter block that marks what it encloses, keeping the
/// white-space control of each tag. Also returns whether there was one.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_found = false;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let inner = &rest[at + 2..at + len];
        let name = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..at]);
        match name {
            "generation" | "endgeneration" => {
                is_found = true;
                let filter = format!("filter {GENERATION_FILTER}");
                let tag = if name == "generation" { filter.as_str() } else { "endfilter" };
                out.push_str("{%");
                out.push_str(&inner.replacen(name, tag, 1));
                out.push_str("%}");
            }
            _ => out.push_str(&rest[at..at + len + 2]),
        }
        rest = &rest[at + len + 2..];
    }
    out.push_str(rest);
    (out, is_found)
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    let json = serde_json::to_value(value).map_err(failed)?;
    json_dumps(&json, indent).map(Value::from).map_err(failed)
}

fn template_error(error: Error) -> TextError {
    TextError::Template(error.to_string())
}
