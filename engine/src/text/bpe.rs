//! Byte-pair merging over a compact vocabulary.
//!
//! Pieces lie end to end in one string, found by id through offsets and by text through a sorted index; merges are
//! grouped by their left piece. No hashing: look-ups cost the same whatever the file holds, and the memory is
//! known to the byte. It is not for splitting text into words; pre-tokenisation comes before.

use super::TextError;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Largest token id accepted; the largest published vocabularies have about 2^18 pieces.
pub(crate) const MAX_ID: u32 = 1 << 24;

/// "No piece" in tables of ids.
const NONE: u32 = u32::MAX;

/// Token texts by id and ids by text.
#[derive(Debug)]
pub(crate) struct Vocab {
    text: Box<str>,
    /// Piece `id` is `text[starts[id]..starts[id + 1]]`; an empty range is an unused id.
    starts: Box<[u32]>,
    /// Used ids, ordered by their text.
    sorted: Box<[u32]>,
}

impl Vocab {
    /// Builds from `(id, text)` pairs in any order. Unused ids may lie between; empty texts count as unused.
    /// Errors: an id given twice, an id of 2^24 or more, ids so sparse that the table would be mostly holes.
    pub(crate) fn new(text: &str, mut entries: Vec<(u32, u32, u32)>) -> Result<Vocab, TextError> {
        entries.sort_unstable();
        let len = entries.last().map_or(0, |e| e.0 as usize + 1);
        if len > MAX_ID as usize || len > entries.len() * 4 + (1 << 16) {
            let message = format!("the largest id is {}, with {} tokens in the list", len - 1, entries.len());
            return Err(TextError::Vocabulary(message));
        }
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(TextError::Vocabulary(format!("id {} is given twice", pair[0].0)));
        }
        let mut packed = String::with_capacity(text.len());
        let mut starts = Vec::with_capacity(len + 1);
        for &(id, start, end) in &entries {
            starts.resize(id as usize + 1, packed.len() as u32);
            packed.push_str(&text[start as usize..end as usize]);
        }
        starts.resize(len + 1, packed.len() as u32);
        let mut vocab = Vocab { text: packed.into(), starts: starts.into(), sorted: Box::default() };
        let mut sorted: Vec<u32> = (0..len as u32).filter(|&id| vocab.piece(id).is_some()).collect();
        sorted.sort_unstable_by_key(|&id| (vocab.piece(id), id));
        vocab.sorted = sorted.into();
        Ok(vocab)
    }

    /// Builds from texts whose ids are their positions.
    pub(crate) fn from_list(tokens: &[String]) -> Result<Vocab, TextError> {
        let total: usize = tokens.iter().map(String::len).sum();
        if total >= u32::MAX as usize || tokens.len() > MAX_ID as usize {
            return Err(TextError::Vocabulary(format!("{} tokens of {total} bytes are too many", tokens.len())));
        }
        let text = tokens.concat();
        let mut end = 0;
        let entries = tokens.iter().enumerate().map(|(id, token)| {
            let start = end;
            end += token.len() as u32;
            (id as u32, start, end)
        });
        Vocab::new(&text, entries.collect())
    }

    /// The text of `id`, `None` where the id is unused.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let (start, end) = (*self.starts.get(id)?, *self.starts.get(id + 1)?);
        (start < end).then(|| &self.text[start as usize..end as usize])
    }

    /// The id of a text, the lowest where several ids have the same text.
    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        let at = self.sorted.partition_point(|&id| self.piece(id) < Some(piece));
        let id = *self.sorted.get(at)?;
        (self.piece(id) == Some(piece)).then_some(id)
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    fn heap_bytes(&self) -> usize {
        self.text.len() + 4 * (self.starts.len() + self.sorted.len())
    }
}

/// One merge: `left right -> id`, applied in the order of `rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) rank: u32,
    pub(crate) id: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    right: u32,
    rank: u32,
    id: u32,
}

/// What a byte-pair tokenizer does besides merging.
#[derive(Debug, Default)]
pub(crate) struct BpeRules {
    /// Piece for a character that the vocabulary lacks; without one such a character vanishes.
    pub(crate) unk: Option<u32>,
    /// Neighbouring unknown characters become one unknown token.
    pub(crate) fuse_unk: bool,
    /// An unknown character becomes its UTF-8 bytes as `<0xNN>` pieces when all of them exist.
    pub(crate) byte_fallback: bool,
    /// A word that is a piece as a whole is taken without merging.
    pub(crate) ignore_merges: bool,
    /// Put before every character but a word's first when it is looked up.
    pub(crate) continuing_prefix: String,
    /// Put after a word's last character when it is looked up.
    pub(crate) word_suffix: String,
}

/// A byte-pair tokenizer of single words.
#[derive(Debug)]
pub(crate) struct Bpe {
    pub(crate) vocab: Vocab,
    pub(crate) rules: BpeRules,
    byte_ids: Box<[u32]>,
    starts: Box<[u32]>,
    merges: Box<[Entry]>,
}

/// Working memory of [`Bpe::encode_word`], kept from word to word.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
    lookup: String,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
}

impl Bpe {
    /// `merges` may come in any order; of two with the same pair the one of the higher rank counts.
    pub(crate) fn new(vocab: Vocab, mut merges: Vec<Merge>, rules: BpeRules) -> Bpe {
        merges.sort_unstable();
        let mut starts = vec![0u32; vocab.len() + 1];
        let mut entries: Vec<Entry> = Vec::with_capacity(merges.len());
        for (at, merge) in merges.iter().enumerate() {
            if merges.get(at + 1).is_some_and(|next| (next.left, next.right) == (merge.left, merge.right)) {
                continue;
            }
            entries.push(Entry { right: merge.right, rank: merge.rank, id: merge.id });
            starts[merge.left as usize + 1] = entries.len() as u32;
        }
        for at in 1..starts.len() {
            starts[at] = starts[at].max(starts[at - 1]);
        }
        let byte_ids = (0..=255u8).map(|byte| vocab.id(&format!("<0x{byte:02X}>")).unwrap_or(NONE)).collect();
        Bpe { vocab, rules, byte_ids, starts: starts.into(), merges: entries.into() }
    }

    /// Heap bytes held, exactly.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.vocab.heap_bytes() + 4 * (self.byte_ids.len() + self.starts.len()) + size_of_val(&*self.merges)
    }

    /// All merges, first merged first; of equal ranks the lower ids first.
    pub(crate) fn merges_by_rank(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut all: Vec<(u32, u32, u32)> = Vec::with_capacity(self.merges.len());
        for (left, range) in self.starts.windows(2).enumerate() {
            let group = &self.merges[range[0] as usize..range[1] as usize];
            all.extend(group.iter().map(|entry| (entry.rank, left as u32, entry.right)));
        }
        all.sort_unstable();
        all.into_iter().map(|(_, left, right)| (left, right))
    }

    fn merge_of(&self, left: u32, right: u32) -> Option<Entry> {
        let (from, to) = (*self.starts.get(left as usize)?, *self.starts.get(left as usize + 1)?);
        let group = &self.merges[from as usize..to as usize];
        let at = group.binary_search_by_key(&right, |entry| entry.right).ok()?;
        Some(group[at])
    }

    /// Appends the tokens of one word: characters first, then merges by rank, the leftmost of equal ranks first.
    pub(crate) fn encode_word(&self, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        if self.rules.ignore_merges
            && let Some(id) = self.vocab.id(word)
        {
            out.push(id);
            return;
        }
        scratch.symbols.clear();
        scratch.heap.clear();
        self.push_characters(word, scratch);
        let Scratch { symbols, heap, .. } = scratch;
        for at in 1..symbols.len() {
            self.push_pair(symbols, heap, at as u32 - 1, at as u32);
        }
        while let Some(Reverse((_, at, id))) = heap.pop() {
            self.apply(symbols, heap, at, id);
        }
        out.extend(symbols.iter().filter(|symbol| symbol.id != NONE).map(|symbol| symbol.id));
    }

    fn push_pair(&self, symbols: &[Symbol], heap: &mut BinaryHeap<Reverse<(u32, u32, u32)>>, at: u32, next: u32) {
        if let Some(entry) = self.merge_of(symbols[at as usize].id, symbols[next as usize].id) {
            heap.push(Reverse((entry.rank, at, entry.id)));
        }
    }

    /// Merges the symbol at `at` with its successor into `id`, unless an earlier merge has changed either.
    fn apply(&self, symbols: &mut [Symbol], heap: &mut BinaryHeap<Reverse<(u32, u32, u32)>>, at: u32, id: u32) {
        let left = symbols[at as usize];
        if left.id == NONE || left.next == NONE {
            return;
        }
        let right = symbols[left.next as usize];
        if self.merge_of(left.id, right.id).is_none_or(|entry| entry.id != id) {
            return;
        }
        symbols[left.next as usize].id = NONE;
        symbols[at as usize] = Symbol { id, prev: left.prev, next: right.next };
        if right.next != NONE {
            symbols[right.next as usize].prev = at;
            self.push_pair(symbols, heap, at, right.next);
        }
        if left.prev != NONE {
            self.push_pair(symbols, heap, left.prev, at);
        }
    }

    fn push_characters(&self, word: &str, scratch: &mut Scratch) {
        let mut pending_unk = false;
        for (at, character) in word.char_indices() {
            let end = at + character.len_utf8();
            let plain = &word[at..end];
            let is_affixed = (at > 0 && !self.rules.continuing_prefix.is_empty())
                || (end == word.len() && !self.rules.word_suffix.is_empty());
            let found = if is_affixed {
                scratch.lookup.clear();
                scratch.lookup.push_str(if at > 0 { &self.rules.continuing_prefix } else { "" });
                scratch.lookup.push_str(plain);
                scratch.lookup.push_str(if end == word.len() { &self.rules.word_suffix } else { "" });
                self.vocab.id(&scratch.lookup)
            } else {
                self.vocab.id(plain)
            };
            if let Some(id) = found {
                push_symbol(&mut scratch.symbols, id);
                pending_unk = false;
            } else if self.rules.byte_fallback && plain.bytes().all(|b| self.byte_ids[b as usize] != NONE) {
                for byte in plain.bytes() {
                    push_symbol(&mut scratch.symbols, self.byte_ids[byte as usize]);
                }
                pending_unk = false;
            } else if let Some(unk) = self.rules.unk
                && !(pending_unk && self.rules.fuse_unk)
            {
                push_symbol(&mut scratch.symbols, unk);
                pending_unk = true;
            }
        }
    }
}

fn push_symbol(symbols: &mut Vec<Symbol>, id: u32) {
    let at = symbols.len() as u32;
    if let Some(last) = symbols.last_mut() {
        last.next = at;
    }
    symbols.push(Symbol { id, prev: if at == 0 { NONE } else { at - 1 }, next: NONE });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe(tokens: &[&str], merges: &[(&str, &str)], rules: BpeRules) -> Bpe {
        let tokens: Vec<String> = tokens.iter().map(|t| t.to_string()).collect();
        let vocab = Vocab::from_list(&tokens).unwrap();
        let merges = merges.iter().enumerate().map(|(rank, (a, b))| Merge {
            left: vocab.id(a).unwrap(),
            right: vocab.id(b).unwrap(),
            rank: rank as u32,
            id: vocab.id(&format!("{a}{b}")).unwrap(),
        });
        let merges = merges.collect();
        Bpe::new(vocab, merges, rules)
    }

    fn ids(bpe: &Bpe, word: &str) -> Vec<u32> {
        let mut out = Vec::new();
        bpe.encode_word(word, &mut Scratch::default(), &mut out);
        out
    }

    #[test]
    fn merges_apply_by_rank_then_from_the_left() {
        let bpe = bpe(&["a", "b", "aa", "ab", "aaa"], &[("a", "a"), ("a", "b"), ("aa", "a")], BpeRules::default());
        assert_eq!(ids(&bpe, "aab"), [2, 1]);
        assert_eq!(ids(&bpe, "aaaa"), [2, 2]);
        assert_eq!(ids(&bpe, "aaa"), [4]);
        assert_eq!(ids(&bpe, "ab"), [3]);
    }

    #[test]
    fn unknown_characters_fall_back_to_bytes_then_to_unk() {
        let rules = || BpeRules { unk: Some(0), fuse_unk: true, byte_fallback: true, ..BpeRules::default() };
        let with_bytes = bpe(&["?", "a", "<0xC3>", "<0xA9>"], &[], rules());
        assert_eq!(ids(&with_bytes, "aé"), [1, 2, 3]);
        assert_eq!(ids(&with_bytes, "zzaz"), [0, 1, 0]);
        assert!(ids(&bpe(&["a"], &[], BpeRules::default()), "zz").is_empty());
    }

    #[test]
    fn sparse_or_repeated_ids_are_refused() {
        assert!(Vocab::new("ab", vec![(0, 0, 1), (0, 1, 2)]).is_err());
        assert!(Vocab::new("a", vec![(u32::MAX - 1, 0, 1)]).is_err());
        let vocab = Vocab::new("ab", vec![(7, 0, 1), (2, 1, 2)]).unwrap();
        assert_eq!((vocab.len(), vocab.piece(7), vocab.piece(3), vocab.id("b")), (8, Some("a"), None, Some(2)));
    }
}
