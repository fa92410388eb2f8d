//! `tokenizer.json` and `tokenizer_config.json`, apart by a zero byte; what is read encodes and decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge::text::{ChatTemplate, Conversation, Tokenizer, TokenizerFiles};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let tokenizer = parts.next().unwrap_or_default();
    let files = TokenizerFiles { tokenizer, config: parts.next(), ..TokenizerFiles::default() };
    let tokenizer = match Tokenizer::from_huggingface(files) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            assert!(error.to_string().len() < 10_000 + 8 * data.len());
            return;
        }
    };
    assert!(tokenizer.estimated_bytes() < 64 << 20);
    for text in ["", "ab <s> a1 \u{e9}\n\n  b", "Day 1: 23\u{fffd}"] {
        for parse_special in [false, true] {
            let Ok(ids) = tokenizer.encode(text, true, parse_special) else { continue };
            let _ = tokenizer.decode(&ids, parse_special);
        }
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX, 2], false);
    if let Ok((template, _)) = ChatTemplate::for_tokenizer(&tokenizer) {
        let _ = template.render_masked(&Conversation::pair("a", Some("b")));
    }
});
