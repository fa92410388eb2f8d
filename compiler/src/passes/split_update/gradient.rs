//! The gradient of a large tensor, one panel of its rows at a time.
//!
//! What gives it (the head's loss, the lookup of an embedding, and their sum over uses and micro-batches) is asked for
//! a panel alone right before it is read, and for the norm as well as for the update. The terms of every element stay
//! the same, and their order.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Builder, Graph, Node, Value, ValueInfo};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use std::collections::{HashMap, HashSet};

/// Makes the gradients that are read by panels alone, or for the norm, in panels of `rows_of` their type. Whether there
/// is one.
pub(super) fn run(graph: &mut Graph, rows_of: impl Fn(&Type) -> Option<u32>) -> bool {
    let found = gradients(graph, &rows_of);
    if found.is_empty() {
        return false;
    }
    let templates = templates(graph, &found);
    let nodes = std::mem::take(&mut graph.nodes);
    let mut maker = Maker { b: Builder::new(graph), templates };
    for mut node in nodes {
        let read = gradient_operand(&node).and_then(|at| Some((at, *found.get(&node.args[at])?)));
        match read {
            None => maker.b.graph.nodes.push(node),
            Some((at, block)) => {
                node.block = block;
                maker.b.at(block, node.region);
                match node.op {
                    Op::NormSq => maker.norm(node, &rows_of),
                    _ => maker.update(node, at),
                }
            }
        }
    }
    true
}

/// Which operand of an update by a panel, or of a norm, is the gradient.
fn gradient_operand(node: &Node) -> Option<usize> {
    match node.op {
        Op::NormSq => Some(0),
        Op::Update if node.attrs.size("panel_rows") > 0 => Some(1 + node.attrs.size("states")),
        _ => None,
    }
}

/// The gradients that can be made by panels, each with the block of the last node that adds to it: there all of them
/// are made, since they are there before.
fn gradients(graph: &Graph, rows_of: impl Fn(&Type) -> Option<u32>) -> HashMap<Value, u32> {
    let uses = graph.uses();
    let results: HashSet<Value> = graph.results.iter().map(|&(_, v)| v).collect();
    let is_read_by_panels = |v: Value| {
        let reads_it = |r: &u32| {
            let node = &graph.nodes[*r as usize];
            let count = node.args.iter().filter(|a| **a == v).count();
            count == 1 && gradient_operand(node).is_some_and(|at| node.args[at] == v)
        };
        !uses[v.index()].is_empty() && uses[v.index()].iter().all(reads_it) && !results.contains(&v)
    };
    let parts = Parts { graph, defs: graph.definitions(), uses: &uses, results: &results };
    let all = graph.nodes.iter().flat_map(|n| n.outs.iter().copied());
    let large = all.filter(|&v| rows_of(graph.ty(v)).is_some() && is_read_by_panels(v));
    large.filter_map(|v| Some((v, graph.nodes[parts.last(v)? as usize].block))).collect()
}

/// What gradients are sums of.
struct Parts<'g> {
    graph: &'g Graph,
    defs: Vec<Option<u32>>,
    uses: &'g [Vec<u32>],
    results: &'g HashSet<Value>,
}

impl Parts<'_> {
    /// The last node that adds to `v`, if all that do can do so for a panel, and nothing else reads what they give.
    fn last(&self, v: Value) -> Option<u32> {
        let at = self.defs[v.index()]?;
        let node = &self.graph.nodes[at as usize];
        let parts = parts(node, v)?;
        let is_own = |p: &Value| self.uses[p.index()] == [at] && !self.results.contains(p);
        if !parts.iter().all(is_own) || (parts.len() == 2 && parts[0] == parts[1]) {
            return None;
        }
        let before = parts.iter().map(|&p| self.last(p)).collect::<Option<Vec<u32>>>()?;
        before.into_iter().chain((node.op != Op::Add).then_some(at)).max()
    }
}

/// The gradients that the node of gradient `v` adds to or adds up; nothing where it cannot be made by panels.
fn parts(node: &Node, v: Value) -> Option<&[Value]> {
    match node.op {
        Op::Add => Some(&node.args),
        Op::EmbeddingGrad if node.attrs.size("panel_rows") == 0 => Some(&node.args[2..]),
        Op::LinearCrossEntropyGrad if node.outs.get(2) == Some(&v) => Some(&node.args[4..]),
        _ => None,
    }
}

/// For every part of a gradient the node that makes it, which is to be asked for a panel alone. The heads' losses give
/// up the gradient of their weight and give the sums of their logits instead.
fn templates(graph: &mut Graph, found: &HashMap<Value, u32>) -> HashMap<Value, Node> {
    let defs = graph.definitions();
    let mut templates = HashMap::new();
    let mut left: Vec<Value> = found.keys().copied().collect();
    left.sort_unstable();
    while let Some(v) = left.pop() {
        let at = defs[v.index()].expect("it was followed to its node") as usize;
        let node = graph.nodes[at].clone();
        left.extend(parts(&node, v).expect("it can be made by panels"));
        templates.insert(v, if node.op == Op::LinearCrossEntropyGrad { take_grad_w(graph, at) } else { node });
    }
    templates
}

/// Takes the gradient of the weight from the loss at node `at`; gives a node that makes it from the sums.
fn take_grad_w(graph: &mut Graph, at: usize) -> Node {
    let node = graph.nodes[at].clone();
    let ty = Type::f32(&[graph.ty(node.args[0]).rows(), 3]);
    let name = format!("{}.sums", graph.info(node.outs[0]).name);
    let name = Builder::new(graph).fresh(&name);
    let sums = graph.add_value(ValueInfo { name, ty, decl: None });
    let head = &mut graph.nodes[at];
    head.args.truncate(4);
    head.outs.truncate(2);
    head.outs.push(sums);
    head.attrs.set("grad_w", false.into());
    head.attrs.set("sums", true.into());
    let args = [&node.args[..4], &[sums], &node.args[4..]].concat();
    let shared: Vec<(&str, Attr)> = ["compute", "seq"].map(|name| (name, node.attrs.int(name).into())).into();
    let op = Op::LinearCrossEntropyGradW;
    Node { op, args, attrs: Attrs::of(op.def().attrs, &shared), ..node }
}

struct Maker<'g> {
    b: Builder<'g>,
    templates: HashMap<Value, Node>,
}

impl Maker<'_> {
    /// Rows `[first, rows]` of a gradient.
    fn panel(&mut self, v: Value, [first, rows]: [u32; 2]) -> Value {
        let template = self.templates[&v].clone();
        let args: Vec<Value> = (template.args.iter())
            .map(|&a| if self.templates.contains_key(&a) { self.panel(a, [first, rows]) } else { a })
            .collect();
        let mut attrs: Vec<(&str, Attr)> = template.attrs.iter().collect();
        if template.op != Op::Add {
            attrs.retain(|(name, _)| !["first_row", "panel_rows"].contains(name));
            attrs.extend([("first_row", first.into()), ("panel_rows", rows.into())]);
        }
        let name = format!("{}.panel", self.b.graph.info(v).name);
        self.b.push1(&name, template.op, &args, &attrs)
    }

    /// An update by a panel of its gradient.
    fn update(&mut self, node: Node, at: usize) {
        let rows = ["first_row", "panel_rows"].map(|name| node.attrs.size(name) as u32);
        let mut args = node.args.clone();
        args[at] = self.panel(node.args[at], rows);
        self.b.graph.nodes.push(Node { args, ..node });
    }

    /// A norm, panel after panel.
    fn norm(&mut self, node: Node, rows_of: impl Fn(&Type) -> Option<u32>) {
        let ty = self.b.graph.ty(node.args[0]).clone();
        let height = rows_of(&ty).expect("it is large") as usize;
        let name = self.b.graph.info(node.outs[0]).name.clone();
        let mut sum = node.args.get(1).copied();
        for first in (0..ty.rows()).step_by(height) {
            let rows = (ty.rows() - first).min(height as u32);
            let args: Vec<Value> = [Some(self.panel(node.args[0], [first, rows])), sum].into_iter().flatten().collect();
            match first + rows == ty.rows() {
                true => self.b.graph.nodes.push(Node { args, ..node.clone() }),
                false => sum = Some(self.b.push1(&name, Op::NormSq, &args, &[])),
            }
        }
    }
}
