//! Source code of the published networks: what the compiler of that code will check, and what it says of its steps.

use tinyforge::cpu::CpuKernels;
use tinyforge_compiler::compile::{Entry, Request, Role, compile};
use tinyforge_compiler::export::rust::{self, ExportError, Source};
use tinyforge_compiler::import::{int8, mcu};
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::published::PUBLISHED;
use tinyforge_compiler::target::Target;
use tinyforge_plan::{DType, Fixed, Plan};
use tinyforge_tests::convnets::{MCUNET, rows};
use tinyforge_tests::published;

const LIMITS: [u64; 2] = [1 << 20, 1 << 20];
const STACK_BYTES: u64 = 4096;

/// The plan of mcunet-5fps with the scheme 49kb and generated weights.
fn plan(micro_batches: u32) -> Plan {
    let files = published::files(&rows(MCUNET));
    let model = mcu::import(files.json.as_bytes(), &files.weights, "weights").expect("a network");
    let model = model.with_classes(10).expect("a new head");
    let entry =
        |name: &str, of, role| Entry { name: name.to_string(), graph: model.graph(of, 1).expect("a graph"), role };
    let scheme = PUBLISHED.iter().find(|p| p.net == "mcunet-5fps" && p.label_kib == 49).expect("a scheme").scheme();
    let rule = tinyforge_compiler::optimizer::rule_index("sgd").expect("a rule");
    let request = Request {
        scheme,
        storage: Storage { trained: DType::I8, frozen: None },
        optimizer: Optimizer { rule, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: None },
        target: Target::from_name("cortex-m7").expect("a target"),
        source: &|tensor| model.source(tensor, true).unwrap_or(tinyforge_plan::Source::Zero),
        files: model.files.clone(),
        ..Request::plain(
            "exported",
            vec![
                entry("train", int8::Entry::Train, Role::Train { micro_batches }),
                entry("infer", int8::Entry::Infer, Role::Forward),
            ],
            &CpuKernels { threads: 1 },
        )
    };
    let mut plan = compile(&request).unwrap_or_else(|e| panic!("{e}")).plan;
    plan.fixed.push(Fixed { name: "stack".to_string(), bytes: STACK_BYTES });
    plan
}

fn export(plan: &Plan, limits: [u64; 2], batch: u32) -> Result<Source, ExportError> {
    let image = vec![1; plan.arena_bytes() as usize];
    rust::export(&rust::Request { plan, image: &image, limits, batch })
}

#[test]
fn every_scratch_and_both_memories_are_asserted() {
    let plan = plan(1);
    let code = export(&plan, LIMITS, 1).expect("source").model;
    let steps: Vec<_> = ["infer", "train"].iter().flat_map(|name| &plan.entry(name).expect("an entry").steps).collect();
    for (number, step) in steps.iter().enumerate().filter(|(_, step)| step.scratch_bytes > 0) {
        let wanted = format!("_scratch_bytes(&DIMS_{number}) <= {});", step.scratch_bytes);
        assert!(code.contains(&wanted), "{} {}: no `{wanted}`", step.kernel, step.label);
        assert!(step.scratch_offset.is_multiple_of(8), "{} {}", step.kernel, step.label);
    }
    assert!(code.contains(&format!("SRAM_BYTES + STACK_BYTES <= {}", LIMITS[0])));
    assert!(code.contains(&format!("pub const STACK_BYTES: usize = {STACK_BYTES};")));
}

#[test]
fn macs_are_those_of_the_table() {
    let code = export(&plan(1), LIMITS, 1).expect("source").model;
    let mut sums = [0u64; 2];
    let mut entry = 0;
    for line in code.lines() {
        if let Some(name) = line.strip_prefix("fn ") {
            entry = usize::from(name.starts_with("train_"));
        }
        let macs = line.strip_suffix(" MACs").and_then(|line| line.rsplit_once(", "));
        sums[entry] += macs.map_or(0, |(_, macs)| macs.parse().expect("a number"));
    }
    let of = |row: &tinyforge_tests::convnets::Row| {
        let inputs = if row.is_depthwise { 1 } else { row.channels[0] };
        u64::from(row.sides[1] * row.sides[1] * row.channels[1] * inputs * row.kernel * row.kernel)
    };
    let forward: u64 = rows(MCUNET).iter().map(of).sum::<u64>() + 160 * 10;
    assert_eq!(sums[0], forward);
    assert!(sums[1] > forward && sums[1] < 2 * forward, "{sums:?}");
}

#[test]
fn nothing_is_changed_before_the_loss_is_known() {
    let code = export(&plan(1), LIMITS, 1).expect("source").model;
    let forward = code.split("fn forward(").nth(1).and_then(|rest| rest.split("fn backward(").next()).expect("a part");
    assert!(forward.contains("train_head_forward") && !forward.contains("_update"), "{forward}");
    let mut early = plan(1);
    let train = early.entries.iter_mut().find(|e| e.name == "train").expect("an entry");
    let at = train.steps.iter().position(|s| s.changes > 0).expect("an update");
    let update = train.steps.remove(at);
    train.steps.insert(0, update);
    assert!(matches!(export(&early, LIMITS, 1), Err(ExportError::LateLoss { .. })));
}

#[test]
fn a_batch_is_part_of_what_tells_plans_apart() {
    let plan = plan(4);
    let [four, eight] = [4, 8].map(|batch| export(&plan, LIMITS, batch).expect("source"));
    assert!(four.hash != eight.hash && four.model.contains("const BATCH: usize = 4;"));
    assert!(
        four.model.contains("[1.0 / 4.0]") && four.model.contains("k::i32_update(") && four.model.contains("fn update")
    );
    let other = Plan { files: vec!["elsewhere".to_string()], ..plan.clone() };
    assert_eq!(export(&other, LIMITS, 4).expect("source").hash, four.hash);
}

#[test]
fn what_does_not_fit_is_refused() {
    let plan = plan(1);
    for limits in [[plan.near_bytes() + STACK_BYTES - 1, LIMITS[1]], [LIMITS[0], 1000]] {
        assert!(matches!(export(&plan, limits, 1), Err(ExportError::Budget { .. })));
    }
}
