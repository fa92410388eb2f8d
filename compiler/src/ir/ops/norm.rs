//! Normalisations and their gradients.
//!
//! Shapes: `T` tokens, `D` features, `H` groups (heads) of a token's features that are normalised apart with one
//! shared weight; images are `[B,C,H,W]`.

use super::def::{Acc, OpDef, ROW, Saves, Tensor, Vjp, expect, expect_shape};
use super::elementwise::{accumulates, start_from};
use crate::ir::attrs::{Attrs, float, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;

fn group_len(x: &Type, w: &Type, a: &Attrs) -> Result<(), String> {
    expect("length of the weight times groups", w.elems() * a.size("groups").max(1) as u64, x.cols())
}

/// Calls `f(group's x, offset of the group in x.data)` for every normalised vector.
fn for_groups(x: &Tensor, len: usize, mut f: impl FnMut(&[f64], usize)) {
    x.data.chunks(len).enumerate().for_each(|(i, group)| f(group, i * len));
}

fn inv_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

fn rms_norm(x: &Tensor, w: &Tensor, y: &mut Tensor, eps: f64) {
    let len = w.data.len();
    for_groups(x, len, |x, at| {
        let r = inv_rms(x, eps);
        (0..len).for_each(|i| y.data[at + i] = x[i] * r * w.data[i]);
    });
}

/// Gradients of a norm's operands `x, w`, each an op of its own so that one not needed costs nothing.
fn split_grads(v: &mut Vjp, x: Value, grad_x: Op, grad_w: Op) -> Vec<Option<Value>> {
    let (dy, rows) = (v.dy(), v.rows());
    let eps = ("eps", v.attrs.float("eps").into());
    let groups = ("groups", v.attrs.int("groups").into());
    let dx = v.needs[0].then(|| {
        let w = v.arg(1);
        v.push(0, grad_x, &[x, w, dy], &[eps, groups])
    });
    let dw = v.needs[1].then(|| {
        let like_w = v.arg_ty(1).elems() as u32;
        v.push(1, grad_w, &[x, dy], &[eps, groups, ("len", like_w.into()), ("rows", rows.into())])
    });
    vec![dx, dw]
}

/// `y[t] = w x[t] / √(mean(x[t]²) + eps)`. `x`: `[T,D]`, `w`: `[D/groups]`. Source: Zhang & Sennrich 2019.
pub const RMS_NORM: OpDef = OpDef {
    name: "rms_norm",
    arity: (2, 2),
    attrs: &[float("eps", 1e-5), int("groups", 1)],
    infer: |x, a| {
        group_len(&x[0], &x[1], a)?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, a| rms_norm(&x[0], &x[1], &mut y[0], a.float("eps")),
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let x = v.arg(0);
        split_grads(v, x, Op::RmsNormGradX, Op::RmsNormGradW)
    }),
    in_place: &[(0, 0)],
    flops: |_, y, _| 4 * y[0].elems(),
    ..ROW
};

/// `dx = r (w dy - x̂ mean(w dy x̂))`, `x̂ = x r`, `r = 1/√(mean(x²) + eps)`; operands `x, w, dy`.
pub const RMS_NORM_GRAD_X: OpDef = OpDef {
    name: "rms_norm_grad_x",
    arity: (3, 4),
    attrs: &[float("eps", 1e-5), int("groups", 1)],
    infer: |x, a| {
        group_len(&x[0], &x[1], a)?;
        expect_shape("dy", &x[2], &x[0].shape)?;
        accumulates(x, 3, x[0].clone())
    },
    eval: |x, y, a| {
        start_from(x, 3, y);
        let (w, dy, len) = (&x[1].data, &x[2].data, x[1].data.len());
        for_groups(&x[0], len, |x, at| {
            let r = inv_rms(x, a.float("eps"));
            let mean = (0..len).map(|i| w[i] * dy[at + i] * x[i] * r).sum::<f64>() / len as f64;
            (0..len).for_each(|i| y[0].data[at + i] += r * (w[i] * dy[at + i] - x[i] * r * mean));
        });
    },
    in_place: &[(2, 0), (3, 0)],
    flops: |x, _, _| 8 * x[0].elems(),
    acc: Some(Acc { arg: 3, out: 0, whole: true }),
    ..ROW
};

fn norm_weight_grad(x: &[Type], a: &Attrs, acc: usize) -> Result<Vec<Type>, String> {
    expect_shape("dy", &x[1], &x[0].shape)?;
    expect("len times groups", a.size("len") as u64 * a.size("groups").max(1) as u64, x[0].cols())?;
    if a.size("rows") == 0 || !(x[0].rows() as usize).is_multiple_of(a.size("rows")) {
        return Err(format!("{} tokens are not {} packed rows", x[0].rows(), a.size("rows")));
    }
    accumulates(x, acc, Type::f32(&[a.size("len") as u32]))
}

/// `dw = acc + Σ_t dy x̂`, packed row by packed row; operands `x, dy`, and `acc` or none.
pub const RMS_NORM_GRAD_W: OpDef = OpDef {
    name: "rms_norm_grad_w",
    arity: (2, 3),
    attrs: &[float("eps", 1e-5), int("groups", 1), int("len", 1), int("rows", 1)],
    infer: |x, a| norm_weight_grad(x, a, 2),
    eval: |x, y, a| {
        start_from(x, 2, y);
        let (dy, len) = (&x[1].data, a.size("len"));
        for_groups(&x[0], len, |x, at| {
            let r = inv_rms(x, a.float("eps"));
            (0..len).for_each(|i| y[0].data[i] += dy[at + i] * x[i] * r);
        });
    },
    in_place: &[(2, 0)],
    flops: |x, _, _| 5 * x[0].elems(),
    acc: Some(Acc { arg: 2, out: 0, whole: false }),
    ..ROW
};

/// `s = a + b`, `y = rms_norm(s)`; operands `a, b, w`. Made by `fuse`.
pub const ADD_RMS_NORM: OpDef = OpDef {
    name: "add_rms_norm",
    arity: (3, 3),
    attrs: &[float("eps", 1e-5), int("groups", 1)],
    infer: |x, a| {
        group_len(&x[0], &x[2], a)?;
        expect_shape("b", &x[1], &x[0].shape)?;
        Ok(vec![x[0].clone(), x[0].clone()])
    },
    eval: |x, y, a| {
        let (s, n) = y.split_at_mut(1);
        for (i, out) in s[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] + x[1].data[i];
        }
        rms_norm(&s[0], &x[2], &mut n[0], a.float("eps"));
    },
    saves: &[Saves::Out(0), Saves::Arg(2)],
    in_place: &[(0, 0), (1, 0)],
    flops: |_, y, _| 5 * y[0].elems(),
    ..ROW
};

fn mean_and_inv_std(x: &[f64], eps: f64) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (var + eps).sqrt())
}

/// `y[t] = w (x[t] - mean) / √(var + eps) + b`. `x`: `[T,D]`, `w, b`: `[D]`. Source: Ba et al. 2016.
pub const LAYER_NORM: OpDef = OpDef {
    name: "layer_norm",
    arity: (3, 3),
    attrs: &[float("eps", 1e-5), int("groups", 1)],
    infer: |x, a| {
        group_len(&x[0], &x[1], a)?;
        expect("length of b", x[2].elems(), x[1].elems())?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, a| {
        let len = x[1].data.len();
        for_groups(&x[0], len, |row, at| {
            let (mean, r) = mean_and_inv_std(row, a.float("eps"));
            (0..len).for_each(|i| y[0].data[at + i] = (row[i] - mean) * r * x[1].data[i] + x[2].data[i]);
        });
    },
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let (x, dy, rows) = (v.arg(0), v.dy(), v.rows());
        let mut grads = split_grads(v, x, Op::LayerNormGradX, Op::LayerNormGradW);
        grads.push(v.needs[2].then(|| {
            // Every group of a token has the bias, so each is a row of the sum.
            let (all, len) = (v.arg_ty(0).elems(), v.arg_ty(2).elems());
            let shape = [("d0", ((all / len) as u32).into()), ("d1", (len as u32).into())];
            let dy = if v.attrs.int("groups") > 1 { v.push(2, Op::Reshape, &[dy], &shape) } else { dy };
            v.push(2, Op::SumRows, &[dy], &[("rows", rows.into())])
        }));
        grads
    }),
    in_place: &[(0, 0)],
    flops: |_, y, _| 7 * y[0].elems(),
    ..ROW
};

/// `dx = r (g - mean(g) - x̂ mean(g x̂))`, `g = w dy`; operands `x, w, dy`, and `acc` or none.
pub const LAYER_NORM_GRAD_X: OpDef = OpDef {
    name: "layer_norm_grad_x",
    eval: |x, y, a| {
        start_from(x, 3, y);
        let (w, dy, len) = (&x[1].data, &x[2].data, x[1].data.len());
        for_groups(&x[0], len, |row, at| {
            let (mean, r) = mean_and_inv_std(row, a.float("eps"));
            let g = |i: usize| w[i] * dy[at + i];
            let xhat = |i: usize| (row[i] - mean) * r;
            let mean_g = (0..len).map(g).sum::<f64>() / len as f64;
            let mean_gx = (0..len).map(|i| g(i) * xhat(i)).sum::<f64>() / len as f64;
            (0..len).for_each(|i| y[0].data[at + i] += r * (g(i) - mean_g - xhat(i) * mean_gx));
        });
    },
    flops: |x, _, _| 12 * x[0].elems(),
    ..RMS_NORM_GRAD_X
};

/// `dw = acc + Σ_t dy x̂`, packed row by packed row; operands `x, dy`, and `acc` or none.
pub const LAYER_NORM_GRAD_W: OpDef = OpDef {
    name: "layer_norm_grad_w",
    eval: |x, y, a| {
        start_from(x, 2, y);
        let (dy, len) = (&x[1].data, a.size("len"));
        for_groups(&x[0], len, |row, at| {
            let (mean, r) = mean_and_inv_std(row, a.float("eps"));
            (0..len).for_each(|i| y[0].data[i] += dy[at + i] * (row[i] - mean) * r);
        });
    },
    flops: |x, _, _| 7 * x[0].elems(),
    ..RMS_NORM_GRAD_W
};

fn channels(x: &Type) -> Result<u32, String> {
    match x.shape[..] {
        [_, c, _, _] => Ok(c),
        _ => Err(format!("images must be [B,C,H,W], found {x}")),
    }
}

/// The elements of channel `c`, as indices into the data.
fn channel(x: &Tensor, c: usize) -> impl Iterator<Item = usize> + Clone + use<> {
    let (batch, channels, area) = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]);
    (0..batch).flat_map(move |b| (0..area).map(move |i| (b * channels + c) * area + i))
}

/// Batch normalisation with the micro-batch's own statistics, which also move the running ones:
/// `y = w (x - mean) inv_std + b`; `running += momentum (batch - running)`, the variance unbiased.
/// Operands `running_mean[C], running_var[C], x[B,C,H,W], w[C], b[C]`; results `y, mean[C], inv_std[C]`.
/// The statistics are the micro-batch's, so its size matters to the result, as it does everywhere with this op.
pub const BATCH_NORM: OpDef = OpDef {
    name: "batch_norm",
    arity: (5, 5),
    attrs: &[float("eps", 1e-5), float("momentum", 0.1)],
    infer: |x, _| {
        let c = channels(&x[2])?;
        for i in [0, 1, 3, 4] {
            expect("channels", x[i].elems(), c)?;
        }
        Ok(vec![x[2].clone(), Type::f32(&[c]), Type::f32(&[c])])
    },
    eval: |x, y, a| {
        for c in 0..x[3].data.len() {
            let at = channel(&x[2], c);
            let values: Vec<f64> = at.clone().map(|i| x[2].data[i]).collect();
            let (mean, r) = mean_and_inv_std(&values, a.float("eps"));
            let n = values.len() as f64;
            let unbiased = (1.0 / (r * r) - a.float("eps")) * n / (n - 1.0).max(1.0);
            at.for_each(|i| y[0].data[i] = (x[2].data[i] - mean) * r * x[3].data[c] + x[4].data[c]);
            y[1].data[c] = mean;
            y[2].data[c] = r;
            x[0].data[c] += a.float("momentum") * (mean - x[0].data[c]);
            x[1].data[c] += a.float("momentum") * (unbiased - x[1].data[c]);
        }
    },
    saves: &[Saves::Arg(2), Saves::Arg(3), Saves::Out(1), Saves::Out(2)],
    vjp: Some(|v| {
        let args = [v.arg(2), v.arg(3), v.out(1), v.out(2), v.dy()];
        let grads = v.push_all(2, Op::BatchNormGrad, &args, &[]);
        vec![None, None, Some(grads[0]), Some(grads[1]), Some(grads[2])]
    }),
    mutates: |_| 2,
    flops: |_, y, _| 8 * y[0].elems(),
    ..ROW
};

/// Gradients of `batch_norm`: operands `x, w, mean, inv_std, dy`; results `dx, dw[C], db[C]`.
pub const BATCH_NORM_GRAD: OpDef = OpDef {
    name: "batch_norm_grad",
    arity: (5, 5),
    infer: |x, _| {
        let c = channels(&x[0])?;
        for part in &x[1..4] {
            expect("channels", part.elems(), c)?;
        }
        expect_shape("dy", &x[4], &x[0].shape)?;
        Ok(vec![x[0].clone(), Type::f32(&[c]), Type::f32(&[c])])
    },
    eval: |x, y, _| {
        for c in 0..x[1].data.len() {
            let at = channel(&x[0], c);
            let (mean, r, n) = (x[2].data[c], x[3].data[c], at.clone().count() as f64);
            let xhat = |i: usize| (x[0].data[i] - mean) * r;
            let (db, dw) = at.clone().fold((0.0, 0.0), |(db, dw), i| (db + x[4].data[i], dw + x[4].data[i] * xhat(i)));
            at.for_each(|i| {
                y[0].data[i] = x[1].data[c] * r * (x[4].data[i] - db / n - xhat(i) * dw / n);
            });
            y[1].data[c] = dw;
            y[2].data[c] = db;
        }
    },
    flops: |x, _, _| 12 * x[0].elems(),
    ..ROW
};

/// Batch normalisation with given statistics: `y = w (x - mean)/√(var + eps) + b`.
/// Operands `x[B,C,H,W], w, b, mean, var`. No gradient: a frozen batch norm is folded into its convolution.
pub const BATCH_NORM_EVAL: OpDef = OpDef {
    name: "batch_norm_eval",
    arity: (5, 5),
    attrs: &[float("eps", 1e-5)],
    infer: |x, _| {
        let c = channels(&x[0])?;
        for part in &x[1..] {
            expect("channels", part.elems(), c)?;
        }
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, a| {
        for c in 0..x[1].data.len() {
            let r = 1.0 / (x[4].data[c] + a.float("eps")).sqrt();
            channel(&x[0], c)
                .for_each(|i| y[0].data[i] = (x[0].data[i] - x[3].data[c]) * r * x[1].data[c] + x[2].data[c]);
        }
    },
    in_place: &[(0, 0)],
    flops: |_, y, _| 4 * y[0].elems(),
    ..ROW
};
