//! From pieces to rows: one piece a row, or packed by first fit.
//!
//! A bounded number of rows is open at a time, so memory does not grow with the data; when one more is needed the
//! oldest is closed as it is. The order of the rows is the order in which they are closed.

use super::DataError;
use super::rows::{Filling, Piece, Row};

/// Rows open at a time when packing.
pub(crate) const OPEN_ROWS: usize = 64;

/// Receives finished rows.
pub(crate) trait RowSink {
    fn push(&mut self, row: &Row) -> Result<(), DataError>;
}

/// Puts pieces into rows of `seq` positions.
pub(crate) struct Packer {
    seq: usize,
    pad: u32,
    open_max: usize,
    open: Vec<Filling>,
}

impl Packer {
    /// With `pack` pieces share rows, otherwise each has its own.
    pub(crate) fn new(seq: usize, pad: u32, pack: bool) -> Packer {
        Packer { seq, pad, open_max: if pack { OPEN_ROWS } else { 0 }, open: Vec::new() }
    }

    /// Places a piece of `1..=seq` positions in the first open row with room.
    pub(crate) fn push(&mut self, piece: Piece<'_>, sink: &mut dyn RowSink) -> Result<(), DataError> {
        assert!((1..=self.seq).contains(&piece.len()), "a piece of {} positions for rows of {}", piece.len(), self.seq);
        let fit = self.open.iter().position(|filling| filling.free() >= piece.len());
        let at = match fit {
            Some(at) => at,
            None => {
                if self.open.len() >= self.open_max.max(1) {
                    self.close(0, sink)?;
                }
                self.open.push(Filling::new(self.seq, self.pad));
                self.open.len() - 1
            }
        };
        self.open[at].push(piece);
        if self.open[at].free() == 0 || self.open_max == 0 {
            self.close(at, sink)?;
        }
        Ok(())
    }

    fn close(&mut self, at: usize, sink: &mut dyn RowSink) -> Result<(), DataError> {
        sink.push(&self.open.remove(at).row)
    }

    /// Closes what is open, oldest first.
    pub(crate) fn finish(&mut self, sink: &mut dyn RowSink) -> Result<(), DataError> {
        while !self.open.is_empty() {
            self.close(0, sink)?;
        }
        Ok(())
    }
}
