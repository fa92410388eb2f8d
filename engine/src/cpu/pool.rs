//! Pooling and its gradients.

use super::call::Call;
use super::conv::{image, window};
use super::{Kernel, KernelError, elems, plain};
use tinyforge_kernels::f32::pool::{self as k, Pool};

pub(super) const KERNELS: &[Kernel] = &[
    Kernel { name: "max_pool", run: max_pool, scratch: |q| Ok(4 * elems(&q.outs[0])) },
    Kernel { name: "max_pool_grad", run: max_pool_grad, scratch: |q| Ok(8 * elems(&q.args[0])) },
    plain("avg_pool", |c| {
        let dims = dims(c, &c.step.args[0].shape);
        let (x, y) = (c.arg(0), c.out(0));
        k::avg_pool(c.par, &dims, x, y);
        Ok(())
    }),
    plain("avg_pool_grad", |c| {
        let dims = dims(c, &c.step.outs[0].shape);
        let (dy, dx) = (c.arg(0), c.out(0));
        k::avg_pool_grad(c.par, &dims, dy, dx);
        Ok(())
    }),
    plain("global_avg_pool", |c| {
        let (x, y) = (c.arg(0), c.out(0));
        k::global_avg_pool(c.par, x, y);
        Ok(())
    }),
    plain("global_avg_pool_grad", |c| {
        let (dy, dx) = (c.arg(0), c.out(0));
        k::global_avg_pool_grad(c.par, dy, dx);
        Ok(())
    }),
];

fn dims(c: &Call, x: &[u32]) -> Pool {
    let [images, channels, height, width] = image(x);
    let high = c.step.size("kernel");
    let wide = if c.step.int("kernel_w") == 0 { high } else { c.step.size("kernel_w") };
    Pool {
        planes: images * channels,
        size: [height, width],
        window: window([high, wide], |name| c.step.int(name)),
        counts_padding: false,
    }
}

fn max_pool(c: &mut Call) -> Result<(), KernelError> {
    let dims = dims(c, &c.step.args[0].shape);
    let (x, y, index) = (c.arg(0), c.out(0), c.scratch());
    k::max_pool(c.par, &dims, x, y, bytemuck::cast_slice_mut(index));
    Ok(())
}

/// Finds the largest elements again: keeping their indices would cost memory from forward to backward.
fn max_pool_grad(c: &mut Call) -> Result<(), KernelError> {
    let dims = dims(c, &c.step.args[1].shape);
    let (dy, x, dx, scratch) = (c.arg::<f32>(0), c.arg(1), c.out(0), c.scratch());
    let (y, index) = scratch.split_at_mut(4 * dy.len());
    let index = bytemuck::cast_slice_mut(index);
    k::max_pool(c.par, &dims, x, bytemuck::cast_slice_mut(y), index);
    k::max_pool_grad(c.par, &dims, index, dy, dx);
    Ok(())
}
