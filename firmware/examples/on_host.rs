//! What the example on a board learns, learnt on this computer: `on_host TRAINING TEST STEPS` writes the files of
//! samples that the board reads and prints what it must print in the end. `on_host FILE` writes what the model begins
//! with.

#[path = "learn/model/mod.rs"]
mod model;

#[path = "../tests/common/samples.rs"]
mod samples;

#[path = "../tests/common/known.rs"]
mod known;

use model::Net;
use tinyforge_firmware::Learner;

const SAMPLES: u32 = 1500;
const TESTS: u32 = 200;

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let written = |path: &str, bytes: Vec<u8>| std::fs::write(path, bytes).map_err(|e| format!("{path}: {e}"));
    let (training, test, steps) = match &words[..] {
        [file] => return written(file, known::state()),
        [training, test, steps] => (training, test, steps.parse().map_err(|_| "STEPS is a number")?),
        _ => return Err("usage: on_host TRAINING TEST STEPS, or on_host FILE".to_string()),
    };
    written(training, samples::file(1, SAMPLES))?;
    written(test, samples::file(2, TESTS))?;
    let mut net = Net::new();
    let mut learner = Learner::new(&mut net, 11, 0.01, 0.01);
    report("before", &mut learner);
    for step in 0..steps {
        let (image, label) = samples::sample(1, step % SAMPLES);
        learner.train(&image, label).map_err(|fault| format!("{fault:?}"))?;
    }
    report("after", &mut learner);
    Ok(())
}

/// The line that a board prints.
fn report(word: &str, learner: &mut Learner<'_, Net>) {
    let scores = [false, true].map(|is_new| {
        let mut tests = (0..TESTS).map(|i| samples::sample(2, i)).filter(|(_, label)| (*label == known::NEW) == is_new);
        learner.evaluate(|input| {
            let (image, label) = tests.next()?;
            input.copy_from_slice(&image);
            Some(label)
        })
    });
    let [known, new] = scores;
    println!(
        "{word} steps={} right={} of={} new={} of={} digest={:08x}",
        learner.counters().steps,
        known.right + new.right,
        known.seen + new.seen,
        new.right,
        new.seen,
        learner.digest()
    );
}
