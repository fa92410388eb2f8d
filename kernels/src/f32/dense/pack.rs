//! Packing: stored elements of any type become panels of words, `[step of k][lane]`.
//!
//! Elements are decoded or converted on the way, a few rows at a time, through a small buffer that stays in the
//! first cache; plain f32 is laid straight from where it is stored.
#![expect(unsafe_code, reason = "packing works on raw panels that several workers fill side by side")]

use super::portable::bf16_bits;
use super::set::{KernelSet, Right, Words};
use super::{Mat, MatData};
use crate::f32::quant;
use crate::par::piece;
use core::ops::Range;
use half::slice::HalfFloatSliceExt;

/// Rows that are transposed together.
const GROUP: usize = 16;
/// Elements of one fetched row.
const RUN: usize = 256;
/// Source rows that are copied together when lanes are contiguous.
const STEPS: usize = 16;

/// Words of buffer that a worker needs: the fetched words, and two rows that become pairs.
pub(super) const BUFFER_WORDS: usize = GROUP * RUN + 2 * RUN;

/// A side of the product: its lanes (rows of the left factor, columns of the right) and its steps of `k`.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) mat: Mat<'a>,
    /// A stored row holds the steps of one lane; otherwise it holds the lanes of one step.
    pub(super) steps_contiguous: bool,
    /// Panels hold one lane after the other.
    pub(super) by_lane: bool,
    /// Rounds f32 factors to bf16 for a set without pairs.
    pub(super) round: bool,
}

/// Some lanes of one chunk, and where their panels go.
pub(super) struct Panels {
    /// First lane.
    pub(super) lane: usize,
    /// Lanes.
    pub(super) lanes: usize,
    /// First step of `k`.
    pub(super) step: usize,
    /// Steps of `k`.
    pub(super) steps: usize,
    /// Panels that the lanes make.
    pub(super) count: usize,
    pub(super) cut: Cut,
    /// First word of the first panel; the others follow without gaps.
    pub(super) out: *mut u32,
}

/// How lanes are cut into panels.
pub(super) enum Cut {
    /// Panels of this width; what the last one lacks is filled with zeros.
    Width(usize),
    /// The panels from number `first` on when `lanes` lanes are cut into `parts` nearly equal ones.
    Parts { lanes: usize, parts: usize, first: usize },
}

/// One panel within its group.
pub(super) struct Panel {
    /// First lane, counted from the group's first.
    pub(super) start: usize,
    /// Lanes that exist.
    pub(super) len: usize,
    /// Words from one step to the next.
    pub(super) width: usize,
}

impl Panels {
    pub(super) fn panel(&self, index: usize) -> Panel {
        match self.cut {
            Cut::Width(width) => {
                let start = index * width;
                Panel { start, len: width.min(self.lanes - start), width }
            }
            Cut::Parts { lanes, parts, first } => {
                let range = piece(lanes, 1, parts, first + index);
                let start = range.start - piece(lanes, 1, parts, first).start;
                Panel { start, len: range.len(), width: range.len() }
            }
        }
    }
}

/// Packs `panels` of `side`, using `buffer` ([`BUFFER_WORDS`] long).
///
/// # Safety
/// The set's instructions exist; the lanes and steps are inside the matrix; the panels are writable.
pub(super) unsafe fn pack(set: &KernelSet, side: &Side, panels: &Panels, buffer: &mut [u32]) {
    // SAFETY: forwarded contract.
    unsafe {
        match side.steps_contiguous {
            true => pack_by_lane(set, side, panels, buffer),
            false => pack_by_step(set, side, panels, buffer),
        }
    }
}

/// # Safety
/// See [`pack`].
unsafe fn pack_by_lane(set: &KernelSet, side: &Side, panels: &Panels, buffer: &mut [u32]) {
    let direct = side.direct(set, panels.steps);
    for index in 0..panels.count {
        let panel = panels.panel(index);
        let sheet = Sheet::new(set, side, panels, &panel);
        for lane in (0..panel.width).step_by(GROUP) {
            let rows = GROUP.min(panel.len.saturating_sub(lane));
            let from = panels.lane + panel.start + lane;
            if direct.is_none() {
                side.prefetch(from + GROUP..from + 2 * GROUP, panels.step, panels.steps);
            }
            let mut step = 0;
            while step < panels.steps {
                let steps = if direct.is_some() { panels.steps } else { RUN.min(panels.steps - step) };
                let src = match direct {
                    Some(size) => side.words_at(size, from, panels.step, rows, set.words_used(steps)),
                    None => side.fetch_lanes(set, from..from + rows, panels.step + step, steps, buffer),
                };
                // SAFETY: `src` covers `rows` lanes of the panel from `lane` on.
                unsafe { sheet.put_lanes(set, src, lane, set.words_used(step)) };
                step += steps;
            }
        }
        // SAFETY: the panel is writable.
        unsafe { sheet.finish() };
    }
}

/// # Safety
/// See [`pack`].
unsafe fn pack_by_step(set: &KernelSet, side: &Side, panels: &Panels, buffer: &mut [u32]) {
    debug_assert!(panels.lanes <= RUN);
    let words = set.words_used(panels.steps);
    for word in (0..words).step_by(STEPS) {
        let count = STEPS.min(words - word);
        let src = match side.mat.data {
            MatData::F32(_) if !set.pairs && !side.round => {
                side.words_at(4, panels.step + word, panels.lane, count, panels.lanes)
            }
            _ => {
                let rows = if set.pairs { 2 * STEPS } else { STEPS };
                let next = panels.step + rows * (word / STEPS + 1);
                side.prefetch(next..next + rows, panels.lane, panels.lanes);
                side.fetch_steps(set, panels, word, count, buffer)
            }
        };
        for index in 0..panels.count {
            let panel = panels.panel(index);
            let src = Words { at: src.at.wrapping_add(panel.start), cols: panel.len, ..src };
            // SAFETY: `src` covers the panel's lanes for `count` words.
            unsafe { Sheet::new(set, side, panels, &panel).put_steps(set, src, word) };
        }
    }
    for index in 0..panels.count {
        // SAFETY: the panel is writable.
        unsafe { Sheet::new(set, side, panels, &panels.panel(index)).finish() };
    }
}

/// Goes through the words of at most 16 lanes, without packing them: `each(src, word)` gets a run of source rows whose
/// first word is the chunk's number `word`.
///
/// # Safety
/// See [`pack`].
pub(super) unsafe fn lanes(
    set: &KernelSet,
    side: &Side,
    lanes: Range<usize>,
    steps: Range<usize>,
    buffer: &mut [u32],
    mut each: impl FnMut(Words, usize),
) {
    if let Some(size) = side.direct(set, steps.len()) {
        return each(side.words_at(size, lanes.start, steps.start, lanes.len(), set.words_used(steps.len())), 0);
    }
    side.prefetch(lanes.end..lanes.end + GROUP, steps.start, steps.len());
    for step in steps.clone().step_by(RUN) {
        let run = RUN.min(steps.end - step);
        each(side.fetch_lanes(set, lanes.clone(), step, run, buffer), set.words_used(step - steps.start));
    }
}

/// One panel being filled.
struct Sheet {
    out: *mut u32,
    width: usize,
    by_lane: bool,
    used: usize,
    words: usize,
}

impl Sheet {
    fn new(set: &KernelSet, side: &Side, panels: &Panels, panel: &Panel) -> Sheet {
        let (used, words) = (set.words_used(panels.steps), set.words(panels.steps));
        // Panels lie behind each other, each `words` steps long.
        let out = panels.out.wrapping_add(panel.start * words);
        Sheet { out, width: panel.width, by_lane: side.by_lane, used, words }
    }

    /// Lays source rows that are lanes from `lane` on, whose words are the panel's from `word` on.
    ///
    /// # Safety
    /// The set's instructions exist; the panel is writable; the source fits into it.
    unsafe fn put_lanes(&self, set: &KernelSet, src: Words, lane: usize, word: usize) {
        // SAFETY: forwarded contract; zeros are written up to the panel's borders.
        unsafe {
            match self.by_lane {
                true => {
                    (set.copy)(src, self.out.add(lane * self.words + word), self.words, self.to_end(word, src.cols))
                }
                false => (set.transpose)(
                    src,
                    self.out.add(word * self.width + lane),
                    self.width,
                    GROUP.min(self.width - lane),
                ),
            }
        }
    }

    /// Lays source rows that are words from `word` on, whose words are all of the panel's lanes.
    ///
    /// # Safety
    /// As [`Sheet::put_lanes`].
    unsafe fn put_steps(&self, set: &KernelSet, src: Words, word: usize) {
        // SAFETY: forwarded contract; zeros are written up to the panel's borders.
        unsafe {
            match self.by_lane {
                true => (set.transpose)(src, self.out.add(word), self.words, self.to_end(word, src.rows)),
                false => (set.copy)(src, self.out.add(word * self.width), self.width, self.width),
            }
        }
    }

    /// `count` words from `word` on, and what the panel's unit lacks behind the last of them.
    fn to_end(&self, word: usize, count: usize) -> usize {
        if word + count == self.used { self.words - word } else { count }
    }

    /// Fills the words behind the last.
    ///
    /// # Safety
    /// The panel is writable.
    unsafe fn finish(&self) {
        if !self.by_lane {
            // SAFETY: a panel by step is `words` times `width` long.
            unsafe { self.out.add(self.used * self.width).write_bytes(0, (self.words - self.used) * self.width) };
        }
    }
}

impl Side<'_> {
    /// The words of some steps of all lanes from `lane` on, where they are stored, if they are words as they are.
    pub(super) fn in_place(&self, set: &KernelSet, lane: usize, step: usize) -> Option<Right> {
        match self.mat.data {
            MatData::F32(_) if !self.steps_contiguous && !set.pairs && !self.round => {
                Some(Right { at: self.words_at(4, step, lane, 1, 1).at, step: self.mat.stride, panel: set.nr })
            }
            _ => None,
        }
    }

    /// Bytes of a stored element when `steps` stored steps of a lane are the set's words as they are.
    fn direct(&self, set: &KernelSet, steps: usize) -> Option<usize> {
        match self.mat.data {
            MatData::F32(_) if !set.pairs && !self.round => Some(4),
            MatData::BF16(_) if set.pairs && steps.is_multiple_of(2) => Some(2),
            _ => None,
        }
    }

    /// Asks for columns `col..col + cols` of some rows, which will be read next, one row after the other: their
    /// pieces are too short for the processor to foresee. (Reads of 16 rows side by side it does foresee.)
    fn prefetch(&self, rows: Range<usize>, col: usize, cols: usize) {
        let (base, elems, bytes) = match self.mat.data {
            MatData::F32(data) => (data.as_ptr().cast::<i8>(), 1, 4),
            MatData::BF16(data) => (data.as_ptr().cast(), 1, 2),
            MatData::F16(data) => (data.as_ptr().cast(), 1, 2),
            MatData::Blocks(dtype, data) => {
                (data.as_ptr().cast(), dtype.block_elems() as usize, dtype.block_bytes() as usize)
            }
        };
        for row in rows.start..rows.end.min(self.mat.rows) {
            let start = (row * self.mat.stride + col) / elems * bytes;
            for line in 0..(cols / elems * bytes).div_ceil(64) {
                prefetch_line(base.wrapping_add(start + 64 * line));
            }
        }
    }

    /// The stored elements from `(row, col)` as `rows x cols` words, without a copy.
    fn words_at(&self, elem_bytes: usize, row: usize, col: usize, rows: usize, cols: usize) -> Words {
        let base: *const u8 = match self.mat.data {
            MatData::F32(data) => data.as_ptr().cast(),
            MatData::BF16(data) => data.as_ptr().cast(),
            MatData::F16(data) => data.as_ptr().cast(),
            MatData::Blocks(_, data) => data.as_ptr(),
        };
        let stride = self.mat.stride * elem_bytes;
        Words { at: base.wrapping_add(row * stride + col * elem_bytes).cast(), stride, rows, cols }
    }

    /// Fetches `steps <= RUN` steps of some lanes (stored rows) as words.
    fn fetch_lanes(&self, set: &KernelSet, rows: Range<usize>, step: usize, steps: usize, buffer: &mut [u32]) -> Words {
        let (words, row_buffer) = buffer.split_at_mut(GROUP * RUN);
        let count = rows.len();
        for (row, words) in rows.zip(words.chunks_exact_mut(RUN)) {
            if set.pairs {
                let values = row_values(&self.mat, row, step, &mut row_buffer[..steps]);
                // SAFETY: the set's instructions exist (contract of `pack`).
                unsafe { (set.pair_run)(values, words) };
            } else {
                let values = bytemuck::cast_slice_mut(&mut words[..steps]);
                read_row(&self.mat, row, step, values);
                if self.round {
                    round_run(values);
                }
            }
        }
        Words { at: words.as_ptr(), stride: 4 * RUN, rows: count, cols: set.words_used(steps) }
    }

    /// Fetches the panels' lanes for `count` words of steps (stored rows).
    fn fetch_steps(&self, set: &KernelSet, panels: &Panels, word: usize, count: usize, buffer: &mut [u32]) -> Words {
        let (words, row_buffer) = buffer.split_at_mut(GROUP * RUN);
        let (even, odd) = row_buffer.split_at_mut(RUN);
        for (word, words) in (word..word + count).zip(words.chunks_exact_mut(RUN)) {
            if set.pairs {
                let row = panels.step + 2 * word;
                let alone = 2 * word + 1 == panels.steps;
                if let MatData::BF16(data) = self.mat.data
                    && !alone
                {
                    let stored = |row: usize| &data[row * self.mat.stride + panels.lane..][..panels.lanes];
                    // SAFETY: the set's instructions exist (contract of `pack`).
                    unsafe { (set.pair_stored)(stored(row), stored(row + 1), words) };
                    continue;
                }
                let even = row_values(&self.mat, row, panels.lane, &mut even[..panels.lanes]);
                let odd = &mut odd[..panels.lanes];
                let odd = match alone {
                    false => row_values(&self.mat, row + 1, panels.lane, odd),
                    true => {
                        odd.fill(0);
                        bytemuck::cast_slice(odd)
                    }
                };
                // SAFETY: the set's instructions exist (contract of `pack`).
                unsafe { (set.pair_steps)(even, odd, words) };
            } else {
                let values = bytemuck::cast_slice_mut(&mut words[..panels.lanes]);
                read_row(&self.mat, panels.step + word, panels.lane, values);
                if self.round {
                    round_run(values);
                }
            }
        }
        Words { at: words.as_ptr(), stride: 4 * RUN, rows: count, cols: panels.lanes }
    }
}

/// Asks for a line of memory, where the instruction set can.
#[inline(always)]
fn prefetch_line(at: *const i8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching reads nothing and never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Elements `col..col + buffer.len()` of a stored row: where they are, or read into the buffer.
fn row_values<'a>(mat: &Mat<'a>, row: usize, col: usize, buffer: &'a mut [u32]) -> &'a [f32] {
    if let MatData::F32(data) = mat.data {
        return &data[row * mat.stride + col..][..buffer.len()];
    }
    let values = bytemuck::cast_slice_mut(buffer);
    read_row(mat, row, col, values);
    values
}

/// Reads elements `col..col + out.len()` of a stored row.
fn read_row(mat: &Mat, row: usize, col: usize, out: &mut [f32]) {
    let range = row * mat.stride + col..row * mat.stride + col + out.len();
    match mat.data {
        MatData::F32(data) => out.copy_from_slice(&data[range]),
        MatData::BF16(data) => data[range].convert_to_f32_slice(out),
        MatData::F16(data) => data[range].convert_to_f32_slice(out),
        MatData::Blocks(dtype, bytes) => {
            let (elems, size) = (dtype.block_elems() as usize, dtype.block_bytes() as usize);
            let blocks = |from: usize, to: usize| &bytes[from * size..to * size];
            let mut scratch = [0.0; quant::BLOCK_ELEMS_MAX];
            let (mut at, mut out) = (range.start, out);
            while !out.is_empty() {
                let (block, offset) = (at / elems, at % elems);
                let take = match (offset, out.len() / elems) {
                    (0, whole @ 1..) => {
                        quant::dequantise(dtype, blocks(block, block + whole), &mut out[..whole * elems]);
                        whole * elems
                    }
                    // Part of a block: decode all of it, keep what is asked for.
                    _ => {
                        let take = (elems - offset).min(out.len());
                        quant::dequantise(dtype, blocks(block, block + 1), &mut scratch[..elems]);
                        out[..take].copy_from_slice(&scratch[offset..offset + take]);
                        take
                    }
                };
                at += take;
                out = &mut out[take..];
            }
        }
    }
}

/// Rounds to bf16 in place.
fn round_run(values: &mut [f32]) {
    for value in values {
        *value = f32::from_bits(bf16_bits(*value) << 16);
    }
}
