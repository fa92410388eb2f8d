//! Which blocks are in the near memory when: the Superpipeline.
//!
//! Before: an ordered graph of which some stored tensors live in a far memory. After (a list of [`Stay`]s beside the
//! graph, which is only read): whenever a node reads such a tensor, a copy of it stays in the near memory; at most
//! `window` blocks stay at one time, those on their way included. A place that a block leaves is given to the next
//! one to come at once, so that the copy has the longest time to arrive; what is left behind is the block that is
//! needed last. Forward and backward being a zigzag, `2 (blocks - window)` copies a step come in, and no order needs
//! fewer. Steps repeat: what stays at the end of one is there when the next begins.

use crate::ir::graph::{Graph, Kind, Node, Region};
use crate::passes::live;
use std::collections::BTreeMap;
use std::ops::Range;
use tinyforge_plan::part_of;

/// How much of the model the near memory holds at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Blocks that stay at one time (`k`), at least 1.
    pub blocks: u32,
    /// Blocks that one event of the link moves (`k'`), from 1 to `blocks`.
    pub prefetch: u32,
}

/// Tensors that move together: those of one block, of one kind, or of one part.
#[derive(Clone, PartialEq, Debug)]
pub struct Parcel {
    /// The block's name, and the part of it.
    pub block: String,
    /// Whether these are the optimizer's states, which only updates read.
    pub is_state: bool,
    /// The tensors' names, in the order in which they lie.
    pub tensors: Vec<String>,
    /// Whether plans take turns that each change another part of the model: all of them then find it in one place.
    pub rotates: bool,
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
}

/// A copy of a parcel in the near memory, over one step of training or one run of an entry.
#[derive(Clone, PartialEq, Debug)]
pub struct Stay {
    /// Index of the parcel.
    pub parcel: u32,
    /// The node before which it begins to come in, and the node that waits for it; nothing when it is there from the
    /// run before.
    pub comes: Option<[u32; 2]>,
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
/// near one, whatever group it is.
pub fn run(graphs: &[&Graph], window: Window, rotates: bool) -> Pipeline {
    let mut parcels = parcels(graphs, rotates);
    let blocks = parcels.iter().filter(|p| !p.is_state).count();
    let Some(&train) = graphs.first().filter(|_| blocks > window.blocks as usize) else { return Pipeline::default() };
    if rotates {
        let of_graph = |graph: &&Graph| stays(&visits(graph, &parcels, false), window, graph.nodes.len() as u32, 0);
        let stays = graphs.iter().map(of_graph).collect();
        return Pipeline { parcels, stays };
    }
    let states_near = near_states(&parcels, window);
    remove(&mut parcels, &states_near);
    let mut weights = window;
    let mut states = Window { blocks: window.blocks.clamp(1, 2), prefetch: 1 };
    // What is changed and never leaves has no use for a place elsewhere. With fewer blocks to come and go, more may
    // stay.
    for (is_state, places) in [(false, &mut weights), (true, &mut states)] {
        loop {
            let all = visits(train, &parcels, is_state);
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
        let mut found = stays(&visits(graph, &parcels, false), weights, nodes, 0);
        found.extend(stays(&visits(graph, &parcels, true), states, nodes, backward(graph)));
        found
    };
    let stays = graphs.iter().map(of_graph).collect();
    Pipeline { parcels, stays }
}

fn remove(parcels: &mut Vec<Parcel>, gone: &[u32]) {
    let mut next = 0;
    parcels.retain(|_| {
        next += 1;
        !gone.contains(&(next - 1))
    });
}

/// Of the optimizer's states those that stay: all but what two places are for, spread over the blocks so that the
/// others come and go at an even pace.
fn near_states(parcels: &[Parcel], window: Window) -> Vec<u32> {
    let states: Vec<u32> = (0..parcels.len() as u32).filter(|&p| parcels[p as usize].is_state).collect();
    let count = states.len();
    let keep = if window.blocks as usize >= count { count } else { window.blocks.saturating_sub(2) as usize };
    (0..keep).map(|i| states[i * count / keep]).collect()
}

/// A tensor that is changed and takes at most one part in so many of its block stays in the near memory.
const SMALL_PART: u64 = 64;

/// The parcels of numbered blocks: stored tensors that one block alone reads, in all graphs. Small ones that are
/// changed are left out, and so are their states; where groups take turns, small ones are not, but all states. Of other
/// blocks, the states that are stored in parts.
fn parcels(graphs: &[&Graph], rotates: bool) -> Vec<Parcel> {
    let is_resident = |user: &User, block: u64| match rotates {
        true => user.kind == Kind::State,
        false => user.changes && user.bytes * SMALL_PART <= block,
    };
    let users = users(graphs);
    let mut bytes_of: BTreeMap<&str, u64> = BTreeMap::new();
    let owned = users.iter().filter(|u| u.kind != Kind::State && u.is_of_numbered());
    owned.for_each(|u| *bytes_of.entry(u.blocks[0].0).or_default() += u.bytes);
    let mut parcels: Vec<Parcel> = Vec::new();
    for user in users.iter().filter(|u| u.is_of_numbered() || u.part().is_some()) {
        let is_state = user.kind == Kind::State;
        let (name, _) = user.blocks[0];
        let block = match user.part() {
            Some(part) => format!("{name}, part {part}"),
            None if is_resident(user, bytes_of.get(name).copied().unwrap_or(0)) => continue,
            None => name.to_string(),
        };
        let found = parcels.iter().position(|p| p.block == block && p.is_state == is_state);
        let at = found.unwrap_or_else(|| {
            parcels.push(Parcel { block, is_state, tensors: Vec::new(), rotates });
            parcels.len() - 1
        });
        parcels[at].tensors.push(user.name.to_string());
    }
    // What changes lies together, so that it goes back in one piece.
    let changes = |name: &String| users.iter().any(|u| u.name == name && u.changes);
    match rotates {
        true => parcels.iter_mut().for_each(|p| p.tensors.sort()),
        false => parcels.iter_mut().for_each(|p| p.tensors.sort_by_key(|name| !changes(name))),
    }
    parcels
}

/// A stored tensor and who reads it.
struct User<'a> {
    name: &'a str,
    kind: Kind,
    bytes: u64,
    /// Names, and whether they are numbered.
    blocks: Vec<(&'a str, bool)>,
    changes: bool,
}

impl User<'_> {
    /// Whether one numbered block alone reads it.
    fn is_of_numbered(&self) -> bool {
        matches!(self.blocks[..], [(_, true)])
    }

    /// The number of the part that it is, of a state that is stored in parts.
    fn part(&self) -> Option<u32> {
        part_of(self.name).filter(|_| self.kind == Kind::State).map(|(_, part)| part)
    }
}

fn users<'a>(graphs: &[&'a Graph]) -> Vec<User<'a>> {
    let mut users: Vec<User> = Vec::new();
    let mut at: BTreeMap<&str, usize> = BTreeMap::new();
    for graph in graphs {
        for node in &graph.nodes {
            let block = (graph.blocks[node.block as usize].as_str(), graph.is_numbered(node.block));
            let changes = (node.op.def().mutates)(&node.attrs);
            for (k, &v) in node.args.iter().enumerate() {
                let info = graph.info(v);
                let Some(kind @ (Kind::Weight | Kind::State | Kind::Const)) = info.decl else { continue };
                let i = *at.entry(&info.name).or_insert_with(|| {
                    let (name, bytes) = (info.name.as_str(), info.ty.bytes());
                    users.push(User { name, kind, bytes, blocks: Vec::new(), changes: false });
                    users.len() - 1
                });
                users[i].changes |= k < changes;
                if !users[i].blocks.contains(&block) {
                    users[i].blocks.push(block);
                }
            }
        }
    }
    users
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

/// The visits of a graph to the parcels that `is_state` says, in order.
fn visits(graph: &Graph, parcels: &[Parcel], is_state: bool) -> Vec<Visit> {
    let mut parcel_of: BTreeMap<&str, u32> = BTreeMap::new();
    for (p, parcel) in parcels.iter().enumerate().filter(|(_, p)| p.is_state == is_state) {
        parcel.tensors.iter().for_each(|name| {
            parcel_of.insert(name, p as u32);
        });
    }
    let mut visits: Vec<Visit> = Vec::new();
    let mut region_of: Vec<bool> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let (i, changes) = (i as u32, (node.op.def().mutates)(&node.attrs));
        let is_forward = node.region == Region::Forward;
        for (k, &v) in node.args.iter().enumerate().filter(|(_, v)| graph.info(**v).decl.is_some()) {
            let Some(&parcel) = parcel_of.get(graph.info(v).name.as_str()) else { continue };
            // The top block is walked forward and right after it backward: that is one visit.
            if visits.last().is_none_or(|last| last.parcel != parcel) {
                visits.push(Visit { parcel, nodes: [i, i], changed: None });
                region_of.push(is_forward);
            }
            let last = visits.last_mut().expect("pushed above");
            last.nodes[1] = i;
            if k < changes {
                last.changed = Some(i);
            }
        }
    }
    visits
}

/// A copy in a schedule of visits, which count on over the rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Copy {
    parcel: u32,
    /// The visit before which it may begin to come in.
    loads: usize,
    /// The visits that read it first and last.
    uses: [usize; 2],
    /// The visit before which its place is given away.
    until: usize,
}

/// Who stays when, visit by visit.
struct Slots<'v> {
    visits: &'v [Visit],
    window: Window,
    held: Vec<Copy>,
    done: Vec<Copy>,
    /// Places without a copy: the visit from which they are free.
    free: Vec<usize>,
    /// What may stay from round to round; without it, anything.
    kept: Option<Vec<u32>>,
}

impl Slots<'_> {
    fn visit(&self, t: usize) -> &Visit {
        &self.visits[t % self.visits.len()]
    }

    /// The visit from which the place of a copy last used in `last` is free: what was changed goes back during the
    /// next visit.
    fn free_after(&self, last: usize) -> usize {
        last + 1 + usize::from(self.visit(last).changed.is_some())
    }

    /// The visit that reads a parcel next, if it may stay until then.
    fn next_use(&self, parcel: u32, t: usize) -> usize {
        let n = self.visits.len();
        let is_kept = self.kept.as_ref().is_none_or(|kept| kept.contains(&parcel));
        let until = if is_kept { t + n } else { t - t % n + n - 1 };
        (t + 1..=until).find(|&u| self.visit(u).parcel == parcel).unwrap_or(usize::MAX)
    }

    /// Between rounds: drops what may not stay, and no longer counts on what is not there.
    fn turn(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        kept.retain(|p| self.held.iter().any(|c| c.parcel == *p));
        while let Some(at) = self.held.iter().position(|c| !kept.contains(&c.parcel)) {
            let mut gone = self.held.swap_remove(at);
            let last = gone.uses[1];
            gone.until = last + 1 + usize::from(self.visits[last % self.visits.len()].changed.is_some());
            self.free.push(gone.until);
            self.done.push(gone);
        }
    }

    /// Makes room for the parcel of visit `t`: gives the visit from which there is some.
    fn room(&mut self, t: usize) -> usize {
        if let Some(first) = (0..self.free.len()).min_by_key(|&i| self.free[i]) {
            return self.free.swap_remove(first).min(t);
        }
        let lead = self.window.prefetch as usize;
        // A place that has been free for a while lets its next copy come in beside the visits until now.
        let rank =
            |c: &Copy| (self.free_after(c.uses[1]) + lead <= t, self.next_use(c.parcel, t), usize::MAX - c.uses[1]);
        let victim = (0..self.held.len()).max_by_key(|&i| rank(&self.held[i])).expect("a window holds a block");
        let mut gone = self.held.swap_remove(victim);
        let from = self.free_after(gone.uses[1]).min(t);
        gone.until = from;
        self.done.push(gone);
        from
    }

    fn step(&mut self, t: usize, is_dropped: bool) {
        let parcel = self.visit(t).parcel;
        match self.held.iter_mut().find(|c| c.parcel == parcel) {
            Some(hit) => hit.uses[1] = t,
            None => {
                let loads = self.room(t);
                self.held.push(Copy { parcel, loads, uses: [t, t], until: usize::MAX });
            }
        }
        if is_dropped {
            let at = self.held.iter().position(|c| c.parcel == parcel).expect("it was just used");
            let mut gone = self.held.swap_remove(at);
            gone.until = self.free_after(t);
            self.free.push(gone.until);
            self.done.push(gone);
        }
    }
}

/// A round of visits in the steady state: the copies that come in during it, and the parcels that never leave.
#[derive(Clone, PartialEq, Debug, Default)]
struct Round {
    copies: Vec<Copy>,
    permanent: Vec<u32>,
    /// The number of the round's first visit.
    start: usize,
}

/// Follows the visits round by round until they repeat. `is_dropped` says of a visit that what it leaves is out of
/// date, since the far memory changes its parcel.
fn steady(visits: &[Visit], window: Window, is_dropped: impl Fn(usize) -> bool) -> Round {
    // Dropping what is needed last is best, but may take turns that differ from round to round. Then what stays between
    // rounds is fixed: what is visited twice first, and a place is left for the others.
    let count = |p: u32| visits.iter().filter(|v| v.parcel == p).count();
    let mut kept: Vec<u32> = Vec::new();
    visits.iter().for_each(|v| {
        if !kept.contains(&v.parcel) {
            kept.push(v.parcel);
        }
    });
    kept.sort_by_key(|&p| count(p) < 2);
    kept.truncate(window.blocks.saturating_sub(1) as usize);
    let found = follow(visits, window, &is_dropped, None);
    found.or_else(|| follow(visits, window, &is_dropped, Some(kept))).expect("with a fixed beginning rounds repeat")
}

/// Rounds that are followed before they count as never repeating.
const ROUNDS: usize = 8;

fn follow(
    visits: &[Visit],
    window: Window,
    is_dropped: &dyn Fn(usize) -> bool,
    kept: Option<Vec<u32>>,
) -> Option<Round> {
    let n = visits.len();
    // Every round may find one block less to count on.
    let rounds = ROUNDS + kept.as_ref().map_or(0, Vec::len);
    let free = vec![0; window.blocks.max(1) as usize];
    let mut slots = Slots { visits, window, held: Vec::new(), done: Vec::new(), free, kept };
    let came_in = |slots: &Slots, round: usize| -> Vec<Copy> {
        let all = slots.done.iter().chain(&slots.held).copied();
        let mut copies: Vec<Copy> = all.filter(|c| (round * n..(round + 1) * n).contains(&c.uses[0])).collect();
        copies.sort_by_key(|c| (c.uses[0], c.loads));
        copies
    };
    for round in 0..rounds {
        (round * n..(round + 1) * n).for_each(|t| slots.step(t, is_dropped(t % n)));
        slots.turn();
        if round < 3 {
            continue;
        }
        // A copy that came in two rounds ago has ended by now, or never will.
        let (a, b) = (came_in(&slots, round - 3), came_in(&slots, round - 2));
        let shifted = |c: &Copy| Copy {
            loads: c.loads + n,
            uses: [c.uses[0] + n, c.uses[1] + n],
            until: c.until.saturating_add(n),
            ..*c
        };
        if a.iter().map(shifted).eq(b.iter().copied()) && b.iter().all(|c| c.until != usize::MAX) {
            let start = (round - 2) * n;
            let permanent = slots.held.iter().filter(|c| c.uses[0] < start).map(|c| c.parcel).collect();
            let mut round = Round { copies: b, permanent, start };
            group(&mut round.copies, window.prefetch as usize);
            return Some(round);
        }
    }
    None
}

/// Copies that come in together begin when the last of their places is free, but not after the first is needed.
fn group(copies: &mut [Copy], prefetch: usize) {
    for event in copies.chunks_mut(prefetch.max(1)) {
        let needed = event.iter().map(|c| c.uses[0]).min().unwrap_or(0);
        let free = event.iter().map(|c| c.loads).max().unwrap_or(0);
        event.iter_mut().for_each(|c| c.loads = free.min(needed).max(c.loads));
    }
}

/// Copies that come in during a round of visits. `is_dropped` says of a visit that what it leaves is out of date.
#[cfg(test)]
fn loads(visits: &[Visit], window: Window, is_dropped: impl Fn(usize) -> bool) -> usize {
    steady(visits, window, is_dropped).copies.len()
}

/// The parcels that are there during all visits: what of them is changed need not live in the far memory.
fn permanent(visits: &[Visit], window: Window) -> Vec<u32> {
    steady(visits, window, |_| false).permanent
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
    let round = steady(visits, window, |_| false);
    let frame = Frame { visits, nodes, start: round.start, from };
    let always = round.permanent.iter().map(|&parcel| Stay {
        parcel,
        comes: None,
        leaves: frame.leaves(parcel, 0..visits.len(), usize::MAX),
        lives: vec![[0, nodes.saturating_sub(1)]],
    });
    always.chain(round.copies.iter().map(|c| frame.stay(c))).collect()
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
        let needed = self.visits[copy.uses[0] % n].nodes[0];
        let is_early = copy.loads < self.start || self.boundary(copy.loads) < self.from;
        let is_held_back = is_early && (1..=needed).contains(&self.from);
        // A load that begins in the run before is over at its end, so that every run is whole in itself.
        let [begins, waits] = match is_held_back {
            true => [self.from, needed],
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
        Stay { parcel: copy.parcel, comes: Some([begins, waits]), leaves, lives: lives.collect() }
    }

    /// When a parcel goes back that some of the visits `uses` change, and whose place is given away before `until`.
    fn leaves(&self, parcel: u32, uses: Range<usize>, until: usize) -> Vec<[u32; 2]> {
        let n = self.visits.len();
        let own = uses.filter(|t| self.visits[t % n].parcel == parcel);
        let changes = own.filter_map(|t| Some((t, self.visits[t % n].changed?)));
        let leave = |(t, node): (usize, u32)| {
            let last = (until - 1).min(t + 1);
            [node + 1, if last / n > t / n { self.nodes } else { self.end(last) }]
        };
        changes.map(leave).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Visit, Window, loads, stays};

    /// Forward through all blocks and backward down to `lowest`; one node a visit.
    fn zigzag(blocks: u32, lowest: u32, changes: bool) -> Vec<Visit> {
        let order = (0..blocks).chain((lowest..blocks.saturating_sub(1)).rev());
        let visit = |(i, parcel): (usize, u32)| {
            let is_last = i as u32 + 1 >= blocks;
            Visit { parcel, nodes: [i as u32; 2], changed: (changes && is_last).then_some(i as u32) }
        };
        order.enumerate().map(visit).collect()
    }

    fn on_demand(blocks: u32) -> Window {
        Window { blocks, prefetch: 0 }
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
                let ahead = loads(&visits, Window { blocks: window, prefetch: 1 }, |_| false);
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
                    let stays = stays(&visits, Window { blocks: window, prefetch }, nodes, from);
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
