//! Which files a data set is made of, and reading them in bounded pieces: by line, or as a stream of text.

use super::DataError;
use crate::text::chunk::{PART_BYTES, RUN_BYTES, part_len};
use crate::text::fingerprint::Fingerprint;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The longest line accepted.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 20;
/// A line buffer larger than this is given back after its line.
const LINE_BYTES_KEPT: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line.
    Lines,
    /// Text, one stream.
    Text,
}

/// One file of a data set.
#[derive(Debug, Clone)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) len: u64,
    pub(crate) modified_ns: u128,
}

/// The files of a data set in reading order: the file itself, or those of a directory by name.
pub(crate) fn list(path: &Path) -> Result<Vec<DataFile>, DataError> {
    let meta = std::fs::metadata(path).map_err(|error| DataError::io(path, error))?;
    if !meta.is_dir() {
        return Ok(vec![describe(path, format_by_name(path))?]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| DataError::io(path, error))? {
        paths.push(entry.map_err(|error| DataError::io(path, error))?.path());
    }
    paths.sort();
    let mut files = Vec::new();
    for path in &paths {
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if let (false, Some(format)) = (is_hidden, format_by_name(path))
            && path.is_file()
        {
            files.push(describe(path, Some(format))?);
        }
    }
    if files.is_empty() {
        return Err(DataError::file(path, "the directory has no .jsonl or .txt file"));
    }
    Ok(files)
}

fn format_by_name(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "jsonl" | "ndjson" | "json" => Some(Format::Lines),
        "txt" | "md" | "text" => Some(Format::Text),
        _ => None,
    }
}

fn describe(path: &Path, format: Option<Format>) -> Result<DataFile, DataError> {
    let io = |error| DataError::io(path, error);
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.len() == 0 {
        return Err(DataError::file(path, "the file is empty"));
    }
    let modified = meta.modified().map_err(io)?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let format = match format {
        Some(format) => format,
        None => sniff(path).map_err(io)?,
    };
    Ok(DataFile { path: path.to_owned(), format, len: meta.len(), modified_ns: modified.as_nanos() })
}

/// A file whose name says nothing is JSON lines when its first visible character opens an object.
fn sniff(path: &Path) -> std::io::Result<Format> {
    let mut head = Vec::new();
    File::open(path)?.take(READ_BYTES as u64).read_to_end(&mut head)?;
    let head = head.strip_prefix(BOM).unwrap_or(&head);
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    Ok(if first == Some(&b'{') { Format::Lines } else { Format::Text })
}

/// The digest of a file's content.
pub(crate) fn content_digest(path: &Path) -> Result<u64, DataError> {
    let mut file = DigestReader::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    while file.read(&mut buffer).map_err(|error| DataError::io(path, error))? > 0 {}
    Ok(file.digest.finish())
}

/// A file whose bytes go into a digest as they are read.
pub(crate) struct DigestReader {
    file: File,
    digest: Fingerprint,
    read_bytes: u64,
}

impl DigestReader {
    fn open(path: &Path) -> Result<DigestReader, DataError> {
        let file = File::open(path).map_err(|error| DataError::io(path, error))?;
        Ok(DigestReader { file, digest: Fingerprint::new(), read_bytes: 0 })
    }
}

impl Read for DigestReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.digest.update(&buffer[..n]);
        self.read_bytes += n as u64;
        Ok(n)
    }
}

/// A file read line by line. Lines without visible characters are passed over; a byte-order mark at the start and the
/// line ends, `\n` or `\r\n`, are taken off.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<DigestReader>,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Lines, DataError> {
        let reader = BufReader::with_capacity(READ_BYTES, DigestReader::open(path)?);
        Ok(Lines { path: path.to_owned(), reader, line: 0, buffer: Vec::new() })
    }

    /// The next line with its number, from 1.
    /// Errors: reading, bytes that are not UTF-8, a line of more than 64 MiB.
    pub(crate) fn next_line(&mut self) -> Result<Option<(u64, &str)>, DataError> {
        loop {
            self.buffer.clear();
            self.buffer.shrink_to(LINE_BYTES_KEPT);
            let limit = LINE_BYTES_MAX as u64 + 2;
            let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer);
            if read.map_err(|error| DataError::io(&self.path, error))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.line == 1 && self.buffer.starts_with(BOM) {
                self.buffer.drain(..BOM.len());
            }
            while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
                self.buffer.pop();
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.error(format!("the line is longer than {} MiB", LINE_BYTES_MAX >> 20)));
            }
            if !self.buffer.iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((self.line, text))),
            Err(error) => Err(self.error(format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1))),
        }
    }

    fn error(&self, message: String) -> DataError {
        DataError::Line { path: self.path.clone(), line: self.line, message }
    }

    /// Bytes read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.reader.get_ref().read_bytes
    }

    /// The digest of the content, once all lines are read.
    pub(crate) fn digest(&self) -> u64 {
        self.reader.get_ref().digest.finish()
    }
}

/// A text file read in parts that tokenise as the whole does.
pub(crate) struct TextParts {
    path: PathBuf,
    reader: DigestReader,
    /// Bytes read and not yet given out; the first `valid` of them are checked text.
    buffer: Vec<u8>,
    valid: usize,
    given: usize,
    line: u64,
    is_at_end: bool,
}

impl TextParts {
    pub(crate) fn open(path: &Path) -> Result<TextParts, DataError> {
        let reader = DigestReader::open(path)?;
        Ok(TextParts {
            path: path.to_owned(),
            reader,
            buffer: Vec::new(),
            valid: 0,
            given: 0,
            line: 1,
            is_at_end: false,
        })
    }

    /// The next part and the number of its first line, from 1.
    /// Errors: reading, bytes that are not UTF-8.
    pub(crate) fn next_part(&mut self) -> Result<Option<(u64, &str)>, DataError> {
        self.line += line_breaks(&self.buffer[..self.given]);
        self.buffer.drain(..self.given);
        self.valid -= self.given;
        self.given = 0;
        let len = loop {
            let text = self.text();
            let len = part_len(text);
            let is_cut = len < text.len() && text.len() > PART_BYTES + 4;
            if is_cut || text.len() >= RUN_BYTES + 4 || self.is_at_end {
                break len;
            }
            self.fill()?;
        };
        self.given = len;
        let line = self.line;
        Ok((len > 0).then(|| (line, &self.text()[..len])))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.buffer[..self.valid]).unwrap_or_default()
    }

    fn fill(&mut self) -> Result<(), DataError> {
        let is_first = self.reader.read_bytes == 0;
        let read = self.reader.by_ref().take(READ_BYTES as u64).read_to_end(&mut self.buffer);
        self.is_at_end = read.map_err(|error| DataError::io(&self.path, error))? == 0;
        if is_first && self.buffer.starts_with(BOM) {
            self.buffer.drain(..BOM.len());
        }
        let error = match std::str::from_utf8(&self.buffer[self.valid..]) {
            Ok(text) => {
                self.valid += text.len();
                return Ok(());
            }
            Err(error) => error,
        };
        self.valid += error.valid_up_to();
        if error.error_len().is_none() && !self.is_at_end {
            return Ok(());
        }
        let line = self.line + line_breaks(&self.buffer[..self.valid]);
        let byte = self.reader.read_bytes - (self.buffer.len() - self.valid) as u64 + 1;
        let message = format!("byte {byte} of the file is not UTF-8 text");
        Err(DataError::Line { path: self.path.clone(), line, message })
    }

    /// Bytes read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.reader.read_bytes
    }

    /// The digest of the content, once all parts are read.
    pub(crate) fn digest(&self) -> u64 {
        self.reader.digest.finish()
    }
}

fn line_breaks(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}
