//! Elementwise kernels, and those that move or sum columns and rows.

use super::call::GROUP;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "elementwise";

/// Elements of one partial sum of squares.
const NORM_PART: usize = 4096;

/// The family's parameters, in the order of its struct.
#[derive(Clone, Copy, Default)]
struct Numbers {
    len: usize,
    factor: f32,
    x_cols: usize,
    y_cols: usize,
    x_start: usize,
    y_start: usize,
    count: usize,
    rows: usize,
    seq: usize,
    accumulate: bool,
}

impl Numbers {
    fn params(&self) -> Params {
        let p = Params::new().size(self.len).float(self.factor);
        let p = p.sizes(&[self.x_cols, self.y_cols, self.x_start, self.y_start, self.count, self.rows, self.seq]);
        p.word(self.accumulate.into())
    }
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "add_scaled",
        work: |c| Ok(each(c, "add_scaled", Numbers { factor: c.float("scale"), ..Numbers::default() })),
    },
    Row { name: "add_row", work: |c| Ok(each(c, "add_row", Numbers { x_cols: c.cols(0), ..Numbers::default() })) },
    Row { name: "scale", work: |c| Ok(each(c, "scale", Numbers { factor: c.float("scale"), ..Numbers::default() })) },
    Row { name: "fill", work: |c| Ok(each(c, "fill", Numbers { factor: c.float("value"), ..Numbers::default() })) },
    Row { name: "zero", work: |c| Ok(Work::one(clear(Operand::Arg(0), c.words(0)))) },
    Row { name: "assign", work: assign },
    Row { name: "reshape", work: reshape },
    Row { name: "sum_rows", work: sum_rows },
    Row {
        name: "gather_cols",
        work: |c| Ok(each(c, "gather_cols", Numbers { x_cols: c.cols(0), y_cols: c.cols(1), ..Numbers::default() })),
    },
    Row {
        name: "scatter_cols",
        work: |c| {
            Ok(each(c, "scatter_cols", Numbers { x_cols: c.cols(0), y_cols: c.size("cols"), ..Numbers::default() }))
        },
    },
    Row { name: "slice_cols", work: slice_cols },
    Row { name: "concat_cols", work: concat_cols },
    Row { name: "norm_sq", work: norm_sq },
    Row { name: "clip_scale", work: clip_scale },
];

fn launch(entry: &'static str, operands: Vec<Operand>, numbers: Numbers, groups: usize) -> Launch {
    Launch {
        kernel: Kernel::plain(STEM, entry),
        operands,
        params: numbers.params(),
        grid: grid_of(groups),
        in_units: None,
    }
}

/// An invocation an element of the one result; all operands come first.
fn each(c: &Call, entry: &'static str, numbers: Numbers) -> Work {
    let operands = (0..c.args()).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let len = c.out_elems(0);
    Work::one(launch(entry, operands, Numbers { len, ..numbers }, len.div_ceil(GROUP)))
}

/// Sets so many words to zero.
pub(super) fn clear(operand: Operand, words: usize) -> Launch {
    launch("fill", vec![operand], Numbers { len: words, ..Numbers::default() }, words.div_ceil(GROUP))
}

/// Copies so many words.
pub(super) fn copy(from: Operand, to: Operand, words: usize) -> Launch {
    launch("copy", vec![from, to], Numbers { len: words, ..Numbers::default() }, words.div_ceil(GROUP))
}

/// Makes the first result what operand `i` is, or zeros where there is none; nothing where it is in place.
pub(super) fn start_from(c: &Call, i: usize) -> Option<Launch> {
    match i < c.args() {
        true => (!c.is_in_place(i, 0)).then(|| copy(Operand::Arg(i), Operand::Out(0), c.out_elems(0))),
        false => Some(clear(Operand::Out(0), c.out_elems(0))),
    }
}

/// Stops the run where one of so many floats from `first` on is not finite.
pub(super) fn check_finite(operand: Operand, first: usize, len: usize) -> Launch {
    launch("check_finite", vec![operand], Numbers { len, x_start: first, ..Numbers::default() }, len.div_ceil(GROUP))
}

fn assign(c: &Call) -> Result<Work, String> {
    let launches = match c.is_same(0, 1) {
        true => vec![],
        false => vec![copy(Operand::Arg(1), Operand::Arg(0), c.words(0))],
    };
    Ok(Work::of(launches, 0))
}

fn reshape(c: &Call) -> Result<Work, String> {
    let launches = match c.is_in_place(0, 0) {
        true => vec![],
        false => vec![copy(Operand::Arg(0), Operand::Out(0), c.words(0))],
    };
    Ok(Work::of(launches, 0))
}

fn sum_rows(c: &Call) -> Result<Work, String> {
    let (rows, cols, accumulate) = (c.rows(0), c.cols(0), c.args() > 1);
    let numbers = Numbers { y_cols: cols, rows, seq: rows / c.size("rows").max(1), accumulate, ..Numbers::default() };
    let acc = if accumulate { Operand::Arg(1) } else { Operand::Out(0) };
    Ok(Work::one(launch("sum_rows", vec![Operand::Arg(0), acc, Operand::Out(0)], numbers, cols.div_ceil(16))))
}

/// Moves `count` columns of an operand into the result.
fn move_cols(c: &Call, arg: usize, (x_start, y_start, count): (usize, usize, usize)) -> Launch {
    let len = c.rows(arg) * count;
    let (x_cols, y_cols) = (c.cols(arg), c.out_cols(0));
    let numbers = Numbers { len, x_cols, y_cols, x_start, y_start, count, ..Numbers::default() };
    launch("move_cols", vec![Operand::Arg(arg), Operand::Out(0)], numbers, len.div_ceil(GROUP))
}

fn slice_cols(c: &Call) -> Result<Work, String> {
    Ok(Work::one(move_cols(c, 0, (c.size("start"), 0, c.size("len")))))
}

fn concat_cols(c: &Call) -> Result<Work, String> {
    let mut start = 0;
    let mut launches = Vec::new();
    for i in 0..c.args() {
        launches.push(move_cols(c, i, (0, start, c.cols(i))));
        start += c.cols(i);
    }
    Ok(Work::of(launches, 0))
}

fn norm_sq(c: &Call) -> Result<Work, String> {
    let (len, accumulate) = (c.elems(0), c.args() > 1);
    let parts = len.div_ceil(NORM_PART);
    let partial = Operand::Scratch(0, 4 * parts as u64);
    let acc = if accumulate { Operand::Arg(1) } else { Operand::Out(0) };
    let first = launch("norm_sq_parts", vec![Operand::Arg(0), partial], Numbers { len, ..Numbers::default() }, parts);
    let numbers = Numbers { len: parts, accumulate, ..Numbers::default() };
    let last = launch("norm_sq", vec![partial, acc, Operand::Out(0)], numbers, 1);
    Ok(Work::of(vec![first, last], 4 * parts as u64))
}

fn clip_scale(c: &Call) -> Result<Work, String> {
    let numbers = Numbers { factor: c.float("max_norm"), ..Numbers::default() };
    Ok(Work::one(launch("clip_scale", vec![Operand::Arg(0), Operand::Out(0)], numbers, 1)))
}
