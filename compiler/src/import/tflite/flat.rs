//! FlatBuffers, as far as a TFLite file needs them: tables, vectors and strings inside one slice of bytes.
//!
//! Invariant: every read lies inside the slice; an offset that leads elsewhere is an error that names the field. What
//! a file may describe is bounded by a multiple of its length ([`Flat::charge`]), so that many offsets to one vector
//! cannot make a small file cost much. Nothing here follows offsets to unlimited depth: the caller knows the schema.
//! Source: the FlatBuffers binary format (vtables of `u16` field offsets, `u32` forward offsets, little-endian).

use std::cell::Cell;

use super::super::int8::Int8Error;

type Result<T> = std::result::Result<T, Int8Error>;

/// A file may describe this many times its own length.
const WORK_PER_BYTE: u64 = 16;
/// And this much beside, for small files.
const WORK_BYTES_FREE: u64 = 1 << 16;

/// A field of a table: its number in the schema and its name for messages.
#[derive(Clone, Copy)]
pub struct Field(pub u16, pub &'static str);

/// The bytes of a file, and how much of what it describes has been read.
pub struct Flat<'a> {
    bytes: &'a [u8],
    work: Cell<u64>,
}

/// A table: where its fields lie.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    flat: &'a Flat<'a>,
    /// First byte of the table in the file.
    at: usize,
    /// Offsets of the fields inside the table, two bytes each.
    slots: &'a [u8],
    /// The table's own bytes.
    object: &'a [u8],
}

/// A vector: its elements' bytes and where they begin in the file.
#[derive(Clone, Copy)]
pub struct Vector<'a> {
    /// First byte of the first element in the file.
    pub at: usize,
    /// The elements.
    pub bytes: &'a [u8],
}

fn damaged(what: &str, detail: String) -> Int8Error {
    Int8Error::Damaged { what: what.to_owned(), detail }
}

impl<'a> Flat<'a> {
    /// A file.
    pub fn new(bytes: &'a [u8]) -> Flat<'a> {
        Flat { bytes, work: Cell::new(0) }
    }

    /// Length of the file.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The table that the first four bytes lead to.
    pub fn root(&'a self) -> Result<Table<'a>> {
        self.table(0, "root")
    }

    /// Counts `bytes` of described data. Errors when the file describes far more than it holds.
    pub fn charge(&self, what: &str, bytes: usize) -> Result<()> {
        let work = self.work.get().saturating_add(bytes as u64);
        self.work.set(work);
        if work > self.len().saturating_mul(WORK_PER_BYTE).saturating_add(WORK_BYTES_FREE) {
            return Err(damaged(what, format!("a file of {} bytes describes more than {work} bytes", self.len())));
        }
        Ok(())
    }

    fn slice(&self, at: usize, len: usize, what: &str) -> Result<&'a [u8]> {
        at.checked_add(len).and_then(|end| self.bytes.get(at..end)).ok_or_else(|| {
            damaged(what, format!("{len} bytes at byte {at} are wanted, the file has {}", self.bytes.len()))
        })
    }

    fn u32_at(&self, at: usize, what: &str) -> Result<u32> {
        let bytes = self.slice(at, 4, what)?;
        Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b)))
    }

    /// Where the forward offset at `at` leads.
    fn follow(&self, at: usize, what: &str) -> Result<usize> {
        let offset = self.u32_at(at, what)? as usize;
        match at.checked_add(offset) {
            Some(target) if offset > 0 && target < self.bytes.len() => Ok(target),
            _ => {
                let len = self.bytes.len();
                Err(damaged(what, format!("the offset {offset} at byte {at} leads out of the {len} bytes")))
            }
        }
    }

    /// The table that the offset at `at` leads to.
    fn table(&'a self, at: usize, what: &str) -> Result<Table<'a>> {
        let at = self.follow(at, what)?;
        let back = i64::from(self.u32_at(at, what)? as i32);
        let vtable = usize::try_from(at as i64 - back)
            .map_err(|_| damaged(what, format!("the field list of the table at byte {at} begins before the file")))?;
        let sizes = self.u32_at(vtable, what)?;
        let (list, object) = ((sizes & 0xffff) as usize, (sizes >> 16) as usize);
        if list < 4 || !list.is_multiple_of(2) || object < 4 {
            return Err(damaged(what, format!("the field list at byte {vtable} gives the sizes {list} and {object}")));
        }
        self.charge(what, list)?;
        let slots = &self.slice(vtable, list, what)?[4..];
        Ok(Table { flat: self, at, slots, object: self.slice(at, object, what)? })
    }

    fn vector(&'a self, at: usize, elem_bytes: usize, what: &str) -> Result<Vector<'a>> {
        let at = self.follow(at, what)?;
        let len = self.u32_at(at, what)? as usize;
        let bytes = len
            .checked_mul(elem_bytes)
            .ok_or_else(|| damaged(what, format!("a vector of {len} elements of {elem_bytes} bytes overflows")))?;
        Ok(Vector { at: at + 4, bytes: self.slice(at + 4, bytes, what)? })
    }
}

impl<'a> Table<'a> {
    /// Where a field lies inside the table; `None` where it is absent and its default holds.
    fn slot(&self, field: Field, bytes: usize) -> Result<Option<usize>> {
        let at = 2 * usize::from(field.0);
        let Some(slot) = self.slots.get(at..at + 2) else { return Ok(None) };
        let offset = usize::from(slot[0]) | usize::from(slot[1]) << 8;
        if offset == 0 {
            return Ok(None);
        }
        if offset < 4 || offset + bytes > self.object.len() {
            let len = self.object.len();
            return Err(damaged(field.1, format!("it lies at byte {offset} of a table of {len} bytes")));
        }
        Ok(Some(offset))
    }

    /// A field of one to eight bytes, little-endian, as the low bytes of a `u64`.
    fn scalar(&self, field: Field, bytes: usize) -> Result<Option<u64>> {
        let Some(at) = self.slot(field, bytes)? else { return Ok(None) };
        // `slot` has checked that the field lies inside.
        Ok(Some(self.object[at..at + bytes].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))))
    }

    /// An `i8` or enum field.
    pub fn i8(&self, field: Field, default: i8) -> Result<i8> {
        Ok(self.scalar(field, 1)?.map_or(default, |v| v as i8))
    }

    /// An `i32` field.
    pub fn i32(&self, field: Field, default: i32) -> Result<i32> {
        Ok(self.scalar(field, 4)?.map_or(default, |v| v as i32))
    }

    /// A `u32` field, 0 where absent.
    pub fn u32(&self, field: Field) -> Result<u32> {
        Ok(self.scalar(field, 4)?.map_or(0, |v| v as u32))
    }

    /// A `u64` field, 0 where absent.
    pub fn u64(&self, field: Field) -> Result<u64> {
        Ok(self.scalar(field, 8)?.unwrap_or(0))
    }

    /// An `f32` field.
    pub fn f32(&self, field: Field, default: f32) -> Result<f32> {
        Ok(self.scalar(field, 4)?.map_or(default, |v| f32::from_bits(v as u32)))
    }

    /// A table in a field.
    pub fn table(&self, field: Field) -> Result<Option<Table<'a>>> {
        let Some(at) = self.slot(field, 4)? else { return Ok(None) };
        self.flat.table(self.at + at, field.1).map(Some)
    }

    /// A vector of plain elements whose bytes are not counted as described: weights.
    pub fn data(&self, field: Field) -> Result<Option<Vector<'a>>> {
        let Some(at) = self.slot(field, 4)? else { return Ok(None) };
        self.flat.vector(self.at + at, 1, field.1).map(Some)
    }

    fn counted(&self, field: Field, elem_bytes: usize) -> Result<&'a [u8]> {
        let Some(at) = self.slot(field, 4)? else { return Ok(&[]) };
        let vector = self.flat.vector(self.at + at, elem_bytes, field.1)?;
        self.flat.charge(field.1, vector.bytes.len())?;
        Ok(vector.bytes)
    }

    /// A vector of `i32`, empty where absent.
    pub fn i32s(&self, field: Field) -> Result<Vec<i32>> {
        let bytes = self.counted(field, 4)?;
        Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// A vector of `f32`, empty where absent.
    pub fn f32s(&self, field: Field) -> Result<Vec<f32>> {
        Ok(self.i32s(field)?.into_iter().map(|v| f32::from_bits(v as u32)).collect())
    }

    /// A vector of `i64`, empty where absent.
    pub fn i64s(&self, field: Field) -> Result<Vec<i64>> {
        let bytes = self.counted(field, 8)?;
        Ok(bytes.chunks_exact(8).map(|b| b.iter().rev().fold(0i64, |n, &b| n << 8 | i64::from(b))).collect())
    }

    /// A string, empty where absent; bytes that are not UTF-8 are replaced.
    pub fn string(&self, field: Field) -> Result<String> {
        Ok(String::from_utf8_lossy(self.counted(field, 1)?).into_owned())
    }

    /// A vector of tables, empty where absent.
    pub fn tables(&self, field: Field) -> Result<Vec<Table<'a>>> {
        let Some(at) = self.slot(field, 4)? else { return Ok(Vec::new()) };
        let vector = self.flat.vector(self.at + at, 4, field.1)?;
        self.flat.charge(field.1, vector.bytes.len())?;
        (0..vector.bytes.len() / 4).map(|i| self.flat.table(vector.at + 4 * i, field.1)).collect()
    }
}
