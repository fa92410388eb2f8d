//! Storage types of tensors, and how many bytes they take.

use serde::{Deserialize, Serialize};

/// How the elements of a tensor are stored.
///
/// The block formats are GGML's: a block holds [`DType::block_elems`] consecutive elements of one row in
/// [`DType::block_bytes`] bytes, and the length of a row is a multiple of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the field's standard names")]
pub enum DType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    U8,
    I32,
    U32,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

/// One row a type: type, name in text, elements a block, bytes a block.
const TABLE: [(DType, &str, u64, u64); 16] = [
    (DType::F32, "f32", 1, 4),
    (DType::F16, "f16", 1, 2),
    (DType::BF16, "bf16", 1, 2),
    (DType::F64, "f64", 1, 8),
    (DType::I8, "i8", 1, 1),
    (DType::U8, "u8", 1, 1),
    (DType::I32, "i32", 1, 4),
    (DType::U32, "u32", 1, 4),
    (DType::Q8_0, "q8_0", 32, 34),
    (DType::Q4_0, "q4_0", 32, 18),
    (DType::Q4_1, "q4_1", 32, 20),
    (DType::Q5_0, "q5_0", 32, 22),
    (DType::Q5_1, "q5_1", 32, 24),
    (DType::Q4K, "q4_k", 256, 144),
    (DType::Q5K, "q5_k", 256, 176),
    (DType::Q6K, "q6_k", 256, 210),
];

impl DType {
    /// Every storage type, in the order of the table.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, u64, u64) {
        &TABLE[self as usize]
    }

    /// The name used in text, for example `q4_1`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type of this name, if there is one.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Elements that are stored together; 1 for plain types.
    pub fn block_elems(self) -> u64 {
        self.row().2
    }

    /// Bytes of one block; the element's size for plain types.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Whether elements are stored in quantised blocks.
    pub fn is_quantised(self) -> bool {
        self.block_elems() > 1
    }

    /// Whether a gradient with respect to a tensor of this storage makes sense.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
    }

    /// Bytes of `elems` elements, or `None` when they are not whole blocks or the count overflows.
    pub fn bytes_of(self, elems: u64) -> Option<u64> {
        if !elems.is_multiple_of(self.block_elems()) {
            return None;
        }
        (elems / self.block_elems()).checked_mul(self.block_bytes())
    }
}
