//! Plans as bytes: magic, version, checksum, then the plan in postcard's encoding.

use crate::plan::Plan;
use alloc::vec::Vec;

const MAGIC: [u8; 4] = *b"TFPL";
const VERSION: u32 = 4;

/// Why bytes are no plan.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not start with the magic number.
    #[error("not a plan: the file does not start with `TFPL`")]
    Magic,
    /// The plan was written by another version.
    #[error("plan of version {0}, this program reads version {VERSION}: compile it again")]
    Version(u32),
    /// The checksum does not match: the file is damaged or cut off.
    #[error("plan is damaged: checksum {found:#010x}, must be {wanted:#010x}")]
    Checksum {
        /// Of the bytes.
        found: u32,
        /// Written in the header.
        wanted: u32,
    },
    /// The bytes pass the checksum but are no plan.
    #[error("plan cannot be read: {0}")]
    Contents(postcard::Error),
}

/// The bytes of a plan.
///
/// # Panics
/// Never: a plan holds nothing that the encoding refuses.
pub fn encode(plan: &Plan) -> Vec<u8> {
    let body = postcard::to_allocvec(plan).expect("plans are plain data of known length");
    let mut bytes = Vec::with_capacity(body.len() + 12);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The plan of these bytes.
///
/// # Errors
/// The bytes are no plan of this version, or damaged. Lengths are bounded by the bytes that are there.
pub fn decode(bytes: &[u8]) -> Result<Plan, DecodeError> {
    let word = |i: usize| bytes.get(i..i + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(version), Some(wanted)) = (word(4), word(8)) else {
        return Err(DecodeError::Magic);
    };
    if bytes[..4] != MAGIC {
        return Err(DecodeError::Magic);
    }
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let body = &bytes[12..];
    let found = crc32(body);
    if found != wanted {
        return Err(DecodeError::Checksum { found, wanted });
    }
    postcard::from_bytes(body).map_err(DecodeError::Contents)
}

/// CRC-32 (IEEE 802.3, reflected) of the bytes.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32_more(0, bytes)
}

/// CRC-32 continued over more bytes.
pub fn crc32_more(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    !bytes.iter().fold(!crc, |crc, &b| (crc >> 8) ^ TABLE[((crc ^ u32::from(b)) & 0xff) as usize])
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
}
