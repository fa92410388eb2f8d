//! Lays out a new file.

use super::value::type_id;
use super::{Array, GGML_TYPES, GgufError, MAGIC, RANK_MAX, Value};
use crate::import::source::{FileLayout, NewTensor, TensorRef, checked_elems};

type Result<T> = std::result::Result<T, GgufError>;

/// Version of the files that are written.
const VERSION: u32 = 3;

/// Lays out a new file: metadata and tensor table in the order given, data aligned to `general.alignment` or 32.
///
/// Errors on repeated keys or names, on a storage type that GGML lacks, and on shapes that the format cannot hold.
pub fn layout(metadata: &[(String, Value)], tensors: &[NewTensor]) -> Result<FileLayout> {
    let map = metadata.iter().cloned().collect();
    let alignment = super::read::alignment(&map)?;
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (position, (key, value)) in metadata.iter().enumerate() {
        if metadata[..position].iter().any(|(other, _)| other == key) {
            return Err(GgufError::DuplicateKey { key: key.clone(), at: header.len() as u64 });
        }
        put_string(&mut header, key);
        header.extend(value.type_id().to_le_bytes());
        put_value(&mut header, value);
    }
    let mut placed = Vec::with_capacity(tensors.len());
    let mut end = 0u64;
    for tensor in tensors {
        let (id, bytes) = check(tensor)?;
        let offset = end;
        put_string(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for extent in tensor.shape.iter().rev() {
            header.extend(extent.to_le_bytes());
        }
        header.extend(id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        // Half the range is kept for the header and the rounding.
        let overflow = || GgufError::Shape { name: tensor.name.clone(), shape: tensor.shape.clone() };
        end = offset.checked_add(bytes).filter(|end| *end < u64::MAX / 2).ok_or_else(overflow)?;
        end = end.next_multiple_of(alignment);
        placed.push(TensorRef {
            name: tensor.name.clone(),
            file: 0,
            offset,
            bytes,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        });
    }
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    let data_start = header.len() as u64;
    for tensor in &mut placed {
        tensor.offset += data_start;
    }
    let layout = FileLayout { header, tensors: placed, file_bytes: data_start + end };
    // The reader's checks (names, alignment, overlap) hold for what is written, too.
    super::parse(&layout.header, layout.file_bytes)?;
    Ok(layout)
}

/// GGML's number of the storage type, and the tensor's length in bytes.
fn check(tensor: &NewTensor) -> Result<(u32, u64)> {
    let name = || tensor.name.clone();
    let rank = tensor.shape.len() as u32;
    if rank == 0 || rank > RANK_MAX {
        return Err(GgufError::Rank { name: name(), rank });
    }
    let row = GGML_TYPES.iter().find(|row| row.2 == Some(tensor.dtype));
    let Some(&(id, ..)) = row else {
        return Err(GgufError::NotStorable { name: name(), dtype: tensor.dtype });
    };
    let bytes = checked_elems(&tensor.shape).and_then(|elems| tensor.dtype.bytes_of(elems));
    let Some(bytes) = bytes else {
        return Err(GgufError::Shape { name: name(), shape: tensor.shape.clone() });
    };
    Ok((id, bytes))
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(items) => out.extend(items),
        Array::I8(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(items) => out.extend(items.iter().map(|&x| u8::from(x))),
        Array::String(items) => items.iter().for_each(|text| put_string(out, text)),
        Array::Array(items) => items.iter().for_each(|inner| put_array(out, inner)),
        Array::U64(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(items) => items.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

impl Value {
    fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => type_id::U8,
            Value::I8(_) => type_id::I8,
            Value::U16(_) => type_id::U16,
            Value::I16(_) => type_id::I16,
            Value::U32(_) => type_id::U32,
            Value::I32(_) => type_id::I32,
            Value::F32(_) => type_id::F32,
            Value::Bool(_) => type_id::BOOL,
            Value::String(_) => type_id::STRING,
            Value::Array(_) => type_id::ARRAY,
            Value::U64(_) => type_id::U64,
            Value::I64(_) => type_id::I64,
            Value::F64(_) => type_id::F64,
        }
    }
}

impl Array {
    fn type_id(&self) -> u32 {
        match self {
            Array::U8(_) => type_id::U8,
            Array::I8(_) => type_id::I8,
            Array::U16(_) => type_id::U16,
            Array::I16(_) => type_id::I16,
            Array::U32(_) => type_id::U32,
            Array::I32(_) => type_id::I32,
            Array::F32(_) => type_id::F32,
            Array::Bool(_) => type_id::BOOL,
            Array::String(_) => type_id::STRING,
            Array::Array(_) => type_id::ARRAY,
            Array::U64(_) => type_id::U64,
            Array::I64(_) => type_id::I64,
            Array::F64(_) => type_id::F64,
        }
    }
}
