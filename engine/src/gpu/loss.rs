//! Losses and softmax.

use super::linear::Product;
use super::{Call, Factor, Kernel, Launch, Operand, Params, Row, Work, grid_of};
use std::ops::Range;
use tinyforge_plan::DType;

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
];

/// A workgroup a row of operand 0, with all operands and then the result.
fn rows(c: &Call, entry: &'static str) -> Work {
    let operands = (0..c.args()).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let rows = c.rows(0);
    let params = Params::new().sizes(&[rows, 0, c.cols(0), 0]);
    Work::one(Launch { kernel: Kernel::plain(STEM, entry), operands, params, grid: grid_of(rows) })
}

/// Tokens of every chunk of packed rows of `seq`: chunks begin anew with every packed row.
fn chunks(tokens: usize, seq: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..tokens / seq).flat_map(move |row| (0..seq).step_by(CHUNK_TOKENS).map(move |at| (row, at)));
    starts.map(move |(row, at)| row * seq + at..row * seq + seq.min(at + CHUNK_TOKENS))
}

/// A product of a chunk, without what is added to it.
fn product(c: &Call, size: [usize; 3], [a, b]: [Factor; 2], storage: DType, to: Operand, c_first: usize) -> Product {
    let [_, n, k] = size;
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
        segment: k,
        alpha: 1.0,
        rounds: c.int("compute") == 1,
    }
}

/// Of every chunk there are its logits, losses and what they become, in scratch, then the gradients: of the weight a
/// chunk is summed from zero, then added.
fn linear_cross_entropy(c: &Call) -> Result<Work, String> {
    let (tokens, width, vocab) = (c.rows(0), c.cols(0), c.rows(1));
    let seq = c.size("seq").max(1);
    let bytes = (4 * CHUNK_TOKENS.min(seq) * vocab) as u64;
    let logits = Operand::Scratch(0, bytes);
    let (hidden, weight) = (Operand::Arg(0), Operand::Arg(1));
    let mut launches = Vec::new();
    for chunk in chunks(tokens, seq) {
        let (first, count) = (chunk.start, chunk.len());
        let h = Factor::rows(hidden, width).from(first * width);
        let w = Factor::rows(weight, width);
        launches.push(product(c, [count, vocab, width], [h, w], c.dtype(1), logits, 0).launch());
        if c.int("sums") != 0 {
            launches.push(Launch {
                kernel: Kernel::plain(STEM, "row_sums"),
                operands: vec![logits, Operand::Arg(2), Operand::Arg(3), Operand::Out(c.outs() - 1)],
                params: Params::new().sizes(&[count, first, vocab]),
                grid: grid_of(count),
            });
        }
        launches.push(Launch {
            kernel: Kernel::plain(STEM, "head"),
            operands: vec![logits, Operand::Arg(2), Operand::Arg(3), Operand::Out(0)],
            params: Params::new().sizes(&[count, first, vocab]).word((c.outs() == 1).into()),
            grid: grid_of(count),
        });
        if c.outs() > 1 {
            let factors = [Factor::rows(logits, vocab), Factor::transposed(weight, width)];
            let to = (Operand::Out(1), first * width);
            launches.push(product(c, [count, width, vocab], factors, c.dtype(1), to.0, to.1).launch());
        }
        if c.int("grad_w") != 0 {
            let acc = if first > 0 { Some(Operand::Out(2)) } else { (c.args() > 4).then_some(Operand::Arg(4)) };
            launches.push(grad_w(c, logits, vocab, chunk, Operand::Out(2), acc));
        }
    }
    Ok(Work::of(launches, bytes))
}

/// `acc` and what the tokens of a chunk add to the gradient of so many rows of the weight.
fn grad_w(c: &Call, logits: Operand, rows: usize, chunk: Range<usize>, to: Operand, acc: Option<Operand>) -> Launch {
    let width = c.cols(0);
    let a = Factor::transposed(logits, rows);
    let b = Factor::transposed(Operand::Arg(0), width).from(chunk.start * width);
    Product { acc, ..product(c, [rows, width, chunk.len()], [a, b], DType::F32, to, 0) }.launch()
}

/// The weight's gradient of the same for a panel of its rows, chunk by chunk.
fn linear_cross_entropy_grad_w(c: &Call) -> Result<Work, String> {
    let (tokens, width, vocab) = (c.rows(0), c.cols(0), c.rows(1));
    let (seq, from) = (c.size("seq").max(1), c.size("first_row"));
    let rows = if c.size("panel_rows") == 0 { vocab } else { c.size("panel_rows") };
    let bytes = (4 * CHUNK_TOKENS.min(seq) * rows) as u64;
    let logits = Operand::Scratch(0, bytes);
    let mut launches = Vec::new();
    for chunk in chunks(tokens, seq) {
        let (first, count) = (chunk.start, chunk.len());
        let h = Factor::rows(Operand::Arg(0), width).from(first * width);
        let w = Factor::rows(Operand::Arg(1), width).from(from * width);
        launches.push(product(c, [count, rows, width], [h, w], c.dtype(1), logits, 0).launch());
        launches.push(Launch {
            kernel: Kernel::plain(STEM, "panel"),
            operands: vec![logits, Operand::Arg(2), Operand::Arg(3), Operand::Arg(4)],
            params: Params::new().sizes(&[count, first, rows, 0, from]),
            grid: grid_of(count),
        });
        let acc = if first > 0 { Some(Operand::Out(0)) } else { (c.args() > 5).then_some(Operand::Arg(5)) };
        launches.push(grad_w(c, logits, rows, chunk, Operand::Out(0), acc));
    }
    Ok(Work::of(launches, bytes))
}
