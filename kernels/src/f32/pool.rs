//! Pooling of images, channel by channel.
//!
//! ```text
//! for p { y[p] = max (or mean) over taps inside the image of x[input of (p, tap)] }
//! ```
//! A task is a channel of an image. Bound: bytes read and written over memory bandwidth. Scratch: 0 bytes.

use super::conv::Window;
use super::parts::{Chunks, run_parts};
use crate::par::Par;

/// Shapes of one pooling: `x[planes, size]`, `y[planes, out_size]`, with a plane for every channel of every image.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Images times channels.
    pub planes: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// How the window moves.
    pub window: Window,
    /// Whether a mean divides by the taps in the padding as well.
    pub counts_padding: bool,
}

impl Pool {
    /// Height and width of the output.
    pub fn out_size(&self) -> [usize; 2] {
        [self.window.out_len(0, self.size[0]), self.window.out_len(1, self.size[1])]
    }

    fn in_pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn out_pixels(&self) -> usize {
        let [height, width] = self.out_size();
        height * width
    }

    fn check(&self, in_len: usize, out_len: usize) {
        assert!(self.out_pixels() > 0, "the window does not fit {self:?}");
        assert_eq!(in_len, self.planes * self.in_pixels(), "the input's length");
        assert_eq!(out_len, self.planes * self.out_pixels(), "the output's length");
    }

    /// The input pixels of output pixel `out`, in order of taps.
    fn inputs(&self, out: usize) -> impl Iterator<Item = usize> + '_ {
        let (row, col) = (out / self.out_size()[1], out % self.out_size()[1]);
        (0..self.window.kernel[0] * self.window.kernel[1]).filter_map(move |tap| {
            let (tap_row, tap_col) = (tap / self.window.kernel[1], tap % self.window.kernel[1]);
            let row = self.window.input(0, row, tap_row, self.size[0])?;
            let col = self.window.input(1, col, tap_col, self.size[1])?;
            Some(row * self.size[1] + col)
        })
    }

    /// What a sum over output pixel `out` is multiplied by.
    fn factor(&self, out: usize) -> f32 {
        let taps = self.window.kernel[0] * self.window.kernel[1];
        let count = if self.counts_padding { taps } else { self.inputs(out).count().max(1) };
        1.0 / count as f32
    }
}

/// `y[p] = max over taps`, the padding left out; `index[p]` is the pixel it came from (the first of equals, -1 for a
/// window of padding, whose maximum is 0), which the gradient reads.
pub fn max_pool(par: &Par, dims: &Pool, x: &[f32], y: &mut [f32], index: &mut [i32]) {
    dims.check(x.len(), y.len());
    assert_eq!(index.len(), y.len(), "an index for every output");
    let (pixels, out_pixels) = (dims.in_pixels(), dims.out_pixels());
    let parts = (Chunks::new(y, out_pixels), Chunks::new(index, out_pixels));
    run_parts(par, dims.planes, parts, |plane, (y, index)| {
        let x = &x[plane * pixels..][..pixels];
        for (out, (y, index)) in y.iter_mut().zip(index).enumerate() {
            let best = dims.inputs(out).reduce(|best, at| if x[at] > x[best] { at } else { best });
            (*y, *index) = best.map_or((0.0, -1), |at| (x[at], at as i32));
        }
    });
}

/// `dx[at] = sum over the outputs that came from at of dy`. Panics when an index is not one of [`max_pool`]'s.
pub fn max_pool_grad(par: &Par, dims: &Pool, index: &[i32], dy: &[f32], dx: &mut [f32]) {
    dims.check(dx.len(), dy.len());
    assert_eq!(index.len(), dy.len(), "an index for every output");
    let out_pixels = dims.out_pixels();
    run_parts(par, dims.planes, Chunks::new(dx, dims.in_pixels()), |plane, dx: &mut [f32]| {
        dx.fill(0.0);
        let part = plane * out_pixels..(plane + 1) * out_pixels;
        for (&at, dy) in index[part.clone()].iter().zip(&dy[part]).filter(|(at, _)| **at >= 0) {
            dx[at as usize] += dy;
        }
    });
}

/// `y[p] = sum over taps / count`, the count as `counts_padding` says.
pub fn avg_pool(par: &Par, dims: &Pool, x: &[f32], y: &mut [f32]) {
    dims.check(x.len(), y.len());
    let pixels = dims.in_pixels();
    run_parts(par, dims.planes, Chunks::new(y, dims.out_pixels()), |plane, y: &mut [f32]| {
        let x = &x[plane * pixels..][..pixels];
        for (out, y) in y.iter_mut().enumerate() {
            *y = dims.inputs(out).map(|at| x[at]).sum::<f32>() * dims.factor(out);
        }
    });
}

/// `dx[at] = sum over the outputs that see at of dy / count`.
pub fn avg_pool_grad(par: &Par, dims: &Pool, dy: &[f32], dx: &mut [f32]) {
    dims.check(dx.len(), dy.len());
    let out_pixels = dims.out_pixels();
    run_parts(par, dims.planes, Chunks::new(dx, dims.in_pixels()), |plane, dx: &mut [f32]| {
        dx.fill(0.0);
        for (out, dy) in dy[plane * out_pixels..][..out_pixels].iter().enumerate() {
            let share = dy * dims.factor(out);
            dims.inputs(out).for_each(|at| dx[at] += share);
        }
    });
}

/// `y[plane] = mean over pixels of x[plane, pixel]`, for `y.len()` planes.
pub fn global_avg_pool(par: &Par, x: &[f32], y: &mut [f32]) {
    assert!(!y.is_empty() && x.len().is_multiple_of(y.len()) && !x.is_empty(), "whole planes");
    let pixels = x.len() / y.len();
    run_parts(par, y.len(), Chunks::new(y, 1), |plane, y: &mut [f32]| {
        y[0] = x[plane * pixels..][..pixels].iter().sum::<f32>() / pixels as f32;
    });
}

/// `dx[plane, pixel] = dy[plane] / pixels`.
pub fn global_avg_pool_grad(par: &Par, dy: &[f32], dx: &mut [f32]) {
    assert!(!dy.is_empty() && dx.len().is_multiple_of(dy.len()) && !dx.is_empty(), "whole planes");
    let pixels = dx.len() / dy.len();
    run_parts(par, dy.len(), Chunks::new(dx, pixels), |plane, dx: &mut [f32]| dx.fill(dy[plane] / pixels as f32));
}
