//! A step of several examples: what the model is asked for, in which order, and what a checkpoint in its middle holds.

mod common;

use common::Flash;
use tinyforge_firmware::{Fault, Learner, Model, Span, Step};

/// Notes what it is asked for; its loss is the first number of the example over `BATCH`, and -1 stands for one that is
/// not finite. The state is a sum of labels and what was applied of them.
struct Notes {
    memory: [u8; 4],
    input: [i8; 2],
    label: i32,
    asked: String,
}

impl Notes {
    fn new() -> Notes {
        Notes { memory: [0; 4], input: [0; 2], label: 0, asked: String::new() }
    }
}

impl Model for Notes {
    const HASH: u64 = 1;
    const INPUT_LEN: usize = 2;
    const CLASSES: usize = 5;
    const BATCH: usize = 3;
    const STATE: &'static [Span] = &[Span { at: 0, len: 2 }];

    fn memory(&self) -> &[u8] {
        &self.memory
    }

    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    fn start(&mut self) {
        self.memory = [0; 4];
    }

    fn infer_input(&mut self) -> &mut [i8] {
        &mut self.input
    }

    fn infer(&mut self) -> u16 {
        self.input[0] as u16
    }

    fn train_input(&mut self) -> &mut [i8] {
        &mut self.input
    }

    fn forward(&mut self, label: i32) -> f32 {
        self.label = label;
        self.asked += "f";
        if self.input[0] < 0 { f32::INFINITY } else { f32::from(self.input[0]) / 3.0 }
    }

    fn backward(&mut self, step: &Step) {
        self.memory[0] += self.label as u8;
        self.asked += &format!("b{}", step.index);
    }

    fn update(&mut self, step: &Step) {
        self.memory[1] += self.memory[0];
        self.memory[0] = 0;
        self.asked += &format!("u{} ", step.index);
    }
}

/// Learns from examples with these labels, counted from 0 again behind the last class.
fn learn(learner: &mut Learner<'_, Notes>, labels: std::ops::Range<i32>) {
    for label in labels {
        learner.train(&[1, 0], label % 5).expect("a finite loss");
    }
}

#[test]
fn the_last_example_ends_a_step() {
    let mut model = Notes::new();
    let mut learner = Learner::new(&mut model, 1, 0.1, 0.1);
    let losses: Vec<_> = (0..7).map(|i| learner.train(&[i, 0], 1).map(f32::round)).collect();
    assert_eq!(losses, (0..7).map(|i| Ok(i as f32)).collect::<Vec<_>>());
    assert_eq!((learner.counters().examples, learner.counters().steps), (7, 2));
    assert_eq!(learner.model().asked, "fb0fb0fb0u0 fb1fb1fb1u1 fb2");
    assert_eq!(learner.model().memory, [1, 6, 0, 0]);
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let mut model = Notes::new();
    let mut learner = Learner::new(&mut model, 1, 0.1, 0.1);
    assert_eq!(learner.train(&[1, 0], 2), Ok(1.0));
    let (counters, digest) = (learner.counters(), learner.digest());
    assert_eq!(learner.train(&[-1, 0], 2), Err(Fault::Loss));
    assert_eq!((learner.counters(), learner.digest()), (counters, digest));
    assert_eq!(learner.model().asked, "fb0f");
}

#[test]
fn a_checkpoint_in_the_middle_of_a_step_is_gone_on_from() {
    let mut flash = Flash::<4, 128>::new(2);
    let mut whole = Notes::new();
    let mut learner = Learner::new(&mut whole, 1, 0.1, 0.1);
    learn(&mut learner, 0..6);
    let wanted = learner.model().memory;
    for cut in 1..6 {
        let mut first = Notes::new();
        let mut learner = Learner::new(&mut first, 1, 0.1, 0.1);
        learn(&mut learner, 0..cut);
        let mut checkpoints = Learner::<Notes>::checkpoints(&mut flash, 0..256).expect("a good region");
        learner.save(&mut checkpoints).expect("a flash that works");
        let mut second = Notes::new();
        let mut learner = Learner::new(&mut second, 9, 0.1, 0.1);
        learner.load(&mut checkpoints).expect("it was saved");
        assert_eq!((learner.counters().examples, learner.counters().steps), (cut as u64, cut as u32 / 3));
        learn(&mut learner, cut..6);
        assert_eq!((learner.counters().steps, learner.model().memory), (2, wanted));
    }
}
