//! Embeddings and heads in parts, so that one larger than a block need not be near as a whole.
//!
//! Before: losses are fused, and a table that is trained is updated by panels of rows, from gradients of such panels.
//! After: a table that no numbered block reads and that is larger than the largest of those, or than a part of it, is
//! stored in parts of its rows, in order: whole segments of the vocabulary, no more of them than make up that, and one
//! at least. Who read the table reads its parts one after the other, each in a block of its own. A lookup finds a
//! token's row in one of them; logits, where they are a result, are written part by part; and the loss takes its sums
//! over the vocabulary from all parts before its gradient goes through them again: the logits are computed twice. What
//! is about a panel alone reads or changes the part that it is. The bits stay the same, since whole tables are summed
//! by the same segments.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Builder, Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;
use std::collections::BTreeMap;
use tinyforge_plan::{PART, Source, VOCAB_SEGMENT, part_of};

/// Tables that can be stored in parts, and how many rows a part has; the last one may have fewer.
pub type Tables = BTreeMap<String, u32>;

/// The tables that can be stored in parts in all graphs, which have the same weights, where blocks come in so many
/// parts themselves; `is_open` says of a name whether any part of its file can be read alone.
pub fn tables(graphs: &[&Graph], block_parts: u32, is_open: impl Fn(&str) -> bool) -> Tables {
    let largest = graphs.iter().map(|g| g.largest_block(Type::bytes)).max().unwrap_or(0) / u64::from(block_parts);
    let mut found = Tables::new();
    for graph in graphs {
        for w in graph.declared(Kind::Weight) {
            let info = graph.info(w);
            if let Some(rows) = rows_of(&info.ty, largest).filter(|_| is_open(&info.name)) {
                found.insert(info.name.clone(), rows);
            }
        }
    }
    for graph in graphs {
        for node in &graph.nodes {
            let table = table_of(node).or(panel_of(node)).filter(|_| !graph.is_numbered(node.block));
            for (_, &arg) in node.args.iter().enumerate().filter(|(i, _)| Some(*i) != table) {
                found.remove(&graph.info(arg).name);
            }
        }
    }
    found
}

/// Of these tables those that can still be stored in parts now that updates are there: no node needs one as a whole.
pub fn splittable(graphs: &[&Graph], tables: &Tables) -> Tables {
    let mut found = tables.clone();
    for graph in graphs {
        for node in &graph.nodes {
            for (i, &arg) in node.args.iter().enumerate() {
                let info = graph.info(arg);
                let Some(&rows) = found.get(&info.name) else { continue };
                let gives_whole = node.op == Op::LinearCrossEntropyGrad && node.attrs.flag("grad_w");
                let takes_parts = table_of(node) == Some(i) && !gives_whole;
                if !takes_parts && !is_about_part(graph, node, i, rows) {
                    found.remove(&info.name);
                }
            }
        }
    }
    found
}

/// Which operand of a node can be one part of a table.
fn panel_of(node: &Node) -> Option<usize> {
    match node.op {
        Op::Update => Some(0),
        Op::LinearCrossEntropyGradW => Some(1),
        _ => None,
    }
}

/// Whether a node is about one part alone, of `rows` rows, of the table that is its operand `at`.
fn is_about_part(graph: &Graph, node: &Node, at: usize, rows: u32) -> bool {
    if panel_of(node) != Some(at) {
        return false;
    }
    let vocab = graph.ty(node.args[at]).rows();
    let [first, count] = ["first_row", "panel_rows"].map(|name| node.attrs.size(name) as u32);
    // A gradient that is there as a whole is of the whole weight.
    let is_whole = node.op == Op::Update && graph.ty(node.args[1 + node.attrs.size("states")]).rows() != count;
    !is_whole && first < vocab && first.is_multiple_of(rows) && count == rows.min(vocab - first)
}

/// Rows of a part of a table that is larger than the largest block.
fn rows_of(ty: &Type, largest: u64) -> Option<u32> {
    let is_table = ty.shape.len() == 2 && largest > 0 && ty.bytes() > largest && ty.rows() > VOCAB_SEGMENT;
    let segment = Type { shape: vec![VOCAB_SEGMENT, ty.cols()], ..ty.clone() };
    let segments = u32::try_from(largest / segment.bytes()).unwrap_or(u32::MAX).max(1);
    is_table.then(|| segments.saturating_mul(VOCAB_SEGMENT)).filter(|&rows| rows < ty.rows())
}

/// Which operand of a node can be a table in parts.
fn table_of(node: &Node) -> Option<usize> {
    match node.op {
        Op::Embedding => Some(0),
        Op::Linear if node.args.len() == 2 => Some(1),
        Op::LinearCrossEntropy => Some(1),
        Op::LinearCrossEntropyGrad => Some(1),
        _ => None,
    }
}

/// Where a part of a table comes from: rows of what the table comes from. Other names are looked up as they are.
pub fn source(name: &str, ty: &Type, tables: &Tables, of: &dyn Fn(&str) -> Source) -> Source {
    let Some((whole, part, rows)) = part_of(name).and_then(|(w, p)| Some((w, p, *tables.get(w)?))) else {
        return of(name);
    };
    match of(whole) {
        Source::File { file, offset, dtype, transpose: false } => {
            let row_bytes = u64::from(ty.cols()) / dtype.block_elems() * dtype.block_bytes();
            let first = u64::from(part) * u64::from(rows);
            Source::File { file, offset: offset + first * row_bytes, dtype, transpose: false }
        }
        source => source,
    }
}

/// Whether rows of a source can be had alone.
pub fn has_rows(source: &Source) -> bool {
    matches!(source, Source::File { transpose: false, .. } | Source::Zero | Source::Fill(_))
}

/// Stores these tables in parts.
pub fn run(graph: &mut Graph, tables: &Tables) {
    let nodes = std::mem::take(&mut graph.nodes);
    let mut splitter = Splitter { b: Builder::new(graph), parts: BTreeMap::new() };
    for node in nodes {
        let rows_of = |at: &usize| tables.get(&splitter.b.graph.info(node.args[*at]).name).copied();
        let read = (0..node.args.len()).find_map(|at| Some((at, rows_of(&at)?)));
        match read {
            Some((at, rows)) if table_of(&node) == Some(at) => splitter.split(&node, rows),
            Some((at, rows)) => splitter.take_part(node, at, rows),
            None => splitter.b.graph.nodes.push(node),
        }
    }
    graph.sweep(|info| info.decl == Some(Kind::Input));
}

/// A part of a table: its weight and first row.
#[derive(Clone, Copy)]
struct Part {
    weight: Value,
    first: u32,
}

struct Splitter<'g> {
    b: Builder<'g>,
    /// The parts of every table seen so far.
    parts: BTreeMap<Value, Vec<Part>>,
}

impl Splitter<'_> {
    fn parts(&mut self, table: Value, rows: u32) -> Vec<Part> {
        if let Some(parts) = self.parts.get(&table) {
            return parts.clone();
        }
        let info = self.b.graph.info(table).clone();
        let vocab = info.ty.rows();
        let part = |(i, first): (usize, u32)| {
            let ty = Type { shape: vec![rows.min(vocab - first), info.ty.cols()], ..info.ty.clone() };
            Part { weight: self.b.declare(Kind::Weight, &format!("{}{PART}{i}", info.name), ty), first }
        };
        let parts: Vec<Part> = (0..vocab).step_by(rows as usize).enumerate().map(part).collect();
        self.parts.insert(table, parts.clone());
        parts
    }

    fn split(&mut self, node: &Node, rows: u32) {
        let table = node.args[table_of(node).expect("it reads a table")];
        let vocab = self.b.graph.ty(table).rows();
        let parts = self.parts(table, rows);
        let chain = Chain { node, vocab, parts: &parts };
        match node.op {
            Op::Embedding => {
                self.chain(&chain, (Op::EmbeddingPart, node.region), &[node.args[1]], Some(0));
            }
            Op::Linear => {
                self.chain(&chain, (Op::LinearPart, node.region), &[node.args[0]], Some(0));
            }
            _ => self.loss(&chain),
        }
    }

    /// A node that is about one part of the table, its operand `at`.
    fn take_part(&mut self, mut node: Node, at: usize, rows: u32) {
        let (table, first) = (node.args[at], node.attrs.size("first_row") as u32);
        if node.op == Op::LinearCrossEntropyGradW {
            node.attrs.set("vocab", self.b.graph.ty(table).rows().into());
        }
        node.args[at] = self.parts(table, rows)[(first / rows) as usize].weight;
        self.b.graph.nodes.push(node);
    }

    /// The loss from the sums of all parts, and its gradient part by part.
    fn loss(&mut self, chain: &Chain) {
        let node = chain.node;
        let [h, _, labels, weights] = node.args[..] else { unreachable!("a loss without gradients of w to add to") };
        let given = (node.outs.len() > 2).then_some(2);
        let sums = self.chain(chain, (Op::LinearCrossEntropySums, Region::Forward), &[h, labels, weights], given);
        self.b.at(node.block, Region::Forward);
        let attrs = Attrs::of(Op::CrossEntropyOfSums.def().attrs, &[]);
        let (op, block) = (Op::CrossEntropyOfSums, node.block);
        let loss =
            Node { op, args: vec![sums, weights], outs: vec![node.outs[0]], attrs, block, region: Region::Forward };
        self.b.graph.nodes.push(loss);
        if node.op == Op::LinearCrossEntropyGrad {
            let given = [h, labels, weights, sums];
            self.chain(chain, (Op::LinearCrossEntropyGradH, node.region), &given, Some(1));
        }
    }

    /// A node a part, each of which starts from what the one before gave; the last one gives result `out` of the node
    /// that they stand for, if there is such a one.
    fn chain(&mut self, chain: &Chain, (op, region): (Op, Region), given: &[Value], out: Option<usize>) -> Value {
        let Chain { node, vocab, parts } = *chain;
        let name = match out {
            Some(out) => self.b.graph.info(node.outs[out]).name.clone(),
            None => format!("{}.sums", self.b.graph.info(node.outs[0]).name),
        };
        let is_known = |name: &str| op.def().attrs.iter().any(|a| a.name == name);
        let shared: Vec<(&str, Attr)> = node.attrs.iter().filter(|(name, _)| is_known(name)).collect();
        let block = self.b.graph.blocks[node.block as usize].clone();
        let mut sum: Option<Value> = None;
        for (i, part) in parts.iter().enumerate() {
            let at = self.b.graph.block(&format!("{block}.part{i}"));
            self.b.at(at, region);
            let mut args = given.to_vec();
            args.insert(usize::from(op != Op::EmbeddingPart), part.weight);
            args.extend(sum);
            let more = [("first_row", part.first.into()), ("vocab", vocab.into())];
            let attrs: Vec<(&str, Attr)> = shared.iter().copied().chain(more).collect();
            sum = Some(self.b.push1(&name, op, &args, &attrs));
            if let (Some(out), true) = (out, i + 1 == parts.len()) {
                let last = self.b.graph.nodes.last_mut().expect("just pushed");
                last.outs[0] = node.outs[out];
                sum = Some(node.outs[out]);
            }
        }
        sum.expect("a table has rows")
    }
}

/// The node that reads a table, and the table's rows and parts.
struct Chain<'a> {
    node: &'a Node,
    vocab: u32,
    parts: &'a [Part],
}
