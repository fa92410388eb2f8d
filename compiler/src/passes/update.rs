//! Emits the optimizer: one `update` for every trained tensor.
//!
//! Before: a pruned and fused graph with a `grad:` result per trained tensor. After: no `grad:` results; every
//! trained tensor is updated, its states are declared, and the inputs `hyper` and `rng` exist.
//!
//! With one micro-batch a step the updates stand in the same graph. With several, gradients are added to states and
//! a second graph, run once a step, updates from them and clears them; every use of a shared weight has a sum of its
//! own there, so that sums are added in one order whatever the number of micro-batches.
//!
//! An int8 weight or int32 bias gets an `i8_update`, by rule `sgd` rounded at random and by `sgd-accumulate` to the
//! nearest with a state for what is left. Its const `<tensor>.factor` holds a factor for every output channel; the
//! request says what.

use super::differentiate::GRAD;
use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Builder, Graph, Kind, Node, Region, Value, ValueInfo};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::ir::verify::Finding;
use crate::optimizer::{RULES, StateDef, rule_index};
use std::collections::HashMap;
use tinyforge_plan::{DType, GRADIENT_SUM};

/// What the optimizer is asked to do.
#[derive(Clone, PartialEq, Debug)]
pub struct Optimizer {
    /// Index into the optimizer table.
    pub rule: usize,
    /// Decay of the first moment, or momentum.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of matrices; vectors (biases, norms) are not decayed.
    pub weight_decay: f64,
    /// The largest global gradient norm; `None` does not clip.
    pub clip: Option<f64>,
}

impl Optimizer {
    /// The rule of this name with nothing beside it: no momentum, decay or clipping.
    ///
    /// # Panics
    /// The table has no such rule.
    pub fn plain(rule: &str) -> Optimizer {
        let rule = rule_index(rule).expect("the table has the rule");
        Optimizer { rule, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: None }
    }
}

/// How global-norm clipping knows the norm before the first update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClipBy {
    /// All gradients are kept until the norm is known.
    Keeping,
    /// The gradients are computed twice: once for the norm, once for the updates.
    SecondBackward,
}

/// Whether the update changes whole numbers.
fn is_integer(ty: &Type) -> bool {
    matches!(ty.dtype, DType::I8 | DType::I32)
}

/// Refuses what the updates of `trained` cannot do.
///
/// # Errors
/// The graph trains whole numbers by another rule than plain descent, or others by a rule for whole numbers.
pub fn check(graph: &Graph, optimizer: &Optimizer, trained: &[String]) -> Result<(), Vec<Finding>> {
    let rule = &RULES[optimizer.rule];
    let is_accumulating = rule.eval.is_none();
    let suits_integers = (rule.name == "sgd" || is_accumulating) && optimizer.weight_decay == 0.0;
    let suits = |name: &String| match graph.find(name) {
        Some(v) if is_integer(graph.ty(v)) => suits_integers && optimizer.clip.is_none(),
        Some(_) => !is_accumulating,
        None => true,
    };
    match trained.iter().find(|name| !suits(name)) {
        Some(name) if is_accumulating && suits_integers && optimizer.clip.is_none() => {
            let message = format!("`{name}` is not stored in whole numbers, which rule {} is for", rule.name);
            Err(vec![Finding { node: None, message }])
        }
        Some(name) => {
            let message = format!(
                "`{name}` is stored in whole numbers, which plain sgd trains: with or without momentum and kept errors, \
                 without weight decay and clipping"
            );
            Err(vec![Finding { node: None, message }])
        }
        None => Ok(()),
    }
}

/// What the rule keeps for every trained tensor.
pub fn states(optimizer: &Optimizer) -> &'static [StateDef] {
    let attrs = [("rule", optimizer.rule.into()), ("beta1", optimizer.beta1.into())];
    (RULES[optimizer.rule].states)(&Attrs::of(Op::Update.def().attrs, &attrs))
}

/// Emits updates into `graph`; with several micro-batches, returns the graph that updates.
pub fn run(graph: &mut Graph, optimizer: &Optimizer, clip_by: ClipBy, micro_batches: u32) -> Option<Graph> {
    let grads: Vec<(String, Value)> = take_gradients(graph);
    let order = backward_order(graph, &grads);
    if micro_batches > 1 {
        let mut finish = Graph::new(1);
        let sums = accumulate(graph, &mut finish, &grads);
        emit(&mut finish, optimizer, &sums, &order);
        clear(&mut finish);
        return Some(finish);
    }
    match (optimizer.clip, clip_by) {
        (Some(_), ClipBy::SecondBackward) => twice(graph, optimizer, &grads, &order),
        _ => emit(graph, optimizer, &grads, &order),
    }
    None
}

fn take_gradients(graph: &mut Graph) -> Vec<(String, Value)> {
    let all = std::mem::take(&mut graph.results);
    let (grads, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| name.starts_with(GRAD));
    graph.results = others;
    grads.into_iter().map(|(name, v)| (name[GRAD.len()..].to_string(), v)).collect()
}

/// Indices of the gradients in the order in which backward has them, so that each can be added to the norm when it
/// appears. The order is that of one micro-batch, whatever their number.
fn backward_order(graph: &Graph, grads: &[(String, Value)]) -> Vec<usize> {
    let defs = graph.definitions();
    let mut order: Vec<usize> = (0..grads.len()).collect();
    order.sort_by_key(|&i| defs[grads[i].1.index()]);
    order
}

/// Norm, factor and updates from gradients that are all there.
fn emit(graph: &mut Graph, optimizer: &Optimizer, grads: &[(String, Value)], order: &[usize]) {
    let clip = optimizer.clip.map(|max_norm| clip_scale(graph, max_norm, grads, order));
    updates(graph, optimizer, grads, clip);
}

fn clip_scale(graph: &mut Graph, max_norm: f64, grads: &[(String, Value)], order: &[usize]) -> Value {
    let mut b = Builder::new(graph);
    b.at(0, Region::Update);
    let mut sum: Option<Value> = None;
    for (name, grad) in order.iter().map(|&i| &grads[i]) {
        let args: Vec<Value> = [Some(*grad), sum].into_iter().flatten().collect();
        sum = Some(b.push1(&format!("{name}.norm_sq"), Op::NormSq, &args, &[]));
    }
    let sum = sum.expect("a scheme trains at least one tensor");
    let scale = b.push1("clip", Op::ClipScale, &[sum], &[("max_norm", max_norm.into())]);
    graph.results.push(("clip".to_string(), scale));
    scale
}

/// A second copy of all backward nodes gives the gradients that the updates read.
fn twice(graph: &mut Graph, optimizer: &Optimizer, grads: &[(String, Value)], order: &[usize]) {
    let max_norm = optimizer.clip.expect("called for clipping");
    let backward: Vec<Node> = graph.nodes.iter().filter(|n| n.region == Region::Backward).cloned().collect();
    let clip = clip_scale(graph, max_norm, grads, order);
    let mut copies: HashMap<Value, Value> = HashMap::new();
    for node in backward {
        let args = node.args.iter().map(|a| copies.get(a).copied().unwrap_or(*a)).collect();
        let mut outs = Vec::new();
        for out in &node.outs {
            let info = graph.info(*out).clone();
            let copy = graph.add_value(ValueInfo { name: format!("{}'", info.name), ..info });
            copies.insert(*out, copy);
            outs.push(copy);
        }
        graph.nodes.push(Node { args, outs, ..node });
    }
    let again: Vec<_> = grads.iter().map(|(name, v)| (name.clone(), copies[v])).collect();
    updates(graph, optimizer, &again, Some(clip));
}

fn find_or_declare(b: &mut Builder, kind: Kind, name: &str, ty: Type) -> Value {
    match b.graph.find(name) {
        Some(v) => v,
        None => b.declare(kind, name, ty),
    }
}

fn updates(graph: &mut Graph, optimizer: &Optimizer, grads: &[(String, Value)], clip: Option<Value>) {
    let blocks = graph.nodes.iter().fold(HashMap::new(), |mut map, n| {
        n.args.iter().filter(|a| graph.info(**a).decl == Some(Kind::Weight)).for_each(|&a| {
            map.insert(a, n.block);
        });
        map
    });
    let mut b = Builder::new(graph);
    let hyper = find_or_declare(&mut b, Kind::Input, "hyper", Type::f32(&[4]));
    let rng = find_or_declare(&mut b, Kind::Input, "rng", Type::new(DType::U32, &[4]));
    for (stream, (name, grad)) in grads.iter().enumerate() {
        let w = b.graph.find(name).expect("a gradient belongs to a declared weight");
        let block = blocks.get(&w).copied().unwrap_or(0);
        if is_integer(b.graph.ty(w)) {
            b.at(block, Region::Update);
            integer_update(&mut b, optimizer, name, [w, *grad, hyper, rng], stream);
            continue;
        }
        let trained = b.graph.ty(*grad).clone();
        let index = b.graph.find(&format!("{name}.index"));
        let is_matrix = b.graph.ty(w).shape.len() > 1;
        let mut attrs: Vec<(&str, Attr)> = vec![
            ("rule", optimizer.rule.into()),
            ("beta1", optimizer.beta1.into()),
            ("beta2", optimizer.beta2.into()),
            ("eps", optimizer.eps.into()),
            ("weight_decay", if is_matrix { optimizer.weight_decay } else { 0.0 }.into()),
            ("stream", stream.into()),
            ("clip", clip.is_some().into()),
            ("sub", index.is_some().into()),
        ];
        let states = states(optimizer);
        attrs.push(("states", states.len().into()));
        let mut args = vec![w];
        for state in states {
            args.push(b.declare(Kind::State, &format!("{name}.{}", state.name), (state.ty)(&trained)));
        }
        args.extend([*grad, hyper, rng]);
        args.extend(clip);
        args.extend(index);
        b.at(block, Region::Update);
        b.push(name, Op::Update, &args, &attrs);
    }
}

fn integer_update(
    b: &mut Builder,
    optimizer: &Optimizer,
    name: &str,
    [w, grad, hyper, rng]: [Value; 4],
    stream: usize,
) {
    let (ty, trained) = (b.graph.ty(w).clone(), b.graph.ty(grad).clone());
    let is_depthwise = ty.shape.len() == 3;
    let channels = if is_depthwise { ty.cols() } else { ty.shape[0] };
    let mut args = vec![w];
    for state in states(optimizer) {
        args.push(b.declare(Kind::State, &format!("{name}.{}", state.name), (state.ty)(&trained)));
    }
    let factor = b.declare(Kind::Const, &format!("{name}.factor"), Type::f32(&[channels]));
    let index = b.graph.find(&format!("{name}.index"));
    let attrs = [
        ("stream", stream.into()),
        ("sub", index.is_some().into()),
        ("channel_last", is_depthwise.into()),
        ("accumulate", RULES[optimizer.rule].eval.is_none().into()),
        ("momentum", optimizer.beta1.into()),
    ];
    args.extend([grad, factor, hyper, rng].into_iter().chain(index));
    b.push(name, Op::I8Update, &args, &attrs);
}

/// Adds each gradient to states of `graph`, declares those in `finish`, and returns their sums there.
fn accumulate(graph: &mut Graph, finish: &mut Graph, grads: &[(String, Value)]) -> Vec<(String, Value)> {
    let mut sums = Vec::new();
    let reads = reads(graph, grads);
    let (mut step, mut last) = (Builder::new(graph), Builder::new(finish));
    for (name, grad) in grads {
        let w = step.graph.find(name).expect("a gradient belongs to a declared weight");
        let index = step.graph.find(&format!("{name}.index")).map(|v| step.graph.info(v).clone());
        last.declare(Kind::Weight, name, step.graph.ty(w).clone());
        if let Some(info) = index {
            last.declare(Kind::Const, &info.name, info.ty);
        }
        let leaves = leaves(step.graph, &reads, *grad);
        let mut sum: Option<Value> = None;
        for (i, leaf) in leaves.into_iter().enumerate() {
            let state = format!("{name}{GRADIENT_SUM}{}", if i == 0 { String::new() } else { format!(".{i}") });
            accumulate_leaf(&mut step, leaf, &state, reads[leaf.index()] == 1);
            let part = last.declare(Kind::State, &state, step.graph.ty(leaf).clone());
            sum = Some(match sum {
                None => part,
                Some(sum) => last.push1(&format!("{name}.grad"), Op::Add, &[sum, part], &[]),
            });
        }
        sums.push((name.clone(), sum.expect("a gradient has at least one part")));
    }
    finish.nodes.iter_mut().for_each(|n| n.region = Region::Update);
    graph.sweep(|info| info.decl == Some(Kind::Input));
    sums
}

/// How often each value is read, by nodes, as a gradient or as a result.
fn reads(graph: &Graph, grads: &[(String, Value)]) -> Vec<usize> {
    let mut reads = vec![0; graph.values.len()];
    let by_nodes = graph.nodes.iter().flat_map(|n| &n.args);
    let by_name = grads.iter().chain(&graph.results).map(|(_, v)| v);
    by_nodes.chain(by_name).for_each(|v| reads[v.index()] += 1);
    reads
}

/// The contributions that `add` nodes (or an accumulator operand) put together into a gradient. What something else
/// reads too is one contribution.
fn leaves(graph: &Graph, reads: &[usize], grad: Value) -> Vec<Value> {
    let def = graph.nodes.iter().find(|n| n.outs.contains(&grad) && reads[grad.index()] == 1);
    match def {
        Some(node) if node.op == Op::Add => node.args.iter().flat_map(|&a| leaves(graph, reads, a)).collect(),
        Some(node) => match node.op.def().acc {
            Some(acc) if acc.arg < node.args.len() && node.outs[acc.out] == grad => {
                let mut parts = leaves(graph, reads, node.args[acc.arg]);
                parts.push(grad);
                parts
            }
            _ => vec![grad],
        },
        None => vec![grad],
    }
}

/// Makes `leaf` start from the state where nothing else reads it, or adds it, and stores the sum there.
fn accumulate_leaf(b: &mut Builder, leaf: Value, state: &str, read_once: bool) {
    let s = b.declare(Kind::State, state, b.graph.ty(leaf).clone());
    let at = b.graph.nodes.iter().position(|n| n.outs.contains(&leaf)).expect("a gradient is a node's result");
    b.at(0, Region::Backward);
    let node = &mut b.graph.nodes[at];
    let mut stored = leaf;
    match node.op.def().acc {
        Some(acc) if read_once && node.outs[acc.out] == leaf => {
            node.args.truncate(acc.arg);
            node.args.push(s);
            // Only sums that are otherwise taken whole have this attribute.
            node.attrs.set("running", true.into());
        }
        _ => stored = b.push1(&format!("{state}.new"), Op::Add, &[s, leaf], &[]),
    }
    b.push(state, Op::Assign, &[s, stored], &[]);
}

fn clear(finish: &mut Graph) {
    let sums: Vec<Value> =
        finish.declared(Kind::State).filter(|v| finish.info(*v).name.contains(GRADIENT_SUM)).collect();
    let mut b = Builder::new(finish);
    b.at(0, Region::Update);
    for s in sums {
        b.push("clear", Op::Zero, &[s], &[]);
    }
}
