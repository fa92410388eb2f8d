//! What compilers of kernels have made, kept in files from run to run.
//!
//! A file is named after everything that it was made of, appears whole, and ends with a checksum; one that is damaged,
//! or cannot be read or written, costs time and no more. `TINYFORGE_KERNEL_CACHE` names the folder; without it the
//! user's cache holds it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use tinyforge_plan::encode::crc32;

/// The file of what was made of these, where there is a folder for it.
pub(super) fn file(stem: &str, made_of: impl Hash) -> Option<PathBuf> {
    let mut hash = DefaultHasher::new();
    made_of.hash(&mut hash);
    folder().map(|f| f.join(format!("{stem}-{:016x}.bin", hash.finish())))
}

/// What the file holds, if it is whole.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let end = bytes.split_off(bytes.len().checked_sub(4)?);
    (end == crc32(&bytes).to_le_bytes()).then_some(bytes)
}

/// Writes a file; one that cannot be written is made anew next time.
pub(super) fn write(path: &Path, bytes: &[u8]) {
    let own = path.with_extension(std::process::id().to_string());
    let whole = [bytes, &crc32(bytes).to_le_bytes()].concat();
    let made = path.parent().map(std::fs::create_dir_all).is_some_and(|r| r.is_ok());
    if made && std::fs::write(&own, whole).is_ok() && std::fs::rename(&own, path).is_err() {
        let _ = std::fs::remove_file(&own);
    }
}

fn folder() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let of_user = || of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|h| h.join(".cache")));
    of("TINYFORGE_KERNEL_CACHE").or_else(|| of_user().map(|c| c.join("tinyforge").join("kernels")))
}

#[cfg(test)]
mod tests {
    use super::{read, write};

    #[test]
    fn what_is_damaged_is_not_read() {
        let path = std::env::temp_dir().join(format!("tinyforge-kept-{}.bin", std::process::id()));
        write(&path, b"made");
        assert_eq!(read(&path), Some(b"made".to_vec()));
        let whole = std::fs::read(&path).expect("written");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, &damaged).expect("written");
            assert_eq!(read(&path), None, "byte {at}");
            std::fs::write(&path, &whole[..at]).expect("written");
            assert_eq!(read(&path), None, "{at} bytes of it");
        }
        std::fs::remove_file(&path).expect("was there");
        assert_eq!(read(&path), None);
    }
}
