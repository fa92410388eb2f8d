//! The published backbones' form: the structure's length in four bytes, the structure, then the weights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::int8::Entry;
use tinyforge_compiler::import::mcu::import;
use tinyforge_compiler::ir::verify::verify;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((json, weights)) = rest.split_at_checked(length) else { return };
    let Ok(model) = import(json, weights, "w.safetensors") else { return };
    for entry in [Entry::Whole, Entry::Train] {
        if let Ok(graph) = model.graph(entry, 1) {
            let findings = verify(&graph);
            assert!(findings.is_empty(), "{findings:?}");
        }
    }
});
