//! Activation functions of two operands; those of one have [a table](super::each).

use super::{Kernel, plain};
use tinyforge_kernels::f32::activation as k;

pub(super) const KERNELS: &[Kernel] = &[
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
