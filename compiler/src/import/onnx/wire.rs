//! Protocol buffers, as far as an ONNX file needs them: the fields of a message inside one slice of bytes.
//!
//! Invariant: every read lies inside the slice; a length that leads elsewhere is an error with the place. A field that
//! holds bytes is given by its place in the file, so weights are never copied. Nothing here follows messages inside
//! messages: the caller knows the schema, which is of fixed depth, so each byte is looked at a few times at most.
//! Source: the Protocol Buffers encoding (varints of 7 bits a byte, tags `number << 3 | type`, little-endian words).

use super::OnnxError;

type Result<T> = std::result::Result<T, OnnxError>;

/// Bytes of the file and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Place of the first byte in the file.
    pub at: usize,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Span<'a> {
    /// The text, if it is UTF-8.
    pub fn text(self, what: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes).map_err(|_| damaged(what, format!("the text at byte {} is not UTF-8", self.at)))
    }

    /// The fields of the message that the bytes hold.
    pub fn fields(self) -> Fields<'a> {
        Fields { rest: self }
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire<'a> {
    /// Type 0.
    Varint(u64),
    /// Type 5.
    Word([u8; 4]),
    /// Type 1.
    Long([u8; 8]),
    /// Type 2: text, a message, or packed numbers.
    Bytes(Span<'a>),
}

/// A file that is not what it says it is.
pub fn damaged(what: &str, detail: String) -> OnnxError {
    OnnxError::Damaged { what: what.to_owned(), detail }
}

/// The fields of a message, in order: `(number, value)`.
pub struct Fields<'a> {
    rest: Span<'a>,
}

impl<'a> Fields<'a> {
    fn fail(&mut self, detail: &str) -> OnnxError {
        let at = self.rest.at;
        self.rest.bytes = &[];
        damaged("encoding", format!("{detail} at byte {at}"))
    }

    fn take(&mut self, len: usize) -> Result<Span<'a>> {
        let Some((bytes, rest)) = self.rest.bytes.split_at_checked(len) else {
            let have = self.rest.bytes.len();
            return Err(self.fail(&format!("{len} bytes are announced, {have} are left")));
        };
        let taken = Span { at: self.rest.at, bytes };
        self.rest = Span { at: self.rest.at + len, bytes: rest };
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        match varint(self.rest.bytes) {
            Some((value, len)) => self.take(len).map(|_| value),
            None => Err(self.fail("a number does not end")),
        }
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>)> {
        let tag = self.varint()?;
        let Ok(number) = u32::try_from(tag >> 3) else { return Err(self.fail("a field has no number")) };
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Long(self.take(8)?.bytes.try_into().expect("eight bytes were taken")),
            2 => {
                let len = self.varint()?;
                // What does not fit is longer than what is left.
                Wire::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            5 => Wire::Word(self.take(4)?.bytes.try_into().expect("four bytes were taken")),
            other => return Err(self.fail(&format!("field {number} has the type {other}"))),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.bytes.is_empty()).then(|| self.field())
    }
}

/// The number that the bytes start with, and its length.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

/// Appends one number, or all numbers of a packed field.
pub fn append_ints(to: &mut Vec<i64>, value: Wire, what: &str) -> Result<()> {
    match value {
        Wire::Varint(v) => to.push(v as i64),
        Wire::Bytes(span) => {
            let mut rest = span.bytes;
            while !rest.is_empty() {
                let Some((v, len)) = varint(rest) else {
                    return Err(damaged(what, format!("a number of the list at byte {} does not end", span.at)));
                };
                to.push(v as i64);
                rest = &rest[len..];
            }
        }
        _ => return Err(damaged(what, "it is no list of whole numbers".to_owned())),
    }
    Ok(())
}
