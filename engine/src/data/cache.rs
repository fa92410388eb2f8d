//! Rows on disk and in memory, and reading them one at a time without allocating.
//!
//! `data.rows`: a header of 256 bytes, then records of equal size, little-endian:
//! `tokens u32[seq], labels i32[seq], loss_weight f32[seq], segments i32[seq], digest u64`.
//! Positions are not stored: they follow from the segments. The file is written under another name, flushed to disk
//! and renamed, so it is there whole or not at all; the header says from what it was made.

use super::DataError;
use super::inspect::Counts;
use super::pack::RowSink;
use super::record::Kind;
use super::rows::{IGNORED, PADDING_SEGMENT, Row, RowBuf};
use crate::files::{ReadAt, sync_folder};
use crate::text::fingerprint::Fingerprint;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"TFROWS\r\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 256;
const DIGEST_BYTES: u64 = 8;
/// Longest sequence accepted, far above any model's; it bounds what a damaged header can ask for.
pub(crate) const SEQ_MAX: usize = 1 << 24;

/// What a row file was made from and holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Header {
    pub(crate) seq: u32,
    pub(crate) rows: u64,
    pub(crate) kind: Kind,
    /// Digest of everything but the files' content that decides the rows.
    pub(crate) settings: u64,
    /// Digest of the files' names, lengths and times.
    pub(crate) stat: u64,
    /// Digest of the files' content.
    pub(crate) content: u64,
    pub(crate) counts: Counts,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.seq.to_le_bytes());
        bytes.extend((self.kind as u64).to_le_bytes());
        let words = [self.rows, self.settings, self.stat, self.content];
        bytes.extend(words.into_iter().chain(self.counts.to_words()).flat_map(u64::to_le_bytes));
        bytes.resize(HEADER_BYTES - 8, 0);
        let mut digest = Fingerprint::new();
        digest.update(&bytes);
        bytes.extend(digest.finish().to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let mut digest = Fingerprint::new();
        digest.update(&bytes[..HEADER_BYTES - 8]);
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (version, seq) = (word(8) as u32, (word(8) >> 32) as u32);
        let is_ours = bytes[..8] == MAGIC && version == VERSION && word(HEADER_BYTES - 8) == digest.finish();
        if !is_ours || seq == 0 || seq as usize > SEQ_MAX {
            return None;
        }
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u64 == word(16))?;
        let counts = Counts::from_words(std::array::from_fn(|at| word(56 + 8 * at)));
        Some(Header { seq, rows: word(24), kind, settings: word(32), stat: word(40), content: word(48), counts })
    }

    fn record_bytes(&self) -> u64 {
        16 * u64::from(self.seq) + DIGEST_BYTES
    }

    fn file_bytes(&self) -> Option<u64> {
        self.rows.checked_mul(self.record_bytes())?.checked_add(HEADER_BYTES as u64)
    }
}

/// Reads rows by number.
pub trait RowReader {
    /// Number of rows.
    fn rows(&self) -> u64;

    /// Positions of a row.
    fn seq(&self) -> usize;

    /// Fills `buf`, whose slices are `seq` long, with row `row < rows`. Allocates nothing.
    /// Errors: reading; a damaged record.
    fn read(&self, row: u64, buf: &mut RowBuf<'_>) -> Result<(), DataError>;
}

/// Rows in a file.
pub struct RowFile {
    file: ReadAt,
    header: Header,
}

impl RowFile {
    /// Opens a row file. `None` when it is absent, damaged, cut short or of another version.
    pub(crate) fn open(path: &Path) -> Result<Option<RowFile>, DataError> {
        let file = match ReadAt::open(path) {
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = [0; HEADER_BYTES];
        if file.len() < HEADER_BYTES as u64 {
            return Ok(None);
        }
        file.read(0, &mut bytes)?;
        let header = Header::decode(&bytes).filter(|header| header.file_bytes() == Some(file.len()));
        Ok(header.map(|header| RowFile { file, header }))
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn read_part(&self, part: &mut [u8], at: u64, digest: &mut Fingerprint) -> Result<(), DataError> {
        self.file.read(at, part)?;
        digest.update(part);
        Ok(())
    }
}

impl RowReader for RowFile {
    fn rows(&self) -> u64 {
        self.header.rows
    }

    fn seq(&self) -> usize {
        self.header.seq as usize
    }

    fn read(&self, row: u64, buf: &mut RowBuf<'_>) -> Result<(), DataError> {
        check(self, row, buf);
        let part = 4 * self.seq() as u64;
        let at = HEADER_BYTES as u64 + row * self.header.record_bytes();
        let mut digest = Fingerprint::new();
        self.read_part(bytemuck::cast_slice_mut(buf.tokens), at, &mut digest)?;
        self.read_part(bytemuck::cast_slice_mut(buf.labels), at + part, &mut digest)?;
        self.read_part(bytemuck::cast_slice_mut(buf.loss_weight), at + 2 * part, &mut digest)?;
        self.read_part(bytemuck::cast_slice_mut(buf.segments), at + 3 * part, &mut digest)?;
        let mut stored = [0; DIGEST_BYTES as usize];
        self.file.read(at + 4 * part, &mut stored)?;
        if u64::from_le_bytes(stored) != digest.finish() {
            let message = format!("row {row} is damaged; delete the file to have it made again");
            return Err(DataError::file(self.path(), message));
        }
        from_little_endian(buf);
        fill_positions(buf);
        Ok(())
    }
}

fn check(reader: &impl RowReader, row: u64, buf: &RowBuf<'_>) {
    assert!(row < reader.rows(), "row {row} of {}", reader.rows());
    let lens = [buf.tokens.len(), buf.labels.len(), buf.loss_weight.len(), buf.positions.len(), buf.segments.len()];
    assert!(lens.iter().all(|&len| len == reader.seq()), "slices of {lens:?} for rows of {}", reader.seq());
}

/// Positions count from 0 where the segment changes; padding has 0.
fn fill_positions(buf: &mut RowBuf<'_>) {
    for at in 0..buf.segments.len() {
        let is_same = at > 0 && buf.segments[at] == buf.segments[at - 1] && buf.segments[at] != PADDING_SEGMENT;
        buf.positions[at] = if is_same { buf.positions[at - 1] + 1 } else { 0 };
    }
}

/// Corrects the byte order after reading; nothing to do on little-endian machines.
fn from_little_endian(buf: &mut RowBuf<'_>) {
    if cfg!(target_endian = "big") {
        buf.tokens.iter_mut().for_each(|value| *value = u32::from_le(*value));
        buf.labels.iter_mut().chain(buf.segments.iter_mut()).for_each(|value| *value = i32::from_le(*value));
        buf.loss_weight.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
    }
}

/// Writes a row file.
pub(crate) struct RowWriter {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    rows: u64,
    record: Vec<u8>,
}

impl RowWriter {
    pub(crate) fn create(path: &Path) -> Result<RowWriter, DataError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|error| DataError::io(&temporary, error))?;
        let mut writer = BufWriter::with_capacity(64 << 10, file);
        writer.write_all(&[0; HEADER_BYTES]).map_err(|error| DataError::io(&temporary, error))?;
        Ok(RowWriter { path: path.to_owned(), temporary, writer, rows: 0, record: Vec::new() })
    }

    /// Writes the header, makes the file durable and gives it its name.
    pub(crate) fn finish(mut self, header: Header) -> Result<RowFile, DataError> {
        let io = |error| DataError::io(&self.temporary, error);
        let header = Header { rows: self.rows, ..header };
        self.writer.seek(SeekFrom::Start(0)).map_err(io)?;
        self.writer.write_all(&header.encode()).map_err(io)?;
        self.writer.flush().map_err(io)?;
        self.writer.get_ref().sync_all().map_err(io)?;
        std::fs::rename(&self.temporary, &self.path).map_err(io)?;
        sync_folder(self.path.parent().unwrap_or(Path::new("")))?;
        let reopened = RowFile::open(&self.path)?;
        reopened.ok_or_else(|| DataError::file(&self.path, "the file changed while it was being written"))
    }
}

/// Rows that were not finished are no use to anyone.
impl Drop for RowWriter {
    fn drop(&mut self) {
        // After `finish` the file has another name; otherwise there is an error already, which says more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Rows without a place to go are not made: `None` is the side of a data set that holds out nothing.
impl<S: RowSink> RowSink for Option<S> {
    fn push(&mut self, row: &Row) -> Result<(), DataError> {
        self.as_mut().map_or(Ok(()), |sink| sink.push(row))
    }
}

impl RowSink for RowWriter {
    fn push(&mut self, row: &Row) -> Result<(), DataError> {
        self.record.clear();
        self.record.extend(row.tokens.iter().flat_map(|value| value.to_le_bytes()));
        self.record.extend(row.labels.iter().flat_map(|value| value.to_le_bytes()));
        self.record.extend(row.loss_weight.iter().flat_map(|value| value.to_le_bytes()));
        self.record.extend(row.segments.iter().flat_map(|value| value.to_le_bytes()));
        let mut digest = Fingerprint::new();
        digest.update(&self.record);
        self.record.extend(digest.finish().to_le_bytes());
        self.writer.write_all(&self.record).map_err(|error| DataError::io(&self.temporary, error))?;
        self.rows += 1;
        Ok(())
    }
}

/// Rows in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct RowTable {
    seq: usize,
    rows: Vec<Row>,
}

impl RowTable {
    pub(crate) fn new(seq: usize) -> RowTable {
        RowTable { seq, rows: Vec::new() }
    }
}

impl RowSink for RowTable {
    fn push(&mut self, row: &Row) -> Result<(), DataError> {
        self.rows.push(row.clone());
        Ok(())
    }
}

impl RowReader for RowTable {
    fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    fn seq(&self) -> usize {
        self.seq
    }

    fn read(&self, row: u64, buf: &mut RowBuf<'_>) -> Result<(), DataError> {
        check(self, row, buf);
        let row = &self.rows[row as usize];
        buf.tokens.copy_from_slice(&row.tokens);
        buf.labels.copy_from_slice(&row.labels);
        buf.loss_weight.copy_from_slice(&row.loss_weight);
        buf.positions.copy_from_slice(&row.positions);
        buf.segments.copy_from_slice(&row.segments);
        Ok(())
    }
}

/// Labels that are trained in a row.
pub(crate) fn trained_labels(row: &Row) -> u64 {
    row.labels.iter().filter(|&&label| label != IGNORED).count() as u64
}
