//! The part of the far memory that is the host's: tensors rest there from load to end, in place of a file.

use std::sync::{PoisonError, RwLock};

/// Memory of the host for tensors of the far memory.
pub(crate) trait HostMemory: Send + Sync {
    /// Brings the bytes from `at` on.
    fn read(&self, at: u64, out: &mut [u8]);
    /// Sets the bytes from `at` on.
    fn write(&self, at: u64, data: &[u8]);
}

/// Bytes that are locked together: a move holds up no other but at its ends.
const PIECE_BYTES: usize = 16 << 20;

/// Plain memory, for devices that copy from wherever bytes are.
pub(super) struct Ram(Vec<RwLock<Vec<u8>>>);

impl Ram {
    /// So many bytes, all of them there.
    ///
    /// # Errors
    /// The system has less.
    pub(super) fn new(bytes: u64) -> Result<Ram, std::collections::TryReserveError> {
        let piece = |at: u64| {
            let len = (bytes - at).min(PIECE_BYTES as u64) as usize;
            let mut piece = Vec::new();
            piece.try_reserve_exact(len)?;
            piece.resize(len, 0);
            Ok(RwLock::new(piece))
        };
        (0..bytes).step_by(PIECE_BYTES).map(piece).collect::<Result<_, _>>().map(Ram)
    }
}

/// Calls `with` for every piece of a range: the piece, where in it the range is, and where in the range that is.
fn pieces(at: u64, bytes: usize, mut with: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < bytes {
        let (piece, from) = ((at as usize + done) / PIECE_BYTES, (at as usize + done) % PIECE_BYTES);
        let len = (PIECE_BYTES - from).min(bytes - done);
        with(piece, from..from + len, done..done + len);
        done += len;
    }
}

impl HostMemory for Ram {
    fn read(&self, at: u64, out: &mut [u8]) {
        // Bytes are whole after every statement.
        let piece = |i: usize| self.0[i].read().unwrap_or_else(PoisonError::into_inner);
        pieces(at, out.len(), |i, inner, outer| out[outer].copy_from_slice(&piece(i)[inner]));
    }

    fn write(&self, at: u64, data: &[u8]) {
        let piece = |i: usize| self.0[i].write().unwrap_or_else(PoisonError::into_inner);
        pieces(at, data.len(), |i, inner, outer| piece(i)[inner].copy_from_slice(&data[outer]));
    }
}

#[cfg(test)]
mod tests {
    use super::{HostMemory, PIECE_BYTES, Ram};

    #[test]
    fn bytes_are_found_across_pieces() {
        let memory = Ram::new(2 * PIECE_BYTES as u64 + 5).expect("there is room");
        let data: Vec<u8> = (0..PIECE_BYTES + 3).map(|i| (i % 251) as u8).collect();
        let at = PIECE_BYTES as u64 - 1;
        memory.write(at, &data);
        let mut back = vec![7; data.len() + 3];
        memory.read(at - 1, &mut back);
        assert_eq!((back[0], &back[1..=data.len()], back[data.len() + 1]), (0, &data[..], 0));
    }
}
