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

/// An aligned buffer, of [`CHUNK_BYTES`] for what moves.
pub struct Chunk {
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// A buffer; the only allocation here.
    pub fn new() -> Chunk {
        Chunk::of(CHUNK_BYTES)
    }

    /// A buffer of so many bytes.
    pub(crate) fn of(bytes: usize) -> Chunk {
        let memory = vec![0; bytes + BLOCK_BYTES as usize];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES as usize);
        Chunk { memory, start }
    }

    /// The first bytes of it.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::new()
    }
}

/// Of so many bytes from `offset` on, those that one read brings.
pub(crate) fn piece_bytes(offset: u64, left: usize) -> usize {
    left.min(CHUNK_BYTES - (offset % BLOCK_BYTES) as usize)
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
        let (file, is_direct) = open(path, options).map_err(|source| FileError::new(path, what, source))?;
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
            let wanted = piece_bytes(at, out.len() - done);
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

/// A file, and whether it leaves the page cache alone: as the system lets us.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<(File, bool)> {
    match open_direct(path, options) {
        Some(file) => Ok((file, true)),
        None => Ok((options.open(path)?, false)),
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

/// Fills `out` from `offset`.
pub(crate) fn read_all(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let wanted = out.len();
    read_some(file, offset, out, wanted).map(|_| ())
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, offset)
}

/// Writes all of `data` at `offset`.
#[cfg(unix)]
pub(crate) fn write_all(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, offset)
}

/// Writes all of `data` at `offset`.
#[cfg(windows)]
pub(crate) fn write_all(file: &File, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !data.is_empty() {
        match file.seek_write(data, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => (data, offset) = (&data[n..], offset + n as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, CHUNK_BYTES, Chunk, Direct};
    use std::path::PathBuf;
    use tinyforge_kernels::random::Stream;

    /// Around block and chunk.
    fn edges() -> Vec<usize> {
        let (block, chunk) = (BLOCK_BYTES as usize, CHUNK_BYTES);
        let mut edges = vec![0, 1, 7, block / 2];
        for edge in [block, 2 * block, chunk - block, chunk, chunk + block] {
            edges.extend([edge - 1, edge, edge + 1]);
        }
        edges
    }

    /// Not a multiple of a block.
    const FILE_BYTES: usize = 2 * CHUNK_BYTES + 2 * BLOCK_BYTES as usize + 77;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let stream = Stream { seed, step: 0, tensor: 0 };
        let words = (0..bytes.div_ceil(16) as u64).flat_map(|i| stream.block(i));
        let mut noise: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        noise.truncate(bytes);
        noise
    }

    /// A file's name that is free, and goes away with the value.
    struct Name(PathBuf);

    impl Name {
        fn new(name: &str) -> Name {
            Name(std::env::temp_dir().join(format!("tinyforge-direct-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Name {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// The file as the system lets it be opened, and the ordinary way.
    fn both(path: &std::path::Path) -> [Direct; 2] {
        let plain = Direct { file: std::fs::File::open(path).expect("there"), path: path.into(), is_direct: false };
        [Direct::open(path).expect("opens"), plain]
    }

    #[test]
    fn reads_of_every_alignment_are_the_file() {
        let (name, bytes) = (Name::new("reads"), noise(FILE_BYTES, 1));
        std::fs::write(&name.0, &bytes).expect("written");
        let mut chunk = Chunk::new();
        let mut out = vec![0; FILE_BYTES];
        for file in both(&name.0) {
            for offset in edges() {
                for len in edges().into_iter().filter(|len| offset + len <= FILE_BYTES) {
                    let out = &mut out[..len];
                    out.fill(0xa5);
                    file.read(offset as u64, out, &mut chunk).expect("inside the file");
                    assert!(*out == bytes[offset..offset + len], "{len} bytes from {offset}");
                }
                let tail = &mut out[..FILE_BYTES - offset];
                file.read(offset as u64, tail, &mut chunk).expect("up to the end");
                assert!(*tail == bytes[offset..], "all from {offset}");
            }
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error() {
        let (name, bytes) = (Name::new("end"), noise(FILE_BYTES, 2));
        std::fs::write(&name.0, &bytes).expect("written");
        let mut chunk = Chunk::new();
        for file in both(&name.0) {
            for (offset, len) in [(FILE_BYTES, 1), (FILE_BYTES - 1, 2), (0, FILE_BYTES + 1), (FILE_BYTES + 5000, 1)] {
                let error = file.read(offset as u64, &mut vec![0; len], &mut chunk).expect_err("there is no more");
                assert_eq!(error.source.kind(), std::io::ErrorKind::UnexpectedEof, "{len} bytes from {offset}");
            }
            // The file is cut off while it is open.
            let longer = std::fs::File::options().write(true).open(&name.0).expect("opens");
            longer.set_len(FILE_BYTES as u64 / 2).expect("cut");
            file.read(0, &mut vec![0; FILE_BYTES], &mut chunk).expect_err("half of it is gone");
            file.read(0, &mut vec![0; FILE_BYTES / 2], &mut chunk).expect("the first half is there");
            std::fs::write(&name.0, &bytes).expect("written");
        }
    }

    #[test]
    fn writes_of_every_alignment_leave_the_rest() {
        let name = Name::new("writes");
        let made = Direct::create(&name.0, FILE_BYTES as u64).expect("made");
        let path = name.0.clone();
        let plain = || std::fs::File::options().read(true).write(true).open(&path).expect("there");
        let ways = [made, Direct { file: plain(), path: path.clone(), is_direct: false }];
        let mut chunk = Chunk::new();
        let mut wanted = std::fs::read(&name.0).expect("reserved");
        assert!(wanted.len() >= FILE_BYTES && wanted.iter().all(|&b| b == 0), "{} bytes", wanted.len());
        let data = noise(FILE_BYTES, 3);
        for file in &ways {
            for (i, offset) in edges().into_iter().enumerate() {
                for len in edges().into_iter().filter(|len| offset + len <= FILE_BYTES) {
                    // Other bytes every time.
                    let from = (i * 131 + len) % 997;
                    let data = &data[from.min(FILE_BYTES - len)..][..len];
                    file.write(offset as u64, data, &mut chunk).expect("there is room");
                    wanted[offset..offset + len].copy_from_slice(data);
                    assert!(std::fs::read(&name.0).expect("there") == wanted, "{len} bytes at {offset}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error_and_not_left() {
        let name = Name::new("large");
        // More than any disk has.
        let error = Direct::create(&name.0, 1 << 60).map(|_| ()).expect_err("no disk is so large");
        assert!(error.to_string().contains(&(1u64 << 60).to_string()), "{error}");
        assert!(!name.0.exists(), "half a file is left");
        Direct::create(&name.0.join("below"), 1).map(|_| ()).expect_err("there is no such folder");
    }
}
