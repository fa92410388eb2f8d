//! Normalisations and their gradients.

use super::call::Call;
use super::{Kernel, KernelError, Query, cols, elems, plain, rows};
use tinyforge_kernels::f32::batch_norm::{self as batch, BatchNorm, BatchNormSaved, Running};
use tinyforge_kernels::f32::norm::{self as k, Norm};
use tinyforge_kernels::par::Par;
use tinyforge_plan::Step;

pub(super) const KERNELS: &[Kernel] = &[
    plain("rms_norm", |c| {
        let norm = dims(c.step, 1);
        let (x, w, y) = (c.maybe(0), c.arg(1), c.out(0));
        k::rms_norm(c.par, &norm, x, w, y);
        Ok(())
    }),
    plain("add_rms_norm", |c| {
        let norm = dims(c.step, 2);
        // The sum is the same either way round, so either operand may be in place.
        let (x, r) = if c.in_place(1, 0) { (None, c.arg(0)) } else { (c.maybe(0), c.arg(1)) };
        let (w, sum, y) = (c.arg(2), c.out(0), c.out(1));
        k::add_rms_norm(c.par, &norm, x, r, w, sum, y);
        Ok(())
    }),
    plain("rms_norm_grad_x", |c| grad_x(c, k::rms_norm_grad_x)),
    plain("layer_norm_grad_x", |c| grad_x(c, k::layer_norm_grad_x)),
    Kernel { name: "rms_norm_grad_w", run: |c| grad_w(c, k::rms_norm_grad_w), scratch: grad_w_scratch },
    Kernel { name: "layer_norm_grad_w", run: |c| grad_w(c, k::layer_norm_grad_w), scratch: grad_w_scratch },
    plain("layer_norm", |c| {
        let norm = dims(c.step, 1);
        let (x, w, b, y) = (c.maybe(0), c.arg(1), c.arg(2), c.out(0));
        k::layer_norm(c.par, &norm, x, w, Some(b), y);
        Ok(())
    }),
    plain("batch_norm", batch_norm),
    plain("batch_norm_grad", batch_norm_grad),
    plain("batch_norm_eval", |c| {
        let dims = images(c, 0);
        let (x, w, b, mean, var) = (c.maybe(0), c.arg(1), c.arg(2), c.arg(3), c.arg(4));
        let y = c.out(0);
        batch::batch_norm_eval(c.par, &dims, x, (w, b), (mean, var), y);
        Ok(())
    }),
];

/// The dims of a batch norm of the images in operand `x`.
fn images(c: &Call, x: usize) -> BatchNorm {
    let [images, channels, height, width] = super::conv::image(&c.step.args[x].shape);
    BatchNorm { images, channels, pixels: height * width, eps: c.step.float("eps") }
}

fn batch_norm(c: &mut Call) -> Result<(), KernelError> {
    let dims = images(c, 2);
    let running = Running { mean: c.change(0), var: c.change(1), momentum: c.step.float("momentum") };
    let (x, w, b) = (c.arg(2), c.arg(3), c.arg(4));
    let (y, mean, inverse) = (c.out(0), c.out(1), c.out(2));
    batch::batch_norm_train(c.par, &dims, x, w, b, running, mean, inverse, y);
    Ok(())
}

fn batch_norm_grad(c: &mut Call) -> Result<(), KernelError> {
    let dims = images(c, 0);
    let saved = BatchNormSaved { x: c.arg(0), w: c.arg(1), mean: c.arg(2), inverse: c.arg(3), is_batch: true };
    let dy = c.arg(4);
    let (dx, dw, db) = (c.out(0), c.out(1), c.out(2));
    batch::batch_norm_grad(c.par, &dims, &saved, dy, Some(dx), Some(dw), Some(db), false);
    Ok(())
}

/// The dims of a norm whose weight is operand `w`.
fn dims(step: &Step, w: usize) -> Norm {
    let cols = step.args[w].elems() as usize;
    Norm { cols, groups: step.size("groups").max(1), seq: 1, eps: step.float("eps") }
}

type GradX = fn(&Par, &Norm, &[f32], &[f32], Option<&[f32]>, &mut [f32], bool);

fn grad_x(c: &mut Call, kernel: GradX) -> Result<(), KernelError> {
    let norm = dims(c.step, 1);
    let (x, w, dy) = (c.arg(0), c.arg(1), c.maybe(2));
    let (dx, accumulate) = c.accumulator(3, 0);
    kernel(c.par, &norm, x, w, dy, dx, accumulate);
    Ok(())
}

fn grad_w_scratch(q: &Query) -> Result<usize, String> {
    let groups = q.size("groups").max(1);
    let seq = rows(&q.args[0]) / q.size("rows").max(1);
    let norm = Norm { cols: cols(&q.args[0]) / groups, groups, seq, eps: q.float("eps") };
    Ok(k::norm_grad_w_scratch_bytes(&norm, elems(&q.args[0]), q.threads))
}

type GradW = fn(&Par, &Norm, &[f32], &[f32], bool, &mut [f32], &mut [u8]);

fn grad_w(c: &mut Call, kernel: GradW) -> Result<(), KernelError> {
    let groups = c.step.size("groups").max(1);
    let seq = c.step.args[0].rows() / c.step.size("rows").max(1);
    let norm = Norm { cols: c.step.args[0].cols() / groups, groups, seq, eps: c.step.float("eps") };
    let (x, dy, scratch) = (c.arg(0), c.arg(1), c.scratch());
    let (dw, accumulate) = c.accumulator(2, 0);
    kernel(c.par, &norm, x, dy, accumulate, dw, scratch);
    Ok(())
}
