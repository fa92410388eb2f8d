//! The loss of int8 logits: softmax cross-entropy in f32.

use super::super::def::{OpDef, ROW, Saves, Tensor, expect};
use super::{check_zero, must_be};
use crate::ir::attrs::{AttrDef, Attrs, float, int};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// A row of logits in f32.
pub(super) struct Row {
    /// `l - max l`.
    below: Vec<f32>,
    /// `exp` of it.
    pub(super) exp: Vec<f32>,
}

/// `scale (x - zero)` below its largest, and `exp` of that.
pub(super) fn exponentials(x: &[f64], scale: f64, zero: f64) -> Row {
    let logits: Vec<f32> = x.iter().map(|x| scale as f32 * (x - zero) as f32).collect();
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let below: Vec<f32> = logits.iter().map(|l| l - max).collect();
    let exp = below.iter().map(|&l| libm::expf(l)).collect();
    Row { below, exp }
}

fn check(x: &[Type], a: &Attrs) -> Result<u32, String> {
    let n = x[0].rows();
    check_zero(a.float("zero"))?;
    must_be("x", &x[0], DType::I8, &x[0].shape)?;
    expect("dimensions beside the classes", x[0].elems(), u64::from(x[0].shape[0]) * u64::from(x[0].cols()))?;
    must_be("label", &x[1], DType::I32, &[n])?;
    must_be("weight", &x[2], DType::F32, &[n])?;
    Ok(n)
}

const ATTRS: &[AttrDef] = &[float("scale", 1.0), int("zero", 0)];

/// `loss[n] = (log Σ_k e[k] - (l[label] - m)) weight[n]`, `l = scale (x - zero)`, `m = max l`, `e = exp(l - m)`, all in
/// f32, sums in index order; 0 where the label is negative. Operands `x i8[N,..,O], label i32[N], weight f32[N]`.
pub const CROSS_ENTROPY: OpDef = OpDef {
    name: "i8_cross_entropy",
    arity: (3, 3),
    attrs: ATTRS,
    infer: |x, a| Ok(vec![Type::f32(&[check(x, a)?])]),
    eval: |x, y, a| {
        for n in 0..x[0].rows() {
            let label = x[1].data[n];
            if label >= 0.0 {
                let row = exponentials(x[0].row(n), a.float("scale"), a.float("zero"));
                let sum = row.exp.iter().fold(0.0f32, |sum, e| sum + e);
                let loss = (libm::logf(sum) - row.below[label as usize]) * x[2].data[n] as f32;
                y[0].data[n] = f64::from(loss);
            }
        }
    },
    smooth: Some(smooth),
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(2)],
    vjp: Some(|v| {
        let (args, attrs) = ([v.arg(0), v.arg(1), v.arg(2), v.dy()], v.attrs.iter().collect::<Vec<_>>());
        vec![Some(v.push(0, Op::I8CrossEntropyGrad, &args, &attrs)), None, None]
    }),
    flops: |x, _, _| 12 * x[0].elems(),
    ..ROW
};

/// The loss in f64.
fn smooth(x: &mut [Tensor], y: &mut [Tensor], a: &Attrs) {
    for n in 0..x[0].rows() {
        let label = x[1].data[n];
        let logits: Vec<f64> = x[0].row(n).iter().map(|x| a.float("scale") * (x - a.float("zero"))).collect();
        let max = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(l));
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        let loss = |label: usize| (sum.ln() - (logits[label] - max)) * x[2].data[n];
        y[0].data[n] = if label < 0.0 { 0.0 } else { loss(label as usize) };
    }
}

/// `gx[k] = (e[k]/s - onehot) (scale (weight[n] dloss[n]))`, `s = Σ e`, in f32; 0 where the label is negative.
/// Operands `x, label, weight, dloss f32[N]`.
pub const CROSS_ENTROPY_GRAD: OpDef = OpDef {
    name: "i8_cross_entropy_grad",
    arity: (4, 4),
    attrs: ATTRS,
    infer: |x, a| {
        must_be("dloss", &x[3], DType::F32, &[check(x, a)?])?;
        Ok(vec![x[0].with_dtype(DType::F32)])
    },
    eval: |x, y, a| {
        for n in 0..x[0].rows() {
            let label = x[1].data[n];
            if label < 0.0 {
                continue;
            }
            let row = exponentials(x[0].row(n), a.float("scale"), a.float("zero"));
            let sum = row.exp.iter().fold(0.0f32, |sum, e| sum + e);
            let factor = a.float("scale") as f32 * (x[2].data[n] as f32 * x[3].data[n] as f32);
            for (k, out) in y[0].row_mut(n).iter_mut().enumerate() {
                let onehot = if k == label as usize { 1.0 } else { 0.0 };
                *out = f64::from((row.exp[k] / sum - onehot) * factor);
            }
        }
    },
    flops: |x, _, _| 14 * x[0].elems(),
    ..ROW
};
