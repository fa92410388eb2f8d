//! Rust source told apart: code, comments and literals, and which lines are tests.
//!
//! Invariant: `code` and `comments` have the length and the line breaks of the text; what does not belong there is
//! blank. So an offset means the same place in all three. Not a parser: it knows as much of Rust as tidy needs.

use std::ops::Range;

/// One Rust file.
pub struct Source {
    /// The text with comments and the insides of literals blanked.
    pub code: String,
    /// The text with everything but comments blanked.
    pub comments: String,
    /// Byte ranges of items under `#[cfg(test)]`.
    tests: Vec<Range<usize>>,
}

/// A function with a body.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Offset of `fn`.
    pub start: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Code,
    Comment,
    Literal,
}

impl Source {
    /// Takes a text apart.
    pub fn new(text: &str) -> Source {
        let parts = parts(text.as_bytes());
        let keep = |wanted: Part| {
            let bytes = text.bytes().zip(&parts);
            let kept = bytes.map(|(b, &part)| if b == b'\n' || part == wanted { b } else { b' ' });
            // Invariant: parts begin and end at ASCII bytes, so whole characters are kept or blanked.
            String::from_utf8(kept.collect()).expect("parts hold whole characters")
        };
        let mut source = Source { code: keep(Part::Code), comments: keep(Part::Comment), tests: Vec::new() };
        source.tests = attribute_items(&source.code, "#[cfg(test)]");
        source
    }

    /// Whether the place is inside an item under `#[cfg(test)]`.
    pub fn is_test(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Places at which `word` stands in the code as a word of its own.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code, word)
    }

    /// All functions with a body, those inside others too.
    pub fn functions(&self) -> Vec<Function> {
        let code = self.code.as_bytes();
        let found = self.words("fn").filter_map(|start| {
            let name = identifier(&self.code, start + 2)?;
            let open = body(code, start)?;
            let close = closing(code, open)?;
            let lines = 1 + code[start..close].iter().filter(|b| **b == b'\n').count();
            Some(Function { name: name.to_string(), start, lines })
        });
        found.collect()
    }

    /// Modules declared with `mod name;`: the name, where, and whether they stand under `#[cfg(test)]`.
    pub fn modules(&self) -> Vec<(String, usize, bool)> {
        let found = self.words("mod").filter_map(|at| {
            let name = identifier(&self.code, at + 3)?;
            let rest = self.code[at + 3..].trim_start().strip_prefix(name)?;
            rest.trim_start().starts_with(';').then(|| (name.to_string(), at, self.is_test(at)))
        });
        found.collect()
    }
}

/// The line of an offset, counted from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

/// Places at which `word` stands as a word of its own: no letter, digit or underscore beside it.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    let first = word.as_bytes().first().copied().unwrap_or(b' ');
    let last = word.as_bytes().last().copied().unwrap_or(b' ');
    let apart = move |at: usize| {
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        let after = bytes.get(at + word.len());
        !(is_word(first) && before.is_some_and(|b| is_word(*b)) || is_word(last) && after.is_some_and(|b| is_word(*b)))
    };
    text.match_indices(word).map(|(at, _)| at).filter(move |at| apart(*at))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The identifier behind `at`, whitespace skipped.
fn identifier(code: &str, at: usize) -> Option<&str> {
    let rest = code.get(at..)?.trim_start();
    let end = rest.bytes().position(|b| !is_word(b) && b != b'$').unwrap_or(rest.len());
    (end > 0 && !rest.as_bytes()[0].is_ascii_digit()).then(|| &rest[..end])
}

/// The opening brace of the body of the item at `start`, or `None` when a semicolon ends it first.
fn body(code: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, b) in code.iter().enumerate().skip(start) {
        match b {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(i),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The brace that closes the one at `open`.
fn closing(code: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, b) in code.iter().enumerate().skip(open) {
        match b {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(i),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The items behind every place at which this attribute stands.
fn attribute_items(code: &str, attribute: &str) -> Vec<Range<usize>> {
    let bytes = code.as_bytes();
    let range = |(at, _): (usize, &str)| {
        let start = at + attribute.len();
        let end = match body(bytes, start) {
            Some(open) => closing(bytes, open).unwrap_or(bytes.len()),
            None => start + code[start..].find(';').unwrap_or(code.len() - start),
        };
        at..end + 1
    };
    code.match_indices(attribute).map(range).collect()
}

/// What every byte belongs to.
fn parts(text: &[u8]) -> Vec<Part> {
    let mut parts = vec![Part::Code; text.len()];
    let mut i = 0;
    while i < text.len() {
        let (part, inside, next) = match (text[i], text.get(i + 1)) {
            (b'/', Some(b'/')) => (Part::Comment, i, line_end(text, i)),
            (b'/', Some(b'*')) => (Part::Comment, i, comment_end(text, i)),
            (b'"', _) => (Part::Literal, i + 1, string_end(text, i)),
            (b'r', Some(b'"' | b'#')) if starts_word(text, i) => match raw_string(text, i) {
                Some((inside, end)) => (Part::Literal, inside, end),
                None => (Part::Code, i, i + 1),
            },
            (b'\'', _) => match char_end(text, i) {
                Some(end) => (Part::Literal, i + 1, end),
                None => (Part::Code, i, i + 1),
            },
            _ => (Part::Code, i, i + 1),
        };
        parts[inside.min(next)..next].fill(part);
        // Quotes belong to the code, the closing one too.
        i = if part == Part::Literal { next + 1 } else { next };
    }
    parts
}

/// Whether an `r` here begins a literal: `r"`, `br"`, `cr"`, but not the end of a name.
fn starts_word(text: &[u8], i: usize) -> bool {
    match i.checked_sub(1).map(|p| text[p]) {
        None => true,
        Some(b'b' | b'c') => i < 2 || !is_word(text[i - 2]),
        Some(before) => !is_word(before),
    }
}

fn line_end(text: &[u8], start: usize) -> usize {
    text[start..].iter().position(|b| *b == b'\n').map_or(text.len(), |n| start + n)
}

fn comment_end(text: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < text.len() {
        match (text[i], text.get(i + 1)) {
            (b'/', Some(b'*')) => (depth, i) = (depth + 1, i + 2),
            (b'*', Some(b'/')) if depth == 1 => return i + 2,
            (b'*', Some(b'/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    text.len()
}

/// The closing quote of the string at `start`.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < text.len() && text[i] != b'"' {
        i += if text[i] == b'\\' { 2 } else { 1 };
    }
    i.min(text.len())
}

/// First byte inside and closing quote of the raw string at `start`.
fn raw_string(text: &[u8], start: usize) -> Option<(usize, usize)> {
    let hashes = text[start + 1..].iter().take_while(|b| **b == b'#').count();
    let inside = start + 2 + hashes;
    if text.get(inside - 1) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let end = text[inside..].windows(close.len()).position(|w| w == close).map_or(text.len(), |n| inside + n);
    Some((inside, end))
}

/// The closing quote of the character at `start`; `None` for a lifetime.
fn char_end(text: &[u8], start: usize) -> Option<usize> {
    if text.get(start + 1) == Some(&b'\\') {
        let quote = text.iter().enumerate().skip(start + 3).find(|(_, b)| **b == b'\'');
        return quote.map(|(i, _)| i);
    }
    let first = *text.get(start + 1)?;
    let len = match first {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (text.get(start + 1 + len) == Some(&b'\'')).then_some(start + 1 + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blank_in_code() {
        let text =
            "let a = \"fn x() { // no\"; // fn y() {\nlet b = r#\"}\"#; /* { /* } */ */ let c = '{'; let d: &'a u8;";
        let source = Source::new(text);
        assert_eq!(source.code.len(), text.len());
        assert!(!source.code.contains(['{', '}']), "{}", source.code);
        assert!(source.code.contains("let d: &'a u8;"));
        assert!(source.comments.contains("// fn y() {") && source.comments.contains("/* { /* } */ */"));
        assert!(!source.comments.contains("no\""));
    }

    #[test]
    fn escapes_and_wide_characters_end_where_they_end() {
        let source = Source::new("f('\\'', '\\\\', 'é', \"\\\"\", b'\"', \"\", x); // \"\nlet y = 1;");
        assert!(source.code.contains("let y = 1;"));
        assert!(source.code.contains(", x);"));
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let text = "fn one() {}\nimpl T {\n    fn two(f: fn(u8) -> u8, a: [u8; 2]) -> u8\n    where\n        u8: Copy,\n    {\n        f(a[0])\n    }\n}\ntrait U {\n    fn none(&self);\n}\n";
        let found: Vec<(String, usize)> =
            Source::new(text).functions().into_iter().map(|f| (f.name, f.lines)).collect();
        assert_eq!(found, [("one".to_string(), 1), ("two".to_string(), 6)]);
    }

    #[test]
    fn test_items_are_known() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nmod real;\n";
        let source = Source::new(text);
        let tests: Vec<bool> = source.functions().iter().map(|f| source.is_test(f.start)).collect();
        assert_eq!(tests, [false, true, false]);
        let modules: Vec<(String, bool)> = source.modules().into_iter().map(|(name, _, test)| (name, test)).collect();
        assert_eq!(modules, [("more".to_string(), true), ("real".to_string(), false)]);
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(words("unsafe_code unsafe {unsafe} xunsafe", "unsafe").collect::<Vec<_>>(), [12, 20]);
        assert_eq!(words("a.unwrap() b.unwrap_or()", ".unwrap()").count(), 1);
    }
}
