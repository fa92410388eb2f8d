//! Rotary positions, attention and the key/value cache.

use super::call::GROUP;
use super::{Call, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "attention";

/// Queries and keys of a tile.
const TILE: usize = 16;
/// Elements of a head that the kernels keep in registers.
const DIM_MAX: usize = 256;

pub(super) const ROWS: &[Row] = &[
    Row { name: "rope", work: rope },
    Row { name: "attention", work: attention },
    Row { name: "attention_grad", work: attention_grad },
    Row { name: "kv_write", work: kv_write },
    Row { name: "attention_cached", work: attention_cached },
];

/// The family's parameters, in the order of its struct.
#[derive(Clone, Copy, Default)]
struct Numbers {
    seq: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    scale: f32,
    causal: bool,
    window: usize,
    context: usize,
    half: usize,
    interleaved: bool,
    inverse: bool,
}

impl Numbers {
    fn params(&self) -> Params {
        let p = Params::new().sizes(&[self.seq, self.heads, self.kv_heads, self.dim]).float(self.scale);
        let p = p.word(self.causal.into()).sizes(&[self.window, self.context, self.half]);
        p.word(self.interleaved.into()).word(self.inverse.into())
    }
}

/// The numbers of attention to operands `q, k, v`.
fn numbers(c: &Call) -> Result<Numbers, String> {
    let heads = c.size("heads").max(1);
    let dim = c.cols(0) / heads;
    if dim > DIM_MAX {
        return Err(format!("heads of {dim} elements; at most {DIM_MAX}"));
    }
    Ok(Numbers {
        seq: c.size("seq").max(1),
        heads,
        kv_heads: c.size("kv_heads").max(1),
        dim,
        scale: c.float("scale"),
        causal: c.int("causal") != 0,
        window: c.size("window"),
        context: c.rows(0),
        ..Numbers::default()
    })
}

fn launch(entry: &'static str, operands: Vec<Operand>, params: Params, grid: [u32; 3]) -> Launch {
    Launch { kernel: Kernel::plain(STEM, entry), operands, params, grid, in_units: None }
}

fn rope(c: &Call) -> Result<Work, String> {
    let heads = c.size("heads").max(1);
    let (tokens, dim, half) = (c.rows(0), c.cols(0) / heads, c.cols(2));
    let numbers = Numbers {
        heads,
        dim,
        scale: c.float("factor"),
        context: tokens,
        half,
        interleaved: c.int("interleaved") != 0,
        inverse: c.int("inverse") != 0,
        ..Numbers::default()
    };
    let operands = vec![Operand::Arg(0), Operand::Arg(1), Operand::Arg(2), Operand::Out(0)];
    let count = tokens * heads * (dim - half);
    Ok(Work::one(launch("rope", operands, numbers.params(), grid_of(count.div_ceil(GROUP)))))
}

/// Tiles of a packed row, heads, packed rows.
fn tiles(c: &Call, numbers: &Numbers, heads: usize) -> [u32; 3] {
    [numbers.seq.div_ceil(TILE) as u32, heads as u32, (c.rows(0) / numbers.seq) as u32]
}

fn attention(c: &Call) -> Result<Work, String> {
    let numbers = numbers(c)?;
    let operands = (0..4).map(Operand::Arg).chain((0..2).map(Operand::Out)).collect();
    Ok(Work::one(launch("attention", operands, numbers.params(), tiles(c, &numbers, numbers.heads))))
}

fn attention_grad(c: &Call) -> Result<Work, String> {
    let numbers = numbers(c)?;
    let (params, count) = (numbers.params(), c.rows(0) * numbers.heads);
    let bytes = 4 * count as u64;
    let delta = Operand::Scratch(0, bytes);
    let first = launch(
        "attention_delta",
        vec![Operand::Arg(4), Operand::Arg(6), delta],
        params,
        grid_of(count.div_ceil(GROUP)),
    );
    let with = |outs: &[usize]| -> Vec<Operand> {
        (0..7).map(Operand::Arg).chain([delta]).chain(outs.iter().map(|&o| Operand::Out(o))).collect()
    };
    let queries = launch("attention_grad_q", with(&[0]), params, tiles(c, &numbers, numbers.heads));
    let keys = launch("attention_grad_kv", with(&[1, 2]), params, tiles(c, &numbers, numbers.kv_heads));
    Ok(Work::of(vec![first, queries, keys], bytes))
}

fn kv_write(c: &Call) -> Result<Work, String> {
    let (tokens, dim) = (c.rows(1), c.cols(1));
    let numbers = Numbers { seq: tokens, dim, context: c.rows(0), ..Numbers::default() };
    let operands = (0..3).map(Operand::Arg).collect();
    Ok(Work::one(launch("kv_write", operands, numbers.params(), grid_of((tokens * dim).div_ceil(GROUP)))))
}

fn attention_cached(c: &Call) -> Result<Work, String> {
    let numbers = Numbers { context: c.rows(1), ..numbers(c)? };
    let operands = (0..4).map(Operand::Arg).chain([Operand::Out(0)]).collect();
    let grid = [c.rows(0) as u32, numbers.heads as u32, 1];
    Ok(Work::one(launch("attention_cached", operands, numbers.params(), grid)))
}
