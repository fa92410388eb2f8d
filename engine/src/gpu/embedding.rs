//! Row lookups and their gradient.

use super::call::GROUP;
use super::elementwise::start_from;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

pub(super) const ROWS: &[Row] = &[
    Row { name: "embedding", work: |c| Ok(Work::one(lookup(c, 0, c.rows(0)))) },
    Row { name: "embedding_part", work: embedding_part },
    Row { name: "embedding_grad", work: embedding_grad },
];

/// The tokens' rows, as far as they are in operand 0: rows of a table of `vocab` from `first` on.
fn lookup(c: &Call, first: usize, vocab: usize) -> Launch {
    let (tokens, cols) = (c.elems(1), c.cols(0));
    Launch {
        kernel: Kernel { stem: "embedding", entry: "embedding", storage: c.dtype(0) },
        operands: vec![Operand::Arg(1), Operand::Arg(0), Operand::Out(0)],
        params: Params::new().sizes(&[tokens, cols, vocab, 0, 0, first, c.rows(0)]),
        grid: grid_of((tokens * cols).div_ceil(GROUP)),
        in_units: None,
    }
}

fn embedding_part(c: &Call) -> Result<Work, String> {
    let lookup = lookup(c, c.size("first_row"), c.size("vocab"));
    Ok(Work::of(start_from(c, 2).into_iter().chain([lookup]).collect(), 0))
}

/// From zero, packed rows are added one by one, as where there is a running sum.
fn embedding_grad(c: &Call) -> Result<Work, String> {
    let (tokens, cols, vocab, given) = (c.elems(1), c.cols(0), c.size("vocab"), c.args() > 2);
    let rows = if c.size("panel_rows") == 0 { vocab } else { c.size("panel_rows") };
    let mut launches = Vec::from_iter(start_from(c, 2));
    let is_running = !given || c.int("running") != 0;
    let params = Params::new().sizes(&[tokens, cols, vocab, tokens / c.size("rows").max(1)]).word(is_running.into());
    let params = params.sizes(&[c.size("first_row"), rows]);
    launches.push(Launch {
        kernel: Kernel::plain("embedding", "embedding_grad"),
        operands: vec![Operand::Arg(1), Operand::Arg(0), Operand::Out(0)],
        params,
        grid: grid_of(tokens),
        in_units: None,
    });
    Ok(Work::of(launches, 0))
}
