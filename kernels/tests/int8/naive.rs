//! The definitions, as plainly as they can be written.

use tinyforge_kernels::int8::{Conv, Quant};

/// Every (image, output row, output column).
pub fn outputs(d: &Conv) -> impl Iterator<Item = [usize; 3]> {
    let (n, [h, w]) = (d.images, d.out_size);
    (0..n * h * w).map(move |p| [p / (h * w), p / w % h, p % w])
}

/// The input pixel of an output and a tap, or padding.
pub fn under(d: &Conv, [n, h, w]: [usize; 3], [r, s]: [usize; 2]) -> Option<usize> {
    let row = (h * d.stride[0] + r) as i64 - d.pad[0] as i64;
    let column = (w * d.stride[1] + s) as i64 - d.pad[1] as i64;
    let inside = row >= 0 && row < d.in_size[0] as i64 && column >= 0 && column < d.in_size[1] as i64;
    inside.then(|| (n * d.in_size[0] + row as usize) * d.in_size[1] + column as usize)
}

pub fn taps(d: &Conv) -> Vec<[usize; 2]> {
    (0..d.kernel[0]).flat_map(|r| (0..d.kernel[1]).map(move |s| [r, s])).collect()
}

/// Rounds as the definition says, in f64, which holds every f32 and half.
pub fn stored(v: f32, zero: i32, lo: i32, hi: i32) -> (i8, bool) {
    let r = f64::from(v).round_ties_even().clamp(-1e6, 1e6) as i32 + zero;
    (r.clamp(lo, hi) as i8, lo <= r && r <= hi)
}

pub struct Forward {
    pub y: Vec<i8>,
    pub mask: Vec<u8>,
}

fn forward(d: &Conv, q: &Quant, bias: &[i32], scale: &[f32], sum: impl Fn([usize; 3], usize) -> i64) -> Forward {
    let mut y = Vec::new();
    let mut mask = vec![0u8; d.y_len().div_ceil(8)];
    for p in outputs(d) {
        for o in 0..d.out_channels {
            let acc = i32::try_from(sum(p, o) + i64::from(bias[o])).expect("test numbers are small");
            let (value, inside) = stored(acc as f32 * scale[o], q.zero_y, q.lo, q.hi);
            mask[y.len() / 8] |= u8::from(inside) << (y.len() % 8);
            y.push(value);
        }
    }
    Forward { y, mask }
}

pub fn conv2d(d: &Conv, q: &Quant, x: &[i8], w: &[i8], bias: &[i32], scale: &[f32]) -> Forward {
    let c = d.in_channels;
    forward(d, q, bias, scale, |p, o| {
        let mut sum = 0;
        for [r, s] in taps(d) {
            let Some(at) = under(d, p, [r, s]) else { continue };
            for i in 0..c {
                let weight = w[((o * d.kernel[0] + r) * d.kernel[1] + s) * c + i];
                sum += i64::from(i32::from(x[at * c + i]) - q.zero_x) * i64::from(weight);
            }
        }
        sum
    })
}

pub fn depthwise(d: &Conv, q: &Quant, x: &[i8], w: &[i8], bias: &[i32], scale: &[f32]) -> Forward {
    let m = d.out_channels / d.in_channels;
    forward(d, q, bias, scale, |p, o| {
        let mut sum = 0;
        for [r, s] in taps(d) {
            let Some(at) = under(d, p, [r, s]) else { continue };
            let weight = w[(r * d.kernel[1] + s) * d.out_channels + o];
            sum += i64::from(i32::from(x[at * d.in_channels + o / m]) - q.zero_x) * i64::from(weight);
        }
        sum
    })
}

/// `gx`, by walking the taps of each input pixel in order.
pub fn conv2d_grad_x(d: &Conv, gc: &[f32], w: &[i8]) -> Vec<f32> {
    let c = d.in_channels;
    let mut gx = vec![0.0f32; d.x_len()];
    for [r, s] in taps(d) {
        for (p, at) in outputs(d).enumerate() {
            let Some(q) = under(d, at, [r, s]) else { continue };
            for o in 0..d.out_channels {
                for i in 0..c {
                    let weight = f32::from(w[((o * d.kernel[0] + r) * d.kernel[1] + s) * c + i]);
                    gx[q * c + i] = gc[p * d.out_channels + o].mul_add(weight, gx[q * c + i]);
                }
            }
        }
    }
    gx
}

pub fn depthwise_grad_x(d: &Conv, gc: &[f32], w: &[i8]) -> Vec<f32> {
    let m = d.out_channels / d.in_channels;
    let mut gx = vec![0.0f32; d.x_len()];
    for [r, s] in taps(d) {
        for (p, at) in outputs(d).enumerate() {
            let Some(q) = under(d, at, [r, s]) else { continue };
            for o in 0..d.out_channels {
                let weight = f32::from(w[(r * d.kernel[1] + s) * d.out_channels + o]);
                let sum = &mut gx[q * d.in_channels + o / m];
                *sum = gc[p * d.out_channels + o].mul_add(weight, *sum);
            }
        }
    }
    gx
}

pub fn conv2d_grad_w(d: &Conv, zero: i32, gc: &[f32], x: &[i8], index: &[i32]) -> Vec<f32> {
    let mut gw = Vec::new();
    for o in 0..d.out_channels {
        for tap in taps(d) {
            for i in index {
                let mut sum = 0.0f32;
                for (p, at) in outputs(d).enumerate() {
                    let Some(q) = under(d, at, tap) else { continue };
                    let x = (i32::from(x[q * d.in_channels + *i as usize]) - zero) as f32;
                    sum = x.mul_add(gc[p * d.out_channels + o], sum);
                }
                gw.push(sum);
            }
        }
    }
    gw
}

pub fn depthwise_grad_w(d: &Conv, zero: i32, gc: &[f32], x: &[i8], index: &[i32]) -> Vec<f32> {
    let m = d.out_channels / d.in_channels;
    let mut gw = Vec::new();
    for tap in taps(d) {
        for o in index {
            let o = *o as usize;
            let mut sum = 0.0f32;
            for (p, at) in outputs(d).enumerate() {
                let Some(q) = under(d, at, tap) else { continue };
                let x = (i32::from(x[q * d.in_channels + o / m]) - zero) as f32;
                sum = x.mul_add(gc[p * d.out_channels + o], sum);
            }
            gw.push(sum);
        }
    }
    gw
}
