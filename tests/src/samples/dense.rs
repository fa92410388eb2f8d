//! Samples of ops with factors and rows, of linear layers and updates.

use super::{Fill, Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::Value;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::optimizer::RULES;
use tinyforge_plan::DType;

/// Samples of this family's ops.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    [elementwise(op, z), columns(op, z), linear(op, z), updates(op, z)].concat()
}

fn elementwise(op: Op, z: Size) -> Vec<Sample> {
    let (t, k, n) = (z.tokens(), z.k, z.n);
    let shapes: [&[u32]; 3] = [&[t, k], &[n], &[z.rows, 2, z.t, n]];
    let each = |attrs: &[(&str, Attr)], count: usize| {
        let sample = |shape: &&[u32]| one(op, z, attrs, |m| (0..count).map(|_| m.real(shape)).collect());
        shapes.iter().map(sample).collect::<Vec<_>>()
    };
    match op {
        Op::AddScaled => each(&[("scale", (-0.75).into())], 2),
        Op::Scale => each(&[("scale", 1.5.into())], 1),
        Op::AddRow => vec![
            one(op, z, &[], |m| vec![m.real(&[t, k]), m.real(&[k])]),
            one(op, z, &[], |m| vec![m.real(&[z.rows, z.t, n]), m.real(&[n])]),
        ],
        Op::Fill => vec![one(op, z, &[("len", n.into()), ("value", 0.25.into())], |_| vec![])],
        Op::Assign => {
            vec![one(op, z, &[], |m| vec![m.state(Type::f32(&[t, k]), Fill::Real), m.real(&[t, k])])]
        }
        Op::Zero => vec![one(op, z, &[], |m| vec![m.state(Type::f32(&[t, k]), Fill::Real)])],
        Op::NormSq => vec![
            one(op, z, &[], |m| vec![m.real(&[t, k])]),
            one(op, z, &[], |m| vec![m.real(&[n]), m.input(Type::new(DType::F64, &[1]), Fill::Positive)]),
        ],
        Op::ClipScale => [0.5, 100.0]
            .map(|max| {
                let ty = Type::new(DType::F64, &[1]);
                one(op, z, &[("max_norm", max.into())], |m| vec![m.input(ty, Fill::Positive)])
            })
            .into(),
        _ => vec![],
    }
}

fn columns(op: Op, z: Size) -> Vec<Sample> {
    let (t, k, n) = (z.tokens(), z.k, z.n);
    match op {
        Op::Reshape => vec![
            one(op, z, &[("d0", k.into()), ("d1", t.into())], |m| vec![m.real(&[t, k])]),
            one(op, z, &[("d0", (t * k).into())], |m| vec![m.real(&[t, 1, k])]),
        ],
        Op::SumRows => vec![
            one(op, z, &[("rows", z.rows.into())], |m| vec![m.real(&[t, k])]),
            one(op, z, &[("rows", z.rows.into())], |m| vec![m.real(&[t, n]), m.real(&[n])]),
        ],
        Op::GatherCols => vec![one(op, z, &[], |m| vec![m.real(&[t, k]), m.ints(n, Fill::Below(k))])],
        Op::ScatterCols => {
            vec![one(op, z, &[("cols", k.into())], |m| vec![m.real(&[t, n]), m.ints(n, Fill::Below(k))])]
        }
        Op::SliceCols => {
            let slice = |start: u32, len: u32| {
                one(op, z, &[("start", start.into()), ("len", len.into())], |m| vec![m.real(&[t, n])])
            };
            vec![slice(0, n), slice(0, 1), slice(n / 2, n - n / 2), slice(n / 3, n / 2 - n / 3 + 1)]
        }
        Op::ConcatCols => vec![
            one(op, z, &[], |m| vec![m.real(&[t, k])]),
            one(op, z, &[], |m| vec![m.real(&[t, k]), m.real(&[t, 1]), m.real(&[t, n])]),
        ],
        _ => vec![],
    }
}

fn linear(op: Op, z: Size) -> Vec<Sample> {
    let (t, k, n) = (z.tokens(), z.k, z.n);
    let (alpha, rows) = (("alpha", Attr::from(0.5)), ("rows", Attr::from(z.rows)));
    match op {
        Op::Linear => vec![
            one(op, z, &[], |m| vec![m.real(&[t, k]), m.real(&[n, k])]),
            one(op, z, &[], |m| vec![m.real(&[t, k]), m.real(&[n, k]), m.real(&[n])]),
        ],
        Op::LinearPart => {
            let make = |first: u32, onto: bool| {
                one(op, z, &[("first_row", first.into()), ("vocab", (n + 3).into())], |m| {
                    let mut args = vec![m.real(&[t, k]), m.real(&[n, k])];
                    args.extend(onto.then(|| m.real(&[t, n + 3])));
                    args
                })
            };
            vec![make(0, false), make(2, false), make(3, true)]
        }
        Op::LinearSub => vec![sub(z, false), sub(z, true)],
        Op::LinearAdd => {
            vec![one(op, z, &[alpha], |m| vec![m.real(&[t, k]), m.real(&[n, k]), m.real(&[t, n])])]
        }
        Op::LinearGradX => vec![
            one(op, z, &[], |m| vec![m.real(&[t, n]), m.real(&[n, k])]),
            one(op, z, &[alpha], |m| vec![m.real(&[t, n]), m.real(&[n, k]), m.real(&[t, k])]),
        ],
        Op::LinearGradW => vec![
            one(op, z, &[rows], |m| vec![m.real(&[t, n]), m.real(&[t, k])]),
            one(op, z, &[alpha, rows], |m| vec![m.real(&[t, n]), m.real(&[t, k]), m.real(&[n, k])]),
        ],
        _ => vec![],
    }
}

/// `linear_sub`, whose trained columns are every other one.
fn sub(z: Size, bias: bool) -> Sample {
    let (t, k, n) = (z.tokens(), z.k, z.n);
    let chosen: Vec<f64> = (0..k).step_by(2).map(f64::from).collect();
    let mut columns = None;
    let mut sample = one(Op::LinearSub, z, &[], |m| {
        let (x, w) = (m.real(&[t, k]), m.real(&[n, k]));
        let index = m.ints(chosen.len() as u32, Fill::Values(chosen));
        columns = Some((w, index));
        let b = bias.then(|| m.real(&[n]));
        let xs = m.node("xs", Op::GatherCols, &[x, index], &[])[0];
        [Some(x), Some(w), Some(xs), b].into_iter().flatten().collect()
    });
    sample.columns = columns;
    sample
}

fn updates(op: Op, z: Size) -> Vec<Sample> {
    if !matches!(op, Op::Update | Op::LinearGradWUpdate) {
        return vec![];
    }
    let mut all = Vec::new();
    for rule in (0..RULES.len()).filter(|&rule| RULES[rule].eval.is_some()) {
        for (clip, is_sub) in [(false, false), (true, false), (false, true), (true, true)] {
            all.push(update(op, z, Rule { rule, clip, is_sub, ..RULE }));
        }
        // A panel begins at a multiple of the elements that 8-bit states share a scale of.
        if op == Op::Update && z.n > 1 && (z.n / 2 * z.k).is_multiple_of(256) {
            all.push(update(op, z, Rule { rule, first_row: z.n / 2, ..RULE }));
            all.push(update(op, z, Rule { rule, first_row: z.n / 2, grad_of_panel: true, ..RULE }));
            let own = Rule { rule, first_row: z.n / 2, grad_of_panel: true, weight_of_panel: true, ..RULE };
            all.push(update(op, z, own));
        }
    }
    all.push(update(op, z, Rule { clip: true, beta1: 0.0, ..RULE }));
    all
}

struct Rule {
    rule: usize,
    clip: bool,
    is_sub: bool,
    beta1: f64,
    /// The first row of the panel that is updated; 0 updates all rows.
    first_row: u32,
    /// Whether the gradient is the panel's alone.
    grad_of_panel: bool,
    /// Whether the weight is.
    weight_of_panel: bool,
}

const RULE: Rule = Rule {
    rule: 0,
    clip: false,
    is_sub: false,
    beta1: 0.9,
    first_row: 0,
    grad_of_panel: false,
    weight_of_panel: false,
};

/// An update of `w[n,k]`, of all its columns or of every other one.
fn update(op: Op, z: Size, r: Rule) -> Sample {
    let (t, k, n) = (z.tokens(), z.k, z.n);
    let chosen: Vec<f64> = (0..k).step_by(2).map(f64::from).collect();
    let trained = Type::f32(&[n, if r.is_sub { chosen.len() as u32 } else { k }]);
    let panel = if r.first_row == 0 { 0 } else { n - r.first_row };
    let kept = Type::f32(&[if panel == 0 { n } else { panel }, trained.cols()]);
    let mut attrs: Vec<(&str, Attr)> = vec![
        ("rule", r.rule.into()),
        ("clip", r.clip.into()),
        ("sub", r.is_sub.into()),
        ("beta1", r.beta1.into()),
        ("weight_decay", 0.1.into()),
        ("stream", 3u32.into()),
        ("first_row", r.first_row.into()),
        ("panel_rows", panel.into()),
    ];
    let resolved = tinyforge_compiler::ir::attrs::Attrs::of(Op::Update.def().attrs, &attrs);
    let states = (RULES[r.rule].states)(&resolved);
    attrs.push(("states", states.len().into()));
    if op == Op::LinearGradWUpdate {
        attrs.extend([("alpha", 0.5.into()), ("rows", z.rows.into())]);
    }
    one(op, z, &attrs, |m| {
        let mut args: Vec<Value> = vec![m.real(&[if r.weight_of_panel { panel } else { n }, k])];
        for state in states {
            let ty = (state.ty)(&kept);
            // Moments in 8 bits have a definition in f64 for the first step only.
            let fill = if RULES[r.rule].name == "adamw8" {
                Fill::Values(vec![0.0; ty.elems() as usize])
            } else {
                Fill::Positive
            };
            args.push(m.state(ty, fill));
        }
        match op {
            Op::Update if r.grad_of_panel => args.push(m.real(&kept.shape)),
            Op::Update => args.push(m.real(&trained.shape)),
            _ => args.extend([m.real(&[t, n]), m.real(&[t, trained.cols()])]),
        }
        let hyper = Fill::Values(vec![0.125, 1.0 - 0.9, 1.0 - 0.999, 0.0]);
        args.push(m.given(&[4], hyper));
        args.push(m.input(Type::new(DType::U32, &[4]), Fill::Values(vec![7.0, 0.0, 1.0, 0.0])));
        if r.clip {
            args.push(m.given(&[2], Fill::Values(vec![0.5, 2.0])));
        }
        if r.is_sub {
            args.push(m.ints(chosen.len() as u32, Fill::Values(chosen)));
        }
        args
    })
}
