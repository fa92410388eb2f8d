//! Linear layers, all of them the dense product.

use super::call::Parts;
use super::elementwise::start_from;
use super::{Call, Factor, InUnits, Kernel, Launch, Operand, Params, Row, Work, dense};
use tinyforge_plan::DType;

/// Rows and columns of the tile that a workgroup makes.
const TILE: usize = 64;
/// Rows of the one that a block makes in matrix units; it has as many columns.
const UNITS_ROWS: usize = 128;

pub(super) const ROWS: &[Row] = &[
    Row { name: "linear", work: |c| forward(c, 2) },
    Row { name: "linear_part", work: part },
    Row { name: "linear_sub", work: |c| forward(c, 3) },
    Row { name: "linear_add", work: |c| of_tokens(c, &Product { alpha: c.float("alpha"), acc: acc(c), ..x_wt(c) }) },
    Row { name: "linear_grad_x", work: grad_x },
    Row { name: "linear_grad_w", work: grad_w },
];

/// `C (+)= alpha A B' (+ bias)`, `m` by `n` with sums over `k`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) size: [usize; 3],
    pub(super) a: Factor,
    pub(super) b: Factor,
    /// How B is stored.
    pub(super) storage: DType,
    pub(super) bias: Option<Operand>,
    /// What the result starts from, laid out as the result.
    pub(super) acc: Option<Operand>,
    pub(super) c: Operand,
    /// Columns of the result, and its first element.
    pub(super) c_row: usize,
    pub(super) c_first: usize,
    /// Steps of `k` that are summed apart.
    pub(super) segment: usize,
    pub(super) alpha: f32,
    /// Whether factors are rounded to bf16.
    pub(super) rounds: bool,
}

impl Product {
    pub(super) fn launch(&self) -> Launch {
        let [m, n, k] = self.size;
        let of = |p: Params, f: &Factor| p.sizes(&[f.row, f.col, f.first]);
        let params = of(of(Params::new().sizes(&self.size), &self.a), &self.b);
        let params = params.sizes(&[self.c_row, self.c_first, self.segment.clamp(1, k.max(1))]).float(self.alpha);
        let flags = [self.bias.is_some(), self.acc.is_some(), self.rounds];
        let params = flags.into_iter().fold(params, |p, flag| p.word(flag.into()));
        let operands = [Some(self.a.operand), Some(self.b.operand), self.bias, self.acc, Some(self.c)];
        let grid = |rows: usize| [n.div_ceil(TILE) as u32, m.div_ceil(rows) as u32, 1];
        Launch {
            kernel: Kernel { stem: "linear", entry: "product", storage: self.storage },
            operands: operands.map(|o| o.unwrap_or(self.c)).into(),
            params,
            grid: grid(TILE),
            in_units: self.rounds.then(|| InUnits { entry: "product_bf16", grid: grid(UNITS_ROWS) }),
        }
    }
}

fn one(product: &Product, by_library: Option<Parts>) -> Result<Work, String> {
    let launch = product.launch();
    match launch.grid.iter().all(|&g| g as usize <= super::call::GRID_MAX) {
        true => Ok(Work { by_library, ..Work::one(launch) }),
        false => Err(format!("a product of {} rows and {} columns", product.size[0], product.size[1])),
    }
}

/// A product whose result has a row a token.
fn of_tokens(c: &Call, product: &Product) -> Result<Work, String> {
    one(product, dense::by_rows(c, product))
}

/// Operand 2, where there is one, as what is added to.
fn acc(c: &Call) -> Option<Operand> {
    (c.args() > 2).then_some(Operand::Arg(2))
}

/// The product of operands 0 and 1 as a forward pass has it: `x wᵀ`.
fn x_wt(c: &Call) -> Product {
    let (m, n, k) = (c.rows(0), c.rows(1), c.cols(0));
    Product {
        size: [m, n, k],
        a: Factor::rows(Operand::Arg(0), k),
        b: Factor::rows(Operand::Arg(1), k),
        storage: c.dtype(1),
        bias: None,
        acc: None,
        c: Operand::Out(0),
        c_row: n,
        c_first: 0,
        segment: k,
        alpha: 1.0,
        rounds: c.int("compute") == 1,
    }
}

fn forward(c: &Call, bias: usize) -> Result<Work, String> {
    of_tokens(c, &Product { bias: (bias < c.args()).then_some(Operand::Arg(bias)), ..x_wt(c) })
}

/// Some columns of the result; the others are what operand 2 has there, or zeros. Not by a library, whose sums follow
/// from how many columns there are.
fn part(c: &Call) -> Result<Work, String> {
    let columns = one(&Product { c_row: c.size("vocab"), c_first: c.size("first_row"), ..x_wt(c) }, None)?;
    let launches = start_from(c, 2).into_iter().chain(columns.launches).collect();
    Ok(Work::of(launches, 0))
}

/// `dx = acc + alpha dy w`.
fn grad_x(c: &Call) -> Result<Work, String> {
    let (m, n, k) = (c.rows(0), c.cols(1), c.cols(0));
    let product = Product {
        size: [m, n, k],
        b: Factor::transposed(Operand::Arg(1), n),
        acc: acc(c),
        c_row: n,
        segment: k,
        alpha: c.float("alpha"),
        ..x_wt(c)
    };
    of_tokens(c, &product)
}

/// `alpha dyᵀ x` of operands `dy` and `dy + 1`, packed row by packed row, for some rows of the result.
pub(super) fn weight_grad(c: &Call, dy: usize, rows: std::ops::Range<usize>, to: Operand) -> Product {
    let (tokens, n, k) = (c.rows(dy), c.cols(dy), c.cols(dy + 1));
    Product {
        size: [rows.len(), k, tokens],
        a: Factor::transposed(Operand::Arg(dy), n).from(rows.start),
        b: Factor::transposed(Operand::Arg(dy + 1), k),
        storage: DType::F32,
        bias: None,
        acc: None,
        c: to,
        c_row: k,
        c_first: 0,
        segment: tokens / c.size("rows").max(1),
        alpha: c.float("alpha"),
        rounds: c.int("compute") == 1,
    }
}

fn grad_w(c: &Call) -> Result<Work, String> {
    let product = Product { acc: acc(c), ..weight_grad(c, 0, 0..c.cols(0), Operand::Out(0)) };
    one(&product, grad_w_by_library(c, &product))
}

/// The same in the panels that an update takes, so that both are the same products.
fn grad_w_by_library(c: &Call, product: &Product) -> Option<Parts> {
    let factors = dense::factors(c, product, 0)?;
    let (n, k) = (c.cols(0), c.cols(1));
    let mut list = factors.rounding.clone();
    let rows = dense::panel_rows(n, k);
    for first in (0..n).step_by(rows.max(1)) {
        let to = (Operand::Out(0), first * k, acc(c));
        list.extend(dense::weight_grad(c, 0, &factors, first..n.min(first + rows), to)?);
    }
    Some(Parts { list, scratch_bytes: factors.scratch_bytes })
}
