//! Samples of every op: shapes and attributes at which gradients and kernels are checked.
//!
//! [`samples`] are small, for finite differences; [`edges`] go to the sizes around a vector's and a tile's length.
//! Those of an op without attributes that takes and gives tensors of one type follow from its row. Another op without
//! samples fails the tests that walk the table, so a new row cannot be forgotten.

mod dense;
mod image;
mod int8;
mod like;
mod tokens;

use crate::random::Random;
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::types::Type;

/// What a declared tensor is filled with.
#[derive(Clone, PartialEq, Debug)]
pub enum Fill {
    /// Uniform in -1..1.
    Real,
    /// Uniform in -9..9: past the bends of activation functions.
    Wide,
    /// Uniform in 0.5..1.5: variances, loss weights.
    Positive,
    /// Whole numbers from 0 to below the limit.
    Below(u32),
    /// Whole numbers from -1 to below the limit.
    Labels(u32),
    /// Uniform between two numbers.
    Within(f64, f64),
    /// Whole numbers from the first to the second.
    Whole(i32, i32),
    /// These numbers.
    Values(Vec<f64>),
}

impl Fill {
    /// The contents of a tensor of this type.
    pub fn tensor(&self, ty: &Type, random: &mut Random) -> Tensor {
        let mut tensor = Tensor::zeros(ty);
        for (i, x) in tensor.data.iter_mut().enumerate() {
            *x = match self {
                Fill::Real => random.within(-1.0, 1.0),
                Fill::Wide => random.within(-9.0, 9.0),
                Fill::Positive => random.within(0.5, 1.5),
                Fill::Below(limit) => random.below(*limit as usize) as f64,
                Fill::Labels(limit) => random.below(*limit as usize + 1) as f64 - 1.0,
                Fill::Within(low, high) => random.within(*low, *high),
                Fill::Whole(low, high) => f64::from(*low) + random.below((high - low + 1) as usize) as f64,
                Fill::Values(values) => values[i],
            };
        }
        tensor
    }
}

/// A graph whose last node is the op in question. Operands that the op has a gradient for are weights; results are
/// named `out`, `out.1`, ...
#[derive(Clone, Debug)]
pub struct Sample {
    /// What is special about it, for messages.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// How each declared tensor is filled, in the order of declaration.
    pub fills: Vec<Fill>,
    /// A weight of which only these columns are trained, and the indices of the columns.
    pub columns: Option<(Value, Value)>,
}

impl Sample {
    /// The op in question.
    pub fn op(&self) -> Op {
        self.graph.nodes.last().expect("a sample has a node").op
    }

    /// Contents of the declared tensors, in the order of declaration.
    pub fn contents(&self, seed: u64) -> Vec<Tensor> {
        let mut random = Random::new(seed);
        let declared = self.graph.values.iter().filter(|v| v.decl.is_some());
        declared.zip(&self.fills).map(|(v, fill)| fill.tensor(&v.ty, &mut random)).collect()
    }
}

/// The sizes that a family of samples is made for.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Packed rows of a micro-batch, or images.
    pub rows: u32,
    /// Tokens a packed row, or the side of an image.
    pub t: u32,
    /// Inputs, features, channels.
    pub k: u32,
    /// Outputs, classes, output channels.
    pub n: u32,
}

impl Size {
    /// Tokens of a micro-batch.
    pub fn tokens(self) -> u32 {
        self.rows * self.t
    }
}

/// A size.
pub const fn size(rows: u32, t: u32, k: u32, n: u32) -> Size {
    Size { rows, t, k, n }
}

/// Samples small enough for finite differences; empty when nobody wrote any.
pub fn samples(op: Op) -> Vec<Sample> {
    const SMALL: [Size; 3] = [size(1, 3, 4, 5), size(2, 3, 2, 3), size(3, 1, 6, 1)];
    SMALL.iter().flat_map(|&z| family(op, z)).collect()
}

/// Samples at the lengths where vector and tile loops have their ends.
pub fn edges(op: Op) -> Vec<Sample> {
    const EDGES: [Size; 9] = [
        size(1, 1, 1, 1),
        size(1, 15, 16, 17),
        size(1, 16, 17, 15),
        size(2, 17, 15, 16),
        size(1, 33, 64, 65),
        size(1, 64, 65, 33),
        size(2, 7, 33, 64),
        size(3, 5, 128, 96),
        size(1, 65, 31, 129),
    ];
    EDGES.iter().flat_map(|&z| family(op, z)).collect()
}

/// All samples of an op at one size: those that a family lists, or else those that follow from its row.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    let families = [dense::family, tokens::family, image::family, int8::family];
    let listed: Vec<Sample> = families.iter().flat_map(|family| family(op, z)).collect();
    if listed.is_empty() { like::family(op, z) } else { listed }
}

/// Writes the graph of a sample.
pub struct Maker {
    graph: Graph,
    fills: Vec<Fill>,
}

impl Maker {
    fn declare(&mut self, kind: Kind, ty: Type, fill: Fill) -> Value {
        let name = format!("{}{}", kind.word(), self.fills.len());
        self.fills.push(fill);
        self.graph.declare(kind, &name, ty)
    }

    /// An operand with a gradient.
    pub fn real(&mut self, shape: &[u32]) -> Value {
        self.declare(Kind::Weight, Type::f32(shape), Fill::Real)
    }

    /// An operand with a gradient, of values far from 0 too.
    pub fn wide(&mut self, shape: &[u32]) -> Value {
        self.declare(Kind::Weight, Type::f32(shape), Fill::Wide)
    }

    /// An operand of any type with a gradient.
    pub fn trained(&mut self, ty: Type, fill: Fill) -> Value {
        self.declare(Kind::Weight, ty, fill)
    }

    /// A float operand without a gradient.
    pub fn given(&mut self, shape: &[u32], fill: Fill) -> Value {
        self.declare(Kind::Input, Type::f32(shape), fill)
    }

    /// Indices, labels, positions.
    pub fn ints(&mut self, len: u32, fill: Fill) -> Value {
        self.declare(Kind::Input, Type::i32(&[len]), fill)
    }

    /// Something the op may change.
    pub fn state(&mut self, ty: Type, fill: Fill) -> Value {
        self.declare(Kind::State, ty, fill)
    }

    /// An input of any type.
    pub fn input(&mut self, ty: Type, fill: Fill) -> Value {
        self.declare(Kind::Input, ty, fill)
    }

    /// A node before the one in question.
    pub fn node(&mut self, name: &str, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Vec<Value> {
        Builder::new(&mut self.graph).push(name, op, args, attrs)
    }
}

/// A sample of one op, whose operands `args` declares.
pub fn one(op: Op, z: Size, attrs: &[(&str, Attr)], args: impl FnOnce(&mut Maker) -> Vec<Value>) -> Sample {
    let mut maker = Maker { graph: Graph::new(z.rows), fills: Vec::new() };
    let args = args(&mut maker);
    let Maker { mut graph, fills } = maker;
    let outs = Builder::new(&mut graph).push("out", op, &args, attrs);
    for out in outs {
        graph.results.push((graph.info(out).name.clone(), out));
    }
    let tys: Vec<String> = graph.types(&args).iter().map(Type::to_string).collect();
    let attrs: Vec<String> = attrs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let name = format!("{} {} {{{}}} rows={}", op.name(), tys.join(" "), attrs.join(", "), z.rows);
    Sample { name, graph, fills, columns: None }
}
