//! Samples of norms, embeddings, rotary positions, attention and losses.

use super::{Fill, Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::Value;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_plan::VOCAB_SEGMENT;

/// Samples of this family's ops.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    [norms(op, z), lookups(op, z), rope(op, z), attention(op, z), cached(op, z), losses(op, z), heads(op, z)].concat()
}

fn norms(op: Op, z: Size) -> Vec<Sample> {
    let t = z.tokens();
    let groups = [(1, z.k), (3, z.k)];
    let make = |(groups, d): (u32, u32), acc: bool| {
        let wide = groups * d;
        let shared = [("eps", Attr::from(1e-3)), ("groups", groups.into())];
        let sums = [shared[0], shared[1], ("len", d.into()), ("rows", z.rows.into())];
        match op {
            Op::RmsNorm => one(op, z, &shared, |m| vec![m.real(&[t, wide]), m.real(&[d])]),
            Op::LayerNorm => one(op, z, &shared, |m| vec![m.real(&[t, wide]), m.real(&[d]), m.real(&[d])]),
            Op::AddRmsNorm => one(op, z, &shared, |m| vec![m.real(&[t, wide]), m.real(&[t, wide]), m.real(&[d])]),
            Op::RmsNormGradX | Op::LayerNormGradX => one(op, z, &shared, |m| {
                let mut args = vec![m.real(&[t, wide]), m.real(&[d]), m.real(&[t, wide])];
                args.extend(acc.then(|| m.real(&[t, wide])));
                args
            }),
            _ => one(op, z, &sums, |m| {
                let mut args = vec![m.real(&[t, wide]), m.real(&[t, wide])];
                args.extend(acc.then(|| m.real(&[d])));
                args
            }),
        }
    };
    match op {
        Op::RmsNorm | Op::LayerNorm | Op::AddRmsNorm => groups.map(|g| make(g, false)).into(),
        Op::RmsNormGradX | Op::LayerNormGradX | Op::RmsNormGradW | Op::LayerNormGradW => {
            groups.iter().flat_map(|&g| [make(g, false), make(g, true)]).collect()
        }
        _ => vec![],
    }
}

fn lookups(op: Op, z: Size) -> Vec<Sample> {
    let (t, d, v) = (z.tokens(), z.k, z.n);
    match op {
        Op::Embedding => vec![one(op, z, &[], |m| vec![m.real(&[v, d]), m.ints(t, Fill::Below(v))])],
        Op::EmbeddingGrad => {
            let make = |acc: bool, running: bool| {
                let attrs = [("vocab", v.into()), ("running", running.into()), ("rows", z.rows.into())];
                one(op, z, &attrs, |m| {
                    let mut args = vec![m.real(&[t, d]), m.ints(t, Fill::Below(v))];
                    args.extend(acc.then(|| m.real(&[v, d])));
                    args
                })
            };
            let panel = |acc: bool| {
                let first = v / 2;
                let attrs = [("vocab", v.into()), ("first_row", first.into()), ("panel_rows", (v - first).into())];
                one(op, z, &attrs, |m| {
                    let mut args = vec![m.real(&[t, d]), m.ints(t, Fill::Below(v))];
                    args.extend(acc.then(|| m.real(&[v - first, d])));
                    args
                })
            };
            vec![make(false, false), make(true, false), make(true, true), panel(false), panel(true)]
        }
        Op::EmbeddingPart => {
            let make = |first: u32, onto: bool| {
                let attrs = [("first_row", first.into()), ("vocab", (v + 3).into())];
                one(op, z, &attrs, |m| {
                    let mut args = vec![m.real(&[v, d]), m.ints(t, Fill::Below(v + 3))];
                    args.extend(onto.then(|| m.real(&[t, d])));
                    args
                })
            };
            vec![make(0, false), make(2, false), make(3, true)]
        }
        _ => vec![],
    }
}

fn positions(z: Size) -> Fill {
    Fill::Values((0..z.tokens()).map(|t| f64::from(t % z.t)).collect())
}

fn rope(op: Op, z: Size) -> Vec<Sample> {
    if op != Op::Rope {
        return vec![];
    }
    let (t, half) = (z.tokens(), z.n.min(32));
    let frequencies = Fill::Values((0..half).map(|i| 100f64.powf(-f64::from(i) / f64::from(half))).collect());
    let make = |heads: u32, interleaved: bool, rest: u32, inverse: bool, factor: f64| {
        let attrs = [
            ("heads", heads.into()),
            ("interleaved", interleaved.into()),
            ("factor", factor.into()),
            ("inverse", inverse.into()),
        ];
        one(op, z, &attrs, |m| {
            let x = m.real(&[t, heads * (2 * half + rest)]);
            vec![x, m.ints(t, positions(z)), m.given(&[half], frequencies.clone())]
        })
    };
    vec![
        make(1, false, 0, false, 1.0),
        make(3, false, 2, false, 1.25),
        make(2, true, 0, false, 1.0),
        make(2, true, 3, true, 0.5),
        make(2, false, 0, true, 1.0),
    ]
}

/// Two texts in every packed row, and padding behind them where there is room.
fn segments(z: Size) -> Fill {
    let of = |i: u32| match i {
        i if z.t > 2 && i == z.t - 1 => -1.0,
        i if i > z.t / 2 => 1.0,
        _ => 0.0,
    };
    Fill::Values((0..z.tokens()).map(|t| of(t % z.t)).collect())
}

/// Heads, key/value heads, features a head.
fn head_shapes(z: Size) -> [(u32, u32, u32); 3] {
    let d = z.k.min(256);
    [(1, 1, d), (4, 2, d), (3, 1, d)]
}

fn attention(op: Op, z: Size) -> Vec<Sample> {
    if !matches!(op, Op::Attention | Op::AttentionGrad) {
        return vec![];
    }
    let t = z.tokens();
    let make = |(h, g, d): (u32, u32, u32), causal: bool, window: u32, packed: bool| {
        let attrs = [
            ("seq", z.t.into()),
            ("heads", h.into()),
            ("kv_heads", g.into()),
            ("scale", Attr::from(1.0 / f64::from(d).sqrt())),
            ("causal", causal.into()),
            ("window", window.into()),
        ];
        one(op, z, &attrs, |m| {
            let mut args = vec![m.real(&[t, h * d]), m.real(&[t, g * d]), m.real(&[t, g * d])];
            let fill = if packed { segments(z) } else { Fill::Values(vec![0.0; t as usize]) };
            args.push(m.ints(t, fill));
            if op == Op::AttentionGrad {
                // The gradient reads the result and its log-sum-exp, which must be those of the same operands.
                let forward = m.node("forward", Op::Attention, &args, &attrs);
                args.extend(forward);
                args.push(m.real(&[t, h * d]));
            }
            args
        })
    };
    let [one_head, grouped, shared] = head_shapes(z);
    vec![
        make(one_head, true, 0, false),
        make(grouped, true, 0, true),
        make(grouped, true, 2, true),
        make(shared, false, 0, true),
        make(shared, false, 2, false),
    ]
}

fn cached(op: Op, z: Size) -> Vec<Sample> {
    let (t, context) = (z.tokens(), z.tokens() + 3);
    // The last token is padding where there are several.
    let at = |i: u32| if i > 0 && i == t - 1 { -1.0 } else { f64::from(i + 2) };
    let positions = Fill::Values((0..t).map(at).collect());
    match op {
        Op::KvWrite => vec![one(op, z, &[], |m| {
            let cache = m.state(Type::f32(&[context, z.k]), Fill::Real);
            vec![cache, m.real(&[t, z.k]), m.ints(t, positions.clone())]
        })],
        Op::AttentionCached => {
            let make = |(h, g, d): (u32, u32, u32), window: u32| {
                let scale = Attr::from(1.0 / f64::from(d).sqrt());
                let attrs = [("heads", h.into()), ("kv_heads", g.into()), ("scale", scale), ("window", window.into())];
                one(op, z, &attrs, |m| {
                    let q = m.real(&[t, h * d]);
                    let cache = [(); 2].map(|()| m.state(Type::f32(&[context, g * d]), Fill::Real));
                    vec![q, cache[0], cache[1], m.ints(t, positions.clone())]
                })
            };
            let [one_head, grouped, shared] = head_shapes(z);
            vec![make(one_head, 0), make(grouped, 0), make(grouped, 2), make(shared, 3)]
        }
        _ => vec![],
    }
}

fn losses(op: Op, z: Size) -> Vec<Sample> {
    let (t, v) = (z.tokens(), z.n);
    let sample = match op {
        Op::Softmax => one(op, z, &[], |m| vec![m.wide(&[t, v])]),
        Op::SoftmaxGrad => one(op, z, &[], |m| {
            let x = m.wide(&[t, v]);
            let y = m.node("y", Op::Softmax, &[x], &[]);
            vec![y[0], m.real(&[t, v])]
        }),
        Op::CrossEntropy | Op::CrossEntropyGrad => one(op, z, &[], |m| {
            let mut args = vec![m.wide(&[t, v]), m.ints(t, Fill::Labels(v)), m.given(&[t], Fill::Positive)];
            args.extend((op == Op::CrossEntropyGrad).then(|| m.real(&[t])));
            args
        }),
        Op::MseLoss | Op::MseLossGrad => one(op, z, &[], |m| {
            let mut args = vec![m.real(&[t, v]), m.given(&[t, v], Fill::Real), m.given(&[t], Fill::Positive)];
            args.extend((op == Op::MseLossGrad).then(|| m.real(&[t])));
            args
        }),
        _ => return vec![],
    };
    vec![sample]
}

fn heads(op: Op, z: Size) -> Vec<Sample> {
    let (t, d, v) = (z.tokens(), z.k, z.n);
    let make = |grad_w: bool, acc: bool, sums: bool| {
        let mut attrs: Vec<(&str, Attr)> = vec![("seq", z.t.into())];
        attrs.extend(grad_w.then_some(("grad_w", true.into())));
        attrs.extend(sums.then_some(("sums", true.into())));
        one(op, z, &attrs, |m| {
            let mut args = vec![m.real(&[t, d]), m.real(&[v, d]), m.ints(t, Fill::Labels(v))];
            args.push(m.given(&[t], Fill::Positive));
            args.extend(acc.then(|| m.real(&[v, d])));
            args
        })
    };
    // The sums must be those of the same operands.
    let panel = |first: u32, acc: bool| {
        let rows = if first == 0 { 0 } else { v - first };
        let attrs = [("seq", z.t.into()), ("first_row", first.into()), ("panel_rows", rows.into())];
        one(op, z, &attrs, |m| {
            let mut args = vec![m.real(&[t, d]), m.real(&[v, d]), m.ints(t, Fill::Labels(v))];
            args.push(m.given(&[t], Fill::Positive));
            let found = m.node("loss", Op::LinearCrossEntropyGrad, &args, &[attrs[0], ("sums", true.into())]);
            args.push(found[2]);
            args.extend(acc.then(|| m.real(&[v - first, d])));
            args
        })
    };
    // The weight is these rows alone, behind a whole segment of its table.
    let own = |acc: bool| {
        let vocab = VOCAB_SEGMENT + v;
        let of = |first: u32| [("seq", z.t.into()), ("first_row", first.into()), ("vocab", vocab.into())];
        let attrs = [&of(VOCAB_SEGMENT)[..], &[("panel_rows", v.into())]].concat();
        one(op, z, &attrs, |m| {
            let mut args = vec![m.real(&[t, d]), m.real(&[v, d]), m.ints(t, Fill::Labels(vocab))];
            args.push(m.given(&[t], Fill::Positive));
            let first = [args[0], m.real(&[VOCAB_SEGMENT, d]), args[2], args[3]];
            let before = m.node("before", Op::LinearCrossEntropySums, &first, &of(0))[0];
            let all: Vec<Value> = args.iter().copied().chain([before]).collect();
            args.push(m.node("all", Op::LinearCrossEntropySums, &all, &of(VOCAB_SEGMENT))[0]);
            args.extend(acc.then(|| m.real(&[v, d])));
            args
        })
    };
    // Parts of a table behind one whole segment of it.
    let part = |before: bool, acc: bool| {
        let first = if before { VOCAB_SEGMENT } else { 0 };
        let of = |first: u32| [("seq", z.t.into()), ("first_row", first.into()), ("vocab", (VOCAB_SEGMENT + v).into())];
        one(op, z, &of(first), |m| {
            let mut args = vec![m.real(&[t, d]), m.real(&[v, d]), m.ints(t, Fill::Labels(VOCAB_SEGMENT + v))];
            args.push(m.given(&[t], Fill::Positive));
            let mut sums = before.then(|| {
                let args = [args[0], m.real(&[VOCAB_SEGMENT, d]), args[2], args[3]];
                m.node("sums", Op::LinearCrossEntropySums, &args, &of(0))[0]
            });
            if op == Op::LinearCrossEntropyGradH {
                let args: Vec<Value> = args.iter().copied().chain(sums).collect();
                sums = Some(m.node("all", Op::LinearCrossEntropySums, &args, &of(first))[0]);
            }
            args.extend(sums);
            args.extend(acc.then(|| m.real(&[t, d])));
            args
        })
    };
    match op {
        Op::LinearCrossEntropySums => vec![part(false, false), part(true, false)],
        Op::LinearCrossEntropyGradH => vec![part(false, false), part(true, false), part(true, true)],
        Op::CrossEntropyOfSums => vec![one(op, z, &[], |m| {
            let (h, w) = (m.real(&[t, d]), m.real(&[v, d]));
            let args = [h, w, m.ints(t, Fill::Labels(v)), m.given(&[t], Fill::Positive)];
            let attrs = [("seq", z.t.into()), ("vocab", v.into())];
            vec![m.node("sums", Op::LinearCrossEntropySums, &args, &attrs)[0], args[3]]
        })],
        Op::LinearCrossEntropy => vec![make(false, false, false)],
        Op::LinearCrossEntropyGrad => vec![
            make(false, false, false),
            make(true, false, false),
            make(true, true, false),
            make(false, false, true),
            make(true, true, true),
        ],
        Op::LinearCrossEntropyGradW => {
            vec![panel(0, false), panel(v / 2, false), panel(v / 2, true), own(false), own(true)]
        }
        _ => vec![],
    }
}
