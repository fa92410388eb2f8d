//! Scratch: typed pieces cut from the bytes that the caller lends.

use bytemuck::Pod;

/// Alignment of every piece, one cache line.
const ALIGN: usize = 64;

/// Bytes to reserve for a piece of `len` elements, wherever the scratch begins.
pub(crate) const fn piece_bytes<T>(len: usize) -> usize {
    len * size_of::<T>() + ALIGN
}

/// What is left of the caller's scratch.
pub(crate) struct Scratch<'a> {
    rest: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Scratch { rest: bytes }
    }

    /// Cuts off `len` elements, aligned to a cache line, holding whatever was there.
    ///
    /// Panics when the scratch is smaller than the kernel's `scratch_bytes` said: the planner's mistake.
    pub(crate) fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let rest = core::mem::take(&mut self.rest);
        let start = rest.as_ptr().align_offset(ALIGN);
        let end = start + len * size_of::<T>();
        assert!(end <= rest.len(), "scratch holds {} bytes, the next piece ends at {end}", rest.len());
        let (piece, rest) = rest.split_at_mut(end);
        self.rest = rest;
        bytemuck::cast_slice_mut(&mut piece[start..])
    }

    /// The bytes that are left.
    pub(crate) fn rest(self) -> &'a mut [u8] {
        self.rest
    }
}
