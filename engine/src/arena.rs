//! One block of memory for everything a plan touches, handed out as the pieces of one step at a time.
//!
//! Invariant: the pieces of a step are cut from one exclusive borrow, so what a step writes can be nothing else
//! that it reads. Allocation happens here, once.

use memmap2::MmapMut;
use tinyforge_plan::{Step, Tensor};

/// Operands, results and scratch of the widest step.
const MOST_PIECES: usize = 24;

/// The near memory of a plan.
pub struct Arena {
    memory: MmapMut,
}

impl Arena {
    /// `bytes` of zeroed memory; pages are taken from the system when they are first touched.
    ///
    /// # Errors
    /// The system has not so much address space.
    pub fn new(bytes: u64) -> std::io::Result<Arena> {
        let bytes = usize::try_from(bytes).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let memory = MmapMut::map_anon(bytes.max(1))?;
        // Large pages save time, no more: a system without them is as correct.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Arena { memory })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The bytes of a tensor.
    pub fn tensor(&self, t: &Tensor) -> &[u8] {
        &self.memory[t.offset as usize..t.end() as usize]
    }

    /// The bytes of a tensor, to be written.
    pub fn tensor_mut(&mut self, t: &Tensor) -> &mut [u8] {
        &mut self.memory[t.offset as usize..t.end() as usize]
    }

    /// The pieces of a step whose cuts were made for an arena of this size.
    pub(crate) fn pieces<'a>(&'a mut self, cuts: &Cuts) -> Pieces<'a> {
        let mut pieces = Pieces { list: [const { None }; MOST_PIECES] };
        let mut rest: &'a mut [u8] = &mut self.memory;
        let mut at = 0;
        for (i, cut) in cuts.spans.iter().enumerate() {
            let (_, tail) = rest.split_at_mut(cut.start - at);
            let (piece, tail) = tail.split_at_mut(cut.end - cut.start);
            pieces.list[i] = Some(if cut.written { Piece::Written(piece) } else { Piece::Read(piece) });
            (rest, at) = (tail, cut.end);
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
    /// The cuts of a step. Where its kernel may, a first result that lies over a first operand is one piece with it.
    ///
    /// # Errors
    /// Pieces overlap in part, or lie outside the arena: the plan is damaged.
    pub(crate) fn of(step: &Step, arena_bytes: u64, may_overlay: bool) -> Result<Cuts, String> {
        let changes = step.changes as usize;
        let mut wanted: Vec<Span> = Vec::new();
        let joined = match (step.args.first(), step.outs.first()) {
            (Some(x), Some(y)) if may_overlay && y.offset <= x.offset && x.offset < y.end() => {
                Some((y.offset, y.end().max(x.end())))
            }
            _ => None,
        };
        let place = |i: usize, t: &Tensor| joined.filter(|_| i == 0).unwrap_or((t.offset, t.end()));
        let mut add = |start: u64, end: u64, written: bool| {
            let known = wanted.iter_mut().find(|s| (s.start as u64, s.end as u64) == (start, end));
            match known {
                Some(span) => span.written |= written,
                None => wanted.push(Span { start: start as usize, end: end as usize, written }),
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
            let at = wanted.iter().position(|s| (s.start as u64, s.end as u64) == (start, end));
            at.expect("added above")
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
