//! Imported operators against LiteRT's whole-number arithmetic for them.

#[expect(dead_code, reason = "shared with programs that use more of it")]
mod tflite_file;

use tflite_file::{Model, NONE, VALID, activation_options, mixed, pool_options};
use tinyforge_compiler::import::tflite::import;

/// A scale between 0.02 and 0.2, and a zero point.
fn quant(seed: u32) -> (f32, i64) {
    let part = mixed(2 * seed) as f32 / u32::MAX as f32;
    (0.02 + 0.18 * part, i64::from(mixed(2 * seed + 1) % 256) - 128)
}

/// What the last layer of a model computes of the images given, which are all but its own.
fn last(m: &Model, given: &[&[i8]], elems: usize) -> Vec<i64> {
    let bytes = m.bytes();
    let model = import(&bytes, "m").expect("a model");
    let images: Vec<i8> = given.iter().flat_map(|x| x.iter().copied()).chain(vec![0; elems]).collect();
    let computed = model.layerwise(&bytes, &images).expect("all images are given");
    computed[computed.len() - elems..].iter().map(|&y| i64::from(y)).collect()
}

/// A model of one operator that reads one image.
fn one(code: i32, (x_shape, x): (&[i32], (f32, i64)), (y_shape, y): (&[i32], (f32, i64))) -> Model {
    let mut m = Model::default();
    let (given, wanted) = (m.image(x_shape, x.0, x.1), m.image(y_shape, y.0, y.1));
    m.operator(code, &[given], wanted, Vec::new());
    (m.inputs, m.outputs) = (vec![given], vec![wanted]);
    m
}

fn int8s() -> impl Iterator<Item = i8> + Clone {
    -128..=127
}

/// LiteRT adds with multipliers of 21 bits, and rounds ties up. All pairs of operands.
#[test]
fn sums() {
    const SHAPE: [i32; 4] = [1, 256, 256, 1];
    let a: Vec<i8> = int8s().flat_map(|a| int8s().map(move |_| a)).collect();
    let b: Vec<i8> = int8s().flat_map(|_| int8s()).collect();
    let mut ties = 0;
    for seed in 0..12 {
        let ((sa, za), (sb, zb), (sy, zy)) = (quant(3 * seed), quant(3 * seed + 1), quant(3 * seed + 2));
        let mut m = Model::default();
        let (x, sum) = (m.image(&SHAPE, sa, za), m.image(&SHAPE, sy, zy));
        // A second image to add: the first in another scale.
        let other = m.image(&SHAPE, sb, zb);
        m.operator(114, &[x], other, Vec::new());
        m.operator(0, &[x, other], sum, activation_options(NONE));
        (m.inputs, m.outputs) = (vec![x], vec![sum]);
        let found = last(&m, &[&a, &b], a.len());
        let (ra, rb) = (sa / sy, sb / sy);
        let shift = 20 - ra.max(rb).log2().floor() as i32;
        let [ma, mb] = [ra, rb].map(|r| (f64::from(r) * 2f64.powi(shift)).round_ties_even() as i64);
        for ((&a, &b), found) in a.iter().zip(&b).zip(found) {
            let acc = ma * (i64::from(a) - za) + mb * (i64::from(b) - zb);
            let half = 1i64 << (shift - 1);
            let expected = (((acc + half) >> shift) + zy).clamp(-128, 127);
            let is_tie = (acc + half) & (2 * half - 1) == 0;
            ties += usize::from(is_tie && found != expected);
            assert!(found == expected || is_tie, "{a} and {b} with {:?}: {found}, not {expected}", (ra, rb));
        }
    }
    assert!(ties < 8, "{ties} ties of {} pairs went down", 12 * a.len());
}

/// LiteRT's average pool adds stored numbers and rounds ties away from 0.
#[test]
fn average_pools() {
    for (size, channels) in [(2, 40), (3, 30), (4, 30), (6, 20), (8, 20)] {
        let q = quant(size as u32 + 70);
        let mut m = one(1, (&[1, 2 * size, size, channels], q), (&[1, 2, 1, channels], q));
        m.operators[0].3 = pool_options(VALID, size, size);
        let (taps, count) = ((size * size) as usize, channels as usize);
        let (mut ties, mut x) = (0, vec![0i8; 2 * taps * count]);
        for round in 0..40u32 {
            for (i, x) in x.iter_mut().enumerate() {
                // Means on both sides of 0, within a channel close together.
                let middle = mixed(round * 977 + (i % count) as u32) % 230;
                *x = (middle as i32 + (mixed(round + 31 * i as u32) % 26) as i32 - 127) as i8;
            }
            let found = last(&m, &[&x], 2 * count);
            for (at, found) in found.into_iter().enumerate() {
                let window = x.iter().skip(at / count * taps * count + at % count).step_by(count).take(taps);
                let (sum, n) = (window.map(|&x| i64::from(x)).sum::<i64>(), taps as i64);
                let expected = if sum > 0 { (sum + n / 2) / n } else { (sum - n / 2) / n };
                assert_eq!(found, expected, "{sum} over {n}, zero point {}", q.1);
                ties += usize::from(2 * (sum % n).abs() == n);
            }
        }
        assert_eq!(ties > 0, size % 2 == 0, "{ties} ties of windows of {taps}");
    }
}

/// LiteRT's mean rounds ties to an even stored number, whatever the zero point.
#[test]
fn means() {
    const CHANNELS: usize = 64;
    for (size, zero) in [(2, -37), (4, 3), (6, -128), (8, 11)] {
        let q = (0.07f32, zero);
        let mut m = one(40, (&[1, size, size, CHANNELS as i32], q), (&[1, CHANNELS as i32], q));
        let axes = m.ints(&[1, 2]);
        m.operators[0].1.push(axes);
        let (n, mut ties) = (i64::from(size * size), 0);
        for round in 0..40u32 {
            let draw = |i: u32| (mixed(round * 7919 + i % 64) % 230 + mixed(round + 31 * i) % 26) as i32 - 127;
            let x: Vec<i8> = (0..n as u32 * CHANNELS as u32).map(|i| draw(i) as i8).collect();
            // A mean's image stands behind its input.
            for (c, found) in last(&m, &[&x], CHANNELS).into_iter().enumerate() {
                let sum: i64 = x.iter().skip(c).step_by(CHANNELS).map(|&x| i64::from(x)).sum();
                assert_eq!(found, (sum as f64 / n as f64).round_ties_even() as i64, "{sum} over {n}");
                ties += usize::from(2 * sum.rem_euclid(n) == n);
            }
        }
        assert!(ties > 0, "no ties of {n}");
    }
}

/// LiteRT changes scales by multipliers of 8 fractional bits, ties up.
#[test]
fn changes_of_scale() {
    let (x, mut ties): (Vec<i8>, _) = (int8s().collect(), 0);
    for seed in 0..200 {
        let ((sx, zx), (sy, zy)) = (quant(500 + 2 * seed), quant(501 + 2 * seed));
        let m = one(114, (&[1, 16, 16, 1], (sx, zx)), (&[1, 16, 16, 1], (sy, zy)));
        let multiplier = (f64::from(sx / sy) * 256.0).round_ties_even() as i64;
        for (&x, found) in x.iter().zip(last(&m, &[&x], 256)) {
            let acc = multiplier * (i64::from(x) - zx);
            let expected = (((acc + 128) >> 8) + zy).clamp(-128, 127);
            let is_tie = (acc + 128) & 255 == 0;
            ties += usize::from(is_tie && found != expected);
            assert!(found == expected || is_tie, "{x}: {found}, not {expected}");
        }
    }
    assert!(ties < 256, "{ties} ties of {} numbers went down", 200 * x.len());
}
