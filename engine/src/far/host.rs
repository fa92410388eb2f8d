//! The part of the far memory that is the host's: tensors rest there from load to end, in place of a file.

use super::Span;
use crate::arena::Arena;
use std::sync::{Mutex, PoisonError};

/// Memory of the host for tensors of the far memory.
pub(crate) trait HostMemory: Send + Sync {
    /// The bytes from `at` on, for a copy or a step of the host. They lie apart from what others use meanwhile, as the
    /// plan's checker has made sure.
    fn part(&self, at: u64, bytes: u64) -> Span;
}

/// Plain memory, for devices that copy from wherever bytes are.
pub(super) struct Ram(Mutex<Arena>);

impl Ram {
    /// So many bytes, all of them there.
    ///
    /// # Errors
    /// The system has less.
    pub(super) fn new(bytes: u64) -> std::io::Result<Ram> {
        let mut memory = Arena::new(0, bytes)?;
        // Pages are taken when they are touched.
        memory.bytes_mut().fill(0);
        Ok(Ram(Mutex::new(memory)))
    }
}

impl HostMemory for Ram {
    fn part(&self, at: u64, bytes: u64) -> Span {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).part(at, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{HostMemory, Ram};

    #[test]
    fn parts_are_of_one_memory() {
        let memory = Ram::new(100).expect("there is room");
        memory.part(10, 20).bytes_mut().copy_from_slice(&[7; 20]);
        assert_eq!(memory.part(0, 100).bytes(), [vec![0; 10], vec![7; 20], vec![0; 70]].concat());
        assert!(std::panic::catch_unwind(|| memory.part(90, 11)).is_err(), "past the end");
    }
}
