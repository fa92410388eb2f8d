//! Superpipeline: every window of every scheme leads to a plan that the checker accepts.

mod made;

use made::{Llama, Scratch, TIED, VOCAB, knobs};
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_cli::request;
use tinyforge_plan::check;

const LAYERS: u32 = 6;

fn model(vocab: u32, tied: bool) -> (Scratch, Model) {
    let scratch = Scratch::new("windows");
    Llama { layers: LAYERS, vocab, tied, ..TIED }.write(scratch.path());
    let model = Model::open(scratch.path()).expect("opens");
    (scratch, model)
}

#[test]
fn every_window_gives_a_plan_that_holds() {
    let bases = [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "optimizer=\"sgd\"", "micro_batch=2"],
        &["scheme=\"full\"", "clip=0.05", "clip_by=\"keep\""],
        &["scheme=\"full\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"full\"", "activations=\"far\""],
        &["scheme=\"full\"", "gradients=\"panels\"", "activations=\"far\"", "micro_batch=2"],
        &["scheme=\"full\"", "gradients=\"panels\"", "clip=0.05", "clip_by=\"second\"", "optimizer=\"adamw8\""],
        &["scheme=\"full\"", "gradients=\"panels\"", "embeddings=\"far\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"full\"", "embeddings=\"far\"", "activations=\"far\"", "micro_batch=2"],
        &["scheme=\"last:2\"", "embeddings=\"far\"", "micro_batch=1"],
        &["scheme=\"cycle:2\"", "embeddings=\"far\""],
        &["scheme=\"cycle:2+head\"", "embeddings=\"far\"", "optimizer=\"adamw8\""],
        &["scheme=\"lora\"", "activations=\"far\"", "micro_batch=1"],
        &["scheme=\"lora\""],
        &["scheme=\"last:2\"", "micro_batch=1"],
        &["scheme=\"last:4+head\""],
        &["scheme=\"sparse\""],
        &["scheme=\"bias\""],
        &["scheme=\"cycle:2\""],
        &["scheme=\"cycle:1\"", "optimizer=\"adamw8\"", "keep_state=true"],
    ];
    all_hold(&model(VOCAB, true).1, &bases);
}

#[test]
fn every_window_with_tables_in_parts_gives_a_plan_that_holds() {
    let bases = [
        &["scheme=\"lora\"", "embeddings=\"parts\""][..],
        &["scheme=\"lora\"", "embeddings=\"parts\"", "activations=\"far\"", "micro_batch=1"],
        &["scheme=\"last:2\"", "embeddings=\"parts\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"cycle:2\"", "embeddings=\"parts\"", "micro_batch=2"],
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"panels\"", "micro_batch=2"],
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"panels\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"whole\""],
        &["scheme=\"cycle:2+head\"", "embeddings=\"parts\"", "gradients=\"panels\""],
    ];
    all_hold(&model(3 * VOCAB, true).1, &bases);
    // Where each table is its own, its gradient is whole or by panels apart from the other one's.
    let bases = [
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"whole\""][..],
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"whole\"", "optimizer=\"sgd\"", "beta1=0.0"],
        &["scheme=\"full\"", "embeddings=\"parts\"", "gradients=\"panels\"", "optimizer=\"sgd\"", "beta1=0.0"],
        &["scheme=\"last:1+head\"", "embeddings=\"parts\"", "gradients=\"whole\"", "micro_batch=2"],
    ];
    all_hold(&model(3 * VOCAB, false).1, &bases);
}

#[test]
fn every_window_of_blocks_in_parts_gives_a_plan_that_holds() {
    let bases = [
        &["scheme=\"full\"", "block_parts=2"][..],
        &["scheme=\"full\"", "block_parts=3", "gradients=\"panels\"", "activations=\"far\"", "micro_batch=2"],
        &["scheme=\"full\"", "block_parts=4", "embeddings=\"far\"", "clip=0.05", "clip_by=\"second\""],
        &["scheme=\"last:2\"", "block_parts=4", "optimizer=\"adamw8\"", "micro_batch=1"],
        &["scheme=\"lora\"", "block_parts=4", "embeddings=\"parts\"", "micro_batch=2"],
        &["scheme=\"sparse\"", "block_parts=3"],
        &["scheme=\"bias\"", "block_parts=64"],
        &["scheme=\"cycle:2\"", "block_parts=3", "micro_batch=2"],
    ];
    all_hold(&model(3 * VOCAB, true).1, &bases);
}

fn all_hold(model: &Model, bases: &[&[&str]]) {
    let mut faults = Vec::new();
    for base in bases {
        for window in 1..=LAYERS {
            for prefetch in 1..=window.min(3) {
                for recompute in ["nothing", "all"] {
                    let more = [
                        format!("window=\"{window}\""),
                        format!("prefetch={prefetch}"),
                        format!("recompute=\"{recompute}\""),
                    ];
                    let pairs: Vec<&str> = base.iter().copied().chain(more.iter().map(String::as_str)).collect();
                    let settings = knobs(&pairs).settings().expect("settings");
                    let plans = request::plan_phases(model, &settings, Wanted::Train, &[]).expect("plans");
                    let found = plans.iter().flat_map(|p| check::check(&p.compiled.plan));
                    faults.extend(found.take(1).map(|fault| format!("{pairs:?}: {fault}")));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} plans have faults:\n{}", faults.len(), faults.join("\n"));
}
