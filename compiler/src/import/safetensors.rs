//! The safetensors format: a `u64` header length, a JSON header, then the data.
//!
//! Invariant: every tensor of a parsed [`Header`] lies inside the file, overlaps no other, and is as long as its
//! dtype and shape say; together they cover the data exactly, as the format demands. Not for data: bytes after
//! the header are never looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use thiserror::Error;
use tinyforge_plan::DType;

use super::source::{Catalog, CatalogError, FileLayout, NewTensor, TensorRef, checked_elems};

/// Longest header that is read, the format's own limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Name of the entry that holds the metadata.
const METADATA: &str = "__metadata__";

/// What is wrong with a safetensors file or index.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum SafetensorsError {
    #[error("the header needs the first {bytes} bytes of the file, {have} were given")]
    NeedMore { bytes: u64, have: u64 },
    #[error("the file has {file_bytes} bytes, a safetensors file has at least 8")]
    TooShort { file_bytes: u64 },
    #[error("the header claims {header_bytes} bytes, the limit is {HEADER_BYTES_MAX}; is this a safetensors file?")]
    HeaderTooLong { header_bytes: u64 },
    #[error("the header claims {header_bytes} bytes, the file has only {left} after the length; the file is truncated")]
    HeaderPastEnd { header_bytes: u64, left: u64 },
    #[error("the header is not JSON of the safetensors form: {detail}")]
    Json { detail: String },
    #[error("tensor `{name}` is described twice")]
    Duplicate { name: String },
    #[error("tensor `{name}` has the unknown dtype `{dtype}`")]
    UnknownDtype { name: String, dtype: String },
    #[error("tensor `{name}` has the shape {shape:?}, whose size overflows")]
    Overflow { name: String, shape: Vec<u64> },
    #[error("tensor `{name}` ends ({end}) before it begins ({start})")]
    Backwards { name: String, start: u64, end: u64 },
    #[error("tensor `{name}` of shape {shape:?} in {dtype} takes {need} bytes, its offsets give {have}")]
    WrongLength { name: String, dtype: String, shape: Vec<u64>, need: u64, have: u64 },
    #[error("tensor `{name}` ends at byte {end} of the data, which has {data_bytes}; the file is truncated")]
    PastEnd { name: String, end: u64, data_bytes: u64 },
    #[error("tensor `{name}` begins at byte {start} of the data, inside `{other}`, which ends at {other_end}")]
    Overlap { name: String, start: u64, other: String, other_end: u64 },
    #[error("bytes {from} to {to} of the data belong to no tensor")]
    Hole { from: u64, to: u64 },
    #[error("dtype {} of tensor `{name}` has no safetensors form; dequantise it first", .dtype.name())]
    NotStorable { name: String, dtype: DType },
    #[error("the index names the file `{file}`; only plain file names in the same directory are allowed")]
    UnsafeFileName { file: String },
    #[error("the index names no tensor")]
    EmptyIndex,
    #[error("the index puts tensor `{name}` in `{file}`, but it is not there")]
    NotInShard { name: String, file: String },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

type Result<T> = std::result::Result<T, SafetensorsError>;

/// One row a dtype of the format: name, bits an element, our storage type.
const DTYPES: [(&str, u64, Option<DType>); 22] = [
    ("F64", 64, Some(DType::F64)),
    ("F32", 32, Some(DType::F32)),
    ("F16", 16, Some(DType::F16)),
    ("BF16", 16, Some(DType::BF16)),
    ("I32", 32, Some(DType::I32)),
    ("U32", 32, Some(DType::U32)),
    ("I8", 8, Some(DType::I8)),
    ("U8", 8, Some(DType::U8)),
    ("BOOL", 8, None),
    ("I64", 64, None),
    ("U64", 64, None),
    ("I16", 16, None),
    ("U16", 16, None),
    ("C64", 64, None),
    ("F8_E4M3", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E8M0", 8, None),
    ("F8_E4M3FNUZ", 8, None),
    ("F8_E5M2FNUZ", 8, None),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F4", 4, None),
];

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// The format's name of the dtype, for example `BF16`.
    pub dtype_name: &'static str,
    /// Our storage type; `None` for one that no kernel reads.
    pub dtype: Option<DType>,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the order of their offsets.
    pub tensors: Vec<Entry>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
    /// First byte of the data: 8 plus the header's length.
    pub data_start: u64,
}

/// Bytes from the start of the file to its data, read from the first 8.
///
/// `first`: at least the first 8 bytes; `file_bytes`: length of the whole file. Read that many bytes, then call
/// [`parse_header`]. Errors when the length is over [`HEADER_BYTES_MAX`] or goes past the end of the file.
pub fn header_len(first: &[u8], file_bytes: u64) -> Result<u64> {
    if file_bytes < 8 {
        return Err(SafetensorsError::TooShort { file_bytes });
    }
    let Some(length) = first.first_chunk::<8>() else {
        return Err(SafetensorsError::NeedMore { bytes: 8, have: first.len() as u64 });
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderTooLong { header_bytes });
    }
    if header_bytes > file_bytes - 8 {
        return Err(SafetensorsError::HeaderPastEnd { header_bytes, left: file_bytes - 8 });
    }
    Ok(8 + header_bytes)
}

/// Reads and checks a header.
///
/// `bytes`: the start of the file, at least [`header_len`] bytes of it; `file_bytes`: length of the whole file.
pub fn parse_header(bytes: &[u8], file_bytes: u64) -> Result<Header> {
    let data_start = header_len(bytes, file_bytes)?;
    let json = usize::try_from(data_start).ok().and_then(|end| bytes.get(8..end));
    let Some(json) = json else {
        return Err(SafetensorsError::NeedMore { bytes: data_start, have: bytes.len() as u64 });
    };
    if json.first() != Some(&b'{') {
        return Err(SafetensorsError::Json { detail: "it does not begin with `{`".into() });
    }
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|error| SafetensorsError::Json { detail: error.to_string() })?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    let mut names = BTreeSet::new();
    for (name, entry) in &raw.tensors {
        if !names.insert(name.as_str()) {
            return Err(SafetensorsError::Duplicate { name: name.clone() });
        }
        tensors.push(check_entry(name, entry, file_bytes - data_start)?);
    }
    tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    check_cover(&tensors, file_bytes - data_start)?;
    for tensor in &mut tensors {
        tensor.offset += data_start;
    }
    Ok(Header { tensors, metadata: raw.metadata, data_start })
}

impl Header {
    /// Adds the tensors to a catalog as those of the file `file_name`.
    pub fn add_to(&self, catalog: &mut Catalog, file_name: &str) -> Result<()> {
        let file = catalog.add_file(file_name);
        for entry in &self.tensors {
            let Some(dtype) = entry.dtype else {
                catalog.note_unsupported(&entry.name, entry.dtype_name);
                continue;
            };
            catalog.insert(TensorRef {
                name: entry.name.clone(),
                file,
                offset: entry.offset,
                bytes: entry.bytes,
                dtype,
                shape: entry.shape.clone(),
            })?;
        }
        Ok(())
    }
}

/// Checks one tensor by itself; the offset returned still counts from the start of the data.
fn check_entry(name: &str, entry: &RawEntry, data_bytes: u64) -> Result<Entry> {
    let Some(&(dtype_name, bits, dtype)) = DTYPES.iter().find(|row| row.0 == entry.dtype) else {
        return Err(SafetensorsError::UnknownDtype { name: name.into(), dtype: entry.dtype.clone() });
    };
    let (start, end) = entry.data_offsets;
    if end < start {
        return Err(SafetensorsError::Backwards { name: name.into(), start, end });
    }
    let size_bits = checked_elems(&entry.shape).and_then(|elems| elems.checked_mul(bits));
    let Some(size_bits) = size_bits else {
        return Err(SafetensorsError::Overflow { name: name.into(), shape: entry.shape.clone() });
    };
    let need = size_bits.div_ceil(8);
    if need != end - start || !size_bits.is_multiple_of(8) {
        return Err(SafetensorsError::WrongLength {
            name: name.into(),
            dtype: dtype_name.into(),
            shape: entry.shape.clone(),
            need,
            have: end - start,
        });
    }
    if end > data_bytes {
        return Err(SafetensorsError::PastEnd { name: name.into(), end, data_bytes });
    }
    Ok(Entry { name: name.into(), dtype_name, dtype, shape: entry.shape.clone(), offset: start, bytes: need })
}

/// Checks that tensors sorted by offset cover the data without overlap or hole.
fn check_cover(tensors: &[Entry], data_bytes: u64) -> Result<()> {
    let mut covered = 0;
    let mut last = "";
    for tensor in tensors {
        if tensor.offset < covered {
            return Err(SafetensorsError::Overlap {
                name: tensor.name.clone(),
                start: tensor.offset,
                other: last.into(),
                other_end: covered,
            });
        }
        if tensor.offset > covered {
            return Err(SafetensorsError::Hole { from: covered, to: tensor.offset });
        }
        covered = tensor.offset + tensor.bytes;
        last = &tensor.name;
    }
    if covered != data_bytes {
        return Err(SafetensorsError::Hole { from: covered, to: data_bytes });
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header as it stands in the JSON, repeated names included.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<RawHeader, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut raw = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        raw.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        raw.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The index of a sharded checkpoint, `model.safetensors.index.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The file of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index. Errors on JSON of another form, on an empty one, and on a file name that leaves the directory.
    pub fn parse(bytes: &[u8]) -> Result<Index> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: BTreeMap<String, String>,
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| SafetensorsError::Json { detail: error.to_string() })?;
        if raw.weight_map.is_empty() {
            return Err(SafetensorsError::EmptyIndex);
        }
        for file in raw.weight_map.values() {
            if !is_plain_file_name(file) {
                return Err(SafetensorsError::UnsafeFileName { file: file.clone() });
            }
        }
        Ok(Index { weight_map: raw.weight_map })
    }

    /// The files in the order of their names, each once.
    pub fn files(&self) -> Vec<&str> {
        let files: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        files.into_iter().collect()
    }

    /// Checks that each tensor of the index is in the catalog, in the file that the index names.
    pub fn check(&self, catalog: &Catalog) -> Result<()> {
        for (name, file) in &self.weight_map {
            let is_there = match catalog.get(name) {
                Some(tensor) => catalog.file_name(tensor.file) == file,
                None => catalog.unsupported_dtype(name).is_some(),
            };
            if !is_there {
                return Err(SafetensorsError::NotInShard { name: name.clone(), file: file.clone() });
            }
        }
        Ok(())
    }

    /// The JSON of the index; `total_bytes` is the sum over all tensors.
    pub fn to_json(&self, total_bytes: u64) -> String {
        let json =
            serde_json::json!({ "metadata": { "total_size": total_bytes }, "weight_map": self.weight_map.clone() });
        format!("{json:#}\n")
    }
}

/// Whether a name stays in its directory on every operating system.
fn is_plain_file_name(name: &str) -> bool {
    let is_special = name.is_empty() || name == "." || name == "..";
    !is_special && !name.contains(['/', '\\', ':', '\0'])
}

/// Lays out a new file: header first, then the tensors, widest elements first so that each is aligned to its element.
///
/// Tensors of equal width keep the order given. Errors on repeated names, on sizes that overflow, and on block
/// dtypes, which the format does not have.
pub fn layout(tensors: &[NewTensor], metadata: &BTreeMap<String, String>) -> Result<FileLayout> {
    let mut order: Vec<&NewTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.block_bytes()));
    let mut json = serde_json::Map::new();
    if !metadata.is_empty() {
        json.insert(METADATA.into(), serde_json::json!(metadata));
    }
    let mut placed = Vec::with_capacity(order.len());
    let mut end = 0u64;
    for tensor in order {
        let dtype_name = storable_name(tensor)?;
        let overflow = || SafetensorsError::Overflow { name: tensor.name.clone(), shape: tensor.shape.clone() };
        let bytes = checked_elems(&tensor.shape).and_then(|n| tensor.dtype.bytes_of(n)).ok_or_else(overflow)?;
        let offset = end;
        // Room for the header is kept, so that absolute offsets do not overflow either.
        end = offset.checked_add(bytes).filter(|end| *end < u64::MAX / 2).ok_or_else(overflow)?;
        let entry = serde_json::json!({ "dtype": dtype_name, "shape": tensor.shape, "data_offsets": [offset, end] });
        if tensor.name == METADATA || json.insert(tensor.name.clone(), entry).is_some() {
            return Err(SafetensorsError::Duplicate { name: tensor.name.clone() });
        }
        placed.push(TensorRef {
            name: tensor.name.clone(),
            file: 0,
            offset,
            bytes,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        });
    }
    let mut text = serde_json::Value::Object(json).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderTooLong { header_bytes: text.len() as u64 });
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    let data_start = header.len() as u64;
    for tensor in &mut placed {
        tensor.offset += data_start;
    }
    Ok(FileLayout { header, tensors: placed, file_bytes: data_start + end })
}

/// The format's name of a new tensor's storage type.
fn storable_name(tensor: &NewTensor) -> Result<&'static str> {
    DTYPES
        .iter()
        .find(|row| row.2 == Some(tensor.dtype))
        .map(|row| row.0)
        .ok_or_else(|| SafetensorsError::NotStorable { name: tensor.name.clone(), dtype: tensor.dtype })
}
