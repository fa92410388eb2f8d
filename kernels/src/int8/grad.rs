//! Small steps of the backward pass: mask and scale, the bias, sums and multiples.

use super::update::Update;
use super::{lengths, mask_bytes, round};

/// `g[p, o] = mask ? g[p, o] * scale[o] : 0`, in place; without a mask all pass.
pub fn i8_scale_grad(g: &mut [f32], mask: Option<&[u8]>, scale: &[f32]) {
    let mask_len = mask.map_or(mask_bytes(g.len()), <[u8]>::len);
    if !lengths([(mask_len, mask_bytes(g.len()))]) {
        return;
    }
    let o = scale.len().max(1);
    if let (Some(mask), true) = (mask, o.is_multiple_of(8)) {
        return scale_eights(g, mask, scale);
    }
    for (p, g) in g.chunks_exact_mut(o).enumerate() {
        for (k, (g, scale)) in g.iter_mut().zip(scale).enumerate() {
            let passes = mask.is_none_or(|mask| round::bit(mask, p * o + k));
            *g = if passes { *g * scale } else { 0.0 };
        }
    }
}

/// [`i8_scale_grad`] where a byte of the mask is eight channels of one pixel.
fn scale_eights(g: &mut [f32], mask: &[u8], scale: &[f32]) {
    let (scale, _) = scale.as_chunks::<8>();
    let (g, _) = g.as_chunks_mut::<8>();
    for (g, mask) in g.chunks_mut(scale.len().max(1)).zip(mask.chunks(scale.len().max(1))) {
        for ((g, scale), mask) in g.iter_mut().zip(scale).zip(mask) {
            for i in 0..8 {
                g[i] = if mask >> i & 1 == 1 { g[i] * scale[i] } else { 0.0 };
            }
        }
    }
}

/// `gb[o]` = the sum of `gc[p, o]`, `p` ascending.
pub fn i8_grad_b(gc: &[f32], gb: &mut [f32]) {
    gb.fill(0.0);
    for gc in gc.chunks_exact(gb.len().max(1)) {
        for (gb, gc) in gb.iter_mut().zip(gc) {
            *gb += gc;
        }
    }
}

/// [`i8_grad_b`] and the update of the bias in one, with no gradient kept.
pub fn i8_grad_b_update(update: &Update, gc: &[f32], bias: &mut [i32]) {
    let o = bias.len();
    if !lengths([(update.factor.len(), o), (gc.len() % o.max(1), 0)]) {
        return;
    }
    let mut dice = update.dice();
    for (k, bias) in bias.iter_mut().enumerate() {
        let sum = gc.iter().skip(k).step_by(o.max(1)).fold(0.0f32, |sum, gc| sum + gc);
        *bias = bias.saturating_add(dice.steps(k, update.step(k) * sum));
    }
}

/// `y = a + b`, element by element.
pub fn f32_add(a: &[f32], b: &[f32], y: &mut [f32]) {
    if lengths([(a.len(), y.len()), (b.len(), y.len())]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    }
}

/// `a += b`, element by element.
pub fn f32_add_to(a: &mut [f32], b: &[f32]) {
    if lengths([(b.len(), a.len())]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

/// `y = factor * x`, element by element.
pub fn f32_scale(factor: f32, x: &[f32], y: &mut [f32]) {
    if lengths([(x.len(), y.len())]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}

/// `x *= factor`, element by element.
pub fn f32_scale_in_place(factor: f32, x: &mut [f32]) {
    for x in x {
        *x *= factor;
    }
}
