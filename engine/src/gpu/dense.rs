//! Products of linear layers for a device that has a library of dense ones.
//!
//! A library chooses its algorithm, and with it the order of a sum, by the shape of a product. So every product here
//! has a shape that follows from one packed row: a layer's tokens are multiplied a packed row after the other, and a
//! weight's gradient grows packed row by packed row. Invariant: how many packed rows go through at a time changes which
//! products there are, and no product. Not for blocks of quantised weights, which no library decodes.

use super::call::{Dense, GROUP, Part, Parts};
use super::linear::Product;
use super::{Call, Factor, Kernel, Launch, Operand, Params, grid_of};
use std::ops::Range;
use tinyforge_plan::DType;

/// What the place of a tensor is a multiple of at least, as far as libraries ask.
const ALIGN_BYTES: usize = 16;

/// What places so many bytes apart are multiples of.
fn aligned(bytes: usize) -> usize {
    1 << bytes.trailing_zeros().min(ALIGN_BYTES.trailing_zeros())
}

/// Factors as a library takes them, and what makes them so.
pub(super) struct Factors {
    /// Kernels that round what is not stored as it is multiplied.
    pub(super) rounding: Vec<Part>,
    /// Both.
    pub(super) both: [Factor; 2],
    dtype: DType,
    /// Scratch up to its end.
    pub(super) scratch_bytes: u64,
}

/// The factors of a product, rounded where it asks for that, in scratch from a byte on; none where a library does not
/// know how they are stored.
pub(super) fn factors(c: &Call, product: &Product, scratch: u64) -> Option<Factors> {
    let mut found = Factors {
        rounding: Vec::new(),
        both: [product.a, product.b],
        dtype: if product.rounds { DType::BF16 } else { DType::F32 },
        scratch_bytes: scratch.next_multiple_of(256),
    };
    for (factor, storage) in found.both.iter_mut().zip([DType::F32, product.storage]) {
        let Operand::Arg(i) = factor.operand else { return None };
        match storage {
            stored if stored == found.dtype => {}
            DType::F32 | DType::F16 if product.rounds => {
                let elems = c.elems(i);
                let to = Operand::Scratch(found.scratch_bytes, 4 * elems.div_ceil(2) as u64);
                found.scratch_bytes += (4 * elems.div_ceil(2) as u64).next_multiple_of(256);
                found.rounding.push(Part::Launch(Launch {
                    kernel: Kernel { stem: "linear", entry: "narrow", storage },
                    operands: vec![factor.operand, to],
                    params: Params::new().size(elems),
                    grid: grid_of(elems.div_ceil(2 * GROUP)),
                    in_units: None,
                }));
                factor.operand = to;
            }
            _ => return None,
        }
    }
    Some(found)
}

/// Packed rows of so many tokens, and the tokens of one; none where one is too short for a library's call.
fn packed(c: &Call, tokens: usize) -> Option<(usize, usize)> {
    let rows = c.size("rows").max(1);
    (tokens.is_multiple_of(rows) && tokens / rows > 1).then_some((rows, tokens / rows))
}

/// A product whose result has a row a token, packed row after packed row.
pub(super) fn by_rows(c: &Call, product: &Product) -> Option<Parts> {
    let [tokens, n, k] = product.size;
    let (rows, seq) = packed(c, tokens)?;
    let Factors { rounding, both: [a, b], dtype, scratch_bytes } = factors(c, product, 0)?;
    let [a_step, to_step] = [seq * a.row, seq * product.c_row];
    let of_row = |row: usize| {
        Part::Dense(Dense {
            size: [seq, n, k],
            factors: [a.from(a.first + row * a_step), b],
            dtype,
            bias: product.bias,
            acc: product.acc,
            to: product.c,
            to_row: product.c_row,
            to_first: product.c_first + row * to_step,
            alpha: product.alpha,
            aligned: [aligned(a_step * dtype.block_bytes() as usize), ALIGN_BYTES, aligned(4 * to_step)],
        })
    };
    Some(Parts { list: rounding.into_iter().chain((0..rows).map(of_row)).collect(), scratch_bytes })
}

/// Rows of a weight's gradient that are one product, whether it is made whole or a panel at a time: as many as 16 MiB
/// hold, in panels of 256.
pub(super) fn panel_rows(n: usize, k: usize) -> usize {
    const PANEL_BYTES: usize = 16 << 20;
    n.min(256 * (PANEL_BYTES / (4 * 256 * k.max(1))).max(1))
}

/// Some rows of `alpha dyᵀ x` of operands `dy` and `dy + 1`, packed row by packed row, from the result's element on.
pub(super) fn weight_grad(
    c: &Call,
    dy: usize,
    factors: &Factors,
    panel: Range<usize>,
    (to, to_first, acc): (Operand, usize, Option<Operand>),
) -> Option<Vec<Part>> {
    let (n, k) = (c.cols(dy), c.cols(dy + 1));
    let (rows, seq) = packed(c, c.rows(dy))?;
    let ([a, b], elem) = (factors.both, factors.dtype.block_bytes() as usize);
    let of_row = |row: usize| {
        Part::Dense(Dense {
            size: [panel.len(), k, seq],
            factors: [a.from(panel.start + row * seq * n), b.from(row * seq * k)],
            dtype: factors.dtype,
            bias: None,
            acc: if row > 0 { Some(to) } else { acc },
            to,
            to_row: k,
            to_first,
            alpha: c.float("alpha"),
            aligned: [aligned(seq * n * elem), aligned(seq * k * elem), ALIGN_BYTES],
        })
    };
    Some((0..rows).map(of_row).collect())
}
