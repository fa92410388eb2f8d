//! Tables by rows: ops that take some rows of an embedding or a head give, one after the other, the bytes of the ops
//! that take the whole table, on every device; and they refuse the same indices.

use std::ops::Range;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Value};
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_plan::{DType, Plan, VOCAB_SEGMENT};
use tinyforge_tests::device::{
    Bytes, Device, ENTRY, Library, Order, compile_forward, has_cuda_shim, has_wgpu, has_wgpu_cooperative,
    run as run_plan,
};
use tinyforge_tests::random::Random;
use tinyforge_tests::storage::store;

/// Rows of the table: two segments and some of a third.
const VOCAB: u32 = 2 * VOCAB_SEGMENT + 300;
const WIDTH: u32 = 12;
/// A packed row of more tokens than a head has logits of at a time.
const TOKENS: u32 = 133;
/// Where the table is cut.
const CUTS: [&[u32]; 3] = [&[VOCAB_SEGMENT], &[2 * VOCAB_SEGMENT], &[VOCAB_SEGMENT, 2 * VOCAB_SEGMENT]];

/// How the table is stored and multiplied.
#[derive(Clone, Copy, Debug)]
struct Kept {
    dtype: DType,
    compute: i64,
}

const KEPT: [Kept; 4] = [
    Kept { dtype: DType::F32, compute: 0 },
    Kept { dtype: DType::F32, compute: 1 },
    Kept { dtype: DType::BF16, compute: 0 },
    Kept { dtype: DType::BF16, compute: 1 },
];

/// What all graphs declare beside the table: one of hidden states, tokens, labels and weights.
struct Inputs([Value; 4]);

impl Inputs {
    fn declare(graph: &mut Graph) -> Inputs {
        let hidden = graph.declare(Kind::Weight, "hidden", Type::f32(&[TOKENS, WIDTH]));
        let [tokens, labels] = ["tokens", "labels"].map(|n| graph.declare(Kind::Input, n, Type::i32(&[TOKENS])));
        Inputs([hidden, tokens, labels, graph.declare(Kind::Input, "weights", Type::f32(&[TOKENS]))])
    }
}

/// The rows between cuts.
fn parts(cuts: &[u32]) -> Vec<Range<u32>> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts.zip(cuts.iter().copied().chain([VOCAB])).map(|(start, end)| start..end).collect()
}

fn table(graph: &mut Graph, rows: &Range<u32>, dtype: DType) -> Value {
    let ty = Type { dtype, ..Type::f32(&[rows.len() as u32, WIDTH]) };
    graph.declare(Kind::Weight, &format!("w{}", rows.start), ty)
}

/// Everything that a model makes of a table, from the whole of it.
fn whole(kept: Kept) -> Graph {
    let mut graph = Graph::new(1);
    let Inputs([h, tokens, labels, weights]) = Inputs::declare(&mut graph);
    let w = table(&mut graph, &(0..VOCAB), kept.dtype);
    let compute = ("compute", Attr::Int(kept.compute));
    let seq = ("seq", TOKENS.into());
    let mut b = Builder::new(&mut graph);
    let rows = b.push1("rows", Op::Embedding, &[w, tokens], &[]);
    let logits = b.push1("logits", Op::Linear, &[h, w], &[compute]);
    let head = [h, w, labels, weights];
    let forward = b.push1("forward", Op::LinearCrossEntropy, &head, &[compute, seq]);
    let attrs = [compute, seq, ("sums", Attr::Int(1))];
    let grad = b.push("grad", Op::LinearCrossEntropyGrad, &head, &attrs);
    let names = ["rows", "logits", "forward", "loss", "dh", "sums"].map(str::to_string);
    graph.results = names.into_iter().zip([rows, logits, forward, grad[0], grad[1], grad[2]]).collect();
    graph
}

/// The same from parts of it, one after the other.
fn in_parts(kept: Kept, cuts: &[u32]) -> Graph {
    let mut graph = Graph::new(1);
    let Inputs([h, tokens, labels, weights]) = Inputs::declare(&mut graph);
    let parts = parts(cuts);
    let tables: Vec<Value> = parts.iter().map(|part| table(&mut graph, part, kept.dtype)).collect();
    let mut b = Builder::new(&mut graph);
    let place = |part: &Range<u32>| [("first_row", part.start.into()), ("vocab", VOCAB.into())];
    let compute = ("compute", Attr::Int(kept.compute));
    let (mut rows, mut logits, mut sums, mut dh) = (None, None, None, None);
    for (part, &w) in parts.iter().zip(&tables) {
        let mut attrs = Vec::from(place(part));
        rows = Some(b.push1("rows", Op::EmbeddingPart, &args(&[w, tokens], rows), &attrs));
        attrs.push(compute);
        logits = Some(b.push1("logits", Op::LinearPart, &args(&[h, w], logits), &attrs));
        attrs.push(("seq", TOKENS.into()));
        sums = Some(b.push1("sums", Op::LinearCrossEntropySums, &args(&[h, w, labels, weights], sums), &attrs));
    }
    let sums = sums.expect("there is a part");
    let loss = b.push1("loss", Op::CrossEntropyOfSums, &[sums, weights], &[]);
    for (part, &w) in parts.iter().zip(&tables) {
        let mut attrs = Vec::from(place(part));
        attrs.extend([compute, ("seq", TOKENS.into())]);
        dh = Some(b.push1("dh", Op::LinearCrossEntropyGradH, &args(&[h, w, labels, weights, sums], dh), &attrs));
    }
    let all = [("rows", rows), ("logits", logits), ("forward", Some(loss)), ("loss", Some(loss)), ("dh", dh)];
    let found = all.into_iter().chain([("sums", Some(sums))]);
    graph.results = found.filter_map(|(name, v)| Some((name.to_string(), v?))).collect();
    graph
}

/// Operands, and what the part before left.
fn args(first: &[Value], before: Option<Value>) -> Vec<Value> {
    first.iter().copied().chain(before).collect()
}

/// The bytes of every declared tensor: those of a part are the table's. Two tokens count for nothing, and others have
/// their label in the first and last row of a part.
fn contents(graph: &Graph) -> Bytes {
    let mut random = Random::new(5);
    let mut real = |len: u32, scale: f64| (0..len).map(|_| random.within(-scale, scale)).collect::<Vec<f64>>();
    let (hidden, table) = (real(TOKENS * WIDTH, 2.0), real(VOCAB * WIDTH, 2.0));
    let mut random = Random::new(6);
    let mut index = || (0..TOKENS).map(|_| random.below(VOCAB as usize) as f64).collect::<Vec<f64>>();
    let (tokens, mut labels) = (index(), index());
    let ends = [0, VOCAB_SEGMENT - 1, VOCAB_SEGMENT, 2 * VOCAB_SEGMENT - 1, 2 * VOCAB_SEGMENT, VOCAB - 1];
    labels.iter_mut().zip(ends).for_each(|(label, end)| *label = f64::from(end));
    labels[9] = -1.0;
    let weights: Vec<f64> = (0..TOKENS).map(|t| if t == 130 { 0.0 } else { 0.5 + f64::from(t % 7) }).collect();
    let declared = graph.values.iter().filter(|v| v.decl.is_some());
    let of = |name: &str, len: usize| match name {
        "hidden" => hidden.clone(),
        "tokens" => tokens.clone(),
        "labels" => labels.clone(),
        "weights" => weights.clone(),
        part => {
            let start: usize = part.trim_start_matches('w').parse().expect("a part is named after its first row");
            table[start * WIDTH as usize..][..len].to_vec()
        }
    };
    declared.map(|v| (v.name.clone(), store(v.ty.dtype, &of(&v.name, v.ty.elems() as usize)).0)).collect()
}

fn compiled(graph: &Graph, device: Device) -> Plan {
    let plan = compile_forward(graph, device).unwrap_or_else(|e| panic!("{device:?}: {e}"));
    assert_eq!(tinyforge_plan::check::check(&plan), Vec::<String>::new());
    plan
}

fn results(graph: &Graph, device: Device, poison: u8) -> Bytes {
    run_plan(&compiled(graph, device), &contents(graph), poison, device)
}

/// Compares what parts give with what the whole table gives; `skips` are results that are not compared.
fn check_bytes(devices: [Device; 2], skips: &[&str]) {
    for kept in KEPT {
        let wanted = results(&whole(kept), devices[0], 0xff);
        let word = |name: &str, i: usize| &wanted[name][4 * i..4 * i + 4];
        for t in [9, 130] {
            let sums = (0..3).map(|i| word("sums", 3 * t + i));
            let all = sums.chain([word("loss", t), word("forward", t)]);
            assert!(all.into_iter().all(|word| word == [0; 4]), "{kept:?}: token {t} counts");
        }
        assert!(wanted["loss"].iter().any(|&byte| byte != 0), "{kept:?}: there is no loss");
        for cuts in CUTS {
            for (device, poison) in devices.into_iter().zip([0xff, 0x7f]) {
                let found = results(&in_parts(kept, cuts), device, poison);
                assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
                let differs = found.iter().filter(|(name, bytes)| wanted[*name] != **bytes).map(|f| f.0.as_str());
                let differs: Vec<_> = differs.filter(|name| !skips.contains(name)).collect();
                assert!(differs.is_empty(), "{kept:?} cut at {cuts:?}, {device:?}: other bytes in {differs:?}");
            }
        }
    }
}

#[test]
fn parts_give_the_bytes_of_the_whole() {
    check_bytes([Device::Cpu(1), Device::Cpu(2)], &[]);
}

#[test]
fn wgpu_parts_give_the_bytes_of_the_whole() {
    if has_wgpu() {
        check_bytes([Device::Wgpu, Device::WgpuPlain], &[]);
    }
}

#[test]
fn wgpu_parts_by_matrices_give_the_bytes_of_the_whole() {
    if has_wgpu_cooperative() {
        check_bytes([Device::WgpuCooperative; 2], &[]);
    }
}

/// A library's sums follow from how many columns there are, so logits by it are its own.
#[test]
fn cuda_parts_give_the_bytes_of_the_whole() {
    if has_cuda_shim() {
        for (library, skips) in [(Library::Absent, &[][..]), (Library::There, &["logits"])] {
            check_bytes([Order::Ascending, Order::Descending].map(|order| Device::CudaShim(order, library)), skips);
        }
    }
}

/// What a run says where one index of an input is not a row of the table.
fn refused(graph: &Graph, device: Device, input: &str) -> String {
    let plan = compiled(graph, device);
    let mut contents = contents(graph);
    let bytes = contents.get_mut(input).expect("the input is declared");
    bytes[4 * 4..][..4].copy_from_slice(&(VOCAB as i32).to_le_bytes());
    let (choice, driver, without) = (device.choice(), device.driver(), device.without());
    let options = RunOptions { device: choice, driver, without, ..RunOptions::default() };
    let mut runner = Runner::new(plan.clone(), options).expect("a compiled plan runs");
    let entry = runner.entry(ENTRY).expect("the plan has the entry");
    for stored in plan.stored.iter().filter(|s| contents.contains_key(&s.name)) {
        let given = &contents[&stored.name];
        runner.change(&stored.tensor, |bytes| bytes.copy_from_slice(given)).expect("the device is there");
    }
    for name in plan.entries[entry].inputs.iter().map(|input| &input.name) {
        runner.input(entry, name).copy_from_slice(&contents[name]);
    }
    runner.run(entry).expect_err("the index is no row").to_string()
}

fn check_refusals(device: Device) {
    let graph = in_parts(KEPT[0], CUTS[0]);
    for (input, op, what) in [("tokens", "embedding_part", "token"), ("labels", "linear_cross_entropy_sums", "label")] {
        let why = refused(&graph, device, input);
        let said = format!("{what} {VOCAB} at place 4 is not below {VOCAB}");
        assert!(why.contains(&said) && why.contains(op), "{device:?}: {why}");
    }
}

#[test]
fn indices_behind_the_table_are_refused() {
    check_refusals(Device::Cpu(1));
}

#[test]
fn wgpu_refuses_indices_behind_the_table() {
    if has_wgpu() {
        check_refusals(Device::Wgpu);
    }
}

#[test]
fn cuda_refuses_indices_behind_the_table() {
    if has_cuda_shim() {
        check_refusals(Device::CudaShim(Order::Ascending, Library::Absent));
    }
}
