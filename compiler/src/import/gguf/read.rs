//! Reads a header from the start of a file.

use std::collections::{BTreeMap, BTreeSet};

use super::value::type_id;
use super::{ALIGNMENT_DEFAULT, Array, GGML_TYPES, Gguf, GgufError, MAGIC, NESTING_MAX, RANK_MAX, TensorInfo, Value};
use crate::import::source::checked_elems;

type Result<T> = std::result::Result<T, GgufError>;

/// Fewest bytes of a metadata entry: an empty key, a type, one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;

/// Fewest bytes of a row of the tensor table: an empty name, no extent, a type, an offset.
const INFO_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// Reads and checks a header.
///
/// `prefix`: the start of the file, of any length; `file_bytes`: length of the whole file. When the prefix ends
/// inside the header the error is [`GgufError::NeedMore`] with a lower bound of what is needed, never more than
/// `file_bytes`; reading the larger of that and twice the prefix keeps the number of tries small.
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Gguf> {
    let mut reader = Reader { bytes: prefix, at: 0, file_bytes };
    let magic: [u8; 4] = reader.array("the magic")?;
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic });
    }
    let version = reader.u32("the version")?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(GgufError::BigEndian);
    }
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { version });
    }
    let tensor_count = reader.u64("the tensor count")?;
    let entry_count = reader.u64("the metadata count")?;
    reader.ensure(entry_count, ENTRY_BYTES_MIN, "the metadata")?;
    let metadata = read_metadata(&mut reader, entry_count)?;
    let alignment = alignment(&metadata)?;
    let tensors = reader.ensure(tensor_count, INFO_BYTES_MIN, "the tensor table")?;
    let mut infos = Vec::with_capacity(tensors);
    for _ in 0..tensor_count {
        infos.push(read_info(&mut reader)?);
    }
    // A file may end with its table when it holds no tensor, without the padding.
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    place(&mut infos, data_start, alignment, file_bytes)?;
    Ok(Gguf { version, metadata, tensors: infos, data_start, alignment })
}

fn read_metadata(reader: &mut Reader, count: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let at = reader.at as u64;
        let key = reader.string("a metadata key")?;
        let id = reader.u32("a metadata type")?;
        let value = reader.value(id)?;
        if metadata.contains_key(&key) {
            return Err(GgufError::DuplicateKey { key, at });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// The data's alignment from the metadata.
pub(super) fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    match value.as_u64() {
        // The upper bound keeps the rounding of offsets far from overflow.
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 31 => Ok(alignment),
        _ => Err(GgufError::Alignment { found: value.describe() }),
    }
}

/// Reads one row of the tensor table; its offset still counts from the start of the data.
fn read_info(reader: &mut Reader) -> Result<TensorInfo> {
    let name = reader.string("a tensor name")?;
    let rank = reader.u32("a tensor's rank")?;
    if rank == 0 || rank > RANK_MAX {
        return Err(GgufError::Rank { name, rank });
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        shape.push(reader.u64("a tensor's extents")?);
    }
    shape.reverse();
    let id = reader.u32("a tensor's type")?;
    let offset = reader.u64("a tensor's offset")?;
    let row = GGML_TYPES.iter().find(|row| row.0 == id);
    let Some(dtype) = row.and_then(|row| row.2) else {
        let type_name = row.map_or_else(|| format!("type {id}"), |row| row.1.to_owned());
        return Err(GgufError::TensorType { name, type_name });
    };
    let Some(elems) = checked_elems(&shape).filter(|&elems| elems > 0) else {
        return Err(GgufError::Shape { name, shape });
    };
    let row_elems = shape[shape.len() - 1];
    if !row_elems.is_multiple_of(dtype.block_elems()) {
        return Err(GgufError::Block { name, row: row_elems, block: dtype.block_elems(), dtype });
    }
    let Some(bytes) = dtype.bytes_of(elems) else {
        return Err(GgufError::Shape { name, shape });
    };
    Ok(TensorInfo { name, dtype, shape, offset, bytes })
}

/// Makes offsets absolute and checks that tensors lie in the file, aligned, apart and with different names.
fn place(infos: &mut [TensorInfo], data_start: u64, alignment: u64, file_bytes: u64) -> Result<()> {
    let mut names = BTreeSet::new();
    for info in infos.iter_mut() {
        let name = || info.name.clone();
        if !info.offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { name: name(), offset: info.offset, alignment });
        }
        let start = info.offset.checked_add(data_start);
        let end = start.and_then(|start| start.checked_add(info.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => info.offset = start,
            _ => return Err(GgufError::PastEnd { name: name(), end: end.unwrap_or(u64::MAX), file_bytes }),
        }
    }
    let mut order: Vec<&TensorInfo> = infos.iter().collect();
    order.sort_by_key(|info| info.offset);
    for pair in order.windows(2) {
        if pair[1].offset < pair[0].offset + pair[0].bytes {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(GgufError::Overlap { first, second, at: pair[1].offset });
        }
    }
    for info in infos.iter() {
        if !names.insert(info.name.as_str()) {
            let (name, file) = (info.name.clone(), String::from("the tensor table"));
            let duplicate = super::CatalogError::Duplicate { name, first: file.clone(), second: file };
            return Err(duplicate.into());
        }
    }
    Ok(())
}

/// A cursor over the prefix that knows how long the file is.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    file_bytes: u64,
}

impl<'a> Reader<'a> {
    /// Checks that `count` items of at least `bytes_each` can follow; returns the count as an allocation size that
    /// the prefix bounds.
    fn ensure(&self, count: u64, bytes_each: u64, what: &'static str) -> Result<usize> {
        let end = count.checked_mul(bytes_each).and_then(|bytes| bytes.checked_add(self.at as u64));
        match end {
            Some(end) if end <= self.file_bytes => {
                if end > self.bytes.len() as u64 {
                    return Err(GgufError::NeedMore { bytes: end, have: self.bytes.len() as u64 });
                }
                Ok(count as usize)
            }
            _ => Err(GgufError::Truncated { what, file_bytes: self.file_bytes }),
        }
    }

    fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8]> {
        let length = self.ensure(length, 1, what)?;
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &'static str) -> Result<String> {
        let at = self.at as u64;
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| GgufError::Utf8 { what, at })
    }

    fn bool(&mut self) -> Result<bool> {
        let at = self.at as u64;
        match self.array::<1>("a boolean")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::Bool { found, at }),
        }
    }

    fn value(&mut self, id: u32) -> Result<Value> {
        const WHAT: &str = "a metadata value";
        Ok(match id {
            type_id::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            type_id::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            type_id::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            type_id::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            type_id::U32 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            type_id::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            type_id::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            type_id::BOOL => Value::Bool(self.bool()?),
            type_id::STRING => Value::String(self.string("a metadata string")?),
            type_id::ARRAY => Value::Array(self.value_array(1)?),
            type_id::U64 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            type_id::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            type_id::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            _ => return Err(GgufError::ValueType { id, at: self.at as u64 - 4 }),
        })
    }

    /// `count` numbers of `N` bytes each.
    fn numbers<const N: usize, T>(&mut self, count: u64, decode: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let length = count.saturating_mul(N as u64);
        let (chunks, _) = self.take(length, "a metadata array")?.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| decode(*chunk)).collect())
    }

    /// `count` items that take at least `bytes_each`, one by one.
    fn items<T>(&mut self, count: u64, bytes_each: u64, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::with_capacity(self.ensure(count, bytes_each, "a metadata array")?);
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    fn value_array(&mut self, depth: u32) -> Result<Array> {
        let at = self.at as u64;
        if depth > NESTING_MAX {
            return Err(GgufError::Nesting { at });
        }
        let id = self.u32("an array's type")?;
        let count = self.u64("an array's length")?;
        Ok(match id {
            type_id::U8 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            type_id::I8 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            type_id::U16 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            type_id::I16 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            type_id::U32 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            type_id::I32 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            type_id::F32 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            type_id::BOOL => Array::Bool(self.items(count, 1, Self::bool)?),
            type_id::STRING => Array::String(self.items(count, 8, |reader| reader.string("a metadata string"))?),
            type_id::ARRAY => Array::Array(self.items(count, 12, |reader| reader.value_array(depth + 1))?),
            type_id::U64 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            type_id::I64 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            type_id::F64 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            _ => return Err(GgufError::ValueType { id, at }),
        })
    }
}
