//! The loops around the tiles: blocks of rows, rounds of chunks, tasks.
//!
//! For one block of rows and one round of chunks the left factor is packed once, by all workers; then each task
//! takes some columns, packs their right panels and runs the tiles. Nothing here enters a sum's order.
#![expect(unsafe_code, reason = "workers fill and read disjoint parts of shared scratch and of C")]

use super::chunk::{CHUNK_MAX, Chunk, chunk_at};
use super::pack::{BUFFER_WORDS, Cut, Panels, Side, lanes, pack};
use super::set::{KernelSet, Right, THIN_ROWS, ThinFn, Tile};
use super::{Compute, Gemm, MatData};
use crate::par::{Par, piece};
use core::ops::Range;

/// Most words of packed left factor: with the longest chunk, 512 rows.
const LEFT_WORDS_MAX: usize = 512 * CHUNK_MAX;
/// Most columns of packed right factor: with the longest chunk, half a mebibyte.
const RIGHT_COLS_MAX: usize = 256;
/// Every set's `nr` divides this.
const NR_MAX: usize = 32;
/// No set's `word_unit` is larger.
const WORD_UNIT_MAX: usize = 16;
/// Columns of a product of few rows that are summed together.
const THIN_COLS: usize = 16;
/// Left panels packed by one task.
const PACK_PANELS: usize = 4;
/// Multiply-adds below which a product is not worth handing to other workers.
const TASK_WORK_MIN: usize = 1 << 16;

/// How scratch is divided, in words.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    left: usize,
    right: usize,
}

impl Layout {
    /// Depends on the shape alone, so that a plan made on one machine fits every other.
    pub(super) fn new(m: usize, n: usize, k: usize, compute: Compute) -> Layout {
        let line = |words: usize| words.next_multiple_of(16);
        // Sets without bf16 products take a word a step, so both number types do; but the words of pairs may be
        // filled up to a unit.
        let words = if compute == Compute::BF16 { k.max(WORD_UNIT_MAX) } else { k };
        Layout {
            left: line(m.saturating_mul(words).min(LEFT_WORDS_MAX)),
            right: line(n.next_multiple_of(NR_MAX).min(RIGHT_COLS_MAX) * words.min(CHUNK_MAX)),
        }
    }

    /// Words in all, for this many workers.
    pub(super) fn words(&self, threads: usize) -> usize {
        self.left + threads * self.worker()
    }

    fn worker(&self) -> usize {
        self.right + BUFFER_WORDS
    }
}

/// Memory that workers share; each touches its own part.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: the tasks that get the pointer write disjoint parts, and read what others wrote only after they ended.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

/// One product on its way.
struct Job<'a> {
    set: &'static KernelSet,
    left: Side<'a>,
    right: Side<'a>,
    g: &'a Gemm<'a>,
    k: usize,
    segment: usize,
    c: Shared<f32>,
    c_stride: usize,
    layout: Layout,
    scratch: Shared<u32>,
}

/// Chunks whose left panels are packed together: the steps `start..end` of `k`.
#[derive(Clone, Copy)]
struct Round {
    start: usize,
    end: usize,
}

/// Runs a product of at least one row, column and step whose sizes have been checked.
///
/// `scratch` has [`Layout::words`] for the threads of `par`; rows `0..m` of `C` hold `n` elements each.
pub(super) fn run(par: &Par, set: &'static KernelSet, g: &Gemm, c: &mut [f32], c_stride: usize, scratch: &mut [u32]) {
    let (m, n, k) = g.shape();
    let layout = Layout::new(m, n, k, g.compute);
    let needed = layout.words(par.threads());
    assert!(scratch.len() >= needed, "scratch holds {} words, {needed} are needed", scratch.len());
    let round = g.compute == Compute::BF16 && !set.pairs;
    let job = Job {
        set,
        left: Side { mat: g.a, steps_contiguous: !g.a_trans, by_lane: set.left_by_lane, round },
        right: Side { mat: g.b, steps_contiguous: g.b_trans, by_lane: false, round },
        g,
        k,
        segment: g.k_segment.unwrap_or(k).clamp(1, k),
        c: Shared(c.as_mut_ptr()),
        c_stride,
        layout,
        scratch: Shared(scratch.as_mut_ptr()),
    };
    let longest = job.set.words(job.segment.min(CHUNK_MAX));
    let blocks = m.div_ceil((layout.left / longest).max(1));
    for block in 0..blocks {
        let rows = piece(m, 1, blocks, block);
        let mut start = 0;
        while start < k {
            let round = job.round(rows.len(), start);
            job.pack_left(par, &rows, round);
            job.multiply(par, &rows, n, round);
            start = round.end;
        }
    }
}

impl Job<'_> {
    fn chunk(&self, start: usize) -> Chunk {
        chunk_at(self.k, self.segment, start)
    }

    /// As many chunks from `start` as the left panels of `rows` rows have room for, at least one.
    fn round(&self, rows: usize, start: usize) -> Round {
        let mut words = 0;
        let mut end = start;
        while end < self.k {
            let chunk = self.chunk(end);
            words += rows * self.set.words(chunk.len);
            if end > start && words > self.layout.left {
                break;
            }
            end += chunk.len;
        }
        Round { start, end }
    }

    /// The chunks of a round, each with the words that its left panels lie behind.
    fn chunks(&self, rows: usize, round: Round) -> impl Iterator<Item = (Chunk, usize)> + '_ {
        let (mut at, mut offset) = (round.start, 0);
        core::iter::from_fn(move || {
            (at < round.end).then(|| {
                let chunk = self.chunk(at);
                let here = (chunk, offset);
                at += chunk.len;
                offset += rows * self.set.words(chunk.len);
                here
            })
        })
    }

    /// The left panels of `rows`: nearly equal heights.
    fn left_panels(&self, rows: usize) -> usize {
        rows.div_ceil(self.set.mr)
    }

    /// A worker's own right panels.
    fn right_panels(&self, worker: usize) -> *mut u32 {
        self.scratch.at(self.layout.left + worker * self.layout.worker())
    }

    /// A worker's own buffer for packing.
    ///
    /// # Safety
    /// One task at a time holds it: the one that `worker` runs.
    #[expect(clippy::mut_from_ref, reason = "the scratch is shared among workers, its parts are not")]
    unsafe fn buffer(&self, worker: usize) -> &mut [u32] {
        let at = self.right_panels(worker).wrapping_add(self.layout.right);
        // SAFETY: inside `scratch` (asserted by `run`), and the caller's alone.
        unsafe { core::slice::from_raw_parts_mut(at, BUFFER_WORDS) }
    }

    fn pack_left(&self, par: &Par, rows: &Range<usize>, round: Round) {
        let panels = self.left_panels(rows.len());
        let groups = panels.div_ceil(PACK_PANELS);
        let task = |group: usize, worker: usize| {
            // SAFETY: this task is the one that `worker` runs.
            let buffer = unsafe { self.buffer(worker) };
            let group = piece(panels, 1, groups, group);
            let start = piece(rows.len(), 1, panels, group.start).start;
            let end = piece(rows.len(), 1, panels, group.end - 1).end;
            for (chunk, offset) in self.chunks(rows.len(), round) {
                let to = Panels {
                    lane: rows.start + start,
                    lanes: end - start,
                    step: chunk.start,
                    steps: chunk.len,
                    count: group.len(),
                    cut: Cut::Parts { lanes: rows.len(), parts: panels, first: group.start },
                    out: self.scratch.at(offset + start * self.set.words(chunk.len)),
                };
                // SAFETY: the set is available, the lanes and steps are in the matrix (checked by `gemm`), and the
                // panels lie in the left part of scratch, where no other task has a place.
                unsafe { pack(self.set, &self.left, &to, buffer) };
            }
        };
        if rows.len() * (round.end - round.start) < TASK_WORK_MIN {
            (0..groups).for_each(|group| task(group, 0));
        } else {
            par.run(groups, task);
        }
    }

    fn multiply(&self, par: &Par, rows: &Range<usize>, n: usize, round: Round) {
        let grid = self.grid(par.threads(), rows.len(), n, round);
        let task = |index: usize, worker: usize| {
            let cols = piece(n, grid.unit, grid.col_parts, index % grid.col_parts);
            let total = self.left_panels(rows.len());
            let panels = piece(total, 1, grid.row_parts, index / grid.col_parts);
            let part = Part { rows: rows.clone(), total, panels };
            let mut from = cols.start;
            while from < cols.end {
                let to = cols.end.min(from + grid.inner);
                for (chunk, offset) in self.chunks(rows.len(), round) {
                    self.block(&part, from..to, chunk, offset, worker);
                }
                from = to;
            }
        };
        match grid.row_parts * grid.col_parts {
            1 => task(0, 0),
            tasks => par.run(tasks, task),
        }
    }

    /// Multiplies the left panels with the columns `cols` for one chunk, the way that suits their number.
    fn block(&self, part: &Part, cols: Range<usize>, chunk: Chunk, left: usize, worker: usize) {
        if let Some(thin) = self.set.thin
            && part.rows.len() <= THIN_ROWS
            && self.right.steps_contiguous
        {
            return self.thin(thin, part, cols, chunk, left, worker);
        }
        let in_place = self.right.in_place(self.set, cols.start, chunk.start);
        let packed_from = match in_place {
            Some(right) if part.total == 1 => {
                let full = cols.start..cols.end - cols.len() % self.set.nr;
                // SAFETY: full panels of the chunk are inside the matrix.
                unsafe { self.strips(part, full.clone(), chunk, left, right) };
                full.end
            }
            _ => cols.start,
        };
        if packed_from < cols.end {
            let cols = packed_from..cols.end;
            let right = self.pack_right(&cols, chunk, worker);
            // SAFETY: the panels hold the columns' words, just packed.
            unsafe { self.strips(part, cols, chunk, left, right) };
        }
    }

    /// Packs the right panels of `cols` into the worker's own part of scratch.
    fn pack_right(&self, cols: &Range<usize>, chunk: Chunk, worker: usize) -> Right {
        let set = self.set;
        let at = self.right_panels(worker);
        let to = Panels {
            lane: cols.start,
            lanes: cols.len(),
            step: chunk.start,
            steps: chunk.len,
            count: cols.len().div_ceil(set.nr),
            cut: Cut::Width(set.nr),
            out: at,
        };
        // SAFETY: the task that calls this is the one that `worker` runs.
        let buffer = unsafe { self.buffer(worker) };
        // SAFETY: the set is available, lanes and steps are in the matrix, and at most `RIGHT_COLS_MAX` columns of
        // one chunk fit the worker's own part.
        unsafe { pack(set, &self.right, &to, buffer) };
        Right { at, step: set.nr, panel: set.words(chunk.len) * set.nr }
    }

    /// Multiplies left panels with right ones.
    ///
    /// # Safety
    /// The right panels hold the chunk's words of all of `cols`.
    unsafe fn strips(&self, part: &Part, cols: Range<usize>, chunk: Chunk, left: usize, right: Right) {
        let words = self.set.words(chunk.len);
        for panel in part.panels.clone() {
            let lanes = piece(part.rows.len(), 1, part.total, panel);
            let left = self.scratch.at(left + lanes.start * words);
            let strip = self.strip(part.rows.start + lanes.start, &cols, chunk);
            // SAFETY: the panels hold `words` steps, the left ones packed by `pack_left`; the strip is in `C`, and in
            // no other task's rows and columns.
            unsafe { (self.set.strip)(lanes.len(), words, left, right, &strip) };
        }
    }

    /// The block of a product of few rows: the right factor's words are used as they come.
    fn thin(&self, thin: ThinFn, part: &Part, cols: Range<usize>, chunk: Chunk, left: usize, worker: usize) {
        let left = self.scratch.at(left);
        let rows = part.rows.len();
        for col in cols.clone().step_by(THIN_COLS) {
            let cols = col..cols.end.min(col + THIN_COLS);
            let mut sums = [[0.0; THIN_COLS]; THIN_ROWS];
            // SAFETY: the task that calls this is the one that `worker` runs.
            let buffer = unsafe { self.buffer(worker) };
            let sum = |src, word| {
                // SAFETY: the set is available; `src` has at most 16 rows; the one left panel holds the chunk's words.
                unsafe { thin(rows, src, left.add(word * rows), &mut sums) }
            };
            let steps = chunk.start..chunk.start + chunk.len;
            // SAFETY: the set is available; lanes and steps are in the matrix.
            unsafe { lanes(self.set, &self.right, cols.clone(), steps, buffer, sum) };
            for (r, sums) in sums.iter().enumerate().take(rows) {
                let tile = self.strip(part.rows.start + r, &cols, chunk);
                // SAFETY: the tile's row is in `C`, and in no other task's rows and columns.
                unsafe { tile.finish(sums) };
            }
        }
    }

    fn strip(&self, row: usize, cols: &Range<usize>, chunk: Chunk) -> Tile {
        let last = chunk.start + chunk.len == self.k;
        Tile {
            c: self.c.at(row * self.c_stride + cols.start),
            stride: self.c_stride,
            cols: cols.len(),
            alpha: self.g.alpha,
            load: self.g.accumulate || chunk.start > 0,
            bias: match self.g.bias {
                Some(bias) if last => bias[cols.clone()].as_ptr(),
                _ => core::ptr::null(),
            },
        }
    }

    fn grid(&self, threads: usize, rows: usize, n: usize, round: Round) -> Grid {
        let panels = self.left_panels(rows);
        // Whole blocks to a task where they run along the columns.
        let unit = match self.g.b.data {
            MatData::Blocks(dtype, _) if !self.right.steps_contiguous => NR_MAX.max(dtype.block_elems() as usize),
            _ => NR_MAX,
        };
        // One left panel finds no right panel twice: each is packed, used and forgotten.
        let inner = if panels == 1 && self.right.steps_contiguous { unit } else { RIGHT_COLS_MAX };
        let work = rows.saturating_mul(n).saturating_mul(round.end - round.start);
        let wanted = if threads == 1 { 1 } else { (4 * threads).min(work / TASK_WORK_MIN).max(1) };
        let units = n.div_ceil(unit);
        let col_parts = units.div_ceil(RIGHT_COLS_MAX / unit).max(wanted.min(units.div_ceil(2)));
        let row_parts = wanted.div_ceil(col_parts).min(panels.div_ceil(4));
        Grid { unit, inner, col_parts, row_parts }
    }
}

/// The left panels of a task.
struct Part {
    /// The rows of all panels.
    rows: Range<usize>,
    /// All panels.
    total: usize,
    /// The task's.
    panels: Range<usize>,
}

/// How rows and columns are divided among tasks.
struct Grid {
    /// Columns that stay together.
    unit: usize,
    /// Columns packed at a time.
    inner: usize,
    col_parts: usize,
    row_parts: usize,
}
