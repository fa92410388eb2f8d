//! A plan's addresses in buffers, and the buffers that bytes go through between host and device.
//!
//! Where the device's memory is the host's, inputs, stored tensors and what streams are written where they lie: a
//! buffer is mapped for that, which waits for what uses it, and is less work than a copy that waits in the queue
//! anyway. Results come down through a buffer there too: memory that the host writes may be slow for it to read.

use super::Complaint;
use crate::gpu::{GpuError, STAGING_BYTES, STAGING_RING};
use std::ops::Range;
use tinyforge_plan::Plan;

/// Copies go in whole words.
const WORD: u64 = 4;

/// A part of the addresses in one buffer.
struct Segment {
    first: u64,
    end: u64,
    buffer: wgpu::Buffer,
}

/// The device's memory at a plan's addresses, in as many buffers as the adapter's limit asks for.
pub(super) struct Memory {
    segments: Vec<Segment>,
    is_mappable: bool,
}

/// What lies at one place in every run of some plans: operands, results, scratch, stored tensors.
fn places(plans: &[&Plan]) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for plan in plans {
        all.extend(plan.stored.iter().map(|s| (s.tensor.offset, s.tensor.end())));
        for entry in &plan.entries {
            let named = entry.inputs.iter().chain(&entry.results).map(|n| &n.tensor);
            all.extend(named.map(|t| (t.offset, t.end())));
            for step in &entry.steps {
                all.extend(step.args.iter().chain(&step.outs).map(|t| (t.offset, t.end())));
                all.extend(
                    (step.scratch_bytes > 0).then(|| (step.scratch_offset, step.scratch_offset + step.scratch_bytes)),
                );
            }
        }
    }
    all.sort_unstable();
    all
}

/// Where the addresses from `start` to `end` are cut so that no part is longer than `limit` and nothing lies across a
/// cut; or the length of what cannot be cut.
fn cuts(places: &[(u64, u64)], start: u64, end: u64, limit: u64) -> Result<Vec<u64>, u64> {
    let mut cuts = vec![start];
    let mut begin = start;
    // The start of what overlaps, and where it ends so far.
    let mut joined = (start, start);
    for &(from, to) in places.iter().chain(&[(end, end)]) {
        if from < joined.1 {
            joined.1 = joined.1.max(to);
            continue;
        }
        if joined.1 - begin > limit {
            begin = joined.0;
            cuts.push(begin);
        }
        if joined.1 - begin > limit {
            return Err(joined.1 - begin);
        }
        joined = (from, to);
    }
    Ok(cuts)
}

impl Memory {
    /// Memory for the arenas of some plans on an adapter whose buffers have at most `limit` bytes.
    pub(super) fn new(device: &wgpu::Device, name: &str, plans: &[&Plan], limit: u64) -> Result<Memory, GpuError> {
        let start = plans[0].arena_start();
        let bytes = plans.iter().map(|p| p.arena_bytes()).max().unwrap_or(0).next_multiple_of(256);
        let end = start + bytes;
        let refused = |bytes, why: String| GpuError::Memory {
            what: "tensors that lie together",
            bytes,
            device: name.to_string(),
            why,
        };
        let starts = cuts(&places(plans), start, end, limit)
            .map_err(|bytes| refused(bytes, format!("has buffers of at most {limit}")))?;
        let is_mappable = device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let mut usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        if is_mappable {
            usage |= wgpu::BufferUsages::MAP_WRITE;
        }
        let mut segments = Vec::new();
        for (i, &first) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(end);
            let buffer = create(device, name, ("the plan's tensors", (end - first).max(256)), usage, false)?;
            segments.push(Segment { first, end, buffer });
        }
        Ok(Memory { segments, is_mappable })
    }

    /// Whether the host writes where tensors lie, while no submission uses their buffer.
    pub(super) fn is_mappable(&self) -> bool {
        self.is_mappable
    }

    /// The buffer with an address, and its place there and how much follows.
    fn find(&self, address: u64) -> (&wgpu::Buffer, u64, u64) {
        let found = self.segments.iter().find(|s| (s.first..s.end).contains(&address));
        let segment = found.unwrap_or_else(|| panic!("address {address} is in the device's memory"));
        (&segment.buffer, address - segment.first, segment.end - address)
    }

    /// An operand of so many bytes, in whole words.
    pub(super) fn binding(&self, address: u64, bytes: u64) -> wgpu::BufferBinding<'_> {
        let (buffer, offset, _) = self.find(address);
        wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(bytes.next_multiple_of(WORD).max(WORD)) }
    }
}

/// A buffer, or why there is no room for it.
pub(super) fn create(
    device: &wgpu::Device,
    name: &str,
    (what, size): (&'static str, u64),
    usage: wgpu::BufferUsages,
    mapped_at_creation: bool,
) -> Result<wgpu::Buffer, GpuError> {
    let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory].map(|f| device.push_error_scope(f));
    let buffer = device.create_buffer(&wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation });
    let errors: Vec<_> = scopes.into_iter().rev().filter_map(|s| pollster::block_on(s.pop())).collect();
    match errors.first() {
        None => Ok(buffer),
        Some(e) => Err(GpuError::Memory { what, bytes: size, device: name.to_string(), why: format!("says: {e}") }),
    }
}

/// The ways between host and device, made once: one for a run's inputs and one for its results, and a ring of buffers
/// for tensors that go up, of which one is filled while others are on their way. Those up are mapped between uses;
/// there are none where the host writes in place.
pub(super) struct Staging {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    complaint: Complaint,
    up: Option<wgpu::Buffer>,
    down: wgpu::Buffer,
    ring: Vec<Way>,
    next: usize,
}

/// A buffer of the ring, and the submission with its last copy.
struct Way {
    buffer: wgpu::Buffer,
    under_way: Option<wgpu::SubmissionIndex>,
}

impl Staging {
    /// Ways for so many bytes of inputs and of results; without a number of inputs they are written in place.
    pub(super) fn new(
        (device, queue): (&wgpu::Device, &wgpu::Queue),
        name: &str,
        complaint: &Complaint,
        (up, down): (Option<u64>, u64),
    ) -> Result<Staging, GpuError> {
        let up_usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let down_usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let size = |bytes: u64, least: u64| bytes.max(least).next_multiple_of(256);
        let way = |_| {
            let buffer = create(device, name, ("buffers for tensors", STAGING_BYTES), up_usage, true)?;
            Ok(Way { buffer, under_way: None })
        };
        let up_bytes = up.map(|bytes| size(bytes, 256));
        let up =
            up_bytes.map(|bytes| create(device, name, ("buffers for inputs", bytes), up_usage, true)).transpose()?;
        let ring_len = if up.is_some() { STAGING_RING } else { 0 };
        Ok(Staging {
            device: device.clone(),
            queue: queue.clone(),
            name: name.to_string(),
            complaint: complaint.clone(),
            up,
            down: create(device, name, ("buffers for results", size(down, STAGING_BYTES)), down_usage, false)?,
            ring: (0..ring_len).map(way).collect::<Result<_, GpuError>>()?,
            next: 0,
        })
    }

    fn lost(&self, why: String) -> GpuError {
        GpuError::Lost { device: self.name.clone(), why }
    }

    /// Waits for everything that was submitted.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| self.lost(e.to_string()))?;
        self.complaint.check(&self.name)
    }

    fn fill(&self, buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) -> Result<(), GpuError> {
        let end = at + (bytes.len() as u64).next_multiple_of(WORD);
        let mut view = buffer.get_mapped_range_mut(at..end).map_err(|e| self.lost(e.to_string()))?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    /// Sets inputs, given with their addresses, for what is submitted from now on: in place, or by copies that are
    /// recorded; until those have gone, [`Staging::reopen`] must be called before the next ones.
    pub(super) fn bring<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        memory: &Memory,
        mut inputs: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), GpuError> {
        let Some(up) = &self.up else {
            return inputs.try_for_each(|(address, bytes)| self.write_in_place(memory, address, bytes));
        };
        let mut at = 0;
        for (address, bytes) in inputs {
            self.fill(up, at, bytes)?;
            let (buffer, offset, _) = memory.find(address);
            let len = bytes.len() as u64;
            encoder.copy_buffer_to_buffer(up, at, buffer, offset, len.next_multiple_of(WORD));
            at += len.next_multiple_of(8);
        }
        up.unmap();
        Ok(())
    }

    /// Waits for the copies of inputs, and opens their way for writing again.
    pub(super) fn reopen(&self) -> Result<(), GpuError> {
        self.up.as_ref().map_or(Ok(()), |up| self.map(up, wgpu::MapMode::Write))
    }

    fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Result<(), GpuError> {
        self.begin_mapping(buffer, mode, 0..buffer.size());
        self.wait()
    }

    fn begin_mapping(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode, range: Range<u64>) {
        let complaint = self.complaint.clone();
        buffer.map_async(mode, range, move |result| {
            if let Err(e) = result {
                complaint.set(e.to_string());
            }
        });
    }

    /// Records a copy from an address to place `at` of the way down.
    pub(super) fn copy_down(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        memory: &Memory,
        address: u64,
        (at, bytes): (u64, u64),
    ) {
        let (buffer, offset, _) = memory.find(address);
        encoder.copy_buffer_to_buffer(buffer, offset, &self.down, at, bytes.next_multiple_of(WORD));
    }

    /// The buffer that copies down go to.
    pub(super) fn down(&self) -> &wgpu::Buffer {
        &self.down
    }

    /// Waits, and hands what came down to `take`.
    pub(super) fn taken<R>(&self, bytes: u64, take: impl FnOnce(&[u8]) -> R) -> Result<R, GpuError> {
        self.map(&self.down, wgpu::MapMode::Read)?;
        let view = self.down.get_mapped_range(..bytes.next_multiple_of(8)).map_err(|e| self.lost(e.to_string()))?;
        let result = take(&view);
        drop(view);
        self.down.unmap();
        Ok(result)
    }

    /// A recorder of commands.
    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None })
    }

    /// Hands recorded commands to the device.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder) {
        self.queue.submit([encoder.finish()]);
    }

    /// Sets the bytes from an address on, for what is submitted from now on.
    pub(super) fn write(&mut self, memory: &Memory, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        if self.up.is_none() {
            return self.write_in_place(memory, address, bytes);
        }
        let mut done = 0;
        while done < bytes.len() {
            let (_, _, room) = memory.find(address + done as u64);
            let count = (bytes.len() - done).min(room.min(STAGING_BYTES) as usize);
            let at = self.next;
            self.next = (at + 1) % self.ring.len();
            if let Some(index) = self.ring[at].under_way.take() {
                let poll = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
                self.device.poll(poll).map_err(|e| self.lost(e.to_string()))?;
                self.complaint.check(&self.name)?;
            }
            let way = &self.ring[at].buffer;
            self.fill(way, 0, &bytes[done..done + count])?;
            way.unmap();
            let mut encoder = self.encoder();
            let (buffer, offset, _) = memory.find(address + done as u64);
            encoder.copy_buffer_to_buffer(way, 0, buffer, offset, (count as u64).next_multiple_of(WORD));
            let index = self.queue.submit([encoder.finish()]);
            self.begin_mapping(way, wgpu::MapMode::Write, 0..way.size());
            self.ring[at].under_way = Some(index);
            done += count;
        }
        Ok(())
    }

    /// Waits for what was submitted, and sets the bytes from an address on where they lie.
    fn write_in_place(&self, memory: &Memory, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        let mut done = 0;
        while done < bytes.len() {
            let (buffer, offset, room) = memory.find(address + done as u64);
            let count = (bytes.len() - done).min(room as usize);
            let range = offset..offset + (count as u64).next_multiple_of(WORD);
            self.begin_mapping(buffer, wgpu::MapMode::Write, range.clone());
            self.wait()?;
            let mut view = buffer.get_mapped_range_mut(range).map_err(|e| self.lost(e.to_string()))?;
            view.slice(..count).copy_from_slice(&bytes[done..done + count]);
            drop(view);
            buffer.unmap();
            done += count;
        }
        Ok(())
    }

    /// Brings the bytes from an address on.
    pub(super) fn read(&self, memory: &Memory, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        let mut done = 0;
        while done < bytes.len() {
            let (_, _, room) = memory.find(address + done as u64);
            let count = (bytes.len() - done).min(room.min(self.down.size()) as usize);
            let mut encoder = self.encoder();
            self.copy_down(&mut encoder, memory, address + done as u64, (0, count as u64));
            self.submit(encoder);
            let out = &mut bytes[done..done + count];
            self.taken(count as u64, |view| out.copy_from_slice(&view[..count]))?;
            done += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn cuts_go_between_tensors() {
        let places = [(0, 10), (10, 30), (25, 40), (40, 50)];
        assert_eq!(cuts(&places, 0, 50, 50), Ok(vec![0]));
        assert_eq!(cuts(&places, 0, 50, 40), Ok(vec![0, 40]));
        assert_eq!(cuts(&places, 0, 50, 30), Ok(vec![0, 10, 40]));
        assert_eq!(cuts(&places, 0, 50, 29), Err(30));
    }
}
