//! Activation functions and their gradients.

use super::def::{OpDef, ROW, Saves, Tensor, Vjp, all_same};
use super::elementwise::like_first;
use crate::ir::graph::Value;
use crate::ir::ops::Op;

fn map(x: &[Tensor], y: &mut [Tensor], f: impl Fn(f64) -> f64) {
    x[0].data.iter().zip(&mut y[0].data).for_each(|(x, y)| *y = f(*x));
}

/// `dx = dy * slope(x)`, where `x` is whatever the gradient op reads.
fn slope(x: &[Tensor], dx: &mut [Tensor], f: impl Fn(f64) -> f64) {
    for (i, out) in dx[0].data.iter_mut().enumerate() {
        *out = x[1].data[i] * f(x[0].data[i]);
    }
}

fn from_arg(v: &mut Vjp, op: Op) -> Vec<Option<Value>> {
    let (x, dy) = (v.arg(0), v.dy());
    vec![Some(v.push(0, op, &[x, dy], &[]))]
}

fn from_out(v: &mut Vjp, op: Op) -> Vec<Option<Value>> {
    let (y, dy) = (v.out(0), v.dy());
    vec![Some(v.push(0, op, &[y, dy], &[]))]
}

const ACTIVATION: OpDef = OpDef { saves: &[Saves::Arg(0)], in_place: &[(0, 0)], ..ROW };
const GRADIENT: OpDef = OpDef { arity: (2, 2), infer: like_first, in_place: &[(1, 0)], ..ROW };

/// `y = max(x, 0)`. Gradient reads only `y`, so `x` may be overwritten.
pub const RELU: OpDef = OpDef {
    name: "relu",
    eval: |x, y, _| map(x, y, |x| x.max(0.0)),
    saves: &[Saves::Out(0)],
    vjp: Some(|v| from_out(v, Op::ReluGrad)),
    ..ACTIVATION
};

/// `dx = dy where y > 0, else 0`; operands `y, dy`.
pub const RELU_GRAD: OpDef =
    OpDef { name: "relu_grad", eval: |x, dx, _| slope(x, dx, |y| f64::from(u8::from(y > 0.0))), ..GRADIENT };

/// `y = min(max(x, 0), 6)`. Gradient reads only `y`.
pub const RELU6: OpDef = OpDef {
    name: "relu6",
    eval: |x, y, _| map(x, y, |x| x.clamp(0.0, 6.0)),
    saves: &[Saves::Out(0)],
    vjp: Some(|v| from_out(v, Op::Relu6Grad)),
    ..ACTIVATION
};

/// `dx = dy where 0 < y < 6, else 0`; operands `y, dy`.
pub const RELU6_GRAD: OpDef = OpDef {
    name: "relu6_grad",
    eval: |x, dx, _| slope(x, dx, |y| f64::from(u8::from(y > 0.0 && y < 6.0))),
    ..GRADIENT
};

/// `y = x Φ(x)`, `Φ(x) = (1 + erf(x/√2)) / 2`.
pub const GELU: OpDef = OpDef {
    name: "gelu",
    eval: |x, y, _| map(x, y, |x| x * phi(x)),
    vjp: Some(|v| from_arg(v, Op::GeluGrad)),
    flops: |_, y, _| 20 * y[0].elems(),
    ..ACTIVATION
};

fn phi(x: f64) -> f64 {
    0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
}

/// `dx = dy (Φ(x) + x φ(x))`, `φ(x) = exp(-x²/2)/√(2π)`; operands `x, dy`.
pub const GELU_GRAD: OpDef = OpDef {
    name: "gelu_grad",
    eval: |x, dx, _| {
        slope(x, dx, |x| phi(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt());
    },
    flops: |_, y, _| 30 * y[0].elems(),
    ..GRADIENT
};

/// `y = x (1 + tanh(u)) / 2`, `u = √(2/π) (x + 0.044715 x³)`.
pub const GELU_TANH: OpDef = OpDef {
    name: "gelu_tanh",
    eval: |x, y, _| map(x, y, |x| 0.5 * x * (1.0 + tanh_inner(x).tanh())),
    vjp: Some(|v| from_arg(v, Op::GeluTanhGrad)),
    flops: |_, y, _| 20 * y[0].elems(),
    ..ACTIVATION
};

fn tanh_inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)
}

/// The gradient of `gelu_tanh`; operands `x, dy`.
pub const GELU_TANH_GRAD: OpDef = OpDef {
    name: "gelu_tanh_grad",
    eval: |x, dx, _| {
        slope(x, dx, |x| {
            let t = tanh_inner(x).tanh();
            let du = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du
        });
    },
    flops: |_, y, _| 30 * y[0].elems(),
    ..GRADIENT
};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_slope(x: f64) -> f64 {
    sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))
}

/// `y = x σ(x)`, `σ(x) = 1/(1 + exp(-x))`.
pub const SILU: OpDef = OpDef {
    name: "silu",
    eval: |x, y, _| map(x, y, |x| x * sigmoid(x)),
    vjp: Some(|v| from_arg(v, Op::SiluGrad)),
    flops: |_, y, _| 12 * y[0].elems(),
    ..ACTIVATION
};

/// `dx = dy σ(x) (1 + x (1 - σ(x)))`; operands `x, dy`.
pub const SILU_GRAD: OpDef = OpDef {
    name: "silu_grad",
    eval: |x, dx, _| slope(x, dx, silu_slope),
    flops: |_, y, _| 15 * y[0].elems(),
    ..GRADIENT
};

/// `y = 1/(1 + exp(-x))`. Gradient reads only `y`.
pub const SIGMOID: OpDef = OpDef {
    name: "sigmoid",
    eval: |x, y, _| map(x, y, sigmoid),
    saves: &[Saves::Out(0)],
    vjp: Some(|v| from_out(v, Op::SigmoidGrad)),
    flops: |_, y, _| 12 * y[0].elems(),
    ..ACTIVATION
};

/// `dx = dy y (1 - y)`; operands `y, dy`.
pub const SIGMOID_GRAD: OpDef =
    OpDef { name: "sigmoid_grad", eval: |x, dx, _| slope(x, dx, |y| y * (1.0 - y)), ..GRADIENT };

/// `y = tanh(x)`. Gradient reads only `y`.
pub const TANH: OpDef = OpDef {
    name: "tanh",
    eval: |x, y, _| map(x, y, f64::tanh),
    saves: &[Saves::Out(0)],
    vjp: Some(|v| from_out(v, Op::TanhGrad)),
    flops: |_, y, _| 12 * y[0].elems(),
    ..ACTIVATION
};

/// `dx = dy (1 - y²)`; operands `y, dy`.
pub const TANH_GRAD: OpDef = OpDef { name: "tanh_grad", eval: |x, dx, _| slope(x, dx, |y| 1.0 - y * y), ..GRADIENT };

/// `y = silu(gate) * up`; operands `gate, up`. Source: Shazeer 2020.
pub const SWIGLU: OpDef = OpDef {
    name: "swiglu",
    arity: (2, 2),
    infer: all_same,
    eval: |x, y, _| {
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] * sigmoid(x[0].data[i]) * x[1].data[i];
        }
    },
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let (gate, up, dy) = (v.arg(0), v.arg(1), v.dy());
        v.push_all(0, Op::SwigluGrad, &[gate, up, dy], &[]).into_iter().map(Some).collect()
    }),
    in_place: &[(0, 0)],
    flops: |_, y, _| 13 * y[0].elems(),
    ..ROW
};

/// `dgate = dy up silu'(gate)`, `dup = dy silu(gate)`; operands `gate, up, dy`.
pub const SWIGLU_GRAD: OpDef = OpDef {
    name: "swiglu_grad",
    arity: (3, 3),
    infer: |x, a| all_same(x, a).map(|y| vec![y[0].clone(), y[0].clone()]),
    eval: |x, y, _| {
        for i in 0..x[0].data.len() {
            let (gate, up, dy) = (x[0].data[i], x[1].data[i], x[2].data[i]);
            y[0].data[i] = dy * up * silu_slope(gate);
            y[1].data[i] = dy * gate * sigmoid(gate);
        }
    },
    in_place: &[(0, 0), (1, 1)],
    flops: |_, y, _| 10 * (y[0].elems() + y[1].elems()),
    ..ROW
};
