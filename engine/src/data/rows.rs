//! Rows: what the model is given, `seq` positions at a time.
//!
//! Invariant: `labels[t]` is the token after `tokens[t]` in the same document or [`IGNORED`]; `loss_weight[t]` is 0
//! exactly where the label is ignored or the document weighs nothing; positions count from 0 within each segment;
//! segments count from 0 within the row, and padding, which comes last, has [`PADDING_SEGMENT`].

/// The label of a position that is not trained.
pub const IGNORED: i32 = -100;

/// The segment of padding.
pub const PADDING_SEGMENT: i32 = -1;

/// Where a row is read to: slices of equal length, the sequence length.
#[derive(Debug)]
pub struct RowBuf<'a> {
    /// Input tokens.
    pub tokens: &'a mut [u32],
    /// Next tokens, or [`IGNORED`].
    pub labels: &'a mut [i32],
    /// Weight of each position in the loss.
    pub loss_weight: &'a mut [f32],
    /// Position of each token in its segment.
    pub positions: &'a mut [i32],
    /// Segment of each token: tokens see tokens of their own segment only.
    pub segments: &'a mut [i32],
}

/// A row that owns its memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Input tokens.
    pub tokens: Vec<u32>,
    /// Next tokens, or [`IGNORED`].
    pub labels: Vec<i32>,
    /// Weight of each position in the loss.
    pub loss_weight: Vec<f32>,
    /// Position of each token in its segment.
    pub positions: Vec<i32>,
    /// Segment of each token.
    pub segments: Vec<i32>,
}

impl Row {
    /// A row of `seq` positions of padding.
    pub fn padding(seq: usize, pad: u32) -> Row {
        Row {
            tokens: vec![pad; seq],
            labels: vec![IGNORED; seq],
            loss_weight: vec![0.0; seq],
            positions: vec![0; seq],
            segments: vec![PADDING_SEGMENT; seq],
        }
    }

    /// The row as a place to read to.
    pub fn buf(&mut self) -> RowBuf<'_> {
        RowBuf {
            tokens: &mut self.tokens,
            labels: &mut self.labels,
            loss_weight: &mut self.loss_weight,
            positions: &mut self.positions,
            segments: &mut self.segments,
        }
    }
}

/// At most one row's worth of a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// One token more than positions: each position's input is a token, its label the next.
    pub(crate) tokens: &'a [u32],
    /// Whether each token is trained as a label; as long as `tokens`, the first does not matter.
    pub(crate) is_trained: &'a [bool],
    pub(crate) weight: f32,
}

impl Piece<'_> {
    /// Positions the piece takes in a row.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Whether any position is trained.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight > 0.0 && self.is_trained.iter().skip(1).any(|&is_trained| is_trained)
    }
}

/// A row being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) row: Row,
    pub(crate) used: usize,
    segments: i32,
}

impl Filling {
    pub(crate) fn new(seq: usize, pad: u32) -> Filling {
        Filling { row: Row::padding(seq, pad), used: 0, segments: 0 }
    }

    pub(crate) fn free(&self) -> usize {
        self.row.tokens.len() - self.used
    }

    /// Appends a piece that fits, as a segment of its own.
    pub(crate) fn push(&mut self, piece: Piece<'_>) {
        for at in 0..piece.len() {
            let to = self.used + at;
            let is_trained = piece.is_trained[at + 1];
            self.row.tokens[to] = piece.tokens[at];
            self.row.labels[to] = if is_trained { piece.tokens[at + 1] as i32 } else { IGNORED };
            self.row.loss_weight[to] = if is_trained { piece.weight } else { 0.0 };
            self.row.positions[to] = at as i32;
            self.row.segments[to] = self.segments;
        }
        self.used += piece.len();
        self.segments += 1;
    }
}
