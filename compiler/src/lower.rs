//! Placed graphs to a plan: names and offsets for values, one step for every node that does something.
//! Decides nothing.

use crate::ir::attrs::Attr;
use crate::ir::graph::{Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::passes::live;
use crate::passes::pipeline::{Holds, Parcel, Stay};
use crate::passes::place::{Guest, Needs, Placement};
use crate::target::Target;
use std::collections::{HashMap, HashSet};
use tinyforge_plan::{
    Direction, Entry, Holder, Kernels, Named, Number, Part, Peak, Plan, Resident, Shape, Source, Space, Step, Stored,
    StoredKind, Tensor, Transfer,
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
    /// When copies of what lives in the far memory are here; their places are in `placement`, in this order.
    pub stays: &'a [Stay],
    /// The same for `place`, with their bytes.
    pub guests: &'a [Guest],
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
    /// What lives in a far memory.
    pub parcels: &'a [Parcel],
    /// Names of those of them that the host's memory holds; the others lie in files.
    pub in_host: &'a HashSet<String>,
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
        // The host's updates have none.
        if is_free(node.op) || node.region == Region::Host {
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
    let (stored, sections) = stored(input);
    let base = stored.iter().map(|s| target.align(s.tensor.end())).max().unwrap_or(0).max(sections[3]);
    let by_name: HashMap<&str, u32> = stored.iter().enumerate().map(|(i, s)| (s.name.as_str(), i as u32)).collect();
    let home = Home { base, near: sections[2], stored: &stored, by_name: &by_name, parcels: input.parcels, target };
    let entries: Vec<Entry> = input.entries.iter().map(|p| entry(p, &home)).collect();
    let arena_bytes = entries.iter().map(|e| e.peak.bytes).max().unwrap_or(base);
    Plan {
        name: input.name.to_string(),
        spaces: spaces(target, sections, target.align(arena_bytes)),
        align_bytes: target.align_bytes,
        files: input.files.to_vec(),
        entries,
        fixed: Vec::new(),
        threads: input.threads,
        stored,
    }
}

/// Addresses at which sections end, in order: a file that is never written, one that is, the host's memory, and what
/// is not written.
type Sections = [u64; 4];

/// The near memory up to `end`, and before it those that have something in them.
fn spaces(target: &Target, [model, work, host, fixed]: Sections, end: u64) -> Vec<Space> {
    let space = |name: &str, first_byte, end: u64, is_written| Space {
        name: name.to_string(),
        first_byte,
        bytes: end - first_byte,
        is_written,
        is_far: false,
        is_host: false,
    };
    let far = |space: Space, is_host| Space { is_far: true, is_host, ..space };
    let mut spaces = Vec::new();
    if model > 0 {
        spaces.push(far(space("model", 0, model, false), false));
    }
    if work > model {
        spaces.push(far(space("work", model, work, true), false));
    }
    if host > work {
        spaces.push(far(space("host", work, host, true), true));
    }
    spaces.extend(target.fixed.map(|name| space(name, host, fixed, false)));
    spaces.push(space(target.near, fixed, end, true));
    spaces
}

/// Which section a stored tensor lies in, in the order of addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    /// The model's own file, in place.
    Model,
    /// The work file.
    Work,
    /// The host's memory.
    Host,
    /// A memory for what no step changes.
    Fixed,
    /// The near memory: weights and constants, then states.
    Near,
    NearState,
}

/// All stored tensors of all entries, and where sections end. In the near memory weights and constants come first, so
/// that their places do not depend on what is trained, then states.
fn stored(input: &Input) -> (Vec<Stored>, Sections) {
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
    let sections = lay_out(&mut found, input);
    (found, sections)
}

/// What a place in the work file is a multiple of, where a parcel's changed or other tensors begin: what the system
/// reads and writes at a time.
const WORK_ALIGN_BYTES: u64 = 4096;

/// Orders the tensors, which does not depend on where they live, and gives them their places.
fn lay_out(found: &mut [Stored], input: &Input) -> Sections {
    let target = &input.target;
    let is_near = |s: &Stored| target.fixed.is_none() || s.changes || s.kind == StoredKind::State;
    found.sort_by_key(|s| (is_near(s), s.kind == StoredKind::State));
    let lists = input.parcels.iter().enumerate();
    let streamed: HashMap<&str, (usize, usize)> = lists
        .flat_map(|(p, list)| list.tensors.iter().enumerate().map(move |(i, name)| (name.as_str(), (p, i))))
        .collect();
    let changes =
        |s: &Stored| s.changes || streamed.get(s.name.as_str()).is_some_and(|&(p, _)| input.parcels[p].rotates);
    let section = |s: &Stored| match streamed.get(s.name.as_str()) {
        Some(_) if input.in_host.contains(&s.name) => Section::Host,
        Some(_) if !changes(s) && is_as_stored(s) => Section::Model,
        Some(_) => Section::Work,
        None if !is_near(s) => Section::Fixed,
        None if s.kind == StoredKind::State => Section::NearState,
        None => Section::Near,
    };
    // The tensors of a parcel lie together, in its order.
    let key = |s: &Stored| (section(s), streamed.get(s.name.as_str()).copied());
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|&i| key(&found[i]));
    let (mut offset, mut ends, mut before) = (0u64, [0; 4], None);
    for i in order {
        let (section, parcel) = key(&found[i]);
        let group = (section, parcel.map(|(p, _)| (p, changes(&found[i]))));
        if before != Some(group) {
            let last = before.map_or(Section::Model, |(section, _)| section);
            if last == Section::Work || section == Section::Work {
                offset = offset.next_multiple_of(WORK_ALIGN_BYTES);
            }
            // A section ends where the next one that has something begins.
            ends[(last as usize).min(4)..(section as usize).min(4)].fill(offset);
            before = Some(group);
        }
        let stored = &mut found[i];
        (stored.tensor.offset, stored.tensor.value) = (offset, i as u32);
        offset = target.align(stored.tensor.end());
    }
    let last = before.map_or(Section::Near, |(section, _)| section);
    if last == Section::Work {
        offset = offset.next_multiple_of(WORK_ALIGN_BYTES);
    }
    ends[(last as usize).min(4)..].fill(offset);
    ends
}

/// Whether the bytes in the model's file are those that are stored.
fn is_as_stored(stored: &Stored) -> bool {
    matches!(&stored.source, Source::File { dtype, transpose: false, .. } if *dtype == stored.tensor.dtype)
}

fn changed(graph: &Graph) -> Vec<bool> {
    let mut changed = vec![false; graph.values.len()];
    for node in &graph.nodes {
        let count = (node.op.def().mutates)(&node.attrs);
        node.args[..count].iter().for_each(|a| changed[a.index()] = true);
    }
    changed
}

/// What all entries share: the stored tensors and where they live.
struct Home<'a> {
    /// First address behind the stored tensors of the near memory.
    base: u64,
    /// First address of the near memory.
    near: u64,
    stored: &'a [Stored],
    by_name: &'a HashMap<&'a str, u32>,
    parcels: &'a [Parcel],
    target: &'a Target,
}

impl Home<'_> {
    fn named(&self, name: &str) -> &Stored {
        &self.stored[self.by_name[name] as usize]
    }

    /// The tensors of a parcel with their places in a copy of it.
    fn parts(&self, parcel: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        let mut at = 0;
        self.parcels[parcel as usize].tensors.iter().map(move |name| {
            let (index, inner) = (self.by_name[name.as_str()], at);
            at += self.target.align(self.stored[index as usize].tensor.bytes());
            (index, inner)
        })
    }
}

struct Lowering<'a> {
    placed: &'a Placed<'a>,
    home: &'a Home<'a>,
    /// For every streamed tensor, by name: its parcel, and its place in a copy.
    streamed: HashMap<&'a str, (u32, u64)>,
    /// For every result of a reshape what was reshaped.
    reshaped: HashMap<Value, Value>,
}

impl<'a> Lowering<'a> {
    fn new(placed: &'a Placed<'a>, home: &'a Home<'a>) -> Lowering<'a> {
        let of_parcel =
            |p: u32| home.parts(p).map(move |(i, inner)| (home.stored[i as usize].name.as_str(), (p, inner)));
        let reshapes = placed.graph.nodes.iter().filter(|n| n.op == Op::Reshape);
        let reshaped = reshapes.map(|n| (n.outs[0], n.args[0])).collect();
        Lowering { placed, home, streamed: (0..home.parcels.len() as u32).flat_map(of_parcel).collect(), reshaped }
    }

    /// First address of the copy of a parcel that is here at node `at`.
    fn copy(&self, parcel: u32, at: u32) -> u64 {
        let is_here = |s: &Stay| s.parcel == parcel && s.lives.iter().any(|l| l[0] <= at && at <= l[1]);
        let stay = self.placed.stays.iter().position(is_here).expect("what a node reads is here");
        self.home.base + self.placed.placement.copies[stay]
    }

    /// A value as node `at` sees it.
    fn tensor(&self, v: Value, at: u32) -> Tensor {
        let graph = self.placed.graph;
        let home = self.placed.placement.stored_in[v.index()].unwrap_or(v);
        let info = graph.info(home);
        if matches!(info.decl, Some(Kind::Weight | Kind::State | Kind::Const)) {
            let stored = self.home.named(&info.name).tensor.clone();
            return match self.streamed.get(info.name.as_str()) {
                Some(&(parcel, inner)) => Tensor { offset: self.copy(parcel, at) + inner, ..stored },
                None => stored,
            };
        }
        let ty = graph.ty(v);
        let offset = self.home.base + self.placed.placement.offsets[v.index()].expect("placed");
        let value = self.home.stored.len() as u32 + self.alias(v).0;
        Tensor { dtype: ty.dtype, shape: ty.shape.clone(), offset, value }
    }

    /// The value whose contents a reshape's result in the same place shares.
    fn alias(&self, v: Value) -> Value {
        let offsets = &self.placed.placement.offsets;
        match self.reshaped.get(&v) {
            Some(&of) if offsets[of.index()] == offsets[v.index()] => self.alias(of),
            _ => v,
        }
    }

    fn step(&self, i: usize) -> Option<Step> {
        let (graph, node) = (self.placed.graph, &self.placed.graph.nodes[i]);
        let place = |&v: &Value| match node.region {
            // The host works where the tensors rest.
            Region::Host => self.home.named(&graph.info(v).name).tensor.clone(),
            _ => self.tensor(v, i as u32),
        };
        let args: Vec<Tensor> = node.args.iter().map(place).collect();
        let outs: Vec<Tensor> = node.outs.iter().map(|&v| self.tensor(v, i as u32)).collect();
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
            scratch_offset: self.home.base + if scratch_bytes > 0 { self.placed.placement.scratch[i] } else { 0 },
            scratch_bytes,
            block: node.block,
            part: match node.region {
                Region::Forward => Part::Forward,
                Region::Backward => Part::Backward,
                Region::Update | Region::Host => Part::Update,
            },
            flops: (node.op.def().flops)(&graph.types(&node.args), &graph.types(&node.outs), &node.attrs),
            label: label(graph, node),
            args,
            outs,
        })
    }
}

fn entry(placed: &Placed, home: &Home) -> Entry {
    let lowering = Lowering::new(placed, home);
    let graph = placed.graph;
    let named = |name: &str, v: Value| Named { name: name.to_string(), tensor: lowering.tensor(v, 0) };
    let inputs: Vec<Named> = graph.declared(Kind::Input).map(|v| named(&graph.info(v).name, v)).collect();
    let results: Vec<Named> = graph.results.iter().map(|(name, v)| named(name, *v)).collect();
    let mut steps = Vec::new();
    // For every node, and for the end, the first step that is not before it.
    let mut step_of = Vec::with_capacity(graph.nodes.len() + 1);
    for i in 0..graph.nodes.len() {
        step_of.push(steps.len() as u32);
        steps.extend(lowering.step(i));
    }
    step_of.push(steps.len() as u32);
    let (transfers, residents) = moves(&lowering, &step_of);
    let copy_end = |stored: u32, near_byte: u64| near_byte + home.stored[stored as usize].tensor.bytes();
    let copies = transfers.iter().map(|t| copy_end(t.stored, t.near_byte));
    let copies = copies.chain(residents.iter().map(|r| copy_end(r.stored, r.near_byte)));
    // What is touched: reshapes and stores that came to nothing touch no more than their operands do.
    let ends = steps.iter().flat_map(|s: &Step| {
        let scratch = s.scratch_offset + s.scratch_bytes;
        s.outs.iter().map(Tensor::end).chain([scratch])
    });
    let stored_end = home.stored.iter().map(|s| s.tensor.end()).max().unwrap_or(0).max(home.near);
    let top = ends.chain(copies).chain(inputs.iter().map(|n| n.tensor.end())).max().unwrap_or(0).max(stored_end);
    let peak = Peak {
        bytes: top,
        // The bound counts whole alignment units, the peak the last byte that is touched.
        lower_bound_bytes: (home.base + placed.placement.lower_bound_bytes).min(top),
        step: step_of.get(placed.placement.peak_node).copied().unwrap_or(0),
        holders: holders(placed, home.parcels),
    };
    let (name, blocks) = (placed.name.to_string(), graph.blocks.clone());
    Entry { name, inputs, results, steps, transfers, residents, blocks, peak }
}

/// Stays as transfers of single tensors, and what is there from run to run. What goes back comes first, since it makes
/// room.
fn moves(lowering: &Lowering, step_of: &[u32]) -> (Vec<Transfer>, Vec<Resident>) {
    let (mut transfers, mut residents) = (Vec::new(), Vec::new());
    let (placed, home) = (lowering.placed, lowering.home);
    for (stay, &place) in placed.stays.iter().zip(&placed.placement.copies) {
        for (stored, inner) in home.parts(stay.parcel) {
            let near_byte = home.base + place + inner;
            let mut push = |direction, [begins, ends]: [u32; 2]| {
                let [begins, ends] = [begins, ends].map(|node| step_of[node as usize]);
                transfers.push(Transfer { stored, near_byte, direction, begins, ends });
            };
            stay.comes.into_iter().for_each(|span| push(Direction::In, span));
            let leaves = stay.leaves.iter().filter(|_| home.stored[stored as usize].changes);
            leaves.for_each(|&span| push(Direction::Out, span));
            if (stay.comes.is_none() && !stay.is_made) || stay.lives.len() > 1 {
                residents.push(Resident { stored, near_byte });
            }
        }
    }
    // Stable: the tensors of a parcel stay neighbours.
    transfers.sort_by_key(|t: &Transfer| (t.begins, t.direction == Direction::In, t.ends));
    (transfers, residents)
}

/// What is live at the fullest node, largest first, each place once.
fn holders(placed: &Placed, parcels: &[Parcel]) -> Vec<Holder> {
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
    let places = placed.placement.copies.iter();
    for ((stay, guest), &place) in placed.stays.iter().zip(placed.guests).zip(places) {
        if stay.lives.iter().any(|l| l[0] <= at && at <= l[1]) {
            let parcel = &parcels[stay.parcel as usize];
            let what = match parcel.holds {
                Holds::Weights => "copy of",
                Holds::States => "states of",
                Holds::Activation => "activation",
                Holds::Gradient => "gradient",
            };
            by_place.insert(place, (guest.bytes, format!("{what} {}", parcel.block)));
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
