//! What lives in the far memory: the stored tensors that one block alone reads, in parcels.

use super::Window;
use super::parts::parts;
use super::{Holds, Parcel};
use crate::ir::graph::{Graph, Kind, Region};
use std::collections::{BTreeMap, BTreeSet};
use tinyforge_plan::{FOR_HOST, SPILLED, part_of};

/// A tensor that is changed and takes at most one part in so many of its block stays in the near memory.
const SMALL_PART: u64 = 64;
/// An embedding that takes at least one part in so many of the largest block is worth a place of its own.
const LARGE_PART: u64 = 2;

/// The parcels of numbered blocks: stored tensors that one block alone reads, in all graphs, in so many parts a block.
/// Small ones that are changed are left out, and so are their states; where groups take turns, small ones are not, but
/// all states. Of other blocks, what is stored in parts, and with `embeddings` their large weights. Also how many
/// parcels of weights numbered blocks have.
pub(super) fn parcels(graphs: &[&Graph], cut: u32, rotates: bool, embeddings: bool) -> (Vec<Parcel>, usize) {
    let is_resident = |user: &User, block: u64| match rotates {
        true => user.kind == Kind::State,
        // What the host updates has all of it there.
        false => user.changes && !user.on_host && user.bytes * SMALL_PART <= block,
    };
    let users = users(graphs);
    let bytes_of = block_bytes(&users);
    let largest = bytes_of.values().copied().max().unwrap_or(0) / u64::from(cut);
    let comes = |user: &&User| user.is_of_numbered() && !is_resident(user, bytes_of[user.blocks[0].0]);
    let coming: Vec<&User> = users.iter().filter(comes).collect();
    let part_of_block = parts(graphs, &coming, cut);
    let mut parcels: Vec<Parcel> = Vec::new();
    let mut blocks = 0;
    let moves =
        |u: &&User| u.is_of_numbered() || u.is_part() || u.is_spilled() || (embeddings && u.is_embedding(largest));
    for user in users.iter().filter(moves) {
        let (name, _) = user.blocks[0];
        let (block, holds) = match user.state_part() {
            _ if user.is_for_host() => (user.name.trim_end_matches(FOR_HOST).to_string(), Holds::Gradient),
            _ if user.is_spilled() => (user.name.trim_end_matches(SPILLED).to_string(), Holds::Activation),
            Some(part) => (format!("{name}, part {part}"), Holds::States),
            None if user.is_of_numbered() && !comes(&user) => continue,
            None => {
                let block = part_of_block.get(user.name).map(|part| format!("{name}, part {part}"));
                let holds = if user.kind == Kind::State { Holds::States } else { Holds::Weights };
                (block.unwrap_or_else(|| name.to_string()), holds)
            }
        };
        let found = parcels.iter().position(|p| p.block == block && p.holds == holds);
        let at = found.unwrap_or_else(|| {
            blocks += usize::from(holds == Holds::Weights && user.is_of_numbered());
            parcels.push(Parcel { block, holds, tensors: Vec::new(), rotates, on_host: false });
            parcels.len() - 1
        });
        parcels[at].tensors.push(user.name.to_string());
        parcels[at].on_host |= user.on_host;
    }
    // What changes lies together, so that it goes back in one piece.
    let changed: BTreeSet<&str> = users.iter().filter(|u| u.changes).map(|u| u.name).collect();
    let changes = |name: &String| changed.contains(name.as_str());
    match rotates {
        true => parcels.iter_mut().for_each(|p| p.tensors.sort()),
        false => parcels.iter_mut().for_each(|p| p.tensors.sort_by_key(|name| !changes(name))),
    }
    (parcels, blocks)
}

/// Names of the trained weights that come and go with their blocks; none where all blocks stay.
pub fn streamed_weights(graphs: &[&Graph], window: Window) -> BTreeSet<String> {
    let (parcels, blocks) = parcels(graphs, window.parts, false, false);
    if blocks <= window.blocks as usize {
        return BTreeSet::new();
    }
    let users = users(graphs);
    let trained = users.iter().filter(|u| u.kind == Kind::Weight && u.changes && u.is_of_numbered());
    let trained: BTreeSet<&str> = trained.map(|u| u.name).collect();
    parcels.into_iter().flat_map(|p| p.tensors).filter(|name| trained.contains(name.as_str())).collect()
}

/// Whether there are weights outside of numbered blocks that are large enough to come and go as blocks in so many parts
/// do: embeddings, heads.
pub fn has_embeddings(graphs: &[&Graph], cut: u32) -> bool {
    let users = users(graphs);
    let largest = block_bytes(&users).values().copied().max().unwrap_or(0) / u64::from(cut);
    users.iter().any(|u| u.is_embedding(largest))
}

/// Bytes of the weights and constants of every numbered block.
fn block_bytes<'a>(users: &[User<'a>]) -> BTreeMap<&'a str, u64> {
    let mut bytes_of: BTreeMap<&str, u64> = BTreeMap::new();
    for user in users.iter().filter(|u| u.is_of_numbered()) {
        *bytes_of.entry(user.blocks[0].0).or_default() += user.copy_bytes();
    }
    bytes_of
}

/// A stored tensor and who reads it.
pub(super) struct User<'a> {
    pub(super) name: &'a str,
    kind: Kind,
    pub(super) bytes: u64,
    /// Names, and whether they are numbered.
    pub(super) blocks: Vec<(&'a str, bool)>,
    pub(super) changes: bool,
    /// Whether an update of the host reads or changes it.
    pub(super) on_host: bool,
}

impl User<'_> {
    /// Whether one numbered block alone reads it.
    fn is_of_numbered(&self) -> bool {
        matches!(self.blocks[..], [(_, true)])
    }

    /// What it takes of its block's copy.
    pub(super) fn copy_bytes(&self) -> u64 {
        if self.kind == Kind::State { 0 } else { self.bytes }
    }

    /// Whether it is a large weight that no numbered block reads: an embedding, or a head.
    fn is_embedding(&self, largest_block: u64) -> bool {
        let is_outside = self.blocks.iter().all(|(_, is_numbered)| !is_numbered);
        self.kind == Kind::Weight && is_outside && largest_block > 0 && self.bytes * LARGE_PART >= largest_block
    }

    /// Whether it holds an activation between forward and backward.
    fn is_spilled(&self) -> bool {
        self.kind == Kind::State && self.name.ends_with(SPILLED)
    }

    /// Whether it is what an update of the host reads: a gradient, or a number.
    fn is_for_host(&self) -> bool {
        self.kind == Kind::State && self.name.ends_with(FOR_HOST)
    }

    /// Whether it is a part of a tensor that is stored in parts.
    fn is_part(&self) -> bool {
        self.state_part().is_some() || (self.kind == Kind::Weight && part_of(self.name).is_some())
    }

    /// The number of the part that it is, of a state that is stored in parts.
    fn state_part(&self) -> Option<u32> {
        part_of(self.name).filter(|_| self.kind == Kind::State).map(|(_, part)| part)
    }
}

pub(super) fn users<'a>(graphs: &[&'a Graph]) -> Vec<User<'a>> {
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
                    users.push(User { name, kind, bytes, blocks: Vec::new(), changes: false, on_host: false });
                    users.len() - 1
                });
                users[i].changes |= k < changes;
                users[i].on_host |= node.region == Region::Host;
                if !users[i].blocks.contains(&block) {
                    users[i].blocks.push(block);
                }
            }
        }
    }
    users
}
