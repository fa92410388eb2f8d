//! The optimizer table: one row a rule. A row declares the states it keeps with their types, and the rule in f64.
//!
//! Adding a rule is a row here and a kernel on each device; plans, checkpoints and budgets follow from the row.

use crate::ir::attrs::Attrs;
use crate::ir::ops::Tensor;
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// A tensor that a rule keeps from step to step.
pub struct StateDef {
    /// Appended to the trained tensor's name: `layers.0.q.weight.m`.
    pub name: &'static str,
    /// Its type, given that of the trained elements.
    pub ty: fn(&Type) -> Type,
}

/// A row of the optimizer table.
pub struct Rule {
    /// The name in requests.
    pub name: &'static str,
    /// What it keeps.
    pub states: fn(&Attrs) -> &'static [StateDef],
    /// The rule for one element: `(w, states, index, gradient, hyper, attributes)`; `None` of a rule for weights that
    /// are stored as whole numbers, which `i8_update` defines.
    pub eval: Option<Eval>,
}

/// A rule for one element.
pub type Eval = fn(&mut f64, &mut [Tensor], usize, f64, &[f64], &Attrs);

/// Elements that share one scale in 8-bit states. Source: Dettmers et al. 2022.
pub const BLOCK_8BIT: u32 = 256;

fn same_shape(trained: &Type) -> Type {
    trained.with_dtype(DType::F32)
}

/// Elements of a tensor as a list; one too long gives a length that the verifier refuses.
fn list_len(trained: &Type) -> u32 {
    u32::try_from(trained.elems()).unwrap_or(u32::MAX)
}

fn codes(trained: &Type) -> Type {
    Type::new(DType::U8, &[list_len(trained)])
}

fn scales(trained: &Type) -> Type {
    Type::f32(&[list_len(trained).div_ceil(BLOCK_8BIT)])
}

/// The rules; `rule` in an update's attributes is an index into this table.
pub const RULES: &[Rule] = &[SGD, ADAMW, ADAMW8, SGD_ACCUMULATE];

/// Index of the rule of this name.
pub fn rule_index(name: &str) -> Option<usize> {
    RULES.iter().position(|r| r.name == name)
}

/// `g += wd w; m = beta1 m + g; w -= lr m`; no state when `beta1 = 0`. Whole numbers are rounded stochastically.
const SGD: Rule = Rule {
    name: "sgd",
    states: |a| if a.float("beta1") == 0.0 { &[] } else { &[StateDef { name: "m", ty: same_shape }] },
    eval: Some(|w, states, i, g, hyper, a| {
        let g = g + a.float("weight_decay") * *w;
        let step = match states.first_mut() {
            Some(m) => {
                m.data[i] = a.float("beta1") * m.data[i] + g;
                m.data[i]
            }
            None => g,
        };
        *w -= hyper[0] * step;
    }),
};

/// `w -= lr wd w; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g²; w -= lr m̂/(√v̂ + eps)`, `m̂ = m/(1-b1^t)`,
/// `v̂ = v/(1-b2^t)`. Source: Loshchilov & Hutter 2019.
const ADAMW: Rule = Rule {
    name: "adamw",
    states: |_| &[StateDef { name: "m", ty: same_shape }, StateDef { name: "v", ty: same_shape }],
    eval: Some(|w, states, i, g, hyper, a| {
        let (b1, b2) = (a.float("beta1"), a.float("beta2"));
        let (m, v) = states.split_at_mut(1);
        let (m, v) = (&mut m[0].data[i], &mut v[0].data[i]);
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *w -= hyper[0] * a.float("weight_decay") * *w;
        *w -= hyper[0] * (*m / hyper[1]) / ((*v / hyper[2]).sqrt() + a.float("eps"));
    }),
};

/// AdamW whose moments are stored in 8 bits, in blocks of [`BLOCK_8BIT`] elements with one f32 scale each.
/// The definition in f64 is AdamW's first step from zero moments, for which the storage plays no part; the map of
/// codes is defined and tested where the kernel stands.
const ADAMW8: Rule = Rule {
    name: "adamw8",
    states: |_| {
        &[
            StateDef { name: "m8", ty: codes },
            StateDef { name: "m8.scale", ty: scales },
            StateDef { name: "v8", ty: codes },
            StateDef { name: "v8.scale", ty: scales },
        ]
    },
    eval: Some(|w, _, _, g, hyper, a| {
        let (m, v) = ((1.0 - a.float("beta1")) * g, (1.0 - a.float("beta2")) * g * g);
        *w -= hyper[0] * a.float("weight_decay") * *w;
        *w -= hyper[0] * (m / hyper[1]) / ((v / hyper[2]).sqrt() + a.float("eps"));
    }),
};

/// SGD of whole numbers that are rounded to the nearest; what rounding leaves is kept for the next step, so that
/// `w + error` is what SGD gives without rounding. Weight decay is left out.
const SGD_ACCUMULATE: Rule = Rule {
    name: "sgd-accumulate",
    states: |a| {
        const ERROR: StateDef = StateDef { name: "error", ty: same_shape };
        if a.float("beta1") == 0.0 { &[ERROR] } else { &[StateDef { name: "m", ty: same_shape }, ERROR] }
    },
    eval: None,
};
