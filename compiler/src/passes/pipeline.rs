//! Which blocks are in the near memory when: the Superpipeline.
//!
//! Before: an ordered graph of which some stored tensors live in a far memory. After (a list of [`Stay`]s beside the
//! graph, which is only read): whenever a node reads such a tensor, a copy of it stays in the near memory; at most
//! `window` blocks stay at one time, those on their way included. A place that a block leaves is given to the next one
//! to come at once, so that the copy has the longest time to arrive; what is left behind is the block that is needed
//! last. Forward and backward being a zigzag, `2 (blocks - window)` copies a step come in, and no order needs fewer.
//! Steps repeat: what stays at the end of one is there when the next begins. Where they are asked to, embeddings and
//! heads come and go as blocks do. The optimizer's states, and the activations that `spill` sent away, have places of
//! their own. What the host updates is out of date here once backward has gone over it: it comes in again behind that
//! update, for the next forward, and its states never come. A block that is too large to be near as a whole comes and
//! goes in parts, each of some of its tensors: a part then is what a block is otherwise.

mod parcels;
mod parts;
mod slots;
mod tiers;

use crate::ir::graph::{Graph, Node, Region};
use crate::ir::ops::Op;
use crate::passes::live;
use parcels::parcels;
pub use parcels::{has_embeddings, streamed_weights};
use slots::{Copy, permanent, steady};
use std::collections::BTreeMap;
use std::ops::Range;
pub use tiers::in_host;

/// How much of the model the near memory holds at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Blocks, or parts of blocks, that stay at one time (`k`), at least 1.
    pub blocks: u32,
    /// Of these so many as one event of the link moves (`k'`), from 1 to `blocks`.
    pub prefetch: u32,
    /// Parts that a block comes and goes in, at least 1; a block of fewer tensors has fewer.
    pub parts: u32,
}

impl Window {
    /// A window of whole blocks.
    pub fn whole(blocks: u32, prefetch: u32) -> Window {
        Window { blocks, prefetch, parts: 1 }
    }
}

/// What is in a parcel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// Weights and constants.
    Weights,
    /// The optimizer's states, which only updates read.
    States,
    /// An activation between forward and backward.
    Activation,
    /// What an update of the host reads: a gradient, or a number.
    Gradient,
}

/// Tensors that move together: those of one block, of one kind, or of one part.
#[derive(Clone, PartialEq, Debug)]
pub struct Parcel {
    /// The block's name, and the part of it.
    pub block: String,
    /// What is in it.
    pub holds: Holds,
    /// The tensors' names, in the order in which they lie.
    pub tensors: Vec<String>,
    /// Whether plans take turns that each change another part of the model: all of them then find it in one place.
    pub rotates: bool,
    /// Whether the host updates one of the tensors.
    pub on_host: bool,
}

/// A visit: one walk of the nodes over a parcel, from the first node that reads it to the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// Index of the parcel.
    pub parcel: u32,
    /// First and last node of the graph.
    pub nodes: [u32; 2],
    /// The last node that changes one of its tensors.
    pub changed: Option<u32>,
    /// Whether the first node sets all of it, so that nothing need come in.
    pub is_made: bool,
    /// The first and the last node of the host that reads or changes one of its tensors: known of the last visit alone.
    pub host: Option<[u32; 2]>,
}

/// A copy of a parcel in the near memory, over one step of training or one run of an entry.
#[derive(Clone, PartialEq, Debug)]
pub struct Stay {
    /// Index of the parcel.
    pub parcel: u32,
    /// The node before which it begins to come in, and the node that waits for it; nothing when it is there from the
    /// run before, or made here.
    pub comes: Option<[u32; 2]>,
    /// Whether it is made here: a node sets all of it.
    pub is_made: bool,
    /// The node before which it goes back, changed, and the node that waits for that; each may be the end.
    pub leaves: Vec<[u32; 2]>,
    /// Nodes over which it has its place, first and last; the second part is at the beginning of the next run.
    pub lives: Vec<[u32; 2]>,
}

/// What streams, and when, in every graph.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pipeline {
    /// What lives in the far memory.
    pub parcels: Vec<Parcel>,
    /// The stays of every graph.
    pub stays: Vec<Vec<Stay>>,
}

/// Decides what lives in the far memory and when it is near. The first graph is the one that trains. Where groups of
/// blocks take turns in being trained (`rotates`), all weights of blocks live in the far memory and all states in the
/// near one, whatever group it is. With `embeddings`, weights as large as blocks are blocks of their own.
pub fn run(graphs: &[&Graph], window: Window, rotates: bool, embeddings: bool) -> Pipeline {
    let (mut parcels, blocks) = parcels(graphs, window.parts, rotates, embeddings);
    if blocks <= window.blocks as usize {
        parcels.retain(|p| p.holds == Holds::Activation);
    }
    let Some(&train) = graphs.first().filter(|_| !parcels.is_empty()) else { return Pipeline::default() };
    if rotates {
        let of_graph =
            |graph: &&Graph| stays(&visits(graph, &parcels, Holds::Weights), window, graph.nodes.len() as u32, 0);
        let stays = graphs.iter().map(of_graph).collect();
        return Pipeline { parcels, stays };
    }
    let states_near = near_states(&parcels, window);
    remove(&mut parcels, &states_near);
    let mut weights = window;
    let mut states = Window::whole(window.blocks.clamp(1, 2), 1);
    // What is changed and never leaves has no use for a place elsewhere. With fewer blocks to come and go, more may
    // stay.
    for (holds, places) in [(Holds::Weights, &mut weights), (Holds::States, &mut states)] {
        loop {
            let all = visits(train, &parcels, holds);
            let changes = |p: &u32| all.iter().any(|v| v.parcel == *p && v.changed.is_some());
            let stays_near: Vec<u32> = permanent(&all, *places).into_iter().filter(changes).collect();
            if stays_near.is_empty() {
                break;
            }
            places.blocks = places.blocks.saturating_sub(stays_near.len() as u32).max(1);
            remove(&mut parcels, &stays_near);
        }
    }
    let of_graph = |graph: &&Graph| {
        let nodes = graph.nodes.len() as u32;
        let mut found = stays(&visits(graph, &parcels, Holds::Weights), weights, nodes, 0);
        found.extend(stays(&visits(graph, &parcels, Holds::States), states, nodes, backward(graph)));
        found.extend(stays(&visits(graph, &parcels, Holds::Activation), ACTIVATIONS, nodes, 0));
        found.extend(stays(&visits(graph, &parcels, Holds::Gradient), GRADIENTS, nodes, 0));
        found
    };
    let stays = graphs.iter().map(of_graph).collect();
    Pipeline { parcels, stays }
}

/// Activations that stay at one time: one that is read, and one on its way.
const ACTIVATIONS: Window = Window { blocks: 2, prefetch: 1, parts: 1 };

/// What is sent to the host's updates at one time: one that is made, and one on its way.
const GRADIENTS: Window = Window { blocks: 2, prefetch: 1, parts: 1 };

fn remove(parcels: &mut Vec<Parcel>, gone: &[u32]) {
    let mut next = 0;
    parcels.retain(|_| {
        next += 1;
        !gone.contains(&(next - 1))
    });
}

/// Of the optimizer's states those that stay: all but what two places are for, spread over the blocks so that the
/// others come and go at an even pace. Those that the host updates are never near.
fn near_states(parcels: &[Parcel], window: Window) -> Vec<u32> {
    let is_state = |p: &u32| parcels[*p as usize].holds == Holds::States && !parcels[*p as usize].on_host;
    let states: Vec<u32> = (0..parcels.len() as u32).filter(is_state).collect();
    let count = states.len();
    let keep = if window.blocks as usize >= count { count } else { window.blocks.saturating_sub(2) as usize };
    (0..keep).map(|i| states[i * count / keep]).collect()
}

/// Brings the nodes of a block and part of the step together, in the order in which the blocks' first nodes stand: so
/// a block is visited once forward and once backward. A node that needs more than that follows what it needs.
pub fn gather(graph: &mut Graph) {
    let part = |i: usize| (graph.nodes[i].region == Region::Forward, graph.nodes[i].block);
    let mut first: BTreeMap<(bool, u32), usize> = BTreeMap::new();
    (0..graph.nodes.len()).for_each(|i| {
        first.entry(part(i)).or_insert(i);
    });
    let mut wanted: Vec<usize> = (0..graph.nodes.len()).collect();
    wanted.sort_by_key(|&i| (first[&part(i)], i));
    let before = live::dependencies(graph);
    let (mut done, mut order, mut late) = (vec![false; wanted.len()], Vec::new(), Vec::new());
    let mut groups = wanted.chunk_by(|&a, &b| part(a) == part(b));
    while let Some(group) = groups.next().or((!late.is_empty()).then_some(&[])) {
        late.extend_from_slice(group);
        late.retain(|&i| {
            let is_ready = before[i].iter().all(|&d| done[d as usize]);
            if is_ready {
                done[i] = true;
                order.push(i);
            }
            !is_ready
        });
    }
    graph.nodes = order.iter().map(|&i| graph.nodes[i].clone()).collect();
}

/// The visits of a graph to the parcels that hold this, in order.
fn visits(graph: &Graph, parcels: &[Parcel], holds: Holds) -> Vec<Visit> {
    let mut parcel_of: BTreeMap<&str, u32> = BTreeMap::new();
    for (p, parcel) in parcels.iter().enumerate().filter(|(_, p)| p.holds == holds) {
        parcel.tensors.iter().for_each(|name| {
            parcel_of.insert(name, p as u32);
        });
    }
    let mut visits: Vec<Visit> = Vec::new();
    let mut region_of: Vec<bool> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.region != Region::Host) {
        let (i, changes) = (i as u32, (node.op.def().mutates)(&node.attrs));
        let is_forward = node.region == Region::Forward;
        for (k, &v) in node.args.iter().enumerate().filter(|(_, v)| graph.info(**v).decl.is_some()) {
            let Some(&parcel) = parcel_of.get(graph.info(v).name.as_str()) else { continue };
            // The top block is walked forward and right after it backward: that is one visit.
            if visits.last().is_none_or(|last| last.parcel != parcel) {
                visits.push(Visit { parcel, nodes: [i, i], changed: None, is_made: sets(node, k), host: None });
                region_of.push(is_forward);
            }
            let last = visits.last_mut().expect("pushed above");
            last.nodes[1] = i;
            if k < changes {
                last.changed = Some(i);
            }
        }
    }
    let of_host = graph.nodes.iter().enumerate().filter(|(_, n)| n.region == Region::Host);
    let touched = of_host.flat_map(|(i, n)| n.args.iter().map(move |&v| (i as u32, v)));
    for (i, v) in touched {
        let Some(parcel) = parcel_of.get(graph.info(v).name.as_str()) else { continue };
        if let Some(last) = visits.iter_mut().rfind(|visit| visit.parcel == *parcel) {
            last.host = Some([last.host.map_or(i, |[first, _]| first), i]);
        }
    }
    visits
}

/// Whether a node sets all of its operand `k`, whatever that held.
fn sets(node: &Node, k: usize) -> bool {
    node.op == Op::Assign && k == 0
}

/// The first node behind which blocks are walked backward: no states are needed before, and where a head's loss takes
/// most memory they would be in the way.
fn backward(graph: &Graph) -> u32 {
    let is_backward = |n: &Node| n.region == Region::Backward && graph.is_numbered(n.block);
    graph.nodes.iter().position(is_backward).unwrap_or(0) as u32
}

/// The stays of one run of a graph of `nodes` nodes that is run again and again. No copy comes in before node `from`.
fn stays(visits: &[Visit], window: Window, nodes: u32, from: u32) -> Vec<Stay> {
    if visits.is_empty() {
        return Vec::new();
    }
    // What is made anew in every run is not kept for the next, and what the host changes neither.
    let is_last = |t: usize| visits[t + 1..].iter().all(|v| v.parcel != visits[t].parcel);
    let is_old = |t: usize| visits[t].host.is_some() || made(visits, visits[t].parcel).is_some() && is_last(t);
    let round = steady(visits, window, is_old);
    let frame = Frame { visits, nodes, start: round.start, from };
    let always = round.permanent.iter().map(|&parcel| Stay {
        parcel,
        comes: None,
        is_made: false,
        leaves: frame.leaves(parcel, 0..visits.len(), usize::MAX),
        lives: vec![[0, nodes.saturating_sub(1)]],
    });
    always.chain(round.copies.iter().map(|c| frame.stay(c))).collect()
}

/// The visit that makes a parcel, of one that is made anew in every run.
fn made(visits: &[Visit], parcel: u32) -> Option<usize> {
    visits.iter().position(|v| v.parcel == parcel && v.is_made)
}

/// From visits that count on over the rounds to the nodes of one run.
struct Frame<'v> {
    visits: &'v [Visit],
    nodes: u32,
    start: usize,
    from: u32,
}

impl Frame<'_> {
    /// The node before which visit `t` may begin: right behind the visit before it.
    fn boundary(&self, t: usize) -> u32 {
        match t % self.visits.len() {
            0 => 0,
            v => self.visits[v - 1].nodes[1] + 1,
        }
    }

    /// The node behind visit `t`.
    fn end(&self, t: usize) -> u32 {
        if (t + 1).is_multiple_of(self.visits.len()) { self.nodes } else { self.boundary(t + 1) }
    }

    fn stay(&self, copy: &Copy) -> Stay {
        let n = self.visits.len();
        let Visit { nodes: [needed, _], is_made, .. } = self.visits[copy.uses[0] % n];
        let from = match made(self.visits, copy.parcel) {
            Some(_) if is_made => needed,
            // What was made went back during the visit behind.
            Some(t) => self.end(t + 1),
            None => self.from,
        };
        let is_early = copy.loads < self.start || self.boundary(copy.loads) < from;
        // In the run before, the host's update may come behind where the copy could begin.
        let updated = self.visits.iter().filter(|v| v.parcel == copy.parcel).find_map(|v| v.host);
        let is_behind = updated.is_some_and(|[_, last]| self.boundary(copy.loads) <= last);
        let is_too_early = copy.loads < self.start && is_behind;
        let is_held_back = is_made || is_too_early || (is_early && (1..=needed).contains(&from));
        // A load that begins in the run before is over at its end, so that every run is whole in itself.
        let [begins, waits] = match is_held_back {
            true => [from, needed],
            false if copy.loads < self.start => [self.boundary(copy.loads), self.nodes],
            false => [self.boundary(copy.loads), needed],
        };
        let first = if is_held_back { copy.uses[0] } else { copy.loads };
        let rounds = first / n..=(copy.until - 1) / n;
        let lives = rounds.clone().map(|round| {
            let from = if round == *rounds.start() { begins } else { 0 };
            let to = if round == *rounds.end() { self.end(copy.until - 1) } else { self.nodes };
            [from, to - 1]
        });
        let leaves = self.leaves(copy.parcel, copy.uses[0]..copy.uses[1] + 1, copy.until);
        let comes = (!is_made).then_some([begins, waits]);
        Stay { parcel: copy.parcel, comes, is_made, leaves, lives: lives.collect() }
    }

    /// When a parcel goes back that some of the visits `uses` change, and whose place is given away before `until`.
    fn leaves(&self, parcel: u32, uses: Range<usize>, until: usize) -> Vec<[u32; 2]> {
        let n = self.visits.len();
        let own = uses.filter(|t| self.visits[t % n].parcel == parcel);
        let changes = own.filter_map(|t| Some((t, self.visits[t % n].changed?)));
        let leave = |(t, node): (usize, u32)| {
            let last = (until - 1).min(t + 1);
            let end = if last / n > t / n { self.nodes } else { self.end(last) };
            // The host's updates read it where it has gone to.
            [node + 1, self.visits[t % n].host.map_or(end, |[first, _]| end.min(first))]
        };
        changes.map(leave).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::slots::loads;
    use super::{Visit, Window, stays};

    /// Forward through all blocks and backward down to `lowest`; one node a visit.
    fn zigzag(blocks: u32, lowest: u32, changes: bool) -> Vec<Visit> {
        let order = (0..blocks).chain((lowest..blocks.saturating_sub(1)).rev());
        let visit = |(i, parcel): (usize, u32)| {
            let is_last = i as u32 + 1 >= blocks;
            let changed = (changes && is_last).then_some(i as u32);
            Visit { parcel, nodes: [i as u32; 2], changed, is_made: false, host: None }
        };
        order.enumerate().map(visit).collect()
    }

    fn on_demand(blocks: u32) -> Window {
        Window::whole(blocks, 0)
    }

    /// Misses of a window that always drops what was used longest ago, and of one that drops what came first.
    fn greedy(visits: &[Visit], window: u32, by_use: bool) -> usize {
        let (mut held, mut misses): (Vec<u32>, usize) = (Vec::new(), 0);
        for (t, visit) in visits.iter().cycle().take(40 * visits.len()).enumerate() {
            match held.iter().position(|&p| p == visit.parcel) {
                Some(at) if by_use => {
                    held.remove(at);
                    held.push(visit.parcel);
                }
                Some(_) => {}
                None => {
                    misses += usize::from(t >= 20 * visits.len());
                    if held.len() == window as usize {
                        held.remove(0);
                    }
                    held.push(visit.parcel);
                }
            }
        }
        misses.div_ceil(20)
    }

    #[test]
    fn frozen_blocks_come_in_as_often_as_they_must() {
        for blocks in 1..=32u32 {
            for window in 1..=blocks {
                let visits = zigzag(blocks, 0, false);
                let found = loads(&visits, on_demand(window), |_| false);
                assert_eq!(found as u32, 2 * (blocks - window), "{blocks} blocks, window {window}");
                let ahead = loads(&visits, Window::whole(window, 1), |_| false);
                assert!(ahead <= found + 2, "{blocks} blocks, window {window}: {ahead} when a place is kept ahead");
            }
        }
    }

    #[test]
    fn blocks_below_the_lowest_trained_one_come_in_once() {
        for blocks in 1..=32u32 {
            for window in 1..=blocks {
                for lowest in 1..blocks {
                    let n = blocks - lowest;
                    let least = blocks + n - 2 * window.min(n) - window.saturating_sub(n);
                    let found = loads(&zigzag(blocks, lowest, false), on_demand(window), |_| false) as u32;
                    let what = format!("{blocks} blocks from {lowest}, window {window}: {found}, formula {least}");
                    assert!((least..=least + 1).contains(&found), "{what}");
                }
            }
        }
    }

    /// What the far memory changes is out of date once backward has gone over it.
    #[test]
    fn blocks_that_the_far_memory_updates_come_in_for_every_forward() {
        for blocks in 1..=32u32 {
            for window in 1..=blocks {
                let visits = zigzag(blocks, 0, true);
                let found = loads(&visits, on_demand(window), |t| visits[t].changed.is_some()) as u32;
                assert_eq!(found, 2 * blocks - window, "{blocks} blocks, window {window}");
            }
        }
    }

    #[test]
    fn no_greedy_window_does_with_less() {
        for blocks in 1..=16u32 {
            for window in 1..=blocks {
                for lowest in 0..blocks {
                    let visits = zigzag(blocks, lowest, false);
                    let found = loads(&visits, on_demand(window), |_| false);
                    for by_use in [true, false] {
                        let other = greedy(&visits, window, by_use);
                        assert!(found <= other, "{blocks} from {lowest}, window {window}: {found}, greedy {other}");
                    }
                }
            }
        }
    }

    /// At every node no more copies have a place than the window has, whatever is changed and however they come in.
    #[test]
    fn a_window_holds_no_more_than_it_says() {
        for blocks in 1..=12u32 {
            for window in 1..=blocks {
                let ways = (1..=window).flat_map(|p| [(p, false, 0), (p, true, 0), (p, true, blocks - 1)]);
                for (prefetch, changes, from) in ways {
                    let visits = zigzag(blocks, 0, changes);
                    let nodes = visits.len() as u32;
                    let stays = stays(&visits, Window::whole(window, prefetch), nodes, from);
                    for node in 0..nodes {
                        let here = |l: &[u32; 2]| (l[0]..=l[1]).contains(&node);
                        let count = stays.iter().flat_map(|s| &s.lives).filter(|l| here(l)).count();
                        assert!(count <= window as usize, "{blocks}, {window}, {prefetch}: {count} at node {node}");
                        let parcel = visits[node as usize].parcel;
                        let is_there = stays.iter().any(|s| s.parcel == parcel && s.lives.iter().any(here));
                        assert!(is_there, "{blocks}, {window}, {prefetch}: {parcel} is not there at node {node}");
                    }
                    let is_held = |comes: [u32; 2]| comes[0] >= from || comes[1] < from;
                    assert!(stays.iter().filter_map(|s| s.comes).all(is_held), "{blocks}, {window}: before {from}");
                }
            }
        }
    }
}
