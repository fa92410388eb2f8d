//! Which adapters there are, and opening one.

use super::Complaint;
use super::cooperative::{self, Cooperative};
use super::pipelines::Pipelines;
use crate::gpu::GpuError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Operands of the widest launch, and the status.
const BINDINGS: u32 = 12;
/// Bytes of workgroup memory that the kernels ask for.
const WORKGROUP_BYTES: u32 = 16 << 10;

/// Features that something here uses, by the names of traits.
const TRAITS: [(wgpu::Features, &str); 6] = [
    (wgpu::Features::SHADER_F16, "f16"),
    (wgpu::Features::SUBGROUP, "subgroups"),
    (wgpu::Features::MAPPABLE_PRIMARY_BUFFERS, "mappable buffers"),
    (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
    (wgpu::Features::PIPELINE_CACHE, "pipeline cache"),
    (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, COOPERATIVE),
];

/// The trait that is an adapter's own word for it: whether it multiplies right is found out when it is opened.
const COOPERATIVE: &str = "cooperative matrices";

/// An adapter and what its limits are.
#[derive(Clone)]
pub struct Adapter {
    inner: wgpu::Adapter,
    /// The name that its driver gives.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: &'static str,
    /// `discrete`, `integrated`, `software`, ...
    pub kind: &'static str,
    /// The driver and its version.
    pub driver: String,
    /// The longest buffer.
    pub buffer_bytes_max: u64,
    /// The longest operand of a kernel.
    pub operand_bytes_max: u64,
    /// Workgroup memory.
    pub workgroup_bytes: u32,
    /// Least and most invocations of a subgroup.
    pub subgroup: (u32, u32),
    /// Lanes of subgroups that hold matrices, where it says that it has such as are used.
    cooperative: Option<u32>,
    /// What it can do that kernels or copies may use; of subgroups those whose size is fixed.
    pub traits: Vec<&'static str>,
}

/// Lanes of subgroups, where all have one size that divides the smallest workgroup which adds by them.
pub(super) fn fixed((least, most): (u32, u32)) -> Option<u32> {
    (least == most && most.is_power_of_two() && most <= 64).then_some(most)
}

impl Adapter {
    fn of(inner: wgpu::Adapter) -> Adapter {
        let (info, limits, mut features) = (inner.get_info(), inner.limits(), inner.features());
        let subgroup = (info.subgroup_min_size, info.subgroup_max_size);
        let cooperative = cooperative::lanes(&inner.cooperative_matrix_properties(), &info)
            .filter(|_| features.contains(cooperative::FEATURES));
        if fixed(subgroup).is_none() {
            features.remove(wgpu::Features::SUBGROUP);
        }
        if cooperative.is_none() {
            features.remove(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        }
        Adapter {
            name: info.name,
            backend: match info.backend {
                wgpu::Backend::Vulkan => "vulkan",
                wgpu::Backend::Metal => "metal",
                wgpu::Backend::Dx12 => "dx12",
                _ => "other",
            },
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "software",
                wgpu::DeviceType::Other => "other",
            },
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            buffer_bytes_max: limits.max_buffer_size,
            operand_bytes_max: limits.max_storage_buffer_binding_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            subgroup,
            cooperative,
            traits: TRAITS.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect(),
            inner,
        }
    }

    /// Whether its memory is the host's.
    pub fn is_unified(&self) -> bool {
        matches!(self.kind, "integrated" | "software")
    }

    /// How good a choice it is, the best first.
    fn rank(&self) -> u32 {
        ["discrete", "integrated", "virtual", "other", "software"].iter().position(|k| *k == self.kind).unwrap_or(9)
            as u32
    }

    /// Opens it with its own limits and without some of its traits; what this process has open already is shared.
    ///
    /// # Errors
    /// It lacks what every kernel needs, or its driver refuses.
    pub(super) fn open(&self, without: &[&str]) -> Result<Arc<Opened>, GpuError> {
        static OPENED: Mutex<BTreeMap<String, Arc<Opened>>> = Mutex::new(BTreeMap::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{} {} {without:?}", self.backend, self.name);
        if let Some(open) = opened.get(&key).filter(|o| o.complaint.check(&self.name).is_ok()) {
            return Ok(Arc::clone(open));
        }
        let mut open = self.open_anew(without);
        let failed = match &open {
            Ok(open) if open.cooperative == Cooperative::F32 => cooperative::test(&self.name, open).err(),
            Ok(_) => None,
            Err(e) if self.cooperative_without(without).is_some() => Some(e.to_string()),
            Err(_) => None,
        };
        if let Some(why) = failed {
            let without: Vec<&str> = without.iter().copied().chain([COOPERATIVE]).collect();
            open = self.open_anew(&without).map(|open| Opened { cooperative: Cooperative::Failed(why), ..open });
        }
        let open = Arc::new(open?);
        opened.insert(key, Arc::clone(&open));
        Ok(open)
    }

    /// Lanes of subgroups that hold matrices, where neither is left alone.
    fn cooperative_without(&self, without: &[&str]) -> Option<u32> {
        self.cooperative.filter(|_| !["subgroups", COOPERATIVE].iter().any(|name| without.contains(name)))
    }

    /// Opens it without looking at what its matrices give.
    pub(super) fn open_anew(&self, without: &[&str]) -> Result<Opened, GpuError> {
        let complaint = Complaint::default();
        let (device, queue) = self.request(&complaint, without)?;
        let subgroup = fixed(self.subgroup).filter(|_| device.features().contains(wgpu::Features::SUBGROUP));
        let lanes = self.cooperative_without(without);
        let cooperative = if lanes.is_some() { Cooperative::F32 } else { Cooperative::Absent };
        let names = (self.name.as_str(), self.driver.as_str());
        let pipelines = Mutex::new(Pipelines::new(&device, names, [subgroup, lanes]));
        Ok(Opened { device, queue, complaint, pipelines, cooperative })
    }

    /// Whether dense products are made by cooperative matrices.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn cooperative(&self) -> Result<Cooperative, GpuError> {
        match self.cooperative {
            Some(_) => self.open(&[]).map(|open| open.cooperative.clone()),
            None => Ok(Cooperative::Absent),
        }
    }

    /// What it lacks of what every kernel needs.
    pub fn lacks(&self) -> Option<String> {
        let limits = self.inner.limits();
        let most = limits.max_storage_buffers_per_shader_stage;
        if most < BINDINGS {
            return Some(format!("its kernels can have {most} buffers, {BINDINGS} are needed"));
        }
        let (bytes, invocations) =
            (limits.max_compute_workgroup_storage_size, limits.max_compute_invocations_per_workgroup);
        let is_small = bytes < WORKGROUP_BYTES || invocations < 256;
        is_small.then(|| format!("its workgroups have {bytes} bytes and {invocations} invocations, too few"))
    }

    fn request(&self, complaint: &Complaint, without: &[&str]) -> Result<(wgpu::Device, wgpu::Queue), GpuError> {
        let limits = self.inner.limits();
        let lost = |why: String| GpuError::Lost { device: self.name.clone(), why };
        if let Some(why) = self.lacks() {
            return Err(lost(why));
        }
        let mut used = wgpu::Features::PIPELINE_CACHE | wgpu::Features::TIMESTAMP_QUERY;
        if fixed(self.subgroup).is_some() {
            used |= wgpu::Features::SUBGROUP;
        }
        if self.is_unified() {
            used |= wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let is_cooperative = self.cooperative_without(without).is_some();
        if is_cooperative {
            used |= cooperative::FEATURES;
        }
        let left = TRAITS.iter().filter(|(_, name)| without.contains(name)).map(|(feature, _)| *feature);
        let wanted = wgpu::DeviceDescriptor {
            label: Some("tinyforge"),
            required_features: left.fold(self.inner.features() & used, |all, feature| all & !feature),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: if is_cooperative { cooperative::experimental() } else { Default::default() },
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(self.inner.request_device(&wanted)).map_err(|e| lost(e.to_string()))?;
        let (on_error, on_lost) = (complaint.clone(), complaint.clone());
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| on_error.set(e.to_string())));
        device.set_device_lost_callback(move |reason, why| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                on_lost.set(why);
            }
        });
        Ok((device, queue))
    }
}

/// An adapter that is open, with the pipelines made so far.
pub(super) struct Opened {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) complaint: Complaint,
    pub(super) pipelines: Mutex<Pipelines>,
    pub(super) cooperative: Cooperative,
}

/// Every adapter, the best first; looked for once.
pub fn adapters() -> &'static [Adapter] {
    static FOUND: OnceLock<Vec<Adapter>> = OnceLock::new();
    FOUND.get_or_init(find_adapters)
}

fn find_adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut all: Vec<Adapter> = found.into_iter().map(Adapter::of).collect();
    all.sort_by_key(Adapter::rank);
    all
}

/// The adapter that a run takes where none is named.
///
/// # Errors
/// There is none, with what to install.
pub fn default_adapter() -> Result<&'static Adapter, GpuError> {
    adapters().first().ok_or_else(|| GpuError::Absent {
        kind: "wgpu",
        why: "no adapter for Vulkan, Metal or DirectX 12 was found; install the graphics card's driver, or Debian's \
              mesa-vulkan-drivers for a slow one in software; `tinyforge devices` lists what there is"
            .to_string(),
    })
}
