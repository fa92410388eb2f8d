//! Linear layers, all of them the packed dense product.

use super::call::{Call, compute_of};
use super::{Kernel, KernelError, Query, cols, rows};
use tinyforge_kernels::f32::dense::{Gemm, gemm, gemm_scratch_bytes};

pub(super) const KERNELS: &[Kernel] = &[
    Kernel { name: "linear", run: |c| forward(c, 2), scratch: forward_scratch },
    Kernel { name: "linear_part", run: part, scratch: forward_scratch },
    Kernel { name: "linear_sub", run: |c| forward(c, 3), scratch: forward_scratch },
    Kernel { name: "linear_add", run: linear_add, scratch: forward_scratch },
    Kernel { name: "linear_grad_x", run: grad_x, scratch: grad_x_scratch },
    Kernel { name: "linear_grad_w", run: grad_w, scratch: grad_w_scratch },
];

fn scratch(q: &Query, m: usize, n: usize, k: usize) -> Result<usize, String> {
    Ok(gemm_scratch_bytes(m, n, k, compute_of(q.int("compute")), q.threads))
}

fn forward_scratch(q: &Query) -> Result<usize, String> {
    scratch(q, rows(&q.args[0]), rows(&q.args[1]), cols(&q.args[0]))
}

fn grad_x_scratch(q: &Query) -> Result<usize, String> {
    scratch(q, rows(&q.args[0]), cols(&q.args[1]), cols(&q.args[0]))
}

fn grad_w_scratch(q: &Query) -> Result<usize, String> {
    scratch(q, cols(&q.args[0]), cols(&q.args[1]), rows(&q.args[0]))
}

/// The product of operands 0 and 1 as a forward pass has it: `x wᵀ`.
fn product<'a>(c: &Call<'a>) -> Gemm<'a> {
    Gemm {
        a: c.mat(0),
        a_trans: false,
        b: c.mat(1),
        b_trans: true,
        compute: c.compute(),
        alpha: 1.0,
        bias: None,
        accumulate: false,
        k_segment: None,
    }
}

fn forward(c: &mut Call, bias: usize) -> Result<(), KernelError> {
    let mut g = product(c);
    g.bias = (bias < c.step.args.len()).then(|| c.arg(bias));
    let (y, n, scratch) = (c.out(0), c.step.outs[0].cols(), c.scratch());
    gemm(c.par, &g, y, n, scratch);
    Ok(())
}

/// Columns of the outputs, where the rows before them have left room.
fn part(c: &mut Call) -> Result<(), KernelError> {
    let (g, scratch) = (product(c), c.scratch());
    let (first, cols) = (c.step.size("first_row"), c.step.outs[0].cols());
    gemm(c.par, &g, &mut c.started(2, 0)[first..], cols, scratch);
    Ok(())
}

fn linear_add(c: &mut Call) -> Result<(), KernelError> {
    let mut g = product(c);
    g.alpha = c.step.float("alpha");
    let scratch = c.scratch();
    let (y, accumulate) = c.accumulator(2, 0);
    g.accumulate = accumulate;
    gemm(c.par, &g, y, c.step.outs[0].cols(), scratch);
    Ok(())
}

fn grad_x(c: &mut Call) -> Result<(), KernelError> {
    let mut g = Gemm { b_trans: false, alpha: c.step.float("alpha"), ..product(c) };
    let scratch = c.scratch();
    let (dx, accumulate) = c.accumulator(2, 0);
    g.accumulate = accumulate;
    gemm(c.par, &g, dx, c.step.outs[0].cols(), scratch);
    Ok(())
}

fn grad_w(c: &mut Call) -> Result<(), KernelError> {
    let seq = c.step.args[0].rows() / c.step.size("rows").max(1);
    let alpha = c.step.float("alpha");
    let mut g = Gemm { a_trans: true, b_trans: false, alpha, k_segment: Some(seq), ..product(c) };
    let scratch = c.scratch();
    let (dw, accumulate) = c.accumulator(2, 0);
    g.accumulate = accumulate;
    gemm(c.par, &g, dw, c.step.outs[0].cols(), scratch);
    Ok(())
}
