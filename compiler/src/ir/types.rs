//! Types of values: a storage type and a static shape.

use std::fmt;
use tinyforge_plan::DType;

/// Storage and shape of a value: `f32[256,64]`. Row-major; a scalar has shape `[1]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// How the elements are stored.
    pub dtype: DType,
    /// Lengths of the dimensions, outermost first.
    pub shape: Vec<u32>,
}

impl Type {
    /// A type of this storage and shape.
    pub fn new(dtype: DType, shape: &[u32]) -> Type {
        Type { dtype, shape: shape.to_vec() }
    }

    /// An f32 tensor of this shape.
    pub fn f32(shape: &[u32]) -> Type {
        Type::new(DType::F32, shape)
    }

    /// An i32 tensor of this shape.
    pub fn i32(shape: &[u32]) -> Type {
        Type::new(DType::I32, shape)
    }

    /// The number of elements.
    pub fn elems(&self) -> u64 {
        self.shape.iter().map(|&d| u64::from(d)).product()
    }

    /// Bytes of the stored tensor. The verifier has checked that quantised rows are whole blocks.
    pub fn bytes(&self) -> u64 {
        self.elems() / self.dtype.block_elems() * self.dtype.block_bytes()
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> u32 {
        self.shape.iter().rev().skip(1).product()
    }

    /// The last dimension.
    pub fn cols(&self) -> u32 {
        *self.shape.last().unwrap_or(&1)
    }

    /// The same storage in another shape.
    pub fn with_shape(&self, shape: &[u32]) -> Type {
        Type { dtype: self.dtype, shape: shape.to_vec() }
    }

    /// The same shape in another storage.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, shape: self.shape.clone() }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype.name())?;
        for (i, d) in self.shape.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}
