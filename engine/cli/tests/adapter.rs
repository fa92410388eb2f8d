//! Adapters in PEFT's form against PyTorch: what is read computes the same, and what is written is the same.

mod common;

use common::{Folder, Tensors, as_gguf, difference, fill, fixtures, read, runner, settings};
use std::path::{Path, PathBuf};
use tinyforge::runner::Runner;
use tinyforge_cli::adapter;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{Settings, Wanted};
use tinyforge_compiler::import::peft::AdapterConfig;
use tinyforge_compiler::scheme::Scheme;

const MODELS: [&str; 3] = ["llama", "qwen2", "gpt2"];

struct Adapted {
    model: Model,
    folder: PathBuf,
    reference: Tensors,
    scheme: Scheme,
}

impl Adapted {
    fn open(model: &str, adapter: &str) -> Adapted {
        let folder = fixtures().join(model).join(adapter);
        let scheme = adapter::scheme(&folder).expect("an adapter");
        // The trained adapters' references have the results alone: the batch is that of the base.
        let mut reference = read(&fixtures().join(model).join("lora/reference.safetensors"));
        let own = read(&folder.join("reference.safetensors"));
        reference.floats.extend(own.floats);
        Adapted { model: Model::open(&fixtures().join(model)).expect("opens"), folder, reference, scheme }
    }

    fn settings(&self) -> Settings {
        settings(&self.reference, self.scheme.clone())
    }

    fn runner(&self, folder: &Path, settings: &Settings, wanted: Wanted) -> Runner {
        let mut runner = runner(&self.model, settings, wanted);
        adapter::load(&mut runner, &self.model, folder).expect("loads");
        fill(&mut runner, 0, &self.reference);
        runner
    }

    fn check_logits(&self, folder: &Path) {
        let mut runner = self.runner(folder, &self.settings(), Wanted::Logits);
        runner.run(0).expect("runs");
        let off = difference(runner.result(0, "logits"), &self.reference.floats["logits"]);
        assert!(off < 1e-5, "{}: logits differ by {off}", folder.display());
    }
}

#[test]
fn logits_are_those_of_pytorch() {
    for model in MODELS {
        for adapter in ["lora", "lora-trained"] {
            let adapted = Adapted::open(model, adapter);
            adapted.check_logits(&adapted.folder);
        }
    }
}

#[test]
fn an_adapter_is_read_as_it_was_written() {
    for model in MODELS {
        let adapted = Adapted::open(model, "lora");
        let folder = Folder::new(&format!("adapter-{model}"));
        let mut runner = adapted.runner(&adapted.folder, &adapted.settings(), Wanted::Train);
        adapter::save(&mut runner, &adapted.model, &folder.0, &adapted.scheme).expect("saves");
        let [ours, theirs] = [&folder.0, &adapted.folder].map(|f| read(&f.join("adapter_model.safetensors")));
        assert_eq!(ours.floats, theirs.floats);
        assert_eq!(ours.shapes, theirs.shapes);
        let config = |folder: &Path| {
            let bytes = std::fs::read(folder.join("adapter_config.json")).expect("a config");
            AdapterConfig::parse(&bytes).expect("a config")
        };
        let (ours, theirs) = (config(&folder.0), config(&adapted.folder));
        assert_eq!((ours.rank, ours.alpha, ours.fan_in_fan_out), (theirs.rank, theirs.alpha, theirs.fan_in_fan_out));
        adapted.check_logits(&folder.0);
    }
}

#[test]
fn a_gguf_base_has_rows_in_another_order() {
    for name in MODELS {
        let adapted = Adapted::open(name, "lora");
        let folder = Folder::new(&format!("adapter-gguf-{name}"));
        let adapted = Adapted { model: as_gguf(name, &folder.0.join("base.gguf")), ..adapted };
        adapted.check_logits(&adapted.folder);
        let mut runner = adapted.runner(&adapted.folder, &adapted.settings(), Wanted::Train);
        adapter::save(&mut runner, &adapted.model, &folder.0, &adapted.scheme).expect("saves");
        let [ours, theirs] = [&folder.0, &adapted.folder].map(|f| read(&f.join("adapter_model.safetensors")));
        assert_eq!(ours.floats, theirs.floats, "{name}");
    }
}

#[test]
fn training_makes_the_adapter_that_pytorch_makes() {
    for model in MODELS {
        let adapted = Adapted::open(model, "lora");
        let mut train = adapted.runner(&adapted.folder, &adapted.settings(), Wanted::Train);
        for (step, &wanted) in adapted.reference.floats["adamw.losses"].iter().enumerate() {
            fill(&mut train, 0, &adapted.reference);
            let t = step as i32 + 1;
            let hyper = [1e-3, 1.0 - 0.9f32.powi(t), 1.0 - 0.999f32.powi(t), 0.0];
            train.input::<f32>(0, "hyper").copy_from_slice(&hyper);
            train.run(0).expect("runs");
            let loss: f32 = train.result::<f32>(0, "loss").iter().sum();
            assert!((loss - wanted).abs() < 1e-4 * wanted, "{model}: step {step} has loss {loss}, {wanted} in PyTorch");
        }
        let folder = Folder::new(&format!("adapter-trained-{model}"));
        adapter::save(&mut train, &adapted.model, &folder.0, &adapted.scheme).expect("saves");
        let trained = Adapted::open(model, "lora-trained");
        let [ours, theirs] = [&folder.0, &trained.folder].map(|f| read(&f.join("adapter_model.safetensors")));
        assert_eq!(ours.shapes, theirs.shapes);
        for (name, wanted) in &theirs.floats {
            let off = difference(&ours.floats[name], wanted);
            assert!(off < 1e-4, "{model}: {name} differs by {off}");
        }
    }
}

/// The gradient of every factor; with two micro-batches a step the sums are stored, so that they can be looked at.
#[test]
fn gradients_are_those_of_pytorch() {
    for model in MODELS {
        let adapted = Adapted::open(model, "lora");
        let settings = adapted.settings();
        let settings = Settings { micro_batch: Some(settings.batch), batch: 2 * settings.batch, ..settings };
        let mut train = adapted.runner(&adapted.folder, &settings, Wanted::Train);
        train.run(0).expect("runs");
        let loss: f32 = train.result::<f32>(0, "loss").iter().sum();
        let wanted = adapted.reference.floats["loss"][0];
        assert!((loss - wanted).abs() < 1e-5 * wanted, "{model}: loss {loss}, {wanted} in PyTorch");
        let prefix = "grad.base_model.model.";
        let grads = adapted.reference.floats.iter().filter_map(|(name, g)| Some((name.strip_prefix(prefix)?, g)));
        let mut compared = Vec::new();
        for (name, wanted) in grads {
            let sum = train.stored(&format!("{name}.grad_sum")).unwrap_or_else(|| panic!("{model}: no sum for {name}"));
            let off = difference(bytemuck::cast_slice(sum.1), wanted);
            assert!(off < 1e-4, "{model}: the gradient of {name} differs by {off}");
            compared.push(format!("{name}.grad_sum"));
        }
        let sums = train.plan().stored.iter().filter(|s| s.name.contains(".grad_sum"));
        let mut sums: Vec<String> = sums.map(|s| s.name.clone()).collect();
        sums.sort_unstable();
        compared.sort_unstable();
        assert_eq!(compared, sums, "{model}: every trained tensor has a gradient to compare with, and no other has");
    }
}

#[test]
fn a_wider_plan_holds_a_narrower_adapter_of_another_scale() {
    let adapted = Adapted::open("llama", "lora");
    let wide = Settings { scheme: Scheme::parse("lora:7").expect("a scheme"), ..adapted.settings() };
    let mut runner = adapted.runner(&adapted.folder, &wide, Wanted::Logits);
    runner.run(0).expect("runs");
    let off = difference(runner.result(0, "logits"), &adapted.reference.floats["logits"]);
    assert!(off < 1e-5, "logits differ by {off}");
    let narrow = Settings { scheme: Scheme::parse("lora:2").expect("a scheme"), ..adapted.settings() };
    let mut runner = common::runner(&adapted.model, &narrow, Wanted::Logits);
    let error = adapter::load(&mut runner, &adapted.model, &adapted.folder).expect_err("too narrow");
    assert!(error.to_string().contains("rank"), "{error}");
}

#[test]
fn what_is_trained_whole_is_saved_and_read_whole() {
    let adapted = Adapted::open("llama", "lora");
    let scheme = Scheme { head: true, ..adapted.scheme.clone() };
    let settings = Settings { scheme: scheme.clone(), ..adapted.settings() };
    let mut train = adapted.runner(&adapted.folder, &settings, Wanted::Train);
    train.input::<f32>(0, "hyper").copy_from_slice(&[1e-2, 0.1, 0.001, 0.0]);
    train.run(0).expect("runs");
    let folder = Folder::new("adapter-whole");
    adapter::save(&mut train, &adapted.model, &folder.0, &scheme).expect("saves");
    let read_back = adapter::scheme(&folder.0).expect("an adapter");
    assert_eq!(read_back, Scheme { kind: read_back.kind.clone(), head: true, embed: false });
    let settings = Settings { scheme: read_back, ..settings };
    let again = adapted.runner(&folder.0, &settings, Wanted::Logits);
    for name in ["lm_head.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.lora_B.weight"] {
        let [ours, theirs] = [&again, &train].map(|r| r.stored(name).expect("stored").1.to_vec());
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn adapters_that_do_not_suit_are_refused() {
    let adapted = Adapted::open("llama", "lora");
    assert!(adapter::scheme(&fixtures().join("llama")).is_err(), "a model is no adapter");
    let folder = Folder::new("adapter-refused");
    let other = Model::open(&fixtures().join("gpt2")).expect("opens");
    let lora = Settings { scheme: Scheme::parse("lora").expect("a scheme"), ..adapted.settings() };
    let mut other_runner = runner(&other, &lora, Wanted::Logits);
    let error = adapter::load(&mut other_runner, &other, &adapted.folder).expect_err("another model's adapter");
    assert!(error.to_string().contains("belongs to no parameter"), "{error}");
    let frozen = Settings { scheme: Scheme::frozen(), ..adapted.settings() };
    let mut frozen = runner(&adapted.model, &frozen, Wanted::Logits);
    let error = adapter::load(&mut frozen, &adapted.model, &adapted.folder).expect_err("no room");
    assert!(error.to_string().contains("no adapter for"), "{error}");
    let full = Scheme::full();
    assert!(adapter::save(&mut frozen, &adapted.model, &folder.0, &full).is_err(), "full makes no adapter");
}
