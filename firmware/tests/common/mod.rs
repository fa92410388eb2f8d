//! A flash that loses power.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

/// The power is gone, or a call was wrong.
#[derive(Debug)]
pub struct Dead(NorFlashErrorKind);

impl NorFlashError for Dead {
    fn kind(&self) -> NorFlashErrorKind {
        self.0
    }
}

/// A flash in memory: bits go from 1 to 0 by writing, back by erasing whole units; a unit that was written is not
/// written again before it is erased; and power fails at any byte of writing or of erasing.
#[derive(Clone)]
pub struct Flash<const WRITE: usize, const ERASE: usize> {
    pub bytes: Vec<u8>,
    written: Vec<bool>,
    /// What is done before the power fails.
    pub left: u64,
    /// A byte whose lowest bit stays 1 whatever is written.
    #[allow(dead_code, reason = "for the tests of checkpoints")]
    pub stuck: Option<usize>,
    /// What was done.
    pub done: u64,
    noise: u32,
}

impl<const WRITE: usize, const ERASE: usize> Flash<WRITE, ERASE> {
    pub fn new(units: usize) -> Self {
        // Not erased: what lies there at first is anything.
        let mut flash = Flash {
            bytes: vec![0; units * ERASE],
            written: vec![true; units * ERASE / WRITE],
            left: u64::MAX,
            done: 0,
            stuck: None,
            noise: 1,
        };
        for i in 0..flash.bytes.len() {
            flash.bytes[i] = flash.noise() as u8;
        }
        flash
    }

    /// Lets everything be written again, for bytes that a test put there.
    #[allow(dead_code, reason = "for the tests of checkpoints")]
    pub fn forget(&mut self) {
        self.written.fill(false);
    }

    fn noise(&mut self) -> u32 {
        self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.noise >> 16
    }

    /// One more piece of work; false when the power fails in the middle of it.
    fn work(&mut self) -> bool {
        self.done += 1;
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

impl<const WRITE: usize, const ERASE: usize> ErrorType for &mut Flash<WRITE, ERASE> {
    type Error = Dead;
}

impl<const WRITE: usize, const ERASE: usize> ReadNorFlash for &mut Flash<WRITE, ERASE> {
    const READ_SIZE: usize = WRITE;
    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Dead> {
        check_read(self, offset, bytes.len()).expect("reads are aligned and inside");
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WRITE: usize, const ERASE: usize> NorFlash for &mut Flash<WRITE, ERASE> {
    const WRITE_SIZE: usize = WRITE;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Dead> {
        check_erase(self, from, to).expect("erasures are aligned and inside");
        if self.left == 0 {
            return Err(Dead(NorFlashErrorKind::Other));
        }
        // Units go in one piece; every byte of one may be where the power fails, and bytes go in no order.
        for unit in (from as usize..to as usize).step_by(ERASE) {
            for i in 0..ERASE {
                let at = unit + i * 7 % ERASE;
                if !self.work() {
                    self.bytes[at] |= self.noise() as u8;
                    return Err(Dead(NorFlashErrorKind::Other));
                }
                self.bytes[at] = 0xff;
                self.written[at / WRITE] = i < ERASE - 1;
            }
            self.written[unit / WRITE..(unit + ERASE) / WRITE].fill(false);
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Dead> {
        check_write(self, offset, bytes.len()).expect("writes are aligned and inside");
        if self.left == 0 {
            return Err(Dead(NorFlashErrorKind::Other));
        }
        for (i, word) in bytes.chunks(WRITE).enumerate() {
            let at = offset as usize + i * WRITE;
            assert!(!self.written[at / WRITE], "a unit is written twice");
            self.written[at / WRITE] = true;
            // The bytes of a unit before the cut are there, those from it on are anything in between.
            let mut cut = false;
            for (k, byte) in word.iter().enumerate() {
                cut = cut || !self.work();
                let keep = if cut { self.noise() as u8 } else { u8::from(self.stuck == Some(at + k)) };
                self.bytes[at + k] &= byte | keep;
            }
            if cut {
                return Err(Dead(NorFlashErrorKind::Other));
            }
        }
        Ok(())
    }
}
