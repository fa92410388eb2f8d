//! TFLite files of int8 models, and the programs made of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::int8::Entry;
use tinyforge_compiler::import::tflite::import;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::verify::verify;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = import(data, "m.tflite") else { return };
    for entry in [Entry::Whole, Entry::Infer, Entry::Train] {
        let Ok(graph) = model.graph(entry, 1) else { continue };
        let findings = verify(&graph);
        assert!(findings.is_empty(), "{findings:?}");
        for kind in [Kind::Weight, Kind::Const] {
            for v in graph.declared(kind) {
                assert!(model.contents(&graph, v, data, 0).is_some(), "{}", graph.info(v).name);
            }
        }
    }
    let new = model.with_classes(3).expect("a new head suits every model");
    if let Ok(graph) = new.graph(Entry::Train, 2) {
        assert!(verify(&graph).is_empty());
    }
});
