//! Streams whose tasks are carried out as late as their events let them, in an order that a seed picks.

use std::collections::VecDeque;
use tinyforge::gpu::cuda::{Call, Event, Multiply, Stream};

/// What a stream was given.
#[derive(Clone, PartialEq, Debug)]
pub enum Task {
    /// Run a kernel.
    Launch(Call),
    /// Run a product.
    Multiply(Multiply),
    /// Copy from pinned memory.
    Up { pinned: u64, address: u64, bytes: u64 },
    /// Copy to pinned memory.
    Down { address: u64, pinned: u64, bytes: u64 },
    /// Set bytes to one value.
    Set { address: u64, bytes: u64, byte: u8 },
}

/// A stream, and how many of its tasks and of the marks that it follows a mark stands behind: what is marked behind
/// such a one is reached no earlier.
type Mark = (usize, u64);

enum Queued {
    Task(Task),
    /// What follows begins after this mark.
    After(Mark),
    /// This event is reached when all before it is done.
    Reaches(Event),
}

#[derive(Default)]
struct Queue {
    queued: VecDeque<Queued>,
    given: u64,
    done: u64,
}

/// Nanoseconds that every task takes.
pub const TASK_NS: u64 = 1000;

/// The streams of a card.
pub struct Streams {
    queues: [Queue; Stream::ALL.len()],
    events: Vec<Option<Mark>>,
    /// When each event was reached since it was marked last.
    reached: Vec<Option<u64>>,
    random: u64,
    /// Nanoseconds since the first task began.
    now: u64,
}

fn number(stream: Stream) -> usize {
    Stream::ALL.iter().position(|s| *s == stream).expect("all of them are there")
}

impl Streams {
    /// Streams whose tasks come in the order that this seed picks.
    pub fn new(seed: u64) -> Streams {
        Streams { queues: Default::default(), events: Vec::new(), reached: Vec::new(), random: seed.max(1), now: 0 }
    }

    /// A new event, not marked yet.
    pub fn event(&mut self) -> Event {
        self.events.push(None);
        self.reached.push(None);
        Event(self.events.len() as u32 - 1)
    }

    /// Gives a stream a task.
    pub fn give(&mut self, stream: Stream, task: Task) {
        let queue = &mut self.queues[number(stream)];
        queue.given += 1;
        queue.queued.push_back(Queued::Task(task));
    }

    /// Marks the end of what a stream was given.
    pub fn record(&mut self, event: Event, stream: Stream) {
        let stream = number(stream);
        self.events[event.0 as usize] = Some((stream, self.queues[stream].given));
        self.reached[event.0 as usize] = None;
        self.queues[stream].queued.push_back(Queued::Reaches(event));
        self.settle();
    }

    /// Takes everything from the front of the streams that waits for nothing more: each may be what another waits for.
    fn settle(&mut self) {
        while (0..self.queues.len()).any(|q| self.settle_one(q)) {}
    }

    /// The same of one stream; whether there was anything.
    fn settle_one(&mut self, q: usize) -> bool {
        let before = self.queues[q].queued.len();
        loop {
            match self.queues[q].queued.front() {
                Some(&Queued::After(mark)) if self.is_past(mark) => self.queues[q].done += 1,
                Some(&Queued::Reaches(event)) => self.reached[event.0 as usize] = Some(self.now),
                _ => return self.queues[q].queued.len() < before,
            }
            self.queues[q].queued.pop_front();
        }
    }

    /// What a stream is given next begins after an event; one that was never marked holds nothing up.
    pub fn follow(&mut self, stream: Stream, event: Event) {
        if let Some(mark) = self.events[event.0 as usize] {
            let queue = &mut self.queues[number(stream)];
            queue.given += 1;
            queue.queued.push_back(Queued::After(mark));
            self.settle();
        }
    }

    /// Whether everything before an event is done.
    pub fn is_reached(&self, event: Event) -> bool {
        self.events[event.0 as usize].is_none_or(|mark| self.is_past(mark))
    }

    fn is_past(&self, (stream, count): Mark) -> bool {
        self.queues[stream].done >= count
    }

    /// Nanoseconds from one event to another.
    ///
    /// # Errors
    /// One was not reached.
    pub fn elapsed_ns(&self, from: Event, to: Event) -> Result<u64, String> {
        let [from, to] = [from, to].map(|event| self.reached[event.0 as usize].ok_or("an event was not reached"));
        Ok(to?.saturating_sub(from?))
    }

    /// The next task, of one of the streams whose next one may begin.
    ///
    /// # Errors
    /// None may: streams wait for each other.
    pub fn next(&mut self) -> Result<Task, String> {
        self.settle();
        let is_ready = |q: &usize| matches!(self.queues[*q].queued.front(), Some(Queued::Task(_)));
        let ready: Vec<usize> = (0..self.queues.len()).filter(is_ready).collect();
        if ready.is_empty() {
            return Err("nothing can go on: streams wait for each other".to_string());
        }
        // Source of the numbers: Marsaglia 2003.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let queue = &mut self.queues[ready[(self.random >> 33) as usize % ready.len()]];
        queue.done += 1;
        let next = queue.queued.pop_front();
        self.now += TASK_NS;
        self.settle();
        match next {
            Some(Queued::Task(task)) => Ok(task),
            _ => unreachable!("the stream's next is a task"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(address: u64) -> Task {
        Task::Set { address, bytes: 1, byte: 0 }
    }

    fn orders(prepare: impl Fn(&mut Streams)) -> Vec<Vec<u64>> {
        let mut found: Vec<Vec<u64>> = Vec::new();
        for seed in 1..200 {
            let mut streams = Streams::new(seed);
            prepare(&mut streams);
            let mut order = Vec::new();
            while let Ok(Task::Set { address, .. }) = streams.next() {
                order.push(address);
            }
            if !found.contains(&order) {
                found.push(order);
            }
        }
        found.sort();
        found
    }

    #[test]
    fn every_order_that_events_leave_open_comes_and_no_other() {
        let apart = orders(|s| {
            s.give(Stream::Up, set(1));
            s.give(Stream::Compute, set(2));
            s.give(Stream::Compute, set(3));
        });
        assert_eq!(apart, [[1, 2, 3], [2, 1, 3], [2, 3, 1]]);
        let ordered = orders(|s| {
            let event = s.event();
            s.give(Stream::Up, set(1));
            s.record(event, Stream::Up);
            s.give(Stream::Compute, set(2));
            s.follow(Stream::Compute, event);
            s.give(Stream::Compute, set(3));
        });
        assert_eq!(ordered, [[1, 2, 3], [2, 1, 3]]);
    }

    /// A mark behind another stream's is reached no earlier, though no task stands between.
    #[test]
    fn what_is_marked_follows_what_its_stream_follows() {
        let order = orders(|s| {
            let (first, second) = (s.event(), s.event());
            s.give(Stream::Up, set(1));
            s.record(first, Stream::Up);
            s.follow(Stream::Compute, first);
            s.record(second, Stream::Compute);
            s.follow(Stream::Down, second);
            s.give(Stream::Down, set(2));
        });
        assert_eq!(order, [[1, 2]]);
    }

    #[test]
    fn an_event_is_what_it_was_marked_last() {
        let mut streams = Streams::new(1);
        let event = streams.event();
        assert!(streams.is_reached(event), "one that was never marked holds nothing up");
        streams.give(Stream::Down, set(1));
        streams.record(event, Stream::Down);
        assert!(!streams.is_reached(event));
        let later = streams.event();
        streams.give(Stream::Up, set(2));
        streams.record(later, Stream::Up);
        assert!(streams.elapsed_ns(event, later).is_err(), "neither was reached");
        streams.next().expect("there are two");
        streams.next().expect("there is one");
        assert!(streams.is_reached(event) && streams.is_reached(later));
        let apart = [(event, later), (later, event)].map(|(a, b)| streams.elapsed_ns(a, b).expect("reached"));
        assert_eq!(apart.iter().sum::<u64>(), TASK_NS, "one task apart, whichever came first");
        assert!(streams.next().is_err());
    }
}
