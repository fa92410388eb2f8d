//! A device as a run sees it: memory at the plan's addresses, and launches of steps.
//!
//! The host keeps an arena too, of which only the pages exist that were touched: inputs are written there and go up
//! with a run, results come down into it, and stored tensors pass through it one at a time.

use crate::arena::Arena;
use crate::cpu::KernelError;
use crate::far::{Carrier, Files, HostMemory, Near};
use crate::runner::RunError;
use std::ops::Range;
use std::sync::Arc;
use tinyforge_kernels::f32::index::OutOfRange;
use tinyforge_plan::{DType, Entry, Plan, Step, Tensor};

/// What a device failed with. The last checkpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is none of the kind that was asked for.
    #[error("there is no {kind} device: {why}")]
    Absent {
        /// What was asked for.
        kind: &'static str,
        /// What is missing, and what to do about it.
        why: String,
    },
    /// The plan needs more than the device gives.
    #[error("{what} need {bytes} bytes, and the device `{device}` {why}; a smaller --memory plans for less")]
    Memory {
        /// What was asked for.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// The device's name.
        device: String,
        /// What it said.
        why: String,
    },
    /// The host has less memory that the device can copy from than was asked for.
    #[error(
        "{bytes} bytes of pinned memory for `{device}`: {why}; with a smaller --host-memory more of the model lies in \
         files"
    )]
    Pinned {
        /// How much.
        bytes: u64,
        /// The device's name.
        device: String,
        /// What its driver said.
        why: String,
    },
    /// It stopped answering, or its driver refused something.
    #[error("the device `{device}` was lost: {why}; the last checkpoint stands")]
    Lost {
        /// The device's name.
        device: String,
        /// What it said.
        why: String,
    },
}

impl GpuError {
    /// A kind of device that this program was built without.
    #[cfg_attr(
        all(feature = "wgpu", feature = "cuda"),
        allow(dead_code, reason = "what was built in is never missing")
    )]
    pub(crate) fn not_built(kind: &'static str) -> GpuError {
        GpuError::Absent { kind, why: format!("this program was built without the feature `{kind}`") }
    }
}

/// Why a run on a device ended early.
pub(crate) enum Failure {
    /// This step of the entry met data that it must not go on with; nothing was updated from there on.
    Stopped(usize),
    /// The device failed.
    Device(GpuError),
}

impl From<GpuError> for Failure {
    fn from(e: GpuError) -> Failure {
        Failure::Device(e)
    }
}

/// Memory at a plan's addresses, and the launches that the plan's steps became at load.
pub(crate) trait Device: Send + Sync {
    /// Sets the bytes from an address on.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GpuError>;
    /// Brings the bytes from an address on.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError>;
    /// Sets so many bytes from an address on to one value.
    fn fill(&mut self, address: u64, bytes: u64, byte: u8) -> Result<(), GpuError>;
    /// Runs some steps of an entry of a phase: before the first its inputs are brought from the host's arena, behind
    /// the last its results are taken there. Only then, and where `waits` says so, it waits.
    fn run(
        &mut self,
        at: (usize, usize),
        entry: &Entry,
        steps: Range<usize>,
        host: &mut Arena,
        waits: bool,
    ) -> Result<(), Failure>;
    /// Memory of the host that the device copies from and to, where it was asked for; nothing where any will do.
    fn host_memory(&self) -> Option<Box<dyn HostMemory>> {
        None
    }
    /// What carries out moves between files and the device, at most `most` under way; nothing where they pass through
    /// the host's arena.
    fn carrier(&self, files: &Arc<Files>, most: usize) -> Option<Result<Box<dyn Carrier>, RunError>> {
        let _ = (files, most);
        None
    }
    /// Nanoseconds and runs of every step of an entry, where they are counted.
    fn times(&self, at: (usize, usize)) -> Option<&[(u64, u64)]>;
}

/// A device, and which stored tensor the host's arena holds just now.
pub(crate) struct Gpu {
    device: Box<dyn Device>,
    held: Option<(u64, u64)>,
    /// Whether the device carries out moves itself.
    carries: bool,
}

impl Gpu {
    pub(crate) fn new(device: Box<dyn Device>) -> Gpu {
        Gpu { device, held: None, carries: false }
    }

    /// Gives the pages back in which the last stored tensor passed through.
    fn release(&mut self, host: &mut Arena) {
        if let Some((from, to)) = self.held.take() {
            host.release(from, to);
        }
    }

    /// Sends a stored tensor that was set in the host's arena.
    pub(crate) fn send(&mut self, host: &mut Arena, tensor: &Tensor) -> Result<(), GpuError> {
        self.device.write(tensor.offset, host.tensor(tensor))?;
        self.held = Some((tensor.offset, tensor.end()));
        self.release(host);
        Ok(())
    }

    /// The bytes of a stored tensor.
    pub(crate) fn fetch<'a>(&mut self, host: &'a mut Arena, tensor: &Tensor) -> Result<&'a [u8], GpuError> {
        self.release(host);
        self.device.read(tensor.offset, host.tensor_mut(tensor))?;
        self.held = Some((tensor.offset, tensor.end()));
        Ok(host.tensor(tensor))
    }

    /// Sets the bytes of a stored tensor.
    pub(crate) fn change<R>(
        &mut self,
        host: &mut Arena,
        tensor: &Tensor,
        set: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, GpuError> {
        self.release(host);
        let result = set(host.tensor_mut(tensor));
        self.send(host, tensor)?;
        Ok(result)
    }

    /// Sets every byte of the device's memory.
    pub(crate) fn fill(&mut self, host: &Arena, byte: u8) -> Result<(), GpuError> {
        self.device.fill(host.start(), host.bytes().len() as u64, byte)
    }

    /// Brings all of the device's memory into the host's arena.
    pub(crate) fn fetch_all(&mut self, host: &mut Arena) -> Result<(), GpuError> {
        let start = host.start();
        self.device.read(start, host.bytes_mut())
    }

    /// Runs some steps of an entry.
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        at: (usize, usize),
        steps: Range<usize>,
        host: &mut Arena,
    ) -> Result<(), RunError> {
        self.release(host);
        let entry = &plan.entries[at.1];
        let result = self.device.run(at, entry, steps, host, true);
        result.map_err(|failure| told(failure, entry, Some(host)))
    }

    /// Memory of the host that the device copies from and to; nothing where any will do.
    pub(crate) fn host_memory(&self) -> Option<Box<dyn HostMemory>> {
        self.device.host_memory()
    }

    /// What carries out moves between files and the device, where it does so itself.
    ///
    /// # Errors
    /// The system or the device has no room for it.
    pub(crate) fn carrier(&mut self, files: &Arc<Files>, most: usize) -> Result<Option<Box<dyn Carrier>>, RunError> {
        let carrier = self.device.carrier(files, most).transpose()?;
        self.carries = carrier.is_some();
        Ok(carrier)
    }

    /// The device as the near memory of an entry of a phase.
    pub(crate) fn near<'a>(&'a mut self, plan: &'a Plan, at: (usize, usize)) -> There<'a> {
        There { gpu: self, entry: &plan.entries[at.1], at }
    }

    pub(crate) fn times(&self, at: (usize, usize)) -> Option<&[(u64, u64)]> {
        self.device.times(at)
    }
}

/// A device as the near memory: what comes in and goes out passes through the host's arena, unless the device carries
/// it itself.
pub(crate) struct There<'a> {
    gpu: &'a mut Gpu,
    entry: &'a Entry,
    at: (usize, usize),
}

impl Near for There<'_> {
    fn came(&mut self, host: &mut Arena, (first, bytes): (u64, u64)) -> Result<(), RunError> {
        if !self.gpu.carries {
            self.gpu.device.write(first, host.part(first, bytes).bytes())?;
            host.release(first, first + bytes);
        }
        Ok(())
    }

    fn going(&mut self, host: &mut Arena, (first, bytes): (u64, u64)) -> Result<(), RunError> {
        if !self.gpu.carries {
            self.gpu.device.read(first, host.part(first, bytes).bytes_mut())?;
        }
        Ok(())
    }

    fn step(&mut self, i: usize, host: &mut Arena) -> Result<(), RunError> {
        let result = self.gpu.device.run(self.at, self.entry, i..i + 1, host, false);
        // Copies that pass through the arena may lie by now where the inputs were.
        let host = Some(host).filter(|_| self.gpu.carries);
        result.map_err(|failure| told(failure, self.entry, host))
    }
}

fn told(failure: Failure, entry: &Entry, host: Option<&mut Arena>) -> RunError {
    match failure {
        Failure::Device(e) => e.into(),
        Failure::Stopped(step) => explain(entry, step, host).into(),
    }
}

/// Ops that follow indices: the operand with the indices, what they name, and whether negative ones are skipped.
const INDEXED: &[(&str, usize, &str, bool)] = &[
    ("embedding", 1, "token", false),
    ("embedding_part", 1, "token", false),
    ("embedding_grad", 1, "token", false),
    ("cross_entropy", 1, "label", true),
    ("cross_entropy_grad", 1, "label", true),
    ("linear_cross_entropy", 2, "label", true),
    ("linear_cross_entropy_grad", 2, "label", true),
    ("linear_cross_entropy_sums", 2, "label", true),
    ("kv_write", 2, "position", true),
    ("attention_cached", 3, "position", true),
];

/// Entries of the table that a step's indices point into.
fn limit(step: &Step) -> usize {
    match step.kernel.as_str() {
        "embedding_part" | "embedding_grad" | "linear_cross_entropy_sums" => step.size("vocab"),
        "cross_entropy" | "cross_entropy_grad" => step.args[0].cols(),
        "embedding" | "kv_write" => step.args[0].rows(),
        _ => step.args[1].rows(),
    }
}

/// What a step that stopped a run met, in the words of the CPU's kernel; `host` holds the inputs as they were given.
fn explain(entry: &Entry, step: usize, host: Option<&mut Arena>) -> KernelError {
    let step = &entry.steps[step];
    let error = |why: String| KernelError { kernel: step.kernel.clone(), label: step.label.clone(), why };
    let stopped = |of: &str| {
        error(format!("{of} is not finite; training stopped before the update. A lower --lr or clipping helps"))
    };
    match step.kernel.as_str() {
        "update" | "linear_grad_w_update" => return stopped("its gradient"),
        "clip_scale" => return stopped("the gradients' norm"),
        _ => {}
    }
    let Some(&(_, operand, what, skips)) = INDEXED.iter().find(|(name, ..)| *name == step.kernel) else {
        return error("an index points outside of its table".to_string());
    };
    let (indices, limit) = (&step.args[operand], limit(step));
    let is_input = indices.dtype == DType::I32 && entry.inputs.iter().any(|n| n.tensor.offset == indices.offset);
    if let Some(host) = host.filter(|_| is_input) {
        let part = host.part(indices.offset, indices.bytes());
        let values: &[i32] = bytemuck::cast_slice(part.bytes());
        let is_bad = |v: &i32| if *v < 0 { !skips } else { *v as usize >= limit };
        if let Some(at) = values.iter().position(is_bad) {
            return error(OutOfRange { what, at, value: values[at], limit }.to_string());
        }
    }
    error(format!("a {what} is not below {limit}; check that the data was made for this model"))
}
