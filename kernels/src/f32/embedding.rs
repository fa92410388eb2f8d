//! Embedding: rows of a table by token, and the table's gradient.
//!
//! ```text
//! for t { y[t, :] = w[tokens[t], :] }
//! for v { for r { dw[v, :] += sum over t of packed row r with tokens[t] == v of dx[t, :] } }
//! ```
//! The gradient sorts the places of the tokens, so that a vocabulary row is visited once and rows that do not occur
//! are not touched. Bound: 8 bytes an element over memory bandwidth.

use super::dense::{Mat, MatData};
use super::elementwise::Element;
use super::index::{OutOfRange, check};
use super::parts::{Chunks, Tile, Tiles, run_parts};
use super::quant::dequantise;
use super::scratch::{Scratch, piece_bytes};
use crate::par::Par;

/// Tokens of one task.
const TASK_TOKENS: usize = 16;
/// Columns of one task of the gradient.
const TASK_COLS: usize = 64;

/// `y[t, :] = w[tokens[t], :]`, decoded to f32, for `w[vocab, cols]` and `y[T, cols]`. Scratch: 0 bytes.
///
/// Errors: a token is negative or not below `vocab`; `y` is then as it was.
pub fn embedding(par: &Par, w: &Mat, tokens: &[i32], y: &mut [f32]) -> Result<(), OutOfRange> {
    let cols = w.cols;
    assert_eq!(y.len(), tokens.len() * cols, "a row for every token");
    assert!(cols > 0 && w.stride >= cols, "a row's length");
    check("token", tokens, w.rows, |_| false)?;
    run_parts(par, tokens.len().div_ceil(TASK_TOKENS), Chunks::new(y, TASK_TOKENS * cols), |index, y: &mut [f32]| {
        for (y, &token) in y.chunks_exact_mut(cols).zip(&tokens[index * TASK_TOKENS..]) {
            read_row(w, token as usize, y);
        }
    });
    Ok(())
}

/// The rows of `y` whose token is a row of this part of a table of `vocab`: `y[t, :] = w[tokens[t] - first_row, :]`.
/// The others stay what they are. Scratch: 0 bytes.
///
/// Errors: a token is negative or not below `vocab`; `y` is then as it was.
pub fn embedding_part(
    par: &Par,
    w: &Mat,
    tokens: &[i32],
    (first_row, vocab): (usize, usize),
    y: &mut [f32],
) -> Result<(), OutOfRange> {
    let cols = w.cols;
    assert_eq!(y.len(), tokens.len() * cols, "a row for every token");
    assert!(cols > 0 && w.stride >= cols && first_row + w.rows <= vocab, "rows of the table");
    check("token", tokens, vocab, |_| false)?;
    run_parts(par, tokens.len().div_ceil(TASK_TOKENS), Chunks::new(y, TASK_TOKENS * cols), |index, y: &mut [f32]| {
        for (y, &token) in y.chunks_exact_mut(cols).zip(&tokens[index * TASK_TOKENS..]) {
            if let Some(row) = (token as usize).checked_sub(first_row).filter(|row| *row < w.rows) {
                read_row(w, row, y);
            }
        }
    });
    Ok(())
}

/// Row `row` of `w` in f32.
fn read_row(w: &Mat, row: usize, y: &mut [f32]) {
    fn plain<T: Element>(x: &[T], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32());
    }
    let at = row * w.stride..row * w.stride + w.cols;
    match w.data {
        MatData::F32(data) => y.copy_from_slice(&data[at]),
        MatData::BF16(data) => plain(&data[at], y),
        MatData::F16(data) => plain(&data[at], y),
        MatData::Blocks(dtype, bytes) => {
            let row_bytes = w.cols / dtype.block_elems() as usize * dtype.block_bytes() as usize;
            dequantise(dtype, &bytes[row * row_bytes..(row + 1) * row_bytes], y);
        }
    }
}

/// Bytes of scratch of [`embedding_grad`] over `tokens` tokens.
pub fn embedding_grad_scratch_bytes(tokens: usize, _threads: usize) -> usize {
    piece_bytes::<u64>(tokens)
}

/// What the sums of [`embedding_grad`] are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// Nothing: the table starts from zero.
    Zero,
    /// The table, packed row by packed row: several micro-batches make one sum.
    Running,
    /// The table, once all packed rows are summed: the same bits as a sum from zero that is added afterwards.
    Whole,
}

/// `dw[v, :] (+)= sum over the tokens t == v of dx[t, :]`, packed row by packed row of `seq` tokens: the tokens of a
/// packed row are summed from zero in order, then added.
///
/// `dx[T, cols]`; `dw` is rows `first_row..` of `dw[vocab, cols]`, as many as it has room for: the same bits as in the
/// whole. But from zero, rows whose token does not occur are not touched.
/// Errors: a token is negative or not below `vocab`; `dw` is then as it was.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn embedding_grad(
    par: &Par,
    dx: &[f32],
    tokens: &[i32],
    seq: usize,
    cols: usize,
    (vocab, first_row): (usize, usize),
    onto: Onto,
    dw: &mut [f32],
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    assert!(cols > 0 && seq > 0 && dw.len().is_multiple_of(cols), "the table's shape");
    assert_eq!(dx.len(), tokens.len() * cols, "a row for every token");
    let rows = first_row..first_row + dw.len() / cols;
    assert!(rows.end <= vocab, "rows {rows:?} of {vocab}");
    check("token", tokens, vocab, |_| false)?;
    let places = Scratch::new(scratch).take::<u64>(tokens.len());
    let inside = tokens.iter().enumerate().filter(|(_, token)| rows.contains(&(**token as usize)));
    let mut count = 0;
    for (place, (at, &token)) in places.iter_mut().zip(inside) {
        *place = ((token as usize - first_row) as u64) << 32 | at as u64;
        count += 1;
    }
    let places = &mut places[..count];
    places.sort_unstable();
    if onto == Onto::Zero {
        run_parts(par, dw.len().div_ceil(ZERO_ELEMS), Chunks::new(&mut *dw, ZERO_ELEMS), |_, dw: &mut [f32]| {
            dw.fill(0.0);
        });
    }
    if dw.is_empty() || places.is_empty() {
        return Ok(());
    }
    let tiles = Tiles::columns(dw, cols, TASK_COLS);
    let places = &*places;
    run_parts(par, tiles.count(), tiles, |index, mut dw| {
        let mut left = places;
        while let Some(&first) = left.first() {
            // The tokens of one vocabulary row: in one packed row, or in all of them.
            let key = |place: u64| match onto {
                Onto::Whole => (place >> 32, 0),
                Onto::Zero | Onto::Running => (place >> 32, (place as u32) as usize / seq),
            };
            let count = left.iter().take_while(|&&place| key(place) == key(first)).count();
            let (group, rest) = left.split_at(count);
            add_rows(dx, cols, seq, index * TASK_COLS, group, &mut dw);
            left = rest;
        }
    });
    Ok(())
}

/// Elements of one task that zeroes.
const ZERO_ELEMS: usize = 64 * 1024;

/// Adds the sum of the rows of `dx` at `places`, packed row by packed row, to the vocabulary row they name, columns
/// from `start`.
fn add_rows(dx: &[f32], cols: usize, seq: usize, start: usize, places: &[u64], dw: &mut Tile<f32>) {
    let width = dw.cols();
    let mut total = [0.0; TASK_COLS];
    for packed_row in places.chunk_by(|&a, &b| a as u32 as usize / seq == b as u32 as usize / seq) {
        let mut sum = [0.0; TASK_COLS];
        for &place in packed_row {
            let at = place as u32 as usize * cols + start;
            sum.iter_mut().zip(&dx[at..at + width]).for_each(|(sum, x)| *sum += x);
        }
        total.iter_mut().zip(&sum).for_each(|(total, sum)| *total += sum);
    }
    let row = (places[0] >> 32) as usize;
    dw.row(row).iter_mut().zip(&total).for_each(|(dw, total)| *dw += total);
}
