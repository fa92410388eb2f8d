//! The order of the sum over `k`.
//!
//! Invariant: a chunk's borders follow from `k` and the segment length alone. Everything that decides about
//! speed (tiles, blocks, rounds, threads) takes chunks as they are and never splits one.

/// The longest chunk, in steps of `k`.
pub(super) const CHUNK_MAX: usize = 512;

/// One run of `k` that is summed from zero in a register and then added to `C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Length of all chunks but the last of a segment.
///
/// Borders fall on whole quantised blocks where the segment does, so that no block is decoded twice.
fn chunk_len(segment: usize) -> usize {
    let unit = match segment {
        s if s.is_multiple_of(256) => 256,
        s if s.is_multiple_of(32) => 32,
        _ => 2,
    };
    segment.div_ceil(segment.div_ceil(CHUNK_MAX)).next_multiple_of(unit)
}

/// The chunk that begins at `start`, which must itself be a border.
pub(super) fn chunk_at(k: usize, segment: usize, start: usize) -> Chunk {
    let segment_start = start / segment * segment;
    let segment_len = segment.min(k - segment_start);
    let len = chunk_len(segment_len).min(segment_start + segment_len - start);
    Chunk { start, len }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borders(k: usize, segment: usize) -> Vec<usize> {
        let mut at = 0;
        let mut out = vec![];
        while at < k {
            let chunk = chunk_at(k, segment, at);
            assert!(chunk.len > 0 && chunk.len <= CHUNK_MAX);
            out.push(chunk.len);
            at += chunk.len;
        }
        assert_eq!(at, k);
        out
    }

    #[test]
    fn chunks_cover_k_evenly() {
        assert_eq!(borders(576, 576), [288, 288]);
        assert_eq!(borders(1536, 1536), [512, 512, 512]);
        assert_eq!(borders(513, 513), [258, 255]);
        assert_eq!(borders(1, 1), [1]);
        for k in 1..2000 {
            borders(k, k);
        }
    }

    #[test]
    fn segments_restart() {
        assert_eq!(borders(20, 7), [7, 7, 6]);
        let one = borders(600, 600);
        assert_eq!(borders(1800, 600), [one.clone(), one.clone(), one].concat());
    }
}
