//! P5, what is not trained costs nothing: below the lowest trained block there is no gradient, no saved activation,
//! no optimizer state, and the plan shows it.

mod made;

use made::{SMALL, Scratch, arg, knobs, run};
use tinyforge_cli::commands::inspect::saved_bytes;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_cli::request;
use tinyforge_plan::{Entry, Part, Plan, StoredKind, encode};

fn plan(model: &Model, pairs: &[&str]) -> Plan {
    let settings = knobs(pairs).settings().expect("settings");
    request::plan_phases(model, &settings, Wanted::Train, &[]).expect("plans").remove(0).compiled.plan
}

fn model(name: &str) -> (Scratch, Model) {
    let scratch = Scratch::new(name);
    SMALL.write(&scratch.join("model"));
    let model = Model::open(&scratch.join("model")).expect("opens");
    (scratch, model)
}

/// Blocks below the last layer, with their indices.
fn lower(entry: &Entry) -> impl Iterator<Item = (u32, &str)> {
    let blocks = entry.blocks.iter().enumerate().map(|(i, name)| (i as u32, name.as_str()));
    blocks.filter(|(_, name)| *name == "embed" || *name == "layers.0" || *name == "layers.1")
}

#[test]
fn nothing_below_the_last_block_has_a_cost() {
    let (_scratch, model) = model("p5-last");
    for pairs in [&["scheme=\"last:1\""][..], &["scheme=\"last:1\"", "micro_batch=1", "clip=1.0"]] {
        let plan = plan(&model, pairs);
        let entry = plan.entry("train").expect("an entry");
        assert_eq!(lower(entry).count(), 3, "blocks are {:?}", entry.blocks);
        for (block, name) in lower(entry) {
            let of_block = |part| entry.steps.iter().filter(|s| s.block == block && s.part == part).count();
            assert!(of_block(Part::Forward) > 0, "{name}: the model has no such block");
            assert_eq!((of_block(Part::Backward), of_block(Part::Update)), (0, 0), "{pairs:?} {name}");
            // What passes into the trained block is that block's own input: all others save nothing.
            let is_input = name == "layers.1";
            let tokens = entry.input("tokens").expect("an input").elems();
            let most = if is_input { 4 * tokens * u64::from(SMALL.hidden) } else { 0 };
            assert!(saved_bytes(entry, block) <= most, "{pairs:?} {name}: {} bytes saved", saved_bytes(entry, block));
        }
        for stored in plan.stored.iter().filter(|s| s.changes || s.kind == StoredKind::State) {
            assert!(stored.name.contains("layers.2."), "{pairs:?}: `{}` changes or is a state", stored.name);
        }
        // Backward and updates read no weight of the lower blocks either.
        let lower_weights = plan.stored.iter().filter(|s| !s.name.contains("layers.2.")).filter(|s| {
            let reads = |step: &tinyforge_plan::Step| step.args.iter().any(|a| a.value == s.tensor.value);
            entry.steps.iter().any(|step| step.part != Part::Forward && reads(step))
        });
        let read: Vec<&str> = lower_weights.map(|s| s.name.as_str()).filter(|n| n.contains("layers.")).collect();
        assert!(read.is_empty(), "{pairs:?}: backward reads {read:?}");
    }
}

#[test]
fn schemes_have_no_gradient_of_what_they_leave() {
    let (_scratch, model) = model("p5-schemes");
    let makes_matrix_gradients = |plan: &Plan| {
        let steps = plan.entries.iter().flat_map(|e| &e.steps);
        steps.filter(|s| s.kernel.starts_with("linear_grad_w") || s.kernel == "embedding_grad").count()
    };
    let bias = plan(&model, &["scheme=\"bias\""]);
    assert_eq!(makes_matrix_gradients(&bias), 0);
    assert!(
        bias.stored.iter().filter(|s| s.kind == StoredKind::Weight && s.changes).all(|s| s.tensor.shape.len() == 1)
    );
    let lora = plan(&model, &["scheme=\"lora\""]);
    assert!(lora.stored.iter().filter(|s| s.changes).all(|s| s.name.contains(".lora_")));
    // Two matrices an adapter, four adapters a block.
    assert_eq!(makes_matrix_gradients(&lora), 2 * 4 * SMALL.layers as usize);
    let cycle = plan(&model, &["scheme=\"cycle:1\""]);
    assert!(cycle.stored.iter().filter(|s| s.kind == StoredKind::State).all(|s| s.name.contains("layers.2.")));
    let frozen = cycle.entry("train").expect("an entry");
    assert!(lower(frozen).all(|(b, _)| frozen.steps.iter().all(|s| s.block != b || s.part == Part::Forward)));
}

#[test]
fn inspect_shows_it() {
    let (scratch, model) = model("p5-inspect");
    let path = scratch.join("plan.bin");
    std::fs::write(&path, encode::encode(&plan(&model, &["scheme=\"last:1\""]))).expect("written");
    let shown = run(["inspect", arg(&path)]).ok().stdout;
    let line = |block: &str| {
        let start = format!("  block {block}: ");
        shown.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("no {block} in\n{shown}"))
    };
    for block in ["embed", "layers.0"] {
        assert!(line(block).ends_with(" forward, 0 backward, 0 update steps; saved 0 bytes"), "{}", line(block));
    }
    assert!(line("layers.1").contains(" 0 backward, 0 update steps"), "{}", line("layers.1"));
    assert!(
        !line("layers.2").contains(" 0 backward") && !line("layers.2").contains(" 0 update"),
        "{}",
        line("layers.2")
    );
    let changes: Vec<&str> = shown.lines().filter(|l| l.ends_with(", changes")).collect();
    assert!(!changes.is_empty() && changes.iter().all(|l| l.contains("layers.2.")), "{changes:?}");
}
