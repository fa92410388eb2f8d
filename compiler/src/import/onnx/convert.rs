//! What the operators have in common: values by name, constants, layers' names, and the model around them.

use std::collections::{HashMap, HashSet};

use tinyforge_plan::{DType, Source};

use super::model::{FloatModel, numbers};
use super::ops::{OPERATORS, Read};
use super::schema::{AttrValue, Data, ElemType, File, Node, Tensor, short};
use super::wire::damaged;
use super::{OnnxError, ops};
use crate::import::int8::Refusal;
use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Builder, Graph, Kind, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::ir::verify::check_type;

/// Why one operator cannot be taken.
pub(super) type Refused<T> = Result<T, Stop>;

/// Why an operator gives no op.
pub(super) enum Stop {
    /// Not supported, and why.
    Why(String),
    /// An operand's own operator was refused already.
    Cascade,
    /// The file is wrong, whatever is supported.
    Error(OnnxError),
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Why(why)
    }
}

impl From<&str> for Stop {
    fn from(why: &str) -> Stop {
        Stop::Why(why.to_owned())
    }
}

/// Elements of constants that are looked at while the graph is read: shapes, limits, factors a channel.
const LOOKED_AT_MAX: u64 = 1 << 16;
/// Elements of constants that are copied, for every byte of the file.
const COPIES_PER_BYTE: u64 = 4;

/// What a name of the file stands for.
#[derive(Clone, Copy)]
pub(super) enum Held<'a> {
    /// A value of the program.
    Value(Value),
    /// An image with zeros around it: above, left, below, right. Convolutions take them as padding.
    Padded(Value, [u32; 4]),
    /// An image whose dimensions stand as `[B,H,W,C]` in the file.
    ChannelsLast(Value),
    /// A constant.
    Constant(&'a Tensor<'a>),
}

/// A reader's state.
pub(super) struct Converter<'a> {
    /// Version of the operators.
    pub(super) opset: i64,
    /// The program so far.
    pub(super) builder: Builder<'a>,
    /// Images at a time, and what the file has for it where it says a number.
    pub(super) batch: u32,
    pub(super) file_batch: Option<i64>,
    held: HashMap<&'a str, Held<'a>>,
    refused: HashSet<&'a str>,
    sources: HashMap<String, Source>,
    asked: HashMap<String, u32>,
    files: Vec<String>,
    len_of: &'a dyn Fn(&str) -> Option<u64>,
    /// Elements that may still be copied: many nodes may name one constant.
    copies_left: u64,
    layers: u32,
    notes: Vec<String>,
}

/// Makes a model of a file's messages.
pub fn convert(
    file: &File,
    file_name: &str,
    file_bytes: u64,
    len_of: &dyn Fn(&str) -> Option<u64>,
    batch: u32,
) -> Result<FloatModel, OnnxError> {
    let mut graph = Graph::new(batch);
    let mut c = Converter {
        opset: file.opset,
        builder: Builder::new(&mut graph),
        batch,
        file_batch: None,
        held: HashMap::new(),
        refused: HashSet::new(),
        sources: HashMap::new(),
        asked: HashMap::new(),
        files: vec![file_name.to_owned()],
        len_of,
        copies_left: file_bytes.saturating_mul(COPIES_PER_BYTE).saturating_add(1 << 16),
        layers: 0,
        notes: Vec::new(),
    };
    for constant in &file.constants {
        c.held.insert(constant.name, Held::Constant(constant));
    }
    let refuse = |layer: &str, why: String| OnnxError::Unsupported(vec![Refusal { layer: layer.to_owned(), why }]);
    let shape = match c.input(file) {
        Ok(shape) => shape,
        Err(why) => {
            // Nothing can be said of shapes, but what no op stands for can be told already.
            let unknown = file.nodes.iter().enumerate().filter(|(_, node)| row_of(node).is_none());
            let others = unknown.map(|(at, node)| Refusal { layer: describe(at, node), why: UNKNOWN.to_owned() });
            let input = Refusal { layer: "the input".to_owned(), why };
            return Err(OnnxError::Unsupported([input].into_iter().chain(others).collect()));
        }
    };
    let mut refusals = Vec::new();
    for (at, node) in file.nodes.iter().enumerate() {
        match c.node(node) {
            Ok(()) => {}
            Err(stop) => {
                c.refused.extend(node.outputs.iter().copied());
                match stop {
                    Stop::Why(why) => refusals.push(Refusal { layer: describe(at, node), why }),
                    Stop::Cascade => {}
                    Stop::Error(error) => return Err(error),
                }
            }
        }
    }
    if !refusals.is_empty() {
        return Err(OnnxError::Unsupported(refusals));
    }
    let output = c.output(file).map_err(|why| refuse("the result", why))?;
    let Converter { sources, files, notes, .. } = c;
    graph.results.push(("output".to_owned(), output));
    graph.sweep(|info| info.decl == Some(Kind::Input));
    Ok(FloatModel { graph, files, shape, notes, sources })
}

/// Why an operator that is not in the table is refused.
const UNKNOWN: &str = "no op stands for it";

/// How a node is read.
fn row_of(node: &Node) -> Option<Read> {
    let is_own = node.domain.is_empty() || node.domain == "ai.onnx";
    OPERATORS.iter().find(|row| is_own && row.0 == node.op).map(|row| row.1)
}

/// A node in words: operator, place and name.
fn describe(at: usize, node: &Node) -> String {
    let name = if node.name.is_empty() { node.outputs.first().copied().unwrap_or("") } else { node.name };
    let set = if node.domain.is_empty() { String::new() } else { format!("{}.", short(node.domain)) };
    format!("node {at} ({set}{} `{}`)", short(node.op), short(name))
}

impl<'a> Converter<'a> {
    /// Declares the input: one image, or vector, of known size. Height, width, channels.
    fn input(&mut self, file: &'a File<'a>) -> Result<[u32; 3], String> {
        let given: Vec<_> = file.inputs.iter().filter(|i| !self.held.contains_key(i.name)).collect();
        let &[input] = &given[..] else {
            return Err(format!("there are {} inputs, one is taken", given.len()));
        };
        if input.ty.is_some_and(|ty| ty != ElemType::F32) {
            return Err(format!("it is {}, f32 is taken", input.ty.map_or("", ElemType::name)));
        }
        let dims = input.dims.as_deref().unwrap_or_default();
        let Some((&batch, rest)) = dims.split_first().filter(|(_, rest)| [1, 3].contains(&rest.len())) else {
            return Err(format!("it has {} dimensions; images [N,C,H,W] or vectors [N,F] are taken", dims.len()));
        };
        let mut lens = Vec::new();
        for (i, dim) in rest.iter().enumerate() {
            match dim.and_then(|d| u32::try_from(d).ok()).filter(|&d| d > 0) {
                Some(len) => lens.push(len),
                None => {
                    return Err(format!("dimension {} is not a number: export the model for one image size", i + 1));
                }
            }
        }
        self.file_batch = batch;
        let mut readers = file.nodes.iter().filter(|n| n.inputs.contains(&input.name)).peekable();
        let is_last = readers.peek().is_some() && readers.all(|n| ops::permutation(n) == Some(&[0, 3, 1, 2]));
        let (shape, image) = match lens[..] {
            [h, w, c] if is_last => ([h, w, c], vec![self.batch, c, h, w]),
            [c, h, w] => ([h, w, c], vec![self.batch, c, h, w]),
            _ => ([1, 1, lens[0]], vec![self.batch, lens[0]]),
        };
        let ty = Type::f32(&image);
        check_type(&ty)?;
        let v = self.builder.declare(Kind::Input, "images", ty);
        self.held.insert(input.name, if is_last { Held::ChannelsLast(v) } else { Held::Value(v) });
        Ok(shape)
    }

    fn output(&self, file: &File) -> Result<Value, String> {
        let &[wanted] = &file.outputs[..] else {
            return Err(format!("there are {} results, one is taken", file.outputs.len()));
        };
        match self.held.get(wanted) {
            Some(&Held::Value(v)) if self.builder.graph.info(v).decl.is_none() => Ok(v),
            _ => Err(format!("no node computes `{}`", short(wanted))),
        }
    }

    fn node(&mut self, node: &'a Node<'a>) -> Refused<()> {
        match row_of(node) {
            Some(read) => read(self, node),
            None => Err(UNKNOWN.into()),
        }
    }

    /// What operand `i` is.
    pub(super) fn held(&self, node: &Node<'a>, i: usize) -> Refused<Held<'a>> {
        let name = node.inputs.get(i).copied().unwrap_or("");
        match self.held.get(name) {
            Some(&held) => Ok(held),
            None if name.is_empty() => Err(format!("operand {i} is missing").into()),
            None if self.refused.contains(name) => Err(Stop::Cascade),
            None => Err(Stop::Error(damaged(
                "node.input",
                format!("`{}` is read, which nothing before gives; nodes must stand in order", short(name)),
            ))),
        }
    }

    /// Whether operand `i` is there.
    pub(super) fn has(node: &Node, i: usize) -> bool {
        node.inputs.get(i).is_some_and(|name| !name.is_empty())
    }

    /// Operand `i` as a value of the program.
    pub(super) fn value(&self, node: &Node<'a>, i: usize) -> Refused<Value> {
        match self.held(node, i)? {
            Held::Value(v) => Ok(v),
            Held::Padded(..) => Err("padding stands before it; only convolutions take padding".into()),
            Held::ChannelsLast(_) => Err("its operand has the channels last; only images [N,C,H,W] are taken".into()),
            Held::Constant(t) => Err(format!("operand {i} (`{}`) is constant", short(t.name)).into()),
        }
    }

    /// Operand `i` as an image: its value and `[B,C,H,W]`.
    pub(super) fn image(&self, node: &Node<'a>, i: usize) -> Refused<(Value, [u32; 4])> {
        let v = self.value(node, i)?;
        Ok((v, self.image_dims(v)?))
    }

    pub(super) fn image_dims(&self, v: Value) -> Refused<[u32; 4]> {
        let ty = self.builder.graph.ty(v);
        ty.shape[..].try_into().map_err(|_| format!("it reads {ty}; images [N,C,H,W] are taken").into())
    }

    /// Operand `i` as a constant.
    pub(super) fn constant(&self, node: &Node<'a>, i: usize) -> Refused<&'a Tensor<'a>> {
        match self.held(node, i)? {
            Held::Constant(tensor) => Ok(tensor),
            _ => Err(format!("operand {i} is computed; a constant is taken").into()),
        }
    }

    /// The name of the result says what it holds.
    pub(super) fn hold(&mut self, node: &Node<'a>, held: Held<'a>) -> Refused<()> {
        let name = node.outputs.first().copied().unwrap_or("");
        if name.is_empty() || self.held.insert(name, held).is_some() {
            let detail = format!("`{}` is given twice, or has no name", short(name));
            return Err(Stop::Error(damaged("node.output", detail)));
        }
        Ok(())
    }

    /// Appends an op, whose shape rule may refuse it, and returns its result.
    pub(super) fn push(&mut self, name: &str, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Refused<Value> {
        let def = op.def();
        let tys = (def.infer)(&self.builder.graph.types(args), &Attrs::of(def.attrs, attrs))?;
        tys.iter().try_for_each(check_type)?;
        Ok(self.builder.push1(name, op, args, attrs))
    }

    /// Appends an op whose result the node gives.
    pub(super) fn give(&mut self, node: &Node<'a>, name: &str, op: Op, args: &[Value]) -> Refused<()> {
        let v = self.push(name, op, args, &[])?;
        self.hold(node, Held::Value(v))
    }

    /// Opens the next layer with weights and returns its name.
    pub(super) fn next_layer(&mut self) -> String {
        let name = format!("layers.{}", self.layers);
        self.layers += 1;
        let block = self.builder.graph.block(&name);
        self.builder.at(block, Region::Forward);
        name
    }

    /// The name of the layer that is being built on.
    pub(super) fn layer(&self) -> String {
        format!("layers.{}", self.layers.saturating_sub(1))
    }

    /// A remark for the user.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Declares a weight that a constant holds, in this shape; `transpose` where the file holds the transpose.
    pub(super) fn weight(&mut self, name: &str, t: &Tensor, shape: &[u32], transpose: bool) -> Refused<Value> {
        let ty = Type::f32(shape);
        check_type(&ty)?;
        if t.elems() != Some(ty.elems()) {
            return Err(format!("`{}` is {:?}, must hold {ty}", short(t.name), t.dims).into());
        }
        let source = match &t.data {
            Data::Floats(values) => {
                self.charge(values.len() as u64)?;
                Source::Table(values.clone())
            }
            Data::Raw(span) => Source::File { file: 0, offset: span.at as u64, dtype: self.dtype(t)?, transpose },
            Data::External { .. } => self.external(t, transpose)?,
            Data::Ints(_) => return Err(format!("`{}` is {}, floats are taken", short(t.name), t.ty.name()).into()),
        };
        let source = match source {
            Source::Table(values) if transpose => Source::Table(transposed(&values, shape)),
            source => source,
        };
        Ok(self.declare(Kind::Weight, name, ty, source))
    }

    /// Declares a tensor under a name that is free.
    pub(super) fn declare(&mut self, kind: Kind, name: &str, ty: Type, source: Source) -> Value {
        // One name may be asked for by many nodes behind one layer.
        let times = self.asked.entry(name.to_owned()).or_insert(0);
        let name = if *times == 0 { name.to_owned() } else { format!("{name}.{times}") };
        *times += 1;
        self.sources.insert(name.clone(), source);
        self.builder.declare(kind, &name, ty)
    }

    fn dtype(&self, t: &Tensor) -> Refused<DType> {
        match t.ty.name() {
            "f32" => Ok(DType::F32),
            "f64" => Ok(DType::F64),
            "f16" => Ok(DType::F16),
            "bf16" => Ok(DType::BF16),
            other => Err(format!("`{}` is {other}, floats are taken", short(t.name)).into()),
        }
    }

    /// The place of a constant in another file, which lies below the model's folder.
    fn external(&mut self, t: &Tensor, transpose: bool) -> Refused<Source> {
        let Data::External { location, offset, bytes } = t.data else { return Err("it is not external".into()) };
        let dtype = self.dtype(t)?;
        let wanted = t.elems().and_then(|n| n.checked_mul(t.ty.bytes()));
        let is_inside = location.split(['/', '\\']).all(|part| !part.is_empty() && part != ".." && !part.contains(':'));
        let fail = |detail: String| Stop::Error(damaged("external_data", detail));
        if !is_inside {
            return Err(fail(format!("`{}` lies outside of the model's folder", short(location))));
        }
        let Some(len) = (self.len_of)(location) else {
            return Err(fail(format!("the file `{}` is not beside the model", short(location))));
        };
        let end = wanted.and_then(|n| offset.checked_add(n));
        if end.is_none_or(|end| end > len) || bytes.is_some_and(|b| Some(b) != wanted) {
            let detail = format!(
                "`{}` is {}{:?} at byte {offset} of `{}`, which has {len} bytes",
                short(t.name),
                t.ty.name(),
                t.dims,
                short(location)
            );
            return Err(fail(detail));
        }
        let file = match self.files[1..].iter().position(|f| f == location) {
            Some(i) => i + 1,
            None => {
                self.files.push(location.to_owned());
                self.files.len() - 1
            }
        };
        Ok(Source::File { file: file as u32, offset, dtype, transpose })
    }

    fn charge(&mut self, elems: u64) -> Refused<()> {
        let left = self.copies_left.checked_sub(elems);
        self.copies_left = left.ok_or_else(|| {
            let detail = "nodes read more constants than the file can hold".to_owned();
            Stop::Error(damaged("node.input", detail))
        })?;
        Ok(())
    }

    /// The numbers of a short constant.
    pub(super) fn floats(&mut self, t: &Tensor) -> Refused<Vec<f32>> {
        self.charge(t.elems().unwrap_or(u64::MAX).min(LOOKED_AT_MAX))?;
        match &t.data {
            _ if t.elems().is_none_or(|n| n > LOOKED_AT_MAX) => {
                Err(format!("`{}` is {:?}, a short list is taken", short(t.name), t.dims).into())
            }
            Data::Floats(values) => Ok(values.clone()),
            Data::Raw(span) => Ok(numbers(span.bytes, self.dtype(t)?).into_iter().map(|x| x as f32).collect()),
            _ => Err(format!("`{}` must be floats inside the file", short(t.name)).into()),
        }
    }

    /// The whole numbers of a short constant: a shape, axes, padding.
    pub(super) fn ints(&self, t: &Tensor) -> Refused<Vec<i64>> {
        match &t.data {
            Data::Ints(values) if values.len() <= 16 => Ok(values.clone()),
            Data::Raw(span) if t.ty == ElemType::I64 && span.bytes.len() <= 128 => {
                Ok(span.bytes.chunks_exact(8).map(|b| b.try_into().map_or(0, i64::from_le_bytes)).collect())
            }
            _ => Err(format!("`{}` is no short list of i64", short(t.name)).into()),
        }
    }

    /// The whole numbers of an operand or, in older files, of the attribute of this name.
    pub(super) fn list(&self, node: &Node<'a>, i: usize, attr: &str) -> Refused<Option<Vec<i64>>> {
        if Self::has(node, i) {
            return self.constant(node, i).and_then(|t| self.ints(t)).map(Some);
        }
        Ok(node.ints(attr).map(<[i64]>::to_vec))
    }
}

/// `values`, the transpose of `shape`, in its order.
fn transposed(values: &[f32], shape: &[u32]) -> Vec<f32> {
    let cols = shape.last().map_or(1, |&d| d as usize);
    let rows = values.len() / cols.max(1);
    (0..values.len()).map(|i| values[i % cols * rows + i / cols]).collect()
}

impl<'a> Node<'a> {
    fn attr(&self, name: &str) -> Option<&AttrValue<'a>> {
        self.attrs.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// A whole number, or what holds where none is written.
    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        if let Some(&AttrValue::Int(v)) = self.attr(name) { v } else { default }
    }

    /// A real number, likewise.
    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        if let Some(&AttrValue::Float(v)) = self.attr(name) { v } else { default }
    }

    /// A text, likewise.
    pub(super) fn text(&self, name: &str, default: &'a str) -> &'a str {
        if let Some(&AttrValue::Text(v)) = self.attr(name) { v } else { default }
    }

    /// Whole numbers, where they are written.
    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(AttrValue::Ints(v)) = self.attr(name) { Some(v) } else { None }
    }

    /// A constant.
    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        if let Some(AttrValue::Tensor(t)) = self.attr(name) { Some(t) } else { None }
    }
}
