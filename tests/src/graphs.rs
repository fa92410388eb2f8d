//! Running graphs in the f64 reference, and comparing graphs and numbers.

use std::collections::HashMap;
use tinyforge_compiler::ir::graph::{Graph, Node, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::text::{parse_graph, print_graph};
use tinyforge_compiler::ir::verify::verify;

/// Runs a graph whose declared tensors hold `contents`, in the order of declaration.
///
/// # Panics
/// When the graph does not verify: a test must not rest on what has no meaning.
pub fn run(graph: &Graph, contents: &[Tensor]) -> Memory {
    assert_verified(graph);
    let mut contents = contents.iter();
    Memory::run(graph, |_| contents.next().expect("contents for every declared tensor").clone())
}

/// Runs a graph with the definitions that do not round.
pub fn run_smooth(graph: &Graph, contents: &[Tensor]) -> Memory {
    assert_verified(graph);
    let mut contents = contents.iter();
    Memory::run_smooth(graph, |_| contents.next().expect("contents for every declared tensor").clone())
}

/// Runs a graph whose declared tensors are filled by name.
pub fn run_named(graph: &Graph, contents: impl Fn(&str) -> Tensor) -> Memory {
    assert_verified(graph);
    Memory::run(graph, |v| contents(&graph.info(v).name))
}

/// Fails with the text of a graph that does not verify.
pub fn assert_verified(graph: &Graph) {
    let findings = verify(graph);
    assert!(findings.is_empty(), "{findings:?}\n{}", print_graph(graph));
}

/// The result of this name.
pub fn result<'m>(graph: &Graph, memory: &'m Memory, name: &str) -> &'m Tensor {
    let v = graph.result(name).unwrap_or_else(|| panic!("no result `{name}` in\n{}", print_graph(graph)));
    memory.get(v)
}

/// The graph with its values and blocks numbered in the order of the text: what reading its text must give.
pub fn canonical(graph: &Graph) -> Graph {
    let mut out = Graph { rows: graph.rows, ..Graph::new(1) };
    let mut map: HashMap<Value, Value> = HashMap::new();
    let declared = (0..graph.values.len() as u32).map(Value).filter(|v| graph.info(*v).decl.is_some());
    for v in declared.chain(graph.nodes.iter().flat_map(|n| n.outs.iter().copied())) {
        map.insert(v, out.add_value(graph.info(v).clone()));
    }
    let at = |v: &Value| map[v];
    for node in &graph.nodes {
        let block = out.block(&graph.blocks[node.block as usize]);
        let (args, outs) = (node.args.iter().map(at).collect(), node.outs.iter().map(at).collect());
        out.nodes.push(Node { args, outs, block, ..node.clone() });
    }
    out.results = graph.results.iter().map(|(name, v)| (name.clone(), at(v))).collect();
    out
}

/// Asserts that a graph's text reads back to the same graph.
pub fn assert_text_is_graph(graph: &Graph) {
    let text = print_graph(graph);
    let read = parse_graph(&text).unwrap_or_else(|d| panic!("a printed graph does not parse: {d:?}\n{text}"));
    assert!(read == canonical(graph), "text reads back to another graph:\n{text}\nread:\n{}", print_graph(&read));
}

/// The largest `|a - b| / (|a| + |b| + floor)`, and where it is.
pub fn largest_difference(a: &[f64], b: &[f64], floor: f64) -> (f64, usize) {
    let differences =
        a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / (a.abs() + b.abs() + floor) });
    let worse = |most: (f64, usize), (i, d): (usize, f64)| if d > most.0 || d.is_nan() { (d, i) } else { most };
    differences.enumerate().fold((0.0, 0), worse)
}

/// Asserts that all elements agree to `relative`, where `floor` is what counts as nothing.
pub fn assert_close(what: &str, found: &[f64], wanted: &[f64], relative: f64, floor: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: lengths differ");
    let (difference, at) = largest_difference(found, wanted, floor);
    assert!(
        difference <= relative,
        "{what}: element {at} is {}, must be {} (off by {difference:e}, allowed {relative:e})",
        found[at],
        wanted[at]
    );
}
