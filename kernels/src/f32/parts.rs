//! Exclusive parts of the outputs, one for every task.
//!
//! Invariant: the parts of different tasks never overlap, so tasks write without locks and a kernel outside this file
//! needs no unsafe code to run in parallel.
#![expect(unsafe_code, reason = "hands disjoint parts of one slice to tasks that run at once")]

use crate::par::Par;
use core::cell::Cell;
use core::marker::PhantomData;
use core::{ptr, slice};

/// An output that can be cut into exclusive parts.
///
/// # Safety
/// Parts of different indices must not overlap, unless they depend on the worker alone; parts of different workers must
/// not overlap.
pub(crate) unsafe trait Parts<'p>: Sync {
    /// What a task gets, for the time `'p` that it runs.
    type Part;

    /// The part of task `index` on `worker`.
    ///
    /// # Safety
    /// Each index is taken once, a worker has one part at a time, and the outputs outlive `'p`.
    unsafe fn part(&self, index: usize, worker: usize) -> Self::Part;
}

/// Runs `task(index, part)` for every index below `tasks`, each with its own parts. Tasks do not nest.
pub(crate) fn run_parts<P: for<'p> Parts<'p>>(
    par: &Par,
    tasks: usize,
    parts: P,
    task: impl for<'p> Fn(usize, <P as Parts<'p>>::Part) + Sync,
) {
    par.run(tasks, |index, worker| {
        let _busy = Busy::enter();
        // SAFETY: `Par::run` calls every index once; a worker runs one task at a time because `Busy` refuses a task
        // inside a task; the task cannot keep its part because it accepts any lifetime.
        task(index, unsafe { parts.part(index, worker) });
    });
}

thread_local! {
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as being inside a task.
struct Busy;

impl Busy {
    fn enter() -> Busy {
        assert!(!IS_BUSY.replace(true), "a task started another one on the same worker");
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        IS_BUSY.set(false);
    }
}

/// A slice shared by the tasks.
struct Shared<'a, T> {
    at: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]` whose parts are handed out to one thread each.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(all: &'a mut [T]) -> Self {
        Shared { at: all.as_mut_ptr(), len: all.len(), life: PhantomData }
    }
}

/// Consecutive pieces of `chunk` elements; the last may be shorter, those after it are empty.
pub(crate) struct Chunks<'a, T> {
    all: Shared<'a, T>,
    chunk: usize,
}

impl<'a, T> Chunks<'a, T> {
    pub(crate) fn new(all: &'a mut [T], chunk: usize) -> Self {
        Chunks { all: Shared::new(all), chunk }
    }
}

// SAFETY: `[index * chunk, (index + 1) * chunk)` of different indices are disjoint.
unsafe impl<'p, T: Send + 'static> Parts<'p> for Chunks<'_, T> {
    type Part = &'p mut [T];

    unsafe fn part(&self, index: usize, _worker: usize) -> &'p mut [T] {
        let start = (index * self.chunk).min(self.all.len);
        let len = self.chunk.min(self.all.len - start);
        // SAFETY: inside the slice; exclusive because the index is taken once.
        unsafe { slice::from_raw_parts_mut(self.all.at.add(start), len) }
    }
}

/// One piece of `len` elements for every worker.
pub(crate) struct PerWorker<'a, T> {
    all: Shared<'a, T>,
    len: usize,
}

impl<'a, T> PerWorker<'a, T> {
    pub(crate) fn new(all: &'a mut [T], len: usize) -> Self {
        PerWorker { all: Shared::new(all), len }
    }
}

// SAFETY: `[worker * len, (worker + 1) * len)` of different workers are disjoint.
unsafe impl<'p, T: Send + 'static> Parts<'p> for PerWorker<'_, T> {
    type Part = &'p mut [T];

    unsafe fn part(&self, _index: usize, worker: usize) -> &'p mut [T] {
        assert!((worker + 1) * self.len <= self.all.len, "scratch for fewer workers than run");
        // SAFETY: inside the slice by the line above; exclusive because a worker has one part at a time.
        unsafe { slice::from_raw_parts_mut(self.all.at.add(worker * self.len), self.len) }
    }
}

/// A matrix cut along rows and columns. Rows come in groups (packed rows) that no tile straddles; tasks count columns
/// fastest, then row blocks of a group, then groups.
pub(crate) struct Tiles<'a, T> {
    all: Shared<'a, T>,
    cols: usize,
    group_rows: usize,
    row_block: usize,
    col_block: usize,
}

impl<'a, T> Tiles<'a, T> {
    /// Tiles of `row_block x col_block` of a matrix with `cols` columns, in groups of `group_rows` rows.
    pub(crate) fn new(
        all: &'a mut [T],
        cols: usize,
        group_rows: usize,
        (row_block, col_block): (usize, usize),
    ) -> Self {
        assert!(cols > 0 && group_rows > 0 && row_block > 0 && col_block > 0, "a tile is empty");
        assert!(all.len().is_multiple_of(cols * group_rows), "the matrix is not whole groups of rows");
        Tiles { all: Shared::new(all), cols, group_rows, row_block, col_block }
    }

    /// Tiles of full height.
    pub(crate) fn columns(all: &'a mut [T], cols: usize, col_block: usize) -> Self {
        let rows = (all.len() / cols.max(1)).max(1);
        Tiles::new(all, cols, rows, (rows, col_block))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let groups = self.all.len / (self.cols * self.group_rows);
        groups * self.group_rows.div_ceil(self.row_block) * self.cols.div_ceil(self.col_block)
    }
}

// SAFETY: an index below `count` names one block of rows and columns; larger ones get an empty tile.
unsafe impl<'p, T: Send + 'static> Parts<'p> for Tiles<'_, T> {
    type Part = Tile<'p, T>;

    unsafe fn part(&self, index: usize, _worker: usize) -> Tile<'p, T> {
        if index >= self.count() {
            return Tile { at: self.all.at, rows: 0, cols: 0, stride: self.cols, life: PhantomData };
        }
        let col_blocks = self.cols.div_ceil(self.col_block);
        let row_blocks = self.group_rows.div_ceil(self.row_block);
        let col = index % col_blocks * self.col_block;
        let row = index / col_blocks % row_blocks * self.row_block;
        let group = index / col_blocks / row_blocks;
        let start = (group * self.group_rows + row) * self.cols + col;
        Tile {
            // SAFETY: the index is below `count`, so the tile's first element is inside the matrix.
            at: unsafe { self.all.at.add(start) },
            rows: self.row_block.min(self.group_rows - row),
            cols: self.col_block.min(self.cols - col),
            stride: self.cols,
            life: PhantomData,
        }
    }
}

/// A rectangle of a row-major matrix, exclusively borrowed.
pub(crate) struct Tile<'a, T> {
    at: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a mut [T]>,
}

impl<'a, T> Tile<'a, T> {
    /// The first `rows` rows of `cols` elements of a slice, `stride` elements apart.
    pub(crate) fn of(all: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows == 0 || ((rows - 1) * stride + cols <= all.len() && cols <= stride), "the tile leaves the slice");
        Tile { at: all.as_mut_ptr(), rows, cols, stride, life: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element; valid for `rows` rows of `cols` elements, `stride` apart.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.at
    }

    /// Row `row`.
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of a tile of {} rows", self.rows);
        // SAFETY: the rectangle is exclusively borrowed and `row` is inside it.
        unsafe { slice::from_raw_parts_mut(self.at.add(row * self.stride), self.cols) }
    }

    /// The rows `start..start + rows`.
    pub(crate) fn rows_from(&mut self, start: usize, rows: usize) -> Tile<'_, T> {
        assert!(start + rows <= self.rows, "rows {start}..{} of {}", start + rows, self.rows);
        // SAFETY: the offset stays inside the rectangle (one past its last row when `rows` is 0 is not read).
        let at = if rows == 0 { self.at } else { unsafe { self.at.add(start * self.stride) } };
        Tile { at, rows, cols: self.cols, stride: self.stride, life: PhantomData }
    }

    /// The columns `start..start + cols`.
    pub(crate) fn cols_from(&mut self, start: usize, cols: usize) -> Tile<'_, T> {
        assert!(start + cols <= self.cols, "columns {start}..{} of {}", start + cols, self.cols);
        // SAFETY: `start <= self.cols`, inside the rectangle's first row or one past it.
        Tile { at: unsafe { self.at.add(start) }, rows: self.rows, cols, stride: self.stride, life: PhantomData }
    }
}

/// A slice, or chosen columns of a matrix, as a list of elements cut into chunks.
pub(crate) struct Panel<'a, T> {
    all: Shared<'a, T>,
    /// Columns of the matrix and the chosen ones; `None` is the plain slice.
    columns: Option<(usize, &'a [i32])>,
    len: usize,
    chunk: usize,
}

impl<'a, T> Panel<'a, T> {
    /// Panics when the chosen columns are not strictly ascending or not below `cols`.
    pub(crate) fn new(all: &'a mut [T], columns: Option<(usize, &'a [i32])>, chunk: usize) -> Self {
        let len = match columns {
            None => all.len(),
            Some((cols, index)) => {
                let is_ascending = index.windows(2).all(|pair| pair[0] < pair[1]);
                let is_inside =
                    index.first().is_none_or(|&i| i >= 0) && index.last().is_none_or(|&i| (i as usize) < cols);
                assert!(is_ascending && is_inside, "chosen columns must ascend below {cols}");
                assert!(cols > 0 && all.len().is_multiple_of(cols), "the matrix is not whole rows of {cols}");
                all.len() / cols * index.len()
            }
        };
        Panel { all: Shared::new(all), columns, len, chunk }
    }

    /// Elements of the list.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: elements `[index * chunk, (index + 1) * chunk)` of the list of different indices are disjoint, and different
// elements of the list are different elements of the matrix because the chosen columns ascend.
unsafe impl<'p, T: Send + 'static> Parts<'p> for Panel<'_, T> {
    type Part = PanelPart<'p, T>;

    unsafe fn part(&self, index: usize, _worker: usize) -> PanelPart<'p, T> {
        let start = (index * self.chunk).min(self.len);
        let columns = self.columns.map(|(cols, index)| {
            // SAFETY: what a `Parts` borrows outlives `'p`.
            (cols, unsafe { slice::from_raw_parts(index.as_ptr(), index.len()) })
        });
        PanelPart { at: self.all.at, columns, start, len: self.chunk.min(self.len - start), life: PhantomData }
    }
}

/// A chunk of a [`Panel`].
pub(crate) struct PanelPart<'p, T> {
    at: *mut T,
    columns: Option<(usize, &'p [i32])>,
    start: usize,
    len: usize,
    life: PhantomData<&'p mut [T]>,
}

impl<T: Copy> PanelPart<'_, T> {
    /// Copies the chunk's elements from `at` on.
    #[inline(always)]
    pub(crate) fn read(&self, at: usize, out: &mut [T]) {
        assert!(at + out.len() <= self.len, "elements beyond the chunk");
        let first = self.start + at;
        match self.columns {
            // SAFETY: elements of this chunk, by the line above, and so of the slice.
            None => unsafe { ptr::copy_nonoverlapping(self.at.add(first), out.as_mut_ptr(), out.len()) },
            Some(columns) => {
                for (i, out) in out.iter_mut().enumerate() {
                    // SAFETY: an element of this chunk; the panel checked that it lies in the matrix.
                    *out = unsafe { *self.at.add(place(columns, first + i)) };
                }
            }
        }
    }

    /// Replaces the chunk's elements from `at` on.
    #[inline(always)]
    pub(crate) fn write(&mut self, at: usize, x: &[T]) {
        assert!(at + x.len() <= self.len, "elements beyond the chunk");
        let first = self.start + at;
        match self.columns {
            // SAFETY: as in `read`; the chunk is exclusively borrowed.
            None => unsafe { ptr::copy_nonoverlapping(x.as_ptr(), self.at.add(first), x.len()) },
            Some(columns) => {
                for (i, &x) in x.iter().enumerate() {
                    // SAFETY: as in `read`; the chunk is exclusively borrowed.
                    unsafe { *self.at.add(place(columns, first + i)) = x };
                }
            }
        }
    }
}

/// Where element `i` of the chosen columns' list lies in the matrix.
#[inline(always)]
fn place((cols, index): (usize, &[i32]), i: usize) -> usize {
    i / index.len() * cols + index[i % index.len()] as usize
}

// SAFETY: an absent output has no parts.
unsafe impl<'p, P: Parts<'p>> Parts<'p> for Option<P> {
    type Part = Option<P::Part>;

    unsafe fn part(&self, index: usize, worker: usize) -> Option<P::Part> {
        // SAFETY: passed on.
        self.as_ref().map(|parts| unsafe { parts.part(index, worker) })
    }
}

macro_rules! tuple_parts {
    ($($name:ident),+) => {
        // SAFETY: each output keeps its own parts apart.
        unsafe impl<'p, $($name: Parts<'p>),+> Parts<'p> for ($($name,)+) {
            type Part = ($($name::Part,)+);

            unsafe fn part(&self, index: usize, worker: usize) -> Self::Part {
                #[expect(non_snake_case, reason = "one variable a type")]
                let ($($name,)+) = self;
                // SAFETY: passed on.
                unsafe { ($($name.part(index, worker),)+) }
            }
        }
    };
}

tuple_parts!(A, B);
tuple_parts!(A, B, C);
tuple_parts!(A, B, C, D);
tuple_parts!(A, B, C, D, E);
