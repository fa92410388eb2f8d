//! Softmax with an i8 result, for inference of models that end in one.
//!
//! ```text
//! l = scale_x (x - zero_x);  p = exp(l - max l) / sum of exp(l - max l);  y = clamp(nearest(p / scale_y) + zero_y)
//! ```
//! Not for training: the loss takes logits.

use super::lengths;
use super::round::Rounder;

/// Steps and zeros of a softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Step of the input.
    pub scale_x: f32,
    /// Stored value of the input's zero.
    pub zero_x: i32,
    /// Step of the output.
    pub scale_y: f32,
    /// Stored value of the output's zero.
    pub zero_y: i32,
}

/// Softmax over rows of `classes` elements; `x` and `y` of one length. The sum runs in the order of the classes.
pub fn i8_softmax(softmax: &Softmax, classes: usize, x: &[i8], y: &mut [i8]) {
    if !lengths([(x.len(), y.len())]) {
        return;
    }
    let rounder = Rounder::new(softmax.zero_y, -128, 127);
    let logit = |x: &i8| softmax.scale_x * (i32::from(*x) - softmax.zero_x) as f32;
    for (x, y) in x.chunks_exact(classes.max(1)).zip(y.chunks_exact_mut(classes.max(1))) {
        let max = x.iter().map(logit).fold(f32::NEG_INFINITY, |max, l| if l > max { l } else { max });
        let sum = x.iter().fold(0.0f32, |sum, x| sum + libm::expf(logit(x) - max));
        for (x, y) in x.iter().zip(y) {
            *y = rounder.stored(libm::expf(logit(x) - max) / sum / softmax.scale_y).0;
        }
    }
}
