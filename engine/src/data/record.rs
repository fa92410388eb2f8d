//! What a line of a data file says: a conversation, a prompt with its completion, or text.
//!
//! The kind of a file is that of its first line; a line of another kind is an error. Fields that a kind does not use
//! are skipped without being built.

use crate::text::Conversation;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt;

/// The kinds of rows, by the fields they have. A line with the fields of several is the first of them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `messages`: a list of objects with `role` and `content`; `tools` beside it is given to the chat template.
    Messages = 0,
    /// `prompt` and `completion`: taken as they are, one after the other.
    PromptCompletion = 1,
    /// `question` and `answer`: a user's and an assistant's turn.
    QuestionAnswer = 2,
    /// `instruction`, `output` and perhaps `input`: a user's and an assistant's turn.
    Instruction = 3,
    /// `text`, or a text file.
    Text = 4,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Messages, Kind::PromptCompletion, Kind::QuestionAnswer, Kind::Instruction, Kind::Text];

    fn fields(self) -> &'static str {
        match self {
            Kind::Messages => "`messages`",
            Kind::PromptCompletion => "`prompt` and `completion`",
            Kind::QuestionAnswer => "`question` and `answer`",
            Kind::Instruction => "`instruction` and `output`",
            Kind::Text => "`text`",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fields())
    }
}

/// One line, read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) body: Body,
    pub(crate) weight: f32,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    Chat(Conversation),
    /// Two turns that become a chat where the model has a template, otherwise text after text.
    Turns {
        user: String,
        assistant: String,
    },
    Pair {
        prompt: String,
        completion: String,
    },
    Text(String),
}

/// The known fields of a line; `null` counts as absent.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    completion: Option<&'a RawValue>,
    #[serde(borrow)]
    question: Option<&'a RawValue>,
    #[serde(borrow)]
    answer: Option<&'a RawValue>,
    #[serde(borrow)]
    instruction: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    weight: Option<&'a RawValue>,
}

impl Fields<'_> {
    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Messages => self.messages.is_some(),
            Kind::PromptCompletion => self.prompt.is_some() && self.completion.is_some(),
            Kind::QuestionAnswer => self.question.is_some() && self.answer.is_some(),
            Kind::Instruction => self.instruction.is_some() && self.output.is_some(),
            Kind::Text => self.text.is_some(),
        }
    }
}

const KNOWN: &str =
    "`messages`, `prompt` and `completion`, `question` and `answer`, `instruction` and `output`, or `text`";

/// Reads one line; `expected` is the kind of the lines before it. The error says what is wrong, without file and line.
pub(crate) fn parse(line: &str, expected: Option<Kind>) -> Result<Record, String> {
    let start = line.trim_start();
    if !start.starts_with('{') {
        let found = match start.chars().next() {
            Some('[') => "a JSON list; write one object a line",
            _ => "no JSON object",
        };
        return Err(format!("expected one JSON object a line with {KNOWN}, found {found}"));
    }
    let fields: Fields<'_> = serde_json::from_str(line).map_err(|error| json_message(&error))?;
    let kind = match expected {
        Some(kind) if fields.has(kind) => kind,
        Some(kind) => {
            let other = Kind::ALL.into_iter().find(|&other| fields.has(other));
            let found = other.map_or("none of the known fields".to_owned(), |other| other.to_string());
            return Err(format!("the lines before have {kind}, this one has {found}; a data set is of one kind"));
        }
        None => Kind::ALL
            .into_iter()
            .find(|&kind| fields.has(kind))
            .ok_or_else(|| format!("none of the known fields; expected {KNOWN}"))?,
    };
    let weight = weight(fields.weight)?;
    let body = match kind {
        Kind::Messages => Body::Chat(conversation(&fields)?),
        Kind::PromptCompletion => {
            Body::Pair { prompt: text("prompt", fields.prompt)?, completion: text("completion", fields.completion)? }
        }
        Kind::QuestionAnswer => {
            Body::Turns { user: text("question", fields.question)?, assistant: text("answer", fields.answer)? }
        }
        Kind::Instruction => {
            let (instruction, input) = (text("instruction", fields.instruction)?, text("input", fields.input)?);
            let user = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
            Body::Turns { user, assistant: text("output", fields.output)? }
        }
        Kind::Text => Body::Text(text("text", fields.text)?),
    };
    Ok(Record { kind, body, weight })
}

/// serde_json counts lines itself; within one line only its column says something.
fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    if error.column() == 0 { message.to_owned() } else { format!("{message} at column {}", error.column()) }
}

fn text(name: &str, raw: Option<&RawValue>) -> Result<String, String> {
    let Some(raw) = raw else { return Ok(String::new()) };
    serde_json::from_str(raw.get()).map_err(|error| format!("`{name}` must be a string: {}", json_message(&error)))
}

fn weight(raw: Option<&RawValue>) -> Result<f32, String> {
    let Some(raw) = raw else { return Ok(1.0) };
    let weight: f64 = serde_json::from_str(raw.get())
        .map_err(|error| format!("`weight` must be a number: {}", json_message(&error)))?;
    let weight = weight as f32;
    if weight.is_finite() && weight >= 0.0 {
        Ok(weight)
    } else {
        Err(format!("`weight` must be a finite number of at least 0, found {}", raw.get()))
    }
}

fn conversation(fields: &Fields<'_>) -> Result<Conversation, String> {
    let raw = fields.messages.map_or("null", RawValue::get);
    let messages: Vec<serde_json::Value> = serde_json::from_str(raw)
        .map_err(|error| format!("`messages` must be a list of objects: {}", json_message(&error)))?;
    if messages.is_empty() {
        return Err("`messages` is empty".to_owned());
    }
    for (at, message) in messages.iter().enumerate() {
        let role = message.get("role").ok_or_else(|| format!("`messages[{at}]` must be an object with a `role`"))?;
        if !role.is_string() {
            return Err(format!("`messages[{at}].role` must be a string"));
        }
        let has_content = match message.get("content") {
            Some(serde_json::Value::String(_) | serde_json::Value::Array(_)) => true,
            Some(serde_json::Value::Null) | None => message.get("tool_calls").is_some(),
            Some(_) => false,
        };
        if !has_content {
            return Err(format!("`messages[{at}].content` must be a string (or a list of parts)"));
        }
    }
    let tools = fields.tools.map(|raw| serde_json::from_str(raw.get())).transpose();
    let tools = tools.map_err(|error| format!("`tools`: {}", json_message(&error)))?;
    Ok(Conversation { messages, tools })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(line: &str) -> Body {
        parse(line, None).unwrap().body
    }

    fn error(line: &str) -> String {
        parse(line, None).unwrap_err()
    }

    #[test]
    fn every_kind_is_recognised_by_its_fields() {
        assert_eq!(body(r#"{"text":"a","id":[1,{}]}"#), Body::Text("a".into()));
        let pair = Body::Pair { prompt: "p".into(), completion: "c".into() };
        assert_eq!(body(r#"{"completion":"c","prompt":"p","text":null}"#), pair);
        let turns = |user: &str| Body::Turns { user: user.into(), assistant: "a".into() };
        assert_eq!(body(r#"{"question":"q","answer":"a"}"#), turns("q"));
        assert_eq!(body(r#"{"instruction":"i","input":"","output":"a"}"#), turns("i"));
        assert_eq!(body(r#"{"instruction":"i","input":"x","output":"a"}"#), turns("i\n\nx"));
        let chat = body(r#"{"messages":[{"role":"user","content":"hi"}],"tools":[1]}"#);
        assert!(matches!(chat, Body::Chat(chat) if chat.messages.len() == 1 && chat.tools.is_some()));
        assert_eq!(parse(r#"{"text":"a","weight":0.5}"#, None).unwrap().weight, 0.5);
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        assert!(error("[1]").contains("a JSON list"));
        assert!(error("hello").contains("no JSON object"));
        assert!(error(r#"{"a":1}"#).contains("none of the known fields"));
        assert!(error(r#"{"text":5}"#).contains("`text` must be a string"));
        assert!(error(r#"{"text":"a""#).contains("column"));
        assert!(error(r#"{"text":"a","text":"b"}"#).contains("duplicate field `text`"));
        assert!(error(r#"{"text":"a","weight":NaN}"#).contains("column"));
        assert!(error(r#"{"text":"a","weight":-1}"#).contains("at least 0"));
        assert!(error(r#"{"text":"a","weight":1e39}"#).contains("finite"));
        assert!(error(r#"{"text":"a","weight":1e999}"#).contains("`weight`"));
        assert!(error(r#"{"messages":[]}"#).contains("empty"));
        assert!(error(r#"{"messages":[{"content":"x"}]}"#).contains("role"));
        assert!(error(r#"{"messages":[{"role":"user","content":7}]}"#).contains("content"));
        let nested = format!(r#"{{"messages":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(error(&nested).contains("`messages`"));
        let other = parse(r#"{"text":"a"}"#, Some(Kind::Messages)).unwrap_err();
        assert!(other.contains("`messages`") && other.contains("`text`"));
    }
}
