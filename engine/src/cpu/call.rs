//! What a kernel is called with: the typed pieces of one step.

use crate::arena::{Cuts, Pieces};
use bytemuck::Pod;
use half::{bf16, f16};
use tinyforge_kernels::f32::dense::{Compute, Mat, MatData};
use tinyforge_kernels::par::Par;
use tinyforge_plan::{DType, Step};

/// Why a kernel stopped: the data, not the plan, is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{kernel} {label}: {why}")]
pub struct KernelError {
    /// The kernel.
    pub kernel: String,
    /// What it computes.
    pub label: String,
    /// What is wrong.
    pub why: String,
}

/// One step with its memory. The plan's checker and the binding at load have made sure of places and sizes, so a
/// kernel that asks for what its row does not have is a fault of ours and panics.
pub(crate) struct Call<'a> {
    pub(crate) step: &'a Step,
    pub(crate) par: &'a Par,
    cuts: &'a Cuts,
    pieces: Pieces<'a>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(step: &'a Step, par: &'a Par, cuts: &'a Cuts, pieces: Pieces<'a>) -> Call<'a> {
        Call { step, par, cuts, pieces }
    }

    /// Operand `i`, which no result takes the place of.
    pub(crate) fn arg<T: Pod>(&self, i: usize) -> &'a [T] {
        self.maybe(i).expect("the op's row does not allow this operand in place")
    }

    /// Operand `i`, or `None` when a result lies in its place: the result's memory holds it.
    pub(crate) fn maybe<T: Pod>(&self, i: usize) -> Option<&'a [T]> {
        self.pieces.read(self.cuts.args[i]).map(bytemuck::cast_slice)
    }

    /// Whether result `o` lies where operand `i` lies.
    pub(crate) fn in_place(&self, i: usize, o: usize) -> bool {
        self.cuts.args.get(i) == Some(&self.cuts.outs[o])
    }

    /// Result `i`, to be written.
    pub(crate) fn out<T: Pod>(&mut self, i: usize) -> &'a mut [T] {
        bytemuck::cast_slice_mut(self.pieces.take(self.cuts.outs[i]).expect("results lie apart"))
    }

    /// Operand `i`, which the op changes.
    pub(crate) fn change<T: Pod>(&mut self, i: usize) -> &'a mut [T] {
        bytemuck::cast_slice_mut(self.change_bytes(i))
    }

    /// The bytes of operand `i`, which the op changes.
    pub(crate) fn change_bytes(&mut self, i: usize) -> &'a mut [u8] {
        self.pieces.take(self.cuts.args[i]).expect("changed operands lie apart")
    }

    /// The bytes of operand `i`.
    pub(crate) fn arg_bytes(&self, i: usize) -> &'a [u8] {
        self.pieces.read(self.cuts.args[i]).expect("the op's row does not allow this operand in place")
    }

    /// Scratch, empty where none was planned.
    pub(crate) fn scratch(&mut self) -> &'a mut [u8] {
        self.cuts.scratch.and_then(|i| self.pieces.take(i)).unwrap_or_default()
    }

    /// Result `o`, which starts from operand `acc` where the step has one: the flag says whether it does. A result
    /// that does not lie in the operand's place is set to it first.
    pub(crate) fn accumulator(&mut self, acc: usize, o: usize) -> (&'a mut [f32], bool) {
        let given = acc < self.step.args.len();
        let from = if given { self.maybe::<f32>(acc) } else { None };
        let out = self.out::<f32>(o);
        if let Some(from) = from {
            out.copy_from_slice(from);
        }
        (out, given)
    }

    /// Result `o`, set to operand `onto` where the step has one, else to zeros.
    pub(crate) fn started(&mut self, onto: usize, o: usize) -> &'a mut [f32] {
        let (out, given) = self.accumulator(onto, o);
        if !given {
            out.fill(0.0);
        }
        out
    }

    /// Operand `i` as a stored matrix.
    pub(crate) fn mat(&self, i: usize) -> Mat<'a> {
        let t = &self.step.args[i];
        matrix(t.dtype, self.arg_bytes(i), t.rows(), t.cols())
    }

    /// The number type of products.
    pub(crate) fn compute(&self) -> Compute {
        compute_of(self.step.int("compute"))
    }

    /// An error about this step's data.
    pub(crate) fn error(&self, why: impl Into<String>) -> KernelError {
        let Step { kernel, label, .. } = self.step;
        KernelError { kernel: kernel.clone(), label: label.clone(), why: why.into() }
    }
}

/// The number type of the op attribute `compute`.
pub(crate) fn compute_of(attr: i64) -> Compute {
    if attr == 1 { Compute::BF16 } else { Compute::F32 }
}

/// Stored bytes as a matrix.
pub(crate) fn matrix(dtype: DType, bytes: &[u8], rows: usize, cols: usize) -> Mat<'_> {
    let data = match dtype {
        DType::F32 => MatData::F32(bytemuck::cast_slice(bytes)),
        DType::BF16 => MatData::BF16(bytemuck::cast_slice::<u8, bf16>(bytes)),
        DType::F16 => MatData::F16(bytemuck::cast_slice::<u8, f16>(bytes)),
        block => MatData::Blocks(block, bytes),
    };
    Mat { data, rows, cols, stride: cols }
}
