//! Who carries out moves: threads of its own, or a simulated machine.

use super::mover::Move;
use crate::runner::RunError;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Carries out moves beside the steps.
pub(crate) trait Carrier: Send + Sync {
    /// Hands over a move; the number it has among all, ascending from 1.
    fn begin(&mut self, m: &Move, span: Span) -> u64;

    /// Waits until the move of this number has ended.
    ///
    /// # Errors
    /// A move failed: each failure is told once.
    fn wait(&mut self, number: u64) -> Result<(), RunError>;

    /// Waits until nothing is under way, whether or not something failed.
    ///
    /// # Errors
    /// A move failed.
    fn wait_all(&mut self) -> Result<(), RunError>;

    /// Waits for what an entry leaves under way when all that its steps wait for has been waited for.
    ///
    /// # Errors
    /// A move failed.
    fn rest(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    /// A step has ended.
    fn stepped(&mut self);

    /// What waits for moves elsewhere than where steps are begun; nothing where a move has ended once [`Carrier::wait`]
    /// returns.
    fn landing(&self) -> Option<Arc<dyn Landing>> {
        None
    }

    /// Time that steps waited, time that moves took, and the bytes that moved.
    fn times(&self) -> (Duration, Duration, u64);
}

/// Waits for moves that streams carry out, of what rests in the host's memory.
pub(crate) trait Landing: Send + Sync {
    /// Waits until the move of this number has ended, of those that have begun since all was at rest.
    ///
    /// # Errors
    /// The device failed.
    fn wait(&self, number: u64) -> Result<(), RunError>;
}

/// A part of the arena for one move, or of the host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: NonNull<u8>,
    pub(crate) bytes: usize,
}

// SAFETY: a span is handed to the carrier for one move at a time, in which nothing else touches its bytes; the arena
// and the host's memory outlive the carrier, which is dropped first.
#[expect(unsafe_code, reason = "parts of the arena go to the thread that fills them")]
unsafe impl Send for Span {}
// SAFETY: through a shared span its bytes are only read, and only by who carries out the move.
#[expect(unsafe_code, reason = "parts of the arena go to the thread that fills them")]
unsafe impl Sync for Span {}

impl Span {
    /// A part of it, `bytes` long, from byte `at` on.
    #[expect(unsafe_code, reason = "parts of the arena go to the threads that fill them")]
    pub(crate) fn part(&self, at: usize, bytes: usize) -> Span {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "a part of a span lies in it");
        // SAFETY: the byte lies in the span, or is its end.
        Span { start: unsafe { self.start.add(at) }, bytes }
    }

    /// What lies there, for a move that goes out.
    #[expect(unsafe_code, reason = "parts of the arena go to the thread that fills them")]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the span lies inside the arena; steps may read it meanwhile, and until the move has ended nothing
        // writes it: the plan's checker has found no step that does.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The place of a move that comes in.
    #[expect(unsafe_code, reason = "parts of the arena go to the thread that fills them")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and until the move has ended no step touches it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}
