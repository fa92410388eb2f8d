//! Elementwise kernels, and those that move or sum columns and rows.

use super::call::Call;
use super::{Kernel, KernelError, elems, plain};
use bytemuck::Zeroable;
use tinyforge_kernels::f32::elementwise as k;

pub(super) const KERNELS: &[Kernel] = &[
    plain("add_scaled", |c| {
        let (a, b, y) = (c.maybe(0), c.arg(1), c.out(0));
        k::add_scaled(c.par, a, c.step.float("scale"), b, y);
        Ok(())
    }),
    plain("add_row", |c| {
        let (x, b, y) = (c.maybe(0), c.arg(1), c.out(0));
        k::add_row(c.par, x, b, y);
        Ok(())
    }),
    plain("scale", |c| {
        let (x, y) = (c.maybe(0), c.out(0));
        k::scale(c.par, x, c.step.float("scale"), y);
        Ok(())
    }),
    plain("fill", |c| {
        let value = c.step.float("value");
        c.out::<f32>(0).fill(value);
        Ok(())
    }),
    plain("assign", |c| {
        let x = c.arg_bytes(1);
        c.change_bytes(0).copy_from_slice(x);
        Ok(())
    }),
    plain("zero", |c| {
        c.change_bytes(0).fill(u8::zeroed());
        Ok(())
    }),
    plain("reshape", |c| {
        let x = c.arg_bytes(0);
        c.out::<u8>(0).copy_from_slice(x);
        Ok(())
    }),
    plain("sum_rows", |c| {
        let seq = c.step.args[0].rows() / c.step.size("rows").max(1);
        let x = c.arg(0);
        let (y, accumulate) = c.accumulator(1, 0);
        k::sum_rows(c.par, x, seq, accumulate, y);
        Ok(())
    }),
    plain("gather_cols", |c| {
        let (x, index, cols) = (c.arg(0), c.arg(1), c.step.args[0].cols());
        let y = c.out(0);
        k::gather_cols(c.par, x, cols, index, y);
        Ok(())
    }),
    plain("scatter_cols", scatter_cols),
    plain("slice_cols", |c| {
        let (start, len, cols) = (c.step.size("start"), c.step.size("len"), c.step.args[0].cols());
        let (x, y) = (c.arg::<f32>(0), c.out::<f32>(0));
        for (y, x) in y.chunks_exact_mut(len).zip(x.chunks_exact(cols)) {
            y.copy_from_slice(&x[start..start + len]);
        }
        Ok(())
    }),
    plain("concat_cols", concat_cols),
    Kernel { name: "norm_sq", run: norm_sq, scratch: |q| Ok(k::norm_sq_scratch_bytes(elems(&q.args[0]), q.threads)) },
    plain("clip_scale", |c| {
        let (x, max_norm) = (c.arg::<f64>(0)[0], f64::from(c.step.float("max_norm")));
        let y = c.out::<f32>(0);
        let norm = x.sqrt();
        y[0] = (max_norm / (norm + 1e-6)).min(1.0) as f32;
        y[1] = norm as f32;
        Ok(())
    }),
];

fn scatter_cols(c: &mut Call) -> Result<(), KernelError> {
    let (wide, cols) = (c.step.args[0].cols(), c.step.size("cols"));
    let (x, index, y) = (c.arg::<f32>(0), c.arg::<i32>(1), c.out::<f32>(0));
    for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(wide)) {
        y.fill(0.0);
        for (x, &k) in x.iter().zip(index) {
            y[k as usize] += x;
        }
    }
    Ok(())
}

fn concat_cols(c: &mut Call) -> Result<(), KernelError> {
    let total = c.step.outs[0].cols();
    let y = c.out::<f32>(0);
    let mut start = 0;
    for i in 0..c.step.args.len() {
        let cols = c.step.args[i].cols();
        for (y, x) in y.chunks_exact_mut(total).zip(c.arg::<f32>(i).chunks_exact(cols)) {
            y[start..start + cols].copy_from_slice(x);
        }
        start += cols;
    }
    Ok(())
}

fn norm_sq(c: &mut Call) -> Result<(), KernelError> {
    let (x, scratch) = (c.arg(0), c.scratch());
    let given = c.step.args.len() > 1;
    let from = if given { c.maybe::<f64>(1) } else { None };
    let y = c.out::<f64>(0);
    let mut sum = [from.map_or(y[0], |f| f[0])];
    k::norm_sq(c.par, x, given, &mut sum, scratch);
    y[0] = sum[0];
    Ok(())
}
