//! Optimizer updates, alone or with the weight gradient they read.

use super::call::{Call, compute_of};
use super::{Kernel, KernelError, Query, cols, plain, rows};
use half::bf16;
use tinyforge_kernels::f32::dense::{Gemm, Mat, MatData, gemm, gemm_scratch_bytes};
use tinyforge_kernels::f32::elementwise::is_finite;
use tinyforge_kernels::f32::optimizer::{
    AdamW, BLOCK, Codes, Columns, Sgd, Target, Weights, update_adamw, update_adamw8, update_sgd,
};
use tinyforge_kernels::par::Par;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, Step};

pub(super) const KERNELS: &[Kernel] = &[
    plain("update", |c| {
        let grad = c.arg::<f32>(1 + c.step.size("states"));
        let mut update = Update::of(c, 2 + c.step.size("states"));
        let first = c.step.size("first_row");
        let rows = match c.step.size("panel_rows") {
            0 => 0..update.rows,
            panel => first..first + panel,
        };
        let elems = rows.start * update.trained_cols..rows.end * update.trained_cols;
        // The gradient may be the panel's alone.
        let grad = if grad.len() == elems.len() { grad } else { &grad[elems] };
        update.check(c, grad)?;
        update.panel(c.par, grad, rows);
        Ok(())
    }),
    Kernel { name: "linear_grad_w_update", run: linear_grad_w_update, scratch: panel_scratch },
];

/// Rows of a weight whose gradient exists at one time. A multiple of [`BLOCK`] rows is a multiple of `BLOCK`
/// elements whatever the width; fixed by the shape, and no matter to the result.
fn panel_rows(rows: usize) -> usize {
    rows.min(BLOCK)
}

/// The operands of an update behind the gradient, and the tensor it changes.
struct Update<'a> {
    step: &'a Step,
    weights: &'a mut [u8],
    dtype: DType,
    rows: usize,
    /// The row of the whole weight that this one begins with, where it may be a panel alone.
    weights_row: usize,
    /// Columns of the whole weight, and of what is trained.
    cols: usize,
    trained_cols: usize,
    /// The states, and the row of the weight that they begin with.
    states: [&'a mut [u8]; 4],
    states_row: usize,
    hyper: &'a [f32],
    stream: Stream,
    grad_scale: f32,
    index: Option<&'a [i32]>,
}

impl<'a> Update<'a> {
    /// `after`: the operand behind the gradient.
    fn of(c: &mut Call<'a>, after: usize) -> Update<'a> {
        let step = c.step;
        let (clip, sub) = (step.size("clip"), step.size("sub"));
        let mut states: [&'a mut [u8]; 4] = Default::default();
        for (i, state) in states.iter_mut().enumerate().take(step.size("states")) {
            *state = c.change_bytes(1 + i);
        }
        let rng = c.arg::<u32>(after + 1);
        let index = (sub == 1).then(|| c.arg::<i32>(after + 2 + clip));
        let w = &step.args[0];
        Update {
            step,
            weights: c.change_bytes(0),
            dtype: w.dtype,
            rows: w.rows(),
            weights_row: if step.size("panel_rows") == w.rows() { step.size("first_row") } else { 0 },
            cols: w.cols(),
            trained_cols: index.map_or(w.cols(), <[i32]>::len),
            states,
            states_row: step.size("first_row"),
            hyper: c.arg(after),
            stream: Stream { seed: join(rng[0], rng[1]), step: rng[2], tensor: step.int("stream") as u32 },
            grad_scale: if clip == 1 { c.arg::<f32>(after + 2)[0] } else { 1.0 },
            index,
        }
    }

    /// Refuses a gradient with NaN or infinity before it changes anything.
    fn check(&self, c: &Call, grad: &[f32]) -> Result<(), KernelError> {
        if is_finite(c.par, grad) {
            return Ok(());
        }
        Err(c.error("its gradient is not finite; training stopped before the update. A lower --lr or clipping helps"))
    }

    /// Updates rows `range` by their gradient.
    fn panel(&mut self, par: &Par, grad: &[f32], range: std::ops::Range<usize>) {
        let Update { step, cols, trained_cols, stream, .. } = *self;
        let [from, to] = [range.start, range.end].map(|row| (row - self.weights_row) * cols);
        let weights = match self.dtype {
            DType::BF16 => Weights::Bf16(part::<bf16>(self.weights, from, to), stream),
            _ => Weights::F32(part(self.weights, from, to)),
        };
        let (first, last) = (range.start * trained_cols, range.end * trained_cols);
        let columns = self.index.map(|index| Columns { cols, index });
        let target = Target { weights, columns, offset: first as u64 };
        let [s0, s1, s2, s3] = &mut self.states;
        let own = self.states_row * trained_cols;
        let (first, last) = (first - own, last - own);
        let adamw = AdamW {
            lr: self.hyper[0],
            beta1: step.float("beta1"),
            beta2: step.float("beta2"),
            eps: step.float("eps"),
            weight_decay: step.float("weight_decay"),
            bias1: self.hyper[1],
            bias2: self.hyper[2],
            grad_scale: self.grad_scale,
        };
        match (step.int("rule"), step.size("states")) {
            (0, states) => {
                let sgd = Sgd {
                    lr: adamw.lr,
                    momentum: adamw.beta1,
                    weight_decay: adamw.weight_decay,
                    grad_scale: adamw.grad_scale,
                };
                let m = (states > 0).then(|| part::<f32>(s0, first, last));
                update_sgd(par, &sgd, target, grad, m);
            }
            (1, _) => update_adamw(par, &adamw, target, grad, part(s0, first, last), part(s1, first, last)),
            _ => {
                let blocks = (first / BLOCK, last.div_ceil(BLOCK));
                let m = Codes { codes: part(s0, first, last), scales: part(s1, blocks.0, blocks.1) };
                let v = Codes { codes: part(s2, first, last), scales: part(s3, blocks.0, blocks.1) };
                update_adamw8(par, &adamw, target, grad, m, v);
            }
        }
    }
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn part<T: bytemuck::Pod>(bytes: &mut [u8], first: usize, last: usize) -> &mut [T] {
    &mut bytemuck::cast_slice_mut(bytes)[first..last]
}

fn panel_scratch(q: &Query) -> Result<usize, String> {
    let at = 1 + q.size("states");
    let (n, k, tokens) = (cols(&q.args[at]), cols(&q.args[at + 1]), rows(&q.args[at]));
    let panel = panel_rows(n);
    let compute = compute_of(q.int("compute"));
    let products = gemm_scratch_bytes(panel, k, tokens, compute, q.threads);
    let last = gemm_scratch_bytes(n % panel, k, tokens, compute, q.threads);
    Ok((4 * panel * k).next_multiple_of(64) + products.max(last))
}

fn linear_grad_w_update(c: &mut Call) -> Result<(), KernelError> {
    let at = 1 + c.step.size("states");
    let (tokens, n, k) = (c.step.args[at].rows(), c.step.args[at].cols(), c.step.args[at + 1].cols());
    let (dy, x) = (c.arg::<f32>(at), c.arg::<f32>(at + 1));
    let compute = c.compute();
    let mut update = Update::of(c, at + 2);
    let panel = panel_rows(n);
    let (grad, scratch) = c.scratch().split_at_mut((4 * panel * k).next_multiple_of(64));
    let grad: &mut [f32] = &mut bytemuck::cast_slice_mut(grad)[..panel * k];
    for first in (0..n).step_by(panel) {
        let rows = panel.min(n - first);
        let product = Gemm {
            a: Mat { data: MatData::F32(&dy[first..]), rows: tokens, cols: rows, stride: n },
            a_trans: true,
            b: Mat { data: MatData::F32(x), rows: tokens, cols: k, stride: k },
            b_trans: false,
            compute,
            alpha: c.step.float("alpha"),
            bias: None,
            accumulate: false,
            k_segment: Some(tokens / c.step.size("rows").max(1)),
        };
        gemm(c.par, &product, &mut grad[..rows * k], k, scratch);
        update.check(c, &grad[..rows * k])?;
        update.panel(c.par, &grad[..rows * k], first..first + rows);
    }
    Ok(())
}
