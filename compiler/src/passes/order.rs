//! Reorders nodes for a lower peak.
//!
//! Before: any graph. After: the same nodes, each value defined before it is read, every read of a tensor before the
//! node that changes it. A node that frees more than it makes moves up to where its last operand is ready; one that
//! makes more than it frees moves down to its first reader. Updates thereby stand right behind the last
//! contribution to their gradient and the last read of the weight.

use crate::ir::graph::{Graph, Region, Value};
use crate::passes::live;

/// Reorders, and keeps the old order where the new one is no better.
pub fn run(graph: &mut Graph) {
    for direction in [hoist as fn(&Graph) -> Vec<u32>, sink] {
        let before = peak(graph);
        let order = direction(graph);
        let old = graph.nodes.clone();
        graph.nodes = order.iter().map(|&i| old[i as usize].clone()).collect();
        if peak(graph) > before {
            graph.nodes = old;
        }
    }
}

fn peak(graph: &Graph) -> u64 {
    live::profile(graph, |_| 0).into_iter().max().unwrap_or(0)
}

/// Bytes made minus bytes freed by each node.
fn balances(graph: &Graph) -> Vec<i64> {
    let lives = live::lives(graph);
    let bytes = |v: &Value| graph.ty(*v).bytes() as i64;
    let balance = |(i, node): (usize, &crate::ir::graph::Node)| {
        let mut freed: Vec<&Value> =
            node.args.iter().filter(|a| lives[a.index()].is_some_and(|l| l.end == i as u32)).collect();
        freed.sort_unstable();
        freed.dedup();
        node.outs.iter().map(bytes).sum::<i64>() - freed.into_iter().map(bytes).sum::<i64>()
    };
    graph.nodes.iter().enumerate().map(balance).collect()
}

/// Nodes that free memory run as soon as they can. Forward nodes stay: moving them frees nothing that backward
/// does not keep anyway.
fn hoist(graph: &Graph) -> Vec<u32> {
    let (before, balance) = (live::dependencies(graph), balances(graph));
    let n = graph.nodes.len();
    let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
    let mut after: Vec<Vec<u32>> = vec![Vec::new(); n];
    for (i, deps) in before.iter().enumerate() {
        deps.iter().for_each(|&d| after[d as usize].push(i as u32));
    }
    let made = |i: u32| graph.nodes[i as usize].outs.iter().map(|&o| graph.ty(o).bytes()).sum::<u64>();
    let eager = |i: u32| balance[i as usize] <= 0 && graph.nodes[i as usize].region != Region::Forward;
    let (mut order, mut done) = (Vec::with_capacity(n), vec![false; n]);
    for next in 0..n as u32 {
        let mut stack = vec![next];
        while let Some(i) = stack.pop() {
            if done[i as usize] || missing[i as usize] > 0 {
                continue;
            }
            done[i as usize] = true;
            order.push(i);
            after[i as usize].iter().for_each(|&a| missing[a as usize] -= 1);
            let is_ready = |a: &u32| missing[*a as usize] == 0 && *a > next && eager(*a);
            let mut ready: Vec<u32> = after[i as usize].iter().copied().filter(is_ready).collect();
            // The last one pushed runs first: what makes least, such as an update, before what makes more.
            ready.sort_by_key(|&a| (std::cmp::Reverse(made(a)), std::cmp::Reverse(a)));
            stack.extend(ready);
        }
    }
    order
}

/// Nodes that make more than they free run right before their first reader.
fn sink(graph: &Graph) -> Vec<u32> {
    let (before, balance) = (live::dependencies(graph), balances(graph));
    let n = graph.nodes.len();
    let late = |i: u32| balance[i as usize] > 0 && graph.nodes[i as usize].region != Region::Forward;
    let (mut order, mut done) = (Vec::with_capacity(n), vec![false; n]);
    for i in 0..n as u32 {
        if !late(i) {
            emit(i, &before, &mut done, &mut order);
        }
    }
    (0..n as u32).for_each(|i| emit(i, &before, &mut done, &mut order));
    order
}

fn emit(i: u32, before: &[Vec<u32>], done: &mut [bool], order: &mut Vec<u32>) {
    let mut stack = vec![(i, 0)];
    while let Some((i, next)) = stack.pop() {
        if done[i as usize] {
            continue;
        }
        match before[i as usize].get(next) {
            Some(&d) => {
                stack.push((i, next + 1));
                stack.push((d, 0));
            }
            None => {
                done[i as usize] = true;
                order.push(i);
            }
        }
    }
}
