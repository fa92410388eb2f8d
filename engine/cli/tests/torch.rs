//! Whole models against PyTorch: logits, losses, gradients and training curves of the committed fixtures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge_cli::model::{Model, open_safetensors, read_f32};
use tinyforge_cli::planning::{self, Settings, Wanted};
use tinyforge_cli::streaming::Streaming;
use tinyforge_compiler::compile::Recompute;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::DType;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Tensors of a safetensors file, as f32.
struct Tensors {
    shapes: HashMap<String, Vec<usize>>,
    floats: HashMap<String, Vec<f32>>,
    ints: HashMap<String, Vec<i32>>,
}

fn read(path: &Path) -> Tensors {
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

fn settings(reference: &Tensors, scheme: &str) -> Settings {
    let shape = &reference.shapes["input_ids"];
    Settings {
        scheme: Scheme::parse(scheme).expect("a scheme"),
        group: 0,
        keep_states: false,
        batch: shape[0] as u32,
        micro_batch: None,
        seq: shape[1] as u32,
        context: shape[1] as u32,
        sample: false,
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
        target: tinyforge_compiler::target::Target::CPU,
        device: DeviceChoice::Cpu,
        gpu: None,
        tf32: false,
        machine: None,
    }
}

fn fill(runner: &mut Runner, entry: usize, reference: &Tensors) {
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

fn runner(model: &Model, settings: &Settings, wanted: Wanted) -> Runner {
    let planned = planning::plan(model, settings, wanted, &[]).expect("plans");
    let mut runner = Runner::new(planned.compiled.plan, RunOptions::default()).expect("runs");
    runner.load(&model.files, 1).expect("loads");
    runner
}

/// Largest difference relative to the largest magnitude.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs())).max(1e-12);
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[test]
fn logits_and_gradients_agree() {
    for name in ["llama", "llama-rope3-tied", "mistral", "qwen2", "qwen3", "gpt2"] {
        let model = Model::open(&fixtures().join(name)).expect("opens");
        let reference = read(&fixtures().join(name).join("reference.safetensors"));
        let settings = settings(&reference, "full");
        let mut logits = runner(&model, &settings, Wanted::Logits);
        fill(&mut logits, 0, &reference);
        logits.run(0).expect("runs");
        let off = difference(logits.result(0, "logits"), &reference.floats["logits"]);
        assert!(off < 1e-5, "{name}: logits differ by {off}");

        // With two micro-batches a step the gradients are stored, so that they can be looked at.
        let mut train = runner(
            &model,
            &Settings { micro_batch: Some(settings.batch), batch: 2 * settings.batch, ..settings.clone() },
            Wanted::Train,
        );
        fill(&mut train, 0, &reference);
        train.run(0).expect("runs");
        let loss: f32 = train.result::<f32>(0, "loss").iter().sum();
        let wanted = reference.floats["loss"][0];
        assert!((loss - wanted).abs() < 1e-5 * wanted, "{name}: loss {loss}, {wanted} in PyTorch");
        for binding in model.weights.iter() {
            let grad = sum_of_gradients(&train, &binding.name);
            let mut wanted = reference.floats[&format!("grad.{}", binding.name)].clone();
            if binding.transpose {
                let (rows, cols) = (binding.shape[0] as usize, binding.shape[1] as usize);
                wanted = (0..rows * cols).map(|i| wanted[i % cols * rows + i / cols]).collect();
            }
            let off = difference(&grad, &wanted);
            assert!(off < 1e-4, "{name}: gradient of {} differs by {off}", binding.name);
        }
    }
}

fn sum_of_gradients(runner: &Runner, name: &str) -> Vec<f32> {
    let mut sum: Vec<f32> = Vec::new();
    for stored in runner.plan().stored.iter().filter(|s| s.name.starts_with(&format!("{name}.grad_sum"))) {
        let part: &[f32] = bytemuck::cast_slice(runner.arena().tensor(&stored.tensor));
        sum.resize(part.len(), 0.0);
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sum
}

#[test]
fn twenty_steps_of_adamw_track() {
    for (name, key, clip) in [
        ("llama", "adamw.losses", None),
        ("llama-rope3-tied", "adamw.losses", None),
        ("qwen2", "adamw.losses", None),
        ("qwen3", "adamw.losses", None),
        ("gpt2", "adamw.losses", None),
        ("llama", "adamw_clip.losses", Some(1.0)),
        ("gpt2", "adamw_clip.losses", Some(1.0)),
    ] {
        let model = Model::open(&fixtures().join(name)).expect("opens");
        let reference = read(&fixtures().join(name).join("reference.safetensors"));
        let mut settings = settings(&reference, "full");
        settings.optimizer.clip = clip;
        let mut train = runner(&model, &settings, Wanted::Train);
        for (step, &wanted) in reference.floats[key].iter().enumerate() {
            fill(&mut train, 0, &reference);
            let t = step as i32 + 1;
            let hyper = [1e-3, 1.0 - 0.9f32.powi(t), 1.0 - 0.999f32.powi(t), 0.0];
            train.input::<f32>(0, "hyper").copy_from_slice(&hyper);
            train.run(0).expect("runs");
            let loss: f32 = train.result::<f32>(0, "loss").iter().sum();
            assert!(
                (loss - wanted).abs() < 1e-4 * wanted,
                "{name} {key}: step {step} has loss {loss}, {wanted} in PyTorch"
            );
        }
    }
}
