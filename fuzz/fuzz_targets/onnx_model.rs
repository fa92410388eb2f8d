//! ONNX files of float networks, the programs made of them, and the int8 networks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::compile::to_int8;
use tinyforge_compiler::import::int8::Entry;
use tinyforge_compiler::import::onnx::import;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::verify::verify;
use tinyforge_compiler::passes::quantize::{self, Bytes, Range};

fuzz_target!(|data: &[u8]| {
    let Ok(model) = import(data, "m.onnx", &|_| Some(1 << 20), 2) else { return };
    let findings = verify(&model.graph);
    assert!(findings.is_empty(), "{findings:?}");
    let files: Vec<Vec<u8>> =
        model.files.iter().enumerate().map(|(i, _)| if i == 0 { data.to_vec() } else { vec![0; 1 << 20] }).collect();
    let contents = |name: &str| {
        let v = model.graph.find(name)?;
        // More than the file holds comes of tables of one number a channel alone.
        let tensor = model.contents(v, &files).unwrap_or_else(|| panic!("`{name}` has no contents"));
        Some(tensor.data.iter().map(|&x| x as f32).collect())
    };
    for v in model.graph.declared(Kind::Weight) {
        contents(&model.graph.info(v).name);
    }
    let Ok(values) = quantize::observed(&model.graph) else { return };
    let ranges = vec![Range::of(-1.0, 2.0); values.len()];
    let bytes = Bytes::default();
    let request = quantize::Request {
        name: "m.onnx",
        graph: &model.graph,
        shape: model.shape,
        bytes: &bytes,
        weights: &contents,
        ranges: &ranges,
    };
    let Ok(int8) = to_int8(&request) else { return };
    for entry in [Entry::Whole, Entry::Train] {
        if let Ok(graph) = int8.graph(entry, 1) {
            let findings = verify(&graph);
            assert!(findings.is_empty(), "{findings:?}");
        }
    }
});
