//! What the tests of whole models share: fixtures, their tensors, and plans made ready to run.
#![allow(dead_code, reason = "every test uses its part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_cli::model::{Model, open_safetensors, read_f32};
use tinyforge_cli::planning::{self, Settings, Wanted};
use tinyforge_compiler::compile::Recompute;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::DType;

/// The models with fixtures.
pub const MODELS: [&str; 6] = ["llama", "llama-rope3-tied", "mistral", "qwen2", "qwen3", "gpt2"];

pub fn fixtures() -> PathBuf {
    workspace().join("tests/fixtures")
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of real models and data, where there is one.
pub fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os("TINYFORGE_ASSETS").map_or(workspace().join("../shared/assets"), PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// Tensors of a safetensors file, as f32.
pub struct Tensors {
    pub shapes: HashMap<String, Vec<usize>>,
    pub floats: HashMap<String, Vec<f32>>,
    pub ints: HashMap<String, Vec<i32>>,
}

pub fn read(path: &Path) -> Tensors {
    let (catalog, files) = open_safetensors(&[path.to_path_buf()]).expect("fixture");
    let mut out = Tensors { shapes: HashMap::new(), floats: HashMap::new(), ints: HashMap::new() };
    for t in catalog.iter() {
        out.shapes.insert(t.name.clone(), t.shape.iter().map(|&d| d as usize).collect());
        if t.dtype == DType::I32 {
            let mut bytes = vec![0; t.bytes as usize];
            files[0].read(t.offset, &mut bytes).expect("fixture");
            let ints = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four bytes")));
            out.ints.insert(t.name.clone(), ints.collect());
        } else {
            out.floats.insert(t.name.clone(), read_f32(&files[0], t).expect("fixture"));
        }
    }
    out
}

/// One packed row of `seq` tokens, a cache of as many.
pub fn row_settings(scheme: Scheme, seq: u32) -> Settings {
    Settings {
        scheme,
        group: 0,
        batch: 1,
        micro_batch: None,
        seq,
        context: seq,
        dtype: DType::F32,
        optimizer: Optimizer { rule: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: None },
        recompute: Recompute::Auto,
        clip_by: None,
        memory: None,
        threads: 1,
    }
}

/// The batch of a fixture's reference.
pub fn settings(reference: &Tensors, scheme: Scheme) -> Settings {
    let shape = &reference.shapes["input_ids"];
    Settings { batch: shape[0] as u32, ..row_settings(scheme, shape[1] as u32) }
}

pub fn fill(runner: &mut Runner, entry: usize, reference: &Tensors) {
    let ints =
        [("tokens", "input_ids"), ("positions", "position_ids"), ("segments", "segment_ids"), ("labels", "labels")];
    for (name, from) in ints {
        let input = runner.input::<i32>(entry, name);
        if !input.is_empty() {
            input.copy_from_slice(&reference.ints[from]);
        }
    }
    let weights = &reference.floats["loss_weights"];
    let sum: f32 = weights.iter().sum();
    let input = runner.input::<f32>(entry, "loss_weights");
    input.iter_mut().zip(weights).for_each(|(i, w)| *i = w / sum);
}

/// Fills one packed row of ids; each token's label is the next one, the last has none.
pub fn fill_row(runner: &mut Runner, entry: usize, ids: &[u32]) {
    let copy = |input: &mut [i32], values: &mut dyn Iterator<Item = i32>| {
        input.iter_mut().zip(values).for_each(|(i, v)| *i = v);
    };
    copy(runner.input(entry, "tokens"), &mut ids.iter().map(|&id| id as i32));
    copy(runner.input(entry, "positions"), &mut (0..ids.len() as i32));
    runner.input::<i32>(entry, "segments").fill(0);
    copy(runner.input(entry, "labels"), &mut ids[1..].iter().map(|&id| id as i32).chain([0]));
    let weights = runner.input::<f32>(entry, "loss_weights");
    weights.fill(1.0 / (ids.len() - 1) as f32);
    weights.last_mut().into_iter().for_each(|last| *last = 0.0);
}

pub fn runner(model: &Model, settings: &Settings, wanted: Wanted) -> Runner {
    let planned = planning::plan(model, settings, wanted, &[]).expect("plans");
    let mut runner = Runner::new(planned.compiled.plan, RunOptions::default()).expect("runs");
    runner.load(&model.files, 1).expect("loads");
    runner
}

/// Largest difference relative to the largest magnitude.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs())).max(1e-12);
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}
