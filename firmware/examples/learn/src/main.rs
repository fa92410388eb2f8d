//! Learns from a stream of examples, on an emulated board:
//!
//! ```text
//! learn train=FILE test=FILE flash=FILE steps=N [every=N] [tests=N] [rate=MILLIONTHS] [bias=MILLIONTHS] [seed=N]
//!       [power=N] [reset=N]
//! ```
//!
//! It says how many of the test's examples are classified right, and how many of its last class: that one is new to the
//! model that comes with this example. `tests=N` takes N of them, spread over the file.
//! A file of samples is `TFSM`, the number of samples, the length of each, then each label (i32) and its numbers (i8);
//! all little-endian. Every `every` steps a checkpoint goes to the flash; a program that starts and finds one goes on
//! from there. `power=N` cuts the power at the Nth piece of work of the flash, `reset=N` sets the board back at step N.
#![no_std]
#![no_main]

include!(concat!(env!("OUT_DIR"), "/model.rs"));

#[cfg(not(feature = "steps"))]
use model::Net;
#[cfg(feature = "steps")]
type Net = model::Probed<count::Steps>;

use tinyforge_firmware::{Fault, Learner, Model, Place, Score};
use tinyforge_mps2::flash::{ERASE_BYTES, HostFlash};
use tinyforge_mps2::host::{Arguments, File, Mode, exit};
use tinyforge_mps2::{Line, count, entry, reset, stack};

/// What ends the run badly; behind it the exit codes are those of [`Fault`].
#[repr(u32)]
#[derive(Clone, Copy)]
enum Stop {
    Arguments = 32,
    Samples = 33,
    Flash = 34,
}

static NET: Place<Net> = Place::new(Net::new());

const HEAD_BYTES: usize = 12;
/// What memory holds that nothing has written.
const POISON: u8 = 0xa5;

fn stop(stop: Stop) -> ! {
    exit(stop as u32)
}

fn stop_at(fault: Fault) -> ! {
    exit(u32::from(fault.code()))
}

/// A file of samples.
struct Samples {
    file: File,
    count: u32,
}

impl Samples {
    fn open(arguments: &Arguments, name: &str) -> Samples {
        let Some(path) = arguments.value(name) else { stop(Stop::Arguments) };
        let Some(mut file) = File::open(path, Mode::Read) else { stop(Stop::Samples) };
        let mut head = [0; HEAD_BYTES];
        let is_whole = file.fill(&mut head);
        let [b'T', b'F', b'S', b'M', c0, c1, c2, c3, l0, l1, l2, l3] = head else { stop(Stop::Samples) };
        let (count, len) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]));
        if !is_whole || count == 0 || len as usize != Net::INPUT_LEN {
            stop(Stop::Samples);
        }
        Samples { file, count }
    }

    /// Goes to sample `index`, from the start again behind the last.
    fn seek(&mut self, index: u64) {
        let index = (index % u64::from(self.count).max(1)) as usize;
        if !self.file.seek(HEAD_BYTES + index * (4 + Net::INPUT_LEN)) {
            stop(Stop::Samples);
        }
    }

    /// The next sample's numbers, and its label.
    fn read(&mut self, to: &mut [i8]) -> i32 {
        let mut label = [0; 4];
        let Ok(bytes) = bytemuck::try_cast_slice_mut(to) else { stop(Stop::Samples) };
        if !self.file.fill(&mut label) || !self.file.fill(bytes) {
            stop(Stop::Samples);
        }
        i32::from_le_bytes(label)
    }
}

/// How those of `tests` test examples are classified that are of the last class, or of the others.
fn evaluate(learner: &mut Learner<'_, Net>, test: &mut Samples, tests: u32, is_last: bool) -> Score {
    let mut indices = 0..tests.min(test.count);
    let (count, of) = (u64::from(test.count), u64::from(indices.end).max(1));
    learner.evaluate(|input| {
        loop {
            test.seek(u64::from(indices.next()?) * count / of);
            let label = test.read(input);
            if (label == Net::CLASSES as i32 - 1) == is_last {
                return Some(label);
            }
        }
    })
}

#[inline(never)]
fn report(word: &str, learner: &mut Learner<'_, Net>, test: &mut Samples, tests: u32) {
    let [known, new] = [false, true].map(|is_last| evaluate(learner, test, tests, is_last));
    let mut line = Line::new();
    line.text(word).text(" steps=").number(learner.counters().steps.into());
    line.text(" right=").number((known.right + new.right).into()).text(" of=").number((known.seen + new.seen).into());
    line.text(" new=").number(new.right.into()).text(" of=").number(new.seen.into());
    line.text(" digest=").hex(learner.digest()).print();
}

/// Learns from the next example of the stream; gives its loss.
fn learn(learner: &mut Learner<'_, Net>, training: &mut Samples) -> f32 {
    training.seek(learner.counters().examples);
    let label = training.read(learner.model().train_input());
    learner.train_in_place(label).unwrap_or_else(|fault| stop_at(fault))
}

/// A line for every step of the plan that ran since the last call, where they are counted.
fn print_steps() {
    #[cfg(feature = "steps")]
    for (number, instructions) in count::take_steps() {
        Line::new().text("plan step ").number(number as u64).text("=").number(instructions.into()).print();
    }
}

/// Counts are from here on.
fn start_counting(timer: &mut count::SYST) {
    count::start(timer);
    #[cfg(feature = "steps")]
    count::take_steps().for_each(drop);
}

#[entry]
fn main() -> ! {
    let arguments = Arguments::read();
    let (Some(net), Some(mut timer)) = (NET.take(), count::timer()) else { stop(Stop::Arguments) };
    let (mut training, mut test) = (Samples::open(&arguments, "train"), Samples::open(&arguments, "test"));
    // Divided in f64, so that it is the f32 next to the decimal number, as on the host.
    let rate = |name, default| (f64::from(arguments.number(name, default)) / 1e6) as f32;
    let seed = arguments.number("seed", 11).into();
    net.memory_mut().fill(POISON);
    let mut learner = Learner::new(net, seed, rate("rate", 10_000), rate("bias", 10_000));

    let len = 2 * Learner::<Net>::slot_bytes::<HostFlash>();
    let Some(path) = arguments.value("flash") else { stop(Stop::Arguments) };
    let power = arguments.number("power", 0);
    let Some(flash) = HostFlash::open(path, len as usize, power) else { stop(Stop::Flash) };
    let Ok(mut checkpoints) = Learner::<Net>::checkpoints(flash, 0..len) else { stop(Stop::Flash) };
    match learner.load(&mut checkpoints) {
        Ok(sequence) => Line::new().text("goes on from checkpoint ").number(sequence.into()).print(),
        Err(Fault::Empty) => {}
        Err(fault) => stop_at(fault),
    }
    let tests = arguments.number("tests", u32::MAX);
    report("before", &mut learner, &mut test, tests);

    let (steps, every) = (arguments.number("steps", 100), arguments.number("every", 50).max(1));
    let (reset_at, started) = (arguments.number("reset", 0), learner.counters().steps);
    let mut instructions = 0;
    while learner.counters().steps < steps {
        let before = learner.counters().steps;
        if learner.counters().examples.is_multiple_of((Net::BATCH as u64).max(1)) {
            start_counting(&mut timer);
        }
        let loss = learn(&mut learner, &mut training);
        let done = learner.counters().steps;
        if done == before {
            continue;
        }
        instructions = count::instructions();
        if done.is_multiple_of(every) || done == steps {
            if let Err(fault) = learner.save(&mut checkpoints) {
                stop_at(fault);
            }
            Line::new().text("step ").number(done.into()).text(" loss=").decimal(loss).print();
        }
        if done == reset_at && started < reset_at {
            reset();
        }
    }
    print_steps();
    report("after", &mut learner, &mut test, tests);
    let arena = learner.model().memory();
    let touched = arena.len() - arena.iter().rev().take_while(|byte| **byte == POISON).count();
    start_counting(&mut timer);
    learner.model().infer();
    let forward = count::instructions();
    print_steps();
    let mut line = Line::new();
    line.text("instructions of a step=").number(instructions).text(" of an inference=").number(forward).print();
    let mut line = Line::new();
    line.text("flash of checkpoints=").number(len.into()).text(" erase unit=").number(ERASE_BYTES as u64).print();
    let mut line = Line::new();
    line.text("arena=").number(learner.model().memory().len() as u64).text(" touched=").number(touched as u64);
    line.text(" stack=").number(stack::used_bytes() as u64).text(" of=").number(stack::size_bytes() as u64).print();
    exit(0)
}
