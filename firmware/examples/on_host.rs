//! What the example on a board learns, learnt on this computer: `on_host TRAINING TEST STEPS` writes the files of
//! samples that the board reads and prints what it must print in the end.

#[path = "learn/model/mod.rs"]
mod model;

#[path = "../tests/common/samples.rs"]
mod samples;

use model::Net;
use tinyforge_firmware::Learner;

const SAMPLES: u32 = 1500;
const TESTS: u32 = 200;

fn main() -> Result<(), String> {
    let mut words = std::env::args().skip(1);
    let mut word = || words.next().ok_or("usage: on_host TRAINING TEST STEPS");
    let (training, test) = (word()?, word()?);
    let steps: u32 = word()?.parse().map_err(|_| "STEPS is a number")?;
    for (path, seed, count) in [(&training, 1, SAMPLES), (&test, 2, TESTS)] {
        std::fs::write(path, samples::file(seed, count)).map_err(|e| format!("{path}: {e}"))?;
    }
    let mut net = Net::new();
    let mut learner = Learner::new(&mut net, 11, 0.01, 0.01);
    for step in 0..steps {
        let (image, label) = samples::sample(1, step % SAMPLES);
        learner.train(&image, &[label]).map_err(|fault| format!("{fault:?}"))?;
    }
    let mut index = 0;
    let score = learner.evaluate(|input| {
        let (image, label) = samples::sample(2, index);
        index += 1;
        input.copy_from_slice(&image);
        (index <= TESTS).then_some(label)
    });
    println!("after steps={steps} right={} of={} digest={:08x}", score.right, score.seen, learner.digest());
    Ok(())
}
