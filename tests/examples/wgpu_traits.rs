//! What traits of an adapter are worth: sums of rows by subgroups and by barriers, dense products by cooperative
//! matrices and without, and a stored tensor written in place and by copies. Prints the least time of many, both ways
//! in turn.

use std::time::Instant;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_plan::Plan;
use tinyforge_tests::device::{Device, ENTRY, compile_forward, has_wgpu, has_wgpu_cooperative};
use tinyforge_tests::samples::{Size, family, size};

/// Runs of each kind.
const RUNS: usize = 25;
/// Floats of the tensor that is written.
const ELEMS: u32 = 16 << 20;

const REDUCTIONS: [Op; 9] = [
    Op::RmsNorm,
    Op::RmsNormGradX,
    Op::LayerNorm,
    Op::Softmax,
    Op::CrossEntropy,
    Op::CrossEntropyGrad,
    Op::NormSq,
    Op::BatchNorm,
    Op::BatchNormGrad,
];

const PRODUCTS: [Op; 3] = [Op::Linear, Op::LinearGradX, Op::LinearGradW];

const TRAITS: [Device; 2] = [Device::Wgpu, Device::WgpuPlain];
const MATRICES: [Device; 2] = [Device::WgpuCooperative, Device::Wgpu];

/// A plan with and without the traits, all its tensors zero.
fn runners(plan: &Plan, devices: [Device; 2]) -> [Runner; 2] {
    devices.map(|device| {
        let (device, without) = (device.choice(), device.without());
        let options = RunOptions { device, without, count_times: true, ..RunOptions::default() };
        let mut runner = Runner::new(plan.clone(), options).expect("a compiled plan runs");
        for stored in &plan.stored {
            runner.change(&stored.tensor, |bytes| bytes.fill(0)).expect("the device is there");
        }
        runner
    })
}

/// The least of what `run` says, in milliseconds, for both in turn.
fn in_turn(runners: &mut [Runner; 2], mut run: impl FnMut(&mut Runner) -> f64) -> [f64; 2] {
    let mut least = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        runners.iter_mut().zip(&mut least).for_each(|(runner, least)| *least = least.min(run(runner)));
    }
    least
}

fn print(what: &str, [with, without]: [f64; 2]) {
    println!("{what:<70} {with:>8.3} ms, without the trait {without:>8.3}");
}

fn time_op(op: Op, z: Size, devices: [Device; 2]) {
    let sample = family(op, z).into_iter().next().expect("every op has samples");
    let plan = compile_forward(&sample.graph, Device::Wgpu).expect("the device has the op");
    let of_op = |runner: &Runner| -> u64 {
        runner.times().filter(|(step, ..)| step.kernel == op.name()).map(|(_, ns, _)| ns).sum()
    };
    let times = in_turn(&mut runners(&plan, devices), |runner| {
        let before = of_op(runner);
        let entry = runner.entry(ENTRY).expect("the plan has the entry");
        runner.run(entry).expect("runs");
        (of_op(runner) - before) as f64 / 1e6
    });
    let shape = sample.name.split(" {").next().unwrap_or_default();
    print(shape, times);
}

fn main() {
    if !has_wgpu() {
        return;
    }
    let ops = REDUCTIONS.map(|op| (op, TRAITS)).into_iter();
    let products = PRODUCTS.map(|op| (op, MATRICES)).into_iter().filter(|_| has_wgpu_cooperative());
    for (op, devices) in products.chain(ops) {
        for z in [size(2, 64, 64, 64), size(2, 64, 512, 512)] {
            time_op(op, z, devices);
        }
    }
    time_writing();
}

fn time_writing() {
    let mut graph = Graph::new(1);
    let block = graph.block("layers.0");
    let written = graph.declare(Kind::Weight, "written", Type::f32(&[ELEMS]));
    let mut b = Builder::new(&mut graph);
    b.at(block, Region::Forward);
    let norm = b.push1("norm", Op::NormSq, &[written], &[]);
    graph.results.push(("norm".to_string(), norm));
    let plan = compile_forward(&graph, Device::Wgpu).expect("the device has the op");
    let written = plan.find("written").expect("it is stored").tensor.clone();
    let times = in_turn(&mut runners(&plan, TRAITS), |runner| {
        let started = Instant::now();
        runner.change(&written, |bytes| bytes.fill(1)).expect("the device is there");
        started.elapsed().as_secs_f64() * 1e3
    });
    print(&format!("{} MiB written", ELEMS >> 18), times);
}
