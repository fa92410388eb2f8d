//! Times of steps by the device's own clock: a stamp before and one behind every step, which come down with the
//! results. Nothing waits for a step to be timed.

use super::memory::create;
use crate::gpu::GpuError;
use std::ops::Range;

/// Steps whose stamps one set of queries holds.
const SET_STEPS: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
/// Bytes of a step's two stamps.
const STEP_BYTES: u64 = 2 * wgpu::QUERY_SIZE as u64;
/// What the place of resolved stamps is a multiple of.
const ALIGN_BYTES: u64 = wgpu::QUERY_RESOLVE_BUFFER_ALIGNMENT;

/// Places for the stamps of one entry's steps, made at load for the longest entry.
pub(super) struct Stamps {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    /// Nanoseconds of one tick.
    tick_ns: f64,
    /// Steps that ran and whose stamps have not come down.
    open: Range<usize>,
}

/// The sets that hold the stamps of these steps, with the part of each.
fn parts(steps: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let sets = steps.start / SET_STEPS..steps.end.div_ceil(SET_STEPS);
    let part = move |set| {
        let first = set * SET_STEPS;
        (set, steps.start.max(first) - first..steps.end.min(first + SET_STEPS) - first)
    };
    sets.map(part).filter(|(_, part)| !part.is_empty())
}

impl Stamps {
    /// The most bytes that the stamps of so many steps take when they come down; those of some may begin in one set and
    /// end in the next.
    pub(super) fn bytes(steps: usize) -> u64 {
        (steps as u64 * STEP_BYTES).next_multiple_of(ALIGN_BYTES) + ALIGN_BYTES
    }

    /// Places for the stamps of so many steps.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn new(
        (device, queue): (&wgpu::Device, &wgpu::Queue),
        name: &str,
        steps: usize,
    ) -> Result<Stamps, GpuError> {
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = create(device, name, ("times", Stamps::bytes(steps)), usage, false)?;
        let make = |(_, part): (usize, Range<usize>)| {
            device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("times"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * part.len() as u32,
            })
        };
        let sets = parts(0..steps).map(make).collect();
        Ok(Stamps { sets, resolved, tick_ns: f64::from(queue.get_timestamp_period()), open: 0..0 })
    }

    /// Where the pass of step `step` writes its stamps.
    pub(super) fn of(&self, step: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * (step % SET_STEPS) as u32;
        wgpu::ComputePassTimestampWrites {
            query_set: &self.sets[step / SET_STEPS],
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }

    /// These steps were recorded; those before the first of an entry are of no interest any more.
    pub(super) fn ran(&mut self, steps: Range<usize>) {
        let first = if steps.start == 0 { 0 } else { self.open.start };
        self.open = first..steps.end;
    }

    /// Records the way of the open steps' stamps to place `at` of a buffer, and says how many bytes come.
    pub(super) fn bring(&self, encoder: &mut wgpu::CommandEncoder, down: &wgpu::Buffer, at: u64) -> u64 {
        let mut place = 0;
        for (set, part) in parts(self.open.clone()) {
            let queries = 2 * part.start as u32..2 * part.end as u32;
            let bytes = u64::from(queries.end - queries.start) * u64::from(wgpu::QUERY_SIZE);
            encoder.resolve_query_set(&self.sets[set], queries, &self.resolved, place);
            place += bytes.next_multiple_of(ALIGN_BYTES);
        }
        if place > 0 {
            encoder.copy_buffer_to_buffer(&self.resolved, 0, down, at, place);
        }
        place
    }

    /// Hands the nanoseconds of every open step to `take`, from the bytes that have come down.
    pub(super) fn read(&mut self, bytes: &[u8], mut take: impl FnMut(usize, u64)) {
        let tick = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, &b| word << 8 | u64::from(b));
        let mut place = 0;
        for (set, part) in parts(self.open.clone()) {
            for (i, step) in part.clone().enumerate() {
                let at = place + i * STEP_BYTES as usize;
                let ticks = tick(at + 8).saturating_sub(tick(at));
                take(set * SET_STEPS + step, (ticks as f64 * self.tick_ns) as u64);
            }
            place += (part.len() * STEP_BYTES as usize).next_multiple_of(ALIGN_BYTES as usize);
        }
        self.open = self.open.end..self.open.end;
    }
}

#[cfg(test)]
mod tests {
    use super::{SET_STEPS, Stamps, parts};

    #[test]
    fn long_entries_have_several_sets() {
        let found = |steps| parts(steps).collect::<Vec<_>>();
        assert!(found(0..0).is_empty());
        assert!(found(7..7).is_empty());
        assert_eq!(found(3..10), [(0, 3..10)]);
        assert_eq!(found(0..SET_STEPS), [(0, 0..SET_STEPS)]);
        let last = 2 * SET_STEPS + 5;
        let all = [(0, SET_STEPS - 1..SET_STEPS), (1, 0..SET_STEPS), (2, 0..5)];
        assert_eq!(found(SET_STEPS - 1..last), all);
        let place = |steps| parts(steps).map(|(_, part)| (16 * part.len() as u64).next_multiple_of(256)).sum::<u64>();
        for steps in [0..last, SET_STEPS - 1..last, SET_STEPS - 1..SET_STEPS + 1] {
            assert!(place(steps.clone()) <= Stamps::bytes(steps.len()), "{steps:?}");
        }
    }
}
