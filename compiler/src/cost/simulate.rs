//! Plays a schedule on a machine's queues.
//!
//! There is a queue for kernels, one for the host's updates, and one for each link. Each takes what it is given in
//! order and does one thing at a time. Works are visited in the schedule's order; before each, the transfers that may
//! have begun by then are put on their links: those out of the near memory at once, those into it when what the work
//! waits for has ended, whose place they may take, and when the host has changed what they bring. What crosses two
//! links begins when its own, the one to the files, is free. One pass: a time is known when it is asked for.

use super::{CostError, Schedule, Transfer, check, link_s, seconds, takes_queue};
use crate::machine::Machine;

/// When something ran.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Span {
    /// Seconds after the schedule's start.
    pub start_s: f64,
    /// The same.
    pub end_s: f64,
}

impl Span {
    /// How long it took.
    pub fn seconds(&self) -> f64 {
        self.end_s - self.start_s
    }
}

/// A schedule that was played.
#[derive(Clone, PartialEq, Debug)]
pub struct Prediction {
    /// When the last work and the last transfer end.
    pub seconds: f64,
    /// How long the compute queue stood still before that.
    pub waiting_s: f64,
    /// When each work ran.
    pub works: Vec<Span>,
    /// When each transfer ran.
    pub transfers: Vec<Span>,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// From the near memory.
    Out,
    /// To the near memory, or between others.
    In,
}

/// The queues, each by the time when it is free.
struct Queues<'a> {
    machine: &'a Machine,
    schedule: &'a Schedule,
    compute_s: f64,
    host_s: f64,
    /// What transfers took of the compute queue.
    copied_s: f64,
    links_s: Vec<f64>,
    /// Transfers of each link that have not begun, the next one last.
    pending: Vec<Vec<usize>>,
    /// When each transfer ran.
    transfers: Vec<Option<Span>>,
}

/// Plays the schedule.
///
/// # Errors
/// A rate is missing, or the order cannot be kept.
pub fn simulate(machine: &Machine, schedule: &Schedule) -> Result<Prediction, CostError> {
    check(machine, schedule)?;
    let mut queues = Queues::new(machine, schedule);
    // Transfers by the work that waits for them.
    let mut awaited = vec![Vec::new(); schedule.works.len() + 1];
    schedule.transfers.iter().enumerate().for_each(|(i, t)| awaited[t.ends as usize].push(i));
    let mut works = Vec::with_capacity(schedule.works.len());
    let (mut done_s, mut busy_s) = (0.0f64, 0.0);
    for (index, awaited) in awaited.iter().enumerate() {
        queues.begin(index as u32, done_s, Way::Out, &works)?;
        let free_s = done_s.max(queues.ended(awaited));
        queues.begin(index as u32, free_s, Way::In, &works)?;
        let ready_s = queues.landed(index, awaited)?;
        let Some(work) = schedule.works.get(index) else {
            done_s = done_s.max(ready_s).max(queues.host_s);
            break;
        };
        let takes_s = seconds(machine, work)?.seconds;
        let is_host = work.on_host && !machine.traits.shares_cores;
        // What the host updates, earlier kernels have computed. Kernels behind it take the place of what went out.
        queues.compute_s = queues.compute_s.max(ready_s);
        let start_s = if is_host { queues.host_s.max(queues.compute_s) } else { queues.compute_s };
        let span = Span { start_s, end_s: start_s + takes_s };
        *(if is_host { &mut queues.host_s } else { &mut queues.compute_s }) = span.end_s;
        busy_s += if is_host { 0.0 } else { takes_s };
        done_s = if is_host { done_s } else { done_s.max(span.end_s) };
        works.push(span);
    }
    let transfers: Vec<Span> = queues.transfers.iter().map(|span| span.unwrap_or_default()).collect();
    let waiting_s = (done_s - busy_s - queues.copied_s).max(0.0);
    Ok(Prediction { seconds: done_s, waiting_s, works, transfers })
}

impl<'a> Queues<'a> {
    fn new(machine: &'a Machine, schedule: &'a Schedule) -> Queues<'a> {
        let mut pending = vec![Vec::new(); machine.links.len()];
        schedule.transfers.iter().enumerate().rev().for_each(|(i, t)| pending[t.link as usize].push(i));
        Queues {
            machine,
            schedule,
            compute_s: 0.0,
            host_s: 0.0,
            copied_s: 0.0,
            links_s: vec![0.0; machine.links.len()],
            pending,
            transfers: vec![None; schedule.transfers.len()],
        }
    }

    /// Puts on their links what may begin one way before work `index`, at `ready_s` at the earliest, and behind the
    /// host's work that it follows.
    fn begin(&mut self, index: u32, ready_s: f64, way: Way, works: &[Span]) -> Result<(), CostError> {
        for link in 0..self.pending.len() {
            let is_out = self.machine.links[link].from == self.machine.near;
            if is_out != (way == Way::Out) {
                continue;
            }
            while let Some(&next) = self.pending[link].last() {
                let transfer = &self.schedule.transfers[next];
                if transfer.begins > index {
                    break;
                }
                let followed_s = transfer.follows.map_or(0.0, |work| works[work as usize].end_s);
                self.transfers[next] = Some(self.put(transfer, ready_s.max(followed_s))?);
                self.pending[link].pop();
            }
        }
        Ok(())
    }

    /// Puts a transfer on its links.
    fn put(&mut self, transfer: &Transfer, ready_s: f64) -> Result<Span, CostError> {
        let takes_s = link_s(self.machine, transfer.link, transfer.bytes)?;
        let is_queued = takes_queue(self.machine, transfer.link);
        // Whoever asks for copies in a queue asks for the next when the one before is there.
        let mut from_s = if is_queued { ready_s.max(self.compute_s) } else { ready_s };
        let mut read_s = 0.0;
        if let Some(files) = transfer.files {
            from_s = from_s.max(self.links_s[files as usize]);
            read_s = from_s + link_s(self.machine, files, transfer.bytes)?;
            self.links_s[files as usize] = read_s;
        }
        self.copied_s += if is_queued { takes_s } else { 0.0 };
        let free_s = if is_queued { &mut self.compute_s } else { &mut self.links_s[transfer.link as usize] };
        let start_s = free_s.max(from_s);
        *free_s = start_s + takes_s;
        Ok(Span { start_s: if transfer.files.is_some() { from_s } else { start_s }, end_s: read_s.max(*free_s) })
    }

    /// When the last of some transfers ends, of those that have begun.
    fn ended(&self, awaited: &[usize]) -> f64 {
        let begun = awaited.iter().filter_map(|&transfer| self.transfers[transfer]);
        begun.fold(0.0, |latest, span| latest.max(span.end_s))
    }

    /// When all that work `index` waits for is there.
    fn landed(&self, index: usize, awaited: &[usize]) -> Result<f64, CostError> {
        awaited.iter().try_fold(0.0f64, |latest, &transfer| match self.transfers[transfer] {
            Some(span) => Ok(latest.max(span.end_s)),
            None => Err(CostError::Deadlock { work: index, index: transfer }),
        })
    }
}
