//! What all GPUs share: how a step becomes launches of kernels, and what a device must be able to do.
//!
//! A row's file has the stem of its kernels' files, `shaders/<stem>.wgsl`. A row says everything about its
//! launches (kernel, operands, parameters, grid) and nothing of an interface: no type of a driver comes in here. What
//! goes element by element needs none: an op without a row is the kernel of its name ([`each`]).
//! Invariant: a launch follows from shapes and attributes alone, so the order of every sum does too.

mod activation;
mod attention;
mod call;
mod choice;
mod conv;
pub mod cuda;
mod dense;
mod device;
mod each;
mod elementwise;
mod embedding;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod kept;
mod linear;
mod loss;
mod norm;
mod pool;
mod update;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use call::{Call, Dense, Factor, InUnits, Kernel, Launch, Operand, Params, Part, Parts, Tables, Work, grid_of};
pub use choice::{Choice, choose};
pub use device::GpuError;
pub(crate) use device::{Device, Failure, Gpu};

use crate::runner::DeviceChoice;
use tinyforge_plan::{Kernels, Number, Plan, Shape, Step};

/// Bytes that a copy between host and device takes at a time.
pub const STAGING_BYTES: u64 = 1 << 20;
/// Copies to the device that are under way at one time.
pub const STAGING_RING: u64 = 4;
/// Bytes between the parameters of two launches: what every adapter aligns to.
pub const SLOT_BYTES: u64 = 256;

/// What a step of this op becomes.
pub struct Row {
    /// The op's name.
    pub name: &'static str,
    /// The launches and their scratch, or why the shapes are not supported.
    pub work: fn(&Call) -> Result<Work, String>,
}

const FAMILIES: &[&[Row]] = &[
    activation::ROWS,
    attention::ROWS,
    conv::ROWS,
    elementwise::ROWS,
    embedding::ROWS,
    linear::ROWS,
    loss::ROWS,
    norm::ROWS,
    pool::ROWS,
    update::ROWS,
];

/// Every row.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    FAMILIES.iter().flat_map(|f| f.iter())
}

/// The launches of a step.
///
/// # Errors
/// There is neither a row nor an elementwise kernel for its op, or its shapes are not supported.
pub fn work(step: &Step) -> Result<Work, String> {
    of_row(&step.kernel, &Call::of_step(step))
}

fn of_row(name: &str, call: &Call) -> Result<Work, String> {
    match (rows().find(|r| r.name == name), each::find(name)) {
        (Some(row), _) => (row.work)(call),
        (None, Some(kernel)) => each::work(call, kernel),
        (None, None) => Err("GPUs have no such kernel".to_string()),
    }
}

/// What the kernels of GPUs can do.
#[derive(Clone, Copy, Debug)]
pub struct GpuKernels {
    /// The most bytes of one operand that the device's kernels can address.
    pub operand_bytes_max: u64,
    /// Whether the device may have a library of dense products: their scratch is planned.
    pub takes_products: bool,
    /// Whether it works in a memory of its own, so that the host's can hold what that has no room for.
    pub has_own_memory: bool,
    /// Whether its updates have the bits of the host's: it then does not matter who updates.
    pub updates_as_host: bool,
}

impl GpuKernels {
    /// Names of all ops that have kernels.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let without_row = each::names().filter(|name| !rows().any(|r| r.name == *name));
        rows().map(|r| r.name).chain(without_row)
    }
}

impl Kernels for GpuKernels {
    fn scratch_bytes(
        &self,
        kernel: &str,
        args: &[Shape],
        outs: &[Shape],
        attrs: &[(String, Number)],
    ) -> Result<u64, String> {
        let call = Call::of_query(args, outs, attrs);
        let work = of_row(kernel, &call)?;
        let by_library = work.by_library.filter(|_| self.takes_products).map_or(0, |parts| parts.scratch_bytes);
        let scratch_bytes = work.scratch_bytes.max(by_library);
        let largest = call.largest_bytes().max(scratch_bytes);
        if largest > self.operand_bytes_max {
            let most = self.operand_bytes_max;
            return Err(format!("an operand of {largest} bytes; this device's kernels address at most {most}"));
        }
        Ok(scratch_bytes)
    }
}

/// The kernels of a device that is there; none where the CPU is asked for.
///
/// # Errors
/// The device is not there, or this program was built without it.
pub fn kernels(device: DeviceChoice) -> Result<Option<GpuKernels>, GpuError> {
    match device {
        DeviceChoice::Cpu => Ok(None),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu => {
            let adapter = wgpu::default_adapter()?;
            Ok(Some(GpuKernels {
                operand_bytes_max: adapter.operand_bytes_max,
                takes_products: false,
                has_own_memory: !adapter.is_unified(),
                // Its divisions and roots may be rounded otherwise.
                updates_as_host: false,
            }))
        }
        #[cfg(not(feature = "wgpu"))]
        DeviceChoice::Wgpu => Err(GpuError::not_built("wgpu")),
        // The same on every card, so a plan can be made where there is none.
        DeviceChoice::Cuda => Ok(Some(cuda::KERNELS)),
    }
}

/// The launches of every step of a plan, by entry; none of what the host carries out.
///
/// # Errors
/// A step has no kernel: the plan was made for another device.
pub fn launches(plan: &Plan) -> Result<Vec<Vec<Work>>, String> {
    let of_step = |step: &Step| match plan.is_on_host(step) {
        true => Ok(Work::default()),
        false => work(step).map_err(|why| format!("kernel `{}`: {why}", step.kernel)),
    };
    plan.entries.iter().map(|e| e.steps.iter().map(of_step).collect()).collect()
}
