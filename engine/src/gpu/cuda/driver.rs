//! What the device asks of a driver.

use super::matmul::{Matmul, Multiply, Product};
use crate::gpu::{GpuError, Kernel, Params};

/// Queues of a card. What is given to one is carried out in order; two of them wait for each other by events alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Inputs, from pinned memory to the card's.
    Up,
    /// Results, from the card's memory to pinned memory.
    Down,
    /// Tensors that rest in pinned memory, to the card's.
    In,
    /// The same, back.
    Out,
    /// Tensors that rest in files, through pinned memory to the card's: the moving thread's.
    FromFiles,
    /// The same, back.
    ToFiles,
}

impl Stream {
    /// All of them, in the order of their numbers.
    pub const ALL: [Stream; 7] =
        [Stream::Compute, Stream::Up, Stream::Down, Stream::In, Stream::Out, Stream::FromFiles, Stream::ToFiles];
}

/// A point in a stream that was last marked by [`Driver::record`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event(pub u32);

/// A kernel that was compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function(pub u32);

/// What the stream for kernels was given once, to be given again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recording(pub u32);

/// A launch, ready: a function, its grid, its family's parameters, and where its operands are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// What runs.
    pub function: Function,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// The family's struct; the function reads as much of it as the struct has.
    pub params: [u32; Params::WORDS],
    /// Addresses of the status and of the operands, in order.
    pub pointers: Vec<u64>,
}

/// What a driver says of a card.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub total_bytes: u64,
    /// What of it nobody uses.
    pub free_bytes: u64,
    /// Compute capability.
    pub capability: (u32, u32),
    /// The newest version of CUDA that the driver knows.
    pub driver: (u32, u32),
    /// Multiprocessors.
    pub processors: u32,
    /// Whether copies run beside kernels, in both directions.
    pub copies_overlap: bool,
    /// Whether it has matrix units that multiply bf16: kernels for them can be asked for.
    pub has_units: bool,
    /// The library of dense products with its version, or why there is none.
    pub library: Result<String, String>,
}

/// Memory, functions and streams of one card. Calls come from the thread that runs steps and from the one that moves
/// copies; those of one stream come from one thread at a time. Every error is the driver's own word.
pub trait Driver: Send + Sync {
    /// What it is.
    fn facts(&self) -> Result<Facts, String>;

    /// Compiles a kernel, or finds it among those compiled before; with the threads of its blocks.
    fn function(&self, kernel: Kernel) -> Result<(Function, u32), String>;

    /// Chooses a library's algorithm for a product, by everything that is said of it and nothing else: the same one
    /// for the same words, which splits no sum among blocks. None where there is no library, or it has none.
    fn product(&self, matmul: &Matmul) -> Result<Option<Product>, String> {
        let _ = matmul;
        Ok(None)
    }

    /// The card's memory: the first of so many bytes, aligned to 256. Asked once; it lives as long as the driver.
    fn allocate(&self, bytes: u64) -> Result<u64, String>;

    /// Pinned memory of the host. Asked once.
    fn pin(&self, bytes: u64) -> Result<(), String>;

    /// Hands a part of pinned memory to `with`. No copy from or to there may be under way; parts that two threads hold
    /// at one time lie apart.
    fn pinned(&self, at: u64, bytes: u64, with: &mut dyn FnMut(&mut [u8]));

    /// Bytes of streamed tensors that are copied at a time.
    fn chunk_bytes(&self) -> u64 {
        4 << 20
    }

    /// A new event.
    fn event(&self) -> Result<Event, String>;

    /// A new event that knows when it was reached.
    fn timer(&self) -> Result<Event, String>;

    /// Nanoseconds from one event of [`Driver::timer`] to another; both were reached.
    fn elapsed_ns(&self, from: Event, to: Event) -> Result<u64, String>;

    /// Runs a kernel on the stream for them.
    fn launch(&self, call: &Call) -> Result<(), String>;

    /// Runs a product on the stream for kernels.
    fn multiply(&self, multiply: &Multiply) -> Result<(), String>;

    /// Keeps what `give` gives to the stream for kernels, and runs none of it. None where the driver cannot: whoever
    /// asked then gives it as before.
    fn capture(&self, give: &dyn Fn() -> Result<(), String>) -> Result<Option<Recording>, String>;

    /// Gives the stream for kernels all of a recording, at once.
    fn replay(&self, recording: Recording) -> Result<(), String>;

    /// Copies from pinned memory to the card's.
    fn up(&self, stream: Stream, pinned: u64, address: u64, bytes: u64) -> Result<(), String>;

    /// Copies from the card's memory to pinned memory.
    fn down(&self, stream: Stream, address: u64, pinned: u64, bytes: u64) -> Result<(), String>;

    /// Sets bytes of the card's memory to one value, on the stream for kernels.
    fn set(&self, address: u64, bytes: u64, byte: u8) -> Result<(), String>;

    /// Marks in a stream the end of what it was given until now.
    fn record(&self, event: Event, stream: Stream) -> Result<(), String>;

    /// What a stream is given from now on begins after an event, as it was marked last.
    fn follow(&self, stream: Stream, event: Event) -> Result<(), String>;

    /// Waits here for an event, as it was marked last.
    fn wait(&self, event: Event) -> Result<(), String>;
}

/// Opens a card.
pub type Open = fn() -> Result<Box<dyn Driver>, GpuError>;
