//! Lets the host update what rests in its memory, beside the device's backward.
//!
//! [`mark`] puts the updates that the host can do into the region `host`; no gradient is fused with one of them.
//! [`run`] makes them the host's. Before: a step in the order in which it will run. After: what such an update reads
//! and is not stored, a gradient or a number, is sent to a state (`<value>.host.spilled`) that `pipeline` lets rest in
//! the host's memory, where the weight and its states are; and the update stands one visit behind the last of these,
//! which has gone out by then. Source: ZeRO-Offload (Ren et al. 2021), whose optimizer is the host's; here beside
//! backward.

use crate::ir::graph::{Builder, Graph, Kind, Node, Region, Value};
use crate::ir::ops::Op;
use std::collections::{BTreeMap, BTreeSet};
use tinyforge_plan::FOR_HOST;

/// Marks the updates of weights that come and go with their blocks, by their names. Where only columns of some of them
/// are trained, it marks none.
pub fn mark(graph: &mut Graph, streamed: &BTreeSet<String>) {
    let is_streamed = |n: &Node| {
        let weight = n.args.first().map(|&w| graph.info(w).name.as_str());
        n.region == Region::Update && weight.is_some_and(|name| streamed.contains(name))
    };
    let chosen: Vec<usize> = (0..graph.nodes.len()).filter(|&i| is_streamed(&graph.nodes[i])).collect();
    let is_plain = |i: &usize| graph.nodes[*i].op == Op::Update && graph.nodes[*i].attrs.size("sub") == 0;
    if chosen.iter().all(is_plain) {
        chosen.iter().for_each(|&i| graph.nodes[i].region = Region::Host);
    }
}

/// Whether a graph has updates of the host.
pub fn has_any(graph: &Graph) -> bool {
    graph.nodes.iter().any(|n| n.region == Region::Host)
}

/// Names of the stored tensors that updates of the host read or change.
pub fn tensors<'a>(graphs: &[&'a Graph]) -> BTreeSet<&'a str> {
    let nodes = graphs.iter().flat_map(|g| g.nodes.iter().map(move |n| (*g, n)));
    let of_host = nodes.filter(|(_, n)| n.region == Region::Host);
    of_host.flat_map(|(g, n)| n.args.iter().map(move |&v| g.info(v).name.as_str())).collect()
}

/// Sends the operands out, and moves the updates to where those have gone.
pub fn run(graph: &mut Graph) {
    let is_sent = |v: &Value| matches!(graph.info(*v).decl, None | Some(Kind::Input));
    let of_host = graph.nodes.iter().filter(|n| n.region == Region::Host);
    let sent: BTreeSet<Value> = of_host.flat_map(|n| n.args.iter().copied().filter(is_sent)).collect();
    let nodes = std::mem::take(&mut graph.nodes);
    let mut states: BTreeMap<Value, Value> = BTreeMap::new();
    let mut b = Builder::new(graph);
    b.at(0, Region::Forward);
    for &v in sent.iter().filter(|v| b.graph.info(**v).decl.is_some()).collect::<Vec<_>>() {
        states.insert(v, send(&mut b, v));
    }
    // Updates with the number of the visit behind which their last operand is sent, in order.
    let mut waiting: Vec<(usize, Node)> = Vec::new();
    let (mut visit, mut last) = (0, None);
    for node in nodes {
        if node.region == Region::Host {
            let args = node.args.iter().map(|v| states.get(v).copied().unwrap_or(*v)).collect();
            waiting.push((visit, Node { args, ..node }));
            continue;
        }
        let here = (node.region == Region::Forward, node.block);
        if last.replace(here).is_some_and(|last| last != here) {
            let ready = waiting.partition_point(|(sent, _)| *sent < visit);
            b.graph.nodes.extend(waiting.drain(..ready).map(|(_, node)| node));
            visit += 1;
        }
        let outs: Vec<Value> = node.outs.iter().copied().filter(|v| sent.contains(v)).collect();
        b.at(node.block, node.region);
        b.graph.nodes.push(node);
        for v in outs {
            states.insert(v, send(&mut b, v));
        }
    }
    b.graph.nodes.extend(waiting.into_iter().map(|(_, node)| node));
}

/// The state that a value is sent to.
fn send(b: &mut Builder, v: Value) -> Value {
    let name = format!("{}{FOR_HOST}", b.graph.info(v).name);
    let state = b.declare(Kind::State, &name, b.graph.ty(v).clone());
    b.push(&name, Op::Assign, &[state, v], &[]);
    state
}
