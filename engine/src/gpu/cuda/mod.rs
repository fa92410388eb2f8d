//! The device for cards of NVIDIA: the same rows as on other GPUs, kernels from `kernels/cuda/`.
//!
//! Everything is made at load: kernels, one allocation with the plan's offsets, the launches, and the pinned memory
//! that copies go through. What is asked of the driver is a trait ([`Driver`]), so that the order of launches and
//! copies, and the kernels, are tested where there is no card. A resident entry is recorded at its second run and given
//! to the card at once from then on. Invariant: what a run computes follows from the order that events make, never from
//! when streams happen to run.

mod carrier;
#[cfg(feature = "cuda")]
mod cublaslt;
mod device;
mod driver;
mod matmul;
#[cfg(feature = "cuda")]
mod nvidia;
#[cfg(feature = "cuda")]
pub mod nvrtc;
mod source;

pub use driver::{Call, Driver, Event, Facts, Function, Open, Recording, Stream};
pub use matmul::{Matmul, Matrix, Multiply, Product, WORKSPACE_BYTES};
pub use source::{COMMON, FAMILIES, MMA, kernels, text};

pub(crate) use device::CudaDevice;

use super::GpuError;
use super::GpuKernels;

/// Kernels count elements in words of 32 bits; the shortest storage has more than half a byte an element.
pub const OPERAND_BYTES_MAX: u64 = 2 << 30;

/// What the kernels can do.
pub const KERNELS: GpuKernels = GpuKernels {
    operand_bytes_max: OPERAND_BYTES_MAX,
    takes_products: true,
    has_own_memory: true,
    updates_as_host: true,
};

/// Opens the card that a run takes where nothing else is said.
///
/// # Errors
/// There is none, with what to install; or this program was built without the feature.
pub fn open_default() -> Result<Box<dyn Driver>, GpuError> {
    #[cfg(feature = "cuda")]
    return nvidia::open();
    #[cfg(not(feature = "cuda"))]
    Err(GpuError::not_built("cuda"))
}

/// The cards that there are, the one that a run takes first; none in a program without the feature.
pub fn cards() -> Vec<Facts> {
    #[cfg(feature = "cuda")]
    return nvidia::cards();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}
