//! How much of the host's memory holds what a device's own has no room for.

use crate::error::CommandError;
use crate::fixed;
use crate::planning::Planned;
use crate::sizes::{self, show};
use tinyforge::gpu::GpuKernels;
use tinyforge_compiler::cost::{self, Path};
use tinyforge_compiler::machine::Machine;
use tinyforge_plan::{Direction, Plan};

/// What leaves all of it in files, and what leaves it to the device.
const NONE: &str = "0";
const AUTO: &str = "auto";

/// The most that a run takes of the host's memory beside a device with these kernels: what `--host-memory` says, or
/// else a share of what is free.
///
/// # Errors
/// It is no size, or the device has no memory of its own.
pub fn most(asked: Option<&str>, device: Option<&GpuKernels>) -> Result<u64, CommandError> {
    match device.filter(|gpu| gpu.has_own_memory) {
        Some(_) => stated(asked, fixed::available_bytes()),
        None if asked.is_none_or(|text| [NONE, AUTO].contains(&text)) => Ok(0),
        None => Err(CommandError::request(
            "--host-memory is for a device with memory of its own; this one works in the host's: --memory says how \
             much of it",
        )),
    }
}

/// The same on a machine that is described and need not be here.
///
/// # Errors
/// As [`most`].
pub fn most_on(asked: Option<&str>, machine: &Machine) -> Result<u64, CommandError> {
    // Files behind the memory that feeds the near one: that one is the host's.
    match cost::path(machine, Direction::In) {
        Ok(Path { link, files: Some(_) }) => {
            let feeds = &machine.links[link as usize].from;
            stated(asked, machine.space(feeds).and_then(|s| s.bytes))
        }
        _ => most(asked, None),
    }
}

fn stated(asked: Option<&str>, there: Option<u64>) -> Result<u64, CommandError> {
    // The rest is for the system, and for what it keeps of files.
    let share = |bytes: u64| bytes / 4 * 3;
    match asked {
        None | Some(AUTO) => Ok(there.map_or(0, share)),
        Some(NONE) => Ok(0),
        Some(text) => sizes::parse(text).map_err(|e| CommandError::request(format!("--host-memory: {e}, or 0"))),
    }
}

/// Whether the host updates what streams to a device with these kernels; nothing where what is faster may decide, since
/// both give the same bits: the kernels of CUDA round as the processor's do.
///
/// # Errors
/// It is asked to, and the device has no memory of its own.
pub fn optimizer(asked: Option<bool>, device: Option<&GpuKernels>) -> Result<Option<bool>, CommandError> {
    let is_beside = device.is_some_and(|gpu| gpu.has_own_memory);
    match asked {
        Some(true) if !is_beside => Err(no_optimizer()),
        None if !device.is_some_and(|gpu| gpu.updates_as_host) => Ok(Some(false)),
        asked => Ok(asked),
    }
}

/// The same on a machine that is described and need not be here.
///
/// # Errors
/// As [`optimizer`].
pub fn optimizer_on(asked: Option<bool>, machine: &Machine) -> Result<Option<bool>, CommandError> {
    let is_beside = matches!(cost::path(machine, Direction::In), Ok(Path { files: Some(_), .. }));
    if asked == Some(true) && !is_beside {
        return Err(no_optimizer());
    }
    Ok(asked.or((!is_beside).then_some(false)))
}

fn no_optimizer() -> CommandError {
    CommandError::request(
        "--host-optimizer is for a device with memory of its own; this one works in the host's, where the processor \
         updates anyway",
    )
}

/// Holds what plans take of the host's memory against what is free.
///
/// # Errors
/// There is less, with the flag that asks for less.
pub fn check(plans: &[Planned]) -> Result<(), CommandError> {
    let wanted = plans.iter().map(|p| p.compiled.plan.host_bytes()).max().unwrap_or(0);
    match fixed::available_bytes() {
        Some(free) if free < wanted => Err(CommandError::request(format!(
            "the plan keeps {wanted} bytes ({}) of the model in the host's memory, of which {free} ({}) are free: with \
             a smaller --host-memory more lies in files",
            show(wanted),
            show(free)
        ))),
        _ => Ok(()),
    }
}

/// Where a far memory of a plan lies, in words.
pub fn words(plan: &Plan, first_byte: u64) -> &'static str {
    match plan.space_of(first_byte) {
        Some(space) if space.is_host => "in the host's memory",
        Some(space) if space.is_written => "in the work file",
        _ => "in the model's files",
    }
}
