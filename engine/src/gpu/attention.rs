//! Rotary positions, attention and the key/value cache.

use super::call::GROUP;
use super::{Call, InUnits, Kernel, Launch, Operand, Params, Row, Work, grid_of};

const STEM: &str = "attention";

/// Queries and keys of a tile.
const TILE: usize = 16;
/// Queries or keys of a block's tile in matrix units, of heads of so many elements at most; of wider ones, half.
const UNITS_TILE: (usize, usize) = (64, 128);
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

/// A block a tile of queries or keys, by two kernels: without matrix units and in them.
fn tiled(c: &Call, numbers: &Numbers, heads: usize, entries: [&'static str; 2], operands: Vec<Operand>) -> Launch {
    let (tile, widest) = UNITS_TILE;
    let tile = if numbers.dim > widest { tile / 2 } else { tile };
    let grid = |tile: usize| [numbers.seq.div_ceil(tile) as u32, heads as u32, (c.rows(0) / numbers.seq) as u32];
    let in_units = (c.int("compute") == 1).then(|| InUnits { entry: entries[1], grid: grid(tile) });
    Launch { in_units, ..launch(entries[0], operands, numbers.params(), grid(TILE)) }
}

fn attention(c: &Call) -> Result<Work, String> {
    let numbers = numbers(c)?;
    let operands = (0..4).map(Operand::Arg).chain((0..2).map(Operand::Out)).collect();
    let entries = ["attention", "attention_bf16"];
    Ok(Work::one(tiled(c, &numbers, numbers.heads, entries, operands)))
}

fn attention_grad(c: &Call) -> Result<Work, String> {
    let numbers = numbers(c)?;
    let count = c.rows(0) * numbers.heads;
    let bytes = 4 * count as u64;
    let delta = Operand::Scratch(0, bytes);
    let first = launch(
        "attention_delta",
        vec![Operand::Arg(4), Operand::Arg(6), delta],
        numbers.params(),
        grid_of(count.div_ceil(GROUP)),
    );
    let with = |outs: &[usize]| -> Vec<Operand> {
        (0..7).map(Operand::Arg).chain([delta]).chain(outs.iter().map(|&o| Operand::Out(o))).collect()
    };
    let of_queries = ["attention_grad_q", "attention_grad_q_bf16"];
    let of_keys = ["attention_grad_kv", "attention_grad_kv_bf16"];
    let queries = tiled(c, &numbers, numbers.heads, of_queries, with(&[0]));
    let keys = tiled(c, &numbers, numbers.kv_heads, of_keys, with(&[1, 2]));
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
