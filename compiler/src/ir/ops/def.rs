//! What a row of the op table is made of.

use crate::ir::attrs::{Attr, AttrDef, Attrs};
use crate::ir::graph::{Builder, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use std::ops::Range;
use tinyforge_plan::DType;

/// A tensor of the reference interpreter: every storage type is held as f64.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Lengths of the dimensions.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    /// Zeros of a type's shape.
    pub fn zeros(ty: &Type) -> Tensor {
        let shape: Vec<usize> = ty.shape.iter().map(|&d| d as usize).collect();
        let data = vec![0.0; shape.iter().product()];
        Tensor { shape, data }
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }

    /// Product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols().max(1)
    }

    /// One row of the last dimension.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.cols()..(i + 1) * self.cols()]
    }

    /// One row of the last dimension, to be written.
    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        let cols = self.cols();
        &mut self.data[i * cols..(i + 1) * cols]
    }
}

/// What an op's gradient may read: nothing else is kept for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Saves {
    /// The operand of this index.
    Arg(usize),
    /// The result of this index.
    Out(usize),
}

/// A node's shape rule: operand types and attributes to result types, or why not.
pub type Infer = fn(&[Type], &Attrs) -> Result<Vec<Type>, String>;
/// The naive f64 definition: the specification of every kernel. An op that `mutates` writes its operands.
pub type Eval = fn(&mut [Tensor], &mut [Tensor], &Attrs);
/// The gradient: given what [`OpDef::saves`] declares and the results' gradients, one gradient per operand.
pub type Gradient = fn(&mut Vjp) -> Vec<Option<Value>>;
/// Floating-point operations of a node.
pub type Flops = fn(&[Type], &[Type], &Attrs) -> u64;

/// The last, optional operand of an op that adds to it: `outs[out] = args[arg] + ...`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acc {
    /// The operand's index; absent means zero.
    pub arg: usize,
    /// The result.
    pub out: usize,
    /// Whether the sum is taken whole and then added, so that `add` after the op means the same. The gradients of
    /// weights add packed row by packed row instead.
    pub whole: bool,
}

/// A row of the op table.
pub struct OpDef {
    /// The name in text, in plans and of the kernel.
    pub name: &'static str,
    /// Operands: least and most.
    pub arity: (usize, usize),
    /// The attributes, in order, with defaults.
    pub attrs: &'static [AttrDef],
    /// Shape rule.
    pub infer: Infer,
    /// Naive definition.
    pub eval: Eval,
    /// The definition without rounding, for finite differences, where [`OpDef::eval`] rounds.
    pub smooth: Option<Eval>,
    /// What the gradient reads.
    pub saves: &'static [Saves],
    /// The gradient; absent for ops that have none.
    pub vjp: Option<Gradient>,
    /// The flag that gives the op one more result, which its gradient alone reads: `differentiate` sets it, and `prune`
    /// takes it back where nothing reads that result.
    pub tape: Option<&'static str>,
    /// `(operand, result)` pairs that may share memory.
    pub in_place: &'static [(usize, usize)],
    /// The operand that the result is added to, where the op has one.
    pub acc: Option<Acc>,
    /// How many of the leading operands the op changes.
    pub mutates: fn(&Attrs) -> usize,
    /// Operations; elementwise ops count one per result element.
    pub flops: Flops,
}

/// Values that hold for most rows; a row overrides what differs.
pub const ROW: OpDef = OpDef {
    name: "",
    arity: (1, 1),
    attrs: &[],
    infer: same,
    eval: |_, _, _| unreachable!("every row has a definition"),
    smooth: None,
    saves: &[],
    vjp: None,
    tape: None,
    in_place: &[],
    acc: None,
    mutates: |_| 0,
    flops: elementwise,
};

/// The result has the first operand's type.
pub fn same(args: &[Type], _: &Attrs) -> Result<Vec<Type>, String> {
    Ok(vec![args[0].clone()])
}

/// The result has the type that all operands share.
pub fn all_same(args: &[Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match args.iter().find(|t| *t != &args[0]) {
        Some(other) => Err(format!("operands must have one type, found {} and {other}", args[0])),
        None => Ok(vec![args[0].clone()]),
    }
}

/// One operation per element of the results.
pub fn elementwise(_: &[Type], outs: &[Type], _: &Attrs) -> u64 {
    outs.iter().map(Type::elems).sum()
}

/// No arithmetic.
pub fn no_flops(_: &[Type], _: &[Type], _: &Attrs) -> u64 {
    0
}

/// Refuses operands that are not 2-dimensional.
pub fn matrix(ty: &Type, what: &str) -> Result<(u32, u32), String> {
    match ty.shape[..] {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(format!("{what} must be a matrix, found {ty}")),
    }
}

/// Refuses unless `found == wanted`.
pub fn expect(what: &str, found: impl Into<u64>, wanted: impl Into<u64>) -> Result<(), String> {
    let (found, wanted) = (found.into(), wanted.into());
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found}, must be {wanted}")) }
}

/// Refuses a tensor of another shape.
pub fn expect_shape(what: &str, found: &Type, wanted: &[u32]) -> Result<(), String> {
    let wanted = found.with_shape(wanted);
    if *found == wanted { Ok(()) } else { Err(format!("{what} is {found}, must be {wanted}")) }
}

/// Refuses what are not `count` indices.
pub fn expect_indices(what: &str, found: &Type, count: u32) -> Result<(), String> {
    if found.dtype != DType::I32 {
        return Err(format!("{what} must be i32, found {found}"));
    }
    expect(what, found.elems(), count)
}

/// The number of elements of a list.
pub fn list_len(ty: &Type) -> Result<u32, String> {
    u32::try_from(ty.elems()).map_err(|_| format!("{ty} is too long for a list"))
}

/// The rows of a tensor that an op with attributes `first_row` and `panel_rows` is about; `panel_rows` of 0 are all.
pub fn panel(rows: usize, a: &Attrs) -> Result<Range<usize>, String> {
    let (first, count) = (a.size("first_row"), a.size("panel_rows"));
    match count {
        0 if first == 0 => Ok(0..rows),
        _ if count > 0 && first.checked_add(count).is_some_and(|end| end <= rows) => Ok(first..first + count),
        _ => Err(format!("a panel of {count} rows from row {first} is none of {rows} rows")),
    }
}

/// The same for a tensor that may be the panel alone, which has as many rows.
pub fn own_panel(rows: usize, a: &Attrs) -> Result<Range<usize>, String> {
    if rows > 0 && a.size("panel_rows") == rows { Ok(0..rows) } else { panel(rows, a) }
}

/// Checks that the rows of `w` are those from `first_row` on of a table of `vocab`, of which it gives the number.
pub fn part(w: &Type, a: &Attrs) -> Result<u32, String> {
    let (first, vocab) = (a.size("first_row"), a.size("vocab"));
    match first.checked_add(w.rows() as usize) {
        Some(end) if end <= vocab && u32::try_from(vocab).is_ok() => Ok(vocab as u32),
        _ => Err(format!("{} rows from row {first} are no part of {vocab}", w.rows())),
    }
}

/// What a gradient is written with: the saved values, the results' gradients, and a builder.
pub struct Vjp<'a, 'g> {
    /// Appends the gradient's nodes.
    pub builder: &'a mut Builder<'g>,
    /// The node's op, for the `saves` check.
    pub op: Op,
    /// The node's operands.
    pub args: &'a [Value],
    /// The node's results.
    pub outs: &'a [Value],
    /// The node's attributes.
    pub attrs: &'a Attrs,
    /// Gradients of the results; absent where nothing depends on the result.
    pub grads: &'a [Option<Value>],
    /// Which operands need a gradient.
    pub needs: &'a [bool],
}

impl Vjp<'_, '_> {
    /// A saved operand.
    ///
    /// # Panics
    /// When the row does not declare it in `saves`.
    pub fn arg(&self, i: usize) -> Value {
        assert!(self.op.def().saves.contains(&Saves::Arg(i)), "{} reads undeclared operand {i}", self.op.name());
        self.args[i]
    }

    /// A saved result.
    ///
    /// # Panics
    /// When the row does not declare it in `saves`.
    pub fn out(&self, i: usize) -> Value {
        assert!(self.op.def().saves.contains(&Saves::Out(i)), "{} reads undeclared result {i}", self.op.name());
        self.outs[i]
    }

    /// The type of an operand; types are no data and may always be read.
    pub fn arg_ty(&self, i: usize) -> Type {
        self.builder.graph.ty(self.args[i]).clone()
    }

    /// The columns of operand `i`, a weight, of which alone a gradient is wanted: the const `<weight>.index`.
    pub fn columns(&self, i: usize) -> Option<Value> {
        let graph = &self.builder.graph;
        graph.find(&format!("{}.index", graph.info(self.args[i]).name))
    }

    /// The gradient of the first result, which exists where the node has one result.
    pub fn dy(&self) -> Value {
        self.grads[0].expect("a node is differentiated only when a result has a gradient")
    }

    /// Packed rows that the gradient of the first result holds: the micro-batch's, or 1 where they do not divide it
    /// because what it is of has no tokens.
    pub fn rows(&self) -> u32 {
        let graph = &self.builder.graph;
        graph.packed_rows(graph.ty(self.dy()).rows())
    }

    /// Appends an op with one result, named after operand `i`'s gradient.
    pub fn push(&mut self, i: usize, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Value {
        self.push_all(i, op, args, attrs)[0]
    }

    /// Appends an op and returns all its results.
    pub fn push_all(&mut self, i: usize, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Vec<Value> {
        let name = format!("{}.grad", self.builder.graph.info(self.args[i]).name);
        self.builder.push(&name, op, args, attrs)
    }
}
