//! Graphs on the CPU device: compiled as the command line compiles them, filled, run and read back.

use crate::script::optimizer;
use crate::storage;
use std::collections::BTreeMap;
use tinyforge::cpu::CpuKernels;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::compile::{CompileError, Compiled, Entry, Recompute, Request, Role, compile};
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;
use tinyforge_plan::{DType, Plan, Source, StoredKind, Tensor};

/// Name of the entry that [`compile_forward`] makes.
pub const ENTRY: &str = "forward";

/// Compiles a graph that is only run forward. Every run must have a result, so the graph gets one more weight, which
/// nothing of it reads.
///
/// # Errors
/// The device has no kernel for something.
pub fn compile_forward(graph: &Graph, threads: u32) -> Result<Plan, CompileError> {
    let mut graph = graph.clone();
    let block = graph.block("layers.0");
    let anchor = graph.declare(Kind::Weight, "anchor", Type::f32(&[1]));
    let mut b = Builder::new(&mut graph);
    b.at(block, Region::Forward);
    let out = b.push1("anchored", Op::Scale, &[anchor], &[]);
    graph.results.push(("anchored".to_string(), out));
    compile_entry(ENTRY, graph, Target::CPU, threads)
}

/// Compiles a graph, as it is, to a plan's one entry that is only run forward.
///
/// # Errors
/// The device has no kernel for something.
pub fn compile_entry(name: &str, graph: Graph, target: Target, threads: u32) -> Result<Plan, CompileError> {
    let request = Request {
        name: name.to_string(),
        entries: vec![Entry { name: name.to_string(), graph, role: Role::Forward }],
        scheme: Scheme::frozen(),
        group: 0,
        keep_states: false,
        storage: Storage { trained: DType::F32, frozen: None },
        optimizer: optimizer("sgd"),
        clip_by: None,
        recompute: Recompute::Nothing,
        arena_bytes_max: None,
        window: None,
        spill: None,
        target,
        kernels: &CpuKernels { threads },
        source: &|_| Source::Zero,
        files: Vec::new(),
        threads,
        dump: None,
    };
    compile(&request).map(|Compiled { plan, .. }| plan)
}

/// Bytes by the names of declared tensors and results.
pub type Bytes = BTreeMap<String, Vec<u8>>;

/// Runs the entry of a plan over an arena that is full of `poison`, and returns the bytes of its results and of the
/// stored tensors that it changes.
///
/// # Panics
/// The plan is damaged, or a kernel refuses its data, or it writes where nothing was planned.
pub fn run(plan: &Plan, contents: &Bytes, poison: u8) -> Bytes {
    let mut runner = Runner::new(plan.clone(), RunOptions::default()).expect("a compiled plan runs");
    let entry = runner.entry(ENTRY).expect("the plan has the entry");
    runner.arena_mut().bytes_mut().fill(poison);
    let inputs = plan.entries[entry].inputs.iter().map(|n| (&n.name, &n.tensor));
    let stored = plan.stored.iter().map(|s| (&s.name, &s.tensor));
    for (name, tensor) in inputs.chain(stored) {
        match contents.get(name) {
            Some(bytes) => runner.arena_mut().tensor_mut(tensor).copy_from_slice(bytes),
            None => runner.arena_mut().tensor_mut(tensor).fill(0),
        }
    }
    runner.run(entry).expect("the samples hold nothing that a kernel refuses");
    let read = |tensor: &Tensor| runner.arena().tensor(tensor).to_vec();
    for stored in plan.stored.iter().filter(|s| !s.changes) {
        let unchanged = contents.get(&stored.name).is_none_or(|bytes| *bytes == read(&stored.tensor));
        assert!(unchanged, "`{}` is changed, and the plan does not say so", stored.name);
    }
    let results = plan.entries[entry].results.iter().map(|n| (n.name.clone(), read(&n.tensor)));
    let changed = plan.stored.iter().filter(|s| s.changes && s.kind != StoredKind::Const);
    results.chain(changed.map(|s| (s.name.clone(), read(&s.tensor)))).collect()
}

/// The numbers of a result.
pub fn numbers(graph: &Graph, name: &str, bytes: &[u8]) -> Vec<f64> {
    let v = graph.result(name).or_else(|| graph.find(name)).expect("the plan's names are the graph's");
    storage::load(graph.ty(v).dtype, bytes)
}
