//! Lifetimes of values over a graph's nodes, and what must stand before what. Shared by passes; not a pass.

use crate::ir::graph::{Graph, Value};

/// From the node that defines a value (or 0 for an input) to the last node that reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// First node at which the value takes memory.
    pub start: u32,
    /// Last node at which it does.
    pub end: u32,
}

/// Lifetimes of all values that nodes define or that are inputs; `None` for stored tensors.
/// Results live to the end.
pub fn lives(graph: &Graph) -> Vec<Option<Life>> {
    let last = graph.nodes.len().saturating_sub(1) as u32;
    let mut lives: Vec<Option<Life>> = vec![None; graph.values.len()];
    for v in graph.declared(crate::ir::graph::Kind::Input) {
        lives[v.index()] = Some(Life { start: 0, end: 0 });
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let i = i as u32;
        for out in &node.outs {
            lives[out.index()] = Some(Life { start: i, end: i });
        }
        for arg in &node.args {
            if let Some(life) = &mut lives[arg.index()] {
                life.end = i;
            }
        }
    }
    for (_, v) in &graph.results {
        if let Some(life) = &mut lives[v.index()] {
            life.end = last;
        }
    }
    lives
}

/// Bytes live at every node, and where they are most; `extra` is scratch per node.
pub fn profile(graph: &Graph, extra: impl Fn(usize) -> u64) -> Vec<u64> {
    // A graph without nodes has declared tensors all the same, whose life ends behind node 0.
    let mut delta = vec![0i64; graph.nodes.len() + 2];
    for (i, life) in lives(graph).iter().enumerate() {
        if let Some(life) = life {
            let bytes = graph.ty(Value(i as u32)).bytes() as i64;
            delta[life.start as usize] += bytes;
            delta[life.end as usize + 1] -= bytes;
        }
    }
    let mut live = 0;
    let sum = delta[..graph.nodes.len()].iter().enumerate().map(|(i, d)| {
        live += d;
        live as u64 + extra(i)
    });
    sum.collect()
}

/// For every node the nodes that must stand before it: definitions of operands, and around changes of a tensor
/// every earlier read or change of it.
pub fn dependencies(graph: &Graph) -> Vec<Vec<u32>> {
    let mut def = vec![None; graph.values.len()];
    let mut readers: Vec<Vec<u32>> = vec![Vec::new(); graph.values.len()];
    let mut changer: Vec<Option<u32>> = vec![None; graph.values.len()];
    let mut before = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let changes = (node.op.def().mutates)(&node.attrs);
        let mut deps: Vec<u32> = node.args.iter().filter_map(|a| def[a.index()]).collect();
        for (k, &a) in node.args.iter().enumerate() {
            deps.extend(changer[a.index()]);
            if k < changes {
                deps.append(&mut readers[a.index()]);
                changer[a.index()] = Some(i as u32);
            } else {
                readers[a.index()].push(i as u32);
            }
        }
        node.outs.iter().for_each(|o| def[o.index()] = Some(i as u32));
        deps.sort_unstable();
        deps.dedup();
        before.push(deps);
    }
    before
}
