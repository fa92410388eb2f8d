//! Drives elementwise operations: sixteen elements at a time, in place or not, in parallel.
//!
//! Invariant: a last incomplete vector runs the same code as a whole one, so an element's result does not depend on
//! its position.
//!
//! ```text
//! for i in 0..len { outputs[..][i] = op(inputs[..][i]) }
//! ```
//! Bound: bytes moved over memory bandwidth.
#![expect(unsafe_code, reason = "an input may be the buffer that the output goes to")]

use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;
use core::array::from_fn;
use core::ptr;

/// Elements of one task.
const TASK_ELEMS: usize = 16 * 1024;

/// `x, y` of `y[i] = f(x[i])`.
type Forward = fn(&Par, Option<&[f32]>, &mut [f32]);
/// `saved, dy, dx` of `dx[i] = dy[i] f'(saved[i])`.
type Backward = fn(&Par, &[f32], Option<&[f32]>, &mut [f32]);
/// `a, b, y` of `y[i] = f(a[i], b[i]) = f(b[i], a[i])`.
type Commuting = fn(&Par, Option<&[f32]>, &[f32], &mut [f32]);

/// An elementwise function by what it takes. An operand that is `None` lies in the buffer that the result goes to.
#[derive(Clone, Copy)]
pub enum Elementwise {
    /// An operand, and the result.
    Forward(Forward),
    /// What the gradient reads, the result's gradient, and the operand's.
    Backward(Backward),
    /// Two operands that may change places, and the result.
    Commuting(Commuting),
}

/// An operation of `N` inputs and `M` outputs, element by element.
pub(crate) trait Op<const N: usize, const M: usize>: Copy + Sync {
    /// Sixteen elements at once. Write it as `#[inline(always)]`.
    fn apply<S: Simd>(self, s: S, x: [S::V; N]) -> [S::V; M];
}

/// Where an input is.
#[derive(Clone, Copy)]
pub(crate) enum Src<'a> {
    /// In its own slice.
    Slice(&'a [f32]),
    /// In the buffer of this output, which it is replaced in.
    Out(usize),
}

impl<'a> Src<'a> {
    /// `x`, or the contents of output `out`.
    pub(crate) fn or(x: Option<&'a [f32]>, out: usize) -> Self {
        x.map_or(Src::Out(out), Src::Slice)
    }
}

/// The buffers of one call.
#[derive(Clone, Copy)]
struct Buffers<const N: usize, const M: usize> {
    inputs: [*const f32; N],
    outputs: [*mut f32; M],
}

// SAFETY: tasks read and write disjoint ranges of the buffers.
unsafe impl<const N: usize, const M: usize> Sync for Buffers<N, M> {}

/// Applies `op` to every element.
///
/// Panics when the slices differ in length.
pub(crate) fn map<const N: usize, const M: usize, O: Op<N, M>>(
    par: &Par,
    op: O,
    inputs: [Src; N],
    mut outputs: [&mut [f32]; M],
) {
    let len = outputs[0].len();
    assert!(outputs.iter().all(|y| y.len() == len), "outputs differ in length");
    let outputs: [*mut f32; M] = from_fn(|i| outputs[i].as_mut_ptr());
    let inputs = inputs.map(|x| match x {
        Src::Out(i) => outputs[i].cast_const(),
        Src::Slice(x) => {
            assert_eq!(x.len(), len, "an input's length differs from the output's");
            x.as_ptr()
        }
    });
    let buffers = &Buffers { inputs, outputs };
    par.run(len.div_ceil(TASK_ELEMS), |index, _| {
        let start = index * TASK_ELEMS;
        simd::dispatch(Range { op, buffers, start, end: len.min(start + TASK_ELEMS) });
    });
}

struct Range<'a, O, const N: usize, const M: usize> {
    op: O,
    buffers: &'a Buffers<N, M>,
    start: usize,
    end: usize,
}

impl<O: Op<N, M>, const N: usize, const M: usize> Kernel for Range<'_, O, N, M> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Buffers { inputs, outputs } = *self.buffers;
        let mut at = self.start;
        while at + LANES <= self.end {
            let mut x = [s.zero(); N];
            for i in 0..N {
                // SAFETY: `at + LANES <= end <= len` of every buffer; arrays of f32 need no more alignment than f32.
                let lanes: [f32; LANES] = unsafe { ptr::read(inputs[i].add(at).cast()) };
                x[i] = s.load(&lanes);
            }
            let y = self.op.apply(s, x);
            for i in 0..M {
                // SAFETY: as above; the range belongs to this task alone.
                s.store(y[i], unsafe { &mut *outputs[i].add(at).cast() });
            }
            at += LANES;
        }
        let left = self.end - at;
        if left > 0 {
            let mut x = [s.zero(); N];
            for i in 0..N {
                let mut lanes = [0.0; LANES];
                // SAFETY: `left` elements from `at` lie inside the buffer.
                unsafe { ptr::copy_nonoverlapping(inputs[i].add(at), lanes.as_mut_ptr(), left) };
                x[i] = s.load(&lanes);
            }
            let y = self.op.apply(s, x);
            for i in 0..M {
                let mut lanes = [0.0; LANES];
                s.store(y[i], &mut lanes);
                // SAFETY: as above; the range belongs to this task alone.
                unsafe { ptr::copy_nonoverlapping(lanes.as_ptr(), outputs[i].add(at), left) };
            }
        }
    }
}
