//! Activation functions and their gradients.

use super::call::Call;
use super::{Kernel, KernelError, plain};
use tinyforge_kernels::f32::activation as k;
use tinyforge_kernels::par::Par;

pub(super) const KERNELS: &[Kernel] = &[
    plain("relu", |c| forward(c, k::relu)),
    plain("relu_grad", |c| backward(c, k::relu_grad)),
    plain("relu6", |c| forward(c, k::relu6)),
    plain("relu6_grad", |c| backward(c, k::relu6_grad)),
    plain("gelu", |c| forward(c, k::gelu)),
    plain("gelu_grad", |c| backward(c, k::gelu_grad)),
    plain("gelu_tanh", |c| forward(c, k::gelu_tanh)),
    plain("gelu_tanh_grad", |c| backward(c, k::gelu_tanh_grad)),
    plain("silu", |c| forward(c, k::silu)),
    plain("silu_grad", |c| backward(c, k::silu_grad)),
    plain("sigmoid", |c| forward(c, k::sigmoid)),
    plain("sigmoid_grad", |c| backward(c, k::sigmoid_grad)),
    plain("tanh", |c| forward(c, k::tanh)),
    plain("tanh_grad", |c| backward(c, k::tanh_grad)),
    plain("swiglu", |c| {
        let (gate, up, y) = (c.maybe(0), c.arg(1), c.out(0));
        k::swiglu(c.par, gate, up, y);
        Ok(())
    }),
    plain("swiglu_grad", |c| {
        let (gate, up, dy) = (c.maybe(0), c.maybe(1), c.arg(2));
        let (dgate, dup) = (c.out(0), c.out(1));
        k::swiglu_grad(c.par, gate, up, dy, dgate, dup);
        Ok(())
    }),
];

fn forward(c: &mut Call, kernel: fn(&Par, Option<&[f32]>, &mut [f32])) -> Result<(), KernelError> {
    let (x, y) = (c.maybe(0), c.out(0));
    kernel(c.par, x, y);
    Ok(())
}

type Backward = fn(&Par, &[f32], Option<&[f32]>, &mut [f32]);

fn backward(c: &mut Call, kernel: Backward) -> Result<(), KernelError> {
    let (saved, dy, dx) = (c.arg(0), c.maybe(1), c.out(0));
    kernel(c.par, saved, dy, dx);
    Ok(())
}
