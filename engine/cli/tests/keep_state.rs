//! `cycle:N --keep-state`: the states of all groups have their place in every phase's plan, and are there again when
//! their group's turn comes.

mod made;

use made::{MadeRows, SMALL, Scratch, knobs, trainer};
use std::collections::BTreeMap;
use tinyforge::runner::common_states;
use tinyforge::train::Trainer;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_cli::request;
use tinyforge_plan::{Plan, Stored, StoredKind};

const KEEP: [&str; 3] = ["scheme=\"cycle:1\"", "cycle_steps=2", "keep_state=true"];

fn model(name: &str) -> (Scratch, Model) {
    let scratch = Scratch::new(name);
    SMALL.write(&scratch.join("model"));
    let model = Model::open(&scratch.join("model")).expect("opens");
    (scratch, model)
}

fn plans(model: &Model, pairs: &[&str]) -> Vec<Plan> {
    let settings = knobs(pairs).settings().expect("settings");
    let planned = request::plan_phases(model, &settings, Wanted::Train, &[]).expect("plans");
    planned.into_iter().map(|p| p.compiled.plan).collect()
}

/// Whether it is a state of the optimizer; sums of gradients are nothing between steps.
fn is_moment(stored: &Stored) -> bool {
    stored.kind == StoredKind::State && !stored.name.contains(".grad_sum")
}

#[test]
fn plans_count_the_states_of_all_groups() {
    let (_scratch, model) = model("keep-plans");
    for more in [
        &[][..],
        &["micro_batch=1"],
        &["optimizer=\"adamw8\""],
        &["micro_batch=2", "clip=1.0", "dtype=\"bf16\""],
        &["scheme=\"cycle:2\"", "optimizer=\"sgd\""],
    ] {
        let (kept, dropped) = (plans(&model, &[&KEEP, more].concat()), plans(&model, &[&KEEP[..2], more].concat()));
        let all: u64 = dropped.iter().map(|p| p.stored_bytes(is_moment)).sum();
        for (kept, dropped) in kept.iter().zip(&dropped) {
            let own = dropped.stored_bytes(is_moment);
            assert!(kept.stored_bytes(is_moment) == all && own < all, "{more:?}: the states of all groups");
            assert!(kept.arena_bytes() >= dropped.arena_bytes() + all - own, "{more:?}: beside what there was");
        }
        let common = common_states(kept.iter()).count();
        assert_eq!(common, kept[0].stored.iter().filter(|s| is_moment(s)).count(), "{more:?}: at the same places");
    }
}

/// What the states of the active phase's plan hold, by name.
fn states(trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
    let runner = trainer.runner();
    let moments = runner.plan().stored.iter().filter(|s| is_moment(s));
    moments.map(|s| (s.name.clone(), runner.arena().tensor(&s.tensor).to_vec())).collect()
}

#[test]
fn states_are_there_again_at_the_groups_next_turn() {
    let (_scratch, model) = model("keep-turns");
    let data = MadeRows { rows: 40, seq: 24, vocab: made::VOCAB };
    for more in [&[][..], &["micro_batch=1", "dtype=\"bf16\""], &["optimizer=\"adamw8\""]] {
        let pairs = [&KEEP, more].concat();
        let mut kept = trainer(&model, &knobs(&pairs), 40);
        let mut dropped = trainer(&model, &knobs(&[&KEEP[..2], more].concat()), 40);
        let mut before = states(&kept);
        // Three groups of two steps each, and the first group's second turn.
        for step in 0..8 {
            let losses = [&mut kept, &mut dropped].map(|t| t.step(&data).expect("a step").loss);
            assert_eq!(losses[0] == losses[1], step <= 6, "{more:?}: step {step} has the losses {losses:?}");
            let after = states(&kept);
            let group = format!("layers.{}.", 2 - step / 2 % 3);
            for (name, bytes) in &after {
                let changes = before[name] != *bytes;
                assert_eq!(changes, name.contains(&group), "{more:?}: {name} in step {step}");
            }
            let turns_before = step as u64 / 6;
            assert_eq!(kept.progress.phase_step, turns_before * 2 + step as u64 % 2 + 1, "steps of the group");
            before = after;
        }
    }
}

#[test]
fn it_is_for_cycles_whose_groups_share_nothing() {
    let error = |pairs: &[&str]| knobs(pairs).settings().expect_err("refused").to_string();
    assert!(error(&["scheme=\"full\"", "keep_state=true"]).contains("belongs to cycle:N"));
    assert!(error(&["scheme=\"cycle:1+head\"", "keep_state=true"]).contains("+head"));
    knobs(&["scheme=\"cycle:1+head\"", "keep_state=true", "optimizer=\"sgd\""]).settings().expect("no count of steps");
}
