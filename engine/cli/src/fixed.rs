//! What the process needs beside the arena, each part with an upper bound, so that `--memory` bounds the total.

use tinyforge::gpu::cuda::WORKSPACE_BYTES;
use tinyforge::gpu::{SLOT_BYTES, STAGING_BYTES, STAGING_RING};
use tinyforge::load::BUFFER_BYTES;
use tinyforge::runner::DeviceChoice;
use tinyforge_plan::Fixed;

/// Stack that a thread touches.
const STACK_TOUCHED_BYTES: u64 = 256 << 10;
/// Freed heap that the allocator keeps, and what is too small to list.
const HEAP_SLACK_BYTES: u64 = 6 << 20;

/// Name of the part that holds the plans.
pub const PLAN_PART: &str = "plan";

/// The sizes that the parts depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Worker threads.
    pub threads: u32,
    /// What the tokenizer takes.
    pub tokenizer_bytes: u64,
    /// Tokens a row, and rows a step.
    pub seq: u32,
    /// Rows a step.
    pub batch: u32,
    /// Blocks of the model: the plan's own size grows with them.
    pub layers: u32,
}

/// The parts.
pub fn parts(sizes: &Sizes) -> Vec<Fixed> {
    let fixed = |name: &str, bytes: u64| Fixed { name: name.to_string(), bytes };
    let rows = 20 * u64::from(sizes.seq) * u64::from(sizes.batch);
    vec![
        fixed("code", code_bytes()),
        fixed("thread stacks", u64::from(sizes.threads + 1) * STACK_TOUCHED_BYTES),
        fixed("tokenizer", sizes.tokenizer_bytes),
        fixed("data buffers", rows + 2 * BUFFER_BYTES as u64),
        // A block's steps with their operands, twice: in the plan and bound to kernels. Larger ones say so themselves.
        fixed(PLAN_PART, u64::from(sizes.layers + 2) * 100 * 1024),
        fixed("heap", HEAP_SLACK_BYTES),
    ]
}

/// The sizes that a card's parts depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuSizes {
    /// Tokens a row, and rows a step.
    pub seq: u32,
    /// Rows a step.
    pub batch: u32,
    /// Blocks of the model.
    pub layers: u32,
    /// Entries of the vocabulary.
    pub vocab: u32,
}

/// The parts of a card's memory beside the arena: ways for inputs and results, and numbers and times of every launch.
pub fn gpu_parts(sizes: &GpuSizes) -> Vec<Fixed> {
    /// Launches of a block forward, backward and in its updates; and of a chunk of tokens in the head.
    const LAUNCHES: [u64; 2] = [400, 5];
    let tokens = u64::from(sizes.seq) * u64::from(sizes.batch);
    // A row has five numbers a token; results are a loss a token, or the logits of one.
    let staging = (STAGING_RING + 2) * STAGING_BYTES + 24 * tokens + 4 * u64::from(sizes.vocab);
    let chunks = u64::from(sizes.batch) * (u64::from(sizes.seq) / 128 + 1);
    let launches = LAUNCHES[0] * u64::from(sizes.layers + 2) + 2 * LAUNCHES[1] * chunks;
    // Two stamps of a step: where the device writes them, where they are resolved, and on their way.
    let times = 3 * 16 * launches;
    let fixed = |name: &str, bytes: u64| Fixed { name: name.to_string(), bytes };
    let launches = SLOT_BYTES * launches;
    vec![fixed("staging", staging), fixed("launches", launches), fixed("times", times), fixed("tables", 4096)]
}

/// The parts of a card's memory by CUDA: its context, with the library of dense products, and whatever else uses the
/// card, as the driver tells; the kernels, the library's and what they work in, the tables. Inputs, results and the
/// numbers of launches lie in the host's memory. The library's are counted where it is missing: a plan is the same.
pub fn cuda_parts() -> Vec<Fixed> {
    /// More than the context of any card that we know of takes, where there is none to ask.
    const CONTEXT_BYTES: u64 = 640 << 20;
    /// Code of a family in all storage types that one plan has, in the driver's pieces of 2 MiB.
    const KERNEL_BYTES: u64 = 32 << 20;
    /// Code of the library's kernels, a few for a plan's shapes, which the driver loads when they first run.
    const LIBRARY_BYTES: u64 = 64 << 20;
    /// Recorded launches of resident plans, at about a KiB each.
    const RECORDING_BYTES: u64 = 32 << 20;
    let fixed = |name: &str, bytes: u64| Fixed { name: name.to_string(), bytes };
    let context = match tinyforge::gpu::cuda::cards().first() {
        Some(card) => fixed("context, and others on the card", card.total_bytes.saturating_sub(card.free_bytes)),
        None => fixed("context, were there a card", CONTEXT_BYTES),
    };
    let products = fixed("products", LIBRARY_BYTES + WORKSPACE_BYTES);
    let recordings = fixed("recorded launches", RECORDING_BYTES);
    vec![context, fixed("kernels", KERNEL_BYTES), products, recordings, fixed("tables", 4096)]
}

/// Bytes of the mapped files of this process: the program and its libraries.
fn code_bytes() -> u64 {
    const FALLBACK_BYTES: u64 = 16 << 20;
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return FALLBACK_BYTES };
    let mapped = maps.lines().filter(|line| line.contains(" /")).filter_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
    });
    mapped.sum()
}

/// All of a device's memory, in bytes, where its driver or the system tells; of what wgpu shows nobody does.
pub fn near_bytes(device: DeviceChoice) -> Option<u64> {
    match device {
        DeviceChoice::Cpu => machine_bytes(),
        DeviceChoice::Wgpu => None,
        DeviceChoice::Cuda => tinyforge::gpu::cuda::cards().first().map(|card| card.total_bytes),
    }
}

/// All memory of this machine, in bytes, where the system tells.
pub fn machine_bytes() -> Option<u64> {
    kib_of("/proc/meminfo", "MemTotal:")
}

/// What of it may be taken without anything being swapped out, in bytes, where the system tells.
pub fn available_bytes() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process has had, in bytes, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// The memory that this process has now, in bytes, where the system tells.
pub fn rss_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmRSS:")
}

fn kib_of(path: &str, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(path).ok()?;
    let line = status.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
