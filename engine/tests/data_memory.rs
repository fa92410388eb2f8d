//! Memory: what the tokenizer says it takes, what making rows takes, and that reading a row takes none.
#![expect(unsafe_code, reason = "a counting global allocator")]

mod data_common;

use data_common::{Scratch, byte_tokenizer, make};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tinyforge::data::{DataOptions, Row, buffer_bytes};
use tinyforge::text::{GgufVocab, Join, Tokenizer};

/// The system allocator, counting live bytes, their peak, and allocations.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; the counters are atomics and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's pointer and layout are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` and returns its result with the bytes still held and the most held at a time, both beyond what was before.
fn measured<T>(f: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, LIVE.load(Relaxed).saturating_sub(before), PEAK.load(Relaxed) - before)
}

/// A byte-level vocabulary of 49,152 pieces of up to eight letters with all their merges.
fn large_vocab() -> GgufVocab {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let (mut tokens, mut merges) = (letters.clone(), Vec::new());
    let mut at = 0;
    while tokens.len() < 49_152 {
        for letter in &letters {
            merges.push(format!("{} {letter}", tokens[at]));
            tokens.push(format!("{}{letter}", tokens[at]));
        }
        at += 1;
    }
    tokens.truncate(49_152);
    merges.truncate(49_152 - 26);
    GgufVocab { model: "gpt2".into(), pre: Some("smollm".into()), tokens, merges, ..GgufVocab::default() }
}

fn text(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 20);
    let mut state = 1u32;
    while text.len() < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push((b'a' + (state >> 24) as u8 % 26) as char);
        if state.is_multiple_of(7) {
            text.push(if state.is_multiple_of(77) { '\n' } else { ' ' });
        }
    }
    text
}

/// One test, so that no other thread allocates while it counts.
#[test]
fn memory_is_what_was_said() {
    let vocab = large_vocab();
    let (tokenizer, held, peak) = measured(|| Tokenizer::from_gguf(&vocab).unwrap());
    drop(vocab);
    let long = text(1 << 18);
    let mut ids = Vec::with_capacity(long.len());
    let (_, _, usual) = measured(|| tokenizer.encode_into(&long, Join::Start, true, &mut ids));
    let digits = "1".repeat(1 << 17);
    let (_, _, worst) = measured(|| tokenizer.encode_into(&digits, Join::Start, true, &mut ids));
    let estimate = tokenizer.estimated_bytes();
    println!("tokenizer: {held} held, {peak} to load, {usual} to encode words, {worst} digits; said {estimate}");
    assert!(peak <= estimate && held + usual.max(worst) <= estimate);
    assert!(estimate <= (held + worst) * 5 / 4);

    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("memory");
    let data = scratch.file("a.txt", &long);
    for pack in [false, true] {
        let options = DataOptions { pack, ..DataOptions::new(512) };
        let out = scratch.path().join(format!("out-{pack}"));
        let (set, _, peak) = measured(|| make(&data, Some(&out), &options, &tokenizer).unwrap());
        let limit = buffer_bytes(512, pack, 0) + tokenizer.estimated_bytes();
        println!("rows: {peak} used, said {limit}");
        assert!(peak <= limit);
        let mut row = Row::padding(512, 0);
        let calls = CALLS.load(Relaxed);
        for at in 0..set.train.rows() {
            set.train.read(at, &mut row.buf()).unwrap();
        }
        assert_eq!(CALLS.load(Relaxed), calls, "reading rows allocates");
    }
    let line = serde_json::json!({"prompt": text(1 << 19), "completion": text(1 << 17)}).to_string();
    let data = scratch.file("a.jsonl", &line);
    let line_bytes = line.len();
    drop(line);
    let (_, _, peak) = measured(|| make(&data, None, &DataOptions::new(512), &tokenizer).is_ok());
    let limit = buffer_bytes(512, false, line_bytes) + tokenizer.estimated_bytes();
    println!("a long line: {peak} used, said {limit}");
    assert!(peak <= limit);
}
