//! Large reads and writes that leave nothing in the system's page cache, where it lets us.
//!
//! The system then wants offsets, lengths and memory in multiples of a block, so all bytes go through one aligned
//! buffer. A file system that refuses is read and written the ordinary way.

use crate::files::FileError;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// What offsets and lengths are multiples of.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes that are moved at one time.
pub const CHUNK_BYTES: usize = 1 << 20;

/// An aligned buffer of [`CHUNK_BYTES`].
pub struct Chunk {
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// A buffer; the only allocation here.
    pub fn new() -> Chunk {
        let memory = vec![0; CHUNK_BYTES + BLOCK_BYTES as usize];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES as usize);
        Chunk { memory, start }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::new()
    }
}

/// A file that is read and written past the page cache.
pub struct Direct {
    file: File,
    path: PathBuf,
    is_direct: bool,
}

impl Direct {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn open(path: &Path) -> Result<Direct, FileError> {
        Direct::with(path, OpenOptions::new().read(true), "cannot open")
    }

    /// Makes a file of `bytes` for reading and writing; the space is reserved, so that a full disk shows here.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk is full; then nothing is left of it.
    pub fn create(path: &Path, bytes: u64) -> Result<Direct, FileError> {
        let made =
            Direct::with(path, OpenOptions::new().read(true).write(true).create(true).truncate(true), "cannot make")?;
        let result = reserve(&made.file, bytes.next_multiple_of(BLOCK_BYTES));
        result.map_err(|source| {
            // An error here would hide the first one.
            let _ = std::fs::remove_file(path);
            let why = std::io::Error::new(source.kind(), format!("{bytes} bytes: {source}"));
            FileError::new(path, "cannot reserve space for the work file", why)
        })?;
        Ok(made)
    }

    fn with(path: &Path, options: &mut OpenOptions, what: &'static str) -> Result<Direct, FileError> {
        let err = |source| FileError::new(path, what, source);
        let (file, is_direct) = match open_direct(path, options) {
            Some(file) => (file, true),
            None => (options.open(path).map_err(err)?, false),
        };
        Ok(Direct { file, path: path.to_path_buf(), is_direct })
    }

    /// Whether the page cache is left alone.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// The file ends before (it was cut off), or the system fails.
    pub fn read(&self, offset: u64, out: &mut [u8], chunk: &mut Chunk) -> Result<(), FileError> {
        let err = |source| FileError::new(&self.path, "cannot read", source);
        if !self.is_direct {
            return read_all(&self.file, offset, out).map_err(err);
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let first = at - at % BLOCK_BYTES;
            let skip = (at - first) as usize;
            let wanted = (out.len() - done).min(CHUNK_BYTES - skip);
            let len = (skip + wanted).next_multiple_of(BLOCK_BYTES as usize);
            let bytes = chunk.bytes(len);
            let there = read_some(&self.file, first, bytes, skip + wanted).map_err(err)?;
            debug_assert!(there >= skip + wanted);
            out[done..done + wanted].copy_from_slice(&bytes[skip..skip + wanted]);
            done += wanted;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; what lies around it stays.
    ///
    /// # Errors
    /// The disk is full, or the system fails.
    pub fn write(&self, offset: u64, data: &[u8], chunk: &mut Chunk) -> Result<(), FileError> {
        let err = |source| FileError::new(&self.path, "cannot write", source);
        let block = BLOCK_BYTES as usize;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (first, skip) = (at - at % BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let left = data.len() - done;
            let is_whole = skip == 0 && left >= block;
            let len = if is_whole { (left - left % block).min(CHUNK_BYTES) } else { left.min(block - skip) };
            let bytes = chunk.bytes(len.max(block));
            if !is_whole {
                read_all(&self.file, first, bytes).map_err(err)?;
            }
            bytes[skip..skip + len].copy_from_slice(&data[done..done + len]);
            write_all(&self.file, first, bytes).map_err(err)?;
            done += len;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path, options: &mut OpenOptions) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut with_flag = options.clone();
    with_flag.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path, _: &mut OpenOptions) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        result => Ok(result?),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}

/// Reads until at least `wanted` bytes are there.
fn read_some(file: &File, offset: u64, out: &mut [u8], wanted: usize) -> io::Result<usize> {
    let mut there = 0;
    while there < wanted {
        match read_at(file, &mut out[there..], offset + there as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => there += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(there)
}

fn read_all(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let wanted = out.len();
    read_some(file, offset, out, wanted).map(|_| ())
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, offset)
}

#[cfg(unix)]
fn write_all(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, offset)
}

#[cfg(windows)]
fn write_all(file: &File, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !data.is_empty() {
        match file.seek_write(data, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => (data, offset) = (&data[n..], offset + n as u64),
        }
    }
    Ok(())
}
