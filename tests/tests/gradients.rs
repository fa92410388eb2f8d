//! Every gradient against central finite differences, and every fused or gradient op against the ops it stands for,
//! all in the f64 reference interpreter.

use tinyforge_compiler::ir::graph::{Builder, Kind, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::passes::differentiate;
use tinyforge_plan::DType;
use tinyforge_tests::graphs::{assert_close, run, run_smooth};
use tinyforge_tests::random::Random;
use tinyforge_tests::samples::{Fill, Sample, samples};

/// Half the distance between the two points of a difference: its square and the rounding divided by it are both
/// far below the tolerance.
const STEP: f64 = 1e-5;
const RELATIVE: f64 = 1e-6;
const NOTHING: f64 = 1e-2;

/// Of int8 ops, whose gradients are sums in f32 of terms around 1.
const RELATIVE_INT8: f64 = 1e-5;
const NOTHING_INT8: f64 = 1.0;

/// An int8 result as logits of one row with a loss behind them, whose gradients are around 1.
fn with_int8_loss(mut sample: Sample, out: Value, len: u32) -> Sample {
    const SCALE: f64 = 0.02;
    let label = sample.graph.declare(Kind::Input, "label", Type::i32(&[1]));
    let weight = sample.graph.declare(Kind::Input, "weight", Type::f32(&[1]));
    let mut b = Builder::new(&mut sample.graph);
    let row = b.push1("row", Op::Reshape, &[out], &[("d0", 1u32.into()), ("d1", len.into())]);
    let loss = b.push1("loss", Op::I8CrossEntropy, &[row, label, weight], &[("scale", SCALE.into())]);
    sample.graph.results = vec![("out".to_string(), out), ("loss".to_string(), loss)];
    sample.fills.extend([Fill::Below(len), Fill::Values(vec![f64::from(len) / SCALE])]);
    sample
}

/// The sample with `loss = seed * out` behind it, for fixed random seeds, one for each element of the first result.
fn with_loss(sample: &Sample) -> Sample {
    let mut sample = sample.clone();
    let out = sample.graph.result("out").expect("samples return `out`");
    let len = sample.graph.ty(out).elems() as u32;
    if sample.graph.ty(out).dtype == DType::I8 {
        return with_int8_loss(sample, out, len);
    }
    let seeds = sample.graph.declare(Kind::Input, "seeds", Type::f32(&[len]));
    let mut b = Builder::new(&mut sample.graph);
    let flat = b.push1("flat", Op::Reshape, &[out], &[("d0", len.into())]);
    let loss = b.push1("loss", Op::Mul, &[flat, seeds], &[]);
    sample.graph.results = vec![("out".to_string(), out), ("loss".to_string(), loss)];
    sample.fills.push(Fill::Real);
    sample
}

/// `Σ (loss(x + h) - loss(x - h)) / 2h` for element `i` of declared tensor `which`.
fn difference(sample: &Sample, contents: &[Tensor], which: usize, i: usize) -> f64 {
    let at = |offset: f64| {
        let mut contents = contents.to_vec();
        contents[which].data[i] += offset;
        let memory = run_smooth(&sample.graph, &contents);
        memory.get(sample.graph.result("loss").expect("added above")).data.clone()
    };
    // Differences first, then the sum: less is lost to rounding.
    at(STEP).iter().zip(at(-STEP)).map(|(up, down)| (up - down) / (2.0 * STEP)).sum()
}

fn check_sample(sample: &Sample, seed: u64) {
    let forward = with_loss(sample);
    let contents = forward.contents(seed);
    let mut graph = forward.graph.clone();
    differentiate::run(&mut graph).unwrap_or_else(|e| panic!("{}: {e:?}", sample.name));
    let memory = run_smooth(&graph, &contents);
    let is_int8 = sample.op().name().starts_with("i8_");
    let (relative, nothing) = if is_int8 { (RELATIVE_INT8, NOTHING_INT8) } else { (RELATIVE, NOTHING) };
    let declared: Vec<Value> =
        (0..forward.graph.values.len() as u32).map(Value).filter(|v| forward.graph.info(*v).decl.is_some()).collect();
    for (which, &v) in declared.iter().enumerate().filter(|(_, v)| forward.graph.info(**v).decl == Some(Kind::Weight)) {
        let name = &forward.graph.info(v).name;
        let what = format!("{}, gradient of @{name}", sample.name);
        let grad = graph.result(&format!("grad:{name}")).unwrap_or_else(|| panic!("{what}: there is none"));
        let wanted: Vec<f64> =
            (0..contents[which].data.len()).map(|i| difference(&forward, &contents, which, i)).collect();
        let wanted = match forward.columns {
            Some((w, index)) if w == v => chosen_columns(&wanted, contents[which].cols(), &memory.get(index).data),
            _ => wanted,
        };
        assert_close(&what, &memory.get(grad).data, &wanted, relative, nothing);
    }
}

fn chosen_columns(all: &[f64], cols: usize, index: &[f64]) -> Vec<f64> {
    all.chunks(cols).flat_map(|row| index.iter().map(|&k| row[k as usize])).collect()
}

#[test]
fn gradients_are_finite_differences() {
    for &op in Op::ALL.iter().filter(|op| op.def().vjp.is_some()) {
        let all = samples(op);
        assert!(!all.is_empty(), "{} has a gradient and no samples: add some to tests/src/samples", op.name());
        for sample in &all {
            let has_weight = sample.graph.declared(Kind::Weight).next().is_some();
            assert!(has_weight, "{}: no operand has its gradient checked", sample.name);
            (1..=2).for_each(|seed| check_sample(sample, seed));
        }
    }
}

#[test]
fn every_op_has_samples() {
    for &op in Op::ALL {
        let all = samples(op);
        assert!(!all.is_empty(), "{} has no samples: add some to tests/src/samples", op.name());
        assert!(all.iter().all(|s| s.op() == op), "samples of {} end in another op", op.name());
        // An optional operand is there in some samples and absent in others.
        let counts = || all.iter().map(|s| s.graph.nodes.last().map_or(0, |n| n.args.len()));
        let has_optional = op.def().acc.is_some() || matches!(op, Op::Linear | Op::LinearSub | Op::Conv2d);
        assert!(!has_optional || counts().min() < counts().max(), "samples of {} lack the optional operand", op.name());
    }
}

/// Every operand that the row offers a gradient for is a weight in some sample: none is held back as an input.
#[test]
fn float_inputs_of_samples_have_no_gradient() {
    for &op in Op::ALL.iter().filter(|op| op.def().vjp.is_some()) {
        for sample in samples(op) {
            let node = sample.graph.nodes.last().expect("a sample has a node").clone();
            let held_back: Vec<usize> = (0..node.args.len())
                .filter(|&i| {
                    let info = sample.graph.info(node.args[i]);
                    info.decl == Some(Kind::Input) && info.ty.dtype.is_float()
                })
                .collect();
            let mut as_weights = with_loss(&sample);
            for &i in &held_back {
                as_weights.graph.values[node.args[i].index()].decl = Some(Kind::Weight);
            }
            let mut graph = as_weights.graph;
            differentiate::run(&mut graph).unwrap_or_else(|e| panic!("{}: {e:?}", sample.name));
            for &i in &held_back {
                let name = &graph.info(node.args[i]).name;
                let found = graph.result(&format!("grad:{name}"));
                assert!(found.is_none(), "{}: operand {i} has a gradient that no sample checks", sample.name);
            }
        }
    }
}

#[test]
fn losses_without_a_gradient_are_refused() {
    let fails = |sample: &Sample, part: &str| {
        let error = differentiate::run(&mut sample.graph.clone()).expect_err(part);
        assert!(error.iter().any(|f| f.message.contains(part)), "{error:?} does not say `{part}`");
    };
    let mut sample = samples(Op::Add)[0].clone();
    fails(&sample, "no result `loss`");
    sample.graph.results[0].0 = "loss".to_string();
    fails(&sample, "one number per token");
    let mut sample = samples(Op::Attention)[0].clone();
    let lse = sample.graph.result("out.1").expect("attention has two results");
    let len = sample.graph.ty(lse).elems();
    let loss = Builder::new(&mut sample.graph).push1("loss", Op::Reshape, &[lse], &[("d0", (len as u32).into())]);
    sample.graph.results = vec![("loss".to_string(), loss)];
    fails(&sample, "only the first result of attention");
    let mut sample = with_loss(&samples(Op::AddRmsNorm)[0]);
    fails(&sample, "add_rms_norm has no gradient");
    // What nothing trained depends on may do as it likes.
    for v in sample.graph.values.iter_mut().filter(|v| v.decl == Some(Kind::Weight)) {
        v.decl = Some(Kind::Input);
    }
    assert!(differentiate::run(&mut sample.graph).is_ok());
}

/// An accumulator means what it says: the op without it, added.
#[test]
fn accumulators_add() {
    for &op in Op::ALL {
        let Some(acc) = op.def().acc else { continue };
        let with: Vec<Sample> =
            samples(op).into_iter().filter(|s| s.graph.nodes[s.graph.nodes.len() - 1].args.len() > acc.arg).collect();
        assert!(!with.is_empty(), "no sample of {} has an accumulator", op.name());
        for sample in with {
            let contents = sample.contents(5);
            let node = sample.graph.nodes.last().expect("a sample has a node").clone();
            let mut without = sample.graph.clone();
            without.nodes.last_mut().expect("a sample has a node").args.truncate(acc.arg);
            let (whole, part) = (run(&sample.graph, &contents), run(&without, &contents));
            for (o, &out) in node.outs.iter().enumerate() {
                let mut wanted = part.get(out).data.clone();
                if o == acc.out {
                    wanted.iter_mut().zip(&whole.get(node.args[acc.arg]).data).for_each(|(w, a)| *w += a);
                }
                assert_close(&sample.name, &whole.get(out).data, &wanted, 1e-13, 1e-2);
            }
        }
    }
}

#[test]
fn add_rms_norm_is_add_and_rms_norm() {
    for sample in samples(Op::AddRmsNorm) {
        let mut parts = sample.graph.clone();
        let node = parts.nodes.pop().expect("a sample has a node");
        parts.results.clear();
        let mut b = Builder::new(&mut parts);
        let sum = b.push1("sum", Op::Add, &node.args[..2], &[]);
        let attrs: Vec<_> = node.attrs.iter().collect();
        let norm = b.push1("norm", Op::RmsNorm, &[sum, node.args[2]], &attrs);
        let contents = sample.contents(3);
        let (fused, parts) = (run(&sample.graph, &contents), run(&parts, &contents));
        assert_eq!(fused.get(node.outs[0]), parts.get(sum), "{}", sample.name);
        assert_eq!(fused.get(node.outs[1]), parts.get(norm), "{}", sample.name);
    }
}

/// `linear` and `cross_entropy` of the same operands, differentiated; results `loss, grad:..`.
fn head_parts(sample: &Sample) -> tinyforge_compiler::ir::graph::Graph {
    let mut parts = sample.graph.clone();
    let node = parts.nodes.pop().expect("a sample has a node");
    parts.results.clear();
    let mut b = Builder::new(&mut parts);
    let logits = b.push1("logits", Op::Linear, &node.args[..2], &[]);
    let loss = b.push1("losses", Op::CrossEntropy, &[logits, node.args[2], node.args[3]], &[]);
    parts.results.push(("loss".to_string(), loss));
    differentiate::run(&mut parts).expect("both ops have gradients");
    parts
}

#[test]
fn linear_cross_entropy_is_linear_and_cross_entropy() {
    for sample in [samples(Op::LinearCrossEntropy), samples(Op::LinearCrossEntropyGrad)].concat() {
        let parts = head_parts(&sample);
        let contents = sample.contents(4);
        let (fused, parts_memory) = (run(&sample.graph, &contents), run(&parts, &contents));
        let node = sample.graph.nodes.last().expect("a sample has a node");
        let names = ["loss".to_string()]
            .into_iter()
            .chain(node.args[..2].iter().map(|&w| format!("grad:{}", parts.info(w).name)));
        // Behind the gradients may stand sums, which are of no weight.
        let gradients = node.outs.len() - usize::from(node.attrs.iter().any(|a| a == ("sums", 1i64.into())));
        for (o, (&out, name)) in node.outs[..gradients].iter().zip(names).enumerate() {
            let mut wanted = parts_memory.get(parts.result(&name).expect("differentiated")).data.clone();
            if let (2, Some(&acc)) = (o, node.args.get(4)) {
                wanted.iter_mut().zip(&fused.get(acc).data).for_each(|(w, a)| *w += a);
            }
            assert_close(&format!("{}: {name}", sample.name), &fused.get(out).data, &wanted, 1e-12, 1e-3);
        }
    }
}

#[test]
fn linear_grad_w_update_is_linear_grad_w_and_update() {
    for sample in samples(Op::LinearGradWUpdate) {
        let mut parts = sample.graph.clone();
        let node = parts.nodes.pop().expect("a sample has a node");
        let at = 1 + node.attrs.size("states");
        let pick = |names: &[&str]| node.attrs.iter().filter(|(n, _)| names.contains(n)).collect::<Vec<_>>();
        let mut b = Builder::new(&mut parts);
        let grad = b.push1("grad", Op::LinearGradW, &node.args[at..at + 2], &pick(&["alpha", "compute", "rows"]));
        let args = [&node.args[..at], &[grad], &node.args[at + 2..]].concat();
        let own: Vec<_> = node.attrs.iter().filter(|(n, _)| !["alpha", "compute", "rows"].contains(n)).collect();
        b.push("update", Op::Update, &args, &own);
        let contents = sample.contents(6);
        let (fused, parts) = (run(&sample.graph, &contents), run(&parts, &contents));
        for &v in &node.args[..at] {
            assert_close(&sample.name, &fused.get(v).data, &parts.get(v).data, 1e-13, 1e-3);
        }
    }
}

/// One element of each rule, written from the papers and not from the table.
fn rule_by_hand(rule: usize, beta1: f64, w: f64, states: &[f64], g: f64, hyper: &[f64]) -> Vec<f64> {
    let (beta2, eps, decay) = (0.999, 1e-8, 0.1);
    if rule == 0 {
        let m = beta1 * states.first().unwrap_or(&0.0) + g + decay * w;
        return if beta1 == 0.0 { vec![w - hyper[0] * m] } else { vec![w - hyper[0] * m, m] };
    }
    let (m, v) = if rule == 1 { (states[0], states[1]) } else { (0.0, 0.0) };
    let (m, v) = (beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g.powi(2));
    let step = m / hyper[1] / ((v / hyper[2]).sqrt() + eps);
    let w = w * (1.0 - hyper[0] * decay) - hyper[0] * step;
    if rule == 1 { vec![w, m, v] } else { vec![w] }
}

#[test]
fn updates_are_their_rules() {
    for sample in samples(Op::Update) {
        let node = sample.graph.nodes.last().expect("a sample has a node");
        let contents = sample.contents(7);
        let before = |v: Value| {
            let at = (0..v.index()).filter(|&i| sample.graph.values[i].decl.is_some()).count();
            &contents[at].data
        };
        let after = run(&sample.graph, &contents);
        let (rule, at) = (node.attrs.size("rule"), 1 + node.attrs.size("states"));
        let clip = if node.attrs.flag("clip") { before(node.args[at + 3])[0] } else { 1.0 };
        let (w, cols) = (before(node.args[0]), sample.graph.ty(node.args[0]).cols() as usize);
        let index: Vec<usize> = match node.attrs.flag("sub") {
            true => before(*node.args.last().expect("it has operands")).iter().map(|&i| i as usize).collect(),
            false => (0..cols).collect(),
        };
        let mut wanted_w = w.clone();
        for (i, g) in before(node.args[at]).iter().enumerate() {
            let place = i / index.len() * cols + index[i % index.len()];
            let states: Vec<f64> = node.args[1..at].iter().filter_map(|&s| before(s).get(i).copied()).collect();
            let hand =
                rule_by_hand(rule, node.attrs.float("beta1"), w[place], &states, g * clip, before(node.args[at + 1]));
            wanted_w[place] = hand[0];
            for (s, wanted) in hand[1..].iter().enumerate() {
                let what = format!("{}: state {s}", sample.name);
                assert_close(&what, &[after.get(node.args[1 + s]).data[i]], &[*wanted], 1e-13, 1e-6);
            }
        }
        assert_close(&sample.name, &after.get(node.args[0]).data, &wanted_w, 1e-13, 1e-6);
    }
}

#[test]
fn clip_scale_bounds_the_norm() {
    for (sum, max_norm) in [(9.0, 1.0), (9.0, 3.0), (9.0, 5.0), (0.0, 1.0), (1e-20, 0.5)] {
        let mut random = Random::new(1);
        let sample = &samples(Op::ClipScale)[0];
        let mut graph = sample.graph.clone();
        graph.nodes[0].attrs.set("max_norm", f64::into(max_norm));
        let mut contents = Fill::Values(vec![sum]).tensor(graph.ty(graph.nodes[0].args[0]), &mut random);
        contents.data[0] = sum;
        let memory = run(&graph, &[contents]);
        let found = &memory.get(graph.nodes[0].outs[0]).data;
        assert_eq!(found[1], sum.sqrt());
        assert!(found[0] <= 1.0 && found[0] * found[1] <= max_norm, "{found:?}");
        assert!(found[1] >= max_norm || found[0] >= 0.999, "a norm below the limit must not be scaled: {found:?}");
    }
}
