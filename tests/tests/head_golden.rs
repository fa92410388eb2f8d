//! Six steps of a linear head that were computed apart from this project, in float32: 160 features to 2 classes,
//! softmax cross-entropy, plain descent at a rate of 0.1, one sample a step.
//!
//! The logits there are real numbers, so their gradient is `softmax - onehot` with no scale before it; that of int8
//! logits has one more factor, the logits' scale. The files are not part of the project: `TINYFORGE_ASSETS` names the
//! folder of `goldens/vww_training_golden.npz`; the test is skipped without it, and says so.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use tinyforge::cpu::CpuKernels;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::compile::{Entry, Request, Role, compile};
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::passes::differentiate;
use tinyforge_plan::Source;

const FEATURES: u32 = 160;
const CLASSES: u32 = 2;
const LR: f32 = 0.1;
/// The samples in the order of the steps, with their labels.
const STEPS: [(&str, i32); 6] =
    [("noperson1", 0), ("noperson2", 0), ("noperson3", 0), ("person1", 1), ("person2", 1), ("person3", 1)];

/// The f32 arrays of an .npz file: a zip of .npy files.
fn arrays(zip: &[u8]) -> HashMap<String, Vec<f32>> {
    let word = |at: usize, len: usize| zip[at..at + len].iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
    let end = zip.windows(4).rposition(|w| w == b"PK\x05\x06").expect("a zip ends in its directory");
    let (count, mut at) = (word(end + 10, 2), word(end + 16, 4));
    let mut found = HashMap::new();
    for _ in 0..count {
        let (packed, name_len) = (word(at + 20, 4), word(at + 28, 2));
        let name = String::from_utf8_lossy(&zip[at + 46..at + 46 + name_len]).into_owned();
        let local = word(at + 42, 4);
        let start = local + 30 + word(local + 26, 2) + word(local + 28, 2);
        let mut bytes = Vec::new();
        match word(at + 10, 2) {
            0 => bytes.extend(&zip[start..start + packed]),
            _ => {
                let mut decoder = flate2::read::DeflateDecoder::new(&zip[start..start + packed]);
                decoder.read_to_end(&mut bytes).expect("the golden file is whole");
            }
        }
        let header = 10 + usize::from(bytes[8]) + 256 * usize::from(bytes[9]);
        if String::from_utf8_lossy(&bytes[..header]).contains("<f4") {
            let numbers = bytes[header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            found.insert(name.trim_end_matches(".npy").to_string(), numbers.collect());
        }
        at += 46 + name_len + word(at + 30, 2) + word(at + 32, 2);
    }
    found
}

/// The head over a sample, with one result: `logits`, `softmax` or `loss`.
fn head(result: &str) -> Graph {
    let mut graph = Graph::new(1);
    let block = graph.block("layers.0");
    let mut b = Builder::new(&mut graph);
    b.at(block, Region::Forward);
    let x = b.declare(Kind::Input, "x", Type::f32(&[1, FEATURES]));
    let w = b.declare(Kind::Weight, "head.weight", Type::f32(&[CLASSES, FEATURES]));
    let bias = b.declare(Kind::Weight, "head.bias", Type::f32(&[CLASSES]));
    let logits = b.push1("logits", Op::Linear, &[x, w, bias], &[]);
    let value = match result {
        "loss" => {
            let labels = b.declare(Kind::Input, "labels", Type::i32(&[1]));
            let weights = b.declare(Kind::Input, "loss_weights", Type::f32(&[1]));
            b.push1("loss", Op::CrossEntropy, &[logits, labels, weights], &[])
        }
        "softmax" => b.push1("softmax", Op::Softmax, &[logits], &[]),
        _ => logits,
    };
    graph.results.push((result.to_string(), value));
    graph
}

/// The compiled head with its weights.
fn runner(golden: &HashMap<String, Vec<f32>>) -> Runner {
    let entry = |name: &str, role| Entry { name: name.to_string(), graph: head(name), role };
    let request = Request {
        source: &|name| Source::Table(golden[if name == "head.weight" { "new_w" } else { "new_b" }].clone()),
        ..Request::plain(
            "head",
            vec![
                entry("loss", Role::Train { micro_batches: 1 }),
                entry("logits", Role::Forward),
                entry("softmax", Role::Forward),
            ],
            &CpuKernels { threads: 1 },
        )
    };
    let plan = compile(&request).unwrap_or_else(|e| panic!("{e}")).plan;
    let mut runner = Runner::new(plan, RunOptions::default()).expect("a compiled plan runs");
    runner.load(&[], 0).expect("tables need no file");
    runner
}

/// The gradient of the weight by the reference interpreter.
fn gradient(x: &[f32], label: i32, w: &[f32], b: &[f32]) -> Vec<f32> {
    let mut graph = head("loss");
    differentiate::run(&mut graph).expect("all rows have gradients");
    let numbers = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
    let memory = Memory::run(&graph, |v| {
        let info = graph.info(v);
        let data = match info.name.as_str() {
            "x" => numbers(x),
            "head.weight" => numbers(w),
            "head.bias" => numbers(b),
            "labels" => vec![f64::from(label)],
            _ => vec![1.0],
        };
        Tensor { data, ..Tensor::zeros(&info.ty) }
    });
    let grad = graph.result("grad:head.weight").expect("the loss depends on it");
    memory.get(grad).data.iter().map(|&g| g as f32).collect()
}

fn assert_near(what: &str, found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        // Sums of 160 products in f32, each in an order of its own.
        assert!((found - wanted).abs() <= 2e-6 * wanted.abs().max(1.0), "{what}[{i}] is {found}, must be {wanted}");
    }
}

#[test]
fn six_steps_of_a_head() {
    let named = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets"));
    let path = named.unwrap_or(beside).join("goldens/vww_training_golden.npz");
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let golden = arrays(&bytes);
    let mut runner = runner(&golden);
    let [train, logits, softmax] = ["loss", "logits", "softmax"].map(|name| runner.entry(name).expect("it is planned"));
    let stored = |runner: &Runner, name: &str| -> Vec<f32> {
        bytemuck::cast_slice(runner.stored(name).expect("it is stored").1).to_vec()
    };
    for (step, (sample, label)) in STEPS.into_iter().enumerate() {
        let of = |what: &str| &golden[&format!("{what}_mcunetv3_assets_vww_{sample}_jpg")];
        let x = of("feat");
        for (entry, name, golden) in [(logits, "logits", "out"), (softmax, "softmax", "softmax")] {
            runner.input::<f32>(entry, "x").copy_from_slice(x);
            runner.run(entry).expect("the data is right");
            assert_near(&format!("{sample}: {name}"), runner.result::<f32>(entry, name), of(golden));
        }
        let (w, b) = (stored(&runner, "head.weight"), stored(&runner, "head.bias"));
        assert_near(&format!("{sample}: gradient"), &gradient(x, label, &w, &b), of("dw"));
        runner.input::<f32>(train, "x").copy_from_slice(x);
        runner.input::<i32>(train, "labels").copy_from_slice(&[label]);
        runner.input::<f32>(train, "loss_weights").copy_from_slice(&[1.0]);
        runner.input::<f32>(train, "hyper").copy_from_slice(&[LR, 1.0, 1.0, 0.0]);
        runner.input::<u32>(train, "rng").copy_from_slice(&[0, 0, step as u32, 0]);
        runner.run(train).expect("the data is right");
        let loss = runner.result::<f32>(train, "loss")[0];
        assert_near(&format!("{sample}: loss"), &[loss], &[-of("softmax")[label as usize].ln()]);
        assert_near(&format!("{sample}: weight"), &stored(&runner, "head.weight"), of("new_w"));
        assert_near(&format!("{sample}: bias"), &stored(&runner, "head.bias"), of("new_b"));
    }
}
