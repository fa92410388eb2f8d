//! Stochastic rounding of a gradient step into stored integers.
//!
//! ```text
//! delta = -((lr factor[o]) g);  w' = saturate(w + floor(delta) + [u < delta - floor(delta)]),  u uniform in [0, 1)
//! ```
//! The mean over `u` of the move is `delta`, however small. `u` is a function of the run's seed, the step, the tensor
//! and the element's place in the whole tensor, so that a part of a tensor is updated as the whole would be.

use super::{lengths, part};
use crate::random::Stream;

/// Steps beyond this are cut: past every limit of i8, and far from those of i32.
pub(crate) const MOVE_MAX: f32 = 1_073_741_824.0;

/// One update of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Learning rate.
    pub lr: f32,
    /// `f32[o]`: what the gradient of an output channel is multiplied by beside the learning rate; 0 freezes it.
    pub factor: &'a [f32],
    /// Where the random numbers come from.
    pub stream: Stream,
}

/// The random numbers of tensor `tensor` in the step that `rng` describes: seed (low, high), step, and a word not
/// used.
pub const fn update_stream(rng: &[u32; 4], tensor: u32) -> Stream {
    Stream { seed: rng[0] as u64 | (rng[1] as u64) << 32, step: rng[2], tensor }
}

/// How a gradient lies in the tensor that it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The first dimension is the output channel: `w[channels, rows, inner]`; a part has columns of `inner`.
    ChannelFirst {
        /// Output channels.
        channels: usize,
        /// Length of the last dimension.
        inner: usize,
    },
    /// The last dimension is the output channel: `w[.., channels]`; a part has columns of `channels`.
    ChannelLast {
        /// Output channels.
        channels: usize,
    },
}

impl Update<'_> {
    /// The random numbers, four at a time.
    pub(crate) fn dice(&self) -> Dice {
        Dice { stream: self.stream, block: u64::MAX, words: [0; 4] }
    }

    /// `lr factor[o]`; 0 outside.
    #[inline(always)]
    pub(crate) fn step(&self, channel: usize) -> f32 {
        self.lr * self.factor.get(channel).copied().unwrap_or_default()
    }
}

/// The last block of random words, for neighbours to share.
pub(crate) struct Dice {
    stream: Stream,
    block: u64,
    words: [u32; 4],
}

impl Dice {
    /// The number of element `index`, as [`Stream::uniform`] gives it.
    #[inline(always)]
    pub(crate) fn uniform(&mut self, index: usize) -> f32 {
        let block = index as u64 / 4;
        if block != self.block {
            self.words = self.stream.block(block);
            self.block = block;
        }
        (self.words[index % 4] >> 8) as f32 / (1 << 24) as f32
    }

    /// How many integers element `index` moves by when its gradient times its step is `move_down`.
    #[inline(always)]
    pub(crate) fn steps(&mut self, index: usize, move_down: f32) -> i32 {
        let delta = -move_down;
        if delta == 0.0 {
            return 0;
        }
        let whole = floor(delta);
        let fraction = delta - whole as f32;
        whole + i32::from(self.uniform(index) < fraction)
    }
}

impl Dice {
    /// Moves neighbouring weights from element `index` on by their gradients.
    #[inline(always)]
    pub(crate) fn move_run(&mut self, index: usize, w: &mut [i8], g: &[f32], step: impl Fn(usize) -> f32) {
        #[cfg(all(has_dsp, has_fpu))]
        if index.is_multiple_of(4) && w.len() == g.len() {
            let ((fours, w), (g_fours, g)) = (w.as_chunks_mut::<4>(), g.as_chunks::<4>());
            let mut at = 0;
            for (w, g) in fours.iter_mut().zip(g_fours) {
                let steps = core::array::from_fn(|i| step(at + i));
                // Nothing moves: no numbers are needed.
                if (0..4).any(|i| g[i] != 0.0 && steps[i] != 0.0) {
                    let words = self.stream.block((index + at) as u64 / 4);
                    super::dsp::step::move4(w, g, &steps, &words);
                }
                at += 4;
            }
            return self.move_each(index + at, w, g, |i| step(at + i));
        }
        self.move_each(index, w, g, step);
    }

    #[inline(always)]
    fn move_each(&mut self, index: usize, w: &mut [i8], g: &[f32], step: impl Fn(usize) -> f32) {
        for (i, (w, g)) in w.iter_mut().zip(g).enumerate() {
            *w = moved_i8(*w, self.steps(index + i, step(i) * g));
        }
    }
}

/// Greatest integer not above `v`, within `MOVE_MAX`; NaN gives 0.
#[inline(always)]
pub(crate) fn floor(v: f32) -> i32 {
    let cut = v.clamp(-MOVE_MAX, MOVE_MAX);
    let towards_zero = cut as i32;
    towards_zero - i32::from(towards_zero as f32 > cut)
}

/// `w` after a move, kept within +-127.
#[inline(always)]
pub(crate) fn moved_i8(w: i8, steps: i32) -> i8 {
    (i32::from(w) + steps).clamp(-127, 127) as i8
}

/// Moves `w` by its gradient `g`. With `index`, `g` has only these columns of the last dimension; its length is then
/// `w.len() / last * index.len()`.
pub fn i8_update(shape: Shape, update: &Update, w: &mut [i8], g: &[f32], index: Option<&[i32]>) {
    let mut dice = update.dice();
    each(shape, w.len(), g, index, update, |[_, at], step, g| {
        if let Some(w) = w.get_mut(at) {
            *w = moved_i8(*w, dice.steps(at, step * g));
        }
    });
}

/// [`i8_update`] for integers of 32 bits, which saturate at their own limits.
pub fn i32_update(shape: Shape, update: &Update, w: &mut [i32], g: &[f32], index: Option<&[i32]>) {
    let mut dice = update.dice();
    each(shape, w.len(), g, index, update, |[_, at], step, g| {
        if let Some(w) = w.get_mut(at) {
            *w = w.saturating_add(dice.steps(at, step * g));
        }
    });
}

/// Calls `change` with every element that has a gradient: its place among those and in the tensor, `lr factor`, and the
/// gradient.
#[inline(always)]
pub(crate) fn each(
    shape: Shape,
    len: usize,
    g: &[f32],
    index: Option<&[i32]>,
    update: &Update,
    mut change: impl FnMut([usize; 2], f32, f32),
) {
    let (channels, last) = match shape {
        Shape::ChannelFirst { channels, inner } => (channels, inner),
        Shape::ChannelLast { channels } => (channels, channels),
    };
    let columns = index.map_or(last, |index| index.len());
    let rows = len / last.max(1);
    if !lengths([(rows * last, len), (g.len(), rows * columns), (update.factor.len(), channels)]) {
        return;
    }
    let rows_of_channel = (rows / channels.max(1)).max(1);
    for (row, g) in g.chunks_exact(columns.max(1)).enumerate() {
        for (j, g) in g.iter().enumerate() {
            let Some(column) = column(index, j).filter(|column| *column < last) else { continue };
            let channel = match shape {
                Shape::ChannelFirst { .. } => row / rows_of_channel,
                Shape::ChannelLast { .. } => column,
            };
            let at = row * last + column;
            change([row * columns + j, at], update.step(channel), *g);
        }
    }
}

/// Where column `j` of a part lies in the whole; none for an index that is no column number.
#[inline(always)]
pub(crate) fn column(index: Option<&[i32]>, j: usize) -> Option<usize> {
    match index {
        None => Some(j),
        Some(index) => part(index, j, 1).first().and_then(|at| usize::try_from(*at).ok()),
    }
}
