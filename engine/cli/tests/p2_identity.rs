//! P2, budgets never change the result: losses, weights and states are the same bytes for every number of threads,
//! micro-batches, every step of recomputation and every way of clipping.

mod made;

use made::trace::{Trace, difference};
use made::{Llama, MadeRows, SMALL, Scratch, TIED, VOCAB, knobs, trainer};
use std::collections::BTreeSet;
use std::path::Path;
use tinyforge::data::RowReader;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_cli::request;
use tinyforge_plan::{Stored, StoredKind, part_of};

fn trace(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    let knobs = knobs(pairs);
    let vocab = model.config.vocab as u32;
    let rows = MadeRows { rows: 7, seq: knobs.seq.expect("given") as usize, vocab };
    let mut trainer = trainer(model, &knobs, rows.rows());
    Trace::of(&mut trainer, &rows, steps).expect("trains")
}

/// All that differs from the first run of a list.
fn differences(model: &Model, base: &[&str], variants: &[Vec<String>], steps: usize) -> Vec<String> {
    let first = trace(model, base, steps);
    assert!(first.losses.iter().all(|l| l.is_finite() && *l > 0.0), "{base:?}: {:?}", first.losses);
    let differs = |variant: &Vec<String>| {
        let pairs: Vec<&str> = base.iter().copied().chain(variant.iter().map(String::as_str)).collect();
        let text = difference(&first, &trace(model, &pairs, steps))?;
        Some(format!("{} {base:?} with {variant:?}: {text}", model.path.display()))
    };
    variants.iter().filter_map(differs).collect()
}

fn list(variants: &[&[&str]]) -> Vec<Vec<String>> {
    variants.iter().map(|v| v.iter().map(|s| s.to_string()).collect()).collect()
}

/// Ways to spread the same step over threads and micro-batches.
fn ways() -> Vec<Vec<String>> {
    list(&[
        &["threads=2"],
        &["threads=3"],
        &["micro_batch=2"],
        &["micro_batch=1"],
        &["micro_batch=2", "threads=3", "recompute=\"all\""],
    ])
}

fn made_model(name: &str, llama: Llama) -> (Scratch, Model) {
    let scratch = Scratch::new(name);
    llama.write(scratch.path());
    let model = Model::open(scratch.path()).expect("opens");
    (scratch, model)
}

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

const SCHEMES: [&str; 4] = ["full", "lora", "last:1", "sparse"];

#[test]
fn threads_and_micro_batches_do_not_matter() {
    let models = [made_model("p2-tied", TIED), made_model("p2-untied", SMALL)];
    let mut found = Vec::new();
    for (scheme, (_, model)) in SCHEMES.iter().map(|s| (s, &models[0])).chain([(&"full", &models[1])]) {
        for optimizer in ["sgd", "adamw", "adamw8"] {
            for dtype in ["f32", "bf16"] {
                let base = [("scheme", *scheme), ("optimizer", optimizer), ("dtype", dtype)];
                let base = base.map(|(key, value)| format!("{key}=\"{value}\""));
                found.extend(differences(model, &base.each_ref().map(String::as_str), &ways(), 2));
            }
        }
    }
    none(found);
}

#[test]
fn ways_of_clipping_do_not_matter() {
    let (_scratch, model) = made_model("p2-clip", TIED);
    let mut found = Vec::new();
    let mut variants = list(&[&["clip_by=\"second\""], &["clip_by=\"second\"", "recompute=\"all\"", "threads=2"]]);
    variants.extend(ways());
    for scheme in SCHEMES {
        for dtype in ["f32", "bf16"] {
            let (scheme, dtype) = (format!("scheme=\"{scheme}\""), format!("dtype=\"{dtype}\""));
            // A norm so small that every step is clipped.
            found.extend(differences(&model, &[&scheme, &dtype, "clip=0.05", "clip_by=\"keep\""], &variants, 2));
        }
    }
    none(found);
}

#[test]
fn every_step_of_recomputation_gives_the_same() {
    let (_scratch, model) = made_model("p2-recompute", Llama { layers: 2, ..TIED });
    let mut found = Vec::new();
    for base in [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"lora\"", "dtype=\"bf16\""],
        &["scheme=\"last:1\"", "optimizer=\"adamw8\""],
        &["scheme=\"sparse\"", "micro_batch=2"],
    ] {
        let settings = knobs(base).settings().expect("settings");
        let planned = request::plan_phases(&model, &settings, Wanted::Train, &[]).expect("plans");
        let steps = planned[0].compiled.choice.recompute_steps;
        assert!(steps > 1, "{base:?}: there is nothing to recompute");
        let variants: Vec<_> = (1..=steps).map(|step| vec![format!("recompute=\"{step}\"")]).collect();
        found.extend(differences(&model, base, &variants, 2));
    }
    none(found);
}

#[test]
fn groups_that_take_turns_give_the_same() {
    let (_scratch, model) = made_model("p2-cycle", SMALL);
    let base = ["scheme=\"cycle:2\"", "cycle_steps=1", "dtype=\"bf16\""];
    none(differences(&model, &base, &ways(), 5));
}

/// Blocks that stream from the model's files and a work file.
#[test]
fn windows_do_not_matter() {
    let (_scratch, model) = made_model("p2-window", Llama { layers: 6, ..TIED });
    let mut found = Vec::new();
    let windows = list(&[
        &["window=\"1\""],
        &["window=\"2\""],
        &["window=\"2\"", "prefetch=2", "threads=2"],
        &["window=\"3\"", "micro_batch=2"],
        &["window=\"4\"", "prefetch=2", "recompute=\"all\""],
        &["window=\"5\"", "micro_batch=1", "threads=3"],
        &["window=\"1\"", "activations=\"far\"", "recompute=\"all\""],
        &["window=\"6\"", "activations=\"far\"", "micro_batch=2", "recompute=\"nothing\""],
        &["window=\"2\"", "gradients=\"panels\"", "threads=2"],
        &["window=\"6\"", "gradients=\"panels\"", "micro_batch=2", "recompute=\"all\""],
        &["window=\"1\"", "embeddings=\"far\"", "threads=2"],
        &["window=\"3\"", "embeddings=\"far\"", "prefetch=2", "micro_batch=2", "recompute=\"all\""],
        &["window=\"1\"", "block_parts=4", "threads=2"],
        &["window=\"3\"", "block_parts=3", "recompute=\"all\"", "micro_batch=1"],
        &["window=\"5\"", "block_parts=4", "prefetch=2", "gradients=\"panels\"", "embeddings=\"far\""],
    ]);
    for base in [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""],
        &["scheme=\"full\"", "clip=0.05"],
        &["scheme=\"lora\""],
        &["scheme=\"last:2\"", "dtype=\"bf16\""],
        &["scheme=\"sparse\"", "optimizer=\"sgd\""],
        &["scheme=\"bias\""],
        &["scheme=\"cycle:2\"", "cycle_steps=1"],
    ] {
        found.extend(differences(&model, base, &windows, 3));
    }
    none(found);
}

/// Gradients of the embedding and the head by panels of their rows, where each counts and where both are one.
#[test]
fn panels_of_gradients_do_not_matter() {
    let models = [("p2-panels", true), ("p2-panels-untied", false)]
        .map(|(name, tied)| made_model(name, Llama { layers: 4, tied, ..TIED }));
    let panels = list(&[
        &["window=\"1\""],
        &["window=\"4\"", "threads=3", "recompute=\"all\""],
        &["window=\"2\"", "micro_batch=2"],
        &["window=\"3\"", "micro_batch=1", "activations=\"far\"", "recompute=\"all\""],
        &["window=\"2\"", "clip_by=\"second\"", "threads=2"],
        &["window=\"2\"", "clip_by=\"second\"", "recompute=\"all\"", "activations=\"far\""],
        &["window=\"1\"", "embeddings=\"far\"", "clip_by=\"second\""],
        &["window=\"3\"", "embeddings=\"far\"", "micro_batch=2", "activations=\"far\""],
    ]);
    let panels: Vec<_> = panels.into_iter().map(|v| [v, vec!["gradients=\"panels\"".to_string()]].concat()).collect();
    let mut found = Vec::new();
    for (_, model) in &models {
        for base in [
            &["scheme=\"full\"", "seq=150"][..],
            &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""],
            &["scheme=\"full\"", "clip=0.05"],
            &["scheme=\"full\"", "clip=0.05", "dtype=\"bf16\"", "optimizer=\"sgd\""],
            &["scheme=\"last:1+head+embed\"", "optimizer=\"sgd\""],
            &["scheme=\"last:2+head\"", "clip=0.05"],
        ] {
            found.extend(differences(model, base, &panels, 2));
        }
    }
    none(found);
}

/// Embeddings and heads in parts, where both are one and where each is its own; trained ones with their gradients and
/// states, by whatever rule, with a norm of all gradients and without.
#[test]
fn parts_of_tables_do_not_matter() {
    let models = [("p2-parts", true), ("p2-parts-untied", false)]
        .map(|(name, tied)| made_model(name, Llama { layers: 4, vocab: 2 * VOCAB + 300, tied, ..TIED }));
    let parts = list(&[
        &["window=\"1\""],
        &["window=\"3\"", "prefetch=2", "threads=3", "recompute=\"all\""],
        &["window=\"2\"", "micro_batch=2", "threads=2"],
        &["window=\"2\"", "block_parts=2", "threads=2"],
        &["window=\"1\"", "micro_batch=1", "activations=\"far\"", "recompute=\"all\""],
    ]);
    let more = ["embeddings=\"parts\"", "gradients=\"panels\""].map(str::to_string);
    let parts: Vec<_> = parts.into_iter().map(|v| [&v[..], &more[..]].concat()).collect();
    let mut found = Vec::new();
    for (_, model) in &models {
        for base in [
            &["scheme=\"lora\"", "seq=150"][..],
            &["scheme=\"lora\"", "dtype=\"bf16\"", "clip=0.05", "clip_by=\"second\""],
            &["scheme=\"last:2\"", "dtype=\"bf16\""],
            &["scheme=\"last:1+head\"", "optimizer=\"sgd\""],
            &["scheme=\"full\"", "clip=0.05", "seq=150"],
            &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""],
            &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"sgd\"", "clip=0.05", "clip_by=\"second\""],
            &["scheme=\"lora+head+embed\"", "dtype=\"bf16\""],
            &["scheme=\"bias\""],
            &["scheme=\"cycle:2\"", "cycle_steps=1"],
        ] {
            // Where groups take turns, activations stay near.
            let parts = &parts[..if base[0].contains("cycle") { 4 } else { 5 }];
            found.extend(differences(model, base, parts, 3));
        }
    }
    none(found);
}

/// Sizes past the tiles and chunks of the kernels.
#[test]
fn larger_products_give_the_same() {
    let llama = Llama { vocab: VOCAB + 77, hidden: 96, layers: 2, ff: 272, tied: true };
    let (_scratch, model) = made_model("p2-large", llama);
    let mut found = Vec::new();
    for base in [&["scheme=\"full\"", "seq=161"][..], &["scheme=\"lora\"", "dtype=\"bf16\"", "seq=130"]] {
        found.extend(differences(&model, base, &ways(), 1));
    }
    none(found);
}

/// Other families: biases, norms of heads, layer norm with learned positions.
#[test]
fn other_families_give_the_same() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut found = Vec::new();
    for family in ["gpt2", "mistral", "qwen2", "qwen3"] {
        let model = Model::open(&fixtures.join(family)).expect("a fixture");
        let mut variants = list(&[&["clip_by=\"second\"", "recompute=\"all\""]]);
        variants.extend(ways());
        let base = ["scheme=\"full\"", "clip=0.05", "clip_by=\"keep\"", "seq=18"];
        found.extend(differences(&model, &base, &variants, 2));
        found.extend(differences(&model, &["scheme=\"bias\"", "dtype=\"bf16\"", "seq=18"], &ways(), 2));
    }
    none(found);
}

/// The comparison itself can fail: settings that change the result do, and those that must not change how it is made.
#[test]
fn what_must_differ_does() {
    let (_scratch, model) = made_model("p2-differs", TIED);
    let base = ["scheme=\"full\"", "clip=0.05", "clip_by=\"keep\""];
    let others = list(&[&["clip=0.06"], &["beta1=0.8"], &["dtype=\"bf16\""], &["batch=3"], &["optimizer=\"adamw8\""]]);
    assert_eq!(differences(&model, &base, &others, 2).len(), others.len());
    let steps = |pairs: &[&str]| {
        let knobs = knobs(&[&base[..], pairs].concat());
        let trainer = trainer(&model, &knobs, 7);
        let entries: Vec<usize> = trainer.runner().plan().entries.iter().map(|e| e.steps.len()).collect();
        (trainer.options().micro_rows, entries)
    };
    let (rows, kept) = steps(&[]);
    assert_eq!((rows, kept.len()), (4, 2));
    assert!(steps(&["clip_by=\"second\""]).1[0] > kept[0], "there is no second backward");
    assert!(steps(&["recompute=\"all\""]).1[0] > kept[0], "nothing is computed again");
    let windowed = steps(&["window=\"2\"", "gradients=\"whole\""]).1[0];
    assert!(steps(&["window=\"2\"", "gradients=\"panels\""]).1[0] > windowed, "there are no panels of gradients");
    let near_weights = |embeddings: &str| {
        let knobs = knobs(&[&base[..], &["window=\"2\"", embeddings]].concat());
        let trainer = trainer(&model, &knobs, 7);
        let plan = trainer.runner().plan();
        plan.stored_bytes(|s| s.kind == StoredKind::Weight && !plan.is_far(&s.tensor))
    };
    let [near, far] = ["near", "far"].map(|place| near_weights(&format!("embeddings=\"{place}\"")));
    assert!(far < near / 4, "embeddings stay near: {far} bytes of {near}");
    let (_scratch, model) = made_model("p2-differs-parts", Llama { vocab: 2 * VOCAB + 300, ..TIED });
    let parts_of = |scheme: &str, embeddings: &str| {
        let [scheme, embeddings] = [format!("scheme=\"{scheme}\""), format!("embeddings=\"{embeddings}\"")];
        let trainer = trainer(&model, &knobs(&[&scheme, "window=\"1\"", "gradients=\"panels\"", &embeddings]), 7);
        let is_part = |s: &&Stored| s.kind == StoredKind::Weight && part_of(&s.name).is_some();
        trainer.runner().plan().stored.iter().filter(is_part).count()
    };
    assert_eq!(["far", "parts"].map(|embeddings| parts_of("lora", embeddings)), [0, 3]);
    assert_eq!(["far", "parts"].map(|embeddings| parts_of("full", embeddings)), [0, 3]);
    let waits = |parts: &str| {
        let trainer = trainer(&model, &knobs(&["scheme=\"lora\"", "window=\"1\"", parts]), 7);
        let transfers = &trainer.runner().plan().entries[0].transfers;
        transfers.iter().map(|t| t.ends).collect::<BTreeSet<_>>().len()
    };
    let [whole, cut] = ["block_parts=1", "block_parts=4"].map(waits);
    assert!(cut > 3 * whole, "parts of blocks are waited for at {cut} steps, blocks at {whole}");
    let (rows, entries) = steps(&["micro_batch=1"]);
    assert_eq!((rows, entries.len()), (1, 3), "the updates are no entry of their own");
}
