//! The GGUF format, versions 2 and 3, little endian: metadata, tensor locations, and the layout of new files.
//!
//! Invariant: every tensor of a parsed [`Gguf`] has a supported storage type, lies inside the file, is aligned,
//! and overlaps no other. Parsing works on a prefix of the file; when the prefix is too short it says how much to
//! read. Not for data: tensor bytes are never looked at.

mod read;
mod tokenizer;
mod value;
mod write;

use std::collections::BTreeMap;

use thiserror::Error;
use tinyforge_plan::DType;

pub use read::parse;
pub use tokenizer::Tokenizer;
pub use value::{Array, Value};
pub use write::layout;

use super::source::{Catalog, CatalogError, TensorRef};

/// First four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data when `general.alignment` is absent, in bytes.
pub const ALIGNMENT_DEFAULT: u64 = 32;

/// Most dimensions a tensor may have.
pub const RANK_MAX: u32 = 4;

/// Deepest nesting of arrays that is read.
pub const NESTING_MAX: u32 = 4;

/// What is wrong with a GGUF file.
#[derive(Debug, Error, PartialEq)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum GgufError {
    /// Not a fault of the file: read `bytes` bytes of it and parse again.
    #[error("the header needs at least the first {bytes} bytes of the file, {have} were given")]
    NeedMore { bytes: u64, have: u64 },
    #[error("the file ends at byte {file_bytes}, inside {what}; it is truncated")]
    Truncated { what: &'static str, file_bytes: u64 },
    #[error("the file begins with {found:02x?}, not with `GGUF`")]
    Magic { found: [u8; 4] },
    #[error("the file is big endian; convert it to little endian")]
    BigEndian,
    #[error("GGUF version {version} is not supported, versions 2 and 3 are")]
    Version { version: u32 },
    #[error("byte {at}: {what} is not valid UTF-8")]
    Utf8 { what: &'static str, at: u64 },
    #[error("byte {at}: metadata key `{key}` occurs twice")]
    DuplicateKey { key: String, at: u64 },
    #[error("byte {at}: unknown metadata type {id}")]
    ValueType { id: u32, at: u64 },
    #[error("byte {at}: a boolean holds {found}, not 0 or 1")]
    Bool { found: u8, at: u64 },
    #[error("byte {at}: arrays are nested deeper than {NESTING_MAX}")]
    Nesting { at: u64 },
    #[error("`general.alignment` is {found}; it must be a power of two")]
    Alignment { found: String },
    #[error("tensor `{name}` has {rank} dimensions, the format allows 1 to {RANK_MAX}")]
    Rank { name: String, rank: u32 },
    #[error("tensor `{name}` has the shape {shape:?}, which is empty or overflows")]
    Shape { name: String, shape: Vec<u64> },
    #[error("tensor `{name}` is stored as {type_name}, which is not supported (supported: {})", supported_names())]
    TensorType { name: String, type_name: String },
    #[error("tensor `{name}`: rows of {row} elements are not whole blocks of {block} ({})", .dtype.name())]
    Block { name: String, row: u64, block: u64, dtype: DType },
    #[error("tensor `{name}` begins at byte {offset} of the data, which is not a multiple of {alignment}")]
    Misaligned { name: String, offset: u64, alignment: u64 },
    #[error("tensor `{name}` ends at byte {end}, the file has {file_bytes}; it is truncated")]
    PastEnd { name: String, end: u64, file_bytes: u64 },
    #[error("tensors `{first}` and `{second}` overlap at byte {at}")]
    Overlap { first: String, second: String, at: u64 },
    #[error("metadata `{key}` is {found}, expected {need}")]
    WrongType { key: String, found: String, need: &'static str },
    #[error("metadata `{key}` is missing")]
    MissingKey { key: String },
    #[error("the model is split in {expected} files, {given} were given")]
    SplitCount { expected: u64, given: usize },
    #[error("file {position} of the split model says that it is number {found}; give the files in order")]
    SplitOrder { position: usize, found: u64 },
    #[error("dtype {} of tensor `{name}` has no GGML type", .dtype.name())]
    NotStorable { name: String, dtype: DType },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Names of the storage types that [`parse`] accepts.
fn supported_names() -> String {
    let names: Vec<&str> = GGML_TYPES.iter().filter(|row| row.2.is_some()).map(|row| row.1).collect();
    names.join(", ")
}

/// One row a GGML type: number in the file, name, our storage type.
const GGML_TYPES: [(u32, &str, Option<DType>); 34] = [
    (0, "F32", Some(DType::F32)),
    (1, "F16", Some(DType::F16)),
    (30, "BF16", Some(DType::BF16)),
    (8, "Q8_0", Some(DType::Q8_0)),
    (2, "Q4_0", Some(DType::Q4_0)),
    (3, "Q4_1", Some(DType::Q4_1)),
    (6, "Q5_0", Some(DType::Q5_0)),
    (7, "Q5_1", Some(DType::Q5_1)),
    (12, "Q4_K", Some(DType::Q4K)),
    (13, "Q5_K", Some(DType::Q5K)),
    (14, "Q6_K", Some(DType::Q6K)),
    (24, "I8", Some(DType::I8)),
    (26, "I32", Some(DType::I32)),
    (28, "F64", Some(DType::F64)),
    (9, "Q8_1", None),
    (10, "Q2_K", None),
    (11, "Q3_K", None),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (25, "I16", None),
    (27, "I64", None),
    (29, "IQ1_M", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
    (41, "Q1_0", None),
];

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Storage type.
    pub dtype: DType,
    /// Extents, outermost first: the reverse of the order in the file.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in the order of the file's table.
    pub tensors: Vec<TensorInfo>,
    /// First byte of the data.
    pub data_start: u64,
    /// Alignment of tensor data in bytes.
    pub alignment: u64,
}

impl Gguf {
    /// The metadata of this key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A string, or `None` when the key is absent. Errors when it holds something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An integer of any width that is not negative, or `None` when the key is absent.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer that is not negative", Value::as_u64)
    }

    /// An integer that fits in 32 bits and is not negative, or `None` when the key is absent.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| value.as_u64()?.try_into().ok())
    }

    /// A float of any width, finite, or `None` when the key is absent.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite float", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A boolean, or `None` when the key is absent.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// An array, or `None` when the key is absent.
    pub fn array(&self, key: &str) -> Result<Option<&Array>, GgufError> {
        self.typed(key, "an array", Value::as_array)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        need: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| GgufError::WrongType {
                key: key.into(),
                found: value.describe(),
                need,
            }),
        }
    }

    /// Adds the tensors to a catalog as those of the file `file_name`.
    pub fn add_to(&self, catalog: &mut Catalog, file_name: &str) -> Result<(), GgufError> {
        let file = catalog.add_file(file_name);
        for info in &self.tensors {
            catalog.insert(TensorRef {
                name: info.name.clone(),
                file,
                offset: info.offset,
                bytes: info.bytes,
                dtype: info.dtype,
                shape: info.shape.clone(),
            })?;
        }
        Ok(())
    }

    /// Number of files the model is split in; 1 when it is not.
    pub fn split_count(&self) -> Result<u64, GgufError> {
        Ok(self.u64("split.count")?.filter(|&count| count > 1).unwrap_or(1))
    }
}

/// The catalog of a model in one file, or in all files of a split one, in order.
///
/// `parts`: file name and header of each. The metadata of the model is in the first. Errors when files are
/// missing or out of order, or a tensor is in two of them.
pub fn catalog(parts: &[(&str, &Gguf)]) -> Result<Catalog, GgufError> {
    let mut catalog = Catalog::new();
    for (position, (file_name, part)) in parts.iter().enumerate() {
        let expected = part.split_count()?;
        if expected != parts.len() as u64 {
            return Err(GgufError::SplitCount { expected, given: parts.len() });
        }
        let found = part.u64("split.no")?.unwrap_or(0);
        if found != position as u64 {
            return Err(GgufError::SplitOrder { position, found });
        }
        part.add_to(&mut catalog, file_name)?;
    }
    Ok(catalog)
}
