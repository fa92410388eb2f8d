//! One block of memory for everything a plan touches, handed out as the pieces of one step at a time.
//!
//! Invariant: the pieces of a step lie apart, so what a step writes can be nothing else that it reads; and of the rest
//! no reference is made meanwhile, so that copies can come in beside a step. Allocation happens here, once.

use crate::far::Span as Part;
use memmap2::{MmapMut, MmapOptions};
use std::ptr::NonNull;
use tinyforge_plan::{Step, Tensor};

/// Operands, results and scratch of the widest step.
const MOST_PIECES: usize = 24;

/// The memories of a plan that are not far.
pub struct Arena {
    /// Owns the memory, where it is the arena's own; it is reached through `first` alone.
    memory: Option<MmapMut>,
    first: NonNull<u8>,
    len: usize,
    /// The address of the first byte.
    start: u64,
}

// SAFETY: the memory belongs to the arena alone, or what it has of another's lies apart from what others use meanwhile;
// references to it are made from borrows of the arena.
#[expect(unsafe_code, reason = "pieces of the arena go to worker threads")]
unsafe impl Send for Arena {}
// SAFETY: through a shared borrow the memory is only read.
#[expect(unsafe_code, reason = "pieces of the arena go to worker threads")]
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` of zeroed memory whose first byte has address `start`; pages are taken from the system when they are
    /// first touched.
    ///
    /// # Errors
    /// The system has not so much address space.
    pub fn new(start: u64, bytes: u64) -> std::io::Result<Arena> {
        let arena = Arena::sparse(start, bytes)?;
        // Large pages save time, no more: a system without them is as correct.
        #[cfg(target_os = "linux")]
        let _ = arena.memory.as_ref().map(|memory| memory.advise(memmap2::Advice::HugePage));
        Ok(arena)
    }

    /// The same of which little is ever touched at one time: pages are small, and [`Arena::release`] gives them back.
    /// It may have more bytes than the machine.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn sparse(start: u64, bytes: u64) -> std::io::Result<Arena> {
        let bytes = usize::try_from(bytes).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let mut memory = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?;
        let first = NonNull::new(memory.as_mut_ptr()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Arena { memory: Some(memory), first, len: bytes, start })
    }

    /// Memory of another, which outlives the arena, with the address of its first byte.
    pub(crate) fn over(memory: Part, start: u64) -> Arena {
        Arena { memory: None, first: memory.start, len: memory.bytes, start }
    }

    /// The address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// All bytes. Between runs alone: nothing may be on its way.
    #[expect(unsafe_code, reason = "the arena is one block of memory")]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `first` is the start of `len` bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    /// All bytes, to be written. Between runs alone.
    #[expect(unsafe_code, reason = "the arena is one block of memory")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }

    /// Where the bytes from address `from` to `to` lie.
    ///
    /// # Panics
    /// They are not in the arena.
    fn index(&self, from: u64, to: u64) -> std::ops::Range<usize> {
        let inside = from >= self.start && from <= to && to - self.start <= self.len as u64;
        assert!(inside, "addresses {from}..{to} are not in the arena");
        (from - self.start) as usize..(to - self.start) as usize
    }

    /// The bytes of a tensor.
    pub fn tensor(&self, t: &Tensor) -> &[u8] {
        &self.bytes()[self.index(t.offset, t.end())]
    }

    /// The bytes of a tensor, to be written.
    pub fn tensor_mut(&mut self, t: &Tensor) -> &mut [u8] {
        let index = self.index(t.offset, t.end());
        &mut self.bytes_mut()[index]
    }

    /// Gives the whole pages between two addresses back to the system: they are zero when they are touched again.
    pub(crate) fn release(&mut self, from: u64, to: u64) {
        /// No system that this runs on has larger small pages.
        const PAGE: usize = 64 << 10;
        let index = self.index(from, to);
        let (first, end) = (index.start.next_multiple_of(PAGE), index.end / PAGE * PAGE);
        #[cfg(target_os = "linux")]
        #[expect(unsafe_code, reason = "the arena is one block of memory")]
        if let Some(memory) = self.memory.as_ref().filter(|_| first < end) {
            // SAFETY: the arena is borrowed exclusively, so nothing holds a reference into these bytes, and zeros are
            // valid bytes. Pages that the system keeps are as correct.
            let _ = unsafe { memory.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (first, end);
    }

    /// The bytes from address `from` on, for the thread that moves copies.
    #[expect(unsafe_code, reason = "copies come in beside the steps")]
    pub(crate) fn part(&mut self, from: u64, bytes: u64) -> Part {
        let index = self.index(from, from.saturating_add(bytes));
        // SAFETY: the index was checked against the length.
        Part { start: unsafe { self.first.add(index.start) }, bytes: index.len() }
    }

    /// The pieces of a step whose cuts were made for an arena of this start and size.
    #[expect(unsafe_code, reason = "of what is not a piece no reference may be made")]
    pub(crate) fn pieces<'a>(&'a mut self, cuts: &Cuts) -> Pieces<'a> {
        let mut pieces = Pieces { list: [const { None }; MOST_PIECES] };
        assert!(cuts.spans.last().is_none_or(|last| last.end <= self.len), "the cuts are of a larger arena");
        for (i, cut) in cuts.spans.iter().enumerate() {
            let bytes = cut.end - cut.start;
            // SAFETY: `Cuts::of` makes spans that lie apart, ascending, and the last one ends inside; the arena is
            // borrowed exclusively for as long as the pieces live, and what moves meanwhile touches none of them.
            pieces.list[i] = Some(unsafe {
                let start = self.first.add(cut.start).as_ptr();
                match cut.written {
                    true => Piece::Written(std::slice::from_raw_parts_mut(start, bytes)),
                    false => Piece::Read(std::slice::from_raw_parts(start, bytes)),
                }
            });
        }
        pieces
    }
}

#[derive(Clone, Debug)]
struct Span {
    start: usize,
    end: usize,
    written: bool,
}

/// Where the arena is cut for one step, and which cut is which operand.
#[derive(Clone, Debug)]
pub(crate) struct Cuts {
    spans: Vec<Span>,
    pub(crate) args: Vec<usize>,
    pub(crate) outs: Vec<usize>,
    pub(crate) scratch: Option<usize>,
}

impl Cuts {
    /// The cuts of a step in an arena that begins at address `first` and has `arena_bytes`. Where its kernel may, a
    /// first result that lies over a first operand is one piece with it.
    ///
    /// # Errors
    /// Pieces overlap in part, or lie outside the arena: the plan is damaged.
    pub(crate) fn of(step: &Step, first: u64, arena_bytes: u64, may_overlay: bool) -> Result<Cuts, String> {
        let changes = step.changes as usize;
        let mut wanted: Vec<Span> = Vec::new();
        let at = |address: u64| address.checked_sub(first).map_or(usize::MAX, |at| at as usize);
        let joined = match (step.args.first(), step.outs.first()) {
            (Some(x), Some(y)) if may_overlay && y.offset <= x.offset && x.offset < y.end() => {
                Some((y.offset, y.end().max(x.end())))
            }
            _ => None,
        };
        let place = |i: usize, t: &Tensor| joined.filter(|_| i == 0).unwrap_or((t.offset, t.end()));
        let mut add = |start: u64, end: u64, written: bool| {
            let (start, end) = (at(start), at(end));
            match wanted.iter_mut().find(|s| (s.start, s.end) == (start, end)) {
                Some(span) => span.written |= written,
                None => wanted.push(Span { start, end, written }),
            }
        };
        for (i, t) in step.args.iter().enumerate() {
            let (start, end) = place(i, t);
            add(start, end, i < changes);
        }
        for (i, t) in step.outs.iter().enumerate() {
            let (start, end) = place(i, t);
            add(start, end, true);
        }
        if step.scratch_bytes > 0 {
            add(step.scratch_offset, step.scratch_offset + step.scratch_bytes, true);
        }
        wanted.sort_by_key(|s| (s.start, s.end));
        let apart = wanted.windows(2).all(|w| w[0].end <= w[1].start);
        let inside = wanted.iter().all(|s| s.start <= s.end && s.end as u64 <= arena_bytes);
        if !apart || !inside || wanted.len() > MOST_PIECES {
            return Err(format!("{} {}: its tensors overlap in part or leave the arena", step.kernel, step.label));
        }
        let find = |(start, end): (u64, u64)| {
            wanted.iter().position(|s| (s.start, s.end) == (at(start), at(end))).expect("added above")
        };
        Ok(Cuts {
            args: step.args.iter().enumerate().map(|(i, t)| find(place(i, t))).collect(),
            outs: step.outs.iter().enumerate().map(|(i, t)| find(place(i, t))).collect(),
            scratch: (step.scratch_bytes > 0)
                .then(|| find((step.scratch_offset, step.scratch_offset + step.scratch_bytes))),
            spans: wanted,
        })
    }
}

/// One piece of the arena.
pub(crate) enum Piece<'a> {
    /// Several operands may read it.
    Read(&'a [u8]),
    /// One result, changed operand or scratch owns it.
    Written(&'a mut [u8]),
}

/// The pieces of one step; each written one can be taken once.
pub(crate) struct Pieces<'a> {
    list: [Option<Piece<'a>>; MOST_PIECES],
}

impl<'a> Pieces<'a> {
    /// A piece that nothing writes; `None` for one that is written, which is an operand used in place.
    pub(crate) fn read(&self, i: usize) -> Option<&'a [u8]> {
        match &self.list[i] {
            Some(Piece::Read(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// A piece that is written; `None` when it was taken before.
    pub(crate) fn take(&mut self, i: usize) -> Option<&'a mut [u8]> {
        match self.list[i].take() {
            Some(Piece::Written(bytes)) => Some(bytes),
            other => {
                self.list[i] = other;
                None
            }
        }
    }
}
