//! Chat templates: rendering, and which of the text the assistant said.

mod data_common;

use data_common::byte_tokenizer;
use serde_json::json;
use tinyforge::text::{ChatTemplate, ChatWarning, Conversation};

const DATE_UNIX_S: i64 = 1_721_952_000;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &byte_tokenizer(false, None), DATE_UNIX_S).unwrap()
}

fn conversation(messages: serde_json::Value) -> Conversation {
    Conversation { messages: messages.as_array().unwrap().clone(), tools: None }
}

/// Two questions, two answers.
fn talk() -> Conversation {
    conversation(json!([
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": " 1 "},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2"},
    ]))
}

/// The assistant's parts of a conversation.
fn said(source: &str, conversation: &Conversation) -> Vec<String> {
    let rendered = template(source).render_masked(conversation).unwrap();
    assert_eq!(rendered.text, template(source).render(conversation, false).unwrap());
    rendered.spans.iter().map(|span| rendered.text[span.clone()].to_owned()).collect()
}

fn error(source: &str, conversation: &Conversation) -> String {
    let template = ChatTemplate::new(source, &byte_tokenizer(false, None), DATE_UNIX_S);
    template.and_then(|template| template.render_masked(conversation)).unwrap_err().to_string()
}

#[test]
fn python_idioms_render_as_in_python() {
    let source = "{%- set ns = namespace(n=0) %}
{%- for m in messages %}
    {%- if m['role'] == 'user' and m.content is string %}
        {%- set ns.n = ns.n + 1 %}
    {%- endif %}
{{- m.content.strip().upper() }}{{ '|' if not loop.last }}
{%- endfor %}
{%- if tools is iterable and tools | length > 0 %}TOOLS{%- endif %} {{ ns.n }} {{ messages[1:][0].role }} {{ messages[-1]['content'] * 2 }}
  {% if add_generation_prompt %}
go {{ bos_token }}{{ eos_token }}
  {% endif %}
{{ strftime_now('%d %b %Y') }} {{ messages[0] | tojson }}";
    let rendered = template(source).render(&talk(), true).unwrap();
    let expected = "ONE?|1|TWO?|2 2 assistant 22\ngo <|im_start|><|im_end|>\n26 Jul 2024 {\"role\": \"user\", \"content\": \"one?\"}";
    assert_eq!(rendered, expected);
}

#[test]
fn a_template_of_its_own_trains_what_it_marks() {
    let source = "{% for m in messages %}
{% if m.role == 'assistant' %}
A:{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

{% else %}
U:{{ m.content }}
{% endif %}
{% endfor %}";
    assert_eq!(said(source, &talk()), [" 1 <|im_end|>", "2<|im_end|>"]);
    let dashed =
        "{% for m in messages %}{{ m.role }} {%- generation -%} {{ m.content }} {%- endgeneration -%} ;{% endfor %}";
    assert_eq!(said(dashed, &talk()), ["one?", " 1 ", "two?", "2"]);
}

#[test]
fn turns_are_found_without_marks() {
    let plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(said(plain, &talk()), [" 1 <|im_end|>", "2<|im_end|>"]);
    let trimmed = plain.replace("m.content }}", "m.content | trim }}");
    assert_eq!(said(&trimmed, &talk()), ["1<|im_end|>", "2<|im_end|>"]);
    let without_end = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    assert_eq!(said(without_end, &talk()), [" 1 \n", "2\n"]);
    let first = conversation(json!([{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hello"}]));
    assert_eq!(said(plain, &first), ["hello<|im_end|>"]);
    assert!(said(plain, &conversation(json!([{"role": "user", "content": "x"}]))).is_empty());
}

/// The last answer keeps its reasoning, earlier ones lose it, and an empty one is put before the last.
const REASONING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% if loop.last %}<think>
{{ m.content.split('</think>')[0].replace('<think>', '').strip() if '</think>' in m.content else '' }}
</think>

{% endif %}{{ said }}{% for call in m.tool_calls %}<call>{{ call.name }}</call>{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

#[test]
fn turns_that_render_differently_once_others_follow_are_found() {
    assert_eq!(said(REASONING, &talk()), [" 1 <|im_end|>", "<think>\n\n</think>\n\n2<|im_end|>"]);
    let thinking = conversation(json!([
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA"},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "<think>\nho\n</think>\n\nB"},
    ]));
    assert_eq!(said(REASONING, &thinking), ["A<|im_end|>", "<think>\nho\n</think>\n\nB<|im_end|>"]);
    let calling = conversation(json!([
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}, {"name": "g"}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three\u{ff0c}"},
    ]));
    let expected = ["<call>f</call><call>g</call><|im_end|>", "<think>\n\n</think>\n\nThree\u{ff0c}<|im_end|>"];
    assert_eq!(said(REASONING, &calling), expected);
}

#[test]
fn what_cannot_be_told_apart_is_an_error() {
    let repeating =
        "{% for m in messages %}{{ m.content }},{% endfor %}{% for m in messages %}{{ m.content }};{% endfor %}";
    let message = error(repeating, &talk());
    assert!(message.contains("assistant turn 1") && message.contains("{% generation %}"), "{message}");
    let refusing = "{{ raise_exception('roles must alternate') }}";
    assert!(error(refusing, &talk()).contains("roles must alternate"));
    assert!(error("{% for m in messages %}", &talk()).starts_with("chat template: "));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(error(endless, &talk()).contains("fuel"));
    let marked = conversation(json!([{"role": "user", "content": "\u{fdd0}"}]));
    assert!(error("x", &marked).contains("U+FDD0"));
}

#[test]
fn a_model_without_a_template_speaks_chatml_with_a_warning() {
    let (fallback, warning) = ChatTemplate::for_tokenizer(&byte_tokenizer(false, None)).unwrap();
    assert_eq!(warning, Some(ChatWarning::NoTemplate));
    let pair = Conversation::pair("hi", None);
    assert_eq!(fallback.render(&pair, true).unwrap(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let (_, warning) = ChatTemplate::for_tokenizer(&byte_tokenizer(false, Some("x"))).unwrap();
    assert_eq!(warning, None);
}
