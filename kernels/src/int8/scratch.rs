//! Typed pieces of the scratch bytes that the caller lends.

use bytemuck::Pod;

/// Where scratch begins: at a multiple of this. No piece needs more, and no target promises more.
const START: usize = 8;
/// Pieces are multiples of this long.
const ALIGN: usize = 16;

/// Bytes to reserve for a piece of `len` elements in scratch that begins at a multiple of 8.
pub(crate) const fn piece_bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGN)
}

/// What is left of the caller's scratch.
pub(crate) struct Scratch<'a> {
    rest: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// Over bytes that begin at a multiple of 8.
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        debug_assert!((bytes.as_ptr() as usize).is_multiple_of(START), "scratch begins at a multiple of {START}");
        Scratch { rest: bytes }
    }

    /// Cuts off `len` elements, holding whatever was there; none when there are not as many.
    pub(crate) fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        const { assert!(align_of::<T>() <= START) };
        let rest = core::mem::take(&mut self.rest);
        let bytes = piece_bytes::<T>(len);
        let Some((piece, rest)) = rest.split_at_mut_checked(bytes) else {
            debug_assert!(false, "the scratch is {bytes} bytes short");
            return &mut [];
        };
        self.rest = rest;
        let (_, piece, _) = bytemuck::pod_align_to_mut::<u8, T>(piece);
        piece.get_mut(..len).unwrap_or(&mut [])
    }

    /// The bytes that are left.
    pub(crate) fn rest(self) -> &'a mut [u8] {
        self.rest
    }
}
