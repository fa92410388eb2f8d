//! Every shader, with every storage type of the operand that comes in several, is valid: checked without an adapter.
#![cfg(feature = "wgpu")]

use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::collections::BTreeSet;
use tinyforge::gpu::cuda;
use tinyforge::gpu::wgpu::{COOPERATIVE, FAMILIES, LANES, wgsl, wgsl_cooperative};
use tinyforge_plan::{DType, VOCAB_SEGMENT};

/// Lanes of subgroups.
const SUBGROUPS: [u32; 5] = [4, 8, 16, 32, 64];

/// Parses a family's text.
fn parse(stem: &str, by_subgroups: bool) -> naga::Module {
    let text = wgsl(stem, by_subgroups).expect("it is a family");
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{stem}: {}", e.emit_to_string(&text)))
}

fn validate(stem: &str, module: &naga::Module, by_subgroups: bool) -> naga::valid::ModuleInfo {
    let able = if by_subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
    let found = Validator::new(ValidationFlags::all(), able).validate(module);
    found.unwrap_or_else(|e| panic!("{stem}: {}", e.emit_to_string(&wgsl(stem, by_subgroups).unwrap_or_default())))
}

#[test]
fn every_variant_is_valid() {
    let mut count = 0;
    for (stem, _) in FAMILIES {
        let modules = [false, true].map(|by_subgroups| {
            let module = parse(stem, by_subgroups);
            let info = validate(stem, &module, by_subgroups);
            (module, info)
        });
        let plain = DType::all().map(|dtype| (dtype, None));
        for (dtype, subgroup) in plain.chain(SUBGROUPS.map(|lanes| (DType::F32, Some(lanes)))) {
            let storage = [("STORAGE".to_string(), f64::from(dtype as u8))];
            let lanes = subgroup.map(|lanes| ("SUBGROUP".to_string(), f64::from(lanes)));
            let constants = storage.into_iter().chain(lanes).collect();
            let (module, info) = &modules[usize::from(subgroup.is_some())];
            for entry in &module.entry_points {
                let wanted = Some((entry.stage, entry.name.as_str()));
                let (special, _) = process_overrides(module, info, wanted, &constants)
                    .unwrap_or_else(|e| panic!("{stem} {} {} {subgroup:?}: {e}", entry.name, dtype.name()));
                validate(stem, &special, subgroup.is_some());
                count += 1;
            }
        }
    }
    println!("{count} variants of {} files are valid", FAMILIES.len());
}

/// The dense product by cooperative matrices, for every storage type and size of subgroups that it is taken for.
#[test]
fn products_by_matrices_are_valid() {
    let text = wgsl_cooperative().expect("linear is a family");
    let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
    let able = Capabilities::SUBGROUP | Capabilities::COOPERATIVE_MATRIX;
    let validated = |module: &naga::Module| {
        let found = Validator::new(ValidationFlags::all(), able).validate(module);
        found.unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)))
    };
    let info = validated(&module);
    let (_, _, name) = COOPERATIVE;
    for (dtype, lanes) in DType::all().flat_map(|dtype| SUBGROUPS[..4].iter().map(move |&lanes| (dtype, lanes))) {
        let named = [("STORAGE", f64::from(dtype as u8)), ("LANES", f64::from(lanes))];
        let constants = named.map(|(name, value)| (name.to_string(), value)).into_iter().collect();
        let wanted = Some((naga::ShaderStage::Compute, name));
        let (special, _) = process_overrides(&module, &info, wanted, &constants).expect("constants have values");
        let info = validated(&special);
        let [entry] = &special.entry_points[..] else { panic!("{name} is the one kernel that is left") };
        assert_eq!((entry.name.as_str(), entry.workgroup_size), (name, [8 * lanes, 1, 1]));
        let bytes = workgroup_bytes(&special, info.get_entry_point(0));
        assert!(bytes <= 16 << 10, "{bytes} bytes of workgroup memory");
        let words = spirv(&special, &info);
        assert!(words.len() > 100, "{} words", words.len());
        let metal = metal(&special, &info);
        for call in ["simdgroup_load(", "simdgroup_multiply_accumulate(", "simdgroup_store("] {
            assert!(metal.contains(call), "no {call}");
        }
    }
    let refused = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP).validate(&module);
    assert!(refused.is_err(), "the check above cannot fail");
}

/// What a driver of Vulkan is given.
fn spirv(module: &naga::Module, info: &naga::valid::ModuleInfo) -> Vec<u32> {
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(module, info, &options, None).expect("can be said in SPIR-V")
}

/// What Metal is given, but for the places of operands.
fn metal(module: &naga::Module, info: &naga::valid::ModuleInfo) -> String {
    let options = naga::back::msl::Options { lang_version: (2, 3), fake_missing_bindings: true, ..Default::default() };
    let of_pipeline = naga::back::msl::PipelineOptions::default();
    naga::back::msl::write_string(module, info, &options, &of_pipeline).expect("can be said in Metal's language").0
}

/// Bytes of workgroup memory that a function uses.
fn workgroup_bytes(module: &naga::Module, used: &naga::valid::FunctionInfo) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("types have sizes");
    let shared = module
        .global_variables
        .iter()
        .filter(|(handle, v)| v.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty());
    shared.map(|(_, v)| layouter[v.ty].size).sum()
}

/// Adapters without subgroups are never given a kernel that needs them.
#[test]
fn without_subgroups_none_is_needed() {
    let needs = |by_subgroups| LANES[usize::from(by_subgroups)].contains("subgroup");
    assert_eq!([false, true].map(needs), [false, true]);
    let refused = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&parse("norm", true));
    assert!(refused.is_err(), "the check above cannot fail");
}

#[test]
fn workgroups_fit_every_adapter() {
    for (stem, _) in FAMILIES {
        let module = parse(stem, true);
        let info = validate(stem, &module, true);
        for (i, entry) in module.entry_points.iter().enumerate() {
            let bytes = workgroup_bytes(&module, info.get_entry_point(i));
            assert!(bytes <= 16 << 10, "{stem} {}: {bytes} bytes of workgroup memory", entry.name);
            let invocations: u32 = entry.workgroup_size.iter().product();
            assert!(invocations <= 256, "{stem} {}: {invocations} invocations", entry.name);
        }
    }
}

#[test]
fn names_of_files_and_functions_are_told_once() {
    let mut names = BTreeSet::new();
    for (stem, _) in FAMILIES {
        assert!(names.insert(stem.to_string()), "{stem} stands twice");
        assert!(!parse(stem, false).entry_points.is_empty(), "{stem} has no kernel");
    }
}

/// Kernels that serve NVIDIA's library of products and matrix units, which other cards have not.
const ALONE: [&str; 5] =
    ["attention_bf16", "attention_grad_kv_bf16", "attention_grad_q_bf16", "narrow", "product_bf16"];

/// One row launches both texts: what is a kernel in one is a kernel in the other, of as many invocations.
#[test]
fn kernels_have_siblings_in_cuda() {
    let mut shaders = BTreeSet::new();
    for (stem, _) in FAMILIES {
        let entries = parse(stem, false).entry_points.into_iter();
        shaders.extend(entries.map(|e| (stem.to_string(), e.name, e.workgroup_size.iter().product::<u32>())));
    }
    let kernels = cuda::FAMILIES.iter().flat_map(|(stem, text)| cuda::kernels(text).map(move |of| (stem, of)));
    let kernels = kernels.map(|(stem, (name, threads))| (stem.to_string(), name.to_string(), threads)).collect();
    let no_kernel: Vec<_> = shaders.difference(&kernels).collect();
    assert!(no_kernel.is_empty(), "shaders without a kernel of their name and size in kernels/cuda: {no_kernel:?}");
    let no_shader: Vec<&str> = kernels.difference(&shaders).map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(no_shader, ALONE, "kernels without a shader of their name and size in shaders");
}

/// Classes are summed apart where tables may be cut.
#[test]
fn segments_are_those_of_plans() {
    let segment = format!("SEGMENT: u32 = {VOCAB_SEGMENT}u;");
    assert!(wgsl("loss", false).is_some_and(|text| text.contains(&segment)), "shaders/loss.wgsl has no `{segment}`");
    let segment = format!("u32 SEGMENT = {VOCAB_SEGMENT};");
    let text = cuda::FAMILIES.iter().find(|(stem, _)| *stem == "loss").map(|(_, text)| *text);
    assert!(text.is_some_and(|text| text.contains(&segment)), "kernels/cuda/loss.cu has no `{segment}`");
}

/// The code blocks of a language in the walk through adding an op.
fn blocks_of_the_walk(language: &str) -> String {
    let walk = include_str!("../../docs/adding-an-op.md");
    let blocks = walk.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

/// The walk's kernels are ones: added to their family's texts, they are found in both, and the shader is valid.
#[test]
fn the_walks_kernels_are_kernels() {
    let text = wgsl("activation", false).expect("it is a family") + "\n" + &blocks_of_the_walk("wgsl");
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("docs/adding-an-op.md: {}", e.emit_to_string(&text)));
    validate("activation", &module, false);
    let added = module.entry_points.iter().skip(parse("activation", false).entry_points.len());
    let shaders: Vec<_> = added.map(|e| (e.name.as_str(), e.workgroup_size.iter().product())).collect();
    let text = format!("\n{}", blocks_of_the_walk("cuda"));
    assert_eq!(cuda::kernels(&text).collect::<Vec<(&str, u32)>>(), shaders);
    assert_eq!(shaders, [("softsign", 256), ("softsign_grad", 256)]);
}
