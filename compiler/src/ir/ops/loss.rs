//! Losses, and the softmax they rest on. A loss gives one number per row, already weighted: what a step minimises
//! is the sum of them.
//!
//! Shapes: `T` tokens or samples, `V` classes, `D` features. A label below 0 is ignored. Weights are normalised
//! by whoever fills them (`w / Σ w` over all of a step's tokens), so that micro-batches add up.

use super::def::{
    Acc, OpDef, ROW, Saves, Tensor, expect, expect_indices, expect_shape, list_len, matrix, own_panel, panel, part,
};
use super::elementwise::{accumulates, like_first, start_from};
use crate::ir::attrs::{AttrDef, Attrs, int};
use crate::ir::ops::Op;
use crate::ir::types::Type;

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
    let exp: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// Row-wise softmax: `y[i,j] = exp(x[i,j] - m[i]) / Σ_k exp(x[i,k] - m[i])`, `m[i] = max_k x[i,k]`.
/// Gradient reads `y` only.
pub const SOFTMAX: OpDef = OpDef {
    name: "softmax",
    eval: |x, y, _| (0..x[0].rows()).for_each(|t| y[0].row_mut(t).copy_from_slice(&softmax(x[0].row(t)))),
    saves: &[Saves::Out(0)],
    vjp: Some(|v| {
        let (y, dy) = (v.out(0), v.dy());
        vec![Some(v.push(0, Op::SoftmaxGrad, &[y, dy], &[]))]
    }),
    in_place: &[(0, 0)],
    flops: |_, y, _| 12 * y[0].elems(),
    ..ROW
};

/// `dx = y (dy - Σ_k y[k] dy[k])`, row by row; operands `y, dy`.
pub const SOFTMAX_GRAD: OpDef = OpDef {
    name: "softmax_grad",
    arity: (2, 2),
    infer: like_first,
    eval: |x, dx, _| {
        for t in 0..x[0].rows() {
            let (y, dy) = (x[0].row(t), x[1].row(t));
            let dot: f64 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            dx[0].row_mut(t).iter_mut().enumerate().for_each(|(k, out)| *out = y[k] * (dy[k] - dot));
        }
    },
    in_place: &[(1, 0)],
    flops: |_, y, _| 4 * y[0].elems(),
    ..ROW
};

fn labelled(x: &[Type]) -> Result<u32, String> {
    let (t, _) = matrix(&x[0], "logits")?;
    expect_indices("labels", &x[1], t)?;
    expect("weights", x[2].elems(), t)?;
    Ok(t)
}

/// `loss[t] = weights[t] (log Σ_k exp(x[t,k]) - x[t, labels[t]])`, 0 where the label is negative.
/// Operands `logits[T,V], labels i32[T], weights[T]`.
pub const CROSS_ENTROPY: OpDef = OpDef {
    name: "cross_entropy",
    arity: (3, 3),
    infer: |x, _| Ok(vec![Type::f32(&[labelled(x)?])]),
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            y[0].data[t] = nll(x[0].row(t), x[1].data[t]) * x[2].data[t];
        }
    },
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(2)],
    vjp: Some(|v| {
        let args = [v.arg(0), v.arg(1), v.arg(2), v.dy()];
        vec![Some(v.push(0, Op::CrossEntropyGrad, &args, &[])), None, None]
    }),
    flops: |x, _, _| 12 * x[0].elems(),
    ..ROW
};

fn nll(logits: &[f64], label: f64) -> f64 {
    if label < 0.0 { 0.0 } else { -softmax(logits)[label as usize].ln() }
}

/// `dx = dloss[t] weights[t] (softmax(x[t]) - onehot(labels[t]))`; operands `logits, labels, weights, dloss`.
pub const CROSS_ENTROPY_GRAD: OpDef = OpDef {
    name: "cross_entropy_grad",
    arity: (4, 4),
    infer: |x, _| {
        let t = labelled(x)?;
        expect("gradient of the loss", x[3].elems(), t)?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            let scale = x[2].data[t] * x[3].data[t];
            logits_grad(x[0].row(t), x[1].data[t], scale, y[0].row_mut(t));
        }
    },
    in_place: &[(0, 0)],
    flops: |x, _, _| 14 * x[0].elems(),
    ..ROW
};

fn logits_grad(logits: &[f64], label: f64, scale: f64, out: &mut [f64]) {
    if label < 0.0 {
        return out.fill(0.0);
    }
    out.iter_mut().zip(softmax(logits)).for_each(|(out, p)| *out = scale * p);
    out[label as usize] -= scale;
}

fn head(x: &[Type], a: &Attrs) -> Result<u32, String> {
    let ((t, d), (_, d2)) = (matrix(&x[0], "h")?, matrix(&x[1], "w")?);
    expect("inputs of w", d2, d)?;
    expect_indices("labels", &x[2], t)?;
    expect("weights", x[3].elems(), t)?;
    if a.size("seq") == 0 || !(t as usize).is_multiple_of(a.size("seq")) {
        return Err(format!("{t} tokens are not packed rows of {}", a.size("seq")));
    }
    Ok(t)
}

fn logits(h: &Tensor, w: &Tensor, t: usize) -> Vec<f64> {
    (0..w.rows()).map(|v| h.row(t).iter().zip(w.row(v)).map(|(h, w)| h * w).sum()).collect()
}

/// `cross_entropy(linear(h, w), labels, weights)` without the logits in memory: they exist for a chunk of tokens
/// at a time. Operands `h[T,D], w[V,D], labels i32[T], weights[T]`. Made by `fuse`.
pub const LINEAR_CROSS_ENTROPY: OpDef = OpDef {
    name: "linear_cross_entropy",
    arity: (4, 4),
    attrs: &[int("compute", 0), int("seq", 1)],
    infer: |x, a| Ok(vec![Type::f32(&[head(x, a)?])]),
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            y[0].data[t] = nll(&logits(&x[0], &x[1], t), x[2].data[t]) * x[3].data[t];
        }
    },
    flops: |x, _, _| 2 * x[0].elems() * u64::from(x[1].rows()),
    ..ROW
};

/// Whether a token counts: others have a loss, gradients and sums of 0.
fn counts(label: f64, weight: f64) -> bool {
    label >= 0.0 && weight != 0.0
}

/// Of no logits the largest, the sum and the label's.
const NO_SUMS: [f64; 3] = [f64::NEG_INFINITY, 0.0, 0.0];

/// The same of more logits, one of which may be the label's.
fn with_logits([max, sum, own]: [f64; 3], z: &[f64], label: Option<usize>) -> [f64; 3] {
    let largest = z.iter().fold(max, |m, &x| m.max(x));
    let before = if sum > 0.0 { sum * (max - largest).exp() } else { 0.0 };
    let more: f64 = z.iter().map(|x| (x - largest).exp()).sum();
    [largest, before + more, label.and_then(|at| z.get(at)).copied().unwrap_or(own)]
}

/// Loss and gradients of the same in one pass, for a loss whose own gradient is 1: results `loss[T], dh[T,D]`;
/// when `grad_w`, `dw[V,D] = acc + dlogitsᵀ h`; and when `sums`, the `sums[T,3]` of [`LINEAR_CROSS_ENTROPY_SUMS`].
/// Operands `h, w, labels, weights`, and `acc[V,D]` or none.
pub const LINEAR_CROSS_ENTROPY_GRAD: OpDef = OpDef {
    name: "linear_cross_entropy_grad",
    arity: (4, 5),
    attrs: &[int("compute", 0), int("seq", 1), int("grad_w", 0), int("sums", 0)],
    infer: |x, a| {
        let tokens = head(x, a)?;
        let mut outs = vec![Type::f32(&[tokens]), x[0].clone()];
        if a.flag("grad_w") {
            outs.extend(accumulates(x, 4, Type::f32(&x[1].shape))?);
        } else if x.len() > 4 {
            return Err("there is an accumulator, but no gradient of w to add to it".to_string());
        }
        outs.extend(a.flag("sums").then(|| Type::f32(&[tokens, 3])));
        Ok(outs)
    },
    eval: |x, y, a| {
        if let Some(acc) = x.get(4) {
            y[2].data.copy_from_slice(&acc.data);
        }
        for t in 0..x[0].rows() {
            let z = logits(&x[0], &x[1], t);
            y[0].data[t] = nll(&z, x[2].data[t]) * x[3].data[t];
            if let Some(sums) = y.last_mut().filter(|_| a.flag("sums") && counts(x[2].data[t], x[3].data[t])) {
                sums.row_mut(t).copy_from_slice(&with_logits(NO_SUMS, &z, Some(x[2].data[t] as usize)));
            }
            let mut dz = vec![0.0; z.len()];
            logits_grad(&z, x[2].data[t], x[3].data[t], &mut dz);
            for (v, dz) in dz.iter().enumerate() {
                x[1].row(v).iter().zip(y[1].row_mut(t)).for_each(|(w, dh)| *dh += dz * w);
                if a.flag("grad_w") {
                    x[0].row(t).iter().zip(y[2].row_mut(v)).for_each(|(h, dw)| *dw += dz * h);
                }
            }
        }
    },
    in_place: &[(4, 2)],
    flops: |x, _, a: &Attrs| (4 + 2 * a.size("grad_w") as u64) * x[0].elems() * u64::from(x[1].rows()),
    acc: Some(Acc { arg: 4, out: 2, whole: false }),
    ..ROW
};

/// The gradient of `w` alone, for a panel of its rows: `dw[v] = acc[v] + Σ_t dlogits[t, first_row + v] h[t]`, where
/// `dlogits[t,k] = weights[t] (exp(h[t] · w[k] - m[t]) / z[t] - [k = labels[t]])`, 0 where the token does not count,
/// and `m, z` are the first two of its `sums`. Reads no other rows of `w`, which may be these rows alone of `vocab`;
/// `panel_rows` of 0 are all, `vocab` of 0 is `V`.
/// Operands `h[T,D], w[V,D], labels i32[T], weights[T], sums[T,3]`, and `acc[panel_rows,D]` or none.
pub const LINEAR_CROSS_ENTROPY_GRAD_W: OpDef = OpDef {
    name: "linear_cross_entropy_grad_w",
    arity: (5, 6),
    attrs: &[int("compute", 0), int("seq", 1), int("first_row", 0), int("panel_rows", 0), int("vocab", 0)],
    infer: |x, a| {
        expect_shape("sums", &x[4], &[head(x, a)?, 3])?;
        let rows = own_panel(x[1].rows() as usize, a)?;
        panel(a.size("vocab").max(x[1].rows() as usize), a)?;
        accumulates(x, 5, Type::f32(&[rows.len() as u32, x[1].cols()]))
    },
    eval: |x, y, a| {
        start_from(x, 5, y);
        let rows = own_panel(x[1].rows(), a).expect("`infer` asks for it");
        let class = a.size("first_row") as isize - rows.start as isize;
        for t in (0..x[0].rows()).filter(|&t| counts(x[2].data[t], x[3].data[t])) {
            let (label, weight, sums) = (x[2].data[t], x[3].data[t], x[4].row(t));
            for v in rows.clone() {
                let z: f64 = x[0].row(t).iter().zip(x[1].row(v)).map(|(h, w)| h * w).sum();
                let one = if v as isize + class == label as isize { 1.0 } else { 0.0 };
                let dz = weight * ((z - sums[0]).exp() / sums[1] - one);
                x[0].row(t).iter().zip(y[0].row_mut(v - rows.start)).for_each(|(h, dw)| *dw += dz * h);
            }
        }
    },
    in_place: &[(5, 0)],
    flops: |x, y, _| 4 * x[0].elems() * u64::from(y[0].rows()),
    acc: Some(Acc { arg: 5, out: 0, whole: false }),
    ..ROW
};

/// Of each token's logits the largest `m`, the sum `z = Σ_k exp(x[k] - m)` and the label's, `sums[T,3]`; all 0 where
/// the token does not count. `w` is rows `first_row..first_row + P` of a table of `vocab`, and `sums` are those of the
/// rows before them. They are taken in segments of `VOCAB_SEGMENT` rows, in order:
/// `z = z exp(m - m') + z' exp(m'' - m')`, `m'` the larger of both. Operands `h[T,D], w[P,D], labels i32[T],
/// weights[T]`, and `sums[T,3]` or none. Made by `split_tables`.
pub const LINEAR_CROSS_ENTROPY_SUMS: OpDef = OpDef {
    name: "linear_cross_entropy_sums",
    arity: (4, 5),
    attrs: PART_ATTRS,
    infer: |x, a| {
        let tokens = head(x, a)?;
        part(&x[1], a)?;
        accumulates(x, 4, Type::f32(&[tokens, 3]))
    },
    eval: |x, y, a| {
        for t in (0..x[0].rows()).filter(|&t| counts(x[2].data[t], x[3].data[t])) {
            let before = match x.get(4) {
                Some(sums) => [sums.row(t)[0], sums.row(t)[1], sums.row(t)[2]],
                None => NO_SUMS,
            };
            let label = (x[2].data[t] as usize).checked_sub(a.size("first_row"));
            y[0].row_mut(t).copy_from_slice(&with_logits(before, &logits(&x[0], &x[1], t), label));
        }
    },
    in_place: &[(4, 0)],
    flops: |x, _, _| 2 * x[0].elems() * u64::from(x[1].rows()),
    ..ROW
};

const PART_ATTRS: &[AttrDef] = &[int("compute", 0), int("seq", 1), int("first_row", 0), int("vocab", 1)];

/// The loss that the sums of all logits give: `loss[t] = weights[t] (ln z[t] + m[t] - x[t])`, 0 where `z[t]` is 0.
/// Operands `sums[T,3]` of [`LINEAR_CROSS_ENTROPY_SUMS`], `weights[T]`. Made by `split_tables`.
pub const CROSS_ENTROPY_OF_SUMS: OpDef = OpDef {
    name: "cross_entropy_of_sums",
    arity: (2, 2),
    infer: |x, _| {
        let tokens = list_len(&x[1])?;
        expect_shape("sums", &x[0], &[tokens, 3])?;
        Ok(vec![Type::f32(&[tokens])])
    },
    eval: |x, y, _| {
        for (t, loss) in y[0].data.iter_mut().enumerate().filter(|(t, _)| x[0].row(*t)[1] != 0.0) {
            let [max, sum, own] = [0, 1, 2].map(|i| x[0].row(t)[i]);
            *loss = x[1].data[t] * (sum.ln() + max - own);
        }
    },
    flops: |_, y, _| 8 * y[0].elems(),
    ..ROW
};

/// What some rows of `w` add to the gradient of `h`: `dh[t] = acc[t] + Σ_v dlogits[t, first_row + v] w[v]`, `dlogits`
/// as for [`LINEAR_CROSS_ENTROPY_GRAD_W`] from the `sums` of all logits. The sum runs over the rows in order, and no
/// chunk of it reaches over the end of a segment of `VOCAB_SEGMENT` rows.
/// Operands `h[T,D], w[P,D], labels i32[T], weights[T], sums[T,3]`, and `acc[T,D]` or none. Made by `split_tables`.
pub const LINEAR_CROSS_ENTROPY_GRAD_H: OpDef = OpDef {
    name: "linear_cross_entropy_grad_h",
    arity: (5, 6),
    attrs: PART_ATTRS,
    infer: |x, a| {
        expect_shape("sums", &x[4], &[head(x, a)?, 3])?;
        part(&x[1], a)?;
        accumulates(x, 5, x[0].clone())
    },
    eval: |x, y, a| {
        start_from(x, 5, y);
        for t in (0..x[0].rows()).filter(|&t| counts(x[2].data[t], x[3].data[t])) {
            let label = (x[2].data[t] as usize).checked_sub(a.size("first_row"));
            for (v, z) in logits(&x[0], &x[1], t).into_iter().enumerate() {
                let one = if Some(v) == label { 1.0 } else { 0.0 };
                let dz = x[3].data[t] * ((z - x[4].row(t)[0]).exp() / x[4].row(t)[1] - one);
                x[1].row(v).iter().zip(y[0].row_mut(t)).for_each(|(w, dh)| *dh += dz * w);
            }
        }
    },
    in_place: &[(5, 0)],
    flops: |x, _, _| 4 * x[0].elems() * u64::from(x[1].rows()),
    ..ROW
};

fn targeted(x: &[Type]) -> Result<u32, String> {
    let t = x[0].rows();
    expect_shape("target", &x[1], &x[0].shape)?;
    expect("weights", x[2].elems(), t)?;
    Ok(t)
}

/// `loss[t] = weights[t] mean_k (x[t,k] - target[t,k])²`. Operands `x[T,D], target[T,D], weights[T]`.
pub const MSE_LOSS: OpDef = OpDef {
    name: "mse_loss",
    arity: (3, 3),
    infer: |x, _| targeted(x).map(|t| vec![Type::f32(&[t])]),
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            let sum: f64 = x[0].row(t).iter().zip(x[1].row(t)).map(|(x, z)| (x - z) * (x - z)).sum();
            y[0].data[t] = sum / x[0].cols() as f64 * x[2].data[t];
        }
    },
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(2)],
    vjp: Some(|v| {
        let args = [v.arg(0), v.arg(1), v.arg(2), v.dy()];
        vec![Some(v.push(0, Op::MseLossGrad, &args, &[])), None, None]
    }),
    flops: |x, _, _| 3 * x[0].elems(),
    ..ROW
};

/// `dx = dloss[t] weights[t] 2/D (x - target)`; operands `x, target, weights, dloss`.
pub const MSE_LOSS_GRAD: OpDef = OpDef {
    name: "mse_loss_grad",
    arity: (4, 4),
    infer: |x, _| {
        let t = targeted(x)?;
        expect("gradient of the loss", x[3].elems(), t)?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            let scale = x[2].data[t] * x[3].data[t] * 2.0 / x[0].cols() as f64;
            for k in 0..x[0].cols() {
                y[0].row_mut(t)[k] = scale * (x[0].row(t)[k] - x[1].row(t)[k]);
            }
        }
    },
    in_place: &[(0, 0)],
    flops: |x, _, _| 3 * x[0].elems(),
    ..ROW
};
