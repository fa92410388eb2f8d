//! The model of the examples learns, on the host as on a board, and goes on after a loss of power as if there had
//! been none.

#[path = "../examples/learn/model/mod.rs"]
mod model;

#[path = "common/samples.rs"]
mod samples;

#[path = "common/known.rs"]
mod known;

mod common;

use common::Flash;
use model::Net;
use tinyforge_firmware::{Fault, Learner, Model, Score};

const SEED: u64 = 11;
const RATE: f32 = 0.01;
const BIAS_RATE: f32 = 0.01;
const TRAINING: u64 = 1;
const TEST: u64 = 2;

fn learner(net: &mut Net) -> Learner<'_, Net> {
    Learner::new(net, SEED, RATE, BIAS_RATE)
}

fn steps(learner: &mut Learner<'_, Net>, count: u32) {
    for _ in 0..count {
        let (image, label) = samples::sample(TRAINING, learner.counters().examples as u32);
        learner.train(&image, label).expect("a finite loss");
    }
}

/// How images of the new class are classified, or those of the others.
fn score(learner: &mut Learner<'_, Net>, is_new: bool) -> Score {
    let mut tests = (0..400).map(|i| samples::sample(TEST, i)).filter(|(_, label)| (*label == known::NEW) == is_new);
    learner.evaluate(|input| {
        let (image, label) = tests.next()?;
        input.copy_from_slice(&image);
        Some(label)
    })
}

#[test]
fn it_learns_a_class_that_it_does_not_know() {
    let mut net = Net::new();
    let mut learner = learner(&mut net);
    let [others, new] = [false, true].map(|is_new| score(&mut learner, is_new));
    assert!(others.right * 10 > others.seen * 8 && new.right * 10 < new.seen, "{others:?} {new:?}");
    steps(&mut learner, 300);
    let [others, new] = [false, true].map(|is_new| score(&mut learner, is_new));
    assert!(others.right * 10 > others.seen * 8 && new.right * 10 > new.seen * 8, "{others:?} {new:?}");
}

#[test]
fn what_it_begins_with_is_what_is_learnt_from_random_weights() {
    let state = known::state();
    let mut net = Net::new();
    net.start();
    assert!(
        net.memory()[..state.len()] == state,
        "write it again: `cargo run -p tinyforge-firmware --example on_host`"
    );
}

#[test]
fn a_loss_of_power_changes_nothing() {
    let mut net = Net::new();
    let mut whole = learner(&mut net);
    steps(&mut whole, 100);
    let wanted = whole.digest();
    let mut flash = Flash::<4, 1024>::new(2);
    for cut in [1, 700, 1900, 5000, 9000, u64::MAX] {
        flash.left = cut;
        let mut net = Net::new();
        let mut learner = learner(&mut net);
        let mut checkpoints = Learner::<Net>::checkpoints(&mut flash, 0..2048).expect("a good region");
        match learner.load(&mut checkpoints) {
            Ok(_) | Err(Fault::Empty) => {}
            Err(fault) => panic!("{fault:?}"),
        }
        while learner.counters().steps < 100 {
            steps(&mut learner, 10);
            if learner.save(&mut checkpoints).is_err() {
                break;
            }
        }
        if cut == u64::MAX {
            assert_eq!((learner.counters().steps, learner.digest()), (100, wanted));
            assert!(learner.counters().loads > 0);
        }
    }
}

#[test]
fn what_cannot_be_learnt_from_changes_nothing() {
    let mut net = Net::new();
    let mut learner = learner(&mut net);
    let (digest, counters) = (learner.digest(), learner.counters());
    assert_eq!(learner.train(&[0; 63], 0), Err(Fault::Input));
    assert_eq!(learner.train(&[0; 64], 4), Err(Fault::Label));
    assert_eq!(learner.infer(&[0; 65]), Err(Fault::Input));
    assert_eq!((learner.digest(), learner.counters()), (digest, counters));
    // A negative label leaves the example out: the step counts, the weights stay.
    assert_eq!(learner.train(&[9; 64], -1), Ok(0.0));
    assert_eq!(learner.digest(), digest);
}

#[test]
fn the_state_is_what_the_slots_of_the_state_hold() {
    let mut net = Net::new();
    net.start();
    let used: usize = Net::STATE.iter().map(|span| span.len).sum();
    assert_eq!(used, tinyforge_firmware::model::state_bytes::<Net>());
    assert!(Net::STATE.iter().all(|span| net.memory()[span.at..][..span.len].iter().any(|byte| *byte != 0)));
}
