//! Sums of two int8 images, and the softmax of imported models.

use super::super::def::{OpDef, ROW, Saves, Tensor, Vjp, expect};
use super::{Clamp, check_zero, nearest, put, with_mask};
use crate::ir::attrs::{Attrs, float, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;
use tinyforge_plan::DType;

fn sum(x: &[Tensor], y: &mut [Tensor], a: &Attrs, exact: bool) {
    let (ra, rb, clamp) = (a.float("ra"), a.float("rb"), Clamp::of(a, "zero_y"));
    for i in 0..y[0].data.len() {
        let (u, v) = (x[0].data[i] - a.float("zero_a"), x[1].data[i] - a.float("zero_b"));
        let t = match exact {
            true => f64::from((v as f32).mul_add(rb as f32, u as f32 * ra as f32)),
            false => v * rb + u * ra,
        };
        put(y, i, clamp.apply(nearest(t, exact)));
    }
}

/// The gradient of the result times the operand's factor, 0 where the result was clamped.
fn part(v: &mut Vjp, i: usize, factor: &str) -> Option<Value> {
    if !v.needs[i] {
        return None;
    }
    let (dy, mask, factor) = (v.dy(), v.out(1), v.attrs.float(factor));
    let len = v.arg_ty(i).cols();
    let scale = v.push(i, Op::Fill, &[], &[("len", len.into()), ("value", factor.into())]);
    Some(v.push(i, Op::I8ScaleGrad, &[dy, mask, scale], &[("has_mask", true.into())]))
}

/// `y = clamp(nearest(t) + zero_y, lo, hi)`, `t = fma(b - zero_b, rb, (a - zero_a) ra)` in f32, `ra = scale_a/scale_y`
/// and `rb` likewise. Operands `a, b` of one shape; the second result, with `mask`, says where nothing was clamped.
/// Gradients are `dy ra` and `dy rb`; they read the mask alone.
pub const ADD: OpDef = OpDef {
    name: "i8_add",
    arity: (2, 2),
    attrs: &[
        float("ra", 1.0),
        float("rb", 1.0),
        int("zero_a", 0),
        int("zero_b", 0),
        int("zero_y", 0),
        int("lo", -128),
        int("hi", 127),
        int("mask", 0),
    ],
    infer: |x, a| {
        Clamp::of(a, "zero_y").check()?;
        check_zero(a.float("zero_a"))?;
        check_zero(a.float("zero_b"))?;
        if x[0].dtype != DType::I8 || x[0] != x[1] {
            return Err(format!("operands must be i8 of one shape, found {} and {}", x[0], x[1]));
        }
        with_mask(x[0].clone(), a)
    },
    eval: |x, y, a| sum(x, y, a, true),
    smooth: Some(|x, y, a| sum(x, y, a, false)),
    saves: &[Saves::Out(1)],
    vjp: Some(|v| vec![part(v, 0, "ra"), part(v, 1, "rb")]),
    tape: Some("mask"),
    in_place: &[(0, 0), (1, 0)],
    flops: |_, y, _| 3 * y[0].elems(),
    ..ROW
};

/// Whether both factors are positive whole numbers of at most 21 bits over one power of two from 2^13 to 2^30.
fn are_whole(factors: [f64; 2]) -> bool {
    let larger = factors[0].max(factors[1]);
    // An f32's exponent: the larger factor becomes a number of 21 bits.
    let exponent = ((larger as f32).to_bits() >> 23) as i32 - 127;
    let unit = 2f64.powi(20 - exponent);
    (-10..=7).contains(&exponent) && factors.iter().all(|f| *f > 0.0 && f64::from((f * unit) as u32) == f * unit)
}

/// `i8_add` in whole numbers, ties up: `y = clamp(floor(t + 1/2) + zero_y, lo, hi)`,
/// `t = (a - zero_a) ra + (b - zero_b) rb` exact. `ra` and `rb` are whole numbers of at most 21 bits over one
/// power of two.
pub const ADD_UP: OpDef = OpDef {
    name: "i8_add_up",
    infer: |x, a| {
        let factors = [a.float("ra"), a.float("rb")];
        if !are_whole(factors) {
            return Err(format!(
                "{} and {} are no whole numbers of 21 bits over one power of two",
                factors[0], factors[1]
            ));
        }
        (ADD.infer)(x, a)
    },
    eval: |x, y, a| {
        let (ra, rb, clamp) = (a.float("ra"), a.float("rb"), Clamp::of(a, "zero_y"));
        for i in 0..y[0].data.len() {
            // Numbers of 30 bits: exact in f64.
            let t = (x[0].data[i] - a.float("zero_a")) * ra + (x[1].data[i] - a.float("zero_b")) * rb;
            put(y, i, clamp.apply((t + 0.5).floor()));
        }
    },
    ..ADD
};

/// `y = clamp(nearest(p / scale_y) + zero_y, -128, 127)`, `p` the softmax of `scale_x (x - zero_x)` over the last
/// dimension in f32: `exp` of what is below the largest, divided by their sum in index order. No gradient: a loss reads
/// what the softmax reads.
pub const SOFTMAX: OpDef = OpDef {
    name: "i8_softmax",
    attrs: &[float("scale_x", 1.0), int("zero_x", 0), float("scale_y", 1.0), int("zero_y", 0)],
    infer: |x, a| {
        expect("positive scales", u32::from(a.float("scale_x") > 0.0 && a.float("scale_y") > 0.0), 1u32)?;
        check_zero(a.float("zero_x"))?;
        check_zero(a.float("zero_y"))?;
        if x[0].dtype != DType::I8 {
            return Err(format!("x must be i8, found {}", x[0]));
        }
        Ok(vec![Type::new(DType::I8, &x[0].shape)])
    },
    eval: |x, y, a| {
        let scale_y = a.float("scale_y") as f32;
        for t in 0..x[0].rows() {
            let e = super::loss::exponentials(x[0].row(t), a.float("scale_x"), a.float("zero_x")).exp;
            let sum = e.iter().fold(0.0f32, |sum, e| sum + e);
            for (out, e) in y[0].row_mut(t).iter_mut().zip(&e) {
                let r = f64::from((e / sum / scale_y).round_ties_even());
                *out = (r + a.float("zero_y")).clamp(-128.0, 127.0);
            }
        }
    },
    flops: |_, y, _| 12 * y[0].elems(),
    ..ROW
};
