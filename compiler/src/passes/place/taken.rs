//! What is taken of the arena, and when: finds the first place that is free over a life.

use super::Piece;
use crate::passes::live::Life;

/// Nodes are cut into so many spans: most pieces live within one, and only what lives there can be in their way.
const SPANS: u32 = 32;

/// A placed piece.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    first: u64,
    end: u64,
    life: Life,
}

/// All pieces that have a place.
pub(super) struct Taken {
    /// Nodes of a span.
    span: u32,
    /// What lives in each span, by first byte.
    spans: Vec<Vec<Stretch>>,
    /// Everything by first byte, but for what came since it was last asked for.
    all: Vec<Stretch>,
    recent: Vec<Stretch>,
}

impl Taken {
    /// Nothing is taken at any of `nodes` nodes.
    pub(super) fn new(nodes: u32) -> Taken {
        let span = nodes.div_ceil(SPANS).max(1);
        Taken { span, spans: vec![Vec::new(); SPANS as usize], all: Vec::new(), recent: Vec::new() }
    }

    fn spans_of(&self, life: Life) -> (usize, usize) {
        ((life.start / self.span) as usize, (life.end / self.span) as usize)
    }

    /// Takes the place of a piece, whose room begins at `at`.
    pub(super) fn take(&mut self, piece: &Piece, at: u64) {
        let first = at + piece.at;
        let stretch = Stretch { first, end: first + piece.bytes, life: piece.life };
        let (from, to) = self.spans_of(piece.life);
        for span in &mut self.spans[from..=to] {
            let position = span.partition_point(|other| other.first <= first);
            span.insert(position, stretch);
        }
        self.recent.push(stretch);
    }

    /// The first place of a room, from `at` on, at which a piece of it overlaps nothing that lives when it does.
    pub(super) fn free(&mut self, piece: &Piece, mut at: u64) -> u64 {
        let (from, to) = self.spans_of(piece.life);
        let mut clears = |other: &Stretch| {
            let apart = other.life.end < piece.life.start || piece.life.end < other.life.start;
            if apart || other.end <= at + piece.at {
                return true;
            }
            let is_in_the_way = other.first < at + piece.at + piece.bytes;
            if is_in_the_way {
                at = other.end - piece.at;
            }
            is_in_the_way
        };
        match to - from {
            0 => _ = self.spans[from].iter().all(clears),
            1 => {
                // By first byte; what lives in both is met twice, which changes nothing.
                let [mut a, mut b] = [from, to].map(|span| self.spans[span].iter().peekable());
                while let Some(other) = match (a.peek(), b.peek()) {
                    (Some(x), Some(y)) if y.first < x.first => b.next(),
                    (None, _) => b.next(),
                    _ => a.next(),
                } {
                    if !clears(other) {
                        break;
                    }
                }
            }
            _ => _ = self.all().iter().all(clears),
        }
        at
    }

    /// Everything by first byte: two sorted runs, which the sort merges.
    fn all(&mut self) -> &Vec<Stretch> {
        if !self.recent.is_empty() {
            self.recent.sort_by_key(|stretch| stretch.first);
            self.all.append(&mut self.recent);
            self.all.sort_by_key(|stretch| stretch.first);
        }
        &self.all
    }
}
