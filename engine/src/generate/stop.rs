//! Texts that end a generation.

/// Passes text on until a stop text appears, of which nothing is passed on.
///
/// Invariant: what is held back is a beginning of a stop text, and may still become one.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Looks for these texts; empty ones are left out.
    pub fn new(stops: impl IntoIterator<Item = String>) -> StopTexts {
        StopTexts { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Forgets what was held back.
    pub fn reset(&mut self) {
        self.held.clear();
    }

    /// Appends to `out` what is certain not to belong to a stop text; returns whether one appeared. After that, the
    /// text before it is all that was passed on.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.find(|&at| begins(at)).unwrap_or(self.held.len());
        out.extend(self.held.drain(..keep));
        false
    }

    /// Appends to `out` what was held back, since no more text follows.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text passed on for pieces, and whether a stop text ended it.
    fn passed(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut texts = StopTexts::new(stops.iter().map(|stop| stop.to_string()));
        let mut out = String::new();
        for piece in pieces {
            if texts.push(piece, &mut out) {
                return (out, true);
            }
        }
        texts.finish(&mut out);
        (out, false)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces() {
        assert_eq!(passed(&["END"], &["one E", "N", "D two"]), ("one ".to_string(), true));
        assert_eq!(passed(&["END"], &["one E", "N", "E two"]), ("one ENE two".to_string(), false));
        assert_eq!(passed(&["aab"], &["a", "a", "a", "b"]), ("a".to_string(), true));
        assert_eq!(passed(&["é!"], &["caf", "é", "s"]), ("cafés".to_string(), false));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(passed(&["two", "one"], &["zero one two"]), ("zero ".to_string(), true));
        assert_eq!(passed(&["", "x"], &["abc"]), ("abc".to_string(), false));
        assert_eq!(passed(&["\n\n"], &["a\n", "b\n"]), ("a\nb\n".to_string(), false));
    }

    #[test]
    fn only_what_may_become_a_stop_text_is_held_back() {
        let mut texts = StopTexts::new(["END".to_string()]);
        let mut out = String::new();
        assert!(!texts.push("one EN", &mut out));
        assert_eq!(out, "one ");
    }
}
