//! Cross-entropy of quantised logits, and its gradient.
//!
//! ```text
//! l = scale (x - zero);  e = exp(l - max l);  s = sum of e, classes ascending
//! loss = (log s - (l[label] - max l)) weight;  g = (e / s - [class = label]) (scale (weight dloss))
//! ```
//! The exponential and the logarithm are libm's, so that every machine has the same bits. A label outside the classes
//! (`-1` by custom) gives loss and gradient 0.

use super::lengths;

/// The step and the zero of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Logits in a row.
    pub classes: usize,
    /// Step of the logits.
    pub scale: f32,
    /// Stored value of zero.
    pub zero: i32,
}

impl CrossEntropy {
    #[inline(always)]
    fn logit(&self, x: i8) -> f32 {
        self.scale * (i32::from(x) - self.zero) as f32
    }

    /// The greatest logit and the sum of exponentials.
    fn sum(&self, x: &[i8]) -> (f32, f32) {
        let logits = x.iter().map(|x| self.logit(*x));
        let max = logits.clone().fold(f32::NEG_INFINITY, |max, l| if l > max { l } else { max });
        (max, logits.fold(0.0, |sum, l| sum + libm::expf(l - max)))
    }
}

fn class(label: i32, x: &[i8]) -> Option<usize> {
    usize::try_from(label).ok().filter(|label| *label < x.len())
}

/// Loss of each row: `x` of `label.len()` rows of logits, `weight` and `loss` one number a row.
pub fn i8_cross_entropy(dims: &CrossEntropy, x: &[i8], label: &[i32], weight: &[f32], loss: &mut [f32]) {
    let rows = label.len();
    if !lengths([(x.len(), rows * dims.classes), (weight.len(), rows), (loss.len(), rows)]) {
        return;
    }
    let x = x.chunks_exact(dims.classes.max(1));
    for (((x, label), weight), loss) in x.zip(label).zip(weight).zip(loss) {
        let Some(&of_label) = class(*label, x).and_then(|at| x.get(at)) else {
            *loss = 0.0;
            continue;
        };
        let (max, sum) = dims.sum(x);
        *loss = (libm::logf(sum) - (dims.logit(of_label) - max)) * weight;
    }
}

/// Gradient of [`i8_cross_entropy`] with respect to the stored logits: `g` of `x`'s length.
pub fn i8_cross_entropy_grad(
    dims: &CrossEntropy,
    x: &[i8],
    label: &[i32],
    weight: &[f32],
    dloss: &[f32],
    g: &mut [f32],
) {
    let rows = label.len();
    let fits = lengths([(x.len(), rows * dims.classes), (g.len(), x.len()), (weight.len(), rows), (dloss.len(), rows)]);
    if !fits {
        return;
    }
    let rows = x.chunks_exact(dims.classes.max(1)).zip(g.chunks_exact_mut(dims.classes.max(1)));
    for ((((x, g), label), weight), dloss) in rows.zip(label).zip(weight).zip(dloss) {
        let Some(label) = class(*label, x) else {
            g.fill(0.0);
            continue;
        };
        let (max, sum) = dims.sum(x);
        let factor = dims.scale * (weight * dloss);
        for (at, (x, g)) in x.iter().zip(g).enumerate() {
            let e = libm::expf(dims.logit(*x) - max);
            *g = (e / sum - if at == label { 1.0 } else { 0.0 }) * factor;
        }
    }
}
