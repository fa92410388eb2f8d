//! The one block of memory that a plan runs in, and typed slots of it.
//!
//! Invariant: the slots of one call lie inside the arena, are aligned, and none that is written overlaps another. That
//! is checked while the generated code compiles, so at run time a slot is an address and nothing else. Not for memory
//! of the application.
//!
//! ```
//! use tinyforge_firmware::{Arena, Read, Slot, Write};
//! type Image = Slot<i8, 0, 4>;
//! type Sum = Slot<i32, 4, 1>;
//! let mut arena: Arena<8> = Arena::new();
//! let (image, sum) = arena.slots::<(Read<Image>, Write<Sum>)>();
//! sum[0] = image.iter().map(|&x| i32::from(x)).sum();
//! ```
//!
//! Overlap, bad alignment and a slot beyond the end do not compile:
//!
//! ```compile_fail
//! use tinyforge_firmware::{Arena, Read, Slot, Write};
//! let mut arena: Arena<8> = Arena::new();
//! arena.slots::<(Read<Slot<i8, 0, 5>>, Write<Slot<i32, 4, 1>>)>();
//! ```
#![expect(unsafe_code, reason = "the cast of arena bytes to typed slots, and the one hand-out of a static")]

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

/// What the arena's start, and so every offset, is aligned to.
pub const ALIGN_BYTES: usize = 16;

/// `N` bytes, all zero at first: as a static they cost RAM and no flash.
#[repr(C, align(16))]
pub struct Arena<const N: usize> {
    bytes: [u8; N],
}

impl<const N: usize> Arena<N> {
    /// Zeros.
    pub const fn new() -> Arena<N> {
        Arena { bytes: [0; N] }
    }

    /// These bytes: as a static that nothing writes they lie in flash.
    pub const fn of(bytes: [u8; N]) -> Arena<N> {
        Arena { bytes }
    }

    /// A slot, to be read.
    #[inline(always)]
    pub fn read<S: Located>(&self) -> &S::Array {
        const { check(&[Use { span: S::SPAN, align: S::ALIGN, is_written: false }], N) };
        // SAFETY: `check` has shown that the slot is inside and aligned from an `ALIGN_BYTES` aligned start; any bits
        // are an element.
        unsafe { &*self.bytes.as_ptr().add(S::SPAN.at).cast() }
    }

    /// All bytes.
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, to be written.
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Slots for one kernel call: a tuple of [`Read`] and [`Write`] in the order of the kernel's parameters.
    ///
    /// Compiles only if all lie inside the arena, are aligned, and no written one overlaps another.
    #[inline(always)]
    pub fn slots<S: Slots>(&mut self) -> S::Views<'_> {
        const { check(S::USES, N) };
        // SAFETY: `check` has shown that every use is inside the `N` bytes and aligned from an `ALIGN_BYTES` aligned
        // start, and that a written one overlaps no other; the views borrow the arena as a whole.
        unsafe { S::views(self.bytes.as_mut_ptr()) }
    }

    /// One slot alone.
    #[inline(always)]
    pub fn slot<S: Located>(&mut self) -> &mut S::Array {
        self.slots::<(Write<S>,)>().0
    }
}

impl<const N: usize> Default for Arena<N> {
    fn default() -> Arena<N> {
        Arena::new()
    }
}

/// Bytes `at..at + len` of an arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first byte.
    pub at: usize,
    /// The number of bytes.
    pub len: usize,
}

/// How a call uses a span.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    span: Span,
    align: usize,
    is_written: bool,
}

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

/// What a slot can hold: numbers of which every pattern of bits is one.
pub trait Element: Sealed + Copy {}

macro_rules! elements {
    ($($T:ty),*) => {$(
        impl Sealed for $T {}
        impl Element for $T {}
    )*};
}
elements!(i8, u8, i16, u16, i32, u32, f32);

/// `LEN` elements of type `T` from byte `AT` of an arena. A name for a place, never a value.
pub struct Slot<T, const AT: usize, const LEN: usize>(PhantomData<T>);

/// A slot's place and type.
pub trait Located: Sealed {
    /// Where it lies.
    const SPAN: Span;
    /// What its first byte must be a multiple of.
    const ALIGN: usize;
    /// Its elements.
    type Array: 'static;
}

impl<T, const AT: usize, const LEN: usize> Sealed for Slot<T, AT, LEN> {}
impl<T: Element + 'static, const AT: usize, const LEN: usize> Located for Slot<T, AT, LEN> {
    const SPAN: Span = Span { at: AT, len: LEN * size_of::<T>() };
    const ALIGN: usize = align_of::<T>();
    type Array = [T; LEN];
}

/// The slot `S`, read.
pub struct Read<S>(PhantomData<S>);

/// The slot `S`, written, or read and written.
pub struct Write<S>(PhantomData<S>);

/// A use of a slot: [`Read`] or [`Write`].
pub trait View: Sealed {
    /// Which bytes, and how.
    const USE: Use;
    /// The reference it gives.
    type Reference<'a>;
    /// The reference.
    ///
    /// # Safety
    /// `base` is aligned to [`ALIGN_BYTES`], the bytes of `USE` behind it live for `'a`, are aligned for its elements,
    /// and nothing else refers to them in a conflicting way.
    unsafe fn view<'a>(base: *mut u8) -> Self::Reference<'a>;
}

impl<S> Sealed for Read<S> {}
impl<S: Located> View for Read<S> {
    const USE: Use = Use { span: S::SPAN, align: S::ALIGN, is_written: false };
    type Reference<'a> = &'a S::Array;
    #[inline(always)]
    unsafe fn view<'a>(base: *mut u8) -> &'a S::Array {
        // SAFETY: the caller's promise; any bits are an element.
        unsafe { &*base.add(S::SPAN.at).cast() }
    }
}

impl<S> Sealed for Write<S> {}
impl<S: Located> View for Write<S> {
    const USE: Use = Use { span: S::SPAN, align: S::ALIGN, is_written: true };
    type Reference<'a> = &'a mut S::Array;
    #[inline(always)]
    unsafe fn view<'a>(base: *mut u8) -> &'a mut S::Array {
        // SAFETY: the caller's promise; any bits are an element.
        unsafe { &mut *base.add(S::SPAN.at).cast() }
    }
}

/// The uses of one call: a tuple of [`View`]s.
pub trait Slots: Sealed {
    /// Every use.
    const USES: &'static [Use];
    /// The references, in the same order.
    type Views<'a>;
    /// The references.
    ///
    /// # Safety
    /// As for [`View::view`], for all of them at one time.
    unsafe fn views<'a>(base: *mut u8) -> Self::Views<'a>;
}

macro_rules! tuples {
    ($($V:ident)*) => {
        impl<$($V: View),*> Sealed for ($($V,)*) {}
        impl<$($V: View),*> Slots for ($($V,)*) {
            const USES: &'static [Use] = &[$($V::USE),*];
            type Views<'a> = ($($V::Reference<'a>,)*);
            #[inline(always)]
            unsafe fn views<'a>(base: *mut u8) -> Self::Views<'a> {
                // SAFETY: the caller's promise.
                unsafe { ($($V::view(base),)*) }
            }
        }
    };
}
tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G H);
tuples!(A B C D E F G H I);
tuples!(A B C D E F G H I J);
tuples!(A B C D E F G H I J K);
tuples!(A B C D E F G H I J K L);
tuples!(A B C D E F G H I J K L M);
tuples!(A B C D E F G H I J K L M N);

/// Stops the compiler unless the uses fit together in an arena of `len` bytes.
const fn check(uses: &[Use], len: usize) {
    let mut i = 0;
    while i < uses.len() {
        let (one, align) = (uses[i].span, uses[i].align);
        assert!(one.at <= len && one.len <= len - one.at, "a slot reaches beyond the end of the arena");
        assert!(align <= ALIGN_BYTES && one.at.is_multiple_of(align), "a slot is not aligned for its elements");
        let mut j = 0;
        while j < i {
            let other = uses[j].span;
            let apart = one.at + one.len <= other.at || other.at + other.len <= one.at;
            let empty = one.len == 0 || other.len == 0;
            let reads = !uses[i].is_written && !uses[j].is_written;
            assert!(apart || empty || reads, "two slots of one call overlap and one of them is written");
            j += 1;
        }
        i += 1;
    }
}

/// A static that is handed out once: the home of a model.
pub struct Place<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `take`, which succeeds once.
unsafe impl<T: Send> Sync for Place<T> {}

impl<T> Place<T> {
    /// A place that holds this.
    pub const fn new(value: T) -> Place<T> {
        Place { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value; `None` for all but the first who ask.
    #[expect(clippy::mut_from_ref, reason = "the flag lets one caller through")]
    pub fn take(&self) -> Option<&mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: the flag was false and is true from now on, so this is the only reference there will be.
        Some(unsafe { &mut *self.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Bytes = Slot<i8, 0, 8>;
    type Word = Slot<i32, 8, 2>;

    fn uses(spans: &[(usize, usize, bool)]) -> [Use; 2] {
        core::array::from_fn(|i| Use {
            span: Span { at: spans[i].0, len: spans[i].1 },
            align: 4,
            is_written: spans[i].2,
        })
    }

    #[test]
    fn slots_are_where_they_say() {
        let mut arena: Arena<16> = Arena::new();
        let (bytes, words) = arena.slots::<(Write<Bytes>, Write<Word>)>();
        bytes.fill(-1);
        words[1] = 0x0403_0201;
        assert_eq!(arena.bytes(), [255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(arena.bytes().as_ptr().align_offset(ALIGN_BYTES), 0);
    }

    #[test]
    fn constants_are_read_in_place() {
        static FLASH: Arena<8> = Arena::of([1, 2, 3, 4, 255, 255, 255, 255]);
        assert_eq!(FLASH.read::<Slot<i8, 2, 3>>(), &[3, 4, -1]);
        assert_eq!(FLASH.read::<Slot<i32, 4, 1>>(), &[-1]);
    }

    #[test]
    fn one_slot_may_be_read_twice() {
        let mut arena: Arena<16> = Arena::new();
        arena.slot::<Word>()[0] = 7;
        let (a, b) = arena.slots::<(Read<Word>, Read<Word>)>();
        assert_eq!((a[0], b[0]), (7, 7));
    }

    #[test]
    fn neighbours_and_empty_slots_are_no_overlap() {
        check(&uses(&[(0, 4, true), (4, 4, true)]), 8);
        check(&uses(&[(0, 8, true), (4, 0, true)]), 8);
        check(&uses(&[(0, 8, false), (4, 4, false)]), 8);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn a_written_slot_overlaps_no_other() {
        check(&uses(&[(0, 8, false), (4, 4, true)]), 8);
    }

    #[test]
    #[should_panic(expected = "aligned")]
    fn slots_are_aligned() {
        check(&uses(&[(0, 4, false), (6, 4, false)]), 16);
    }

    #[test]
    #[should_panic(expected = "beyond")]
    fn slots_lie_inside() {
        check(&uses(&[(0, 4, false), (8, 12, false)]), 16);
    }

    #[test]
    fn a_place_is_taken_once() {
        static PLACE: Place<u32> = Place::new(3);
        assert_eq!(PLACE.take().copied(), Some(3));
        assert!(PLACE.take().is_none());
    }
}
