//! Every shader, with every storage type of the operand that comes in several, is valid: checked without an adapter.
#![cfg(feature = "wgpu")]

use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::collections::BTreeSet;
use tinyforge::gpu::wgpu::{FAMILIES, wgsl};
use tinyforge_plan::DType;

/// Parses a family's text.
fn parse(stem: &str) -> naga::Module {
    let text = wgsl(stem).expect("it is a family");
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{stem}: {}", e.emit_to_string(&text)))
}

fn validate(stem: &str, module: &naga::Module) -> naga::valid::ModuleInfo {
    let found = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(module);
    found.unwrap_or_else(|e| panic!("{stem}: {}", e.emit_to_string(&wgsl(stem).unwrap_or_default())))
}

#[test]
fn every_variant_is_valid() {
    let mut count = 0;
    for (stem, _) in FAMILIES {
        let module = parse(stem);
        let info = validate(stem, &module);
        for dtype in DType::all() {
            let constants = [("STORAGE".to_string(), f64::from(dtype as u8))].into_iter().collect();
            for entry in &module.entry_points {
                let wanted = Some((entry.stage, entry.name.as_str()));
                let (special, _) = process_overrides(&module, &info, wanted, &constants)
                    .unwrap_or_else(|e| panic!("{stem} {} {}: {e}", entry.name, dtype.name()));
                validate(stem, &special);
                count += 1;
            }
        }
    }
    println!("{count} variants of {} files are valid", FAMILIES.len());
}

#[test]
fn workgroups_fit_every_adapter() {
    for (stem, _) in FAMILIES {
        let module = parse(stem);
        let info = validate(stem, &module);
        for (i, entry) in module.entry_points.iter().enumerate() {
            let used = info.get_entry_point(i);
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("types have sizes");
            let bytes: u32 = module
                .global_variables
                .iter()
                .filter(|(handle, v)| v.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty())
                .map(|(_, v)| layouter[v.ty].size)
                .sum();
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
        assert!(!parse(stem).entry_points.is_empty(), "{stem} has no kernel");
    }
}
