//! Gives every value a place in the arena.
//!
//! Before: an ordered graph. After (a [`Placement`] beside the graph, which is only read): values that are live at
//! one time lie apart, a result lies in a dying operand's place where its op allows it, and everything starts at a
//! multiple of the target's alignment. Stored tensors have places of their own below all others.

use crate::ir::graph::{Graph, Kind, Value};
use crate::ir::ops::Op;
use crate::passes::live::{self, Life};
use crate::target::Target;

/// Where everything lies, counted from the end of the stored tensors.
#[derive(Clone, Debug)]
pub struct Placement {
    /// For every value its place; `None` for stored tensors and for what lies where a stored tensor lies.
    pub offsets: Vec<Option<u64>>,
    /// For results that are accumulated in a stored tensor: that tensor.
    pub stored_in: Vec<Option<Value>>,
    /// For every node the place of its scratch.
    pub scratch: Vec<u64>,
    /// First byte past everything.
    pub bytes: u64,
    /// Most bytes live at one time, in-place results counted once.
    pub lower_bound_bytes: u64,
    /// The node at which that is.
    pub peak_node: usize,
}

/// Values that share one place, and when it is taken.
#[derive(Clone, Debug)]
struct Room {
    bytes: u64,
    life: Life,
}

/// Places all values of a graph; `scratch` gives bytes per node.
pub fn run(graph: &Graph, scratch: &[u64], target: &Target) -> Placement {
    let stored_in = accumulated_in_place(graph);
    let (room_of, rooms) = share(graph, &stored_in, target);
    let mut all = rooms;
    let first_scratch = all.len();
    for (i, &bytes) in scratch.iter().enumerate() {
        all.push(Room { bytes: target.align(bytes), life: Life { start: i as u32, end: i as u32 } });
    }
    let (offsets, bytes) = best_fit(&all);
    let (lower_bound_bytes, peak_node) = lower_bound(&all, graph.nodes.len());
    Placement {
        offsets: room_of.iter().map(|r| r.map(|r| offsets[r])).collect(),
        stored_in,
        scratch: (0..scratch.len()).map(|i| offsets[first_scratch + i]).collect(),
        bytes,
        lower_bound_bytes,
        peak_node,
    }
}

/// Results that start from a stored accumulator and are only stored back to it need no place of their own.
fn accumulated_in_place(graph: &Graph) -> Vec<Option<Value>> {
    let (defs, uses) = (graph.definitions(), graph.uses());
    let mut stored_in = vec![None; graph.values.len()];
    for node in graph.nodes.iter().filter(|n| n.op == Op::Assign) {
        let (state, new) = (node.args[0], node.args[1]);
        let Some(d) = defs[new.index()] else { continue };
        let maker = &graph.nodes[d as usize];
        let allowed = maker
            .op
            .def()
            .in_place
            .iter()
            .any(|&(a, o)| maker.args.get(a) == Some(&state) && maker.outs.get(o) == Some(&new));
        let reads_once = maker.args.iter().filter(|a| **a == state).count() == 1;
        if allowed && reads_once && uses[new.index()].len() == 1 && uses[state.index()].len() == 2 {
            stored_in[new.index()] = Some(state);
        }
    }
    stored_in
}

/// Puts values into rooms: a result joins the room of an operand that dies at its node, where the op allows it.
fn share(graph: &Graph, stored_in: &[Option<Value>], target: &Target) -> (Vec<Option<usize>>, Vec<Room>) {
    let lives = live::lives(graph);
    let mut room_of: Vec<Option<usize>> = vec![None; graph.values.len()];
    let mut rooms: Vec<Room> = Vec::new();
    for v in graph.declared(Kind::Input) {
        room_of[v.index()] = Some(rooms.len());
        let bytes = target.align(graph.ty(v).bytes());
        rooms.push(Room { bytes, life: lives[v.index()].expect("inputs have a life") });
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let mut taken = Vec::new();
        for (o, &out) in node.outs.iter().enumerate() {
            if stored_in[out.index()].is_some() {
                continue;
            }
            let life = lives[out.index()].expect("results have a life");
            let bytes = target.align(graph.ty(out).bytes());
            // A result that is added to an accumulator can only lie where that lies.
            let acc = node.op.def().acc.filter(|acc| acc.out == o && acc.arg < node.args.len());
            let fits = |&&(a, to): &&(usize, usize)| {
                if acc.is_some_and(|acc| acc.arg != a) {
                    return false;
                }
                let Some(&arg) = node.args.get(a).filter(|_| to == o) else { return false };
                let Some(room) = room_of[arg.index()] else { return false };
                let once = node.args.iter().filter(|x| room_of[x.index()] == Some(room)).count() == 1;
                let dies = rooms[room].life.end == i as u32 || node.op == Op::Reshape;
                let is_input = graph.info(arg).decl == Some(Kind::Input);
                dies && once && !is_input && rooms[room].bytes == bytes && !taken.contains(&room)
            };
            let room = match node.op.def().in_place.iter().find(fits) {
                Some(&(a, _)) => {
                    let room = room_of[node.args[a].index()].expect("found above");
                    rooms[room].life.end = rooms[room].life.end.max(life.end);
                    room
                }
                None => {
                    rooms.push(Room { bytes, life });
                    rooms.len() - 1
                }
            };
            taken.push(room);
            room_of[out.index()] = Some(room);
        }
    }
    (room_of, rooms)
}

fn lower_bound(rooms: &[Room], nodes: usize) -> (u64, usize) {
    let mut delta = vec![0i64; nodes + 2];
    for room in rooms {
        delta[room.life.start as usize] += room.bytes as i64;
        delta[room.life.end as usize + 1] -= room.bytes as i64;
    }
    let (mut live, mut most, mut at) = (0i64, 0i64, 0);
    for (i, d) in delta[..nodes].iter().enumerate() {
        live += d;
        if live > most {
            (most, at) = (live, i);
        }
    }
    (most as u64, at)
}

/// Tries several orders of rooms, each placed at the lowest offset that is free over its whole life; keeps the best.
fn best_fit(rooms: &[Room]) -> (Vec<u64>, u64) {
    let span = |r: &Room| u64::from(r.life.end - r.life.start) + 1;
    type Key = fn(&Room, u64) -> (u64, u64);
    let keys: [Key; 4] = [
        |r, _| (u64::MAX - r.bytes, u64::from(r.life.start)),
        |r, span| (u64::MAX - span, u64::MAX - r.bytes),
        |r, span| (u64::MAX - r.bytes.saturating_mul(span), u64::from(r.life.start)),
        |r, _| (u64::from(r.life.start), u64::MAX - r.bytes),
    ];
    let attempts = keys.iter().map(|key| {
        let mut order: Vec<usize> = (0..rooms.len()).filter(|&i| rooms[i].bytes > 0).collect();
        order.sort_by_key(|&i| (key(&rooms[i], span(&rooms[i])), i));
        first_fit(rooms, &order)
    });
    attempts.min_by_key(|(_, bytes)| *bytes).unwrap_or((vec![0; rooms.len()], 0))
}

fn first_fit(rooms: &[Room], order: &[usize]) -> (Vec<u64>, u64) {
    let mut offsets = vec![0; rooms.len()];
    // Placed rooms, by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut top = 0;
    for &i in order {
        let room = &rooms[i];
        let mut at = 0;
        for &p in &placed {
            let other = &rooms[p];
            let apart = other.life.end < room.life.start || room.life.end < other.life.start;
            if apart || offsets[p] + other.bytes <= at {
                continue;
            }
            if offsets[p] >= at + room.bytes {
                break;
            }
            at = offsets[p] + other.bytes;
        }
        offsets[i] = at;
        top = top.max(at + room.bytes);
        let position = placed.partition_point(|&p| offsets[p] <= at);
        placed.insert(position, i);
    }
    (offsets, top)
}
