//! Losses and softmax.

use super::call::{Call, compute_of};
use super::{Kernel, KernelError, Query, cols, elems, plain, rows};
use tinyforge_kernels::f32::dense::{Compute, Mat};
use tinyforge_kernels::f32::loss::{self as k, Head, LinearCrossEntropy, LinearCrossEntropyOut, Part};
use tinyforge_plan::VOCAB_SEGMENT;

const _: () = assert!(k::VOCAB_SEGMENT == VOCAB_SEGMENT as usize, "plans and kernels cut a vocabulary alike");

pub(super) const KERNELS: &[Kernel] = &[
    plain("softmax", |c| {
        let cols = c.step.args[0].cols();
        let (x, y) = (c.maybe(0), c.out(0));
        k::softmax(c.par, cols, x, y);
        Ok(())
    }),
    plain("softmax_grad", |c| {
        let cols = c.step.args[0].cols();
        let (y, dy, dx) = (c.arg(0), c.maybe(1), c.out(0));
        k::softmax_grad(c.par, cols, y, dy, dx);
        Ok(())
    }),
    plain("cross_entropy", |c| {
        let (x, labels, weights, loss) = (c.arg(0), c.arg(1), c.arg(2), c.out(0));
        k::cross_entropy(c.par, x, labels, weights, loss).map_err(|e| c.error(e.to_string()))
    }),
    Kernel { name: "cross_entropy_grad", run: cross_entropy_grad, scratch: weights_scratch },
    plain("mse_loss", |c| {
        let (x, target, weights, loss) = (c.arg(0), c.arg(1), c.arg(2), c.out(0));
        k::mse_loss(c.par, x, target, weights, loss);
        Ok(())
    }),
    Kernel { name: "mse_loss_grad", run: mse_loss_grad, scratch: weights_scratch },
    Kernel { name: "linear_cross_entropy", run: linear_cross_entropy, scratch: linear_scratch },
    Kernel { name: "linear_cross_entropy_grad", run: linear_cross_entropy, scratch: linear_scratch },
    Kernel {
        name: "linear_cross_entropy_sums",
        run: linear_cross_entropy_sums,
        scratch: |q| Ok(k::linear_cross_entropy_sums_scratch_bytes(&dims_asked(q), q.threads)),
    },
    plain("cross_entropy_of_sums", |c| {
        let (sums, weights, loss) = (c.arg(0), c.arg(1), c.out(0));
        k::cross_entropy_of_sums(sums, weights, loss);
        Ok(())
    }),
    Kernel {
        name: "linear_cross_entropy_grad_h",
        run: linear_cross_entropy_grad_h,
        scratch: |q| Ok(k::linear_cross_entropy_grad_h_scratch_bytes(&dims_asked(q), q.threads)),
    },
    Kernel { name: "linear_cross_entropy_grad_w", run: linear_cross_entropy_grad_w, scratch: panel_scratch },
];

/// Room for the products of weights and the loss's gradients.
fn weights_scratch(q: &Query) -> Result<usize, String> {
    Ok(4 * elems(&q.args[2]))
}

/// `weights * dloss`, in scratch.
fn scaled_weights<'a>(c: &mut Call<'a>) -> &'a [f32] {
    let (weights, dloss) = (c.arg::<f32>(2), c.arg::<f32>(3));
    let scaled: &mut [f32] = bytemuck::cast_slice_mut(c.scratch());
    for (out, (w, d)) in scaled.iter_mut().zip(weights.iter().zip(dloss)) {
        *out = w * d;
    }
    scaled
}

fn cross_entropy_grad(c: &mut Call) -> Result<(), KernelError> {
    let weights = scaled_weights(c);
    let (x, labels, dx) = (c.maybe(0), c.arg(1), c.out(0));
    k::cross_entropy_grad(c.par, x, labels, weights, dx).map_err(|e| c.error(e.to_string()))
}

fn mse_loss_grad(c: &mut Call) -> Result<(), KernelError> {
    let weights = scaled_weights(c);
    let (x, target, dx) = (c.maybe(0), c.arg(1), c.out(0));
    k::mse_loss_grad(c.par, x, target, weights, dx);
    Ok(())
}

fn dims([tokens, width, vocab]: [usize; 3], seq: usize, compute: Compute) -> LinearCrossEntropy {
    let seq = seq.max(1);
    LinearCrossEntropy { rows: tokens / seq, seq, width, vocab, logit_scale: 1.0, compute }
}

fn dims_asked(q: &Query) -> LinearCrossEntropy {
    let (h, w) = (&q.args[0], &q.args[1]);
    dims([rows(h), cols(h), rows(w)], q.size("seq"), compute_of(q.int("compute")))
}

fn dims_here(c: &Call) -> LinearCrossEntropy {
    let (h, w) = (&c.step.args[0], &c.step.args[1]);
    dims([h.rows(), h.cols(), w.rows()], c.step.size("seq"), c.compute())
}

fn head<'a>(c: &Call<'a>, w: &'a Mat<'a>) -> Head<'a> {
    Head { h: c.arg(0), w, labels: c.arg(2), weights: c.arg(3) }
}

fn part(c: &Call) -> Part {
    Part { first: c.step.size("first_row"), vocab: c.step.size("vocab") }
}

fn linear_scratch(q: &Query) -> Result<usize, String> {
    Ok(k::linear_cross_entropy_scratch_bytes(&dims_asked(q), q.threads))
}

fn linear_cross_entropy(c: &mut Call) -> Result<(), KernelError> {
    let (dims, w) = (dims_here(c), c.mat(1));
    let head = head(c, &w);
    let (loss, scratch) = (c.out(0), c.scratch());
    let dh = (c.step.outs.len() > 1).then(|| c.out(1));
    let dw = (c.step.int("grad_w") != 0).then(|| c.accumulator(4, 2));
    let sums = (c.step.int("sums") != 0).then(|| c.out(c.step.outs.len() - 1));
    let out = LinearCrossEntropyOut { loss, dh, dw, sums };
    k::linear_cross_entropy(c.par, &dims, &head, out, scratch).map_err(|e| c.error(e.to_string()))
}

fn linear_cross_entropy_sums(c: &mut Call) -> Result<(), KernelError> {
    let (dims, part, w) = (dims_here(c), part(c), c.mat(1));
    let head = head(c, &w);
    let (sums, scratch) = (c.accumulator(4, 0), c.scratch());
    k::linear_cross_entropy_sums(c.par, &dims, part, &head, sums, scratch).map_err(|e| c.error(e.to_string()))
}

fn linear_cross_entropy_grad_h(c: &mut Call) -> Result<(), KernelError> {
    let (dims, part, w) = (dims_here(c), part(c), c.mat(1));
    let (head, sums) = (head(c, &w), c.arg(4));
    let (dh, scratch) = (c.accumulator(5, 0), c.scratch());
    k::linear_cross_entropy_grad_h(c.par, &dims, part, &head, sums, dh, scratch).map_err(|e| c.error(e.to_string()))
}

fn panel_scratch(q: &Query) -> Result<usize, String> {
    Ok(k::linear_cross_entropy_grad_w_scratch_bytes(&dims_asked(q), rows(&q.outs[0]), q.threads))
}

fn linear_cross_entropy_grad_w(c: &mut Call) -> Result<(), KernelError> {
    let (dims, w) = (dims_here(c), c.mat(1));
    let dims = LinearCrossEntropy { vocab: c.step.size("vocab").max(dims.vocab), ..dims };
    let (head, sums) = (head(c, &w), c.arg(4));
    let (first, dw, scratch) = (c.step.size("first_row"), c.accumulator(5, 0), c.scratch());
    k::linear_cross_entropy_grad_w(c.par, &dims, &head, sums, first, dw, scratch).map_err(|e| c.error(e.to_string()))
}
