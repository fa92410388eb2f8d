//! Which of two far memories holds what: the host's memory, as far as it reaches, and files.

use super::Pipeline;
use super::parcels::{User, users};
use crate::ir::graph::Graph;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

/// Tensors of one parcel that are alike: all of them change, or none.
struct Group<'a> {
    tensors: Vec<&'a str>,
    bytes: u64,
    changes: bool,
    /// Whether the host updates one of them.
    on_host: bool,
    /// Copies of one run of every graph, in and out.
    copies: usize,
}

/// Names of the far tensors that `host_bytes` of the host's memory hold; `aligned` are a tensor's bytes there. What the
/// host updates comes before all, since it can be nowhere else; then what changes, since it goes both ways, then what
/// is copied most often; of those that are alike, such as lie evenly among the others, so that a disk has time for
/// each. What is never copied has no use for it. Where plans take turns, all of them take the first parcels, so that
/// each finds them in one place.
pub fn in_host(
    graphs: &[&Graph],
    pipeline: &Pipeline,
    host_bytes: u64,
    aligned: impl Fn(u64) -> u64,
) -> HashSet<String> {
    if host_bytes == 0 {
        return HashSet::new();
    }
    let users: BTreeMap<&str, User> = users(graphs).into_iter().map(|u| (u.name, u)).collect();
    let mut groups: Vec<Group> = Vec::new();
    for (p, parcel) in pipeline.parcels.iter().enumerate() {
        let stays = || pipeline.stays.iter().flatten().filter(|s| s.parcel as usize == p);
        let (comes, leaves) =
            (stays().filter(|s| s.comes.is_some()).count(), stays().map(|s| s.leaves.len()).sum::<usize>());
        for changes in [true, false] {
            let is_of = |name: &&str| changes == (parcel.rotates || users[name].changes);
            let tensors: Vec<&str> = parcel.tensors.iter().map(String::as_str).filter(is_of).collect();
            let bytes = tensors.iter().map(|name| aligned(users[name].bytes)).sum();
            let on_host = tensors.iter().any(|name| users[name].on_host);
            groups.push(Group { tensors, bytes, changes, on_host, copies: comes + if changes { leaves } else { 0 } });
        }
    }
    let rotates = pipeline.parcels.iter().any(|p| p.rotates);
    groups.retain(|g| !g.tensors.is_empty() && (rotates || g.on_host || g.copies > 0));
    if !rotates {
        // Numbers whose bits are turned round lie evenly, however many of them are taken.
        let mut order: Vec<(u32, Group)> = groups.into_iter().zip(0u32..).map(|(g, i)| (i.reverse_bits(), g)).collect();
        order.sort_by_key(|(turned, g)| (Reverse((g.on_host, g.changes, g.copies)), *turned));
        groups = order.into_iter().map(|(_, group)| group).collect();
    }
    let (mut found, mut left) = (HashSet::new(), host_bytes);
    for group in groups {
        match left.checked_sub(group.bytes) {
            Some(rest) => left = rest,
            None if rotates => break,
            None => continue,
        }
        found.extend(group.tensors.iter().map(|name| (*name).to_string()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Holds, Parcel, Pipeline, Stay};
    use super::in_host;
    use crate::ir::text::parse_graph;
    use std::collections::BTreeSet;

    const BLOCK: u64 = 16;

    fn parcel(name: &str, rotates: bool) -> Parcel {
        let tensors = vec![name.to_string()];
        Parcel { block: name.to_string(), holds: Holds::Weights, tensors, rotates, on_host: false }
    }

    fn stay(parcel: u32, comes: Option<[u32; 2]>, leaves: Vec<[u32; 2]>) -> Stay {
        Stay { parcel, comes, is_made: false, leaves, lives: vec![[0, 3]] }
    }

    /// Three parcels of a weight each and one of a state: `a` is there always, `b` comes once, `c` twice; `s` changes.
    fn pipeline(rotates: bool) -> Pipeline {
        let comes = Some([0, 1]);
        Pipeline {
            parcels: ["a", "b", "c", "s"].map(|name| parcel(name, rotates)).to_vec(),
            stays: vec![vec![
                stay(0, None, Vec::new()),
                stay(1, comes, Vec::new()),
                stay(2, comes, Vec::new()),
                stay(2, comes, Vec::new()),
                stay(3, comes, vec![[1, 2]]),
            ]],
        }
    }

    fn held(rotates: bool, host_bytes: u64) -> BTreeSet<String> {
        let text = "rows 1\ninput %x : f32[4]\nweight @a : f32[4]\nweight @b : f32[4]\nweight @c : f32[4]\n\
                    state @s : f32[4]\nblock head forward\n%p = add %x, @a : f32[4]\n%q = add %p, @b : f32[4]\n\
                    %r = add %q, @c : f32[4]\nassign @s, %r\nreturn x = %x\n";
        let graph = parse_graph(text).expect("a graph");
        in_host(&[&graph], &pipeline(rotates), host_bytes, |bytes| bytes.next_multiple_of(BLOCK)).into_iter().collect()
    }

    #[test]
    fn what_changes_comes_first_then_what_is_copied_most() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<BTreeSet<_>>();
        for (blocks, expected) in
            [(0, &[][..]), (1, &["s"]), (2, &["s", "c"]), (3, &["s", "c", "b"]), (9, &["s", "c", "b"])]
        {
            assert_eq!(held(false, blocks * BLOCK), names(expected), "{blocks} blocks");
        }
        assert_eq!(held(false, 2 * BLOCK - 1), names(&["s"]), "half a tensor is none");
    }

    #[test]
    fn what_the_host_updates_comes_before_all() {
        let text = "rows 1\ninput %x : f32[4]\nweight @a : f32[4]\nweight @b : f32[4]\nweight @c : f32[4]\n\
                    state @s : f32[4]\nblock head forward\n%p = add %x, @b : f32[4]\n%q = add %p, @c : f32[4]\n\
                    assign @s, %q\nblock head host\nassign @a, @s\nreturn x = %x\n";
        let graph = parse_graph(text).expect("a graph");
        let held = |blocks| -> BTreeSet<String> {
            in_host(&[&graph], &pipeline(false), blocks * BLOCK, |bytes| bytes).into_iter().collect()
        };
        assert_eq!(held(2), BTreeSet::from(["a".to_string(), "s".to_string()]));
    }

    /// Of eight that are alike, half are every second one.
    #[test]
    fn what_rests_in_files_lies_evenly_among_the_rest() {
        let text: String = (0..8).map(|i| format!("weight @w{i} : f32[4]\n")).collect();
        let reads: String = (0..8).map(|i| format!("%y{i} = add %x, @w{i} : f32[4]\n")).collect();
        let text = format!("rows 1\ninput %x : f32[4]\n{text}block head forward\n{reads}return x = %x\n");
        let graph = parse_graph(&text).expect("a graph");
        let parcels = (0..8).map(|i| parcel(&format!("w{i}"), false)).collect();
        let stays = vec![(0..8).map(|i| stay(i, Some([0, 1]), Vec::new())).collect()];
        let held = in_host(&[&graph], &Pipeline { parcels, stays }, 4 * BLOCK, |bytes| bytes);
        let held: BTreeSet<&str> = held.iter().map(String::as_str).collect();
        assert_eq!(held, BTreeSet::from(["w0", "w2", "w4", "w6"]));
    }

    #[test]
    fn where_plans_take_turns_each_takes_the_first() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<BTreeSet<_>>();
        for (blocks, expected) in [(1, &["a"][..]), (2, &["a", "b"]), (3, &["a", "b", "c"]), (4, &["a", "b", "c", "s"])]
        {
            assert_eq!(held(true, blocks * BLOCK), names(expected), "{blocks} blocks");
        }
    }
}
