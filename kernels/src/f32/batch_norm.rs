//! Batch normalisation of images, channel by channel.
//!
//! ```text
//! for c { mean, var over n, p of x[n, c, p]; for n, for p { y[n, c, p] = (x[n, c, p] - mean) / sqrt(var + eps) } }
//! ```
//! A task is a channel. Sums run over an image's pixels in vectors of lanes, then over images in order, in f64.
//! Bound: 16 bytes an element in training, 8 in evaluation, over memory bandwidth.

use super::parts::{Chunks, Tiles, run_parts};
use super::row::{load_any, row_sum, store_any};
use super::simd::{self, Kernel, LANES, Simd};
use crate::par::Par;

/// Shapes of one batch normalisation of `x[images, channels, pixels]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Images.
    pub images: usize,
    /// Channels.
    pub channels: usize,
    /// Height times width.
    pub pixels: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNorm {
    fn check(&self, x: &[f32]) {
        assert!(self.images > 0 && self.channels > 0 && self.pixels > 0, "an empty shape {self:?}");
        assert_eq!(x.len(), self.images * self.channels * self.pixels, "the images' length");
    }

    /// A channel's pixels in every image.
    fn planes<'a>(&self, x: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> + Clone + use<'a> {
        x.chunks_exact(self.pixels).skip(channel).step_by(self.channels)
    }

    /// One task a channel, its tile one row an image.
    fn tiles<'a>(&self, y: &'a mut [f32]) -> Tiles<'a, f32> {
        Tiles::new(y, self.channels * self.pixels, self.images, (self.images, self.pixels))
    }
}

/// Per-channel state of batch normalisation.
pub struct Running<'a> {
    /// Running mean.
    pub mean: &'a mut [f32],
    /// Running variance.
    pub var: &'a mut [f32],
    /// Share of the new statistics.
    pub momentum: f32,
}

/// Normalises with the statistics of the batch and moves the running ones:
/// `running = (1 - momentum) running + momentum new`, the variance there with `n / (n - 1)`.
///
/// `mean[c]` and `inverse[c] = 1 / sqrt(var + eps)` are saved for the gradient. `n = images * pixels`.
/// Source: Ioffe and Szegedy 2015.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn batch_norm_train(
    par: &Par,
    dims: &BatchNorm,
    x: &[f32],
    w: &[f32],
    b: &[f32],
    running: Running,
    mean: &mut [f32],
    inverse: &mut [f32],
    y: &mut [f32],
) {
    dims.check(x);
    dims.check(y);
    let per_channel = [w.len(), b.len(), running.mean.len(), running.var.len(), mean.len(), inverse.len()];
    assert!(per_channel.iter().all(|&len| len == dims.channels), "one value a channel");
    let momentum = running.momentum;
    let saved = (Chunks::new(mean, 1), Chunks::new(inverse, 1));
    let running = (Chunks::new(running.mean, 1), Chunks::new(running.var, 1));
    run_parts(par, dims.channels, (dims.tiles(y), saved, running), |channel, (mut y, saved, running)| {
        let count = (dims.images * dims.pixels) as f64;
        let mean = dims.planes(x, channel).map(|x| f64::from(simd::dispatch(Sum { x }))).sum::<f64>() / count;
        let square = |x| f64::from(simd::dispatch(SquaredDeviation { x, mean: mean as f32 }));
        let var = dims.planes(x, channel).map(square).sum::<f64>() / count;
        let inverse = 1.0 / (var + f64::from(dims.eps)).sqrt();
        (saved.0[0], saved.1[0]) = (mean as f32, inverse as f32);
        let unbiased = var * count / (count - 1.0).max(1.0);
        running.0[0] += momentum * (mean as f32 - running.0[0]);
        running.1[0] += momentum * (unbiased as f32 - running.1[0]);
        let affine = Affine::new(saved.0[0], saved.1[0], w[channel], b[channel]);
        for (image, x) in dims.planes(x, channel).enumerate() {
            simd::dispatch(Apply { affine, x: Some(x), y: y.row(image) });
        }
    });
}

/// Normalises with the running statistics. `x == None`: `y` holds `x`.
pub fn batch_norm_eval(
    par: &Par,
    dims: &BatchNorm,
    x: Option<&[f32]>,
    (w, b): (&[f32], &[f32]),
    (mean, var): (&[f32], &[f32]),
    y: &mut [f32],
) {
    dims.check(x.unwrap_or(y));
    dims.check(y);
    assert!([w, b, mean, var].iter().all(|v| v.len() == dims.channels), "one value a channel");
    run_parts(par, dims.channels, dims.tiles(y), |channel, mut y| {
        let inverse = 1.0 / (var[channel] + dims.eps).sqrt();
        let affine = Affine::new(mean[channel], inverse, w[channel], b[channel]);
        for image in 0..dims.images {
            let x = x.map(|x| &x[(image * dims.channels + channel) * dims.pixels..][..dims.pixels]);
            simd::dispatch(Apply { affine, x, y: y.row(image) });
        }
    });
}

/// What [`batch_norm_grad`] reads.
#[derive(Clone, Copy)]
pub struct BatchNormSaved<'a> {
    /// The input.
    pub x: &'a [f32],
    /// The weight.
    pub w: &'a [f32],
    /// The mean that was used.
    pub mean: &'a [f32],
    /// `1 / sqrt(var + eps)` that was used.
    pub inverse: &'a [f32],
    /// Whether they were the batch's, so that they depend on the input.
    pub is_batch: bool,
}

/// Gradients of batch normalisation, with `h = (x - mean) inverse`:
/// `db = sum dy`, `dw = sum dy h`, and `dx = w inverse (dy - (db + h dw) / n)`, or `w inverse dy` with running
/// statistics. `db` and `dw` are added to what is there with `accumulate`.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel")]
pub fn batch_norm_grad(
    par: &Par,
    dims: &BatchNorm,
    saved: &BatchNormSaved,
    dy: &[f32],
    dx: Option<&mut [f32]>,
    dw: Option<&mut [f32]>,
    db: Option<&mut [f32]>,
    accumulate: bool,
) {
    dims.check(saved.x);
    dims.check(dy);
    assert!([saved.w, saved.mean, saved.inverse].iter().all(|v| v.len() == dims.channels), "one value a channel");
    assert!([&dw, &db].iter().all(|d| d.as_ref().is_none_or(|d| d.len() == dims.channels)), "one value a channel");
    let dx = dx.map(|dx| {
        dims.check(dx);
        dims.tiles(dx)
    });
    let sums = (dw.map(|dw| Chunks::new(dw, 1)), db.map(|db| Chunks::new(db, 1)));
    run_parts(par, dims.channels, (dx, sums), |channel, (dx, (dw, db))| {
        let (mean, inverse) = (saved.mean[channel], saved.inverse[channel]);
        let planes = dims.planes(saved.x, channel).zip(dims.planes(dy, channel));
        let (mut sum, mut product) = (0.0, 0.0);
        for (x, dy) in planes.clone() {
            sum += f64::from(simd::dispatch(Sum { x: dy }));
            product += f64::from(simd::dispatch(ProductSum { x, dy, mean, inverse }));
        }
        for (out, total) in [(dw, product), (db, sum)] {
            if let Some(out) = out {
                out[0] = total as f32 + if accumulate { out[0] } else { 0.0 };
            }
        }
        let Some(mut dx) = dx else { return };
        let share = if saved.is_batch { 1.0 / (dims.images * dims.pixels) as f64 } else { 0.0 };
        let (sum, product) = ((sum * share) as f32, (product * share) as f32);
        let factor = saved.w[channel] * inverse;
        for (image, (x, dy)) in planes.enumerate() {
            simd::dispatch(GradX { x, dy, mean, inverse, sum, product, factor, dx: dx.row(image) });
        }
    });
}

struct Sum<'a> {
    x: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        row_sum!(s, (self.x => x), self.x.len(), |sum| s.add(sum, x))
    }
}

/// `sum of (x - mean)^2`.
struct SquaredDeviation<'a> {
    x: &'a [f32],
    mean: f32,
}

impl Kernel for SquaredDeviation<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mean, whole) = (s.splat(self.mean), self.x.len() / LANES * LANES);
        let sum = row_sum!(s, (&self.x[..whole] => x), whole, |sum| {
            let d = s.sub(x, mean);
            s.fma(d, d, sum)
        });
        self.x[whole..].iter().fold(sum, |sum, x| (x - self.mean).mul_add(x - self.mean, sum))
    }
}

/// `sum of dy (x - mean) inverse`.
struct ProductSum<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    mean: f32,
    inverse: f32,
}

impl Kernel for ProductSum<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mean, inverse) = (s.splat(self.mean), s.splat(self.inverse));
        row_sum!(s, (self.x => x, self.dy => d), self.x.len(), |sum| s.fma(d, s.mul(s.sub(x, mean), inverse), sum))
    }
}

/// `y = x factor + offset`.
#[derive(Clone, Copy)]
struct Affine {
    factor: f32,
    offset: f32,
}

impl Affine {
    fn new(mean: f32, inverse: f32, w: f32, b: f32) -> Affine {
        let factor = inverse * w;
        Affine { factor, offset: (-mean).mul_add(factor, b) }
    }
}

struct Apply<'a> {
    affine: Affine,
    x: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (factor, offset) = (s.splat(self.affine.factor), s.splat(self.affine.offset));
        for at in (0..self.y.len()).step_by(LANES) {
            let x = load_any(s, self.x.unwrap_or(self.y), at);
            store_any(s, s.fma(x, factor, offset), self.y, at);
        }
    }
}

struct GradX<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    mean: f32,
    inverse: f32,
    sum: f32,
    product: f32,
    factor: f32,
    dx: &'a mut [f32],
}

impl Kernel for GradX<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mean, inverse) = (s.splat(self.mean), s.splat(self.inverse));
        let (sum, product, factor) = (s.splat(self.sum), s.splat(self.product), s.splat(self.factor));
        for at in (0..self.dx.len()).step_by(LANES) {
            let h = s.mul(s.sub(load_any(s, self.x, at), mean), inverse);
            let d = s.neg_fma(h, product, s.sub(load_any(s, self.dy, at), sum));
            store_any(s, s.mul(d, factor), self.dx, at);
        }
    }
}
