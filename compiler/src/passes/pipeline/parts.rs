//! Blocks in parts: which of a block's tensors come and go together.
//!
//! They are taken in the order in which nodes first read them, and cut where the largest part is smallest. What one
//! node reads stays together, since it needs all of that at one time; so does a weight with its optimizer's states.

use super::parcels::User;
use crate::ir::graph::Graph;
use std::collections::BTreeMap;
use std::ops::Range;

/// The part that each of these tensors of numbered blocks belongs to, counted from 0; nothing where blocks are whole.
pub(super) fn parts<'a>(graphs: &[&Graph], users: &[&User<'a>], count: u32) -> BTreeMap<&'a str, u32> {
    let mut part_of = BTreeMap::new();
    if count < 2 {
        return part_of;
    }
    let mut blocks: BTreeMap<&str, Vec<&User<'a>>> = BTreeMap::new();
    users.iter().for_each(|user| blocks.entry(user.blocks[0].0).or_default().push(user));
    let inseparable = inseparable(graphs, users);
    for tensors in blocks.values() {
        let groups = grouped(tensors, &inseparable);
        let bytes: Vec<u64> = groups.iter().map(|group| group.iter().map(|user| user.copy_bytes()).sum()).collect();
        for (part, range) in cut(&bytes, count).into_iter().enumerate() {
            let names = groups[range].iter().flatten().map(|user| user.name);
            part_of.extend(names.map(|name| (name, part as u32)));
        }
    }
    part_of
}

/// For each of these tensors the one, first in their order, that must be near when it is.
fn inseparable<'a>(graphs: &[&Graph], users: &[&User<'a>]) -> BTreeMap<&'a str, &'a str> {
    let at: BTreeMap<&str, usize> = users.iter().enumerate().map(|(i, user)| (user.name, i)).collect();
    let mut first: Vec<usize> = (0..users.len()).collect();
    for (graph, node) in graphs.iter().flat_map(|graph| graph.nodes.iter().map(move |node| (graph, node))) {
        let read = node.args.iter().filter_map(|&v| at.get(graph.info(v).name.as_str()));
        let joined: Vec<usize> = read.map(|&i| first[i]).collect();
        let Some(&least) = joined.iter().min() else { continue };
        first.iter_mut().filter(|f| joined.contains(f)).for_each(|f| *f = least);
    }
    users.iter().zip(first).map(|(user, first)| (user.name, users[first].name)).collect()
}

/// Tensors of one block in groups that stay together, in the order of their first ones.
fn grouped<'u, 'a>(tensors: &[&'u User<'a>], inseparable: &BTreeMap<&str, &str>) -> Vec<Vec<&'u User<'a>>> {
    let mut groups: Vec<(&str, Vec<&User>)> = Vec::new();
    for &user in tensors {
        let first = inseparable[user.name];
        match groups.iter_mut().find(|(name, _)| *name == first) {
            Some((_, group)) => group.push(user),
            None => groups.push((first, vec![user])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// At most `count` ranges, in order, of which the largest sum is smallest.
fn cut(bytes: &[u64], count: u32) -> Vec<Range<usize>> {
    let filled = |most: u64| {
        let (mut ranges, mut start, mut sum) = (Vec::new(), 0, 0u64);
        for (i, &own) in bytes.iter().enumerate() {
            if i > start && sum + own > most {
                ranges.push(start..i);
                (start, sum) = (i, 0);
            }
            sum += own;
        }
        ranges.push(start..bytes.len());
        ranges
    };
    // Invariant: `enough` is, `little` is not: less than the largest cannot be.
    let (mut little, mut enough) = (bytes.iter().max().map_or(0, |m| m.saturating_sub(1)), bytes.iter().sum::<u64>());
    while enough - little > 1 {
        let middle = little + (enough - little) / 2;
        match filled(middle).len() <= count as usize {
            true => enough = middle,
            false => little = middle,
        }
    }
    filled(enough)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn cuts_are_where_the_largest_part_is_smallest() {
        // A block of a Llama: q, k, v, o, gate, up and down.
        let block = [4, 1, 1, 4, 16, 16, 16];
        let ends = |bytes: &[u64], count| cut(bytes, count).iter().map(|range| range.end).collect::<Vec<_>>();
        assert_eq!(ends(&block, 1), [7]);
        assert_eq!(ends(&block, 2), [5, 7]);
        assert_eq!(ends(&block, 3), [5, 6, 7]);
        assert_eq!(ends(&block, 4), [4, 5, 6, 7]);
        assert_eq!(ends(&block, 9), [4, 5, 6, 7], "no part can be smaller than the largest tensor");
        assert_eq!(ends(&[], 3), [0]);
        assert_eq!(ends(&[0, 0], 3), [2]);
    }
}
