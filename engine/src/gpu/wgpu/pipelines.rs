//! Shaders and the pipelines made of them: one for every kernel of a plan, before it runs.

use super::Complaint;
use crate::gpu::{GpuError, Kernel, kept};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tinyforge_plan::encode::crc32;

/// What stands before every family's own text.
pub const COMMON: &str = include_str!("../../../../shaders/common.wgsl");

/// The text of every family, by its stem.
pub const FAMILIES: &[(&str, &str)] = &[
    ("activation", include_str!("../../../../shaders/activation.wgsl")),
    ("attention", include_str!("../../../../shaders/attention.wgsl")),
    ("batch_norm", include_str!("../../../../shaders/batch_norm.wgsl")),
    ("conv", include_str!("../../../../shaders/conv.wgsl")),
    ("elementwise", include_str!("../../../../shaders/elementwise.wgsl")),
    ("embedding", include_str!("../../../../shaders/embedding.wgsl")),
    ("linear", include_str!("../../../../shaders/linear.wgsl")),
    ("loss", include_str!("../../../../shaders/loss.wgsl")),
    ("norm", include_str!("../../../../shaders/norm.wgsl")),
    ("pool", include_str!("../../../../shaders/pool.wgsl")),
    ("update", include_str!("../../../../shaders/update.wgsl")),
];

/// How lanes are added: as every adapter can, and by subgroups.
pub const LANES: [&str; 2] =
    [include_str!("../../../../shaders/lanes.wgsl"), include_str!("../../../../shaders/lanes_subgroup.wgsl")];

/// The whole text of a family.
pub fn wgsl(stem: &str, by_subgroups: bool) -> Option<String> {
    let (_, text) = FAMILIES.iter().find(|(name, _)| *name == stem)?;
    let lanes = LANES[usize::from(by_subgroups)];
    Some(format!("{COMMON}\n{lanes}\n{text}"))
}

/// The dense product by cooperative matrices: its text, by the stem, and its function.
pub const COOPERATIVE: (&str, &str, &str) =
    ("linear_cooperative", include_str!("../../../../shaders/linear_cooperative.wgsl"), "product_cooperative");

/// The whole text of the dense product by cooperative matrices, which stands behind its family's.
pub fn wgsl_cooperative() -> Option<String> {
    let (_, linear) = FAMILIES.iter().find(|(name, _)| *name == "linear")?;
    Some(format!("enable wgpu_cooperative_matrix;\n{COMMON}\n{linear}\n{}", COOPERATIVE.1))
}

/// Pipelines by kernel, and layouts by the number of operands.
pub(super) struct Pipelines {
    device: wgpu::Device,
    name: String,
    /// Lanes of a subgroup, where lanes are added by them.
    subgroup: Option<u32>,
    /// Lanes of a subgroup that holds matrices, where dense products are made by them.
    cooperative: Option<u32>,
    pub(super) modules: BTreeMap<&'static str, wgpu::ShaderModule>,
    layouts: BTreeMap<usize, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    made: BTreeMap<Kernel, wgpu::ComputePipeline>,
    /// What the driver made for earlier processes, where it can say that.
    kept: Option<Kept>,
}

/// A cache of the driver's, and the file that it comes from.
struct Kept {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Checksum of what the file holds.
    held: Option<u32>,
}

impl Kept {
    /// The cache for this driver and our shaders, from its file where that is whole.
    fn open(device: &wgpu::Device, name: &str, driver: &str) -> Option<Kept> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = kept::file("wgpu", (name, driver, COMMON, LANES, FAMILIES, COOPERATIVE, cfg!(debug_assertions)))?;
        let data = kept::read(&path);
        let held = data.as_deref().map(crc32);
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("kernels"), data: data.as_deref(), fallback: true };
        #[expect(unsafe_code, reason = "a driver reads what it wrote")]
        // SAFETY: the file's checksum holds, its name is that of this driver, and only `keep` below writes such files,
        // of what the driver gave; what another version of wgpu or of the driver wrote, wgpu's own header leaves out.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Kept { cache, path, held })
    }
}

impl Pipelines {
    /// None made yet; lanes of a subgroup where they are added by it, and where it holds matrices.
    pub(super) fn new(
        device: &wgpu::Device,
        (name, driver): (&str, &str),
        [subgroup, cooperative]: [Option<u32>; 2],
    ) -> Pipelines {
        let (modules, layouts, made) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let kept = Kept::open(device, name, driver);
        let (device, name) = (device.clone(), name.to_string());
        Pipelines { device, name, subgroup, cooperative, modules, layouts, made, kept }
    }

    /// The text and the function that do what a kernel is for.
    fn place(&self, kernel: Kernel) -> (&'static str, &'static str) {
        match (kernel.stem, kernel.entry) {
            ("linear", "product") if self.cooperative.is_some() => (COOPERATIVE.0, COOPERATIVE.2),
            plain => plain,
        }
    }

    /// Keeps what was made for the next process.
    pub(super) fn keep(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        let Some(data) = kept.cache.get_data() else { return };
        let made = Some(crc32(&data));
        if kept.held != made {
            kept::write(&kept.path, &data);
            kept.held = made;
        }
    }

    /// The pipeline of a kernel and the layout of its operands.
    pub(super) fn get(
        &mut self,
        kernel: Kernel,
        operands: usize,
        complaint: &Complaint,
    ) -> Result<(wgpu::ComputePipeline, wgpu::BindGroupLayout), GpuError> {
        let (group, layout) = self.layout(operands);
        if let Some(made) = self.made.get(&kernel) {
            return Ok((made.clone(), group));
        }
        let device = self.device.clone();
        let by_subgroups = self.subgroup.is_some();
        let (stem, entry) = self.place(kernel);
        let module = self.modules.entry(stem).or_insert_with(|| module(&device, stem, by_subgroups));
        let lanes = match stem == COOPERATIVE.0 {
            true => self.cooperative.map(|lanes| ("LANES", f64::from(lanes))),
            false => self.subgroup.map(|lanes| ("SUBGROUP", f64::from(lanes))),
        };
        let constants: Vec<_> = [("STORAGE", f64::from(kernel.storage as u8))].into_iter().chain(lanes).collect();
        let made = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&layout),
            module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: self.kept.as_ref().map(|k| &k.cache),
        });
        complaint.check(&self.name)?;
        self.made.insert(kernel, made.clone());
        Ok((made, group))
    }

    fn layout(&mut self, operands: usize) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let device = &self.device;
        let make = || {
            let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            };
            let storage = wgpu::BufferBindingType::Storage { read_only: false };
            let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
            entries.extend((1..operands as u32 + 2).map(|binding| entry(binding, storage)));
            let group =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            (group, layout)
        };
        self.layouts.entry(operands).or_insert_with(make).clone()
    }
}

/// The shader of a family. In release builds the driver's checks of every access are left out: they cost many times
/// the kernel, and the conformance tests run with them.
fn module(device: &wgpu::Device, stem: &str, by_subgroups: bool) -> wgpu::ShaderModule {
    let text = if stem == COOPERATIVE.0 { wgsl_cooperative() } else { wgsl(stem, by_subgroups) };
    let text = text.unwrap_or_else(|| panic!("a row names the file `{stem}`"));
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: Some(stem), source: wgpu::ShaderSource::Wgsl(Cow::Owned(text)) };
    if cfg!(debug_assertions) {
        return device.create_shader_module(descriptor);
    }
    #[expect(unsafe_code, reason = "checked accesses cost many times the kernel")]
    // SAFETY: the plan's checker has made sure of places and sizes; kernels compare indices that come with the data
    // with their limits; loops end.
    unsafe {
        device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}
