//! Every op on every backend against its f64 definition: all samples and edge shapes, results in place and not,
//! one thread and two, every storage type that a kernel reads.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tinyforge::cpu::CpuKernels;
use tinyforge::gpu::{GpuKernels, cuda, work};
use tinyforge_compiler::compile::CompileError;
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Kind, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_plan::{DType, Plan, Source};
use tinyforge_tests::device::{
    Bytes, Device, ENTRY, Library, Order, compile_forward, has_cuda_shim, has_wgpu, has_wgpu_cooperative, numbers,
    run as run_plan,
};
use tinyforge_tests::graphs::{largest_difference, run as run_reference};
use tinyforge_tests::samples::{Sample, edges, family, samples, size};
use tinyforge_tests::storage::store;

/// Ops that a backend has no kernel for, and why. A row for an op that has one fails too.
const GAPS: &[(&str, Op, &str)] = &[];

/// Why GPUs have no kernels for int8 ops.
const INT8_GAP: &str = "int8 is for microcontrollers, and the CPU simulates those";

/// The backends with the names of their kernels.
fn backends() -> [(&'static str, BTreeSet<&'static str>); 2] {
    [("cpu", CpuKernels::names().collect()), ("gpu", GpuKernels::names().collect())]
}

fn is_gap(backend: &str, op: Op) -> bool {
    let is_int8 = op.name().starts_with("i8_") || op.name().starts_with("i32_");
    GAPS.iter().any(|(b, o, _)| (*b, *o) == (backend, op)) || (backend == "gpu" && is_int8 && !INT8_GAP.is_empty())
}

/// The devices to check, each with two ways to run a plan that must give the same bytes.
fn cpu() -> [Device; 2] {
    [Device::Cpu(1), Device::Cpu(2)]
}

fn wgpu() -> [Device; 2] {
    [Device::Wgpu, Device::WgpuPlain]
}

/// Over different poison: what it adds to is its own.
fn wgpu_cooperative() -> [Device; 2] {
    [Device::WgpuCooperative; 2]
}

fn cuda_shim() -> [Device; 2] {
    [Order::Ascending, Order::Descending].map(|order| Device::CudaShim(order, Library::Absent))
}

fn cuda_by_library() -> [Device; 2] {
    [Order::Ascending, Order::Descending].map(|order| Device::CudaShim(order, Library::There))
}

fn name_of(devices: [Device; 2]) -> &'static str {
    if devices == cpu() { "cpu" } else { "gpu" }
}

#[test]
fn gaps_are_listed() {
    let mut failures = Vec::new();
    for (backend, kernels) in backends() {
        for &op in Op::ALL {
            let has = kernels.contains(op.name());
            if !has && !is_gap(backend, op) {
                failures.push(format!("{backend} has no kernel for {}: write it, or a row of GAPS", op.name()));
            }
            if has && is_gap(backend, op) {
                failures.push(format!("{backend} has a kernel for {}: remove its row of GAPS", op.name()));
            }
        }
        let ops: BTreeSet<&str> = Op::ALL.iter().map(|op| op.name()).collect();
        let unknown: Vec<_> = kernels.difference(&ops).collect();
        let part = "a part of one is listed in engine/src/gpu/each.rs";
        assert!(unknown.is_empty(), "{backend} has kernels for what is no op: {unknown:?}; {part}");
    }
    report(failures);
}

/// The sample with another storage of operand `arg` of its op.
fn stored_as(sample: &Sample, arg: usize, dtype: DType) -> Option<Sample> {
    let mut sample = sample.clone();
    let v = sample.graph.nodes.last()?.args[arg];
    if !u64::from(sample.graph.ty(v).cols()).is_multiple_of(dtype.block_elems()) {
        return None;
    }
    sample.graph.values[v.index()].ty.dtype = dtype;
    sample.name = format!("{} with operand {arg} in {}", sample.name, dtype.name());
    Some(sample)
}

/// The sample with operands computed by a node each, so that they die at the op and a result may take their place:
/// f32 ones by a product with 1, int8 ones by a sum with 0.
fn in_place(sample: &Sample) -> Sample {
    let mut sample = sample.clone();
    let mut node = sample.graph.nodes.pop().expect("a sample has a node");
    let changed = (node.op.def().mutates)(&node.attrs);
    for (i, arg) in node.args.iter_mut().enumerate() {
        if i >= changed && sample.graph.ty(*arg).dtype == DType::F32 {
            *arg = Builder::new(&mut sample.graph).push1("operand", Op::Scale, &[*arg], &[]);
        } else if i >= changed && sample.graph.ty(*arg).dtype == DType::I8 {
            let nothing = [("rb", Attr::Float(0.0))];
            *arg = Builder::new(&mut sample.graph).push1("operand", Op::I8Add, &[*arg, *arg], &nothing);
        }
    }
    sample.graph.nodes.push(node);
    sample.name = format!("{} in place", sample.name);
    sample
}

/// Contents as bytes by name, and as the numbers that these bytes mean.
fn contents(sample: &Sample) -> (Bytes, Vec<Tensor>) {
    let declared = sample.graph.values.iter().filter(|v| v.decl.is_some());
    let stored = declared.zip(sample.contents(11)).map(|(info, tensor)| {
        let (bytes, data) = store(info.ty.dtype, &tensor.data);
        ((info.name.clone(), bytes), Tensor { data, ..tensor })
    });
    stored.unzip()
}

/// What a result may be off by: `(relative, what counts as nothing)`.
fn tolerance(sample: &Sample) -> (f64, f64) {
    let node = sample.graph.nodes.last().expect("a sample has a node");
    // Both are exact: whole numbers, and f32 arithmetic in one order.
    if node.op.name().starts_with("i8_") {
        return (0.0, 1.0);
    }
    let longest = node.args.iter().map(|&v| sample.graph.ty(v)).flat_map(|t| [t.rows(), t.cols()]).max().unwrap_or(1);
    let is_bf16 = node.attrs.iter().any(|(name, value)| name == "compute" && value == Attr::Int(1));
    let rounds_weight = (node.op.def().mutates)(&node.attrs) > 0 && sample.graph.ty(node.args[0]).dtype == DType::BF16;
    let relative = if is_bf16 || rounds_weight { 8e-3 } else { 1e-5 };
    (relative, f64::from(longest).sqrt().max(1.0))
}

/// Why a run does not agree with the reference.
fn differs(sample: &Sample, found: &Bytes, wanted: &[(String, Vec<f64>)]) -> Option<String> {
    let (relative, floor) = tolerance(sample);
    for (name, wanted) in wanted {
        let Some(bytes) = found.get(name) else { return Some(format!("{}: `{name}` is not there", sample.name)) };
        let found = numbers(&sample.graph, name, bytes);
        let (difference, at) = largest_difference(&found, wanted, floor);
        if difference > relative || difference.is_nan() {
            let (found, wanted) = (found[at], wanted[at]);
            return Some(format!("{}: {name}[{at}] is {found}, must be {wanted} (off by {difference:e})", sample.name));
        }
    }
    None
}

/// What the reference gives for results and changed tensors, by name.
fn wanted(sample: &Sample, contents: &[Tensor]) -> Vec<(String, Vec<f64>)> {
    let memory = run_reference(&sample.graph, contents);
    let node = sample.graph.nodes.last().expect("a sample has a node");
    let changed = (node.op.def().mutates)(&node.attrs);
    // Codes of 8-bit states are defined by the kernel and tested there.
    let is_coded = |v: &&Value| {
        sample.graph.values.iter().any(|i| i.name == sample.graph.info(**v).name && i.decl == Some(Kind::State))
            && node.attrs.iter().any(|(n, a)| n == "states" && a == Attr::Int(4))
    };
    let changed = node.args[..changed].iter().filter(|v| !is_coded(v)).map(|&v| (sample.graph.info(v).name.clone(), v));
    let results = sample.graph.results.iter().cloned();
    results.chain(changed).map(|(name, v)| (name, memory.get(v).data.clone())).collect()
}

struct Run {
    plan: Plan,
    found: Bytes,
}

/// Plans and runs a sample, and says what is wrong with it.
fn check(sample: &Sample, devices: [Device; 2], failures: &mut Vec<String>) -> Option<Run> {
    let (bytes, tensors) = contents(sample);
    let wanted = wanted(sample, &tensors);
    let mut runs = Vec::new();
    for (device, poison) in devices.into_iter().zip([0xff, 0x7f]) {
        let plan = match compile_forward(&sample.graph, device) {
            Ok(plan) => plan,
            Err(CompileError::NoKernel { why, .. }) => {
                failures.push(format!("{}: no kernel: {why}", sample.name));
                return None;
            }
            Err(error) => panic!("{}: {error}", sample.name),
        };
        let Ok(found) = catch_unwind(AssertUnwindSafe(|| run_plan(&plan, &bytes, poison, device))) else {
            failures.push(format!("{}: the run panics", sample.name));
            return None;
        };
        failures.extend(differs(sample, &found, &wanted));
        runs.push(Run { plan, found });
    }
    if runs[0].found != runs[1].found {
        failures.push(format!("{}: two runs do not agree", sample.name));
    }
    runs.pop()
}

/// Whether the op's step has a result where one of its operands lies.
fn takes_a_place(plan: &Plan, op: Op) -> bool {
    let steps = plan.entry(ENTRY).into_iter().flat_map(|e| &e.steps).filter(|s| s.kernel == op.name());
    steps.flat_map(|s| s.outs.iter().map(move |o| (s, o))).any(|(s, o)| s.args.iter().any(|a| a.offset == o.offset))
}

/// Runs a sample apart and in place; both must give the same bytes.
fn check_both(sample: &Sample, devices: [Device; 2], failures: &mut Vec<String>) -> bool {
    let placed = in_place(sample);
    let (Some(apart), Some(inside)) = (check(sample, devices, failures), check(&placed, devices, failures)) else {
        return false;
    };
    let agree = apart.found.iter().all(|(name, bytes)| inside.found.get(name) == Some(bytes));
    if !agree {
        failures.push(format!("{} and apart do not agree", placed.name));
    }
    takes_a_place(&inside.plan, sample.op())
}

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn kernels_are_their_definitions() {
    check_definitions(cpu());
}

#[test]
fn wgpu_kernels_are_their_definitions() {
    if has_wgpu() {
        check_definitions(wgpu());
    }
}

#[test]
fn cuda_kernels_are_their_definitions() {
    if has_cuda_shim() {
        check_definitions(cuda_shim());
    }
}

/// Whether an op's factors may be rounded to bf16.
fn multiplies(op: Op) -> bool {
    op.def().attrs.iter().any(|a| a.name == "compute")
}

/// Whether its products are for a library.
fn is_a_librarys(op: Op) -> bool {
    multiplies(op) && !is_attention(op)
}

fn is_attention(op: Op) -> bool {
    matches!(op, Op::Attention | Op::AttentionGrad)
}

#[test]
fn wgpu_products_by_matrices_are_their_definitions() {
    if has_wgpu_cooperative() {
        check_definitions_of(wgpu_cooperative(), multiplies);
        check_storages(wgpu_cooperative());
        check_bf16(wgpu_cooperative(), multiplies);
    }
}

#[test]
fn cuda_products_by_a_library_are_their_definitions() {
    if has_cuda_shim() {
        check_definitions_of(cuda_by_library(), is_a_librarys);
    }
}

/// Ops to look at: those that `TINYFORGE_OPS` begins with, or all.
fn ops() -> impl Iterator<Item = Op> {
    let only = std::env::var("TINYFORGE_OPS").unwrap_or_default();
    Op::ALL.iter().copied().filter(move |op| only.is_empty() || only.split(',').any(|o| o == op.name()))
}

fn check_definitions(devices: [Device; 2]) {
    check_definitions_of(devices, |_| true);
}

fn check_definitions_of(devices: [Device; 2], wanted: impl Fn(Op) -> bool) {
    let (mut failures, mut count, started) = (Vec::new(), 0, std::time::Instant::now());
    for op in ops().filter(|&op| wanted(op) && !is_gap(name_of(devices), op)) {
        let before = failures.len();
        let mut placed = false;
        for sample in [samples(op), edges(op)].concat() {
            placed |= check_both(&sample, devices, &mut failures);
            count += 2;
        }
        let free = matches!(op, Op::Reshape);
        if !placed && !free && !op.def().in_place.is_empty() {
            failures.push(format!("{}: no sample ran in place, and its row says it can", op.name()));
        }
        // One op's faults are told by a few of them.
        failures.truncate(before + 4);
    }
    println!("{}: {count} samples against their definitions in {:.1?}", name_of(devices), started.elapsed());
    report(failures);
}

/// Ops that read an operand in other storage than f32, and which operand.
const STORED: &[(Op, usize)] = &[
    (Op::Linear, 1),
    (Op::LinearSub, 1),
    (Op::LinearAdd, 1),
    (Op::LinearGradX, 1),
    (Op::Embedding, 0),
    (Op::LinearCrossEntropy, 1),
    (Op::LinearCrossEntropyGrad, 1),
    (Op::EmbeddingPart, 0),
    (Op::LinearPart, 1),
    (Op::LinearCrossEntropySums, 1),
    (Op::LinearCrossEntropyGradH, 1),
];

const STORAGES: [DType; 10] = [
    DType::BF16,
    DType::F16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

#[test]
fn kernels_read_every_storage() {
    check_storages(cpu());
}

#[test]
fn wgpu_kernels_read_every_storage() {
    if has_wgpu() {
        check_storages(wgpu());
    }
}

#[test]
fn cuda_kernels_read_every_storage() {
    if has_cuda_shim() {
        check_storages(cuda_shim());
        check_storages(cuda_by_library());
    }
}

fn check_storages(devices: [Device; 2]) {
    let (mut failures, mut count, started) = (Vec::new(), 0, std::time::Instant::now());
    for &(op, arg) in STORED {
        let before = failures.len();
        for dtype in STORAGES {
            let sizes = [size(1, 3, 256, 5), size(2, 17, 512, 33)];
            let all: Vec<Sample> = sizes.iter().flat_map(|&z| family(op, z)).collect();
            let stored: Vec<Sample> = all.iter().filter_map(|s| stored_as(s, arg, dtype)).collect();
            assert!(!stored.is_empty(), "no sample of {} suits {}", op.name(), dtype.name());
            count += stored.len();
            stored.iter().for_each(|sample| {
                check(sample, devices, &mut failures);
            });
        }
        failures.truncate(before + 6);
    }
    let name = name_of(devices);
    println!("{name}: {count} samples in {} storage types in {:.1?}", STORAGES.len(), started.elapsed());
    report(failures);
}

#[test]
fn bf16_products_are_near() {
    check_bf16(cpu(), multiplies);
}

#[test]
fn wgpu_bf16_products_are_near() {
    if has_wgpu() {
        check_bf16(wgpu(), multiplies);
    }
}

#[test]
fn cuda_bf16_products_are_near() {
    if has_cuda_shim() {
        check_bf16(cuda_shim(), multiplies);
        check_bf16(cuda_by_library(), is_a_librarys);
    }
}

fn check_bf16(devices: [Device; 2], wanted: fn(Op) -> bool) {
    let mut failures = Vec::new();
    for op in ops().filter(|&op| wanted(op)) {
        let before = failures.len();
        // Adam's first step is the gradient's sign, which rounding may turn where the gradient is near 0.
        let is_adam = |s: &Sample| {
            s.graph.nodes.last().is_some_and(|n| n.attrs.iter().any(|(name, a)| name == "rule" && a != Attr::Int(0)))
        };
        for sample in [samples(op), edges(op)].concat().into_iter().filter(|s| !is_adam(s)) {
            for dtype in [DType::F32, DType::BF16] {
                let arg = STORED.iter().find(|(o, _)| *o == op).map(|(_, arg)| *arg);
                let mut sample = match (dtype, arg) {
                    (DType::F32, _) => sample.clone(),
                    (_, Some(arg)) => stored_as(&sample, arg, dtype).expect("bf16 has no blocks"),
                    (_, None) => continue,
                };
                in_bf16(&mut sample);
                check(&sample, devices, &mut failures);
            }
        }
        failures.truncate(before + 4);
    }
    report(failures);
}

fn in_bf16(sample: &mut Sample) {
    sample.graph.nodes.last_mut().expect("a sample has a node").attrs.set("compute", Attr::Int(1));
    sample.name = format!("{} in bf16", sample.name);
}

/// Sizes around the tiles of products in matrix units, of one chunk of steps and of two; and heads around those of
/// attention, whose tokens the edges have.
#[test]
fn cuda_bf16_products_are_near_at_the_ends_of_tiles() {
    if !has_cuda_shim() {
        return;
    }
    let products = [size(1, 127, 31, 63), size(1, 128, 32, 64), size(2, 129, 33, 65), size(1, 3, 520, 2)];
    let heads = [size(1, 63, 65, 1), size(1, 35, 136, 1), size(1, 33, 256, 1)];
    let mut failures = Vec::new();
    for op in [Op::Linear, Op::LinearGradX, Op::LinearGradW, Op::Attention, Op::AttentionGrad] {
        let sizes = if is_attention(op) { &heads[..] } else { &products };
        for mut sample in sizes.iter().flat_map(|&z| family(op, z).into_iter().take(2)) {
            in_bf16(&mut sample);
            check(&sample, cuda_shim(), &mut failures);
        }
    }
    report(failures);
}

/// Every op that multiplies has kernels in matrix units where its factors may be bf16, and only there.
#[test]
fn bf16_products_are_launched_in_matrix_units() {
    // An update has the attribute for the product that may be fused with it.
    for op in Op::ALL.iter().copied().filter(|&op| multiplies(op) && op != Op::Update) {
        for compute in [0, 1] {
            let mut sample = samples(op).remove(0);
            if compute == 1 {
                in_bf16(&mut sample);
            }
            let plan = compile_forward(&sample.graph, cuda_shim()[0]).expect("it has the kernel");
            let steps = plan.entry(ENTRY).into_iter().flat_map(|e| &e.steps).filter(|s| s.kernel == op.name());
            let launches: Vec<_> = steps.flat_map(|s| work(s).expect("a row").launches).collect();
            assert_eq!(launches.iter().any(|l| l.in_units.is_some()), compute == 1, "{}: {launches:?}", sample.name);
            for launch in launches {
                let (kernel, _) = launch.on(true);
                let text = cuda::text(kernel.stem).expect("a family");
                assert!(cuda::kernels(&text).any(|(name, _)| name == kernel.entry), "{kernel:?}");
                assert_eq!(launch.on(false).0, launch.kernel);
            }
        }
    }
}

/// A token's row of a product has the same bytes whatever other tokens there are.
#[test]
fn cuda_bf16_rows_do_not_depend_on_one_another() {
    if !has_cuda_shim() {
        return;
    }
    for op in [Op::Linear, Op::LinearGradX] {
        for dtype in [DType::F32, DType::Q8_0] {
            let of = |tokens: u32| {
                let sample = family(op, size(1, tokens, 96, 160)).remove(0);
                let mut sample = stored_as(&sample, 1, dtype).expect("both widths are blocks");
                in_bf16(&mut sample);
                sample
            };
            let outs = |sample: &Sample, bytes: &Bytes, device: Device| {
                let plan = compile_forward(&sample.graph, device).expect("it has the kernel");
                run_plan(&plan, bytes, 0xff, device).remove("out").expect("the op's result")
            };
            let (bytes, _) = contents(&of(130));
            let all = outs(&of(130), &bytes, cuda_shim()[0]);
            for tokens in [1, 17, 128] {
                let few = of(tokens);
                let cut = |(name, bytes): (&String, &Vec<u8>)| {
                    let v = few.graph.values.iter().find(|v| v.name == *name).expect("both have the same operands");
                    (name.clone(), bytes[..v.ty.bytes() as usize].to_vec())
                };
                let found = outs(&few, &bytes.iter().map(cut).collect(), cuda_shim()[1]);
                assert_eq!(found[..], all[..found.len()], "{tokens} tokens of {}", few.name);
            }
        }
    }
}

#[test]
fn updates_store_bf16() {
    check_bf16_updates(cpu());
}

#[test]
fn wgpu_updates_store_bf16() {
    if has_wgpu() {
        check_bf16_updates(wgpu());
    }
}

#[test]
fn cuda_updates_store_bf16() {
    if has_cuda_shim() {
        check_bf16_updates(cuda_shim());
    }
}

fn check_bf16_updates(devices: [Device; 2]) {
    let mut failures = Vec::new();
    for op in [Op::Update, Op::LinearGradWUpdate] {
        for sample in [samples(op), edges(op)].concat() {
            let sample = stored_as(&sample, 0, DType::BF16).expect("bf16 has no blocks");
            check(&sample, devices, &mut failures);
        }
    }
    failures.truncate(8);
    report(failures);
}

/// Where the arithmetic before it is exact, stochastic rounding gives the CPU's bytes: the random numbers are the same.
#[test]
fn wgpu_rounds_with_the_cpus_random_numbers() {
    if !has_wgpu() {
        return;
    }
    let plain = |s: &Sample| {
        let attrs = &s.graph.nodes.last().expect("a sample has a node").attrs;
        attrs.iter().any(|a| a == ("rule", Attr::Int(0))) && attrs.iter().any(|a| a == ("states", Attr::Int(0)))
    };
    let mut count = 0;
    for sample in [size(1, 1, 1, 1), size(2, 17, 33, 64)].iter().flat_map(|&z| family(Op::Update, z)).filter(plain) {
        let mut sample = stored_as(&sample, 0, DType::BF16).expect("bf16 has no blocks");
        let node = sample.graph.nodes.last_mut().expect("a sample has a node");
        node.attrs.set("weight_decay", Attr::Float(0.0));
        let (bytes, _) = contents(&sample);
        let [cpu, gpu] = [Device::Cpu(1), Device::Wgpu].map(|device| {
            let plan = compile_forward(&sample.graph, device).expect("both have the kernel");
            run_plan(&plan, &bytes, 0xff, device)
        });
        assert!(cpu == gpu, "{}", sample.name);
        count += 1;
    }
    assert!(count > 0, "no sample has exact arithmetic");
}

/// The source of a plan's tensors plays no part here, and none is read from a file.
#[test]
fn plans_of_samples_read_no_files() {
    let plan = compile_forward(&samples(Op::Linear)[0].graph, Device::Cpu(1)).expect("the CPU has linear layers");
    assert!(plan.stored.iter().all(|s| s.source == Source::Zero) && plan.files.is_empty());
}
