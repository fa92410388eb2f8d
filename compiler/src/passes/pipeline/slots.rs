//! Who stays when: visits, over and over, to a window's places.
//!
//! Dropping what is needed last is best for a cycle of visits (Belady 1966); a round in which everything repeats is
//! found by following them.

use super::{Visit, Window};
use std::collections::BTreeMap;

/// A copy in a schedule of visits, which count on over the rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Copy {
    pub(super) parcel: u32,
    /// The visit before which it may begin to come in.
    pub(super) loads: usize,
    /// The visits that read it first and last.
    pub(super) uses: [usize; 2],
    /// The visit before which its place is given away.
    pub(super) until: usize,
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
    /// For every visit of a round, how many visits later the next one to its parcel is.
    gaps: Vec<usize>,
}

/// For every visit of a round, how many visits later the next one to its parcel is, in this round or the one behind.
fn gaps(visits: &[Visit]) -> Vec<usize> {
    let n = visits.len();
    let mut next: BTreeMap<u32, usize> = visits.iter().enumerate().rev().map(|(t, v)| (v.parcel, t + n)).collect();
    let mut gaps = vec![0; n];
    for t in (0..n).rev() {
        let following = next.insert(visits[t].parcel, t).expect("every parcel has a first visit");
        gaps[t] = following - t;
    }
    gaps
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

    /// The visit behind `t` that reads a copy next, if it may stay until then.
    fn next_use(&self, copy: &Copy, t: usize) -> usize {
        let n = self.visits.len();
        let next = copy.uses[1] + self.gaps[copy.uses[1] % n];
        let is_kept = self.kept.as_ref().is_none_or(|kept| kept.contains(&copy.parcel));
        if is_kept || next / n == t / n { next } else { usize::MAX }
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
        let rank = |c: &Copy| (self.free_after(c.uses[1]) + lead <= t, self.next_use(c, t), usize::MAX - c.uses[1]);
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
pub(super) struct Round {
    pub(super) copies: Vec<Copy>,
    pub(super) permanent: Vec<u32>,
    /// The number of the round's first visit.
    pub(super) start: usize,
}

/// Follows the visits round by round until they repeat. `is_dropped` says of a visit that what it leaves is out of
/// date, since the far memory changes its parcel.
pub(super) fn steady(visits: &[Visit], window: Window, is_dropped: impl Fn(usize) -> bool) -> Round {
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
    let mut slots = Slots { visits, window, held: Vec::new(), done: Vec::new(), free, kept, gaps: gaps(visits) };
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
pub(super) fn loads(visits: &[Visit], window: Window, is_dropped: impl Fn(usize) -> bool) -> usize {
    steady(visits, window, is_dropped).copies.len()
}

/// The parcels that are there during all visits: what of them is changed need not live in the far memory.
pub(super) fn permanent(visits: &[Visit], window: Window) -> Vec<u32> {
    steady(visits, window, |_| false).permanent
}
