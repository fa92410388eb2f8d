//! Reverse mode at compile time.
//!
//! Before: a forward graph with a result `loss`, one number per token or sample.
//! After: for every weight that the loss depends on (of floats, int8, or int32 biases), a result `grad:<weight>`, the
//! gradient of the sum of `loss`. Nodes whose row has a `tape` flag give the further result that their gradient reads.
//! Contributions to one value are added in the order in which backward meets them: fan-in, tied and shared
//! weights alike. What a gradient reads is what the op's row declares, nothing else. Operands for which a row gives
//! no gradient (loss weights, targets, rotation tables) end the way: a weight that is read only through them has no
//! result.

use crate::ir::graph::{Builder, Graph, Kind, Region, Value, ValueInfo};
use crate::ir::ops::{Op, Vjp};
use crate::ir::verify::Finding;
use tinyforge_plan::DType;

/// Prefix of the results that are gradients.
pub const GRAD: &str = "grad:";

/// Appends the backward nodes.
///
/// # Errors
/// There is no result `loss`, it is no vector, or an op (or a further result of one) on the way from a weight to the
/// loss has no gradient.
pub fn run(graph: &mut Graph) -> Result<(), Vec<Finding>> {
    let Some(loss) = graph.result("loss") else {
        return Err(vec![Finding { node: None, message: "there is no result `loss` to differentiate".to_string() }]);
    };
    if graph.ty(loss).shape.len() != 1 || !graph.ty(loss).dtype.is_float() {
        let message = format!("result `loss` must be one number per token or sample, found {}", graph.ty(loss));
        return Err(vec![Finding { node: None, message }]);
    }
    let mut needs = needs_gradient(graph);
    let reaches = reaches(graph, loss);
    check(graph, &needs, &reaches)?;
    add_tapes(graph, |v| needs[v.index()] && reaches[v.index()]);
    needs.resize(graph.values.len(), false);
    let forward = graph.nodes.clone();
    let weights: Vec<Value> = graph.declared(Kind::Weight).filter(|v| needs[v.index()] && reaches[v.index()]).collect();
    let mut tape = Tape { grads: vec![None; graph.values.len()], builder: Builder::new(graph) };
    tape.seed(loss);
    for (i, node) in forward.iter().enumerate().rev() {
        let grads: Vec<Option<Value>> = node.outs.iter().map(|o| tape.grads[o.index()]).collect();
        let wanted: Vec<bool> = node.args.iter().map(|a| needs[a.index()]).collect();
        let Some(gradient) = node.op.def().vjp else { continue };
        if grads.iter().all(Option::is_none) || !wanted.iter().any(|&w| w) {
            continue;
        }
        if grads[1..].iter().any(Option::is_some) {
            let message = format!("only the first result of {} has a gradient", node.op.name());
            return Err(vec![Finding { node: Some(i), message }]);
        }
        tape.builder.at(node.block, Region::Backward);
        let contributions = gradient(&mut Vjp {
            builder: &mut tape.builder,
            op: node.op,
            args: &node.args,
            outs: &node.outs,
            attrs: &node.attrs,
            grads: &grads,
            needs: &wanted,
        });
        for (k, &arg) in node.args.iter().enumerate() {
            if let (true, Some(Some(contribution))) = (wanted[k], contributions.get(k)) {
                tape.add(arg, *contribution);
            }
        }
    }
    let grads = tape.grads;
    for w in weights {
        let Some(grad) = grads[w.index()] else { continue };
        let name = format!("{GRAD}{}", graph.info(w).name);
        graph.results.push((name, grad));
    }
    Ok(())
}

struct Tape<'g> {
    grads: Vec<Option<Value>>,
    builder: Builder<'g>,
}

impl Tape<'_> {
    fn seed(&mut self, loss: Value) {
        let block = self.builder.graph.nodes.last().map_or(0, |n| n.block);
        let len = self.builder.graph.ty(loss).elems() as usize;
        self.builder.at(block, Region::Backward);
        let name = format!("{}.grad", self.builder.graph.info(loss).name);
        let ones = self.builder.push1(&name, Op::Fill, &[], &[("len", len.into()), ("value", 1.0.into())]);
        self.grads[loss.index()] = Some(ones);
    }

    fn add(&mut self, v: Value, contribution: Value) {
        self.grads[v.index()] = Some(match self.grads[v.index()] {
            None => contribution,
            Some(sum) => {
                let name = format!("{}.grad", self.builder.graph.info(v).name);
                self.builder.push1(&name, Op::Add, &[sum, contribution], &[])
            }
        });
    }
}

/// Which values depend on a weight by way of values that have a gradient: floats, and int8 images, whose gradient is
/// f32. The int32 tensors among weights are biases; all others are indices.
fn needs_gradient(graph: &Graph) -> Vec<bool> {
    let has_gradient = |dtype: DType| dtype.is_float() || dtype == DType::I8;
    let is_weight =
        |v: &ValueInfo| v.decl == Some(Kind::Weight) && (has_gradient(v.ty.dtype) || v.ty.dtype == DType::I32);
    let mut needs: Vec<bool> = graph.values.iter().map(is_weight).collect();
    for node in &graph.nodes {
        if node.args.iter().any(|a| needs[a.index()]) {
            node.outs.iter().for_each(|o| needs[o.index()] = has_gradient(graph.ty(*o).dtype));
        }
    }
    needs
}

/// Sets the `tape` flag of nodes that are differentiated.
fn add_tapes(graph: &mut Graph, wanted: impl Fn(Value) -> bool) {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let Some(flag) = node.op.def().tape.filter(|flag| !node.attrs.flag(flag) && wanted(node.outs[0])) else {
            continue;
        };
        let (op, args, base) = (node.op, graph.types(&node.args), graph.info(node.outs[0]).name.clone());
        graph.nodes[i].attrs.set(flag, true.into());
        let tys = (op.def().infer)(&args, &graph.nodes[i].attrs).expect("the flag only adds a result");
        let name = Builder::new(graph).fresh(&format!("{base}.{flag}"));
        let ty = tys.last().expect("the op has results").clone();
        let out = graph.add_value(ValueInfo { name, ty, decl: None });
        graph.nodes[i].outs.push(out);
    }
}

/// Which values the loss depends on.
fn reaches(graph: &Graph, loss: Value) -> Vec<bool> {
    let mut reaches = vec![false; graph.values.len()];
    reaches[loss.index()] = true;
    for node in graph.nodes.iter().rev() {
        if node.outs.iter().any(|o| reaches[o.index()]) {
            node.args.iter().for_each(|a| reaches[a.index()] = true);
        }
    }
    reaches
}

fn check(graph: &Graph, needs: &[bool], reaches: &[bool]) -> Result<(), Vec<Finding>> {
    let missing = graph.nodes.iter().enumerate().filter(|(_, node)| {
        let on_the_way = node.outs.iter().any(|o| needs[o.index()] && reaches[o.index()]);
        on_the_way && node.op.def().vjp.is_none()
    });
    let findings: Vec<Finding> = missing
        .map(|(i, node)| Finding { node: Some(i), message: format!("{} has no gradient", node.op.name()) })
        .collect();
    if findings.is_empty() { Ok(()) } else { Err(findings) }
}
