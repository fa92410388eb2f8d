//! Updates of trained tensors, and the global gradient norm.
//!
//! `hyper`: `f32[4]` = learning rate, `1 - beta1^step`, `1 - beta2^step`, unused; given anew each step.
//! `rng`: `u32[4]` = seed (low, high), step, unused: the counter of stochastic rounding, with `stream` naming
//! the tensor. `clip`: `f32[2]`, whose first element multiplies the gradient. `index`: `i32[J]`, the trained
//! columns of a tensor of which the gradient and the states hold only those. `panel_rows`: where it is not 0, the
//! update is of rows `first_row..first_row + panel_rows` of weight and gradient alone, and the states are theirs; so
//! may be the gradient, and the weight where it is stored in parts.

use super::def::{OpDef, ROW, Tensor, expect_indices, expect_shape, list_len, no_flops, own_panel};
use super::elementwise::accumulates;
use super::linear::weight_grad;
use crate::ir::attrs::{AttrDef, Attrs, float, int};
use crate::ir::types::Type;
use crate::optimizer::RULES;
use tinyforge_plan::DType;

const ATTRS: &[AttrDef] = &[
    int("rule", 0),
    int("states", 0),
    int("clip", 0),
    int("sub", 0),
    float("beta1", 0.9),
    float("beta2", 0.999),
    float("eps", 1e-8),
    float("weight_decay", 0.0),
    int("stream", 0),
    float("alpha", 1.0),
    int("compute", 0),
    int("rows", 1),
    int("first_row", 0),
    int("panel_rows", 0),
];

/// Where the operands behind the gradient stand: `hyper, rng, clip, index`, counted from the operand after it.
fn check(args: &[Type], after: usize, grad: &Type, a: &Attrs) -> Result<Vec<Type>, String> {
    let rule = RULES.get(a.size("rule")).ok_or_else(|| format!("there is no rule {}", a.size("rule")))?;
    if rule.eval.is_none() {
        return Err(format!("rule {} is for whole numbers", rule.name));
    }
    let (w, clip, sub) = (&args[0], a.size("clip"), a.size("sub"));
    if a.size("states") != (rule.states)(a).len() || args.len() != after + 2 + clip + sub || clip > 1 || sub > 1 {
        return Err(format!("{} operands do not suit rule {}", args.len(), rule.name));
    }
    expect_shape("hyper", &args[after], &[4])?;
    expect_shape("rng", &args[after + 1], &[4])?;
    if clip == 1 {
        expect_shape("clip", &args[after + 2], &[2])?;
    }
    let trained = match sub {
        0 => Type::f32(&w.shape),
        _ => {
            let len = list_len(&args[after + 2 + clip])?;
            expect_indices("index", &args[after + 2 + clip], len)?;
            Type::f32(&[w.rows(), len])
        }
    };
    let rows = own_panel(trained.rows() as usize, a)?;
    let part = match a.size("panel_rows") {
        0 => trained.clone(),
        _ => Type::f32(&[rows.len() as u32, trained.cols()]),
    };
    if *grad != trained && *grad != part {
        return Err(format!("gradient is {grad}, must be {trained}"));
    }
    for (state, found) in (rule.states)(a).iter().zip(&args[1..]) {
        let wanted = (state.ty)(&part);
        if *found != wanted {
            return Err(format!("state {} is {found}, must be {wanted}", state.name));
        }
    }
    Ok(vec![])
}

/// Applies the rule to the trained elements, in f64 and without the rounding of the storage types.
fn apply(x: &mut [Tensor], grad: &[f64], after: usize, a: &Attrs) {
    let (clip, sub) = (a.size("clip"), a.size("sub"));
    let hyper = x[after].data.clone();
    let scale = if clip == 1 { x[after + 2].data[0] } else { 1.0 };
    let index: Option<Vec<f64>> = (sub == 1).then(|| x[after + 2 + clip].data.clone());
    let cols = x[0].cols();
    let at = |i: usize| match &index {
        Some(index) => i / index.len() * cols + index[i % index.len()] as usize,
        None => i,
    };
    let width = index.as_ref().map_or(cols, Vec::len).max(1);
    let rows = own_panel(x[0].rows(), a).expect("`check` asks for it");
    let (w, rest) = x.split_at_mut(1);
    let states = &mut rest[..a.size("states")];
    let eval = RULES[a.size("rule")].eval.expect("`check` asks for it");
    let first = rows.start * width;
    // The gradient may be the panel's alone.
    let own = if grad.len() == rows.len() * width { 0 } else { first };
    for (i, g) in grad[own..own + rows.len() * width].iter().enumerate() {
        eval(&mut w[0].data[at(first + i)], states, i, g * scale, &hyper, a);
    }
}

/// Changes `w` and the rule's states by gradient `g`. Operands `w, states.., g, hyper, rng, clip?, index?`.
/// The rules are the rows of the optimizer table.
pub const UPDATE: OpDef = OpDef {
    name: "update",
    arity: (4, 12),
    attrs: ATTRS,
    infer: |x, a| match x.get(1 + a.size("states")) {
        Some(g) => check(x, 2 + a.size("states"), &g.clone(), a),
        None => Err("the gradient is missing".to_string()),
    },
    eval: |x, _, a| {
        let at = 1 + a.size("states");
        let grad = x[at].data.clone();
        apply(x, &grad, at + 1, a);
    },
    mutates: |a| 1 + a.size("states"),
    flops: |x, _, a| match a.size("panel_rows") as u64 {
        0 => 12 * x[0].elems(),
        rows => 12 * rows.saturating_mul(u64::from(x[0].cols())),
    },
    ..ROW
};

/// `update` with `g = alpha dyᵀ x`, which exists for a panel of rows at a time. Made by `fuse`.
/// Operands `w, states.., dy, x, hyper, rng, clip?, index?`.
pub const LINEAR_GRAD_W_UPDATE: OpDef = OpDef {
    name: "linear_grad_w_update",
    arity: (5, 12),
    attrs: ATTRS,
    infer: |x, a| {
        let at = 1 + a.size("states");
        if x.len() < at + 2 {
            return Err("dy and x are missing".to_string());
        }
        if a.size("panel_rows") > 0 {
            return Err("only `update` takes a panel of rows".to_string());
        }
        check(x, at + 2, &weight_grad(&x[at..], a)?, a)
    },
    eval: |x, _, a| {
        let at = 1 + a.size("states");
        let (dy, xs) = (&x[at], &x[at + 1]);
        let mut grad = vec![0.0; dy.cols() * xs.cols()];
        for t in 0..dy.rows() {
            for (n, row) in grad.chunks_mut(xs.cols()).enumerate() {
                row.iter_mut().zip(xs.row(t)).for_each(|(g, x)| *g += a.float("alpha") * dy.row(t)[n] * x);
            }
        }
        apply(x, &grad, at + 2, a);
    },
    mutates: |a| 1 + a.size("states"),
    flops: |x, _, a| {
        let at = 1 + a.size("states");
        2 * x[at].elems() * u64::from(x[at + 1].cols()) + 12 * x[0].elems()
    },
    ..ROW
};

/// `y = acc + Σ x²`, in f64, in chunks of a fixed length. Operands `x`, and `acc f64[1]` or none.
pub const NORM_SQ: OpDef = OpDef {
    name: "norm_sq",
    arity: (1, 2),
    infer: |x, _| accumulates(x, 1, Type::new(DType::F64, &[1])),
    eval: |x, y, _| {
        y[0].data[0] = x.get(1).map_or(0.0, |acc| acc.data[0]) + x[0].data.iter().map(|x| x * x).sum::<f64>();
    },
    flops: |x, _, _| 2 * x[0].elems(),
    ..ROW
};

/// `y = [min(1, max_norm/(n + 1e-6)), n]`, `n = √x`: the factor of global-norm clipping, and the norm.
/// Operand `x f64[1]`, the sum of all squared gradients. Source: Pascanu et al. 2013.
pub const CLIP_SCALE: OpDef = OpDef {
    name: "clip_scale",
    attrs: &[float("max_norm", 1.0)],
    infer: |x, _| {
        expect_shape("sum of squares", &x[0], &[1])?;
        Ok(vec![Type::f32(&[2])])
    },
    eval: |x, y, a| {
        let norm = x[0].data[0].sqrt();
        y[0].data[0] = (a.float("max_norm") / (norm + 1e-6)).min(1.0);
        y[0].data[1] = norm;
    },
    flops: no_flops,
    ..ROW
};
