//! What the model of the examples knows before it is put on a board: three of its four classes.

use crate::model::Net;
use crate::samples;
use tinyforge_firmware::{Learner, Model};

/// The seed of the images.
const IMAGES: u64 = 3;
const EXAMPLES: usize = 1500;
/// What is not learnt.
pub const NEW: i32 = 3;

/// Where the last class's row of the head and its bias lie.
const NEW_ROW: [std::ops::Range<usize>; 2] = [496..624, 636..640];

/// The state of the model after learning all classes but the last from random weights. What the head holds for the last
/// is as it was: pushed down all along, its logit would have come to the end of int8, where no gradient passes.
pub fn state() -> Vec<u8> {
    let mut net = Net::new();
    let mut learner = Learner::new(&mut net, 7, 0.01, 0.01);
    let bytes = learner.model().memory_mut();
    let weights = [noise(1, 72, 120), vec![0; 8 + 32], noise(2, 512, 12), vec![0; 16]].concat();
    bytes.iter_mut().zip(&weights).for_each(|(to, from)| *to = *from as u8);
    let examples = (0..).map(|index| samples::sample(IMAGES, index)).filter(|(_, label)| *label != NEW);
    for (image, label) in examples.take(EXAMPLES) {
        learner.train(&image, label).expect("a finite loss");
    }
    let mut state = learner.model().memory()[..weights.len()].to_vec();
    for row in NEW_ROW {
        state[row.clone()].iter_mut().zip(&weights[row]).for_each(|(to, from)| *to = *from as u8);
    }
    state
}

/// Numbers within +-`size` without a pattern.
fn noise(seed: u32, len: usize, size: u32) -> Vec<i8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (((state >> 16) % (2 * size + 1)) as i32 - size as i32) as i8
    };
    (0..len).map(|_| next()).collect()
}
