//! The tokenizer that a GGUF file's metadata describes. The input is its lists as text: fields apart by zero bytes,
//! items by line breaks, so that every list can be of any length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge::text::{GgufVocab, Tokenizer};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut fields = text.split('\0');
    let mut field = || fields.next().unwrap_or_default();
    let list = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let (model, pre) = (field().to_owned(), Some(field().to_owned()).filter(|pre| !pre.is_empty()));
    let (tokens, merges) = (list(field()), list(field()));
    let scores = field().lines().map(|line| line.parse().unwrap_or(f32::NAN)).collect();
    let token_types = field().lines().map(|line| line.parse().unwrap_or(i32::MIN)).collect();
    let mut ids = field().lines().map(|line| line.parse::<u32>().ok());
    let mut id = || ids.next().flatten();
    let (bos, eos, pad, unk, switches) = (id(), id(), id(), id(), id().unwrap_or(0));
    let switch = |bit: u32| (switches >> bit & 1 == 1).then_some(switches >> (bit + 1) & 1 == 1);
    let (add_bos, add_eos, add_space_prefix) = (switch(0), switch(2), switch(4));
    let ends = std::iter::from_fn(id).collect();
    let chat_template = Some(field().to_owned()).filter(|template| !template.is_empty());
    let vocab = GgufVocab {
        model,
        pre,
        tokens,
        scores,
        token_types,
        merges,
        bos,
        eos,
        pad,
        ends,
        unk,
        add_bos,
        add_eos,
        add_space_prefix,
        chat_template,
    };
    let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) else { return };
    let text = field();
    for parse_special in [false, true] {
        let ids = tokenizer.encode(text, true, parse_special).expect("a built-in tokenizer splits any text");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
        tokenizer.decode(&ids, parse_special).expect("ids of its own");
    }
});
