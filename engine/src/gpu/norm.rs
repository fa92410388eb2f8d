//! Normalisations and their gradients.

use super::call::GROUP;
use super::conv::image;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "norm";

pub(super) const ROWS: &[Row] = &[
    Row { name: "rms_norm", work: |c| Ok(vectors(c, "rms_norm", 1)) },
    Row { name: "add_rms_norm", work: |c| Ok(vectors(c, "add_rms_norm", 2)) },
    Row { name: "layer_norm", work: |c| Ok(vectors(c, "layer_norm", 1)) },
    Row { name: "rms_norm_grad_x", work: |c| Ok(grad_x(c, "rms_norm_grad_x")) },
    Row { name: "layer_norm_grad_x", work: |c| Ok(grad_x(c, "layer_norm_grad_x")) },
    Row { name: "rms_norm_grad_w", work: |c| Ok(grad_w(c, "rms_stats")) },
    Row { name: "layer_norm_grad_w", work: |c| Ok(grad_w(c, "layer_stats")) },
    Row { name: "batch_norm", work: |c| Ok(channels(c, "batch_norm", 2)) },
    Row { name: "batch_norm_grad", work: |c| Ok(channels(c, "batch_norm_grad", 0)) },
    Row { name: "batch_norm_eval", work: |c| Ok(channels(c, "batch_norm_eval", 0)) },
];

fn params(c: &Call, vectors: usize, cols: usize, seq: usize, accumulate: bool) -> Params {
    Params::new().sizes(&[vectors, cols, seq]).float(c.float("eps")).word(accumulate.into())
}

/// A workgroup a vector, with all operands and then all results; the weight is operand `w`.
fn vectors(c: &Call, entry: &'static str, w: usize) -> Work {
    let (cols, count) = (c.elems(w), c.elems(0) / c.elems(w));
    let operands = (0..c.args()).map(Operand::Arg).chain((0..c.outs()).map(Operand::Out)).collect();
    let params = params(c, count, cols, 1, false);
    Work::one(Launch { kernel: Kernel::plain(STEM, entry), operands, params, grid: grid_of(count), in_units: None })
}

fn grad_x(c: &Call, entry: &'static str) -> Work {
    let (cols, count, accumulate) = (c.elems(1), c.elems(0) / c.elems(1), c.args() > 3);
    let acc = if accumulate { Operand::Arg(3) } else { Operand::Out(0) };
    Work::one(Launch {
        kernel: Kernel::plain(STEM, entry),
        operands: vec![Operand::Arg(0), Operand::Arg(1), Operand::Arg(2), acc, Operand::Out(0)],
        params: params(c, count, cols, 1, accumulate),
        grid: grid_of(count),
        in_units: None,
    })
}

/// Mean and inverse of every vector in scratch, then sums over vectors.
fn grad_w(c: &Call, stats: &'static str) -> Work {
    let groups = c.size("groups").max(1);
    let (cols, accumulate) = (c.cols(0) / groups, c.args() > 2);
    let count = c.elems(0) / cols;
    let params = params(c, count, cols, count / c.size("rows").max(1), accumulate);
    let bytes = 8 * count as u64;
    let scratch = Operand::Scratch(0, bytes);
    let acc = if accumulate { Operand::Arg(2) } else { Operand::Out(0) };
    let first = Launch {
        kernel: Kernel::plain(STEM, stats),
        operands: vec![Operand::Arg(0), scratch],
        params,
        grid: grid_of(count),
        in_units: None,
    };
    let last = Launch {
        kernel: Kernel::plain(STEM, "grad_w"),
        operands: vec![Operand::Arg(0), Operand::Arg(1), scratch, acc, Operand::Out(0)],
        params,
        grid: [cols.div_ceil(16) as u32, 1, 1],
        in_units: None,
    };
    Work::of(vec![first, last], bytes)
}

/// Batch norms, with all operands and then all results; the images are operand `x`. A workgroup has a channel, but in
/// evaluation an invocation has an element.
fn channels(c: &Call, entry: &'static str, x: usize) -> Work {
    let [images, channels, height, width] = image(c.dims(x));
    let params = Params::new().sizes(&[images, channels, height * width]);
    let params = params.float(c.float("eps")).float(c.float("momentum"));
    let operands = (0..c.args()).map(Operand::Arg).chain((0..c.outs()).map(Operand::Out)).collect();
    let grid = match entry {
        "batch_norm_eval" => grid_of(c.out_elems(0).div_ceil(GROUP)),
        _ => [channels as u32, 1, 1],
    };
    Work::one(Launch { kernel: Kernel::plain("batch_norm", entry), operands, params, grid, in_units: None })
}
