//! Updates that keep something of every trained element from step to step: momentum, and what rounding left.
//!
//! ```text
//! v' = fma(momentum, v, g)                 with momentum, v' then stands for g
//! t  = e - ((lr factor[o]) g)              with the error kept: w + e is the weight before rounding
//! d  = nearest(t), ties to even;  w' = saturate(w + d);  e' = t - d
//! ```
//! Without the error `w` moves as in `update`. At a limit whole steps beyond it are dropped, so `|e| <= 1/2` always
//! and a weight leaves its limit as soon as gradients point back. NaN moves nothing and leaves no error.
//!
//! Apart from `update`, so that a chip whose plan keeps no states has none of this code.

use super::update::{Dice, MOVE_MAX, Shape, Update, column, each, floor, moved_i8};
use super::{Conv, WeightGrad, grad_conv, grad_depthwise, lengths};

/// What is kept of a tensor's trained elements, in their order.
#[derive(Debug)]
pub struct States<'a> {
    /// What remains of the sum of gradients after a step.
    pub momentum: f32,
    /// `f32[trained]`: the sums; empty without momentum.
    pub sum: &'a mut [f32],
    /// `f32[trained]`: what rounding left; empty where rounding is stochastic.
    pub error: &'a mut [f32],
}

impl States<'_> {
    /// Whether each has a number for all `trained` elements, or none.
    pub(crate) fn suit(&self, trained: usize) -> bool {
        let must = |len| if len == 0 { 0 } else { trained };
        let (sums, errors) = (self.sum.len(), self.error.len());
        lengths([(sums, must(sums)), (errors, must(errors))])
    }

    /// How many integers trained element `at` moves by, which is element `place` of the tensor.
    #[inline(always)]
    pub(crate) fn steps(&mut self, dice: &mut Dice, [at, place]: [usize; 2], step: f32, g: f32) -> i32 {
        let g = match self.sum.get_mut(at) {
            Some(sum) => {
                *sum = super::fma(self.momentum, *sum, g);
                *sum
            }
            None => g,
        };
        match self.error.get_mut(at) {
            Some(error) => rounded(error, step * g),
            None => dice.steps(place, step * g),
        }
    }
}

/// The nearest integer to `error - move_down`, ties to even; what is left goes to `error`.
#[inline(always)]
fn rounded(error: &mut f32, move_down: f32) -> i32 {
    let wanted = (*error - move_down).clamp(-MOVE_MAX, MOVE_MAX);
    let down = floor(wanted);
    let above = wanted - down as f32;
    let steps = down + i32::from(above > 0.5 || (above == 0.5 && down & 1 == 1));
    let left = wanted - steps as f32;
    *error = if left.is_nan() { 0.0 } else { left };
    steps
}

/// [`super::i8_update`] with states.
pub fn i8_update_with(
    shape: Shape,
    update: &Update,
    states: &mut States,
    w: &mut [i8],
    g: &[f32],
    index: Option<&[i32]>,
) {
    if !states.suit(g.len()) {
        return;
    }
    let mut dice = update.dice();
    each(shape, w.len(), g, index, update, |places, step, g| {
        if let Some(w) = w.get_mut(places[1]) {
            *w = moved_i8(*w, states.steps(&mut dice, places, step, g));
        }
    });
}

/// [`super::i32_update`] with states.
pub fn i32_update_with(
    shape: Shape,
    update: &Update,
    states: &mut States,
    w: &mut [i32],
    g: &[f32],
    index: Option<&[i32]>,
) {
    if !states.suit(g.len()) {
        return;
    }
    let mut dice = update.dice();
    each(shape, w.len(), g, index, update, |places, step, g| {
        if let Some(w) = w.get_mut(places[1]) {
            *w = w.saturating_add(states.steps(&mut dice, places, step, g));
        }
    });
}

/// [`super::i8_grad_b_update`] with states.
pub fn i8_grad_b_update_with(update: &Update, states: &mut States, gc: &[f32], bias: &mut [i32]) {
    let o = bias.len();
    if !states.suit(o) || !lengths([(update.factor.len(), o), (gc.len() % o.max(1), 0)]) {
        return;
    }
    let mut dice = update.dice();
    for (k, bias) in bias.iter_mut().enumerate() {
        let sum = gc.iter().skip(k).step_by(o.max(1)).fold(0.0f32, |sum, gc| sum + gc);
        *bias = bias.saturating_add(states.steps(&mut dice, [k, k], update.step(k), sum));
    }
}

/// [`super::i8_conv2d_grad_w_update`] with states.
pub fn i8_conv2d_grad_w_update_with(
    dims: &Conv,
    from: &WeightGrad,
    update: &Update,
    states: &mut States,
    w: &mut [i8],
    scratch: &mut [u8],
) {
    let columns = from.index.map_or(dims.in_channels, <[i32]>::len);
    let trained = dims.out_channels * dims.taps() * columns;
    if !states.suit(trained) || !lengths([(w.len(), dims.w_len()), (update.factor.len(), dims.out_channels)]) {
        return;
    }
    let mut dice = update.dice();
    grad_conv::each_grad_w(dims, from, scratch, |row: usize, first: usize, sums: &[f32]| {
        let step = update.step(row / dims.taps().max(1));
        for (j, sum) in sums.iter().enumerate() {
            let Some(c) = column(from.index, first + j).filter(|c| *c < dims.in_channels) else { continue };
            let places = [row * columns + first + j, row * dims.in_channels + c];
            if let Some(w) = w.get_mut(places[1]) {
                *w = moved_i8(*w, states.steps(&mut dice, places, step, *sum));
            }
        }
    });
}

/// [`super::i8_depthwise_grad_w_update`] with states.
pub fn i8_depthwise_grad_w_update_with(
    dims: &Conv,
    from: &WeightGrad,
    update: &Update,
    states: &mut States,
    w: &mut [i8],
    scratch: &mut [u8],
) {
    let o = dims.out_channels;
    let columns = from.index.map_or(o, <[i32]>::len);
    let trained = dims.taps() * columns;
    if !states.suit(trained) || !lengths([(w.len(), dims.depthwise_w_len()), (update.factor.len(), o)]) {
        return;
    }
    let mut dice = update.dice();
    grad_depthwise::each_grad_w(dims, from, scratch, |tap: usize, first: usize, sums: &[f32]| {
        for (j, sum) in sums.iter().enumerate() {
            let Some(k) = column(from.index, first + j).filter(|k| *k < o) else { continue };
            let places = [tap * columns + first + j, tap * o + k];
            if let Some(w) = w.get_mut(places[1]) {
                *w = moved_i8(*w, states.steps(&mut dice, places, update.step(k), *sum));
            }
        }
    });
}
