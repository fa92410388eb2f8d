//! Optimizer updates, alone or with the weight gradient they read.

use super::call::{GROUP, Part, Parts};
use super::elementwise::check_finite;
use super::linear::weight_grad;
use super::{Call, Kernel, Launch, Operand, Params, Row, Tables, Work, dense, grid_of};
use std::ops::Range;
use tinyforge_plan::DType;

/// Elements that are quantised together.
const BLOCK: usize = 256;

pub(super) const ROWS: &[Row] =
    &[Row { name: "update", work: update }, Row { name: "linear_grad_w_update", work: linear_grad_w_update }];

/// A panel of trained elements: how many, and its first one among all of them, in the gradient that is there, and among
/// those that the states are of; and the row that the weight that is there begins with.
struct Panel {
    len: usize,
    first: usize,
    grad_first: usize,
    state_first: usize,
    weight_row: usize,
}

fn update(c: &Call) -> Result<Work, String> {
    let grad = 1 + c.size("states");
    let cols = c.cols(grad);
    let (rows, first) = match c.size("panel_rows") {
        0 => (c.rows(grad), 0),
        rows => (rows, c.size("first_row") * cols),
    };
    // The gradient may be the panel's alone, and so may the weight.
    let grad_first = if c.rows(grad) == rows { 0 } else { first };
    let weight_row = if c.rows(0) == rows { c.size("first_row") } else { 0 };
    let part = Panel { len: rows * cols, first, grad_first, state_first: 0, weight_row };
    let check = check_finite(Operand::Arg(grad), grad_first, part.len);
    let launches = vec![check, panel(c, Operand::Arg(grad), grad + 1, &part)?];
    Ok(Work::of(launches, 0))
}

/// Updates a panel by its gradient; `after` is the operand behind it.
fn panel(c: &Call, grad: Operand, after: usize, part: &Panel) -> Result<Launch, String> {
    let (clip, sub, states) = (c.size("clip"), c.size("sub"), c.size("states"));
    if !matches!(c.dtype(0), DType::F32 | DType::BF16) {
        return Err(format!("a trained weight in {}", c.dtype(0).name()));
    }
    let (hyper, rng) = (Operand::Arg(after), Operand::Arg(after + 1));
    let clip_by = if clip == 1 { Operand::Arg(after + 2) } else { hyper };
    let index = if sub == 1 { Operand::Arg(after + 2 + clip) } else { hyper };
    let trained = if sub == 1 { c.elems(after + 2 + clip) } else { c.cols(0) };
    let state = |i: usize| if i < states { Operand::Arg(1 + i) } else { hyper };
    let mut operands = vec![Operand::Arg(0), grad, hyper, rng, clip_by, index];
    let entry = match c.int("rule") {
        0 => {
            operands.push(state(0));
            "sgd"
        }
        1 => {
            operands.extend([state(0), state(1)]);
            "adamw"
        }
        _ => {
            // Codes of both moments, then their scales.
            operands.extend([state(0), state(2), state(1), state(3), Operand::Table(Tables::Codes)]);
            "adamw8"
        }
    };
    let flags = [clip == 1, sub == 1, states > 0];
    let params = Params::new().sizes(&[part.len, part.first, part.grad_first, part.state_first]);
    let params = params.sizes(&[part.weight_row, c.cols(0), trained]);
    let params = flags.into_iter().fold(params, |p, flag| p.word(flag.into()));
    let rates = ["beta1", "beta2", "eps", "weight_decay"];
    let params = rates.into_iter().fold(params, |p, name| p.float(c.float(name))).word(c.int("stream") as u32);
    let kernel = Kernel { stem: "update", entry, storage: c.dtype(0) };
    Ok(Launch { kernel, operands, params, grid: grid_of(part.len.div_ceil(GROUP)), in_units: None })
}

/// A panel of rows at a time: its gradient in scratch, whether that is finite, the update. Fixed by the shape, and no
/// matter to the result. A multiple of [`BLOCK`] rows is a multiple of `BLOCK` elements whatever the width.
fn linear_grad_w_update(c: &Call) -> Result<Work, String> {
    let dy = 1 + c.size("states");
    let (n, k) = (c.cols(dy), c.cols(dy + 1));
    let rows = n.min(BLOCK);
    let bytes = 4 * (rows * k) as u64;
    let grad = Operand::Scratch(0, bytes);
    let mut launches = Vec::new();
    for first in (0..n).step_by(rows) {
        let end = n.min(first + rows);
        launches.push(weight_grad(c, dy, first..end, grad).launch());
        launches.extend(grad_to_update(c, dy, first..end, grad)?);
    }
    Ok(Work { by_library: by_library(c, dy)?, ..Work::of(launches, bytes) })
}

/// Updates some rows by their gradient, which lies in scratch.
fn grad_to_update(c: &Call, dy: usize, rows: Range<usize>, grad: Operand) -> Result<[Launch; 2], String> {
    let k = c.cols(dy + 1);
    let first = rows.start * k;
    let part = Panel { len: rows.len() * k, first, grad_first: 0, state_first: first, weight_row: 0 };
    Ok([check_finite(grad, 0, part.len), panel(c, grad, dy + 2, &part)?])
}

/// The same with the library's products, in panels of its own.
fn by_library(c: &Call, dy: usize) -> Result<Option<Parts>, String> {
    let (n, k) = (c.cols(dy), c.cols(dy + 1));
    let rows = dense::panel_rows(n, k);
    let bytes = 4 * (rows * k) as u64;
    let grad = Operand::Scratch(0, bytes);
    let Some(factors) = dense::factors(c, &weight_grad(c, dy, 0..n, grad), bytes) else { return Ok(None) };
    let mut list = factors.rounding.clone();
    for first in (0..n).step_by(rows.max(1)) {
        let panel = first..n.min(first + rows);
        let Some(products) = dense::weight_grad(c, dy, &factors, panel.clone(), (grad, 0, None)) else {
            return Ok(None);
        };
        list.extend(products);
        list.extend(grad_to_update(c, dy, panel, grad)?.map(Part::Launch));
    }
    Ok(Some(Parts { list, scratch_bytes: factors.scratch_bytes }))
}
