//! Losses and softmax.

use super::call::GROUP;
use super::elementwise::start_from;
use super::linear::Product;
use super::{Call, Factor, Kernel, Launch, Operand, Params, Row, Work, grid_of};
use std::ops::Range;
use tinyforge_plan::{DType, VOCAB_SEGMENT};

const STEM: &str = "loss";

/// Tokens whose logits exist at a time in the cross-entropy of a linear layer.
const CHUNK_TOKENS: usize = 128;

pub(super) const ROWS: &[Row] = &[
    Row { name: "softmax", work: |c| Ok(rows(c, "softmax")) },
    Row { name: "softmax_grad", work: |c| Ok(rows(c, "softmax_grad")) },
    Row { name: "cross_entropy", work: |c| Ok(rows(c, "cross_entropy")) },
    Row { name: "cross_entropy_grad", work: |c| Ok(rows(c, "cross_entropy_grad")) },
    Row { name: "mse_loss", work: |c| Ok(rows(c, "mse_loss")) },
    Row { name: "mse_loss_grad", work: |c| Ok(rows(c, "mse_loss_grad")) },
    Row { name: "linear_cross_entropy", work: linear_cross_entropy },
    Row { name: "linear_cross_entropy_grad", work: linear_cross_entropy },
    Row { name: "linear_cross_entropy_grad_w", work: linear_cross_entropy_grad_w },
    Row { name: "linear_cross_entropy_sums", work: linear_cross_entropy_sums },
    Row {
        name: "cross_entropy_of_sums",
        work: |c| Ok(Work::one(losses(c.elems(1), Operand::Arg(0), Operand::Arg(1)))),
    },
    Row { name: "linear_cross_entropy_grad_h", work: linear_cross_entropy_grad_h },
];

/// A workgroup a row of operand 0, with all operands and then the result.
fn rows(c: &Call, entry: &'static str) -> Work {
    let operands = (0..c.args()).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let rows = c.rows(0);
    let params = Params::new().sizes(&[rows, 0, c.cols(0), 0]);
    Work::one(Launch { kernel: Kernel::plain(STEM, entry), operands, params, grid: grid_of(rows), in_units: None })
}

/// Tokens of every chunk of packed rows of `seq`: chunks begin anew with every packed row.
fn chunks(tokens: usize, seq: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..tokens / seq).flat_map(move |row| (0..seq).step_by(CHUNK_TOKENS).map(move |at| (row, at)));
    starts.map(move |(row, at)| row * seq + at..row * seq + seq.min(at + CHUNK_TOKENS))
}

/// A product of a chunk, without what is added to it; its sums are over no more than a segment of classes at a time.
fn product(c: &Call, size: [usize; 3], [a, b]: [Factor; 2], storage: DType, to: Operand, c_first: usize) -> Product {
    let [_, n, _] = size;
    Product {
        size,
        a,
        b,
        storage,
        bias: None,
        acc: None,
        c: to,
        c_row: n,
        c_first,
        segment: VOCAB_SEGMENT as usize,
        alpha: 1.0,
        rounds: c.int("compute") == 1,
    }
}

/// Some rows of the weight, and where the logits of a chunk of tokens for them come.
struct Rows {
    /// The first of them in operand 1, and how many.
    start: usize,
    count: usize,
    /// What the first is in the table that they are of, and the rows of that.
    class: usize,
    vocab: usize,
    logits: Operand,
    logits_bytes: u64,
}

impl Rows {
    fn of(c: &Call, rows: Range<usize>, class: usize, vocab: usize) -> Rows {
        let (start, count) = (rows.start, rows.len());
        let logits_bytes = (4 * CHUNK_TOKENS.min(c.size("seq").max(1)) * count) as u64;
        Rows { start, count, class, vocab, logits: Operand::Scratch(0, logits_bytes), logits_bytes }
    }

    /// Operand 1 as rows `first_row..` of a table of `vocab`.
    fn part(c: &Call) -> Rows {
        Rows::of(c, 0..c.rows(1), c.size("first_row"), c.size("vocab"))
    }

    /// The logits of a chunk.
    fn logits(&self, c: &Call, chunk: &Range<usize>) -> Launch {
        let width = c.cols(0);
        let h = Factor::rows(Operand::Arg(0), width).from(chunk.start * width);
        let w = Factor::rows(Operand::Arg(1), width).from(self.start * width);
        product(c, [chunk.len(), self.count, width], [h, w], c.dtype(1), self.logits, 0).launch()
    }

    /// A workgroup a row of logits.
    fn each(&self, entry: &'static str, chunk: &Range<usize>, sums: Operand, carries: bool) -> Launch {
        let params = Params::new().sizes(&[chunk.len(), chunk.start, self.count]).word(carries.into());
        Launch {
            kernel: Kernel::plain(STEM, entry),
            operands: vec![self.logits, Operand::Arg(2), Operand::Arg(3), sums],
            params: params.sizes(&[self.class, self.vocab]),
            grid: grid_of(chunk.len()),
            in_units: None,
        }
    }

    /// The sums of a chunk's logits, from those that are there on where they are carried on.
    fn sums(&self, chunk: &Range<usize>, sums: Operand, carries: bool) -> Launch {
        self.each("row_sums", chunk, sums, carries)
    }

    /// Turns a chunk's logits into their gradients.
    fn gradients(&self, chunk: &Range<usize>, sums: Operand) -> Launch {
        self.each("panel", chunk, sums, false)
    }

    /// `acc` and what these rows give to the gradient of a chunk's tokens.
    fn grad_h(&self, c: &Call, chunk: &Range<usize>, to: Operand, acc: Option<Operand>) -> Launch {
        let width = c.cols(0);
        let w = Factor::transposed(Operand::Arg(1), width).from(self.start * width);
        let (size, factors) = ([chunk.len(), width, self.count], [Factor::rows(self.logits, self.count), w]);
        Product { acc, ..product(c, size, factors, c.dtype(1), to, chunk.start * width) }.launch()
    }

    /// `acc`, or else what the chunks before gave, and what a chunk adds to the gradient of these rows.
    fn grad_w(&self, c: &Call, chunk: &Range<usize>, to: Operand, acc: Option<Operand>) -> Launch {
        let width = c.cols(0);
        let a = Factor::transposed(self.logits, self.count);
        let b = Factor::transposed(Operand::Arg(0), width).from(chunk.start * width);
        let acc = if chunk.start > 0 { Some(to) } else { acc };
        Product { acc, ..product(c, [self.count, width, chunk.len()], [a, b], DType::F32, to, 0) }.launch()
    }
}

/// Operand `i`, where there is one.
fn given(c: &Call, i: usize) -> Option<Operand> {
    (i < c.args()).then_some(Operand::Arg(i))
}

/// The losses that sums of all classes give.
fn losses(tokens: usize, sums: Operand, weights: Operand) -> Launch {
    Launch {
        kernel: Kernel::plain(STEM, "cross_entropy_of_sums"),
        operands: vec![sums, weights, Operand::Out(0)],
        params: Params::new().size(tokens),
        grid: grid_of(tokens.div_ceil(GROUP)),
        in_units: None,
    }
}

/// Of every chunk there are its logits, their sums and what they become, in scratch, then the gradients: of the weight
/// a chunk is summed from zero, then added.
fn linear_cross_entropy(c: &Call) -> Result<Work, String> {
    let (tokens, vocab) = (c.rows(0), c.rows(1));
    let rows = Rows::of(c, 0..vocab, 0, vocab);
    let (at, bytes) = (rows.logits_bytes.next_multiple_of(256), 12 * tokens as u64);
    let (sums, scratch_bytes) = match c.int("sums") != 0 {
        true => (Operand::Out(c.outs() - 1), rows.logits_bytes),
        false => (Operand::Scratch(at, bytes), at + bytes),
    };
    let mut launches = Vec::new();
    for chunk in chunks(tokens, c.size("seq").max(1)) {
        launches.extend([rows.logits(c, &chunk), rows.sums(&chunk, sums, false)]);
        if c.outs() > 1 {
            launches.extend([rows.gradients(&chunk, sums), rows.grad_h(c, &chunk, Operand::Out(1), None)]);
        }
        if c.int("grad_w") != 0 {
            launches.push(rows.grad_w(c, &chunk, Operand::Out(2), given(c, 4)));
        }
    }
    launches.push(losses(tokens, sums, Operand::Arg(3)));
    Ok(Work::of(launches, scratch_bytes))
}

/// The weight's gradient of the same for a panel of its rows, chunk by chunk.
fn linear_cross_entropy_grad_w(c: &Call) -> Result<Work, String> {
    let (height, class) = (c.rows(1), c.size("first_row"));
    let count = if c.size("panel_rows") == 0 { height } else { c.size("panel_rows") };
    // The weight may be these rows alone.
    let from = if count == height { 0 } else { class };
    let rows = Rows::of(c, from..from + count, class, c.size("vocab").max(height));
    let of_chunk = |chunk: Range<usize>| {
        let gradients = rows.gradients(&chunk, Operand::Arg(4));
        [rows.logits(c, &chunk), gradients, rows.grad_w(c, &chunk, Operand::Out(0), given(c, 5))]
    };
    let launches = chunks(c.rows(0), c.size("seq").max(1)).flat_map(of_chunk).collect();
    Ok(Work::of(launches, rows.logits_bytes))
}

/// The sums of some rows' logits, chunk by chunk, in the place of those of the rows before.
fn linear_cross_entropy_sums(c: &Call) -> Result<Work, String> {
    let (rows, carries) = (Rows::part(c), c.args() > 4);
    let before = if carries { start_from(c, 4) } else { None };
    let of_chunk = |chunk: Range<usize>| [rows.logits(c, &chunk), rows.sums(&chunk, Operand::Out(0), carries)];
    let of_chunks = chunks(c.rows(0), c.size("seq").max(1)).flat_map(of_chunk);
    Ok(Work::of(before.into_iter().chain(of_chunks).collect(), rows.logits_bytes))
}

/// What some rows give to the gradient of the tokens, chunk by chunk.
fn linear_cross_entropy_grad_h(c: &Call) -> Result<Work, String> {
    let rows = Rows::part(c);
    let of_chunk = |chunk: Range<usize>| {
        let gradients = rows.gradients(&chunk, Operand::Arg(4));
        [rows.logits(c, &chunk), gradients, rows.grad_h(c, &chunk, Operand::Out(0), given(c, 5))]
    };
    let launches = chunks(c.rows(0), c.size("seq").max(1)).flat_map(of_chunk).collect();
    Ok(Work::of(launches, rows.logits_bytes))
}
