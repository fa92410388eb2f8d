//! What a plan is made for: which memories there are and how tensors lie in them.
//!
//! All memories of a plan share one range of addresses; a *space* is a section of it. A microcontroller's flash comes
//! first and is never written, its SRAM follows: so a host can run the same plan over one block of memory, and
//! generated code takes the section's own base.

/// Memories and alignment of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The name on the command line.
    pub name: &'static str,
    /// Name of the near memory, which steps write.
    pub near: &'static str,
    /// Name of the memory for what no step changes, where that is not the near one.
    pub fixed: Option<&'static str>,
    /// Every tensor starts at a multiple of this.
    pub align_bytes: u32,
}

impl Target {
    /// A computer with an operating system: all in one memory, tensors on cache lines.
    pub const CPU: Target = Target { name: "cpu", near: "ram", fixed: None, align_bytes: 64 };
    /// A graphics card by way of wgpu: every tensor can be bound to a kernel where it begins.
    pub const WGPU: Target = Target { name: "wgpu", near: "vram", fixed: None, align_bytes: 256 };
    /// A card of NVIDIA by way of CUDA.
    pub const CUDA: Target = Target { name: "cuda", ..Target::WGPU };
    /// Arm Cortex-M4 with FPU: weights that stay lie in flash. Eight bytes are a bus transfer of the M7.
    pub const CORTEX_M4: Target = Target { name: "cortex-m4", near: "sram", fixed: Some("flash"), align_bytes: 8 };
    /// Arm Cortex-M7.
    pub const CORTEX_M7: Target = Target { name: "cortex-m7", ..Target::CORTEX_M4 };
    /// Every target by name.
    pub const ALL: [Target; 5] = [Target::CPU, Target::WGPU, Target::CUDA, Target::CORTEX_M4, Target::CORTEX_M7];

    /// The target of this name.
    pub fn from_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|t| t.name == name)
    }

    /// Rounds up to the alignment.
    pub fn align(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(u64::from(self.align_bytes))
    }
}
