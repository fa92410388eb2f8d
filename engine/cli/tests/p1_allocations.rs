//! P1, nothing is allocated while training: after the first step, steps and evaluations allocate nothing.
#![expect(unsafe_code, reason = "a counting global allocator")]

mod made;

use made::{SMALL, Scratch, knobs, planned, trainer, write_text};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tinyforge::data::{self, DataOptions, DataSet};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::sim::SimOptions;
use tinyforge::train::Trainer;
use tinyforge_cli::model::Model;

/// The system allocator, counting allocations.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; the counter is an atomic and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEQ: usize = 24;

fn allocations_of_later_steps(model: &Model, set: &DataSet, pairs: &[&str], steps: usize) -> usize {
    later_allocations(trainer(model, &knobs(pairs), set.train.rows()), set, steps)
}

fn later_allocations(mut trainer: Trainer, set: &DataSet, steps: usize) -> usize {
    let step = |trainer: &mut Trainer| {
        trainer.step(&*set.train).expect("trains");
        trainer.evaluate(&*set.train, 5).expect("evaluates");
    };
    trainer.runner().threads().enter(|| {
        step(&mut trainer);
        let before = CALLS.load(Relaxed);
        (0..steps).for_each(|_| step(&mut trainer));
        CALLS.load(Relaxed) - before
    })
}

/// Blocks that stream: on this machine, and on a simulated one.
fn allocations_of_streamed_steps(model: &Model, set: &DataSet, pairs: &[&str]) -> [usize; 2] {
    [None, Some(SimOptions::default())].map(|sim| {
        let (plans, options) = planned(model, &knobs(pairs));
        let mut runner = Runner::with_phases(plans, RunOptions { sim, ..RunOptions::default() }).expect("runs");
        runner.load(&model.files, options.seed).expect("loads");
        assert!(runner.moved().is_some(), "{pairs:?}: nothing streams");
        later_allocations(Trainer::new(runner, options, set.train.rows()), set, 6)
    })
}

#[test]
fn steps_after_the_first_allocate_nothing() {
    let scratch = Scratch::new("p1-allocations");
    SMALL.write(&scratch.join("model"));
    write_text(&scratch.join("text.txt"), 4000);
    let model = Model::open(&scratch.join("model")).expect("opens");
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let mut go_on = |_| ControlFlow::Continue(());
    let (text, out, options) = (scratch.join("text.txt"), scratch.join("out"), DataOptions::new(SEQ));
    let set = data::prepare(&text, None, Some(&out), &options, &tokenizer, &mut go_on).expect("rows");
    for scheme in ["full", "lora", "last:1", "sparse", "bias", "cycle:1"] {
        let scheme = format!("scheme=\"{scheme}\"");
        // One micro-batch updates in the entry `train`, several in `update`; groups take turns every other step.
        for pairs in [&["clip=1.0", "cycle_steps=2"][..], &["micro_batch=1", "optimizer=\"adamw8\"", "cycle_steps=2"]] {
            let count = allocations_of_later_steps(&model, &set, &[pairs, &[&scheme]].concat(), 6);
            assert_eq!(count, 0, "{scheme} {pairs:?}: allocations in six steps");
        }
    }
    for scheme in ["full", "lora", "cycle:1"] {
        let scheme = format!("scheme=\"{scheme}\"");
        let counts = allocations_of_streamed_steps(&model, &set, &[&scheme, "window=\"1\"", "cycle_steps=2"]);
        assert_eq!(counts, [0, 0], "{scheme}: allocations in six streamed steps");
    }
    let kept = ["scheme=\"cycle:1\"", "cycle_steps=2", "keep_state=true", "micro_batch=1"];
    assert_eq!(allocations_of_later_steps(&model, &set, &kept, 8), 0, "allocations where states are kept");
    // What is handed to other threads goes through queues: enough steps that they would grow.
    let count = allocations_of_later_steps(&model, &set, &["threads=2", "scheme=\"full\""], 100);
    assert_eq!(count, 0, "two threads: allocations in a hundred steps");
}
