//! Models of which there is a `config.json` alone: planned as with their weights, refused by what needs weights.

mod common;

use common::{Folder, MODELS, fixtures, row_settings};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{self, Wanted};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::{DType, Plan, Source};

/// The plan without what only a file can say: its name, and where in it a tensor begins.
fn plan(model: &Model, scheme: &str) -> Plan {
    let settings = row_settings(Scheme::parse(scheme).expect("a scheme"), 16);
    let mut plan = planning::plan(model, &settings, Wanted::Train, &[]).expect("plans").compiled.plan;
    plan.name.clear();
    plan.files.iter_mut().for_each(String::clear);
    for stored in &mut plan.stored {
        if let Source::File { offset, .. } = &mut stored.source {
            *offset = 0;
        }
    }
    plan
}

fn without_weights(name: &str) -> Folder {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = Folder::new(&format!("shapes-{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::copy(fixtures().join(name).join("config.json"), folder.0.join("config.json")).expect("copied");
    folder
}

#[test]
fn a_plan_is_the_same_without_weights() {
    for name in MODELS {
        let folder = without_weights(name);
        let whole = Model::open(&fixtures().join(name)).expect("opens");
        let stored = whole.weights.iter().next().expect("a parameter").tensor.dtype;
        let shapes = Model::open_to_plan(&folder.0, Some(stored)).expect("opens");
        assert_eq!(shapes.parameter_count(), whole.parameter_count(), "{name}");
        for scheme in ["full", "lora", "last:1"] {
            assert!(plan(&shapes, scheme) == plan(&whole, scheme), "{name} {scheme}");
        }
    }
}

#[test]
fn storage_is_what_is_said_or_declared() {
    let folder = without_weights("llama");
    let first = |stored| {
        let model = Model::open_to_plan(&folder.0, stored).expect("opens");
        model.weights.iter().next().expect("a parameter").tensor.dtype
    };
    assert_eq!(first(Some(DType::F16)), DType::F16);
    assert_eq!(first(None), DType::F32);
    let config = std::fs::read_to_string(folder.0.join("config.json")).expect("read");
    let plain: Vec<&str> = config.lines().filter(|line| !line.contains("dtype")).collect();
    std::fs::write(folder.0.join("config.json"), plain.join("\n")).expect("written");
    assert_eq!(first(None), DType::BF16);
}

#[test]
fn published_shapes_have_their_numbers_of_parameters() {
    let numbers = [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen3-32b", 32_762_123_264),
    ];
    for (name, parameters) in numbers {
        let model = Model::open_to_plan(&common::workspace().join("examples/shapes").join(name), None).expect("opens");
        assert_eq!(model.parameter_count(), parameters, "{name}");
        assert_eq!(model.weights.iter().map(|b| b.tensor.bytes).sum::<u64>(), 2 * parameters, "{name}");
    }
}

fn tinyforge(args: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    command.arg(args[0]).arg(path).args(&args[1..]).output().expect("runs")
}

#[test]
fn what_needs_weights_says_so() {
    let folder = without_weights("llama");
    let out = folder.0.join("out").display().to_string();
    for args in [
        &["train", "--data", "none.txt", "--out", &out][..],
        &["eval", "--data", "none.txt"],
        &["generate", "--prompt", "a"],
        &["inspect"],
    ] {
        let output = tinyforge(args, &folder.0);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("no weights (model.safetensors"), "{args:?}: {said}");
    }
    assert!(tinyforge(&["plan", "--seq", "16"], &folder.0).status.success());
    let twice = tinyforge(&["plan", "--stored", "bf16"], &fixtures().join("llama"));
    assert_eq!(twice.status.code(), Some(2));
    let none = tinyforge(&["plan", "--stored", "q4_1"], &folder.0);
    assert!(String::from_utf8_lossy(&none.stderr).contains("--stored q4_1: f32, f16 or bf16"));
}
