//! Gives every value a place in the arena.
//!
//! Before: an ordered graph. After (a [`Placement`] beside the graph, which is only read): values that are live at
//! one time lie apart, a result lies in a dying operand's place where its op allows it, or over a part of it where the
//! device's kernel does, and everything starts at a multiple of the target's alignment. Stored tensors have places of
//! their own below all others, save those of a far memory: their copies have a place for as long as they stay.

mod taken;

use crate::ir::graph::{Graph, Kind, Value};
use crate::ir::ops::Op;
use crate::passes::live::{self, Life};
use crate::target::Target;
use taken::Taken;

/// Where everything lies, counted from the end of the stored tensors.
#[derive(Clone, Debug)]
pub struct Placement {
    /// For every value its place; `None` for stored tensors and for what lies where a stored tensor lies.
    pub offsets: Vec<Option<u64>>,
    /// For results that are accumulated in a stored tensor: that tensor.
    pub stored_in: Vec<Option<Value>>,
    /// For every node the place of its scratch.
    pub scratch: Vec<u64>,
    /// For every copy that stays a while its place.
    pub copies: Vec<u64>,
    /// First byte past everything.
    pub bytes: u64,
    /// Most bytes live at one time, in-place results counted once.
    pub lower_bound_bytes: u64,
    /// The node at which that is.
    pub peak_node: usize,
}

/// What nodes need beside their operands and results.
#[derive(Clone, Default, Debug)]
pub struct Needs {
    /// Bytes of scratch.
    pub scratch: Vec<u64>,
    /// Where the first result may lie over a first operand that dies there: at least how many bytes before it.
    pub leads: Vec<Option<u64>>,
}

/// Values that share one place, and when it is taken.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// First byte in the room.
    at: u64,
    bytes: u64,
    life: Life,
}

/// Pieces with fixed distances: each but the first lies over one that dies where it begins.
#[derive(Clone, Debug)]
struct Room {
    pieces: Vec<Piece>,
    /// Of all pieces together.
    bytes: u64,
    life: Life,
}

impl Room {
    fn new(bytes: u64, life: Life) -> Room {
        Room { pieces: vec![Piece { at: 0, bytes, life }], bytes, life }
    }

    /// Adds a piece that begins `lead` bytes before piece `over`; gives its number.
    fn lay_over(&mut self, over: usize, lead: u64, bytes: u64, life: Life) -> usize {
        let more = lead.saturating_sub(self.pieces[over].at);
        self.pieces.iter_mut().for_each(|piece| piece.at += more);
        self.pieces.push(Piece { at: self.pieces[over].at - lead, bytes, life });
        self.bytes = self.pieces.iter().map(|piece| piece.at + piece.bytes).max().unwrap_or(0);
        self.life.end = self.life.end.max(life.end);
        self.pieces.len() - 1
    }

    /// Bytes from the first to the last that is taken at a node.
    fn bytes_at(&self, node: u32) -> u64 {
        let live = || self.pieces.iter().filter(|p| p.life.start <= node && node <= p.life.end);
        let (first, end) = (live().map(|p| p.at).min(), live().map(|p| p.at + p.bytes).max());
        end.unwrap_or(0) - first.unwrap_or(0)
    }
}

/// A value's room and its piece there.
type Home = (usize, usize);

/// A copy of tensors of a far memory: its bytes, and the nodes over which it has a place, `again` in the next run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Bytes of the tensors, each aligned.
    pub bytes: u64,
    /// When it has a place.
    pub life: Life,
    /// When it has it in the next run, from the first node on.
    pub again: Option<Life>,
}

impl Guest {
    fn room(&self, target: &Target) -> Room {
        let mut room = Room::new(target.align(self.bytes), self.life);
        if let Some(again) = self.again {
            room.pieces.push(Piece { life: again, ..room.pieces[0] });
            room.life = Life { start: self.life.start.min(again.start), end: self.life.end.max(again.end) };
        }
        room
    }
}

/// Places all values of a graph and the copies that stay a while.
pub fn run(graph: &Graph, needs: &Needs, guests: &[Guest], target: &Target) -> Placement {
    let stored_in = accumulated_in_place(graph);
    let (homes, mut all) = share(graph, &stored_in, &needs.leads, target);
    let first_scratch = all.len();
    all.extend(scratch_rooms(&needs.scratch, target));
    let first_guest = all.len();
    all.extend(guests.iter().map(|guest| guest.room(target)));
    let profile = live_bytes(&all, graph.nodes.len());
    let lower_bound_bytes = profile.iter().copied().max().unwrap_or(0);
    let (offsets, bytes) = best_fit(&all, &profile, lower_bound_bytes);
    let peak_node = profile.iter().position(|&live| live == lower_bound_bytes).unwrap_or(0);
    Placement {
        offsets: homes.iter().map(|home| home.map(|(r, p)| offsets[r] + all[r].pieces[p].at)).collect(),
        stored_in,
        scratch: (0..needs.scratch.len()).map(|i| offsets[first_scratch + i]).collect(),
        copies: (0..guests.len()).map(|i| offsets[first_guest + i]).collect(),
        bytes,
        lower_bound_bytes,
        peak_node,
    }
}

/// Bytes live at every node, in-place results counted once: what no placement can do with less than.
pub fn profile(graph: &Graph, needs: &Needs, target: &Target) -> Vec<u64> {
    let (_, mut rooms) = share(graph, &accumulated_in_place(graph), &needs.leads, target);
    rooms.extend(scratch_rooms(&needs.scratch, target));
    live_bytes(&rooms, graph.nodes.len())
}

fn scratch_rooms<'a>(scratch: &'a [u64], target: &'a Target) -> impl Iterator<Item = Room> + 'a {
    let life = |i: usize| Life { start: i as u32, end: i as u32 };
    scratch.iter().enumerate().map(move |(i, &bytes)| Room::new(target.align(bytes), life(i)))
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

/// Puts values into rooms: a result joins the room of an operand that dies at its node, where the op or its kernel
/// allows it.
fn share(
    graph: &Graph,
    stored_in: &[Option<Value>],
    leads: &[Option<u64>],
    target: &Target,
) -> (Vec<Option<Home>>, Vec<Room>) {
    let lives = live::lives(graph);
    let mut homes: Vec<Option<Home>> = vec![None; graph.values.len()];
    let mut rooms: Vec<Room> = Vec::new();
    for v in graph.declared(Kind::Input) {
        homes[v.index()] = Some((rooms.len(), 0));
        let bytes = target.align(graph.ty(v).bytes());
        rooms.push(Room::new(bytes, lives[v.index()].expect("inputs have a life")));
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
            // The place of an operand that dies here and is read once.
            let dying = |arg: Value| {
                let home = homes[arg.index()]?;
                let once = node.args.iter().filter(|x| homes[x.index()].is_some_and(|(r, _)| r == home.0)).count() == 1;
                // A graph's results outlive its last node.
                let stays = || graph.results.iter().any(|(_, v)| homes[v.index()] == Some(home));
                let dies = rooms[home.0].pieces[home.1].life.end == i as u32 && !stays() || node.op == Op::Reshape;
                (dies && once && !taken.contains(&home.0)).then_some(home)
            };
            let fits = |&(a, to): &(usize, usize)| {
                if acc.is_some_and(|acc| acc.arg != a) {
                    return None;
                }
                let &arg = node.args.get(a).filter(|_| to == o)?;
                let is_input = graph.info(arg).decl == Some(Kind::Input);
                dying(arg).filter(|&(r, p)| !is_input && rooms[r].pieces[p].bytes == bytes)
            };
            let over = leads[i].filter(|_| o == 0).and_then(|lead| Some((dying(*node.args.first()?)?, lead)));
            let in_place = node.op.def().in_place.iter().find_map(fits);
            let home = match (in_place, over) {
                (Some((r, p)), _) => {
                    let end = rooms[r].pieces[p].life.end.max(life.end);
                    rooms[r].pieces[p].life.end = end;
                    rooms[r].life.end = rooms[r].life.end.max(end);
                    (r, p)
                }
                (None, Some(((r, p), lead))) => (r, rooms[r].lay_over(p, target.align(lead), bytes, life)),
                (None, None) => {
                    rooms.push(Room::new(bytes, life));
                    (rooms.len() - 1, 0)
                }
            };
            taken.push(home.0);
            homes[out.index()] = Some(home);
        }
    }
    (homes, rooms)
}

fn live_bytes(rooms: &[Room], nodes: usize) -> Vec<u64> {
    let mut delta = vec![0i64; nodes + 2];
    for room in rooms {
        let ends = room.pieces.iter().flat_map(|p| [p.life.start, p.life.end + 1, p.life.end]);
        let mut changes: Vec<u32> = ends.filter(|_| room.pieces.len() > 1).collect();
        changes.extend([room.life.start, room.life.end + 1]);
        changes.sort_unstable();
        changes.dedup();
        let mut before = 0;
        for at in changes {
            let now = room.bytes_at(at) as i64;
            delta[at as usize] += now - before;
            before = now;
        }
    }
    let mut live = 0;
    let sums = delta[..nodes].iter().map(|d| {
        live += d;
        live as u64
    });
    sums.collect()
}

/// Every room's place, and the first byte past them.
type Fit = (Vec<u64>, u64);

/// Tries several orders of rooms, each placed at the lowest offset that is free over its whole life; keeps the best,
/// and improves it where it is far above the bound.
fn best_fit(rooms: &[Room], profile: &[u64], bound: u64) -> Fit {
    let span = |r: &Room| u64::from(r.life.end - r.life.start) + 1;
    let crowd = |r: &Room| profile[r.life.start as usize..=r.life.end as usize].iter().copied().max().unwrap_or(0);
    let crowds: Vec<u64> = rooms.iter().map(crowd).collect();
    type Key = fn(&Room, u64, u64) -> (u64, u64);
    let keys: [Key; 5] = [
        |r, _, _| (u64::MAX - r.bytes, u64::from(r.life.start)),
        |r, span, _| (u64::MAX - span, u64::MAX - r.bytes),
        |r, span, _| (u64::MAX - r.bytes.saturating_mul(span), u64::from(r.life.start)),
        |r, _, _| (u64::from(r.life.start), u64::MAX - r.bytes),
        |r, _, crowd| (u64::MAX - crowd, u64::MAX - r.bytes),
    ];
    let mut best: Option<(Vec<usize>, Fit)> = None;
    for key in keys {
        let mut order: Vec<usize> = (0..rooms.len()).filter(|&i| rooms[i].bytes > 0).collect();
        order.sort_by_cached_key(|&i| (key(&rooms[i], span(&rooms[i]), crowds[i]), i));
        let fit = first_fit(rooms, &order);
        if fit.1 <= bound {
            return fit;
        }
        if best.as_ref().is_none_or(|(_, best)| fit.1 < best.1) {
            best = Some((order, fit));
        }
    }
    best.map_or((vec![0; rooms.len()], 0), |(order, fit)| improve(rooms, order, fit, bound))
}

/// Moves rooms that end at the top, or on which one of those stands, to an earlier turn, as long as that lowers the top
/// and there is something to gain: a share of the bound, and tries that take little time.
fn improve(rooms: &[Room], mut order: Vec<usize>, mut best: Fit, bound: u64) -> Fit {
    const WORTH: u64 = 1000;
    // A try takes the square of the number of rooms, and the more rooms there are the less one of them matters.
    const WORK: u64 = 1 << 35;
    let mut tries = usize::try_from(WORK / (order.len() as u64).saturating_pow(3).max(1)).unwrap_or(usize::MAX);
    while best.1 - bound.min(best.1) > bound / WORTH {
        let moves: Vec<(usize, usize)> =
            supports(rooms, &order, &best).into_iter().flat_map(|at| turns(rooms, &order, at)).collect();
        let better = moves.into_iter().take(tries).find_map(|(at, to)| {
            tries -= 1;
            let mut moved = order.clone();
            let i = moved.remove(at);
            moved.insert(to, i);
            let fit = first_fit(rooms, &moved);
            (fit.1 < best.1).then_some((moved, fit))
        });
        match better {
            Some((moved, fit)) => (order, best) = (moved, fit),
            None => return best,
        }
    }
    best
}

fn meet(a: &Room, b: &Room) -> bool {
    a.life.end >= b.life.start && b.life.end >= a.life.start
}

/// Turns of the rooms that end at the top, and then of what they stand on, down to the ground.
fn supports(rooms: &[Room], order: &[usize], (offsets, top): &Fit) -> Vec<usize> {
    let end = |i: usize| offsets[i] + rooms[i].bytes;
    let mut found: Vec<usize> = (0..order.len()).filter(|&k| end(order[k]) == *top).collect();
    let mut next = 0;
    while let Some(&k) = found.get(next) {
        let i = order[k];
        let stands_on = |&l: &usize| end(order[l]) == offsets[i] && meet(&rooms[order[l]], &rooms[i]);
        let below: Vec<usize> = (0..order.len()).filter(stands_on).filter(|l| !found.contains(l)).collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// `(from, to)` for every earlier turn of the room at `from`: right before one that it must not overlap, the last of
/// them first.
fn turns(rooms: &[Room], order: &[usize], from: usize) -> Vec<(usize, usize)> {
    let meets = |&k: &usize| meet(&rooms[order[k]], &rooms[order[from]]);
    (0..from).rev().filter(meets).map(|to| (from, to)).collect()
}

fn first_fit(rooms: &[Room], order: &[usize]) -> Fit {
    let mut offsets = vec![0; rooms.len()];
    let nodes = rooms.iter().map(|room| room.life.end + 1).max().unwrap_or(0);
    let mut taken = Taken::new(nodes);
    let mut top = 0;
    for &i in order {
        let room = &rooms[i];
        let mut at = 0;
        // A room of one piece is done in one go; a move of several may bring an earlier piece into the way of another.
        loop {
            let before = at;
            for piece in &room.pieces {
                at = taken.free(piece, at);
            }
            if at == before || room.pieces.len() == 1 {
                break;
            }
        }
        offsets[i] = at;
        top = top.max(at + room.bytes);
        room.pieces.iter().for_each(|piece| taken.take(piece, at));
    }
    (offsets, top)
}
