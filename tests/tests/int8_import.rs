//! Imported int8 models on the CPU device: loaded from their files as the plan names the weights, run as the
//! reference interpreter runs them, bit for bit, as LiteRT runs them where they come from TFLite files, and taught.

#[path = "../../compiler/tests/mcu_file/mod.rs"]
mod mcu_file;
#[expect(dead_code, reason = "shared with the importer's own tests, which use more of it")]
#[path = "../../compiler/tests/tflite_file/mod.rs"]
mod tflite_file;

use std::path::PathBuf;
use tinyforge::cpu::CpuKernels;
use tinyforge::files::ReadAt;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::compile::{Compiled, Entry, Request, Role, compile};
use tinyforge_compiler::import::int8::{self, Int8Model};
use tinyforge_compiler::import::safetensors::{Header, parse_header};
use tinyforge_compiler::import::{mcu, tflite};
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::{Scheme, SchemeKind};
use tinyforge_plan::Plan;
use tinyforge_tests::random::Random;

/// A file in the temporary folder that goes with its value.
struct File(PathBuf);

impl File {
    fn of(bytes: &[u8], name: &str) -> File {
        let path = std::env::temp_dir().join(format!("tinyforge-int8-import-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("the temporary folder takes a file");
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // A file that is left in the temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn plan(model: &Int8Model, entries: Vec<Entry>, scheme: Scheme) -> Plan {
    let request = Request {
        scheme,
        optimizer: Optimizer { rule: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: None },
        source: &|name| model.source(name, true).unwrap_or_else(|| panic!("the model has no `{name}`")),
        files: model.files.clone(),
        ..Request::plain("imported", entries, &CpuKernels { threads: 1 })
    };
    let Compiled { plan, .. } = compile(&request).expect("the model compiles");
    assert_eq!(tinyforge_plan::check::check(&plan), Vec::<String>::new());
    plan
}

fn forward(model: &Int8Model, entry: int8::Entry, batch: u32) -> Entry {
    Entry { name: "infer".to_string(), graph: model.graph(entry, batch).expect("a graph"), role: Role::Forward }
}

/// The device's results are the reference's.
fn same_as_reference(model: &Int8Model, bytes: &[u8], name: &str) {
    const BATCH: u32 = 3;
    let file = File::of(bytes, name);
    let graph = model.graph(int8::Entry::Whole, BATCH).expect("a graph");
    let plan = plan(model, vec![forward(model, int8::Entry::Whole, BATCH)], Scheme::frozen());
    let mut runner = Runner::new(plan, RunOptions::default()).expect("a compiled plan runs");
    runner.load(&[ReadAt::open(&file.0).expect("it was written")], 1).expect("the file holds the weights");
    let mut random = Random::new(9);
    let images: Vec<i8> = runner.input::<i8>(0, "images").iter().map(|_| random.below(256) as u8 as i8).collect();
    runner.input::<i8>(0, "images").copy_from_slice(&images);
    runner.run(0).expect("the data is right");
    let memory = Memory::run(&graph, |v| match graph.info(v).decl {
        Some(Kind::Input) => {
            let data = images.iter().map(|&x| f64::from(x)).collect();
            Tensor { data, ..Tensor::zeros(graph.ty(v)) }
        }
        _ => model.contents(&graph, v, bytes, 1).expect("a stored tensor has a source"),
    });
    let expected = memory.get(graph.result("output").expect("a result"));
    let found: Vec<f64> = runner.result::<i8>(0, "output").iter().map(|&y| f64::from(y)).collect();
    assert_eq!(found, expected.data, "{name}");
    assert!(found.iter().any(|&y| y != found[0]), "{name} gives one number only");
}

#[test]
fn imported_models_run_as_in_the_reference() {
    let models = [
        ("small", tflite_file::small()),
        ("everything", tflite_file::everything()),
        ("residual", tflite_file::residual()),
        ("ties", tflite_file::ties()),
    ];
    for (name, model) in models {
        let bytes = model.bytes();
        same_as_reference(&tflite::import(&bytes, name).expect("a model"), &bytes, name);
    }
    let (json, weights) = mcu_file::tiny();
    same_as_reference(&mcu::import(json.as_bytes(), &weights, "tiny").expect("a network"), &weights, "tiny");
}

/// What LiteRT's default kernels give, written by `tests/peers/check_tflite.py`: for the tests' own models every image
/// of the network, in the importer's order; for the published ones logits; for the keyword samples results.
struct LiteRt {
    bytes: Vec<u8>,
    header: Header,
}

impl LiteRt {
    fn read() -> LiteRt {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/litert/litert.safetensors");
        let bytes = std::fs::read(path).expect("a fixture is there");
        let header = parse_header(&bytes, bytes.len() as u64).expect("a safetensors file");
        LiteRt { bytes, header }
    }

    /// The rows of a tensor.
    fn rows(&self, name: &str) -> Vec<Vec<i8>> {
        let tensor = self.header.tensors.iter().find(|t| t.name == name).expect("the fixture has it");
        let (start, cols) = (tensor.offset as usize, tensor.shape[1] as usize);
        let data = &self.bytes[start..start + tensor.shape[0] as usize * cols];
        data.chunks(cols).map(|row| row.iter().map(|&b| b as i8).collect()).collect()
    }
}

/// Row `seed` of the fixture's inputs: steps of -12..12 inside int8.
fn walk(seed: u32, elems: usize) -> Vec<i8> {
    let draw = |i: usize| tflite_file::mixed(seed.wrapping_mul(1_000_003).wrapping_add(i as u32));
    let mut at = (draw(0) % 256) as i32 - 128;
    let mut step = |i: usize| {
        at = (at + (draw(i) % 25) as i32 - 12).clamp(-128, 127);
        at as i8
    };
    (1..=elems).map(&mut step).collect()
}

/// Every row of `inputs` through the device.
fn device(model: &Int8Model, bytes: &[u8], name: &str, entry: int8::Entry, inputs: &[Vec<i8>]) -> Vec<Vec<i8>> {
    let file = File::of(bytes, name);
    let plan = plan(model, vec![forward(model, entry, 1)], Scheme::frozen());
    let mut runner = Runner::new(plan, RunOptions::default()).expect("a compiled plan runs");
    runner.load(&[ReadAt::open(&file.0).expect("it was written")], 1).expect("the file holds the weights");
    let result = if entry == int8::Entry::Whole { "output" } else { "logits" };
    let run = |input: &Vec<i8>| {
        runner.input::<i8>(0, "images").copy_from_slice(input);
        runner.run(0).expect("the data is right");
        runner.result::<i8>(0, result).to_vec()
    };
    inputs.iter().map(run).collect()
}

/// How many numbers differ, and by how much at most.
fn difference(found: &[i8], expected: &[i8]) -> (usize, i32) {
    assert_eq!(found.len(), expected.len());
    let steps = found.iter().zip(expected).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs());
    (steps.clone().filter(|&d| d > 0).count(), steps.max().unwrap_or(0))
}

/// The tests' own models: scales as of calibrated models, every operator, numbers on ties.
fn own_models() -> [(&'static str, Vec<u8>); 3] {
    [
        ("residual", tflite_file::residual().bytes()),
        ("everything", tflite_file::everything().bytes()),
        ("ties", tflite_file::ties().bytes()),
    ]
}

/// Every layer, given LiteRT's images.
#[test]
fn layers_give_what_litert_gives() {
    let litert = LiteRt::read();
    for (name, bytes) in own_models() {
        let model = tflite::import(&bytes, name).expect("a model");
        for (seed, images) in litert.rows(name).iter().enumerate() {
            let elems = model.input().elems() as usize;
            assert_eq!(images[..elems], walk(seed as u32, elems), "{name} has another input");
            let found = model.layerwise(&bytes, images).expect("all images are given");
            assert_eq!(difference(&found, images), (0, 0), "{name}");
        }
    }
}

/// The whole network on the device, from the input alone.
#[test]
fn results_are_what_litert_gives() {
    let litert = LiteRt::read();
    for (name, bytes) in own_models() {
        let model = tflite::import(&bytes, name).expect("a model");
        let (elems, results) = (model.input().elems() as usize, model.result().elems() as usize);
        let images = litert.rows(name);
        let inputs: Vec<Vec<i8>> = images.iter().map(|row| row[..elems].to_vec()).collect();
        let found = device(&model, &bytes, name, int8::Entry::Whole, &inputs);
        for (found, row) in found.iter().zip(&images) {
            assert_eq!(found[..], row[row.len() - results..], "{name}");
        }
    }
}

/// A folder of published models or data, where it is at hand.
fn assets(folder: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets");
    let root = std::env::var_os("TINYFORGE_ASSETS").map_or(PathBuf::from(beside), PathBuf::from);
    let path = root.join(folder);
    if !path.is_dir() {
        println!("skipped: no {} (set TINYFORGE_ASSETS)", path.display());
        return None;
    }
    Some(path)
}

/// The published models' logits over walks, where the models are at hand.
#[test]
fn published_models_give_what_litert_gives() {
    let (Some(folder), litert) = (assets("tflite"), LiteRt::read()) else { return };
    for name in ["kws_ref_model", "pretrainedResnet_quant", "person_detect", "ad01_int8", "sine", "speech"] {
        let bytes = std::fs::read(folder.join(format!("{name}.tflite"))).expect("a file");
        let model = tflite::import(&bytes, name).expect("a model");
        let expected = litert.rows(name);
        let input = |seed: usize| walk(seed as u32, model.input().elems() as usize);
        let inputs: Vec<Vec<i8>> = (0..expected.len()).map(input).collect();
        assert_eq!(device(&model, &bytes, name, int8::Entry::Infer, &inputs), expected, "{name}");
    }
}

/// A thousand keywords: all results LiteRT's, of which 902 are right.
#[test]
fn keywords() {
    let Some(folder) = assets("kws01-mfcc") else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file");
    let (features, labels) = (read("kws01_mfcc_int8_1000x49x10.bin"), read("kws01_labels_u8.bin"));
    let bytes = read("../tflite/kws_ref_model.tflite");
    let model = tflite::import(&bytes, "keywords").expect("a model");
    let inputs: Vec<Vec<i8>> = features.chunks(490).map(|x| x.iter().map(|&b| b as i8).collect()).collect();
    let found = device(&model, &bytes, "keywords", int8::Entry::Whole, &inputs);
    assert_eq!(found, LiteRt::read().rows("keywords"));
    // The first of the largest.
    let named = |row: &[i8]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let right = found.iter().zip(&labels).filter(|(row, label)| named(row) == usize::from(**label)).count();
    assert_eq!(right, 902);
}

/// Images of three kinds: noise around a pattern of each.
fn batch(random: &mut Random, images: &mut [i8], labels: &mut [i32]) {
    let elems = images.len() / labels.len();
    for (image, label) in images.chunks_exact_mut(elems).zip(labels) {
        *label = random.below(3) as i32;
        for (i, x) in image.iter_mut().enumerate() {
            let wave = (i as i32 * (*label + 1) / 7 % 5 - 2) * 25;
            *x = (wave + random.below(60) as i32 - 30) as i8;
        }
    }
}

/// A new head, drawn from the run's seed, and the biases learn three kinds of images.
#[test]
fn a_new_head_learns() {
    const BATCH: u32 = 4;
    let bytes = tflite_file::everything().bytes();
    let model = tflite::import(&bytes, "m").expect("a model").with_classes(3).expect("a head");
    let file = File::of(&bytes, "learns");
    let graph = model.graph(int8::Entry::Train, BATCH).expect("a graph");
    let train = Entry { name: "train".to_string(), graph, role: Role::Train { micro_batches: 1 } };
    let scheme = Scheme { kind: SchemeKind::Bias(None), head: true, embed: false };
    let plan = plan(&model, vec![train], scheme);
    let mut runner = Runner::new(plan, RunOptions::default()).expect("a compiled plan runs");
    runner.load(&[ReadAt::open(&file.0).expect("it was written")], 3).expect("the file holds the weights");
    let (_, head) = runner.stored("head.weight").expect("it is stored");
    let head: Vec<i8> = head.iter().map(|&b| b as i8).collect();
    assert!(head.iter().any(|w| w.abs() > 90) && head.iter().all(|&w| w != i8::MIN), "{head:?} is not spread");
    let mut random = Random::new(4);
    let mut losses = Vec::new();
    for step in 0..1000 {
        let (mut images, mut labels) = (vec![0; runner.input::<i8>(0, "images").len()], vec![0; BATCH as usize]);
        batch(&mut random, &mut images, &mut labels);
        runner.input::<i8>(0, "images").copy_from_slice(&images);
        runner.input::<i32>(0, "labels").copy_from_slice(&labels);
        runner.input::<f32>(0, "loss_weights").fill(1.0 / BATCH as f32);
        runner.input::<f32>(0, "hyper").copy_from_slice(&[0.02, 0.02, 0.0, 0.0]);
        runner.input::<u32>(0, "rng").copy_from_slice(&[3, 0, step, 0]);
        runner.run(0).expect("the data is right");
        losses.push(runner.result::<f32>(0, "loss").iter().sum::<f32>());
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let (first, last) = (mean(&losses[..50]), mean(&losses[950..]));
    assert!(last < 0.6 * first, "the loss went from {first} to {last}");
}
