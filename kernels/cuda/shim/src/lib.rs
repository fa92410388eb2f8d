//! The kernels of `kernels/cuda/` on the host: for tests where there is no card.
//!
//! Every .cu file is compiled as C++ with `shim.h` into a library of its own, when its first kernel is asked for. The
//! [`Driver`] here is as late as events let it be: what streams were given is carried out when the host waits, in an
//! order that a seed picks among those that the events leave open. So a copy that nothing waits for comes too late in
//! some order, and two runs that must agree do not. It may have a library of dense products, which takes the arguments
//! of cuBLASLt. Not for speed.

mod library;
mod products;
mod streams;

use library::Library;
use products::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
pub use streams::TASK_NS;
use streams::{Streams, Task};
use tinyforge::gpu::cuda::{self, Call, Driver, Event, Facts, Function, Matmul, Multiply, Product, Recording, Stream};
use tinyforge::gpu::{GpuError, Kernel};

/// What there is to compile with, or why there is nothing.
///
/// # Errors
/// The compiler is missing.
pub fn compiler() -> Result<String, String> {
    library::compiler()
}

/// Recordings that were given again, by all drivers of this process.
static REPLAYS: AtomicU64 = AtomicU64::new(0);

/// How many recordings were given again until now.
pub fn replays() -> u64 {
    REPLAYS.load(Ordering::Relaxed)
}

/// Threads of a block one after the other, and the streams in one order; it records launches, and gives them again.
///
/// # Errors
/// The compiler is missing.
pub fn ascending() -> Result<Box<dyn Driver>, GpuError> {
    Host::open(false, false)
}

/// Threads and blocks from the last to the first, and the streams in another order; it records nothing.
///
/// # Errors
/// The compiler is missing.
pub fn descending() -> Result<Box<dyn Driver>, GpuError> {
    Host::open(true, false)
}

/// As [`ascending`], with a library of dense products.
///
/// # Errors
/// The compiler is missing.
pub fn ascending_by_library() -> Result<Box<dyn Driver>, GpuError> {
    Host::open(false, true)
}

/// As [`descending`], with a library of dense products.
///
/// # Errors
/// The compiler is missing.
pub fn descending_by_library() -> Result<Box<dyn Driver>, GpuError> {
    Host::open(true, true)
}

/// Memory of the host that is used as a card's.
struct Host {
    descending: bool,
    has_library: bool,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    pinned: Vec<u8>,
    functions: Vec<(library::Entry, Kernel)>,
    by_kernel: BTreeMap<Kernel, (Function, u32)>,
    products: Vec<Matmul>,
    /// What is being recorded.
    recording: Option<Vec<Task>>,
    recordings: Vec<Vec<Task>>,
    streams: Streams,
}

/// The card's memory, in words so that it is aligned.
#[derive(Default)]
struct Memory(Vec<u128>);

impl Memory {
    /// The address of the first byte that is a multiple of 256.
    fn base(&self) -> u64 {
        (self.0.as_ptr() as u64).next_multiple_of(256)
    }
}

impl products::Bytes for Memory {
    fn bytes(&mut self, address: u64, bytes: u64) -> Result<&mut [u8], String> {
        let skip = self.base() - self.0.as_ptr() as u64;
        let from = address.checked_sub(self.base()).map(|at| at + skip);
        let end = from.and_then(|at| at.checked_add(bytes)).filter(|&end| end <= 16 * self.0.len() as u64);
        let (Some(from), Some(end)) = (from, end) else {
            return Err(format!("addresses {address}..{} are not in the card's memory", address + bytes));
        };
        Ok(&mut library::bytes_of(&mut self.0)[from as usize..end as usize])
    }
}

impl Host {
    fn open(descending: bool, has_library: bool) -> Result<Box<dyn Driver>, GpuError> {
        compiler().map_err(|why| GpuError::Absent { kind: "cuda-shim", why })?;
        let state = State {
            memory: Memory::default(),
            pinned: Vec::new(),
            functions: Vec::new(),
            by_kernel: BTreeMap::new(),
            products: Vec::new(),
            recording: None,
            recordings: Vec::new(),
            streams: Streams::new(if descending { 2 } else { 1 }),
        };
        Ok(Box::new(Host { descending, has_library, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, stream: Stream, task: Task) -> Result<(), String> {
        let state = &mut *self.state();
        match (&mut state.recording, &task) {
            (Some(recording), Task::Launch(_) | Task::Multiply(_)) => recording.push(task),
            (Some(_), _) => return Err(format!("{task:?} while launches are recorded")),
            (None, _) => state.streams.give(stream, task),
        }
        Ok(())
    }
}

impl State {
    fn carry_out(&mut self, task: Task, descending: bool) -> Result<(), String> {
        match task {
            Task::Launch(call) => {
                let (entry, kernel) = &self.functions[call.function.0 as usize];
                let first = self.memory.base();
                let end = first + 16 * self.memory.0.len() as u64;
                if let Some(outside) = call.pointers.iter().find(|p| !(first..end).contains(p)) {
                    return Err(format!("`{}`: address {outside} is not in the card's memory", kernel.entry));
                }
                entry.launch(&call, kernel.storage, descending).map_err(|why| format!("`{}`: {why}", kernel.entry))
            }
            Task::Multiply(multiply) => {
                let matmul = &self.products[multiply.product.0 as usize];
                products::multiply(&mut self.memory, matmul, &multiply)
            }
            Task::Up { pinned, address, bytes } => {
                let from = &self.pinned[pinned as usize..(pinned + bytes) as usize];
                self.memory.bytes(address, bytes)?.copy_from_slice(from);
                Ok(())
            }
            Task::Down { address, pinned, bytes } => {
                let from = self.memory.bytes(address, bytes)?;
                self.pinned[pinned as usize..(pinned + bytes) as usize].copy_from_slice(from);
                Ok(())
            }
            Task::Set { address, bytes, byte } => {
                self.memory.bytes(address, bytes)?.fill(byte);
                Ok(())
            }
        }
    }
}

impl Driver for Host {
    fn facts(&self) -> Result<Facts, String> {
        Ok(Facts {
            name: "the host, as a card".to_string(),
            total_bytes: 1 << 40,
            free_bytes: 1 << 40,
            capability: (0, 0),
            driver: (0, 0),
            processors: 1,
            copies_overlap: true,
            has_units: true,
            library: if self.has_library { Ok("the host".to_string()) } else { Err("not asked for".to_string()) },
        })
    }

    fn function(&self, kernel: Kernel) -> Result<(Function, u32), String> {
        let mut state = self.state();
        if let Some(&known) = state.by_kernel.get(&kernel) {
            return Ok(known);
        }
        let text = cuda::text(kernel.stem).ok_or_else(|| format!("there is no kernels/cuda/{}.cu", kernel.stem))?;
        let mut kernels = cuda::kernels(&text);
        let found = kernels.find(|(name, _)| *name == kernel.entry);
        let (_, threads) = found.ok_or_else(|| format!("{}.cu has no kernel `{}`", kernel.stem, kernel.entry))?;
        let entry = Library::of(kernel.stem)?.entry(kernel.entry)?;
        let function = Function(state.functions.len() as u32);
        state.functions.push((entry, kernel));
        state.by_kernel.insert(kernel, (function, threads));
        Ok((function, threads))
    }

    fn product(&self, matmul: &Matmul) -> Result<Option<Product>, String> {
        let mut state = self.state();
        state.products.push(*matmul);
        Ok(self.has_library.then_some(Product(state.products.len() as u32 - 1)))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, String> {
        let mut state = self.state();
        // What is not asked for is not there: a kernel that leaves the arena by much is found by the system.
        state.memory = Memory(vec![0; bytes.div_ceil(16) as usize + 16]);
        Ok(state.memory.base())
    }

    fn pin(&self, bytes: u64) -> Result<(), String> {
        self.state().pinned = vec![0; bytes as usize];
        Ok(())
    }

    fn pinned(&self, at: u64, bytes: u64, with: &mut dyn FnMut(&mut [u8])) {
        with(&mut self.state().pinned[at as usize..(at + bytes) as usize]);
    }

    /// So few that the tensors of small models are copied in several parts.
    fn chunk_bytes(&self) -> u64 {
        4096
    }

    fn event(&self) -> Result<Event, String> {
        Ok(self.state().streams.event())
    }

    fn timer(&self) -> Result<Event, String> {
        self.event()
    }

    fn elapsed_ns(&self, from: Event, to: Event) -> Result<u64, String> {
        self.state().streams.elapsed_ns(from, to)
    }

    fn launch(&self, call: &Call) -> Result<(), String> {
        let operands = self.state().functions[call.function.0 as usize].0.operands();
        if operands as usize != call.pointers.len() + 1 {
            let name = self.state().functions[call.function.0 as usize].1.entry;
            return Err(format!("`{name}` takes {operands} arguments, its row gives {}", call.pointers.len() + 1));
        }
        self.give(Stream::Compute, Task::Launch(call.clone()))
    }

    fn multiply(&self, multiply: &Multiply) -> Result<(), String> {
        self.give(Stream::Compute, Task::Multiply(*multiply))
    }

    fn capture(&self, give: &dyn Fn() -> Result<(), String>) -> Result<Option<Recording>, String> {
        if self.descending {
            return Ok(None);
        }
        self.state().recording = Some(Vec::new());
        let given = give();
        let state = &mut *self.state();
        state.recordings.extend(state.recording.take());
        given.map(|()| Some(Recording(state.recordings.len() as u32 - 1)))
    }

    fn replay(&self, recording: Recording) -> Result<(), String> {
        REPLAYS.fetch_add(1, Ordering::Relaxed);
        let tasks = self.state().recordings[recording.0 as usize].clone();
        tasks.into_iter().try_for_each(|task| self.give(Stream::Compute, task))
    }

    fn up(&self, stream: Stream, pinned: u64, address: u64, bytes: u64) -> Result<(), String> {
        self.give(stream, Task::Up { pinned, address, bytes })
    }

    fn down(&self, stream: Stream, address: u64, pinned: u64, bytes: u64) -> Result<(), String> {
        self.give(stream, Task::Down { address, pinned, bytes })
    }

    fn set(&self, address: u64, bytes: u64, byte: u8) -> Result<(), String> {
        self.give(Stream::Compute, Task::Set { address, bytes, byte })
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), String> {
        if self.state().recording.is_some() {
            return Err("an event is marked while launches are recorded".to_string());
        }
        self.state().streams.record(event, stream);
        Ok(())
    }

    fn follow(&self, stream: Stream, event: Event) -> Result<(), String> {
        self.state().streams.follow(stream, event);
        Ok(())
    }

    fn wait(&self, event: Event) -> Result<(), String> {
        let state = &mut *self.state();
        while !state.streams.is_reached(event) {
            let task = state.streams.next()?;
            state.carry_out(task, self.descending)?;
        }
        Ok(())
    }
}
