//! A plan on an adapter: its launches made ready, and run.

use super::adapter::Opened;
use super::memory::{Memory, Staging, create};
use super::pipelines::Pipelines;
use super::stamps::Stamps;
use super::{Adapter, Complaint};
use crate::arena::Arena;
use crate::gpu::{Device, Failure, GpuError, Operand, Params, SLOT_BYTES, STAGING_BYTES, Tables, Work, launches};
use crate::runner::RunOptions;
use std::ops::Range;
use std::sync::PoisonError;
use std::time::Instant;
use tinyforge_kernels::f32::optimizer::{SIGNED, UNSIGNED};
use tinyforge_plan::{Entry, Named, Plan, Step};

/// Bytes of the status, which comes down with every run.
const STATUS_BYTES: u64 = 256;
/// Launches that are handed over together: a driver may end a submission that takes seconds.
const LAUNCHES_PER_SUBMIT: usize = 64;

/// A launch, ready.
struct Ready {
    pipeline: wgpu::ComputePipeline,
    operands: wgpu::BindGroup,
    grid: [u32; 3],
}

/// The launches of an entry, by step.
type Code = Vec<Vec<Ready>>;

/// Plans on an adapter.
pub(crate) struct WgpuDevice {
    memory: Memory,
    staging: Staging,
    status: wgpu::Buffer,
    /// By phase and entry.
    code: Vec<Vec<Code>>,
    /// By phase and entry, where times are counted.
    times: Option<Vec<Vec<Times>>>,
    /// What tells the times, where the adapter can; elsewhere every step is waited for.
    stamps: Option<Stamps>,
}

/// Nanoseconds and runs of every step of an entry.
type Times = Vec<(u64, u64)>;

/// What launches bind beside the plan's tensors.
struct Shared {
    params: wgpu::Buffer,
    status: wgpu::Buffer,
    tables: wgpu::Buffer,
}

impl WgpuDevice {
    /// Opens the adapter and makes everything that runs of these plans need.
    ///
    /// # Errors
    /// The adapter is too small, or its driver refuses.
    pub(crate) fn new(adapter: &Adapter, plans: &[&Plan], options: &RunOptions) -> Result<WgpuDevice, GpuError> {
        let name = &adapter.name;
        let opened = adapter.open(options.without)?;
        let Opened { device, queue, complaint, pipelines, .. } = &*opened;
        let mut pipelines = pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |why| GpuError::Lost { device: name.clone(), why };
        let works = plans.iter().map(|p| launches(p)).collect::<Result<Vec<_>, _>>().map_err(lost)?;
        let memory = Memory::new(device, name, plans, adapter.buffer_bytes_max)?;
        let inputs = entries(plans).map(|e| moved_bytes(&e.inputs)).max().unwrap_or(0);
        let up = Some(inputs).filter(|_| !memory.is_mappable());
        let down = entries(plans).map(|e| moved_bytes(&e.results)).max().unwrap_or(0);
        let longest = entries(plans).map(|e| e.steps.len()).max().unwrap_or(0);
        let is_stamped = options.count_times && device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let stamps = is_stamped.then(|| Stamps::new((device, queue), name, longest)).transpose()?;
        let down = down + if is_stamped { Stamps::bytes(longest) } else { 0 };
        let staging = Staging::new((device, queue), name, complaint, (up, STATUS_BYTES + down))?;
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let status = create(device, name, ("the status", STATUS_BYTES), storage, false)?;
        let tables = create(device, name, ("tables", 2048), wgpu::BufferUsages::STORAGE, true)?;
        let codes = [*SIGNED.values(), *UNSIGNED.values()].concat();
        fill_mapped(&tables, 0, bytemuck::cast_slice(&codes)).map_err(lost)?;
        tables.unmap();
        let count: usize = works.iter().flatten().flatten().map(|w| w.launches.len()).sum();
        let bytes = SLOT_BYTES * count.max(1) as u64;
        let params = create(device, name, ("parameters", bytes), wgpu::BufferUsages::UNIFORM, true)?;
        let shared = Shared { params, status: status.clone(), tables };
        let mut code = Vec::new();
        let mut slot = 0;
        for (plan, works) in plans.iter().zip(&works) {
            let mut of_plan = Vec::new();
            for (entry, works) in plan.entries.iter().zip(works) {
                let mut of_entry = Vec::new();
                for (i, (step, work)) in entry.steps.iter().zip(works).enumerate() {
                    let at = (device, &memory, &shared);
                    let ready = make_ready(at, &mut pipelines, complaint, (step, i, work), &mut slot)?;
                    of_entry.push(ready);
                }
                of_plan.push(of_entry);
            }
            code.push(of_plan);
        }
        shared.params.unmap();
        complaint.check(name)?;
        pipelines.keep();
        let zeros = |c: &Code| vec![(0, 0); c.len()];
        let times = options.count_times.then(|| code.iter().map(|p| p.iter().map(zeros).collect()).collect());
        Ok(WgpuDevice { memory, staging, status, code, times, stamps })
    }
}

fn entries<'a>(plans: &'a [&Plan]) -> impl Iterator<Item = &'a Entry> {
    plans.iter().flat_map(|p| &p.entries)
}

/// Counts one more run of a step.
fn count_run((all_ns, runs): &mut (u64, u64), ns: u64) {
    *all_ns += ns;
    *runs += 1;
}

/// Bytes of named tensors on their way, each in whole words.
fn moved_bytes(named: &[Named]) -> u64 {
    named.iter().map(|n| n.tensor.bytes().next_multiple_of(8)).sum()
}

/// Writes to a buffer that is mapped.
pub(super) fn fill_mapped(buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) -> Result<(), String> {
    let mut view = buffer.get_mapped_range_mut(at..at + bytes.len() as u64).map_err(|e| e.to_string())?;
    view.copy_from_slice(bytes);
    Ok(())
}

/// Makes the launches of a step ready; `slot` is the next place for parameters.
fn make_ready(
    (device, memory, shared): (&wgpu::Device, &Memory, &Shared),
    pipelines: &mut Pipelines,
    complaint: &Complaint,
    (step, number, work): (&Step, usize, &Work),
    slot: &mut u64,
) -> Result<Vec<Ready>, GpuError> {
    let mut all = Vec::new();
    for launch in &work.launches {
        let words = launch.params.of_step(number as u32);
        fill_mapped(&shared.params, *slot, bytemuck::cast_slice(&words))
            .map_err(|why| GpuError::Lost { device: step.kernel.clone(), why })?;
        let (pipeline, layout) = pipelines.get(launch.kernel, launch.operands.len(), complaint)?;
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        let of_tensor = |t: &tinyforge_plan::Tensor| memory.binding(t.offset, t.bytes());
        let params = wgpu::BufferBinding {
            buffer: &shared.params,
            offset: *slot,
            size: std::num::NonZeroU64::new(4 * Params::WORDS as u64),
        };
        let operands = launch.operands.iter().map(|operand| match *operand {
            Operand::Arg(i) => of_tensor(&step.args[i]),
            Operand::Out(i) => of_tensor(&step.outs[i]),
            Operand::Scratch(first, bytes) => memory.binding(step.scratch_offset + first, bytes),
            Operand::Table(Tables::Codes) => whole(&shared.tables),
        });
        let bindings = [params, whole(&shared.status)].into_iter().chain(operands);
        let entries: Vec<wgpu::BindGroupEntry> = bindings
            .enumerate()
            .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(b) })
            .collect();
        let operands =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        all.push(Ready { pipeline, operands, grid: launch.grid });
        *slot += SLOT_BYTES;
    }
    Ok(all)
}

/// Records steps as one pass; those that are timed, from number `first` on, as a pass each.
fn record(encoder: &mut wgpu::CommandEncoder, (first, steps): (usize, &[Vec<Ready>]), stamps: Option<&Stamps>) {
    match stamps {
        None => record_pass(encoder, steps, None),
        Some(stamps) => steps.chunks(1).enumerate().for_each(|(i, step)| {
            record_pass(encoder, step, Some(stamps.of(first + i)));
        }),
    }
}

fn record_pass(
    encoder: &mut wgpu::CommandEncoder,
    steps: &[Vec<Ready>],
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites>,
) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
    for launch in steps.iter().flatten() {
        pass.set_pipeline(&launch.pipeline);
        pass.set_bind_group(0, &launch.operands, &[]);
        pass.dispatch_workgroups(launch.grid[0], launch.grid[1], launch.grid[2]);
    }
}

impl WgpuDevice {
    /// Runs steps, a few launches to a submission; where times are counted without stamps, one step, and waits for it.
    fn compute(
        &mut self,
        at: (usize, usize),
        steps: Range<usize>,
        mut encoder: wgpu::CommandEncoder,
    ) -> Result<wgpu::CommandEncoder, GpuError> {
        let code = &self.code[at.0][at.1];
        let waits = self.times.is_some() && self.stamps.is_none();
        if let Some(stamps) = &mut self.stamps {
            stamps.ran(steps.clone());
        }
        let mut first = steps.start;
        while first < steps.end {
            let (mut end, mut count) = (first + 1, code[first].len());
            while !waits && end < steps.end && count < LAUNCHES_PER_SUBMIT {
                count += code[end].len();
                end += 1;
            }
            if waits {
                self.staging.submit(std::mem::replace(&mut encoder, self.staging.encoder()));
                self.staging.wait()?;
            }
            let started = Instant::now();
            record(&mut encoder, (first, &code[first..end]), self.stamps.as_ref());
            self.staging.submit(std::mem::replace(&mut encoder, self.staging.encoder()));
            if let Some(times) = self.times.as_mut().filter(|_| waits) {
                self.staging.wait()?;
                count_run(&mut times[at.0][at.1][first], started.elapsed().as_nanos() as u64);
            }
            first = end;
        }
        Ok(encoder)
    }

    /// Waits, and takes results and times; the status.
    fn take(
        &mut self,
        at: (usize, usize),
        mut encoder: wgpu::CommandEncoder,
        results: &[Named],
        host: &mut Arena,
    ) -> Result<u32, GpuError> {
        let WgpuDevice { staging, memory, stamps, times, .. } = self;
        encoder.copy_buffer_to_buffer(&self.status, 0, staging.down(), 0, STATUS_BYTES);
        let mut place = STATUS_BYTES;
        for result in results {
            let bytes = result.tensor.bytes();
            staging.copy_down(&mut encoder, memory, result.tensor.offset, (place, bytes));
            place += bytes.next_multiple_of(8);
        }
        let end = place + stamps.as_ref().map_or(0, |s| s.bring(&mut encoder, staging.down(), place));
        staging.submit(encoder);
        staging.taken(end, |bytes| {
            let status = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let mut place = STATUS_BYTES as usize;
            for result in results {
                let len = result.tensor.bytes() as usize;
                if status == 0 {
                    host.part(result.tensor.offset, len as u64).bytes_mut().copy_from_slice(&bytes[place..place + len]);
                }
                place += len.next_multiple_of(8);
            }
            if let (Some(stamps), Some(times)) = (stamps, times) {
                stamps.read(&bytes[place..], |step, ns| count_run(&mut times[at.0][at.1][step], ns));
            }
            status
        })
    }
}

impl Device for WgpuDevice {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.staging.write(&self.memory, address, bytes)
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.staging.read(&self.memory, address, bytes)
    }

    fn fill(&mut self, first: u64, bytes: u64, byte: u8) -> Result<(), GpuError> {
        let chunk = vec![byte; bytes.min(STAGING_BYTES) as usize];
        (0..bytes).step_by(STAGING_BYTES as usize).try_for_each(|at| {
            self.staging.write(&self.memory, first + at, &chunk[..(bytes - at).min(STAGING_BYTES) as usize])
        })
    }

    fn run(
        &mut self,
        at: (usize, usize),
        entry: &Entry,
        steps: Range<usize>,
        host: &mut Arena,
        waits: bool,
    ) -> Result<(), Failure> {
        let count = entry.steps.len();
        let steps = steps.start..steps.end.min(count);
        let mut encoder = self.staging.encoder();
        let is_first = steps.start == 0;
        if is_first {
            encoder.clear_buffer(&self.status, 0, None);
            let inputs = entry.inputs.iter().map(|n| (n.tensor.offset, host.tensor(&n.tensor)));
            self.staging.bring(&mut encoder, &self.memory, inputs)?;
        }
        let is_last = steps.end == count;
        let encoder = self.compute(at, steps, encoder)?;
        if !is_last && !waits {
            self.staging.submit(encoder);
            return if is_first { Ok(self.staging.reopen()?) } else { Ok(()) };
        }
        let results: &[Named] = if is_last { &entry.results } else { &[] };
        let stopped = self.take(at, encoder, results, host)?;
        if is_first {
            self.staging.reopen()?;
        }
        match stopped {
            0 => Ok(()),
            status => Err(Failure::Stopped(!status as usize)),
        }
    }

    fn times(&self, at: (usize, usize)) -> Option<&[(u64, u64)]> {
        self.times.as_ref().map(|t| t[at.0][at.1].as_slice())
    }
}
