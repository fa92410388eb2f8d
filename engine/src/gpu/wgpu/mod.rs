//! Devices by wgpu: Vulkan, Metal and DirectX 12.
//!
//! Everything is made at load: pipelines, one buffer (or few, where the adapter's are short) with the plan's offsets, a
//! bind group a launch, and the buffers that copies go through. A run records commands and waits for them; it takes
//! what wgpu keeps of recorded commands, and no more. Kernels that add lanes by subgroups, bytes written in place and
//! times by the device's clock are for adapters that can; they change no bit of a result. Dense products by cooperative
//! matrices add in an order that is the adapter's, so which adapter has them follows from it alone.

mod adapter;
mod cooperative;
mod memory;
mod pipelines;
mod run;
mod stamps;

pub use adapter::{Adapter, adapters, default_adapter};
pub use cooperative::Cooperative;
pub use pipelines::{COMMON, COOPERATIVE, FAMILIES, LANES, wgsl, wgsl_cooperative};
pub(crate) use run::WgpuDevice;

use super::GpuError;
use std::sync::{Arc, Mutex};

/// What a device said last, from whichever thread.
#[derive(Clone, Default)]
struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    fn set(&self, why: String) {
        // A poisoned lock still holds the first complaint.
        let mut held = self.0.lock().unwrap_or_else(|e| e.into_inner());
        held.get_or_insert(why);
    }

    fn check(&self, device: &str) -> Result<(), GpuError> {
        let held = self.0.lock().unwrap_or_else(|e| e.into_inner());
        match &*held {
            Some(why) => Err(GpuError::Lost { device: device.to_string(), why: why.clone() }),
            None => Ok(()),
        }
    }
}
