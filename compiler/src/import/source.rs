//! Where tensors lie: file, offset, length, storage type and shape.
//!
//! Invariant: a [`TensorRef`] inside a [`Catalog`] points at a file of that catalog, and its byte length agrees
//! with its shape and storage type. Not for data: nothing here holds a weight.

use std::collections::BTreeMap;

use thiserror::Error;
use tinyforge_plan::DType;

/// One tensor in a file, by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef {
    /// Name in the file.
    pub name: String,
    /// Index of the file in [`Catalog::files`].
    pub file: u32,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Storage type.
    pub dtype: DType,
    /// Extents, outermost first; the last one is contiguous. Empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorRef {
    /// Number of elements: the product of the extents.
    pub fn elems(&self) -> u64 {
        // Readers accept a tensor only after `checked_elems` succeeded on its shape.
        checked_elems(&self.shape).unwrap_or(u64::MAX)
    }

    /// First byte after the tensor.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// Product of the extents, or `None` when it overflows.
pub(crate) fn checked_elems(shape: &[u64]) -> Option<u64> {
    // A zero anywhere makes the product zero, whatever the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent))
}

/// A tensor was described twice.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CatalogError {
    /// Two files, or one file twice, hold a tensor of this name.
    #[error("tensor `{name}` is in `{first}` and again in `{second}`; remove one of them")]
    Duplicate {
        /// Tensor name.
        name: String,
        /// File that was added first.
        first: String,
        /// File that was added second.
        second: String,
    },
}

/// All tensors of a model, over one or several files, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    files: Vec<String>,
    tensors: BTreeMap<String, TensorRef>,
    unsupported: BTreeMap<String, String>,
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Catalog {
        Catalog::default()
    }

    /// Adds a file and returns its index for [`TensorRef::file`].
    pub fn add_file(&mut self, name: &str) -> u32 {
        self.files.push(name.to_owned());
        (self.files.len() - 1) as u32
    }

    /// Adds a tensor. Errors when its name is taken.
    pub fn insert(&mut self, tensor: TensorRef) -> Result<(), CatalogError> {
        if let Some(first) = self.tensors.get(&tensor.name) {
            return Err(CatalogError::Duplicate {
                first: self.file_name(first.file).to_owned(),
                second: self.file_name(tensor.file).to_owned(),
                name: tensor.name,
            });
        }
        self.tensors.insert(tensor.name.clone(), tensor);
        Ok(())
    }

    /// Notes a tensor whose storage type no kernel reads, such as an `I64` buffer, so that asking for it can say why.
    pub fn note_unsupported(&mut self, name: &str, dtype: &str) {
        self.unsupported.insert(name.to_owned(), dtype.to_owned());
    }

    /// The storage type of a tensor that is in a file but cannot be used.
    pub fn unsupported_dtype(&self, name: &str) -> Option<&str> {
        self.unsupported.get(name).map(String::as_str)
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorRef> {
        self.tensors.get(name)
    }

    /// All tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &TensorRef> {
        self.tensors.values()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// File names, in the order of their indices.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Name of a file; empty when there is no such file.
    pub fn file_name(&self, file: u32) -> &str {
        self.files.get(file as usize).map_or("", String::as_str)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }
}

/// A new file before its data: the bytes of its header and the place of each tensor.
///
/// Write `header` at 0, then each tensor's bytes at its `offset` (ascending in the order of `tensors`), zeros in
/// the gaps, and `file_bytes` in all. Tensors may be streamed one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLayout {
    /// The first bytes of the file.
    pub header: Vec<u8>,
    /// The tensors in the order of their offsets; `file` is 0.
    pub tensors: Vec<TensorRef>,
    /// Length of the finished file.
    pub file_bytes: u64,
}

impl FileLayout {
    /// The place of the tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorRef> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// One tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Name in the file.
    pub name: String,
    /// Storage type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
}

impl NewTensor {
    /// A tensor of this name, storage type and shape.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[u64]) -> NewTensor {
        NewTensor { name: name.into(), dtype, shape: shape.to_vec() }
    }
}
