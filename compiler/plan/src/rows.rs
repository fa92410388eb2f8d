//! Which kernels may write a result over an operand that they still read: row by row, each byte after its last read.
//!
//! Part of the checker: it replays the kernel's rows, and shares no code with the planner or the kernels.

use crate::plan::{Step, Tensor};
use alloc::vec::Vec;

/// Rows that are replayed; a step of more is not accepted.
const ROWS_MAX: u64 = 1 << 16;

/// Whether the step's kernel reads every byte of its first operand before it writes the first result over it.
pub(crate) fn lies_over(step: &Step) -> bool {
    step.kernel == "i8_bottleneck" && bottleneck(step).unwrap_or(false)
}

/// `(images, rows, bytes of a row)` of an int8 image.
fn image(t: &Tensor) -> Option<(u64, u64, u64)> {
    match t.shape[..] {
        [n, h, w, c] => Some((u64::from(n), u64::from(h), u64::from(w) * u64::from(c))),
        _ => None,
    }
}

/// A bottleneck makes its output row by row; before each it reads the input under the rows of its expansion that the
/// depthwise window sees and that were not expanded before.
fn bottleneck(step: &Step) -> Option<bool> {
    let (x, y) = (step.args.first()?, step.outs.first()?);
    let ((images, x_rows, x_row), (_, y_rows, y_row)) = (image(x)?, image(y)?);
    let size = |name: &str| u64::try_from(step.int(name)).ok();
    let taps = u64::from(*step.args.get(4)?.shape.first()?);
    let (stride, pad, expanded_rows) = (size("b_stride_h")?, size("b_pad_top")?, size("a_out_h")?);
    let (first_stride, first_pad) = (size("a_stride_h")?, size("a_pad_top")?);
    if y.offset > x.offset || images.checked_mul(y_rows)? > ROWS_MAX || size("c_out_h")? != y_rows {
        return Some(false);
    }
    // For every row of the output: where the bytes begin that are read before it is written, and where it ends.
    let mut rows: Vec<(Option<u64>, u64)> = Vec::new();
    for n in 0..images {
        let mut expanded = 0;
        for out in 0..y_rows {
            let top = out.checked_mul(stride)?;
            let end = top.checked_add(taps)?.saturating_sub(pad).min(expanded_rows);
            let start = top.saturating_sub(pad).max(expanded);
            let read = (start < end).then(|| start.saturating_mul(first_stride).saturating_sub(first_pad).min(x_rows));
            expanded = expanded.max(end);
            let from = read.map(|row| x.offset.saturating_add((n * x_rows + row).saturating_mul(x_row)));
            rows.push((from, y.offset.saturating_add((n * y_rows + out + 1).saturating_mul(y_row))));
        }
    }
    let mut still_read = u64::MAX;
    for (from, end) in rows.into_iter().rev() {
        if end > still_read {
            return Some(false);
        }
        still_read = still_read.min(from.unwrap_or(u64::MAX));
    }
    Some(true)
}
