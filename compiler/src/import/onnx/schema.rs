//! The messages of an ONNX file, as far as an importer reads them: nodes, constants, inputs and results.
//!
//! Fields that are not read are skipped. Field numbers are those of `onnx.proto`; they never change. Subgraphs inside
//! attributes are not looked into, so the depth is fixed.

use super::OnnxError;
use super::wire::{Span, Wire, append_ints, damaged};

type Result<T> = std::result::Result<T, OnnxError>;

/// Most nodes, and most constants.
const PARTS_MAX: usize = 1 << 14;
/// Most dimensions of a tensor.
const RANK_MAX: usize = 8;

/// How a tensor's elements are stored: `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElemType(pub i64);

impl ElemType {
    /// 32-bit floats.
    pub const F32: ElemType = ElemType(1);
    /// 64-bit whole numbers.
    pub const I64: ElemType = ElemType(7);
    /// Names, and bytes an element, of those with whole bytes, in the order of their codes.
    const NAMES: [(&'static str, u64); 17] = [
        ("nothing", 0),
        ("f32", 4),
        ("u8", 1),
        ("i8", 1),
        ("u16", 2),
        ("i16", 2),
        ("i32", 4),
        ("i64", 8),
        ("string", 0),
        ("bool", 1),
        ("f16", 2),
        ("f64", 8),
        ("u32", 4),
        ("u64", 8),
        ("complex64", 8),
        ("complex128", 16),
        ("bf16", 2),
    ];

    fn row(self) -> (&'static str, u64) {
        usize::try_from(self.0).ok().and_then(|i| Self::NAMES.get(i).copied()).unwrap_or(("an unknown type", 0))
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bytes an element; 0 for those without a fixed number.
    pub fn bytes(self) -> u64 {
        self.row().1
    }
}

/// Where a constant's elements are.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<'a> {
    /// Little-endian elements, one after the other.
    Raw(Span<'a>),
    /// Floats in fields of their own.
    Floats(Vec<f32>),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// In another file.
    External {
        /// The file, relative to the model.
        location: &'a str,
        /// First byte.
        offset: u64,
        /// Bytes; `None` up to the file's end.
        bytes: Option<u64>,
    },
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its storage.
    pub ty: ElemType,
    /// Its dimensions.
    pub dims: Vec<u64>,
    /// Its elements.
    pub data: Data<'a>,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue<'a> {
    /// A real number.
    Float(f32),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(&'a str),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// Real numbers.
    Floats(Vec<f32>),
    /// A constant.
    Tensor(Box<Tensor<'a>>),
    /// Anything else.
    Other,
}

/// An operator applied to values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node<'a> {
    /// Its name, often empty.
    pub name: &'a str,
    /// The operator.
    pub op: &'a str,
    /// The operator's set; empty for ONNX's own.
    pub domain: &'a str,
    /// Values that are read; an empty name is an operand that is left out.
    pub inputs: Vec<&'a str>,
    /// Values that are given.
    pub outputs: Vec<&'a str>,
    /// Names and values.
    pub attrs: Vec<(&'a str, AttrValue<'a>)>,
}

/// What stands of an input: its name, storage, and dimensions, `None` where one is not a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueInfo<'a> {
    /// The name.
    pub name: &'a str,
    /// The storage; `None` where none is said.
    pub ty: Option<ElemType>,
    /// The dimensions; `None` where none are said.
    pub dims: Option<Vec<Option<i64>>>,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File<'a> {
    /// Who wrote it.
    pub producer: &'a str,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// The nodes, in order.
    pub nodes: Vec<Node<'a>>,
    /// The constants.
    pub constants: Vec<Tensor<'a>>,
    /// The inputs; in old files the constants as well.
    pub inputs: Vec<ValueInfo<'a>>,
    /// Names of the results.
    pub outputs: Vec<&'a str>,
}

fn bytes<'a>(value: Wire<'a>, what: &str) -> Result<Span<'a>> {
    match value {
        Wire::Bytes(span) => Ok(span),
        _ => Err(damaged(what, "it holds a number where bytes must stand".to_owned())),
    }
}

fn text<'a>(value: Wire<'a>, what: &str) -> Result<&'a str> {
    bytes(value, what)?.text(what)
}

fn int(value: Wire, what: &str) -> Result<i64> {
    match value {
        Wire::Varint(v) => Ok(v as i64),
        _ => Err(damaged(what, "it holds bytes where a number must stand".to_owned())),
    }
}

/// Reads a file's messages.
pub fn read(file: &[u8]) -> Result<File<'_>> {
    let (mut read, mut graph) = (File { opset: 0, ..File::default() }, None);
    for field in (Span { at: 0, bytes: file }).fields() {
        match field? {
            (2, value) => read.producer = text(value, "producer_name")?,
            (7, value) if graph.is_none() => graph = Some(bytes(value, "graph")?),
            (7, _) => return Err(damaged("graph", "there are two".to_owned())),
            (8, value) => {
                let (mut domain, mut version) = ("", 0);
                for field in bytes(value, "opset_import")?.fields() {
                    match field? {
                        (1, value) => domain = text(value, "opset_import")?,
                        (2, value) => version = int(value, "opset_import")?,
                        _ => {}
                    }
                }
                if domain.is_empty() || domain == "ai.onnx" {
                    read.opset = version;
                }
            }
            _ => {}
        }
    }
    let Some(graph) = graph else { return Err(OnnxError::NotOnnx { file_bytes: file.len() as u64 }) };
    read_graph(graph, &mut read)?;
    Ok(read)
}

fn read_graph<'a>(graph: Span<'a>, file: &mut File<'a>) -> Result<()> {
    for field in graph.fields() {
        match field? {
            (1, value) => file.nodes.push(read_node(bytes(value, "node")?)?),
            (5, value) => file.constants.push(read_tensor(bytes(value, "initializer")?)?),
            (11, value) => file.inputs.push(read_input(bytes(value, "input")?)?),
            (12, value) => file.outputs.push(read_input(bytes(value, "output")?)?.name),
            (15, _) => return Err(damaged("sparse_initializer", "sparse constants are not read".to_owned())),
            _ => {}
        }
        let parts = [file.nodes.len(), file.constants.len(), file.inputs.len(), file.outputs.len()];
        if parts.iter().any(|&n| n > PARTS_MAX) {
            return Err(damaged("graph", format!("it has more than {PARTS_MAX} nodes or constants")));
        }
    }
    Ok(())
}

fn read_node(node: Span<'_>) -> Result<Node<'_>> {
    let mut read = Node::default();
    for field in node.fields() {
        match field? {
            (1, value) => read.inputs.push(text(value, "node.input")?),
            (2, value) => read.outputs.push(text(value, "node.output")?),
            (3, value) => read.name = text(value, "node.name")?,
            (4, value) => read.op = text(value, "node.op_type")?,
            (5, value) => read.attrs.push(read_attr(bytes(value, "node.attribute")?)?),
            (7, value) => read.domain = text(value, "node.domain")?,
            _ => {}
        }
    }
    Ok(read)
}

fn read_attr(attr: Span<'_>) -> Result<(&str, AttrValue<'_>)> {
    let (mut name, mut value, mut kind) = ("", AttrValue::Other, 0);
    let (mut ints, mut floats) = (Vec::new(), Vec::new());
    for field in attr.fields() {
        match field? {
            (1, v) => name = text(v, "attribute.name")?,
            (2, Wire::Word(word)) => value = AttrValue::Float(f32::from_le_bytes(word)),
            (3, v) => value = AttrValue::Int(int(v, "attribute.i")?),
            // A text that is not UTF-8 is none that is asked for.
            (4, v) => value = AttrValue::Text(text(v, "attribute.s").unwrap_or_default()),
            (5, v) => value = AttrValue::Tensor(Box::new(read_tensor(bytes(v, "attribute.t")?)?)),
            (7, v) => append_floats(&mut floats, v, "attribute.floats")?,
            (8, v) => append_ints(&mut ints, v, "attribute.ints")?,
            (20, v) => kind = int(v, "attribute.type")?,
            _ => {}
        }
    }
    match kind {
        // A writer may leave fields out that hold 0.
        1 if value == AttrValue::Other => value = AttrValue::Float(0.0),
        2 if value == AttrValue::Other => value = AttrValue::Int(0),
        6 => value = AttrValue::Floats(floats),
        7 => value = AttrValue::Ints(ints),
        0 if !ints.is_empty() => value = AttrValue::Ints(ints),
        _ => {}
    }
    Ok((name, value))
}

fn append_floats(to: &mut Vec<f32>, value: Wire, what: &str) -> Result<()> {
    match value {
        Wire::Word(word) => to.push(f32::from_le_bytes(word)),
        Wire::Bytes(span) if span.bytes.len().is_multiple_of(4) => {
            to.extend(span.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        _ => return Err(damaged(what, "it is no list of floats".to_owned())),
    }
    Ok(())
}

/// What stands of a tensor's elements before it is known which of the ways it is.
#[derive(Default)]
struct Found<'a> {
    raw: Option<Span<'a>>,
    /// The packed floats, as long as there is one list of them.
    packed: Option<Span<'a>>,
    floats: Vec<f32>,
    ints: Vec<i64>,
    doubles: Option<Span<'a>>,
    external: Vec<(&'a str, &'a str)>,
    is_external: bool,
}

fn read_tensor(tensor: Span<'_>) -> Result<Tensor<'_>> {
    let (mut name, mut ty, mut dims, mut found) = ("", ElemType(0), Vec::new(), Found::default());
    for field in tensor.fields() {
        match field? {
            (1, value) => append_ints(&mut dims, value, "tensor.dims")?,
            (2, value) => ty = ElemType(int(value, "tensor.data_type")?),
            (4, Wire::Bytes(span)) if found.packed.is_none() && found.floats.is_empty() => found.packed = Some(span),
            (4, value) => {
                if let Some(before) = found.packed.take() {
                    append_floats(&mut found.floats, Wire::Bytes(before), "tensor.float_data")?;
                }
                append_floats(&mut found.floats, value, "tensor.float_data")?;
            }
            (5 | 7, value) => append_ints(&mut found.ints, value, "tensor.int_data")?,
            (8, value) => name = text(value, "tensor.name")?,
            (9, value) => found.raw = Some(bytes(value, "tensor.raw_data")?),
            (10, Wire::Bytes(span)) => found.doubles = Some(span),
            (13, value) => found.external.push(read_entry(bytes(value, "tensor.external_data")?)?),
            (14, value) => found.is_external = int(value, "tensor.data_location")? == 1,
            _ => {}
        }
        if dims.len() > RANK_MAX {
            return Err(damaged("tensor.dims", format!("there are more than {RANK_MAX}")));
        }
    }
    let dims = dims.into_iter().map(u64::try_from).collect::<std::result::Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| damaged("tensor.dims", format!("one of `{}` is negative", short(name))))?;
    let data = found.data(name, ty)?;
    let tensor = Tensor { name, ty, dims, data };
    tensor.check()?;
    Ok(tensor)
}

fn read_entry(entry: Span<'_>) -> Result<(&str, &str)> {
    let (mut key, mut value) = ("", "");
    for field in entry.fields() {
        match field? {
            (1, v) => key = text(v, "external_data.key")?,
            (2, v) => value = text(v, "external_data.value")?,
            _ => {}
        }
    }
    Ok((key, value))
}

impl<'a> Found<'a> {
    fn data(self, name: &str, ty: ElemType) -> Result<Data<'a>> {
        if self.is_external {
            let get = |key: &str| self.external.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
            let number = |key: &str| match get(key).map(str::parse::<u64>) {
                None => Ok(None),
                Some(Ok(n)) => Ok(Some(n)),
                Some(Err(_)) => Err(damaged("external_data", format!("the {key} of `{}` is no number", short(name)))),
            };
            let Some(location) = get("location") else {
                return Err(damaged("external_data", format!("`{}` has no location", short(name))));
            };
            return Ok(Data::External { location, offset: number("offset")?.unwrap_or(0), bytes: number("length")? });
        }
        Ok(match (self.raw, self.packed.or(self.doubles)) {
            (Some(raw), _) => Data::Raw(raw),
            (None, Some(packed)) => Data::Raw(packed),
            (None, None) if ty == ElemType::F32 => Data::Floats(self.floats),
            (None, None) => Data::Ints(self.ints),
        })
    }
}

impl Tensor<'_> {
    /// Elements that the dimensions say; `None` when they are too many to count.
    pub fn elems(&self) -> Option<u64> {
        crate::import::source::checked_elems(&self.dims)
    }

    /// Refuses data that are not as long as the dimensions say. External data are looked at where their file is known.
    fn check(&self) -> Result<()> {
        let elems = self.elems();
        let (have, unit) = match &self.data {
            Data::Raw(span) if self.ty.bytes() == 0 => return Err(self.wrong(format!("{} bytes", span.bytes.len()))),
            Data::Raw(span) => (span.bytes.len() as u64, self.ty.bytes()),
            Data::Floats(floats) => (floats.len() as u64, 1),
            // Whole numbers, and narrow floats by their bits, which nothing reads.
            Data::Ints(ints) => (ints.len() as u64, 1),
            Data::External { .. } => return Ok(()),
        };
        if elems.and_then(|n| n.checked_mul(unit)) == Some(have) {
            return Ok(());
        }
        let what = if unit == 1 { "elements" } else { "bytes" };
        Err(self.wrong(format!("{have} {what}")))
    }

    fn wrong(&self, have: String) -> OnnxError {
        let detail = format!("`{}` is {}{:?} and has {have}", short(self.name), self.ty.name(), self.dims);
        damaged("tensor", detail)
    }
}

fn read_input(info: Span<'_>) -> Result<ValueInfo<'_>> {
    let (mut read, mut ty) = (ValueInfo::default(), None);
    for field in info.fields() {
        match field? {
            (1, value) => read.name = text(value, "input.name")?,
            (2, value) => ty = Some(bytes(value, "input.type")?),
            _ => {}
        }
    }
    for field in ty.into_iter().flat_map(Span::fields) {
        let (1, value) = field? else { continue };
        for field in bytes(value, "tensor_type")?.fields() {
            match field? {
                (1, value) => read.ty = Some(ElemType(int(value, "elem_type")?)),
                (2, value) => read.dims = Some(read_shape(bytes(value, "shape")?)?),
                _ => {}
            }
        }
    }
    Ok(read)
}

fn read_shape(shape: Span<'_>) -> Result<Vec<Option<i64>>> {
    let mut dims = Vec::new();
    for field in shape.fields() {
        let (1, value) = field? else { continue };
        let mut dim = None;
        for field in bytes(value, "shape.dim")?.fields() {
            if let (1, value) = field? {
                dim = Some(int(value, "dim_value")?);
            }
        }
        dims.push(dim);
        if dims.len() > RANK_MAX {
            return Err(damaged("shape", format!("there are more than {RANK_MAX} dimensions")));
        }
    }
    Ok(dims)
}

/// The start of a name, for messages.
pub fn short(name: &str) -> String {
    name.chars().take(60).collect()
}
