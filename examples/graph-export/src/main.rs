//! A network that was compiled by the build script, learning: on this computer as it would on the chip.
//!
//! `model::Net` is generated: slots of one arena and two straight lines of kernel calls. Its memory over the steps is
//! in `model.html` beside it, in the build's output folder.

include!(concat!(env!("OUT_DIR"), "/tinyforge.rs"));

use model::Net;
use tinyforge_firmware::{Learner, Model};

const SIDE: usize = 16;
const STEPS: u32 = 1500;

/// Image `index` of a stream, with its class: stripes down, across, on the diagonal, or a checkerboard, in any phase
/// and contrast, under noise.
fn sample(stream: u32, index: u32, image: &mut [i8]) -> i32 {
    let mut state = (stream << 20 | index).wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    let mut below = |n: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % n
    };
    let class = index % 4;
    let (phase, contrast) = (below(4) as usize, 40 + below(60) as i32);
    for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
        let (y, x) = (i / SIDE + phase, i % SIDE + phase);
        let is_light = match class {
            0 => x / 2 % 2 == 0,
            1 => y / 2 % 2 == 0,
            2 => (x + y) / 2 % 2 == 0,
            _ => (x / 2 + y / 2) % 2 == 0,
        };
        let value = if is_light { contrast } else { -contrast };
        pixel.fill_with(|| (value + below(41) as i32 - 20) as i8);
    }
    class as i32
}

/// How many of 200 unseen images are classified rightly.
fn right(learner: &mut Learner<'_, Net>) -> u32 {
    let mut index = 0;
    let score = learner.evaluate(|image| {
        let class = sample(2, index, image);
        index += 1;
        (index <= 200).then_some(class)
    });
    score.right
}

fn main() {
    let mut net = Net::new();
    let mut learner = Learner::new(&mut net, 1, 0.01, 0.005);
    let before = right(&mut learner);
    for step in 0..STEPS {
        let label = sample(1, step, learner.model().train_input());
        if let Err(fault) = learner.train_in_place(label) {
            println!("step {step}: {fault:?}");
            return;
        }
    }
    let after = right(&mut learner);
    println!(
        "{} bytes of SRAM, {} trained; of 200 images {before} right before, {after} after {STEPS} steps",
        model::SRAM_BYTES,
        Net::STATE.iter().map(|span| span.len).sum::<usize>()
    );
}
