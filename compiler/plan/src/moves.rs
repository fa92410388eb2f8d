//! The checker's part for transfers: which copies are on their way, and which place holds the newest contents.
//!
//! Checked: a transfer concerns a tensor of a far memory and a place in the near one; it ends, and not before it
//! begins; while a copy comes in nothing reads or writes its place, while one goes out nothing writes it; what comes
//! in is the newest, what goes out too; a change leaves no older copy behind; at an entry's end the far memory is up
//! to date and the residents are there. A step of the host finds all that it reads taken out, and nothing of it moves;
//! nothing of it is taken out behind that, and what it changes comes in again.

use crate::check::{Contents, overlap, span, stored_under};
use crate::plan::{Direction, Entry, Plan, Resident, Step, Tensor, Transfer};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// What the checker knows of an entry's transfers at one step.
pub(crate) struct Moves<'a> {
    plan: &'a Plan,
    entry: &'a Entry,
    /// Transfers that have begun and not ended: index and place.
    moving: Vec<(usize, (u64, u64))>,
    /// Whether a stored tensor was changed since its far memory last had it.
    is_behind: Vec<bool>,
    /// Whether a step of the host was given it, which may go on until the entry's end.
    is_given: Vec<bool>,
    /// Highest near address that a copy takes.
    pub(crate) top: u64,
}

impl<'a> Moves<'a> {
    /// Puts the residents into `contents`; faults of a transfer's numbers are found here, and then no transfer is run.
    pub(crate) fn new(
        plan: &'a Plan,
        entry: &'a Entry,
        contents: &mut Contents,
        faults: &mut Vec<String>,
    ) -> Option<Moves<'a>> {
        let mut moves = Moves {
            plan,
            entry,
            moving: Vec::new(),
            is_behind: vec![false; plan.stored.len()],
            is_given: vec![false; plan.stored.len()],
            top: plan.arena_start(),
        };
        let before = faults.len();
        for (i, transfer) in entry.transfers.iter().enumerate() {
            moves.check_numbers(i, transfer, faults);
        }
        for resident in &entry.residents {
            match moves.place(resident.stored, resident.near_byte) {
                Some(place) => {
                    contents.write(place.0, place.1, Some(plan.stored[resident.stored as usize].tensor.value));
                    moves.top = moves.top.max(place.1);
                }
                None => faults.push(format!("{}: a resident copy has no place", entry.name)),
            }
        }
        moves.check_residents(faults);
        (faults.len() == before).then_some(moves)
    }

    /// The place of a copy: inside a written space of the arena, of a tensor that is far.
    fn place(&self, stored: u32, near_byte: u64) -> Option<(u64, u64)> {
        let is_far = self.plan.stored.get(stored as usize).is_some_and(|s| self.plan.is_far(&s.tensor));
        let place = span(&self.plan.copy_of(stored, near_byte).filter(|_| is_far)?);
        let space = self.plan.space_of(near_byte)?;
        let fits = !space.is_far && space.is_written && place.1 <= space.end();
        (fits && near_byte.is_multiple_of(u64::from(self.plan.align_bytes))).then_some(place)
    }

    fn check_numbers(&self, i: usize, transfer: &Transfer, faults: &mut Vec<String>) {
        let at = || format!("{} transfer {i}", self.entry.name);
        if self.place(transfer.stored, transfer.near_byte).is_none() {
            faults.push(format!("{}: {} at {} is no copy's place", at(), transfer.stored, transfer.near_byte));
        }
        let in_time = transfer.begins <= transfer.ends && transfer.ends as usize <= self.entry.steps.len();
        if !in_time {
            faults.push(format!("{}: begins at step {} and ends at {}", at(), transfer.begins, transfer.ends));
        }
        let changes = self.plan.stored.get(transfer.stored as usize).is_some_and(|s| s.changes);
        if transfer.direction == Direction::Out && !changes {
            faults.push(format!("{}: goes out, and nothing changes the tensor", at()));
        }
        if i > 0 && self.entry.transfers[i - 1].begins > transfer.begins {
            faults.push(format!("{}: begins before the one ahead of it", at()));
        }
    }

    fn check_residents(&self, faults: &mut Vec<String>) {
        let place = |r: &Resident| self.place(r.stored, r.near_byte).unwrap_or_default();
        for (i, a) in self.entry.residents.iter().enumerate() {
            if self.entry.residents[..i].iter().any(|b| overlap(place(a), place(b))) {
                faults.push(format!("{}: resident copies overlap at {}", self.entry.name, a.near_byte));
            }
        }
    }

    fn name(&self, transfer: &Transfer) -> &str {
        &self.plan.stored[transfer.stored as usize].name
    }

    /// Ends and begins what is due before step `i`: what goes out begins first, what comes in when all has ended.
    pub(crate) fn before(&mut self, i: usize, contents: &mut Contents, faults: &mut Vec<String>) {
        let entry = self.entry;
        let transfers = || entry.transfers.iter().enumerate().filter(move |(_, t)| t.begins as usize == i);
        for (t, _) in transfers().filter(|(_, t)| t.direction == Direction::Out) {
            self.begin(t, contents, faults);
        }
        self.end(i, contents, faults);
        for (t, _) in transfers().filter(|(_, t)| t.direction == Direction::In) {
            self.begin(t, contents, faults);
        }
        // Those that are waited for at once.
        self.end(i, contents, faults);
    }

    fn begin(&mut self, t: usize, contents: &mut Contents, faults: &mut Vec<String>) {
        let transfer = &self.entry.transfers[t];
        let place = self.place(transfer.stored, transfer.near_byte).expect("checked at first");
        let value = self.plan.stored[transfer.stored as usize].tensor.value;
        let at = format!("{} transfer {t} of `{}`", self.entry.name, self.name(transfer));
        self.top = self.top.max(place.1);
        for &(other, its) in &self.moving {
            let reads = transfer.direction == Direction::Out && self.entry.transfers[other].direction == Direction::Out;
            if overlap(place, its) && !reads {
                faults.push(format!("{at}: its place is still taken by transfer {other}"));
            }
        }
        match transfer.direction {
            Direction::In => {
                if self.is_behind[transfer.stored as usize] {
                    faults.push(format!("{at}: the far memory does not have the newest contents"));
                }
                contents.write(place.0, place.1, None);
            }
            Direction::Out => {
                if !contents.holds(place.0, place.1, value) {
                    faults.push(format!("{at}: its place does not hold the tensor"));
                }
                if self.is_given[transfer.stored as usize] {
                    faults.push(format!("{at}: a step of the host may still be at it"));
                }
            }
        }
        if stored_under(self.plan, place).is_some() {
            faults.push(format!("{at}: lies over a stored tensor"));
        }
        self.moving.push((t, place));
    }

    fn end(&mut self, i: usize, contents: &mut Contents, faults: &mut Vec<String>) {
        let mut k = 0;
        while k < self.moving.len() {
            let (t, place) = self.moving[k];
            let transfer = &self.entry.transfers[t];
            if transfer.ends as usize > i {
                k += 1;
                continue;
            }
            self.moving.remove(k);
            let value = self.plan.stored[transfer.stored as usize].tensor.value;
            match transfer.direction {
                Direction::In => contents.write(place.0, place.1, Some(value)),
                Direction::Out if contents.holds(place.0, place.1, value) => {
                    self.is_behind[transfer.stored as usize] = false;
                    let there = span(&self.plan.stored[transfer.stored as usize].tensor);
                    contents.write(there.0, there.1, Some(value));
                }
                Direction::Out => {
                    let at = format!("{} transfer {t} of `{}`", self.entry.name, self.name(transfer));
                    faults.push(format!("{at}: its place was overwritten on the way"));
                }
            }
        }
    }

    /// Holds a step against what is on its way, and notes what it changes.
    pub(crate) fn step(&mut self, step: &Step, at: &str, contents: &mut Contents, faults: &mut Vec<String>) {
        let changed = &step.args[..(step.changes as usize).min(step.args.len())];
        if self.plan.is_on_host(step) {
            return self.host_step(step, changed, at, contents, faults);
        }
        let scratch = (step.scratch_offset, step.scratch_offset.saturating_add(step.scratch_bytes));
        for &(t, place) in &self.moving {
            let writes = changed.iter().chain(&step.outs).any(|x| overlap(span(x), place))
                || (step.scratch_bytes > 0 && overlap(scratch, place));
            let reads = step.args.iter().any(|x| overlap(span(x), place));
            let is_in = self.entry.transfers[t].direction == Direction::In;
            if writes || (reads && is_in) {
                let name = self.name(&self.entry.transfers[t]);
                faults.push(format!("{at}: touches the place of transfer {t} of `{name}`, which is on its way"));
            }
        }
        // A result may lie where a stored tensor lies that it was added to.
        for x in changed.iter().chain(&step.outs) {
            let Some(i) = self.plan.stored.iter().position(|s| s.tensor.value == x.value) else { continue };
            if self.plan.is_far(&self.plan.stored[i].tensor) {
                self.is_behind[i] = true;
                contents.forget_elsewhere(x.value, span(x));
            }
        }
    }

    /// The same of a step of the host.
    fn host_step(
        &mut self,
        step: &Step,
        changed: &[Tensor],
        at: &str,
        contents: &mut Contents,
        faults: &mut Vec<String>,
    ) {
        for (k, x) in step.args.iter().enumerate() {
            let Some(i) = self.plan.stored.iter().position(|s| s.tensor.value == x.value) else {
                faults.push(format!("{at}: operand {k} of a step of the host is not stored"));
                continue;
            };
            let name = &self.plan.stored[i].name;
            self.is_given[i] = true;
            if self.is_behind[i] {
                faults.push(format!("{at}: the host's memory does not have the newest `{name}`"));
            }
            let is_moving =
                |t: &Transfer| t.stored as usize == i && (k < changed.len() || t.direction == Direction::Out);
            if let Some((t, _)) = self.moving.iter().find(|(t, _)| is_moving(&self.entry.transfers[*t])) {
                faults.push(format!("{at}: touches `{name}`, which transfer {t} moves"));
            }
        }
        changed.iter().for_each(|x| contents.forget_elsewhere(x.value, span(x)));
    }

    /// What must hold when the last step has ended.
    pub(crate) fn finish(&mut self, contents: &mut Contents, faults: &mut Vec<String>) {
        self.before(self.entry.steps.len(), contents, faults);
        for (i, _) in self.is_behind.iter().enumerate().filter(|(_, behind)| **behind) {
            let name = &self.plan.stored[i].name;
            faults.push(format!("{}: `{name}` changed and was not taken back", self.entry.name));
        }
        for resident in &self.entry.residents {
            let (value, place) = (
                self.plan.stored[resident.stored as usize].tensor.value,
                self.place(resident.stored, resident.near_byte).expect("checked at first"),
            );
            if !contents.holds(place.0, place.1, value) {
                let name = &self.plan.stored[resident.stored as usize].name;
                faults.push(format!("{}: the resident copy of `{name}` is gone at the end", self.entry.name));
            }
        }
    }
}
