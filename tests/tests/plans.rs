//! What the planner makes of models that people train: peaks, lower bounds, steps and recomputation, as a snapshot,
//! so that the planner's quality shows as a difference.

use std::fmt::Write;
use std::path::Path;
use tinyforge_compiler::compile::{CompileError, Compiled, Entry, Recompute, Request, Role, compile};
use tinyforge_compiler::import::DecoderConfig;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::check::check;
use tinyforge_plan::{Kernels, Number, Part, Plan, Shape, StoredKind};
use tinyforge_tests::golden::{HOW_TO_BLESS, blessing, difference};
use tinyforge_tests::models::{losses, real};
use tinyforge_tests::script::optimizer;

/// Kernels that need no scratch: what is measured is the planner, whatever the device.
struct NoScratch;

impl Kernels for NoScratch {
    fn scratch_bytes(&self, _: &str, _: &[Shape], _: &[Shape], _: &[(String, Number)]) -> Result<u64, String> {
        Ok(0)
    }
}

#[derive(Clone, Copy)]
struct Case<'a> {
    config: &'a DecoderConfig,
    scheme: &'a str,
    seq: u32,
    rows: u32,
    micro_batches: u32,
    clip: Option<f64>,
    recompute: Recompute,
    arena_bytes_max: Option<u64>,
}

impl Case<'_> {
    fn compile(&self) -> Result<Compiled, CompileError> {
        let mut optimizer = optimizer("adamw");
        optimizer.clip = self.clip;
        let compiled = compile(&Request {
            scheme: Scheme::parse(self.scheme).expect("a scheme"),
            optimizer,
            recompute: self.recompute,
            arena_bytes_max: self.arena_bytes_max,
            ..Request::plain(
                "snapshot",
                vec![Entry {
                    name: "train".to_string(),
                    graph: losses(self.config, self.rows, self.seq),
                    role: Role::Train { micro_batches: self.micro_batches },
                }],
                &NoScratch,
            )
        })?;
        assert_eq!(check(&compiled.plan), Vec::<String>::new(), "{} {}", self.scheme, self.seq);
        Ok(compiled)
    }
}

const SCHEMES: [&str; 5] = ["full", "lora", "last:2", "sparse", "bias"];

/// One line a plan: peak, what is stored, how far the peak is above its lower bound, steps.
fn line(plan: &Plan) -> String {
    let entries = plan.entries.iter().map(|e| {
        let over = (e.peak.bytes.max(e.peak.lower_bound_bytes) - e.peak.lower_bound_bytes) as f64;
        let above_stored = (e.peak.lower_bound_bytes - stored_end(plan)).max(1) as f64;
        format!("{} {} {:.2}% {}", e.name, e.peak.bytes, 100.0 * over / above_stored, e.steps.len())
    });
    let states = plan.stored_bytes(|s| s.kind == StoredKind::State);
    format!("stored {} (states {states}); {}", stored_end(plan), entries.collect::<Vec<_>>().join("; "))
}

fn stored_end(plan: &Plan) -> u64 {
    plan.stored.iter().map(|s| s.tensor.end()).max().unwrap_or(0)
}

/// Budgets between the smallest and the largest arena, and what recomputation each leads to.
fn budgets(case: &Case, out: &mut String) {
    let most = case.compile().expect("it compiles").plan.arena_bytes();
    let least = Case { recompute: Recompute::All, ..*case }.compile().expect("it compiles").plan.arena_bytes();
    for part in [3, 2, 1, 0] {
        let limit = least + (most.max(least) - least) * part / 4;
        let case = Case { recompute: Recompute::Auto, arena_bytes_max: Some(limit), ..*case };
        let text = match case.compile() {
            Ok(c) => format!("step {}/{}, {}", c.choice.recompute_step, c.choice.recompute_steps, line(&c.plan)),
            Err(error) => error.to_string(),
        };
        let _ = writeln!(out, "    within {limit}: {text}");
    }
}

fn snapshot() -> String {
    let mut out = String::from(
        "# model, scheme, sequence: stored bytes; for every entry its peak in bytes, how far that is above what is live\n\
         # at the fullest step (of the bytes above the stored tensors), and its steps. Budgets: the step of the ladder\n\
         # of recomputation that fits. No scratch is counted.\n",
    );
    for (name, config) in real() {
        let lengths: &[u32] = if name == "stories260K" { &[64, 256] } else { &[256] };
        for (&seq, scheme) in lengths.iter().flat_map(|seq| SCHEMES.map(|scheme| (seq, scheme))) {
            let case = Case {
                config: &config,
                scheme,
                seq,
                rows: 1,
                micro_batches: 1,
                clip: None,
                recompute: Recompute::Nothing,
                arena_bytes_max: None,
            };
            let plan = case.compile().expect("it compiles").plan;
            let _ = writeln!(out, "{name}, {scheme}, {seq}: {}", line(&plan));
            if matches!(scheme, "full" | "lora") {
                budgets(&case, &mut out);
                let several = Case { rows: 2, micro_batches: 4, clip: Some(1.0), ..case };
                let plan = several.compile().expect("it compiles").plan;
                let _ = writeln!(out, "    4 micro-batches of 2 rows, clipped: {}", line(&plan));
                let clipped = Case { clip: Some(1.0), ..case };
                let plan = clipped.compile().expect("it compiles").plan;
                let _ = writeln!(out, "    clipped: {}", line(&plan));
                let least =
                    Case { recompute: Recompute::All, arena_bytes_max: Some(plan.arena_bytes() - 1), ..clipped };
                let text = match least.compile() {
                    Ok(c) => format!("{:?}, {}", c.choice.clip_by, line(&c.plan)),
                    Err(error) => error.to_string(),
                };
                let _ = writeln!(out, "    clipped in less: {text}");
            }
        }
    }
    out
}

#[test]
fn plans_are_as_good_as_they_were() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans.snap");
    let (wanted, found) = (std::fs::read_to_string(&path).unwrap_or_default(), snapshot());
    if blessing() {
        std::fs::write(&path, found).expect("tests/plans.snap can be written");
    } else {
        assert!(wanted == found, "{}{HOW_TO_BLESS}", difference(&wanted, &found));
    }
}

/// What is not trained costs nothing: below the lowest trained block there is no backward, no update, no state, and no
/// activation that lives into backward.
#[test]
fn what_is_not_trained_costs_nothing() {
    for (name, config) in real() {
        let case = Case {
            config: &config,
            scheme: "last:2",
            seq: 64,
            rows: 1,
            micro_batches: 1,
            clip: Some(1.0),
            recompute: Recompute::Nothing,
            arena_bytes_max: None,
        };
        for (clip, micro_batches) in [(None, 1), (Some(1.0), 1), (Some(1.0), 2)] {
            let plan = Case { clip, micro_batches, ..case }.compile().expect("it compiles").plan;
            let train = plan.entry("train").expect("the plan trains");
            let frozen = |block: u32| {
                let block = train.blocks[block as usize].as_str();
                let layer = block.strip_prefix("layers.").and_then(|l| l.parse::<usize>().ok());
                block == "embed" || layer.is_some_and(|l| l < config.layers - 2)
            };
            let end = train.steps.iter().position(|s| s.part != Part::Forward).expect("there is a backward");
            let mut made_below = Vec::new();
            for (i, step) in train.steps.iter().enumerate() {
                assert!(!frozen(step.block) || step.part == Part::Forward, "{name}: {} in a frozen block", step.label);
                if frozen(step.block) {
                    made_below.extend(step.outs.iter().map(|o| o.value));
                } else if i >= end {
                    let kept = step.args.iter().find(|a| made_below.contains(&a.value));
                    // The first trained block's input is what the frozen part leaves behind: one value.
                    let is_boundary = |v: u32| Some(&v) == made_below.last();
                    assert!(
                        kept.is_none_or(|a| is_boundary(a.value)),
                        "{name}: {} reads a frozen block's value",
                        step.label
                    );
                }
            }
            let trained = |s: &str| (config.layers - 2..config.layers).any(|l| s.contains(&format!(".{l}.")));
            for stored in plan.stored.iter().filter(|s| s.kind == StoredKind::State || s.changes) {
                assert!(trained(&stored.name), "{name}: `{}` is kept or changed", stored.name);
            }
        }
    }
}

/// The planner's ladder goes down: what recomputes everything never needs more than what recomputes nothing.
#[test]
fn recomputation_saves_memory() {
    for (name, config) in real() {
        for scheme in SCHEMES {
            let case = Case {
                config: &config,
                scheme,
                seq: 256,
                rows: 1,
                micro_batches: 1,
                clip: None,
                recompute: Recompute::Nothing,
                arena_bytes_max: None,
            };
            let most = case.compile().expect("it compiles").plan.arena_bytes();
            let least = Case { recompute: Recompute::All, ..case }.compile().expect("it compiles").plan.arena_bytes();
            assert!(least <= most, "{name}, {scheme}: {least} bytes with recomputation, {most} without");
        }
    }
}
