//! What the verifier accepts, nothing later panics on: shape rules against the definitions they guard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use tinyforge_compiler::ir::attrs::{Attr, Attrs};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::ir::verify::check_type;
use tinyforge_tests::samples::{Sample, samples};

/// Most elements of a result for which the definition is run.
const ELEMS_MAX: u64 = 1 << 16;

/// Shapes near a shape, all of them legal.
fn shapes_near(shape: &[u32]) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for i in 0..shape.len() {
        for d in [1, shape[i] + 1, shape[i] * 2, shape[i].saturating_sub(1).max(1), 1 << 20] {
            let mut changed = shape.to_vec();
            changed[i] = d;
            all.push(changed);
        }
    }
    all.push(shape[1..].to_vec());
    all.push([&[1], shape].concat());
    all.push([shape, &[1]].concat());
    all.push(vec![i32::MAX as u32]);
    all.push(vec![i32::MAX as u32, 512]);
    all.push(vec![1 << 20, 1 << 20]);
    all.retain(|s| check_type(&Type::f32(s)).is_ok());
    all
}

const NUMBERS: [i64; 9] = [0, 1, 2, 3, -1, 1000, 1 << 16, i32::MAX as i64, i32::MIN as i64];

/// Why a node with these operand types and attributes breaks the promise, if it does.
fn broken(op: Op, args: &[Type], attrs: &Attrs) -> Option<String> {
    let describe = |what: &str| {
        let tys: Vec<String> = args.iter().map(Type::to_string).collect();
        let attrs: Vec<String> = attrs.iter().map(|(n, v)| format!("{n}={v}")).collect();
        Some(format!("{} {} {{{}}}: {what}", op.name(), tys.join(", "), attrs.join(", ")))
    };
    if args.len() < op.def().arity.0 || args.len() > op.def().arity.1 {
        return None;
    }
    let inferred = match catch_unwind(AssertUnwindSafe(|| (op.def().infer)(args, attrs))) {
        Ok(inferred) => inferred.ok()?,
        Err(_) => return describe("the shape rule panics"),
    };
    let small = |tys: &[Type]| tys.iter().all(|t| check_type(t).is_ok() && t.elems() <= ELEMS_MAX);
    if catch_unwind(|| (op.def().mutates)(attrs)).is_err() {
        return describe("`mutates` panics");
    }
    if !small(&inferred) || !small(args) {
        return None;
    }
    let filled = |ty: &Type| {
        let mut tensor = Tensor::zeros(ty);
        if ty.dtype.is_float() {
            tensor.data.fill(0.5);
        }
        tensor
    };
    let mut contents: Vec<Tensor> = args.iter().map(filled).collect();
    let mut outs: Vec<Tensor> = inferred.iter().map(Tensor::zeros).collect();
    match catch_unwind(AssertUnwindSafe(|| (op.def().eval)(&mut contents, &mut outs, attrs))) {
        Ok(()) => None,
        Err(_) => describe("accepted, but the definition panics"),
    }
}

fn check_near(sample: &Sample, failures: &mut Vec<String>) {
    let node = sample.graph.nodes.last().expect("a sample has a node");
    let tys = sample.graph.types(&node.args);
    for i in 0..tys.len() {
        for shape in shapes_near(&tys[i].shape) {
            let mut tys = tys.clone();
            tys[i].shape = shape;
            failures.extend(broken(node.op, &tys, &node.attrs));
        }
        let mut fewer = tys.clone();
        fewer.remove(i);
        failures.extend(broken(node.op, &fewer, &node.attrs));
    }
    if let Some(last) = tys.last() {
        failures.extend(broken(node.op, &[&tys[..], std::slice::from_ref(last)].concat(), &node.attrs));
    }
    for (name, value) in node.attrs.iter() {
        for number in NUMBERS {
            let mut attrs = node.attrs.clone();
            let new = if let Attr::Int(_) = value { Attr::Int(number) } else { Attr::Float(number as f64) };
            attrs.set(name, new);
            failures.extend(broken(node.op, &tys, &attrs));
        }
    }
}

#[test]
fn accepted_nodes_have_a_meaning() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = Vec::new();
    for &op in Op::ALL {
        let before = failures.len();
        samples(op).iter().for_each(|sample| check_near(sample, &mut failures));
        // One op's faults are told by a few of them.
        failures.truncate(before + 6);
    }
    std::panic::set_hook(hook);
    assert!(failures.is_empty(), "{} faults:\n{}", failures.len(), failures.join("\n"));
}
