//! Losses and softmax.

use super::linear::{Factor, Product};
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};
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
];

/// A workgroup a row of operand 0, with all operands and then the result.
fn rows(c: &Call, entry: &'static str) -> Work {
    let operands = (0..c.args()).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let rows = c.rows(0);
    let params = Params::new().sizes(&[rows, 0, c.cols(0), 0]);
    Work::one(Launch { kernel: Kernel::plain(STEM, entry), operands, params, grid: grid_of(rows) })
}

/// Chunks begin anew with every packed row; of each there are its logits, losses and what they become, in scratch,
/// then the gradients: of the weight a chunk is summed from zero, then added.
fn linear_cross_entropy(c: &Call) -> Result<Work, String> {
    let (tokens, width, vocab) = (c.rows(0), c.cols(0), c.rows(1));
    let seq = c.size("seq").max(1);
    let bytes = (4 * CHUNK_TOKENS.min(seq) * vocab) as u64;
    let logits = Operand::Scratch(0, bytes);
    let product = |size, a, b, storage, to, c_row, c_first| Product {
        size,
        a,
        b,
        storage,
        bias: None,
        acc: None,
        c: to,
        c_row,
        c_first,
        segment: size[2],
        alpha: 1.0,
        rounds: c.int("compute") == 1,
    };
    let (hidden, weight) = (Operand::Arg(0), Operand::Arg(1));
    let mut launches = Vec::new();
    let chunks = (0..tokens / seq).flat_map(|row| (0..seq).step_by(CHUNK_TOKENS).map(move |at| (row, at)));
    for (row, at) in chunks {
        let (first, count) = (row * seq + at, CHUNK_TOKENS.min(seq - at));
        let h = Factor::rows(hidden, width).from(first * width);
        let w = Factor::rows(weight, width);
        launches.push(product([count, vocab, width], h, w, c.dtype(1), logits, vocab, 0).launch());
        launches.push(Launch {
            kernel: Kernel::plain(STEM, "head"),
            operands: vec![logits, Operand::Arg(2), Operand::Arg(3), Operand::Out(0)],
            params: Params::new().sizes(&[count, first, vocab]).word((c.outs() == 1).into()),
            grid: grid_of(count),
        });
        if c.outs() > 1 {
            let (a, b) = (Factor::rows(logits, vocab), Factor::transposed(weight, width));
            let to = (Operand::Out(1), width, first * width);
            launches.push(product([count, width, vocab], a, b, c.dtype(1), to.0, to.1, to.2).launch());
        }
        if c.outs() > 2 {
            let a = Factor::transposed(logits, vocab);
            let b = Factor::transposed(hidden, width).from(first * width);
            let grad = product([vocab, width, count], a, b, DType::F32, Operand::Out(2), width, 0);
            let given = if c.args() > 4 { Some(Operand::Arg(4)) } else { None };
            let acc = if first == 0 { given } else { Some(Operand::Out(2)) };
            launches.push(Product { acc, ..grad }.launch());
        }
    }
    Ok(Work { launches, scratch_bytes: bytes })
}
