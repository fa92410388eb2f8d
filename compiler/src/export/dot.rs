//! A plan as a graph for graphviz: `dot -Tsvg plan.dot > plan.svg`.
//!
//! A step is a box, in a cluster of its block and part, in a cluster of its entry; a value is an edge from the step
//! that makes it to each that reads it, with its storage, shape and bytes. What is trained, given and got stands
//! beside as nodes of their own. Frozen tensors would be an edge to nearly every step: the step's text names them.

use super::json::part;
use super::lives::{form, names};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use tinyforge_plan::{Entry, Part, Plan, Step, Tensor};

/// The text of the graph.
pub fn export(plan: &Plan) -> String {
    let mut out = String::from("digraph plan {\n");
    let near = plan.spaces.last().map_or("memory", |s| s.name.as_str());
    let title = format!("{}: {} bytes of {near}", plan.name, plan.total_bytes());
    let _ = writeln!(out, "  label={}; labelloc=t; fontname=\"sans-serif\"; fontsize=18;", quoted(&title));
    out.push_str(
        "  rankdir=TB; nodesep=0.3; ranksep=0.45; splines=polyline; nslimit=0.5; nslimit1=0.5; mclimit=0.2;\n",
    );
    out.push_str(
        "  node [shape=box, style=\"filled,rounded\", fontname=\"sans-serif\", fontsize=10, margin=\"0.1,0.05\"];\n",
    );
    out.push_str(
        "  edge [fontname=\"sans-serif\", fontsize=8, color=\"#5b6770\", fontcolor=\"#39444d\", arrowsize=0.6];\n",
    );
    plan.entries.iter().enumerate().for_each(|(i, entry)| Writer::new(plan, entry, i).write(&mut out));
    out.push_str("}\n");
    out
}

/// Text as graphviz reads it; `\n` begins a line.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Colours of a part: of its clusters and of its steps.
fn colours(part: Part) -> [&'static str; 2] {
    match part {
        Part::Forward => ["#eef4fb", "#cfe1f5"],
        Part::Backward => ["#fdf1e6", "#f8d9bb"],
        Part::Update => ["#eaf6ee", "#c5e6d0"],
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    entry: &'a Entry,
    index: usize,
    names: BTreeMap<u32, String>,
    /// Stored values: whether an entry changes them.
    stored: BTreeMap<u32, bool>,
}

impl<'a> Writer<'a> {
    fn new(plan: &'a Plan, entry: &'a Entry, index: usize) -> Writer<'a> {
        let stored = plan.stored.iter().map(|s| (s.tensor.value, s.changes)).collect();
        Writer { plan, entry, index, names: names(plan, entry), stored }
    }

    fn name(&self, t: &Tensor) -> &str {
        self.names.get(&t.value).map_or("", String::as_str)
    }

    fn write(&self, out: &mut String) {
        let peak = &self.entry.peak;
        let title = format!("{}: {} steps, peak {} bytes", self.entry.name, self.entry.steps.len(), self.peak_bytes());
        let _ = writeln!(out, "  subgraph cluster_e{} {{\n    label={};", self.index, quoted(&title));
        out.push_str("    color=\"#98a4ae\"; fontsize=14; style=rounded;\n");
        let steps: Vec<(usize, &Step)> = self.entry.steps.iter().enumerate().collect();
        let same = |a: &(usize, &Step), b: &(usize, &Step)| a.1.block == b.1.block && a.1.part == b.1.part;
        for (i, group) in steps.chunk_by(same).enumerate() {
            let first = group[0].1;
            let block = self.entry.blocks.get(first.block as usize).map_or("", String::as_str);
            let title = format!("{block} {}", part(first.part));
            let [ground, fill] = colours(first.part);
            let _ = writeln!(out, "    subgraph cluster_e{}_{i} {{\n      label={};", self.index, quoted(&title));
            let _ = writeln!(out, "      style=\"filled,rounded\"; color=\"{ground}\"; fontsize=11;");
            for &(at, step) in group {
                let mark = if at == peak.step as usize { ", color=\"#c0392b\", penwidth=2.5" } else { "" };
                let text = quoted(&self.text(step));
                let _ = writeln!(out, "      {} [label={text}, fillcolor=\"{fill}\"{mark}];", self.node(at));
            }
            out.push_str("    }\n");
        }
        self.ends(out);
        self.edges(out);
        out.push_str("  }\n");
    }

    /// The peak, counted from the first byte of the near memory.
    fn peak_bytes(&self) -> u64 {
        self.entry.peak.bytes - self.plan.spaces.last().map_or(0, |s| s.first_byte).min(self.entry.peak.bytes)
    }

    fn node(&self, step: usize) -> String {
        format!("e{}s{step}", self.index)
    }

    fn text(&self, step: &Step) -> String {
        let mut text = format!("{}\n{}", step.kernel, step.label);
        let is_frozen = |t: &&Tensor| self.stored.get(&t.value) == Some(&false);
        for t in step.args.iter().filter(is_frozen) {
            let _ = write!(text, "\n{} {}", self.name(t), form(t));
        }
        if step.scratch_bytes > 0 {
            let _ = write!(text, "\nscratch {} bytes", step.scratch_bytes);
        }
        text
    }

    /// Nodes of what is given, got and trained.
    fn ends(&self, out: &mut String) {
        let mut node = |id: String, shape: &str, name: &str, t: &Tensor, fill: &str| {
            let text = quoted(&format!("{name}\n{}\n{} bytes", form(t), t.bytes()));
            let _ = writeln!(out, "    {id} [shape={shape}, style=filled, label={text}, fillcolor=\"{fill}\"];");
        };
        for named in &self.entry.inputs {
            node(format!("e{}v{}", self.index, named.tensor.value), "invhouse", &named.name, &named.tensor, "#dfe5ea");
        }
        for (i, named) in self.entry.results.iter().enumerate() {
            node(format!("e{}r{i}", self.index), "house", &named.name, &named.tensor, "#dfe5ea");
        }
        for s in self.trained() {
            node(format!("e{}v{}", self.index, s.tensor.value), "cylinder", &s.name, &s.tensor, "#9fd8b4");
        }
    }

    /// The trained tensors that the entry reads or changes.
    fn trained(&self) -> impl Iterator<Item = &'a tinyforge_plan::Stored> {
        let used: BTreeSet<u32> = self.entry.steps.iter().flat_map(|s| &s.args).map(|t| t.value).collect();
        self.plan.stored.iter().filter(move |s| s.changes && used.contains(&s.tensor.value))
    }

    fn edges(&self, out: &mut String) {
        let ends: BTreeSet<u32> =
            self.entry.inputs.iter().map(|n| n.tensor.value).chain(self.trained().map(|s| s.tensor.value)).collect();
        let mut makers: BTreeMap<u32, String> = ends.iter().map(|&v| (v, format!("e{}v{v}", self.index))).collect();
        for (i, step) in self.entry.steps.iter().enumerate() {
            let to = self.node(i);
            let mut drawn = BTreeSet::new();
            for (a, t) in step.args.iter().enumerate().filter(|(_, t)| drawn.insert(t.value)) {
                let Some(from) = makers.get(&t.value) else { continue };
                let both = if a < step.changes as usize { "dir=both, color=\"#2e8b57\"" } else { "" };
                let label = if ends.contains(&t.value) { String::new() } else { self.edge_text(t) };
                let _ = writeln!(out, "    {from} -> {to} [label={}{}{both}];", quoted(&label), comma(both));
            }
            for t in step.outs.iter().filter(|t| !self.stored.contains_key(&t.value)) {
                makers.insert(t.value, to.clone());
            }
        }
        for (i, result) in self.entry.results.iter().enumerate() {
            if let Some(from) = makers.get(&result.tensor.value) {
                let _ = writeln!(out, "    {from} -> e{}r{i};", self.index);
            }
        }
    }

    fn edge_text(&self, t: &Tensor) -> String {
        let first = self.plan.space_of(t.offset).map_or(0, |s| s.first_byte);
        format!("{}\n{} bytes at {}", form(t), t.bytes(), t.offset - first)
    }
}

fn comma(more: &str) -> &'static str {
    if more.is_empty() { "" } else { ", " }
}
