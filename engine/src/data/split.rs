//! Choices that need no memory: which documents are held out, and in which order rows are visited.
//!
//! Everything is a function of seed and index, so that any step of any epoch can be computed for itself.

use crate::text::fingerprint::mix;

/// Separates the streams of random numbers drawn from one seed.
const STREAM_VALID: u64 = 1;
const STREAM_ORDER: u64 = 2;

/// Whether document `index` is held out for validation.
pub(crate) fn is_held_out(seed: u64, fraction: f64, index: u64) -> bool {
    let draw = mix(mix(mix(seed) ^ STREAM_VALID) ^ index);
    ((draw >> 11) as f64) * (-53f64).exp2() < fraction
}

/// A permutation of `0..n` drawn by seed and epoch: a four-round Feistel network over the next even number of bits,
/// applied again while the result is not below `n`. No memory; on average fewer than four applications an index.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The permutation of `0..n` for one epoch; `n >= 1`.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Permutation {
        assert!(n >= 1, "a permutation of nothing");
        let bits = u64::BITS - (n - 1).leading_zeros();
        let base = mix(mix(mix(seed) ^ STREAM_ORDER) ^ epoch);
        Permutation { n, half_bits: bits.div_ceil(2).max(1), keys: [1, 2, 3, 4].map(|round| mix(base ^ round)) }
    }

    /// Where index `i` of `0..n` goes.
    pub fn index(&self, i: u64) -> u64 {
        assert!(i < self.n, "index {i} of {}", self.n);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = i;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(key ^ right) & mask));
            }
            value = (left << self.half_bits) | right;
            if value < self.n {
                return value;
            }
        }
    }
}

/// Which row is visited when: epoch after epoch, each in its own order.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    rows: u64,
    seed: u64,
    is_shuffled: bool,
    epoch: u64,
    order: Permutation,
}

impl Schedule {
    /// A schedule over `rows >= 1` rows; without `shuffle` every epoch goes from first to last.
    pub fn new(rows: u64, seed: u64, shuffle: bool) -> Schedule {
        Schedule { rows, seed, is_shuffled: shuffle, epoch: 0, order: Permutation::new(rows, seed, 0) }
    }

    /// The row of visit `visit`, counted from 0 over all epochs.
    pub fn row(&mut self, visit: u64) -> u64 {
        let (epoch, at) = (visit / self.rows, visit % self.rows);
        if !self.is_shuffled {
            return at;
        }
        if epoch != self.epoch {
            self.epoch = epoch;
            self.order = Permutation::new(self.rows, self.seed, epoch);
        }
        self.order.index(at)
    }

    /// Rows in one epoch.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_once() {
        for n in [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097] {
            for epoch in 0..3 {
                let order = Permutation::new(n, 7, epoch);
                let mut seen: Vec<u64> = (0..n).map(|i| order.index(i)).collect();
                let is_moved = seen.iter().enumerate().any(|(i, &to)| i as u64 != to);
                assert!(is_moved || n < 64, "n = {n}");
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..n), "n = {n}");
            }
        }
        let huge = Permutation::new(u64::MAX >> 2, 1, 0);
        assert_ne!(huge.index(0), huge.index(1));
    }

    #[test]
    fn visits_do_not_depend_on_the_way_there() {
        let mut straight = Schedule::new(10, 3, true);
        let all: Vec<u64> = (0..40).map(|visit| straight.row(visit)).collect();
        let mut other = Schedule::new(10, 3, true);
        assert!((0..40).rev().all(|visit| other.row(visit) == all[visit as usize]));
        assert_ne!(all[..10], all[10..20]);
        let mut plain = Schedule::new(3, 3, false);
        assert_eq!((0..5).map(|visit| plain.row(visit)).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_held_out_share_is_what_was_asked() {
        let held = (0..100_000).filter(|&index| is_held_out(5, 0.1, index)).count();
        assert!((9_500..10_500).contains(&held), "{held}");
        assert!(!(0..1000).any(|index| is_held_out(5, 0.0, index)));
        assert!((0..1000).all(|index| is_held_out(5, 1.0, index)));
        assert_ne!(
            (0..64).map(|index| is_held_out(1, 0.5, index)).collect::<Vec<_>>(),
            (0..64).map(|index| is_held_out(2, 0.5, index)).collect::<Vec<_>>()
        );
    }
}
