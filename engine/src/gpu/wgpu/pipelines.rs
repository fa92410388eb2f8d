//! Shaders and the pipelines made of them: one for every kernel of a plan, before it runs.

use super::Complaint;
use crate::gpu::{GpuError, Kernel};
use std::borrow::Cow;
use std::collections::BTreeMap;

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

/// The whole text of a family.
pub fn wgsl(stem: &str) -> Option<String> {
    let (_, text) = FAMILIES.iter().find(|(name, _)| *name == stem)?;
    Some(format!("{COMMON}\n{text}"))
}

/// Pipelines by kernel, and layouts by the number of operands.
pub(super) struct Pipelines {
    device: wgpu::Device,
    name: String,
    modules: BTreeMap<&'static str, wgpu::ShaderModule>,
    layouts: BTreeMap<usize, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    made: BTreeMap<Kernel, wgpu::ComputePipeline>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, name: &str) -> Pipelines {
        let (modules, layouts, made) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Pipelines { device: device.clone(), name: name.to_string(), modules, layouts, made }
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
        let module = self.modules.entry(kernel.stem).or_insert_with(|| module(&device, kernel.stem));
        let made = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.entry),
            layout: Some(&layout),
            module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("STORAGE", f64::from(kernel.storage as u8))],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
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
fn module(device: &wgpu::Device, stem: &str) -> wgpu::ShaderModule {
    let text = wgsl(stem).unwrap_or_else(|| panic!("a row names the file `{stem}`"));
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
