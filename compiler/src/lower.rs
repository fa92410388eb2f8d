//! Placed graphs to a plan: names and offsets for values, one step for every node that does something.
//! Decides nothing.

use crate::ir::attrs::Attr;
use crate::ir::graph::{Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::passes::live;
use crate::passes::place::{Needs, Placement};
use crate::target::Target;
use std::collections::HashMap;
use tinyforge_plan::{
    Entry, Holder, Kernels, Named, Number, Part, Peak, Plan, Shape, Source, Space, Step, Stored, StoredKind, Tensor,
};

/// A graph with everything that placement said of it.
pub struct Placed<'a> {
    /// The entry's name.
    pub name: &'a str,
    /// The code.
    pub graph: &'a Graph,
    /// Scratch of every node.
    pub scratch: &'a [u64],
    /// Places, counted from the end of the stored tensors.
    pub placement: &'a Placement,
}

/// What a plan is put together from.
pub struct Input<'a> {
    /// The plan's name.
    pub name: &'a str,
    /// The entries.
    pub entries: Vec<Placed<'a>>,
    /// Where a weight or constant comes from.
    pub source: &'a dyn Fn(&str) -> Source,
    /// Worker threads.
    pub threads: u32,
    /// The model's files.
    pub files: &'a [String],
    /// What the plan is made for.
    pub target: Target,
    /// States that have a place whether an entry mentions them or not, before all others.
    pub kept: &'a [(String, Type)],
}

fn number(attr: Attr) -> Number {
    match attr {
        Attr::Int(v) => Number::Int(v),
        Attr::Float(v) => Number::Float(v),
    }
}

fn attrs_of(node: &Node) -> Vec<(String, Number)> {
    node.attrs.iter().map(|(name, value)| (name.to_string(), number(value))).collect()
}

/// What every node needs beside its operands, asked of the device's kernels.
///
/// # Errors
/// There is no kernel for a node; the message names it.
pub fn needs(graph: &Graph, kernels: &dyn Kernels) -> Result<Needs, String> {
    fn shape(ty: &Type) -> Shape<'_> {
        Shape { dtype: ty.dtype, dims: &ty.shape }
    }
    let mut needs = Needs::default();
    for node in &graph.nodes {
        if is_free(node.op) {
            needs.scratch.push(0);
            needs.leads.push(None);
            continue;
        }
        let args: Vec<Shape> = node.args.iter().map(|&v| shape(graph.ty(v))).collect();
        let outs: Vec<Shape> = node.outs.iter().map(|&v| shape(graph.ty(v))).collect();
        let (name, attrs) = (node.op.name(), attrs_of(node));
        let found = kernels.scratch_bytes(name, &args, &outs, &attrs);
        needs.scratch.push(found.map_err(|why| format!("{name} for {}: {why}", label(graph, node)))?);
        needs.leads.push(kernels.lead_bytes(name, &args, &outs, &attrs));
    }
    Ok(needs)
}

/// Ops that may come to nothing, and then have no kernel call.
fn is_free(op: Op) -> bool {
    matches!(op, Op::Reshape | Op::Assign)
}

fn label(graph: &Graph, node: &Node) -> String {
    let named = node.outs.first().or(node.args.first());
    named.map_or(String::new(), |&v| graph.info(v).name.clone())
}

/// Puts the plan together.
pub fn run(input: &Input) -> Plan {
    let target = &input.target;
    let (stored, near) = stored(input);
    let base = stored.iter().map(|s| target.align(s.tensor.end())).max().unwrap_or(0);
    let by_name: HashMap<&str, &Stored> = stored.iter().map(|s| (s.name.as_str(), s)).collect();
    let entries: Vec<Entry> = input.entries.iter().map(|p| entry(p, base, &by_name, stored.len() as u32)).collect();
    let arena_bytes = entries.iter().map(|e| e.peak.bytes).max().unwrap_or(base);
    Plan {
        name: input.name.to_string(),
        spaces: spaces(target, near, target.align(arena_bytes)),
        align_bytes: target.align_bytes,
        files: input.files.to_vec(),
        entries,
        fixed: Vec::new(),
        threads: input.threads,
        stored,
    }
}

/// The near memory from `near` to `end`, and before it the one that is not written, where the target has it.
fn spaces(target: &Target, near: u64, end: u64) -> Vec<Space> {
    let space = |name: &str, first_byte, end: u64, is_written| Space {
        name: name.to_string(),
        first_byte,
        bytes: end - first_byte,
        is_written,
    };
    let fixed = target.fixed.map(|name| space(name, 0, near, false));
    fixed.into_iter().chain([space(target.near, near, end, true)]).collect()
}

/// All stored tensors of all entries, and the first address of the near memory. In one memory weights and constants
/// come first, so that their places do not depend on what is trained, then states; where there is a memory for what
/// stays, that comes before all.
fn stored(input: &Input) -> (Vec<Stored>, u64) {
    let mut found: Vec<Stored> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    for (i, (name, ty)) in input.kept.iter().enumerate() {
        let tensor = Tensor { dtype: ty.dtype, shape: ty.shape.clone(), offset: 0, value: 0 };
        let (name, kind, source) = (name.clone(), StoredKind::State, Source::Zero);
        at.insert(name.clone(), i);
        found.push(Stored { name, kind, changes: false, tensor, source });
    }
    for placed in &input.entries {
        let changed = changed(placed.graph);
        for (i, info) in placed.graph.values.iter().enumerate() {
            let kind = match info.decl {
                Some(Kind::Weight) => StoredKind::Weight,
                Some(Kind::Const) => StoredKind::Const,
                Some(Kind::State) => StoredKind::State,
                _ => continue,
            };
            let index = *at.entry(info.name.clone()).or_insert_with(|| {
                let source = if kind == StoredKind::State { Source::Zero } else { (input.source)(&info.name) };
                let tensor = Tensor { dtype: info.ty.dtype, shape: info.ty.shape.clone(), offset: 0, value: 0 };
                found.push(Stored { name: info.name.clone(), kind, changes: false, tensor, source });
                found.len() - 1
            });
            let same = found[index].tensor.dtype == info.ty.dtype && found[index].tensor.shape == info.ty.shape;
            assert!(same, "entries disagree about `{}`", info.name);
            found[index].changes |= changed[i];
        }
    }
    let target = &input.target;
    let is_near = |s: &Stored| target.fixed.is_none() || s.changes || s.kind == StoredKind::State;
    found.sort_by_key(|s| (is_near(s), s.kind == StoredKind::State));
    let (mut offset, mut near) = (0, None);
    for (i, stored) in found.iter_mut().enumerate() {
        if is_near(stored) && near.is_none() {
            near = Some(offset);
        }
        (stored.tensor.offset, stored.tensor.value) = (offset, i as u32);
        offset = target.align(stored.tensor.end());
    }
    (found, near.unwrap_or(offset))
}

fn changed(graph: &Graph) -> Vec<bool> {
    let mut changed = vec![false; graph.values.len()];
    for node in &graph.nodes {
        let count = (node.op.def().mutates)(&node.attrs);
        node.args[..count].iter().for_each(|a| changed[a.index()] = true);
    }
    changed
}

struct Lowering<'a> {
    placed: &'a Placed<'a>,
    base: u64,
    stored: &'a HashMap<&'a str, &'a Stored>,
    first_value: u32,
}

impl Lowering<'_> {
    fn tensor(&self, v: Value) -> Tensor {
        let graph = self.placed.graph;
        let home = self.placed.placement.stored_in[v.index()].unwrap_or(v);
        let info = graph.info(home);
        if matches!(info.decl, Some(Kind::Weight | Kind::State | Kind::Const)) {
            return self.stored[info.name.as_str()].tensor.clone();
        }
        let ty = graph.ty(v);
        let offset = self.base + self.placed.placement.offsets[v.index()].expect("placed");
        Tensor { dtype: ty.dtype, shape: ty.shape.clone(), offset, value: self.first_value + self.alias(v).0 }
    }

    /// The value whose contents a reshape's result in the same place shares.
    fn alias(&self, v: Value) -> Value {
        let graph = self.placed.graph;
        let node = graph.nodes.iter().find(|n| n.op == Op::Reshape && n.outs[0] == v);
        match node {
            Some(n) if self.placed.placement.offsets[n.args[0].index()] == self.placed.placement.offsets[v.index()] => {
                self.alias(n.args[0])
            }
            _ => v,
        }
    }

    fn step(&self, i: usize) -> Option<Step> {
        let (graph, node) = (self.placed.graph, &self.placed.graph.nodes[i]);
        let args: Vec<Tensor> = node.args.iter().map(|&v| self.tensor(v)).collect();
        let outs: Vec<Tensor> = node.outs.iter().map(|&v| self.tensor(v)).collect();
        let nothing = match node.op {
            Op::Reshape => args[0].offset == outs[0].offset,
            Op::Assign => args[0].offset == args[1].offset,
            _ => false,
        };
        if nothing {
            return None;
        }
        let scratch_bytes = self.placed.scratch[i];
        Some(Step {
            kernel: node.op.name().to_string(),
            changes: (node.op.def().mutates)(&node.attrs) as u32,
            attrs: attrs_of(node),
            scratch_offset: if scratch_bytes > 0 { self.base + self.placed.placement.scratch[i] } else { self.base },
            scratch_bytes,
            block: node.block,
            part: match node.region {
                Region::Forward => Part::Forward,
                Region::Backward => Part::Backward,
                Region::Update => Part::Update,
            },
            flops: (node.op.def().flops)(&graph.types(&node.args), &graph.types(&node.outs), &node.attrs),
            label: label(graph, node),
            args,
            outs,
        })
    }
}

fn entry(placed: &Placed, base: u64, stored: &HashMap<&str, &Stored>, first_value: u32) -> Entry {
    let lowering = Lowering { placed, base, stored, first_value };
    let graph = placed.graph;
    let named = |name: &str, v: Value| Named { name: name.to_string(), tensor: lowering.tensor(v) };
    let inputs: Vec<Named> = graph.declared(Kind::Input).map(|v| named(&graph.info(v).name, v)).collect();
    let results: Vec<Named> = graph.results.iter().map(|(name, v)| named(name, *v)).collect();
    let mut steps = Vec::new();
    let mut peak_step = 0;
    for i in 0..graph.nodes.len() {
        if i == placed.placement.peak_node {
            peak_step = steps.len() as u32;
        }
        steps.extend(lowering.step(i));
    }
    // What is touched: reshapes and stores that came to nothing touch no more than their operands do.
    let ends = steps.iter().flat_map(|s: &Step| {
        let scratch = s.scratch_offset + s.scratch_bytes;
        s.outs.iter().map(Tensor::end).chain([scratch])
    });
    let stored_end = stored.values().map(|s| s.tensor.end()).max().unwrap_or(0);
    let top = ends.chain(inputs.iter().map(|n| n.tensor.end())).max().unwrap_or(0).max(stored_end);
    let peak = Peak {
        bytes: top,
        // The bound counts whole alignment units, the peak the last byte that is touched.
        lower_bound_bytes: (base + placed.placement.lower_bound_bytes).min(top),
        step: peak_step,
        holders: holders(placed),
    };
    Entry { name: placed.name.to_string(), inputs, results, steps, blocks: graph.blocks.clone(), peak }
}

/// What is live at the fullest node, largest first, each place once.
fn holders(placed: &Placed) -> Vec<Holder> {
    const MOST: usize = 12;
    let at = placed.placement.peak_node as u32;
    let mut by_place: HashMap<u64, (u64, String)> = HashMap::new();
    for (i, life) in live::lives(placed.graph).iter().enumerate() {
        let (Some(life), Some(offset)) = (life, placed.placement.offsets[i]) else { continue };
        let info = &placed.graph.values[i];
        if life.start <= at && at <= life.end {
            let bytes = info.ty.bytes();
            by_place.entry(offset).and_modify(|e| e.0 = e.0.max(bytes)).or_insert((bytes, info.name.clone()));
        }
    }
    let mut holders: Vec<Holder> = by_place.into_values().map(|(bytes, name)| Holder { name, bytes }).collect();
    if let Some(&bytes) = placed.scratch.get(at as usize).filter(|b| **b > 0) {
        holders.push(Holder { name: "scratch".to_string(), bytes });
    }
    holders.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    holders.truncate(MOST);
    holders
}
