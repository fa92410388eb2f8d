//! What the tests of whole models share: fixtures, their tensors, and plans made ready to run.
#![allow(dead_code, reason = "every test uses its part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge_cli::model::{Model, open_safetensors, read_f32};
use tinyforge_cli::planning::{self, Settings, Wanted};
use tinyforge_cli::streaming::Streaming;
use tinyforge_compiler::compile::Recompute;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::import::weight_map::{Param, RowOrder, interleaved_row_sources};
use tinyforge_compiler::import::{gguf, gguf_export};
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;
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
        sample: false,
        scheme,
        group: 0,
        keep_states: false,
        batch: 1,
        micro_batch: None,
        seq,
        context: seq,
        dtype: DType::F32,
        optimizer: Optimizer { rule: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: None },
        recompute: Recompute::Auto,
        window: Streaming::Never,
        spill: None,
        embeddings: None,
        panels: None,
        clip_by: None,
        memory: None,
        host_memory: 0,
        host_optimizer: Some(false),
        threads: 1,
        target: Target::CPU,
        device: DeviceChoice::Cpu,
        gpu: None,
        tf32: false,
        machine: None,
    }
}

/// The batch of a fixture's reference.
pub fn settings(reference: &Tensors, scheme: Scheme) -> Settings {
    let shape = &reference.shapes["input_ids"];
    Settings { sample: false, batch: shape[0] as u32, ..row_settings(scheme, shape[1] as u32) }
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

/// An empty folder that goes away at the end of the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tinyforge-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be removed is no fault of what is tested.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The model of a fixture as a GGUF file in f32, without a tokenizer: rows of q and k in the order of such files.
pub fn as_gguf(name: &str, path: &Path) -> Model {
    let model = Model::open(&fixtures().join(name)).expect("opens");
    let mut tensors: Vec<(NewTensor, Vec<f32>)> = Vec::new();
    for param in model.config.params() {
        let new = NewTensor::new(param.gguf_name(), DType::F32, &param.shape);
        tensors.push((new, in_gguf_order(&model, &param)));
    }
    if let Some(divisors) = model.config.rope.as_ref().and_then(|rope| rope.divisors()) {
        tensors.push((NewTensor::new(gguf_export::ROPE_DIVISORS, DType::F32, &[divisors.len() as u64]), divisors));
    }
    let metadata = gguf_export::metadata(&model.config).expect("can be said");
    let list: Vec<NewTensor> = tensors.iter().map(|(new, _)| new.clone()).collect();
    let layout = gguf::layout(&metadata, &list).expect("can be laid out");
    let mut bytes = layout.header;
    for (place, (_, values)) in layout.tensors.iter().zip(&tensors) {
        bytes.resize(place.offset as usize, 0);
        bytes.extend_from_slice(bytemuck::cast_slice(values));
    }
    bytes.resize(layout.file_bytes as usize, 0);
    std::fs::write(path, bytes).expect("a file");
    Model::open(path).expect("opens")
}

fn in_gguf_order(model: &Model, param: &Param) -> Vec<f32> {
    let binding = model.weights.get(&param.name).expect("bound");
    let values = read_f32(&model.files[binding.tensor.file as usize], &binding.tensor).expect("fixture");
    let (rows, cols) = (param.shape[0] as usize, values.len() / param.shape[0] as usize);
    let sources = match param.gguf_rows(&model.config) {
        RowOrder::Plain => (0..rows).collect(),
        RowOrder::RopeInterleaved { heads, head_dim } => interleaved_row_sources(heads, head_dim),
    };
    let at =
        |row: usize, col: usize| if binding.transpose { values[col * rows + row] } else { values[row * cols + col] };
    sources.into_iter().flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(row, col)| at(row, col)).collect()
}
