//! A graph: straight-line SSA code over declared tensors. A body of a program is a graph, and so is a whole step.
//!
//! Invariant: nodes stand in an order in which every value is defined before it is read. Names are unique.

use super::attrs::{Attr, Attrs};
use super::ops::Op;
use super::types::Type;
use std::collections::{HashMap, HashSet};

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Value(pub u32);

impl Value {
    /// The index as a `usize`.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a declared tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Given anew for every micro-batch.
    Input,
    /// A parameter, stored in the model's file.
    Weight,
    /// Whatever outlives a step beside the parameters: moments, accumulators, caches, counters.
    State,
    /// Fixed at load: tables, channel lists.
    Const,
}

impl Kind {
    /// Every kind with its word in text.
    pub const ALL: [(Kind, &'static str); 4] =
        [(Kind::Input, "input"), (Kind::Weight, "weight"), (Kind::State, "state"), (Kind::Const, "const")];

    /// The word in text.
    pub fn word(self) -> &'static str {
        Kind::ALL[self as usize].1
    }
}

/// A value's name, type and origin.
#[derive(Clone, PartialEq, Debug)]
pub struct ValueInfo {
    /// The name without its sigil: `layers.3.q`.
    pub name: String,
    /// Storage and shape.
    pub ty: Type,
    /// Set for declared tensors, absent for results of nodes.
    pub decl: Option<Kind>,
}

/// Which part of a step a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Region {
    /// Computes outputs and losses.
    Forward,
    /// Computes gradients, or values again for them.
    Backward,
    /// Changes weights and state.
    Update,
    /// Does so in the host's memory, beside the device.
    Host,
}

impl Region {
    /// Every region with its word in text.
    pub const ALL: [(Region, &'static str); 4] = [
        (Region::Forward, "forward"),
        (Region::Backward, "backward"),
        (Region::Update, "update"),
        (Region::Host, "host"),
    ];

    /// Whether it changes weights and state.
    pub fn is_update(self) -> bool {
        matches!(self, Region::Update | Region::Host)
    }

    /// The word in text.
    pub fn word(self) -> &'static str {
        Region::ALL[self as usize].1
    }
}

/// One op applied to values.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands.
    pub args: Vec<Value>,
    /// The op's numbers.
    pub attrs: Attrs,
    /// Results; a `mutates` op may have none.
    pub outs: Vec<Value>,
    /// Index into [`Graph::blocks`].
    pub block: u32,
    /// Which part of the step.
    pub region: Region,
}

/// Straight-line code with its declared tensors and results.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// Packed rows in a micro-batch: sums over tokens are taken row by row.
    pub rows: u32,
    /// All values: declared tensors and results of nodes.
    pub values: Vec<ValueInfo>,
    /// The code, in order.
    pub nodes: Vec<Node>,
    /// Names of the blocks that nodes belong to; the first is the unnamed block `""`.
    pub blocks: Vec<String>,
    /// Named results.
    pub results: Vec<(String, Value)>,
}

impl Graph {
    /// An empty graph for micro-batches of `rows` packed rows.
    pub fn new(rows: u32) -> Graph {
        Graph { rows, blocks: vec![String::new()], ..Graph::default() }
    }

    /// Packed rows that so many tokens are: the micro-batch's, or 1 where they do not divide them.
    pub fn packed_rows(&self, tokens: u32) -> u32 {
        if self.rows > 0 && tokens.is_multiple_of(self.rows) { self.rows } else { 1 }
    }

    /// The name, type and origin of a value.
    pub fn info(&self, v: Value) -> &ValueInfo {
        &self.values[v.index()]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        &self.values[v.index()].ty
    }

    /// The types of values.
    pub fn types(&self, vs: &[Value]) -> Vec<Type> {
        vs.iter().map(|&v| self.ty(v).clone()).collect()
    }

    /// The name with its sigil: `%` for inputs and results, `@` for what is stored.
    pub fn display(&self, v: Value) -> String {
        let info = self.info(v);
        let sigil = match info.decl {
            Some(Kind::Weight | Kind::State | Kind::Const) => '@',
            _ => '%',
        };
        format!("{sigil}{}", info.name)
    }

    /// Declares a tensor.
    pub fn declare(&mut self, kind: Kind, name: &str, ty: Type) -> Value {
        self.add_value(ValueInfo { name: name.to_string(), ty, decl: Some(kind) })
    }

    /// Adds a value of this description; its definition must follow.
    pub fn add_value(&mut self, info: ValueInfo) -> Value {
        let v = Value(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(info);
        v
    }

    /// All declared tensors of a kind, in order.
    pub fn declared(&self, kind: Kind) -> impl Iterator<Item = Value> + '_ {
        let of_kind = move |(i, v): (usize, &ValueInfo)| (v.decl == Some(kind)).then_some(Value(i as u32));
        self.values.iter().enumerate().filter_map(of_kind)
    }

    /// The value of this name (without sigil).
    pub fn find(&self, name: &str) -> Option<Value> {
        self.values.iter().position(|v| v.name == name).map(|i| Value(i as u32))
    }

    /// The result of this name.
    pub fn result(&self, name: &str) -> Option<Value> {
        self.results.iter().find(|(n, _)| n == name).map(|&(_, v)| v)
    }

    /// The index of a block's name, added when new.
    pub fn block(&mut self, name: &str) -> u32 {
        match self.blocks.iter().position(|b| b == name) {
            Some(i) => i as u32,
            None => {
                self.blocks.push(name.to_string());
                self.blocks.len() as u32 - 1
            }
        }
    }

    /// Whether a block is one of many alike: its name ends in a number.
    pub fn is_numbered(&self, block: u32) -> bool {
        self.blocks[block as usize].rsplit('.').next().is_some_and(|n| n.parse::<u32>().is_ok())
    }

    /// What the weights of the largest numbered block come to, of which each counts `of` its type; 0 without one.
    pub fn largest_block(&self, of: impl Fn(&Type) -> u64) -> u64 {
        let mut sums = vec![0u64; self.blocks.len()];
        let mut seen = vec![false; self.values.len()];
        for node in self.nodes.iter().filter(|n| self.is_numbered(n.block)) {
            for &v in &node.args {
                if self.info(v).decl == Some(Kind::Weight) && !std::mem::replace(&mut seen[v.index()], true) {
                    sums[node.block as usize] += of(self.ty(v));
                }
            }
        }
        sums.into_iter().max().unwrap_or(0)
    }

    /// For every value the index of the node that defines it, if one does.
    pub fn definitions(&self) -> Vec<Option<u32>> {
        let mut defs = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for out in &node.outs {
                defs[out.index()] = Some(i as u32);
            }
        }
        defs
    }

    /// For every value the indices of the nodes that read it, in order.
    pub fn uses(&self) -> Vec<Vec<u32>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for arg in &node.args {
                if uses[arg.index()].last() != Some(&(i as u32)) {
                    uses[arg.index()].push(i as u32);
                }
            }
        }
        uses
    }

    /// Drops nodes whose results nobody reads and which change nothing, then values nobody mentions.
    /// Declared inputs, weights and state stay only while they are read; `keep` names those that stay anyway.
    pub fn sweep(&mut self, keep: impl Fn(&ValueInfo) -> bool) {
        let mut live: Vec<bool> = vec![false; self.values.len()];
        self.results.iter().for_each(|(_, v)| live[v.index()] = true);
        let mut kept = Vec::with_capacity(self.nodes.len());
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            let acts = (node.op.def().mutates)(&node.attrs) > 0;
            if acts || node.outs.iter().any(|o| live[o.index()]) {
                node.args.iter().chain(&node.outs).for_each(|v| live[v.index()] = true);
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        for (i, info) in self.values.iter().enumerate() {
            live[i] |= info.decl.is_some() && keep(info);
        }
        self.renumber(&live);
    }

    fn renumber(&mut self, live: &[bool]) {
        let mut map = vec![Value(u32::MAX); self.values.len()];
        let mut values = Vec::new();
        for (i, info) in std::mem::take(&mut self.values).into_iter().enumerate() {
            if live[i] {
                map[i] = Value(values.len() as u32);
                values.push(info);
            }
        }
        self.values = values;
        for node in &mut self.nodes {
            node.args.iter_mut().chain(&mut node.outs).for_each(|v| *v = map[v.index()]);
        }
        self.results.iter_mut().for_each(|(_, v)| *v = map[v.index()]);
    }
}

/// Appends nodes to a graph, giving new values names that are free.
pub struct Builder<'g> {
    /// The graph being written.
    pub graph: &'g mut Graph,
    names: HashSet<String>,
    next_suffix: HashMap<String, u32>,
    block: u32,
    region: Region,
}

impl<'g> Builder<'g> {
    /// A builder that appends forward nodes to the unnamed block.
    pub fn new(graph: &'g mut Graph) -> Builder<'g> {
        let names = graph.values.iter().map(|v| v.name.clone()).collect();
        Builder { graph, names, next_suffix: HashMap::new(), block: 0, region: Region::Forward }
    }

    /// Sets the block and region of the nodes to come.
    pub fn at(&mut self, block: u32, region: Region) {
        self.block = block;
        self.region = region;
    }

    /// A name that is free: `base`, or `base.1`, `base.2`, ...
    pub fn fresh(&mut self, base: &str) -> String {
        if self.names.insert(base.to_string()) {
            return base.to_string();
        }
        let next = self.next_suffix.entry(base.to_string()).or_insert(1);
        loop {
            let name = format!("{base}.{next}");
            *next += 1;
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Declares a tensor under a name that must be free.
    pub fn declare(&mut self, kind: Kind, name: &str, ty: Type) -> Value {
        assert!(self.names.insert(name.to_string()), "`{name}` is declared twice");
        self.graph.declare(kind, name, ty)
    }

    /// Gives a value another name, made free if needed.
    pub fn rename(&mut self, v: Value, base: &str) {
        let old = self.graph.values[v.index()].name.clone();
        self.names.remove(&old);
        let name = self.fresh(base);
        self.graph.values[v.index()].name = name;
    }

    /// Appends `op` and returns its results, named `name` (several: `name`, `name.1`, ...). Where `rows` is an
    /// attribute that is not given, it is the packed rows of operand 0.
    ///
    /// # Panics
    /// When the op's row refuses the operands: the caller hands over what it has checked.
    pub fn push(&mut self, name: &str, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Vec<Value> {
        let def = op.def();
        let is_given = attrs.iter().any(|(name, _)| *name == "rows");
        let mut attrs = Attrs::of(def.attrs, attrs);
        if !is_given && def.attrs.iter().any(|a| a.name == "rows") {
            attrs.set("rows", self.graph.packed_rows(self.graph.ty(args[0]).rows()).into());
        }
        let tys = match (def.infer)(&self.graph.types(args), &attrs) {
            Ok(tys) => tys,
            Err(why) => panic!("{} `{name}`: {why}", def.name),
        };
        let outs: Vec<Value> = tys
            .into_iter()
            .map(|ty| {
                let name = self.fresh(name);
                self.graph.add_value(ValueInfo { name, ty, decl: None })
            })
            .collect();
        let node = Node { op, args: args.to_vec(), attrs, outs: outs.clone(), block: self.block, region: self.region };
        self.graph.nodes.push(node);
        outs
    }

    /// Appends an op with exactly one result.
    pub fn push1(&mut self, name: &str, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Value {
        self.push(name, op, args, attrs)[0]
    }
}
