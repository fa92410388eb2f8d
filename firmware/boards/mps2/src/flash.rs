//! A flash for checkpoints in a file of the host: it outlives the emulator, and can lose power at any piece of work.

use crate::host::{File, Mode, exit};
use tinyforge_firmware::embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash,
};

/// Bytes of one write.
pub const WRITE_BYTES: usize = 8;
/// Bytes of one erasure.
pub const ERASE_BYTES: usize = 1024;
/// Exit code of the emulator when the power fails.
pub const POWER_LOSS: u32 = 9;

/// The host refused.
#[derive(Debug)]
pub struct HostError;

impl NorFlashError for HostError {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

/// The flash. Writing only clears bits, as on a chip; power fails after so many words or erasures.
pub struct HostFlash {
    file: File,
    len: usize,
    left: u32,
}

impl HostFlash {
    /// Opens the file, or makes one of `len` erased bytes. `left`: pieces of work before the power fails, 0 for never.
    pub fn open(path: &[u8], len: usize, left: u32) -> Option<HostFlash> {
        let left = if left == 0 { u32::MAX } else { left };
        if let Some(file) = File::open(path, Mode::Change)
            && file.len_bytes() == len
        {
            return Some(HostFlash { file, len, left });
        }
        let mut file = File::open(path, Mode::Create)?;
        let done = (0..len / WRITE_BYTES).all(|_| file.write(&[0xff; WRITE_BYTES]));
        done.then_some(HostFlash { file, len, left })
    }

    /// One piece of work; false if the power fails in it.
    fn work(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }

    fn put(&mut self, at: u32, bytes: &[u8]) -> Result<(), HostError> {
        let done = self.file.seek(at as usize) && self.file.write(bytes);
        if done { Ok(()) } else { Err(HostError) }
    }
}

impl ErrorType for HostFlash {
    type Error = HostError;
}

impl ReadNorFlash for HostFlash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), HostError> {
        let done = self.file.seek(offset as usize) && self.file.fill(bytes);
        if done { Ok(()) } else { Err(HostError) }
    }

    fn capacity(&self) -> usize {
        self.len
    }
}

impl NorFlash for HostFlash {
    const WRITE_SIZE: usize = WRITE_BYTES;
    const ERASE_SIZE: usize = ERASE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), HostError> {
        for at in (from..to).step_by(ERASE_BYTES) {
            // Half a unit is erased when the power fails.
            let whole = self.work();
            let words = if whole { ERASE_BYTES } else { ERASE_BYTES / 2 } / 64;
            for word in 0..words as u32 {
                self.put(at + 64 * word, &[0xff; 64])?;
            }
            if !whole {
                exit(POWER_LOSS);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), HostError> {
        for (i, word) in bytes.as_chunks::<WRITE_BYTES>().0.iter().enumerate() {
            let at = offset + (i * WRITE_BYTES) as u32;
            let mut old = [0; WRITE_BYTES];
            self.read(at, &mut old)?;
            let mut new = *word;
            new.iter_mut().zip(old).for_each(|(new, old)| *new &= old);
            if !self.work() {
                // Half a word is written when the power fails.
                for (new, old) in new.iter_mut().zip(old).skip(WRITE_BYTES / 2) {
                    *new = old;
                }
                self.put(at, &new)?;
                exit(POWER_LOSS);
            }
            self.put(at, &new)?;
        }
        Ok(())
    }
}
