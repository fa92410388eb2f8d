//! Row lookups and their gradient.

use super::call::GROUP;
use super::elementwise::{clear, copy};
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

pub(super) const ROWS: &[Row] =
    &[Row { name: "embedding", work: embedding }, Row { name: "embedding_grad", work: embedding_grad }];

fn embedding(c: &Call) -> Result<Work, String> {
    let (tokens, cols) = (c.elems(1), c.cols(0));
    Ok(Work::one(Launch {
        kernel: Kernel { stem: "embedding", entry: "embedding", storage: c.dtype(0) },
        operands: vec![Operand::Arg(1), Operand::Arg(0), Operand::Out(0)],
        params: Params::new().sizes(&[tokens, cols, c.rows(0), 0, 0]),
        grid: grid_of((tokens * cols).div_ceil(GROUP)),
    }))
}

/// From zero, packed rows are added one by one, as where there is a running sum.
fn embedding_grad(c: &Call) -> Result<Work, String> {
    let (tokens, cols, vocab, given) = (c.elems(1), c.cols(0), c.size("vocab"), c.args() > 2);
    let rows = if c.size("panel_rows") == 0 { vocab } else { c.size("panel_rows") };
    let mut launches = Vec::new();
    if !given {
        launches.push(clear(Operand::Out(0), rows * cols));
    } else if !c.is_in_place(2, 0) {
        launches.push(copy(Operand::Arg(2), Operand::Out(0), rows * cols));
    }
    let is_running = !given || c.int("running") != 0;
    let params = Params::new().sizes(&[tokens, cols, vocab, tokens / c.size("rows").max(1)]).word(is_running.into());
    let params = params.sizes(&[c.size("first_row"), rows]);
    launches.push(Launch {
        kernel: Kernel::plain("embedding", "embedding_grad"),
        operands: vec![Operand::Arg(1), Operand::Arg(0), Operand::Out(0)],
        params,
        grid: grid_of(tokens),
    });
    Ok(Work::of(launches, 0))
}
