//! Linear layers: products with a weight, and their gradients.
//!
//! Shapes: `T` tokens, `K` inputs, `N` outputs, `J` chosen inputs. Weights are stored `[N,K]`, in any float or
//! block-quantised type; everything else is f32. `compute`: 0 multiplies in f32, 1 rounds both factors to bf16.
//! Sums are f32. `rows`: packed rows that the tokens are, so that a device may multiply one at a time.

use super::def::{Acc, OpDef, ROW, Saves, Tensor, Vjp, expect, matrix, part};
use super::elementwise::{accumulates, start_from};
use crate::ir::attrs::{Attrs, float, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;

/// Result type of `x[T,K] · w[N,K]ᵀ`.
fn product(x: &[Type]) -> Result<Type, String> {
    let ((t, k), (n, k2)) = (matrix(&x[0], "x")?, matrix(&x[1], "w")?);
    expect("inputs of w", k2, k)?;
    Ok(Type::f32(&[t, n]))
}

/// `y += alpha * x wᵀ`.
fn multiply(x: &Tensor, w: &Tensor, y: &mut Tensor, alpha: f64) {
    for t in 0..x.rows() {
        for n in 0..w.rows() {
            let dot: f64 = x.row(t).iter().zip(w.row(n)).map(|(x, w)| x * w).sum();
            y.row_mut(t)[n] += alpha * dot;
        }
    }
}

fn mul_flops(x: &[Type], _: &[Type], _: &Attrs) -> u64 {
    2 * x[0].elems() * u64::from(x[1].rows())
}

/// Gradients of `alpha * x wᵀ` with respect to operands 0 and 1. `x` is asked for only when `dw` is needed.
fn product_grads(v: &mut Vjp, x_of: fn(&Vjp) -> Value, alpha: f64) -> [Option<Value>; 2] {
    let (dy, rows, compute) = (v.dy(), v.rows(), v.attrs.int("compute"));
    let shared = [("alpha", alpha.into()), ("compute", compute.into()), ("rows", rows.into())];
    let dx = v.needs[0].then(|| {
        let w = v.arg(1);
        v.push(0, Op::LinearGradX, &[dy, w], &shared)
    });
    let dw = v.needs[1].then(|| {
        let x = x_of(v);
        v.push(1, Op::LinearGradW, &[dy, x], &shared)
    });
    [dx, dw]
}

/// `y = x wᵀ (+ b)`. `x`: `[T,K]`, `w`: `[N,K]`, `b`: `[N]`. Gradients: `dx = dy w`, `dw = dyᵀ x`, `db = Σ_t dy`.
pub const LINEAR: OpDef = OpDef {
    name: "linear",
    arity: (2, 3),
    attrs: &[int("compute", 0), int("rows", 1)],
    infer: |x, _| {
        let ty = product(x)?;
        if let Some(b) = x.get(2) {
            expect("length of the bias", b.elems(), ty.cols())?;
        }
        Ok(vec![ty])
    },
    eval: |x, y, _| {
        multiply(&x[0], &x[1], &mut y[0], 1.0);
        add_bias(x, 2, y);
    },
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let [dx, dw] = product_grads(v, |v| v.arg(0), 1.0);
        let mut grads = vec![dx, dw];
        grads.extend(bias_grad(v, 2));
        grads
    }),
    flops: mul_flops,
    ..ROW
};

fn add_bias(x: &[Tensor], i: usize, y: &mut [Tensor]) {
    if let Some(b) = x.get(i) {
        for t in 0..y[0].rows() {
            y[0].row_mut(t).iter_mut().zip(&b.data).for_each(|(y, b)| *y += b);
        }
    }
}

fn bias_grad(v: &mut Vjp, i: usize) -> Option<Option<Value>> {
    let (dy, rows) = (v.dy(), v.rows());
    let wanted = *v.needs.get(i)?;
    Some(wanted.then(|| v.push(i, Op::SumRows, &[dy], &[("rows", rows.into())])))
}

/// The outputs that some rows of a weight give, in their columns: `y[t, first_row..first_row + P] = x wᵀ`, and
/// `onto[t, ..]`, or 0, in the others. `w` is rows `first_row..first_row + P` of a weight of `vocab`. Operands
/// `x[T,K], w[P,K]`, and `onto[T,vocab]` or none. Made by `split_tables`.
pub const LINEAR_PART: OpDef = OpDef {
    name: "linear_part",
    arity: (2, 3),
    attrs: &[int("compute", 0), int("first_row", 0), int("vocab", 1)],
    infer: |x, a| {
        let ty = product(x)?;
        let vocab = part(&x[1], a)?;
        accumulates(x, 2, Type::f32(&[ty.rows(), vocab]))
    },
    eval: |x, y, a| {
        start_from(x, 2, y);
        let first = a.size("first_row");
        for t in 0..x[0].rows() {
            for n in 0..x[1].rows() {
                y[0].row_mut(t)[first + n] = x[0].row(t).iter().zip(x[1].row(n)).map(|(x, w)| x * w).sum();
            }
        }
    },
    in_place: &[(2, 0)],
    flops: mul_flops,
    ..ROW
};

/// `y = x wᵀ (+ b)` where only columns of `w` are trained: `xs` holds the inputs `x` of the trained columns, and
/// the gradient of `w` is that of the chosen columns alone, `[N,J]`. `x` itself is not kept.
/// Operands `x[T,K], w[N,K], xs[T,J], b`.
pub const LINEAR_SUB: OpDef = OpDef {
    name: "linear_sub",
    arity: (3, 4),
    attrs: &[int("compute", 0), int("rows", 1)],
    infer: |x, _| {
        expect("tokens of xs", matrix(&x[2], "xs")?.0, x[0].rows())?;
        if let Some(b) = x.get(3) {
            expect("length of the bias", b.elems(), x[1].rows())?;
        }
        Ok(vec![product(x)?])
    },
    eval: |x, y, _| {
        multiply(&x[0], &x[1], &mut y[0], 1.0);
        add_bias(x, 3, y);
    },
    saves: &[Saves::Arg(1), Saves::Arg(2)],
    vjp: Some(|v| {
        let [dx, dw] = product_grads(v, |v| v.arg(2), 1.0);
        let mut grads = vec![dx, dw, None];
        grads.extend(bias_grad(v, 3));
        grads
    }),
    flops: mul_flops,
    ..ROW
};

/// `y = base + alpha * x wᵀ`: the second half of a low-rank adapter. Operands `x[T,K], w[N,K], base[T,N]`.
/// Gradients: `dx = alpha dy w`, `dw = alpha dyᵀ x`, `dbase = dy`.
pub const LINEAR_ADD: OpDef = OpDef {
    name: "linear_add",
    arity: (3, 3),
    attrs: &[float("alpha", 1.0), int("compute", 0), int("rows", 1)],
    infer: |x, _| accumulates(x, 2, product(x)?),
    eval: |x, y, a| {
        start_from(x, 2, y);
        multiply(&x[0], &x[1], &mut y[0], a.float("alpha"));
    },
    saves: &[Saves::Arg(0), Saves::Arg(1)],
    vjp: Some(|v| {
        let [dx, dw] = product_grads(v, |v| v.arg(0), v.attrs.float("alpha"));
        vec![dx, dw, Some(v.dy())]
    }),
    in_place: &[(2, 0)],
    flops: mul_flops,
    ..ROW
};

/// `dx = acc + alpha * dy w`. Operands `dy[T,N], w[N,K]`, and `acc[T,K]` or none (zero).
pub const LINEAR_GRAD_X: OpDef = OpDef {
    name: "linear_grad_x",
    arity: (2, 3),
    attrs: &[float("alpha", 1.0), int("compute", 0), int("rows", 1)],
    infer: |x, _| {
        let ((t, n), (n2, k)) = (matrix(&x[0], "dy")?, matrix(&x[1], "w")?);
        expect("outputs of w", n2, n)?;
        accumulates(x, 2, Type::f32(&[t, k]))
    },
    eval: |x, y, a| {
        start_from(x, 2, y);
        for t in 0..x[0].rows() {
            for n in 0..x[1].rows() {
                let scale = a.float("alpha") * x[0].row(t)[n];
                x[1].row(n).iter().zip(y[0].row_mut(t)).for_each(|(w, y)| *y += scale * w);
            }
        }
    },
    in_place: &[(2, 0)],
    flops: |x, _, _| 2 * x[0].elems() * u64::from(x[1].cols()),
    acc: Some(Acc { arg: 2, out: 0, whole: true }),
    ..ROW
};

/// `dw = acc + alpha * dyᵀ x`, packed row by packed row. Operands `dy[T,N], x[T,K]`, and `acc[N,K]` or none.
pub const LINEAR_GRAD_W: OpDef = OpDef {
    name: "linear_grad_w",
    arity: (2, 3),
    attrs: &[float("alpha", 1.0), int("compute", 0), int("rows", 1)],
    infer: |x, a| accumulates(x, 2, weight_grad(x, a)?),
    eval: |x, y, a| {
        start_from(x, 2, y);
        for t in 0..x[0].rows() {
            for n in 0..x[0].cols() {
                let scale = a.float("alpha") * x[0].row(t)[n];
                x[1].row(t).iter().zip(y[0].row_mut(n)).for_each(|(x, y)| *y += scale * x);
            }
        }
    },
    in_place: &[(2, 0)],
    flops: |x, _, _| 2 * x[0].elems() * u64::from(x[1].cols()),
    acc: Some(Acc { arg: 2, out: 0, whole: false }),
    ..ROW
};

/// The type of `dyᵀ x` for `dy[T,N], x[T,K]`, where `T` is `rows` packed rows.
pub fn weight_grad(x: &[Type], a: &Attrs) -> Result<Type, String> {
    let ((t, n), (t2, k)) = (matrix(&x[0], "dy")?, matrix(&x[1], "x")?);
    expect("tokens of x", t2, t)?;
    if a.size("rows") == 0 || !(t as usize).is_multiple_of(a.size("rows")) {
        return Err(format!("{t} tokens are not {} packed rows", a.size("rows")));
    }
    Ok(Type::f32(&[n, k]))
}
