//! Where a long text may be cut so that the parts tokenise as the whole does.
//!
//! Splitting a text into words takes some hundred bytes for each of its characters; cutting keeps that bounded. Every
//! pre-tokenizer in use begins a word with a single space between two visible characters; most also end one after a
//! line break between two.

/// A part is cut at the last good place before this many bytes.
pub(crate) const PART_BYTES: usize = 8 << 10;

/// A run without any good place is cut here, at a character boundary; the tokens at that point may then differ from
/// those of the whole.
pub(crate) const RUN_BYTES: usize = 16 << 10;

/// Length of the first part of `text`: all of it when short. `0 < result <= text.len()` for a text that is not empty.
pub(crate) fn part_len(text: &str) -> usize {
    if text.len() <= PART_BYTES {
        return text.len();
    }
    let end = floor_boundary(text, PART_BYTES);
    let head = &text[..end];
    let space = head.match_indices(' ').map(|(at, _)| at).rfind(|&at| is_space_cut(text, at));
    let line = || head.match_indices('\n').map(|(at, _)| at + 1).rfind(|&at| is_line_cut(text, at));
    if let Some(at) = space.or_else(line) {
        return at;
    }
    let limit = floor_boundary(text, RUN_BYTES.min(text.len()));
    let beyond = text[end..limit].char_indices().map(|(at, character)| (end + at, character));
    for (at, character) in beyond {
        if character == '\n' && is_line_cut(text, at + 1) {
            return at + 1;
        }
        if character == ' ' && is_space_cut(text, at) {
            return at;
        }
    }
    limit
}

/// `at` follows a line break between two visible characters.
fn is_line_cut(text: &str, at: usize) -> bool {
    let before = text[..at - 1].chars().next_back();
    before.is_some_and(is_visible) && text[at..].chars().next().is_some_and(is_visible)
}

/// `at` precedes a single space between two visible characters.
fn is_space_cut(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back();
    before.is_some_and(is_visible) && text[at + 1..].chars().next().is_some_and(is_visible)
}

fn is_visible(character: char) -> bool {
    !character.is_whitespace() && !character.is_control()
}

/// The last character boundary at or before `at`, which is at most `text.len()`.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<&str> {
        let mut rest = text;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(part_len(rest));
            parts.push(part);
            rest = tail;
        }
        parts
    }

    #[test]
    fn parts_join_to_the_whole_and_end_at_good_places() {
        let lines = "words.\n".repeat(9000);
        let split = parts(&lines);
        assert_eq!(split.concat(), lines);
        assert!(split.len() > 3 && split[..split.len() - 1].iter().all(|part| part.ends_with(".\n")));
        let spaces = "word ".repeat(20_000);
        let split = parts(&spaces);
        assert_eq!(split.concat(), spaces);
        assert!(split[1..].iter().all(|part| part.starts_with(' ')));
    }

    #[test]
    fn a_run_without_places_is_cut_at_a_character() {
        let run = "é".repeat(3 * RUN_BYTES);
        let split = parts(&run);
        assert_eq!(split.concat(), run);
        assert!(split.iter().all(|part| part.len() <= RUN_BYTES));
        assert_eq!(part_len("short"), 5);
    }
}
