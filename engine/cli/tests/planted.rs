//! Faults planted in the transfers of plans, and in steps of the host beside them: the checker finds every one of them.

mod made;

use made::{Llama, Scratch, TIED, knobs, planned, planned_in_host};
use std::collections::BTreeMap;
use tinyforge_cli::model::Model;
use tinyforge_plan::check::check;
use tinyforge_plan::{Direction, Entry, Plan, Step, Tensor, Transfer};

/// A fault: its name, what it does to the transfer of this number in the entry of this number, if it can, and a word of
/// what the checker must say.
type Fault = (&'static str, fn(&mut Plan, (usize, usize)) -> Option<()>, &'static str);

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn span(t: &Tensor) -> (u64, u64) {
    (t.offset, t.end())
}

/// The place of a transfer's copy.
fn place(plan: &Plan, transfer: &Transfer) -> (u64, u64) {
    let bytes = plan.stored[transfer.stored as usize].tensor.bytes();
    (transfer.near_byte, transfer.near_byte + bytes)
}

fn reads(step: &Step, place: (u64, u64)) -> bool {
    step.args.iter().any(|t| overlap(span(t), place))
}

fn writes(step: &Step, place: (u64, u64)) -> bool {
    let changed = step.args[..step.changes as usize].iter().chain(&step.outs);
    let scratch = (step.scratch_offset, step.scratch_offset + step.scratch_bytes);
    changed.map(span).chain([scratch]).any(|s| overlap(s, place))
}

/// The transfers in the order in which they begin, which is what a list must have.
fn sort(entry: &mut Entry) {
    entry.transfers.sort_by_key(|t| t.begins);
}

/// The transfer, if it goes this way, its place, and the number of steps.
fn going(plan: &Plan, (e, t): (usize, usize), direction: Direction) -> Option<(Transfer, (u64, u64), u32)> {
    let transfer = plan.entries[e].transfers[t].clone();
    let at = place(plan, &transfer);
    (transfer.direction == direction).then_some((transfer, at, plan.entries[e].steps.len() as u32))
}

/// The first step of the host that does something with a transfer's tensor at its place in the host's memory.
fn host_step(plan: &Plan, (e, t): (usize, usize), wanted: impl Fn(&Step, &Tensor) -> bool) -> Option<usize> {
    let stored = &plan.stored[plan.entries[e].transfers[t].stored as usize].tensor;
    plan.entries[e].steps.iter().position(|s| plan.is_on_host(s) && wanted(s, stored))
}

fn is_read(step: &Step, stored: &Tensor) -> bool {
    step.args.iter().skip(step.changes as usize).any(|t| t.value == stored.value)
}

fn is_changed(step: &Step, stored: &Tensor) -> bool {
    step.args.iter().take(step.changes as usize).any(|t| t.value == stored.value)
}

/// The first step that reads the copy that a transfer brings.
fn reader(plan: &Plan, e: usize, transfer: &Transfer) -> Option<u32> {
    let at = place(plan, transfer);
    let steps = plan.entries[e].steps.iter().enumerate().skip(transfer.ends as usize);
    steps.filter(|(_, s)| reads(s, at)).map(|(i, _)| i as u32).next()
}

/// The last step before a transfer that does something with its place.
fn last_step(plan: &Plan, e: usize, before: u32, wanted: impl Fn(&Step) -> bool) -> Option<u32> {
    plan.entries[e].steps[..before as usize].iter().rposition(wanted).map(|i| i as u32)
}

/// Another tensor of a far memory that is as large and whose copy some step reads at another place; and that place.
fn neighbour(plan: &Plan, e: usize, transfer: &Transfer) -> Option<(u32, u64)> {
    let own = &plan.stored[transfer.stored as usize].tensor;
    let others = plan.entries[e].transfers.iter().map(|t| (t.stored, t.near_byte));
    let residents = plan.entries[e].residents.iter().map(|r| (r.stored, r.near_byte));
    others.chain(residents).find(|&(stored, near)| {
        let other = &plan.stored[stored as usize].tensor;
        stored != transfer.stored && near != transfer.near_byte && other.bytes() == own.bytes()
    })
}

/// A transfer that comes in and whose place does not hold its tensor anyway: nothing may have come there meanwhile.
fn needed(plan: &Plan, at: (usize, usize)) -> Option<()> {
    let (transfer, place_of, _) = going(plan, at, Direction::In)?;
    let entry = &plan.entries[at.0];
    let is_same = |stored, near| (stored, near) == (transfer.stored, transfer.near_byte);
    let before =
        entry.transfers[..at.1].iter().rev().find(|o| o.direction == Direction::In && is_same(o.stored, o.near_byte));
    let is_resident = entry.residents.iter().any(|r| is_same(r.stored, r.near_byte));
    let from = match before {
        Some(before) => before.begins,
        None if is_resident => 0,
        None => return Some(()),
    };
    let others = entry.transfers[..at.1].iter().filter(|o| o.direction == Direction::In && o.begins >= from);
    let mut others = others.filter(|o| !is_same(o.stored, o.near_byte));
    let mut steps = entry.steps[from as usize..transfer.begins as usize].iter();
    let is_lost = others.any(|o| overlap(place(plan, o), place_of)) || steps.any(|s| writes(s, place_of));
    is_lost.then_some(())
}

const FAULTS: &[Fault] = &[
    (
        "a copy that is waited for too late",
        |p, (e, t)| {
            let (transfer, ..) = going(p, (e, t), Direction::In)?;
            p.entries[e].transfers[t].ends = reader(p, e, &transfer)? + 1;
            Some(())
        },
        "on its way",
    ),
    (
        "a copy that only the end waits for",
        |p, (e, t)| {
            let (transfer, _, count) = going(p, (e, t), Direction::In)?;
            reader(p, e, &transfer)?;
            p.entries[e].transfers[t].ends = count;
            Some(())
        },
        "on its way",
    ),
    (
        "an early eviction: a copy that begins while its place is still read",
        |p, (e, t)| {
            let (transfer, at, _) = going(p, (e, t), Direction::In)?;
            p.entries[e].transfers[t].begins = last_step(p, e, transfer.begins, |s| reads(s, at))?;
            sort(&mut p.entries[e]);
            Some(())
        },
        "",
    ),
    (
        "a copy that begins while a step still writes its place",
        |p, (e, t)| {
            let (transfer, at, _) = going(p, (e, t), Direction::In)?;
            p.entries[e].transfers[t].begins = last_step(p, e, transfer.begins, |s| writes(s, at))?;
            sort(&mut p.entries[e]);
            Some(())
        },
        "",
    ),
    (
        "an overlap: a copy that comes in over another one that is still read",
        |p, (e, t)| {
            let (transfer, at, _) = going(p, (e, t), Direction::In)?;
            let is_read = |s: &Step, place| reads(s, place);
            let other = p.entries[e].transfers.iter().find(|o| {
                let its = place(p, o);
                let again = p.entries[e].transfers.iter();
                let mut again = again.filter(|x| x.direction == Direction::In && overlap(place(p, x), its));
                let next = again.find(|x| x.begins > o.begins).map_or(u32::MAX, |x| x.begins);
                let steps = p.entries[e].steps.iter().enumerate();
                let mut later = steps.filter(|(i, s)| *i as u32 >= transfer.ends && is_read(s, its));
                o.direction == Direction::In
                    && o.ends <= transfer.begins
                    && !overlap(its, at)
                    && later.next().is_some_and(|(i, _)| (i as u32) < next)
            })?;
            p.entries[e].transfers[t].near_byte = other.near_byte;
            Some(())
        },
        "",
    ),
    (
        "a copy at another tensor's place",
        |p, (e, t)| {
            let (transfer, ..) = going(p, (e, t), Direction::In)?;
            reader(p, e, &transfer)?;
            p.entries[e].transfers[t].near_byte = neighbour(p, e, &transfer)?.1;
            Some(())
        },
        "",
    ),
    (
        "a copy of another tensor",
        |p, (e, t)| {
            let transfer = p.entries[e].transfers[t].clone();
            p.entries[e].transfers[t].stored = neighbour(p, e, &transfer)?.0;
            Some(())
        },
        "",
    ),
    (
        "a wrong direction: out instead of in",
        |p, (e, t)| {
            needed(p, (e, t))?;
            p.entries[e].transfers[t].direction = Direction::Out;
            Some(())
        },
        "",
    ),
    (
        "a wrong direction: in instead of out",
        |p, (e, t)| {
            going(p, (e, t), Direction::Out)?;
            p.entries[e].transfers[t].direction = Direction::In;
            Some(())
        },
        "newest",
    ),
    (
        "a dropped copy",
        |p, (e, t)| {
            needed(p, (e, t))?;
            p.entries[e].transfers.remove(t);
            Some(())
        },
        "",
    ),
    (
        "a missing copy back",
        |p, (e, t)| {
            let (transfer, ..) = going(p, (e, t), Direction::Out)?;
            p.entries[e].transfers.retain(|o| o.stored != transfer.stored || o.direction == Direction::In);
            Some(())
        },
        "taken back",
    ),
    (
        "a copy back that begins before the change is done",
        |p, (e, t)| {
            let (transfer, at, _) = going(p, (e, t), Direction::Out)?;
            p.entries[e].transfers[t].begins = last_step(p, e, transfer.begins, |s| writes(s, at))?;
            sort(&mut p.entries[e]);
            Some(())
        },
        "on its way",
    ),
    (
        "a copy back that has ended before the change is done",
        |p, (e, t)| {
            let (transfer, at, _) = going(p, (e, t), Direction::Out)?;
            let change = last_step(p, e, transfer.begins, |s| writes(s, at))?;
            let moved = &mut p.entries[e].transfers[t];
            (moved.begins, moved.ends) = (change, change);
            sort(&mut p.entries[e]);
            Some(())
        },
        "taken back",
    ),
    (
        "a copy back that is not waited for before its place is filled anew",
        |p, (e, t)| {
            let (transfer, at, count) = going(p, (e, t), Direction::Out)?;
            let entry = &p.entries[e];
            let is_next =
                |o: &&Transfer| o.direction == Direction::In && o.begins >= transfer.ends && overlap(place(p, o), at);
            let next = entry.transfers.iter().find(is_next)?.begins;
            p.entries[e].transfers[t].ends = (next + 1).min(count).max(next);
            (next < count).then_some(())
        },
        "still taken",
    ),
    (
        "a copy that ends before it begins",
        |p, (e, t)| {
            let transfer = &mut p.entries[e].transfers[t];
            transfer.ends = transfer.begins.checked_sub(1)?;
            Some(())
        },
        "begins at step",
    ),
    (
        "a copy that ends behind the last step",
        |p, (e, t)| {
            p.entries[e].transfers[t].ends = p.entries[e].steps.len() as u32 + 1;
            Some(())
        },
        "ends at",
    ),
    (
        "a copy ahead of one that begins before it",
        |p, (e, t)| {
            let transfers = &mut p.entries[e].transfers;
            let next = transfers.iter().position(|o| o.begins > transfers[t].begins)?;
            transfers.swap(t, next);
            Some(())
        },
        "ahead of it",
    ),
    (
        "a place that is not aligned",
        |p, (e, t)| {
            p.entries[e].transfers[t].near_byte += 4;
            Some(())
        },
        "no copy's place",
    ),
    (
        "a place past the near memory",
        |p, (e, t)| {
            p.entries[e].transfers[t].near_byte = p.end_byte();
            Some(())
        },
        "no copy's place",
    ),
    (
        "a place in the far memory",
        |p, (e, t)| {
            p.entries[e].transfers[t].near_byte = 0;
            Some(())
        },
        "no copy's place",
    ),
    (
        "a copy over a tensor that stays",
        |p, (e, t)| {
            going(p, (e, t), Direction::In)?;
            let near = p.stored.iter().find(|s| !p.is_far(&s.tensor))?.tensor.offset;
            p.entries[e].transfers[t].near_byte = near;
            Some(())
        },
        "stored tensor",
    ),
    (
        "a copy of a tensor that is near",
        |p, (e, t)| {
            let near = p.stored.iter().position(|s| !p.is_far(&s.tensor))?;
            p.entries[e].transfers[t].stored = near as u32;
            Some(())
        },
        "no copy's place",
    ),
    (
        "an update by the host before its gradient has gone out",
        |p, (e, t)| {
            let host = host_step(p, (e, t), is_read)? as u32;
            p.entries[e].transfers[t].ends = host + 1;
            Some(())
        },
        "moves",
    ),
    (
        "an update by the host whose gradient does not go out",
        |p, (e, t)| {
            host_step(p, (e, t), is_read)?;
            p.entries[e].transfers.remove(t);
            Some(())
        },
        "does not have the newest",
    ),
    (
        "a gradient that goes out once more while the host reads it",
        |p, (e, t)| {
            let host = host_step(p, (e, t), is_read)? as u32;
            let again = Transfer { begins: host + 1, ends: host + 1, ..p.entries[e].transfers[t].clone() };
            p.entries[e].transfers.push(again);
            sort(&mut p.entries[e]);
            Some(())
        },
        "may still be",
    ),
    (
        "a copy that comes in while the host changes it",
        |p, (e, t)| {
            going(p, (e, t), Direction::In)?;
            let host = host_step(p, (e, t), is_changed)? as u32;
            let transfer = &mut p.entries[e].transfers[t];
            (transfer.begins, transfer.ends) = (transfer.begins.min(host), host + 1);
            sort(&mut p.entries[e]);
            Some(())
        },
        "",
    ),
    (
        "an update by the host of a copy",
        |p, (e, t)| {
            let host = host_step(p, (e, t), is_changed)?;
            let near = p.entries[e].transfers[t].near_byte;
            p.entries[e].steps[host].args[1].offset = near;
            Some(())
        },
        "touches more than",
    ),
    (
        "an update by the host at another tensor's place",
        |p, (e, t)| {
            let host = host_step(p, (e, t), is_changed)?;
            let own = p.entries[e].steps[host].args[0].clone();
            let is_other = |s: &&tinyforge_plan::Stored| {
                p.is_far(&s.tensor) && s.tensor.bytes() == own.bytes() && s.tensor.value != own.value
            };
            let in_host = |s: &&tinyforge_plan::Stored| p.space_of(s.tensor.offset).is_some_and(|s| s.is_host);
            let other = p.stored.iter().filter(in_host).find(is_other)?.tensor.offset;
            p.entries[e].steps[host].args[0].offset = other;
            Some(())
        },
        "no longer holds",
    ),
    (
        "a resident that is another one's",
        |p, (e, t)| {
            let count = p.entries[e].residents.len();
            let other = neighbour_resident(p, e, t)?;
            p.entries[e].residents[t % count].stored = other;
            Some(())
        },
        "",
    ),
    (
        "a resident that nothing brought",
        |p, (e, t)| {
            let count = p.entries[e].residents.len();
            let near = p.entries[e].residents.get(t % count.max(1))?.near_byte;
            p.entries[e].residents[t % count].near_byte = near + u64::from(p.align_bytes);
            Some(())
        },
        "",
    ),
];

/// A tensor as large as that of a resident which is no resident.
fn neighbour_resident(plan: &Plan, e: usize, t: usize) -> Option<u32> {
    let residents = &plan.entries[e].residents;
    let own = residents.get(t % residents.len().max(1))?.stored;
    let bytes = |stored: u32| plan.stored[stored as usize].tensor.bytes();
    let is_other = |&s: &u32| {
        plan.is_far(&plan.stored[s as usize].tensor)
            && bytes(s) == bytes(own)
            && residents.iter().all(|r| r.stored != s)
    };
    (0..plan.stored.len() as u32).find(is_other)
}

/// How many places of a plan a fault is planted at, at most.
const PLACES: usize = 5;

fn plans() -> Vec<(String, Plan)> {
    let scratch = Scratch::new("planted");
    Llama { layers: 4, ..TIED }.write(scratch.path());
    let model = Model::open(scratch.path()).expect("opens");
    let mut found = Vec::new();
    for base in [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "clip=0.05", "clip_by=\"second\"", "micro_batch=2"],
        &["scheme=\"full\"", "gradients=\"panels\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"lora\"", "activations=\"far\"", "recompute=\"all\""],
        &["scheme=\"last:2\"", "optimizer=\"adamw8\""],
        &["scheme=\"sparse\""],
        &["scheme=\"cycle:2\""],
    ] {
        for more in [["window=\"1\"", "prefetch=1"], ["window=\"2\"", "prefetch=2"], ["window=\"3\"", "prefetch=1"]] {
            let pairs = [base, &more[..]].concat();
            let plans = planned(&model, &knobs(&pairs)).0;
            found.extend(plans.into_iter().map(|plan| (format!("{pairs:?}"), plan)));
            let is_trained = base[0] == "scheme=\"full\"" || base[0] == "scheme=\"last:2\"";
            if is_trained && more[0] == "window=\"2\"" {
                let plans = planned_in_host(&model, &knobs(&pairs), (u64::MAX, true)).0;
                found.extend(plans.into_iter().map(|plan| (format!("{pairs:?}, by the host"), plan)));
            }
        }
    }
    found
}

#[test]
fn the_checker_finds_every_planted_fault() {
    let plans = plans();
    let mut missed = Vec::new();
    let mut planted: BTreeMap<&str, usize> = BTreeMap::new();
    for (what, plan) in &plans {
        assert_eq!(check(plan), Vec::<String>::new(), "{what}");
        for (name, plant, word) in FAULTS {
            let places =
                (0..plan.entries.len()).flat_map(|e| (0..plan.entries[e].transfers.len()).map(move |t| (e, t)));
            let places: Vec<_> = places.collect();
            // From all over the plan, until there are enough.
            let mut left = PLACES;
            for i in (0..places.len()).map(|i| i * 7919 % places.len()) {
                let (at, mut spoilt) = (places[i], plan.clone());
                if left == 0 || plant(&mut spoilt, at).is_none() || spoilt == *plan {
                    continue;
                }
                left -= 1;
                *planted.entry(name).or_default() += 1;
                let faults = check(&spoilt);
                if !faults.iter().any(|f| f.contains(word)) {
                    missed.push(format!("{name} in {what} at {at:?}: `{word}` is not in {faults:?}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{} faults are missed:\n{}", missed.len(), missed.join("\n"));
    for (name, ..) in FAULTS {
        let count = planted.get(name).copied().unwrap_or(0);
        assert!(count >= 10, "{name}: planted {count} times only");
    }
    assert_eq!(planted.len(), FAULTS.len(), "two faults have one name");
}
