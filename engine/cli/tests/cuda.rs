//! Training by the kernels of CUDA where there is no card: compiled for the host, over a driver that is as late as its
//! events let it be. The CPU's losses, the plan's memory, and the same bytes whatever the budget.

mod made;

use made::devices::{self, made_model, rows_of};
use made::trace::{Trace, difference};
use made::{MadeRows, SMALL, TIED, knobs, planned, program};
use tinyforge::data::RowReader;
use tinyforge::gpu::cuda::Open;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::train::Trainer;
use tinyforge_cli::knobs::Knobs;
use tinyforge_cli::model::Model;
use tinyforge_cuda_shim::{TASK_NS, ascending, ascending_by_library, descending, descending_by_library, replays};

const CUDA: &str = "device=\"cuda\"";

/// Whether the kernels can be compiled for the host.
fn has_shim() -> bool {
    devices::is_there("TINYFORGE_CUDA", "g++", || tinyforge_cuda_shim::compiler().map(drop).map_err(|e| e.to_string()))
}

/// A trainer over a driver, poisoned before anything is loaded.
fn trainer(model: &Model, knobs: &Knobs, open: Open, poison: u8) -> Trainer {
    let (plans, options) = planned(model, knobs);
    let device = knobs.settings().expect("settings").device;
    let run_options = RunOptions { device, driver: Some(open), ..RunOptions::default() };
    let mut runner = Runner::with_phases(plans, run_options).expect("runs");
    runner.fill(poison).expect("the device is there");
    runner.load(&model.files, options.seed).expect("loads");
    Trainer::new(runner, options, rows_of(model, knobs).rows())
}

fn trace_by(model: &Model, pairs: &[&str], steps: usize, open: Open) -> Trace {
    let knobs = knobs(pairs);
    Trace::of(&mut trainer(model, &knobs, open, 0xff), &rows_of(model, &knobs), steps).expect("trains")
}

fn ascends(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    trace_by(model, pairs, steps, ascending)
}

fn descends(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    trace_by(model, pairs, steps, descending)
}

#[test]
fn cuda_losses_are_the_cpus() {
    if has_shim() {
        devices::losses_are_the_cpus(CUDA, &ascends);
    }
}

/// Threads from the last to the first, and streams in another order, at every second look.
#[test]
fn cuda_budgets_do_not_change_the_result() {
    if has_shim() {
        devices::budgets_do_not_change_the_result(CUDA, &ascends, &descends);
    }
}

fn ascends_by_library(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    trace_by(model, pairs, steps, ascending_by_library)
}

fn descends_by_library(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    trace_by(model, pairs, steps, descending_by_library)
}

#[test]
fn cuda_losses_by_a_library_are_the_cpus() {
    if has_shim() {
        devices::losses_are_the_cpus(CUDA, &ascends_by_library);
    }
}

/// A product that is chosen by anything but a packed row's shape has other bits: the library's sums follow from all
/// that it is told.
#[test]
fn cuda_products_by_a_library_do_not_change_with_budgets() {
    if has_shim() {
        devices::budgets_do_not_change_the_result(CUDA, &ascends_by_library, &descends_by_library);
    }
}

#[test]
fn cuda_products_by_a_library_do_not_change_with_windows() {
    if has_shim() {
        devices::windows_in_one_tier_do_not_change_the_result(CUDA, &ascends_by_library, &descends_by_library);
    }
}

/// The library is there and is used: its sums are in another order than those of the kernels.
#[test]
fn cuda_a_library_gives_other_bits_than_kernels() {
    if has_shim() {
        let (_scratch, model) = made_model("cuda-library", TIED);
        let pairs = ["scheme=\"full\"", CUDA];
        let [kernels, library] = [ascends, ascends_by_library].map(|train| train(&model, &pairs, 2));
        assert!(difference(&kernels, &library).is_some(), "no product was the library's");
    }
}

/// By pinned memory, in parts, beside the steps.
#[test]
fn cuda_windows_do_not_change_the_result() {
    if has_shim() {
        devices::windows_do_not_change_the_result(CUDA, &ascends, &descends);
    }
}

#[test]
fn cuda_the_hosts_updates_are_the_cards() {
    if has_shim() {
        devices::the_hosts_updates_are_the_devices(CUDA, &ascends, &descends);
    }
}

#[test]
fn cuda_the_highest_byte_touched_is_the_planned_peak() {
    if !has_shim() {
        return;
    }
    let (_scratch, model) = made_model("cuda-p1", SMALL);
    for pairs in [&["scheme=\"full\"", CUDA][..], &["scheme=\"lora\"", "dtype=\"bf16\"", "micro_batch=1", CUDA]] {
        let mut highest = 0;
        for poison in [0xff, 0x55] {
            let knobs = knobs(pairs);
            let mut trainer = trainer(&model, &knobs, ascending, poison);
            let rows = rows_of(&model, &knobs);
            trainer.step(&rows).expect("trains");
            trainer.evaluate(&rows, 4).expect("evaluates");
            let bytes = trainer.runner_mut().memory().expect("the device is there");
            highest = highest.max(bytes.iter().rposition(|b| *b != poison).map_or(0, |at| at as u64 + 1));
        }
        let plan = &planned(&model, &knobs(pairs)).0[0];
        let peak = plan.entries.iter().map(|e| e.peak.bytes).max().unwrap_or(0);
        assert_eq!(highest, peak, "{pairs:?}");
    }
}

#[test]
fn cuda_a_token_outside_of_the_vocabulary_stops_the_run() {
    if !has_shim() {
        return;
    }
    let (_scratch, model) = made_model("cuda-wrong", TIED);
    let error_of = |pairs: &[&str], open: Option<Open>| {
        let knobs = knobs(pairs);
        let rows = MadeRows { vocab: 2 * model.config.vocab as u32, ..rows_of(&model, &knobs) };
        let mut trainer = match open {
            Some(open) => trainer(&model, &knobs, open, 0),
            None => made::trainer(&model, &knobs, rows.rows()),
        };
        (0..4).find_map(|_| trainer.step(&rows).err()).expect("a token is not in the table").to_string()
    };
    let cpu = error_of(&["scheme=\"full\""], None);
    for pairs in [&["scheme=\"full\"", CUDA][..], &["scheme=\"full\"", "window=\"1\"", CUDA]] {
        assert_eq!(cpu, error_of(pairs, Some(ascending)), "{pairs:?}");
    }
}

/// Learning rate, step and data change from run to run, and a recording does not: what it computes is what launches
/// compute, which the other order always does. The first run of an entry is not recorded.
#[test]
fn cuda_recordings_are_the_launches() {
    if !has_shim() {
        return;
    }
    let (_scratch, model) = made_model("cuda-recorded", TIED);
    for base in [&["scheme=\"full\"", "micro_batch=1", "warmup=3", CUDA][..], &["scheme=\"lora\"", "clip=0.05", CUDA]] {
        let before = replays();
        let recorded = ascends(&model, base, 5);
        assert!(replays() >= before + 4, "{base:?}: steps after the first are recorded");
        assert_eq!(difference(&recorded, &descends(&model, base, 5)), None, "{base:?}");
    }
}

/// Every launch takes as long as another there, and nothing else runs between the steps of a plan that streams nothing.
#[test]
fn cuda_times_are_those_of_events() {
    if !has_shim() {
        return;
    }
    let (_scratch, model) = made_model("cuda-times", SMALL);
    let knobs = knobs(&["scheme=\"full\"", "micro_batch=1", CUDA]);
    let (plans, options) = planned(&model, &knobs);
    let device = knobs.settings().expect("settings").device;
    let run_options = RunOptions { device, driver: Some(ascending), count_times: true, ..RunOptions::default() };
    let mut runner = Runner::with_phases(plans, run_options).expect("runs");
    runner.load(&model.files, options.seed).expect("loads");
    let rows = rows_of(&model, &knobs);
    let mut trainer = Trainer::new(runner, options, rows.rows());
    (0..2).for_each(|_| trainer.step(&rows).map(drop).expect("trains"));
    let mut counted = 0;
    for (step, ns, runs) in trainer.runner_mut().times() {
        let launches = tinyforge::gpu::work(step).expect("a row").launches.len() as u64;
        assert_eq!(ns, launches * runs * TASK_NS, "{} {}, {runs} runs", step.kernel, step.label);
        counted += runs;
    }
    assert!(counted > 0, "no step was counted");
}

/// Needs nothing: a card that is not there is told with the way out.
#[test]
fn cuda_an_absent_card_is_told() {
    let ran = program(["devices"]).output().expect("the program starts");
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(text.contains("cuda: "), "{text}");
    if tinyforge::gpu::cuda::cards().is_empty() {
        let why = tinyforge::gpu::cuda::open_default().err().expect("there is none").to_string();
        assert!(why.contains("there is no cuda device"), "{why}");
    }
}
