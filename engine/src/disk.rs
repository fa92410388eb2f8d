//! How fast a disk reads and writes large files, with nothing in the system's page cache where it lets us.

use crate::far::BLOCK_BYTES;
use crate::far::direct::{self, Chunk};
use crate::files::FileError;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of one request.
const PIECE_BYTES: usize = 4 << 20;
/// Bytes written between waits for the disk.
const SYNC_BYTES: u64 = 64 << 20;
/// Requests under way at a time, of which the fastest number counts.
const READERS: [usize; 3] = [1, 2, 4];
/// Small reads for the latency.
const SMALL_READS: usize = 33;

/// What a disk was measured to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskRates {
    /// Sequential reading, cold where `is_direct`.
    pub read_bytes_per_second: f64,
    /// Sequential writing to a new file, until it is on the disk; `None` where a file was given.
    pub write_bytes_per_second: Option<f64>,
    /// From a request for a block to the block, the median.
    pub latency_s: f64,
    /// Whether reads went past the page cache.
    pub is_direct: bool,
}

/// Measures with a temporary file of at most `bytes` in `folder`, for about three times `limit`.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the file is removed.
pub fn of_folder(folder: &Path, bytes: u64, limit: Duration) -> Result<DiskRates, FileError> {
    let path = folder.join(format!(".tinyforge-bench-{}", std::process::id()));
    let result = write(&path, bytes, limit).and_then(|write_bytes_per_second| {
        let rates = of_file(&path, limit)?;
        Ok(DiskRates { write_bytes_per_second: Some(write_bytes_per_second), ..rates })
    });
    // What was measured stands, whatever becomes of the file.
    let _ = std::fs::remove_file(&path);
    result
}

/// Measures the reading of a file, for at most twice `limit`.
///
/// # Errors
/// It cannot be read, or is too short to measure.
pub fn of_file(path: &Path, limit: Duration) -> Result<DiskRates, FileError> {
    let err = |source| FileError::new(path, "cannot read", source);
    let (file, is_direct) = direct::open(path, OpenOptions::new().read(true)).map_err(err)?;
    let pieces = file.metadata().map_err(err)?.len() / PIECE_BYTES as u64;
    if pieces < READERS.len() as u64 {
        return Err(err(io::Error::other(format!("it is shorter than {} MiB", (READERS.len() * PIECE_BYTES) >> 20))));
    }
    let latency_s = latency(&file, pieces).map_err(err)?;
    // Each number of readers has a part of the file of its own: what was read once may be in a cache of the disk.
    let share = pieces / READERS.len() as u64;
    let mut best = 0.0f64;
    for (i, readers) in READERS.into_iter().enumerate() {
        let first = i as u64 * share;
        let limit = limit / READERS.len() as u32;
        best = best.max(read(&file, first, first + share, readers, limit).map_err(err)?);
    }
    Ok(DiskRates { read_bytes_per_second: best, write_bytes_per_second: None, latency_s, is_direct })
}

/// Reads pieces from `first` to `end`, so many at a time: bytes a second.
fn read(file: &File, first: u64, end: u64, readers: usize, limit: Duration) -> io::Result<f64> {
    let next = AtomicU64::new(first);
    let started = Instant::now();
    let read = || -> io::Result<u64> {
        let mut buffer = Chunk::of(PIECE_BYTES);
        let mut bytes = 0;
        while started.elapsed() < limit {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= end {
                break;
            }
            direct::read_all(file, piece * PIECE_BYTES as u64, buffer.bytes(PIECE_BYTES))?;
            bytes += PIECE_BYTES as u64;
        }
        Ok(bytes)
    };
    let bytes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|t| t.join().expect("readers do not panic")).sum::<io::Result<u64>>()
    })?;
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

/// The median time of reading one block somewhere.
fn latency(file: &File, pieces: u64) -> io::Result<f64> {
    let mut buffer = Chunk::of(PIECE_BYTES);
    let mut times = Vec::with_capacity(SMALL_READS);
    for i in 0..SMALL_READS as u64 {
        // Steps by the golden ratio of the file, so that no read is ahead of the next.
        let piece = (i * 1_640_531_527) % pieces;
        let started = Instant::now();
        direct::read_all(file, piece * PIECE_BYTES as u64, buffer.bytes(BLOCK_BYTES as usize))?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[SMALL_READS / 2])
}

/// Writes a new file of bytes that no disk can shorten, until it is there: bytes a second.
fn write(path: &Path, bytes: u64, limit: Duration) -> Result<f64, FileError> {
    let err = |source| FileError::new(path, "cannot write", source);
    let file = File::create(path).map_err(err)?;
    let mut buffer = Chunk::of(PIECE_BYTES);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let started = Instant::now();
    let mut written = 0u64;
    // A file too short to be read for a while would tell nothing.
    let least = 4 * READERS.len() * PIECE_BYTES;
    while written < bytes && (started.elapsed() < limit || written < least as u64) {
        for word in buffer.bytes(PIECE_BYTES).chunks_exact_mut(8) {
            // Xorshift of Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        direct::write_all(&file, written, buffer.bytes(PIECE_BYTES)).map_err(err)?;
        written += PIECE_BYTES as u64;
        // What waits in the page cache is not written: the limit would mean little.
        if written.is_multiple_of(SYNC_BYTES) {
            file.sync_data().map_err(err)?;
        }
    }
    file.sync_all().map_err(err)?;
    Ok(written as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_rates_and_the_file_goes_away() {
        let folder = std::env::temp_dir().join(format!("tinyforge-disk-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let rates = of_folder(&folder, 16 << 20, Duration::from_millis(50)).expect("measured");
        assert!(rates.read_bytes_per_second > 1e5 && rates.write_bytes_per_second.is_some_and(|w| w > 1e5));
        assert!(rates.latency_s > 0.0);
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
        std::fs::write(folder.join("short"), [0; 100]).expect("written");
        let said = of_file(&folder.join("short"), Duration::from_millis(10)).expect_err("too short").to_string();
        assert!(said.contains("shorter than 12 MiB"), "{said}");
        assert!(of_folder(&folder.join("none"), 1 << 20, Duration::from_millis(10)).is_err());
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
