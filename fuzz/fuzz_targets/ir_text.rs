//! Graphs and programs as text: what is read verifies, prints, and reads back the same; and passes take it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::ir::graph::Graph;
use tinyforge_compiler::ir::text::{parse_graph, parse_program, print_graph, print_program};
use tinyforge_compiler::ir::verify::{verify, verify_program};
use tinyforge_compiler::passes::{differentiate, fuse, order, recompute};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(program) = parse_program(text) {
        assert!(verify_program(&program).is_empty());
        let printed = print_program(&program);
        let read = parse_program(&printed).unwrap_or_else(|e| panic!("{e:?}\n{printed}"));
        assert_eq!(print_program(&read), printed);
        let _ = program.inline();
    }
    if let Ok(graph) = parse_graph(text) {
        read_back(&graph);
        passes(graph);
    }
});

fn read_back(graph: &Graph) {
    assert!(verify(graph).is_empty());
    let printed = print_graph(graph);
    let read = parse_graph(&printed).unwrap_or_else(|e| panic!("{e:?}\n{printed}"));
    assert_eq!(print_graph(&read), printed);
}

fn passes(mut graph: Graph) {
    if graph.results.iter().all(|(name, _)| !name.starts_with(differentiate::GRAD)) {
        let _ = differentiate::run(&mut graph);
    }
    fuse::run(&mut graph);
    read_back(&graph);
    let rungs = recompute::ladder(&graph);
    recompute::run(&mut graph, |_| rungs[rungs.len() - 1]);
    order::run(&mut graph);
    read_back(&graph);
}
