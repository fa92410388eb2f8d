//! Reading at offsets and writing so that nothing is half there. Operating-system differences stay in this file.
//!
//! Reads go straight into the caller's memory: a mapped file's pages would count against the budget.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tinyforge_plan::encode::crc32_more;

/// Something that failed on a path.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}: {source}")]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was being done.
    pub what: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// An error of this path.
    pub fn new(path: &Path, what: &'static str, source: io::Error) -> FileError {
        FileError { path: path.to_path_buf(), what, source }
    }
}

/// A file opened for reads at offsets.
pub struct ReadAt {
    file: File,
    path: PathBuf,
    len: u64,
}

impl ReadAt {
    /// Opens a file.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn open(path: &Path) -> Result<ReadAt, FileError> {
        let err = |source| FileError::new(path, "cannot open", source);
        let file = File::open(path).map_err(err)?;
        let meta = file.metadata().map_err(err)?;
        if meta.is_dir() {
            return Err(err(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(ReadAt { file, path: path.to_path_buf(), len: meta.len() })
    }

    /// Bytes in the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file was empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// The file ends before, or the system fails.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), FileError> {
        #[cfg(unix)]
        let result = std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset);
        #[cfg(windows)]
        let result = read_exact_at(&self.file, out, offset);
        result.map_err(|source| FileError::new(&self.path, "cannot read", source))
    }

    /// The first bytes of the file, at most `most`.
    ///
    /// # Errors
    /// The system fails.
    pub fn prefix(&self, most: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = vec![0; self.len.min(most) as usize];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// CRC-32 of the file's length and of samples of what it holds: pieces of 4 KiB from its beginning to its end,
    /// evenly apart. It tells one model from another of the same shape, or from itself after training; not a change of
    /// a few bytes.
    ///
    /// # Errors
    /// The system fails, or the file has become shorter.
    pub fn sampled_crc(&self) -> Result<u32, FileError> {
        const GAPS: u64 = 255;
        let mut crc = crc32_more(0, &self.len.to_le_bytes());
        let mut piece = vec![0; self.len.min(4096) as usize];
        let last = self.len - piece.len() as u64;
        let mut offsets: Vec<u64> = (0..=GAPS).map(|i| last / GAPS * i + last % GAPS * i / GAPS).collect();
        offsets.dedup();
        for offset in offsets {
            self.read(offset, &mut piece)?;
            crc = crc32_more(crc, &piece);
        }
        Ok(crc)
    }
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (out, offset) = (&mut out[n..], offset + n as u64),
        }
    }
    Ok(())
}

/// The longest configuration, tokenizer or other text that is read as a whole.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// The whole of a small file; `None` when it is not there.
///
/// # Errors
/// It cannot be read, or is too long for what it should be.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let err = |source| FileError::new(path, "cannot read", source);
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(err)?,
    };
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(err)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(err(io::Error::other(format!("it is longer than {} MiB", TEXT_BYTES_MAX >> 20))));
    }
    Ok(Some(bytes))
}

/// The whole of a small file.
///
/// # Errors
/// As [`read_if_there`], or it is not there.
pub fn read_whole(path: &Path) -> Result<Vec<u8>, FileError> {
    let missing = || FileError::new(path, "cannot read", io::ErrorKind::NotFound.into());
    read_if_there(path)?.ok_or_else(missing)
}

/// Writes a file so that a reader, even after a power loss, sees the old contents or the new: into a file beside it,
/// synced, renamed over it, and the folder synced.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the old file is as it was and the new one is removed.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    let temporary = path.with_extension("partial");
    let result = write_synced(&temporary, write).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = result {
        // The file may not exist, and an error about it would hide the first one.
        let _ = fs::remove_file(&temporary);
        return Err(FileError::new(path, "cannot write", source));
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

fn write_synced(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 16, Settling { file: File::create(path)?, unsettled_bytes: 0 });
    write(&mut file)?;
    file.flush()?;
    file.get_ref().file.sync_all()
}

/// Bytes written between waits for the disk: what the system holds of a large file meanwhile counts as memory of the
/// process where its memory is limited.
const SETTLE_BYTES: usize = 4 << 20;

/// A file that is written no faster than the disk takes it, and of which nothing is kept in the page cache.
struct Settling {
    file: File,
    unsettled_bytes: usize,
}

impl Write for Settling {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.unsettled_bytes += written;
        if self.unsettled_bytes >= SETTLE_BYTES {
            self.file.sync_data()?;
            forget_cached(&self.file);
            self.unsettled_bytes = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(target_os = "linux")]
fn forget_cached(file: &File) {
    // A wish: whether it is granted changes nothing that is written.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget_cached(_: &File) {}

/// Makes a renamed file's new name durable.
///
/// # Errors
/// The system fails.
pub fn sync_folder(path: &Path) -> Result<(), FileError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if cfg!(unix) {
        let result = File::open(path).and_then(|folder| folder.sync_all());
        result.map_err(|source| FileError::new(path, "cannot sync", source))?;
    }
    Ok(())
}
