//! The simulated machine: whenever copies are carried out, a streamed run leaves what a resident one leaves; every
//! failure is one clear error that loses nothing; the clock adds up.

mod made;

use made::trace::{Trace, changed, difference};
use made::{Llama, MadeRows, Scratch, knobs, planned, planned_in_host};
use std::path::{Path, PathBuf};
use tinyforge::data::RowReader;
use tinyforge::runner::{RunError, RunOptions, Runner};
use tinyforge::sim::{Failure, FailureKind, Link, Rates, Report, SimError, SimOptions, Size};
use tinyforge::train::checkpoint::{self, CheckpointError};
use tinyforge::train::{TrainError, TrainOptions, Trainer};
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{Planned, Settings, Wanted};
use tinyforge_cli::profile;
use tinyforge_cli::request::plan_phases;
use tinyforge_compiler::machine::Machine;
use tinyforge_plan::Plan;

const LAYERS: u32 = 4;

const LLAMA: Llama = Llama { vocab: 64, hidden: 16, layers: LAYERS, ff: 24, tied: true };

/// A model on disk, and runs of it.
struct Desk {
    scratch: Scratch,
    model: Model,
}

impl Desk {
    fn new(name: &str) -> Desk {
        let scratch = Scratch::new(name);
        LLAMA.write(scratch.path());
        let model = Model::open(scratch.path()).expect("opens");
        Desk { scratch, model }
    }

    fn rows(&self, options: &TrainOptions) -> MadeRows {
        MadeRows { rows: 7, seq: options.seq, vocab: LLAMA.vocab }
    }

    fn plans(&self, base: &[&str], more: &[&str]) -> (Vec<Plan>, TrainOptions) {
        planned(&self.model, &knobs(&[&["seq=12"], base, more].concat()))
    }

    /// The same with half of what streams in the host's memory, and with all of it.
    fn plans_in_host(&self, base: &[&str], more: &[&str]) -> [(Vec<Plan>, TrainOptions); 2] {
        let knobs = knobs(&[&["seq=12"], base, more].concat());
        let all = planned_in_host(&self.model, &knobs, (u64::MAX, false));
        let host_bytes = all.0.iter().map(Plan::host_bytes).max().expect("a phase");
        [planned_in_host(&self.model, &knobs, (host_bytes / 2, false)), all]
    }

    /// The same where the host updates what streams.
    fn plans_by_host(&self, base: &[&str], more: &[&str]) -> (Vec<Plan>, TrainOptions) {
        planned_in_host(&self.model, &knobs(&[&["seq=12"], base, more].concat()), (u64::MAX, true))
    }

    fn work(&self) -> PathBuf {
        self.scratch.join("work.bin")
    }

    /// A run that is ready for its first step.
    fn trainer(
        &self,
        (plans, options): &(Vec<Plan>, TrainOptions),
        sim: Option<SimOptions>,
    ) -> Result<Trainer, RunError> {
        let run_options = RunOptions { work: Some(self.work()), sim, ..RunOptions::default() };
        let mut runner = Runner::with_phases(plans.clone(), run_options)?;
        runner.load(&self.model.files, options.seed)?;
        Ok(Trainer::new(runner, options.clone(), self.rows(options).rows()))
    }

    fn trace(&self, planned: &(Vec<Plan>, TrainOptions), sim: Option<SimOptions>) -> (Trace, Option<Report>) {
        let mut trainer = self.trainer(planned, sim).expect("is there");
        let trace = Trace::of(&mut trainer, &self.rows(&planned.1), 3).expect("trains");
        (trace, trainer.runner().simulated())
    }
}

fn seed(seed: u64) -> SimOptions {
    SimOptions { seed, ..SimOptions::default() }
}

const SCHEMES: [&[&str]; 6] = [
    &["scheme=\"full\""],
    &["scheme=\"full\"", "activations=\"far\"", "recompute=\"all\""],
    &["scheme=\"lora\"", "dtype=\"bf16\""],
    &["scheme=\"last:2\"", "clip=0.05"],
    &["scheme=\"sparse\"", "optimizer=\"sgd\""],
    &["scheme=\"cycle:2\"", "cycle_steps=1", "optimizer=\"adamw8\""],
];

#[test]
fn copies_at_any_moment_give_the_same() {
    let desk = Desk::new("sim-same");
    let (mut found, mut runs) = (Vec::new(), 0);
    for base in SCHEMES {
        let resident = desk.plans(base, &["window=\"all\""]);
        let (wanted, _) = desk.trace(&resident, None);
        assert!(wanted.losses.iter().all(|l| l.is_finite() && *l > 0.0), "{base:?}: {:?}", wanted.losses);
        for window in 1..LAYERS {
            for prefetch in 1..=window {
                // Some with several micro-batches, some with all computed again.
                let micro = if (window + prefetch) % 2 == 0 { "micro_batch=2" } else { "micro_batch=4" };
                let again = if window == 2 { "recompute=\"all\"" } else { "recompute=\"nothing\"" };
                let (k, ahead) = (format!("window=\"{window}\""), format!("prefetch={prefetch}"));
                let streamed = desk.plans(base, &[&k, &ahead, micro, again]);
                assert!(streamed.0.iter().all(|p| p.entries.iter().any(|e| !e.transfers.is_empty())), "{base:?} {k}");
                for number in 0..5 {
                    let (trace, _) = desk.trace(&streamed, Some(seed(number)));
                    runs += 1;
                    let text = difference(&wanted, &trace);
                    found.extend(text.map(|t| format!("{base:?} {k} {ahead} {micro} {again}, seed {number}: {t}")));
                }
            }
        }
    }
    assert!(found.is_empty(), "{} of {runs} runs differ:\n{}", found.len(), found.join("\n"));
    assert_eq!(runs, SCHEMES.len() * 6 * 5);
}

/// What rests in the host's memory, beside what rests in files and alone, is what would rest in files.
#[test]
fn the_hosts_memory_gives_the_same() {
    let desk = Desk::new("sim-host");
    let (mut found, mut runs, mut mixed) = (Vec::new(), 0, 0);
    for base in SCHEMES {
        let (wanted, _) = desk.trace(&desk.plans(base, &["window=\"all\""]), None);
        for more in [
            &["window=\"1\""][..],
            &["window=\"2\"", "prefetch=2", "micro_batch=2"],
            &["window=\"2\"", "embeddings=\"far\""],
        ] {
            let [half, all] = desk.plans_in_host(base, more);
            let has_files = |plan: &Plan| plan.spaces.iter().any(|s| s.is_far && !s.is_host);
            let host_bytes = |plans: &[Plan]| plans.iter().map(Plan::host_bytes).max().expect("a phase");
            assert!(host_bytes(&half.0) <= host_bytes(&all.0) / 2, "{base:?} {more:?}");
            mixed += usize::from(half.0.iter().all(|p| p.host_bytes() > 0 && has_files(p)));
            assert!(all.0.iter().all(|p| p.host_bytes() > 0), "{base:?} {more:?}: nothing streams");
            for planned in [&half, &all] {
                // By the machine's own threads, and at the moments that a seed picks.
                for sim in [None, Some(seed(1)), Some(seed(2)), Some(seed(3))] {
                    runs += 1;
                    let what =
                        format!("{base:?} {more:?}, {} bytes in the host's memory, {sim:?}", host_bytes(&planned.0));
                    found.extend(difference(&wanted, &desk.trace(planned, sim).0).map(|t| format!("{what}: {t}")));
                }
            }
        }
    }
    assert!(found.is_empty(), "{} of {runs} runs differ:\n{}", found.len(), found.join("\n"));
    assert!(mixed >= 10, "{mixed} plans have both kinds");
}

fn host_steps(plan: &Plan) -> usize {
    plan.entries.iter().map(|e| plan.host_steps(e).len()).sum()
}

/// What the host updates beside backward is what would be updated here.
#[test]
fn the_hosts_updates_give_the_same() {
    let desk = Desk::new("sim-updates");
    let (mut found, mut runs) = (Vec::new(), 0);
    for base in [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "activations=\"far\"", "recompute=\"all\""],
        &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""],
        &["scheme=\"full+head\"", "optimizer=\"sgd\"", "beta1=0"],
        &["scheme=\"last:2\"", "clip=0.05"],
        &["scheme=\"last:3\"", "clip=0.05", "clip_by=\"second\""],
    ] {
        let (wanted, _) = desk.trace(&desk.plans(base, &["window=\"all\""]), None);
        for more in [
            &["window=\"1\""][..],
            &["window=\"2\"", "prefetch=2", "micro_batch=2"],
            &["window=\"3\"", "micro_batch=1"],
            &["window=\"2\"", "block_parts=2"],
            &["window=\"2\"", "embeddings=\"far\"", "threads=2"],
        ] {
            let planned = desk.plans_by_host(base, more);
            assert!(planned.0.iter().all(|p| host_steps(p) > 0), "{base:?} {more:?}: the host does nothing");
            for sim in [None, Some(seed(1)), Some(seed(2)), Some(seed(3))] {
                runs += 1;
                let what = format!("{base:?} {more:?}, {sim:?}");
                found.extend(difference(&wanted, &desk.trace(&planned, sim).0).map(|t| format!("{what}: {t}")));
            }
        }
    }
    assert!(found.is_empty(), "{} of {runs} runs differ:\n{}", found.len(), found.join("\n"));
}

/// A plan that counts on a moment or an order gives something else: the simulation would show it.
#[test]
fn moments_depend_on_the_seed_alone() {
    let desk = Desk::new("sim-seed");
    let streamed = desk.plans(SCHEMES[0], &["window=\"1\""]);
    let report = |number| desk.trace(&streamed, Some(seed(number))).1.expect("simulated");
    assert_eq!(report(1), report(1));
    // The clock follows the plan, not the moments.
    assert_eq!(report(1), report(2));
}

fn linked(bytes_per_second: f64, latency_s: f64) -> SimOptions {
    let link = Link { bytes_per_second, latency_s };
    SimOptions { rates: Rates { inward: link, outward: link, ..Rates::default() }, ..SimOptions::default() }
}

#[test]
fn the_clock_adds_up() {
    let desk = Desk::new("sim-clock");
    let report = |base: &[&str], more: &[&str], sim| desk.trace(&desk.plans(base, more), Some(sim)).1.expect("is");
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    for base in SCHEMES {
        let resident = report(base, &["window=\"all\""], linked(1e6, 1e-3));
        assert_eq!((resident.inward.bytes, resident.outward.bytes, resident.waits.len()), (0, 0, 0), "{base:?}");
        assert!(near(resident.seconds, resident.compute_s) && resident.launches > 100, "{base:?}: {resident:?}");
        let mut moved = u64::MAX;
        for window in 1..LAYERS {
            let k = format!("window=\"{window}\"");
            let [endless, fast, slow] = [(f64::INFINITY, 0.0), (1e8, 1e-6), (1e6, 1e-3)]
                .map(|(rate, latency)| report(base, &[&k], linked(rate, latency)));
            let what = format!("{base:?}, window {window}: {endless:?}, {fast:?}, {slow:?}");
            assert_eq!((endless.waited_s, endless.waits.len()), (0.0, 0), "{what}");
            assert!(slow.waited_s > fast.waited_s && fast.waited_s >= 0.0, "{what}");
            for it in [&endless, &fast, &slow] {
                assert!(near(it.seconds, it.compute_s + it.waited_s), "{what}");
                assert!(near(it.waited_s, it.waits.iter().map(|w| w.seconds).sum()), "{what}");
                assert!(it.seconds >= 0.999_999 * it.inward.busy_s.max(it.outward.busy_s), "{what}");
                assert_eq!((it.inward.bytes, it.launches), (slow.inward.bytes, slow.launches), "{what}");
                assert!(near(it.compute_s, slow.compute_s), "{what}");
            }
            // What the link takes when it never rests is the least that a step can take.
            assert!(slow.inward.bytes <= moved, "{what}: a larger window moves more");
            moved = slow.inward.bytes;
        }
    }
}

#[test]
fn a_memory_that_is_too_small_is_an_error() {
    let desk = Desk::new("sim-size");
    let streamed = desk.plans(SCHEMES[0], &["window=\"1\""]);
    for space in &streamed.0[0].spaces {
        let with = |bytes| {
            let rates = Rates { spaces: vec![Size { name: space.name.clone(), bytes }], ..Rates::default() };
            desk.trainer(&streamed, Some(SimOptions { rates, ..SimOptions::default() })).map(|_| ())
        };
        let text = with(space.bytes - 1).expect_err("too small").to_string();
        let wanted = format!("takes {} bytes of `{}`", space.bytes, space.name);
        assert!(text.contains(&wanted) && text.contains(&format!("has {}", space.bytes - 1)), "{text}");
        with(space.bytes).expect("just enough");
    }
}

const STEPS: u64 = 3;

/// How a run with checkpoints ended.
enum End {
    Failed(SimError),
    Done(Vec<(String, Vec<u8>)>),
}

fn of_run(error: RunError) -> SimError {
    match error {
        RunError::Sim(error) => error,
        other => panic!("{other}"),
    }
}

/// Goes on from the last checkpoint, where there is one, and saves one after every step.
fn go_on(desk: &Desk, planned: &(Vec<Plan>, TrainOptions), sim: Option<SimOptions>, path: &Path) -> End {
    let mut trainer = match desk.trainer(planned, sim) {
        Ok(trainer) => trainer,
        Err(error) => return End::Failed(of_run(error)),
    };
    let tensors = |runner: &Runner| checkpoint::tensors(runner.plans(), runner.phase());
    if path.exists() {
        let found = checkpoint::open(path).expect("whole");
        let progress = found.progress().clone();
        let runner = trainer.runner_mut();
        runner.activate(progress.phase as usize);
        runner.clear_states().expect("cleared");
        let list = tensors(runner);
        found.restore(&list, runner).expect("restored");
        trainer.progress = progress;
    }
    let rows = desk.rows(&planned.1);
    while trainer.progress.step < STEPS {
        match trainer.step(&rows) {
            Ok(_) => {}
            Err(TrainError::Run(error)) => return End::Failed(of_run(error)),
            Err(other) => panic!("{other}"),
        }
        let (progress, list) = (trainer.progress.clone(), tensors(trainer.runner()));
        let saved: Result<(), CheckpointError> = checkpoint::save(path, "sim", &progress, &list, trainer.runner_mut());
        saved.expect("copies between runs do not fail");
    }
    End::Done(changed(&mut trainer))
}

#[test]
fn every_failure_is_one_error_and_loses_nothing() {
    let desk = Desk::new("sim-failures");
    let path = desk.scratch.join("checkpoint.bin");
    for (base, kinds) in [
        (&["scheme=\"full\"", "window=\"1\""][..], &FailureKind::ALL[..]),
        (&["scheme=\"lora\"", "window=\"2\"", "prefetch=2"], &[FailureKind::CopyIn, FailureKind::Launch]),
        (&["scheme=\"cycle:2\"", "window=\"1\"", "cycle_steps=1"], &FailureKind::ALL),
        (&["scheme=\"last:2\"", "window=\"1\"", "micro_batch=1"], &[FailureKind::CopyIn]),
        (&["scheme=\"full\"", "window=\"1\"", "activations=\"far\""], &[FailureKind::CopyOut, FailureKind::CopyIn]),
        (&["scheme=\"full\"", "window=\"all\""], &[FailureKind::Allocation, FailureKind::Launch]),
    ] {
        let planned = desk.plans(base, &[]);
        let _ = std::fs::remove_file(&path);
        let End::Done(wanted) = go_on(&desk, &planned, None, &path) else { panic!("nothing fails") };
        for &kind in kinds {
            let (mut nth, mut failed, mut later) = (1, 0, 0);
            loop {
                let _ = std::fs::remove_file(&path);
                let sim = SimOptions { failure: Some(Failure { kind, nth }), ..seed(nth) };
                let what = format!("{base:?}: {} {nth}", kind.name());
                match go_on(&desk, &planned, Some(sim), &path) {
                    End::Done(found) => {
                        assert!(found == wanted, "{what}: a run without a failure differs");
                        break;
                    }
                    End::Failed(error) => {
                        assert_eq!((error.kind, error.nth), (kind, nth), "{what}: {error}");
                        let text = error.to_string();
                        let says = text.contains(&format!("{} {nth}: ", kind.name())) && error.at.len() > 8;
                        assert!(says && text.lines().count() == 1, "{what}: {text}");
                    }
                }
                failed += 1;
                later += u64::from(path.exists());
                assert!(!desk.work().exists(), "{what}: the work file is left");
                // On the machine itself, and on one that is simulated.
                let again = (nth % 2 == 0).then(|| seed(nth + 1));
                let End::Done(found) = go_on(&desk, &planned, again, &path) else { panic!("{what}: fails again") };
                assert!(found == wanted, "{what}: going on gives other bytes");
                nth += 1 + nth / 4;
            }
            let least = if kind == FailureKind::Allocation { 2 } else { 4 };
            assert!(failed >= least, "{base:?}: {} failed {failed} times", kind.name());
            assert!(kind == FailureKind::Allocation || later > 0, "{base:?}: none failed behind a checkpoint");
        }
    }
}

const MACHINE: &str = r#"
name = "made"
figures = "made up"
near = "vram"
[rates]
f32 = 3e9
bf16 = 5e9
near_bytes_per_second = 4e9
optimizer_bytes_per_second = 1e9
launch_s = 2e-6
[[space]]
name = "vram"
[[space]]
name = "pinned"
[[link]]
from = "pinned"
to = "vram"
bytes_per_second = 7e7
latency_s = 3e-5
[[link]]
from = "vram"
to = "pinned"
bytes_per_second = 5e7
latency_s = 2e-5
[[space]]
name = "disk"
[[link]]
from = "disk"
to = "pinned"
bytes_per_second = 3e7
latency_s = 4e-5
[[link]]
from = "pinned"
to = "disk"
bytes_per_second = 2e7
latency_s = 1e-5
"#;

/// Bytes of the tensors that move in a step, the mean of all phases.
fn moved_bytes(plans: &[Planned], batch: u32) -> u64 {
    let of_plan = |planned: &Planned| {
        let plan = &planned.compiled.plan;
        let of = |(name, times): (&str, u32)| {
            let Some(entry) = plan.entry(name) else { return 0 };
            let bytes: u64 = entry.transfers.iter().map(|t| plan.stored[t.stored as usize].tensor.bytes()).sum();
            bytes * u64::from(times.div_ceil(entry.micro_batches()))
        };
        of(("train", batch.div_ceil(planned.micro_rows))) + of(("update", 1))
    };
    plans.iter().map(of_plan).sum::<u64>() / plans.len() as u64
}

/// The cost model plays what a plan says; the executor carries it out. On one machine both take the same time, with
/// two queues and with a single one, whatever limits: compute, the link, its latency.
#[test]
fn the_executor_takes_what_the_cost_model_predicts() {
    let desk = Desk::new("sim-predicts");
    let (mut compared, mut exact, mut waited, mut overlapped) = (0, 0, 0, 0);
    let traits = "[traits]\nsingle_queue = true\n";
    let texts = [
        MACHINE.to_string(),
        MACHINE.replace("7e7", "7e9").replace("5e7", "5e9"),
        MACHINE.replace("3e-5", "3e-3"),
        MACHINE.replace("[rates]", &format!("{traits}[rates]")),
    ];
    let machines: Vec<Machine> = texts.iter().map(|text| Machine::parse(text).expect("a machine")).collect();
    for base in SCHEMES {
        for more in [
            &["window=\"all\""][..],
            &["window=\"1\""],
            &["window=\"2\"", "prefetch=2", "micro_batch=2"],
            &["window=\"3\"", "recompute=\"all\"", "micro_batch=1"],
        ] {
            let knobs = knobs(&[&["seq=12"], base, more].concat());
            // In files, in the host's memory, and in both; and updated by the host.
            let ways = [(0, false), (u64::MAX, false), (8 << 10, false), (u64::MAX, true)];
            let ways = ways.map(|(host_memory, host_optimizer)| {
                let settings = Settings {
                    host_memory,
                    host_optimizer: Some(host_optimizer),
                    ..knobs.settings().expect("settings")
                };
                let plans = plan_phases(&desk.model, &settings, Wanted::Train, &[]).expect("plans");
                (settings, plans)
            });
            for ((settings, plans), machine) in ways.iter().flat_map(|way| machines.iter().map(move |m| (way, m))) {
                let what = format!("{base:?} {more:?} in {} on {:?}", settings.host_memory, machine.links);
                let cost = profile::step_cost(machine, plans, settings.batch).expect("has its rates");
                let bound_s = cost.bound.seconds();
                let played = profile::simulate(machine, plans, settings.batch, bound_s).expect("plays");
                // The gaps between tensors of the work file move along; nothing else may make a difference.
                let gaps = played.moved_bytes.iter().sum::<u64>() - moved_bytes(plans, settings.batch);
                let rate = machine.links.iter().filter_map(|l| l.bytes_per_second).fold(f64::INFINITY, f64::min);
                let more = 1e-12..gaps as f64 / rate + 1e-9;
                let late_s = played.step_s - cost.prediction_s + 1e-10;
                assert!(more.contains(&late_s), "{what}: {} s predicted, {played:?}", cost.prediction_s);
                let late_s = played.waited_s - cost.waiting_s + 1e-10;
                assert!(more.contains(&late_s), "{what}: {} s of waiting, {played:?}", cost.waiting_s);
                exact += usize::from(gaps == 0);
                assert!(played.efficiency <= 1.0 + 1e-9 && (0.0..=1.0).contains(&played.overlap), "{what}: {played:?}");
                compared += 1;
                waited += usize::from(played.waited_s > 0.0);
                overlapped += usize::from(played.links_s[0] > 0.0 && played.overlap > 0.5);
            }
        }
    }
    let counts = [compared, exact, waited, overlapped];
    assert!(compared == 384 && exact > 60 && waited > 60 && overlapped > 15, "{counts:?}");
}
