//! Sums, products, conversions, and moving columns about.
//!
//! ```text
//! for i in 0..len { y[i] = a[i] + b[i] }
//! ```
//! Bound: bytes moved over memory bandwidth.

use super::map::{Elementwise, Op, Src, map};
use super::parts::{Chunks, Tiles, run_parts};
use super::scratch::{Scratch, piece_bytes};
use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;
use half::{bf16, f16};

/// Elements of one task where rows are moved.
const TASK_ELEMS: usize = 16 * 1024;
/// Columns of one task where rows are summed.
const TASK_COLS: usize = 4 * LANES;
/// Elements of one partial sum of squares; fixes the order of the sum.
pub const NORM_CHUNK: usize = 4096;

/// Operations of two operands that may change places: the functions, what they do to sixteen elements at once, and the
/// table of them all. A function's name is its op's.
macro_rules! commuting {
    ($($(#[$doc:meta])* $name:ident, $Op:ident = |$s:ident, $a:ident, $b:ident| $body:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            struct $Op;

            impl Op<2, 1> for $Op {
                #[inline(always)]
                fn apply<S: Simd>(self, $s: S, [$a, $b]: [S::V; 2]) -> [S::V; 1] {
                    [$body]
                }
            }

            $(#[$doc])*
            pub fn $name(par: &Par, a: Option<&[f32]>, b: &[f32], y: &mut [f32]) {
                map(par, $Op, [Src::or(a, 0), Src::Slice(b)], [y]);
            }
        )*

        /// The functions of this table by name.
        pub const KERNELS: &[(&str, Elementwise)] = &[$((stringify!($name), Elementwise::Commuting($name)),)*];
    };
}

commuting! {
    /// `y = a + b`. `a == None`: `y` holds `a`.
    add,
    Add = |s, a, b| s.add(a, b);

    /// `y = a * b`. `a == None`: `y` holds `a`.
    mul,
    Mul = |s, a, b| s.mul(a, b);
}

#[derive(Clone, Copy)]
struct AddScaled(f32);

impl Op<2, 1> for AddScaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [a, b]: [S::V; 2]) -> [S::V; 1] {
        [s.fma(s.splat(self.0), b, a)]
    }
}

/// `y = a + factor * b`, rounded once. `a == None`: `y` holds `a`.
pub fn add_scaled(par: &Par, a: Option<&[f32]>, factor: f32, b: &[f32], y: &mut [f32]) {
    map(par, AddScaled(factor), [Src::or(a, 0), Src::Slice(b)], [y]);
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Op<1, 1> for Scale {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::V; 1]) -> [S::V; 1] {
        [s.mul(x, s.splat(self.0))]
    }
}

/// `y = factor * x`. `x == None`: `y` holds `x`.
pub fn scale(par: &Par, x: Option<&[f32]>, factor: f32, y: &mut [f32]) {
    map(par, Scale(factor), [Src::or(x, 0)], [y]);
}

/// Whole rows in a task of about [`TASK_ELEMS`].
fn task_rows(cols: usize) -> usize {
    (TASK_ELEMS / cols.max(1)).max(1)
}

/// `y[t, :] = x[t, :] + b`, for `y[rows, b.len()]`. `x == None`: `y` holds `x`.
pub fn add_row(par: &Par, x: Option<&[f32]>, b: &[f32], y: &mut [f32]) {
    let cols = b.len();
    if let Some(x) = x {
        assert_eq!(x.len(), y.len(), "input and output differ in length");
    }
    assert!(cols > 0 && y.len().is_multiple_of(cols), "the output is not whole rows of {cols}");
    let chunk = task_rows(cols) * cols;
    let tasks = y.len().div_ceil(chunk);
    run_parts(par, tasks, Chunks::new(y, chunk), |index, y: &mut [f32]| {
        for (row, y) in y.chunks_exact_mut(cols).enumerate() {
            let start = index * chunk + row * cols;
            match x {
                Some(x) => y.iter_mut().zip(&x[start..]).zip(b).for_each(|((y, x), b)| *y = x + b),
                None => y.iter_mut().zip(b).for_each(|(y, b)| *y += b),
            }
        }
    });
}

/// Sums over tokens, packed row by packed row: `db[c] (+)= sum over r of (sum over t of dy[r, t, c])`.
///
/// `dy[rows * seq, cols]` with `cols == db.len()`. Every packed row of `seq` tokens is summed from zero and then added
/// to `db`, or to zero when not `accumulate`. Scratch: 0 bytes.
pub fn sum_rows(par: &Par, dy: &[f32], seq: usize, accumulate: bool, db: &mut [f32]) {
    let cols = db.len();
    assert!(seq > 0 && cols > 0 && dy.len().is_multiple_of(cols * seq), "the gradient is not whole packed rows");
    run_parts(par, cols.div_ceil(TASK_COLS), Chunks::new(db, TASK_COLS), |index, db: &mut [f32]| {
        simd::dispatch(SumRows { dy, cols, start: index * TASK_COLS, seq, accumulate, db });
    });
}

struct SumRows<'a> {
    dy: &'a [f32],
    cols: usize,
    start: usize,
    seq: usize,
    accumulate: bool,
    db: &'a mut [f32],
}

impl Kernel for SumRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.db.len();
        if !self.accumulate {
            self.db.fill(0.0);
        }
        for packed in self.dy.chunks_exact(self.seq * self.cols) {
            let mut sum = [0.0; TASK_COLS];
            for token in packed.chunks_exact(self.cols) {
                let part = &token[self.start..self.start + width];
                let (whole, tail) = part.as_chunks::<LANES>();
                let (sums, sums_tail) = sum[..width].as_chunks_mut::<LANES>();
                for (sum, x) in sums.iter_mut().zip(whole) {
                    let v = s.add(s.load(sum), s.load(x));
                    s.store(v, sum);
                }
                sums_tail.iter_mut().zip(tail).for_each(|(sum, x)| *sum += x);
            }
            self.db.iter_mut().zip(&sum).for_each(|(db, sum)| *db += sum);
        }
    }
}

/// A number as it is stored.
pub trait Element: Copy + Send + Sync + 'static {
    /// The exact f32 value.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// `y = x` in another storage type, rounded to nearest even.
pub fn convert<A: Element, B: Element>(par: &Par, x: &[A], y: &mut [B]) {
    assert_eq!(x.len(), y.len(), "input and output differ in length");
    let tasks = y.len().div_ceil(TASK_ELEMS);
    run_parts(par, tasks, Chunks::new(y, TASK_ELEMS), |index, y: &mut [B]| {
        let start = index * TASK_ELEMS;
        simd::dispatch(Convert { x: &x[start..start + y.len()], y });
    });
}

struct Convert<'a, A, B> {
    x: &'a [A],
    y: &'a mut [B],
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = B::from_f32(x.to_f32());
        }
    }
}

/// `y[t, j] = x[t, index[j]]` for `x[rows, cols]`, `y[rows, index.len()]`.
///
/// Panics when an index is not below `cols`.
pub fn gather_cols(par: &Par, x: &[f32], cols: usize, index: &[i32], y: &mut [f32]) {
    let wide = index.len();
    assert!(wide > 0 && cols > 0, "no columns");
    assert!(index.iter().all(|&i| i >= 0 && (i as usize) < cols), "a column index is not below {cols}");
    assert_eq!(x.len() / cols * wide, y.len(), "input and output differ in rows");
    let rows = task_rows(wide);
    let tasks = y.len().div_ceil(rows * wide);
    run_parts(par, tasks, Chunks::new(y, rows * wide), |task, y: &mut [f32]| {
        let x = x[task * rows * cols..].chunks_exact(cols);
        for (y, x) in y.chunks_exact_mut(wide).zip(x) {
            y.iter_mut().zip(index).for_each(|(y, &i)| *y = x[i as usize]);
        }
    });
}

/// Cuts the columns of `x[rows, sum of widths]` into the outputs, side by side. An output's width is its length over
/// `rows`.
///
/// Panics when the widths do not add up.
pub fn split_cols<const N: usize>(par: &Par, x: &[f32], rows: usize, outputs: [&mut [f32]; N]) {
    let cols = width(x.len(), rows);
    let mut start = 0;
    for y in outputs {
        let wide = width(y.len(), rows);
        let height = task_rows(wide);
        run_parts(par, rows.div_ceil(height), Chunks::new(y, height * wide), |task, y: &mut [f32]| {
            for (row, y) in y.chunks_exact_mut(wide).enumerate() {
                let at = (task * height + row) * cols + start;
                y.copy_from_slice(&x[at..at + wide]);
            }
        });
        start += wide;
    }
    assert_eq!(start, cols, "the outputs do not have the input's columns");
}

/// Lays the inputs side by side: `y[rows, sum of widths]`. An input's width is its length over `rows`.
///
/// Panics when the widths do not add up.
pub fn concat_cols<const N: usize>(par: &Par, inputs: [&[f32]; N], rows: usize, y: &mut [f32]) {
    let cols = width(y.len(), rows);
    let height = task_rows(cols);
    assert_eq!(inputs.iter().map(|x| width(x.len(), rows)).sum::<usize>(), cols, "the inputs do not fill the output");
    run_parts(par, rows.div_ceil(height), Chunks::new(y, height * cols), |task, y: &mut [f32]| {
        for (row, y) in y.chunks_exact_mut(cols).enumerate() {
            let mut start = 0;
            for x in inputs {
                let wide = x.len() / rows;
                let at = (task * height + row) * wide;
                y[start..start + wide].copy_from_slice(&x[at..at + wide]);
                start += wide;
            }
        }
    });
}

/// Columns of a matrix of `len` elements in `rows` rows.
fn width(len: usize, rows: usize) -> usize {
    assert!(rows > 0 && len > 0 && len.is_multiple_of(rows), "{len} elements are not {rows} rows");
    len / rows
}

/// Bytes of scratch of [`norm_sq`] over `len` elements.
pub fn norm_sq_scratch_bytes(len: usize, _threads: usize) -> usize {
    piece_bytes::<f64>(len.div_ceil(NORM_CHUNK))
}

/// `out += sum of g[i]^2`, or `out = ` without `accumulate`.
///
/// Squares and sums are f64: [`NORM_CHUNK`] elements at a time, the partial sums then one after the other. So a tensor
/// taken in panels that begin at multiples of `NORM_CHUNK` gives the same bits as at once.
pub fn norm_sq(par: &Par, g: &[f32], accumulate: bool, out: &mut [f64; 1], scratch: &mut [u8]) {
    let partials = Scratch::new(scratch).take::<f64>(g.len().div_ceil(NORM_CHUNK));
    run_parts(par, partials.len(), Chunks::new(&mut *partials, 1), |index, partial: &mut [f64]| {
        let start = index * NORM_CHUNK;
        partial[0] = simd::dispatch(SumSquares(&g[start..g.len().min(start + NORM_CHUNK)]));
    });
    let start = if accumulate { out[0] } else { 0.0 };
    out[0] = partials.iter().fold(start, |sum, partial| sum + partial);
}

struct SumSquares<'a>(&'a [f32]);

impl Kernel for SumSquares<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut sums = [0.0f64; 2 * LANES];
        let (whole, tail) = self.0.as_chunks::<{ 2 * LANES }>();
        for x in whole {
            for i in 0..2 * LANES {
                let x = x[i] as f64;
                sums[i] += x * x;
            }
        }
        for (sum, &x) in sums.iter_mut().zip(tail) {
            *sum += x as f64 * x as f64;
        }
        sums.iter().sum()
    }
}

/// Whether every element is finite.
pub fn is_finite(par: &Par, x: &[f32]) -> bool {
    use core::sync::atomic::{AtomicBool, Ordering};
    let found = AtomicBool::new(false);
    par.run(x.len().div_ceil(TASK_ELEMS), |index, _| {
        let start = index * TASK_ELEMS;
        if simd::dispatch(HasNonFinite(&x[start..x.len().min(start + TASK_ELEMS)])) {
            found.store(true, Ordering::Relaxed);
        }
    });
    !found.load(Ordering::Relaxed)
}

struct HasNonFinite<'a>(&'a [f32]);

impl Kernel for HasNonFinite<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        self.0.iter().fold(false, |found, x| found | (x.to_bits() & EXPONENT == EXPONENT))
    }
}

/// `y[c, r] = x[r, c]` for `x[rows, cols]`.
pub fn transpose(par: &Par, x: &[f32], rows: usize, y: &mut [f32]) {
    let cols = width(x.len(), rows);
    assert_eq!(x.len(), y.len(), "input and output differ in length");
    let tiles = Tiles::new(y, rows, cols, (LANES, rows));
    run_parts(par, tiles.count(), tiles, |index, mut y| {
        for c in 0..y.rows() {
            let x = x[index * LANES + c..].iter().step_by(cols);
            y.row(c).iter_mut().zip(x).for_each(|(y, &x)| *y = x);
        }
    });
}
