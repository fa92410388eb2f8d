//! What a TFLite file says: tensors, operators and where weights lie, by the field numbers of its schema.
//!
//! Invariant: every tensor index of a parsed [`File`] names one of its tensors, and every data range lies inside the
//! file. Not for meaning: which operators and quantisations make a model is decided in [`super::ops`].
//! Source: the TensorFlow Lite schema, version 3 (file identifier `TFL3`).

use super::super::int8::Int8Error;
use super::flat::{Field, Flat, Table};

type Result<T> = std::result::Result<T, Int8Error>;

/// The identifier in bytes 4 to 8.
const IDENTIFIER: &[u8] = b"TFL3";
/// A code above this is written in the wider field.
const WIDE_CODE: i32 = 127;

mod model {
    use super::Field;
    pub const VERSION: Field = Field(0, "version");
    pub const OPERATOR_CODES: Field = Field(1, "operator_codes");
    pub const SUBGRAPHS: Field = Field(2, "subgraphs");
    pub const BUFFERS: Field = Field(4, "buffers");
}
mod code {
    use super::Field;
    pub const DEPRECATED: Field = Field(0, "deprecated_builtin_code");
    pub const CUSTOM: Field = Field(1, "custom_code");
    pub const BUILTIN: Field = Field(3, "builtin_code");
}
mod subgraph {
    use super::Field;
    pub const TENSORS: Field = Field(0, "tensors");
    pub const INPUTS: Field = Field(1, "inputs");
    pub const OUTPUTS: Field = Field(2, "outputs");
    pub const OPERATORS: Field = Field(3, "operators");
}
mod tensor {
    use super::Field;
    pub const SHAPE: Field = Field(0, "shape");
    pub const TYPE: Field = Field(1, "type");
    pub const BUFFER: Field = Field(2, "buffer");
    pub const NAME: Field = Field(3, "name");
    pub const QUANTIZATION: Field = Field(4, "quantization");
    pub const SPARSITY: Field = Field(6, "sparsity");
}
mod quantization {
    use super::Field;
    pub const SCALE: Field = Field(2, "scale");
    pub const ZERO_POINT: Field = Field(3, "zero_point");
}
mod operator {
    use super::Field;
    pub const OPCODE: Field = Field(0, "opcode_index");
    pub const INPUTS: Field = Field(1, "inputs");
    pub const OUTPUTS: Field = Field(2, "outputs");
    pub const OPTIONS: Field = Field(4, "builtin_options");
}
mod buffer {
    use super::Field;
    pub const DATA: Field = Field(0, "data");
    pub const OFFSET: Field = Field(1, "offset");
    pub const SIZE: Field = Field(2, "size");
}

/// The types that matter here, with their codes and names.
const TYPES: [(i8, TensorType, &str); 6] = [
    (0, TensorType::F32, "f32"),
    (1, TensorType::F16, "f16"),
    (2, TensorType::I32, "i32"),
    (3, TensorType::U8, "u8"),
    (4, TensorType::I64, "i64"),
    (9, TensorType::I8, "i8"),
];

/// How a tensor's elements are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TensorType {
    F32,
    F16,
    I32,
    U8,
    I64,
    I8,
    /// A type that no operator here takes, by its code.
    Other(i8),
}

impl TensorType {
    fn of(code: i8) -> TensorType {
        TYPES.iter().find(|row| row.0 == code).map_or(TensorType::Other(code), |row| row.1)
    }

    /// The name in messages.
    pub fn name(self) -> String {
        match (self, TYPES.iter().find(|row| row.1 == self)) {
            (_, Some(row)) => row.2.to_owned(),
            (TensorType::Other(7), _) => "i16".to_owned(),
            (TensorType::Other(code), _) => format!("type {code}"),
            _ => String::new(),
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, TensorType::F32 | TensorType::F16)
    }
}

/// Where bytes of the file lie.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// A tensor as the file describes it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name; may be empty or shared.
    pub name: String,
    /// Storage type.
    pub ty: TensorType,
    /// Extents as written: negative or zero ones are refused where the tensor is used.
    pub shape: Vec<i32>,
    /// Its contents, where it is constant.
    pub data: Option<Range>,
    /// Scales: none, one, or one a channel.
    pub scales: Vec<f32>,
    /// Zero points: none, one, or one a channel.
    pub zeros: Vec<i64>,
    /// Whether the contents are stored sparse.
    pub is_sparse: bool,
}

/// An operator as the file describes it.
pub struct Operator<'a> {
    /// Its code in the schema.
    pub code: i32,
    /// Name of a custom operator, empty for others.
    pub custom: String,
    /// Operands; `None` where an optional one is absent.
    pub inputs: Vec<Option<usize>>,
    /// Results.
    pub outputs: Vec<usize>,
    /// Its numbers.
    pub options: Option<Table<'a>>,
}

/// The first subgraph of a file.
pub struct File<'a> {
    /// Tensors.
    pub tensors: Vec<Tensor>,
    /// Operators, in order.
    pub operators: Vec<Operator<'a>>,
    /// Tensors that are given.
    pub inputs: Vec<usize>,
    /// Tensors that are wanted.
    pub outputs: Vec<usize>,
}

/// Reads a file's tables.
pub fn read<'a>(flat: &'a Flat<'a>, bytes: &[u8]) -> Result<File<'a>> {
    if bytes.get(4..8) != Some(IDENTIFIER) {
        return Err(Int8Error::NotTflite { file_bytes: bytes.len() as u64 });
    }
    let root = flat.root()?;
    let version = root.u32(model::VERSION)?;
    if version != 3 {
        return Err(Int8Error::Damaged { what: "version".into(), detail: format!("it is {version}, must be 3") });
    }
    let buffers = root.tables(model::BUFFERS)?;
    let buffers = buffers.iter().map(|b| buffer_range(b, flat.len())).collect::<Result<Vec<_>>>()?;
    let codes = root.tables(model::OPERATOR_CODES)?;
    let codes = codes.iter().map(operator_code).collect::<Result<Vec<_>>>()?;
    let Some(graph) = root.tables(model::SUBGRAPHS)?.into_iter().next() else {
        return Err(Int8Error::Damaged { what: "subgraphs".into(), detail: "there is none".into() });
    };
    let tensors = graph.tables(subgraph::TENSORS)?;
    let tensors = tensors.iter().map(|t| read_tensor(t, &buffers)).collect::<Result<Vec<_>>>()?;
    let operators = graph.tables(subgraph::OPERATORS)?;
    let operators =
        operators.iter().map(|op| read_operator(op, flat, &codes, tensors.len())).collect::<Result<Vec<_>>>()?;
    let inputs = indices(&graph, subgraph::INPUTS, tensors.len())?;
    let outputs = indices(&graph, subgraph::OUTPUTS, tensors.len())?;
    Ok(File { tensors, operators, inputs, outputs })
}

/// Where a buffer's bytes lie: inside the tables, or behind them in files that grew past the reach of offsets.
fn buffer_range(buffer: &Table, file_bytes: u64) -> Result<Option<Range>> {
    if let Some(data) = buffer.data(buffer::DATA)? {
        return Ok((!data.bytes.is_empty()).then_some(Range { offset: data.at as u64, bytes: data.bytes.len() as u64 }));
    }
    // Offsets 0 and 1 mean that there is none.
    let (offset, bytes) = (buffer.u64(buffer::OFFSET)?, buffer.u64(buffer::SIZE)?);
    if offset <= 1 {
        return Ok(None);
    }
    if offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
        let detail = format!("{bytes} bytes at byte {offset} are wanted, the file has {file_bytes}");
        return Err(Int8Error::Damaged { what: "buffer".into(), detail });
    }
    Ok((bytes > 0).then_some(Range { offset, bytes }))
}

fn operator_code(table: &Table) -> Result<(i32, String)> {
    let narrow = i32::from(table.i8(code::DEPRECATED, 0)?);
    let wide = table.i32(code::BUILTIN, 0)?;
    // Old files have the narrow field alone; new ones repeat small codes in both and cap the narrow one.
    let code = if narrow < WIDE_CODE { narrow.max(wide) } else { wide };
    Ok((code, table.string(code::CUSTOM)?))
}

fn read_tensor(table: &Table, buffers: &[Option<Range>]) -> Result<Tensor> {
    let name = table.string(tensor::NAME)?;
    let at = table.u32(tensor::BUFFER)? as usize;
    let Some(&data) = buffers.get(at) else {
        let detail = format!("tensor `{name}` names buffer {at} of {}", buffers.len());
        return Err(Int8Error::Damaged { what: "buffer".into(), detail });
    };
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    if let Some(q) = table.table(tensor::QUANTIZATION)? {
        (scales, zeros) = (q.f32s(quantization::SCALE)?, q.i64s(quantization::ZERO_POINT)?);
    }
    let (shape, ty) = (table.i32s(tensor::SHAPE)?, TensorType::of(table.i8(tensor::TYPE, 0)?));
    let is_sparse = table.table(tensor::SPARSITY)?.is_some();
    Ok(Tensor { name, ty, shape, data, scales, zeros, is_sparse })
}

fn read_operator<'a>(
    table: &Table<'a>,
    flat: &'a Flat<'a>,
    codes: &[(i32, String)],
    tensors: usize,
) -> Result<Operator<'a>> {
    let at = table.u32(operator::OPCODE)? as usize;
    let Some((code, custom)) = codes.get(at) else {
        let detail = format!("an operator names code {at} of {}", codes.len());
        return Err(Int8Error::Damaged { what: "opcode_index".into(), detail });
    };
    flat.charge("custom_code", custom.len())?;
    let inputs = table.i32s(operator::INPUTS)?;
    let inputs = inputs.into_iter().map(|i| if i == -1 { Ok(None) } else { index(i, tensors, "inputs").map(Some) });
    Ok(Operator {
        code: *code,
        custom: custom.clone(),
        inputs: inputs.collect::<Result<_>>()?,
        outputs: indices(table, operator::OUTPUTS, tensors)?,
        options: table.table(operator::OPTIONS)?,
    })
}

fn indices(table: &Table, field: Field, tensors: usize) -> Result<Vec<usize>> {
    table.i32s(field)?.into_iter().map(|i| index(i, tensors, field.1)).collect()
}

fn index(i: i32, tensors: usize, what: &str) -> Result<usize> {
    usize::try_from(i).ok().filter(|&i| i < tensors).ok_or_else(|| Int8Error::Damaged {
        what: what.to_owned(),
        detail: format!("tensor {i} is named, there are {tensors}"),
    })
}
