//! Sums of two tensors, and pooling.

use super::{Dice, naive, shapes};
use tinyforge_kernels::int8::*;

#[test]
fn sums_are_rounded_once() {
    let mut dice = Dice::new(3);
    for len in [1, 2, 3, 8, 15, 64, 257] {
        let (a, b) = (dice.i8s(len), dice.i8s(len));
        let add = Add { ra: 0.71, rb: 1.13, zero_a: -7, zero_b: 40, zero_y: 12, lo: -100, hi: 90 };
        let (mut y, mut mask) = (vec![0; len], vec![0xff; mask_bytes(len)]);
        i8_add(&add, &a, &b, &mut y, Some(&mut mask));
        for at in 0..len {
            let t = ((i32::from(b[at]) - 40) as f32).mul_add(1.13, (i32::from(a[at]) + 7) as f32 * 0.71);
            let (value, inside) = naive::stored(t, 12, -100, 90);
            assert_eq!((y[at], mask[at / 8] >> (at % 8) & 1 == 1), (value, inside));
        }
        for place in 0..2 {
            let (mut in_a, mut in_b, mut again) = (a.clone(), b.clone(), vec![0xff; mask_bytes(len)]);
            if place == 0 {
                i8_add_to_a(&add, &mut in_a, &b, Some(&mut again));
            } else {
                i8_add_to_b(&add, &a, &mut in_b, Some(&mut again));
            }
            assert_eq!(if place == 0 { in_a } else { in_b }, y);
            assert_eq!(again, mask);
        }
    }
}

#[test]
fn sums_of_whole_numbers_go_up_at_ties() {
    let mut dice = Dice::new(4);
    // The last are whole numbers of 21 bits over the widest and the narrowest powers of two.
    let unit = [2f32.powi(-13), 2f32.powi(-30)];
    let factors =
        [(0.5, 0.5), (0.75, 1.25), (2097151.0 * unit[0], 8.0 * unit[0]), (1048577.0 * unit[1], 2.0 * unit[1])];
    for (len, (ra, rb)) in [1, 7, 64, 257].into_iter().zip(factors) {
        let (a, b) = (dice.i8s(len), dice.i8s(len));
        let add = Add { ra, rb, zero_a: -7, zero_b: 40, zero_y: 12, lo: -100, hi: 90 };
        let (mut y, mut mask) = (vec![0; len], vec![0xff; mask_bytes(len)]);
        i8_add_up(&add, &a, &b, &mut y, Some(&mut mask));
        for at in 0..len {
            let (a, b) = (f64::from(a[at]) + 7.0, f64::from(b[at]) - 40.0);
            let r = (a * f64::from(ra) + b * f64::from(rb) + 0.5).floor() + 12.0;
            let inside = (-100.0..=90.0).contains(&r);
            assert_eq!((f64::from(y[at]), mask[at / 8] >> (at % 8) & 1 == 1), (r.clamp(-100.0, 90.0), inside));
        }
        let (mut in_a, mut in_b, mut masks) = (a.clone(), b.clone(), [mask.clone(), mask.clone()]);
        i8_add_up_to_a(&add, &mut in_a, &b, Some(&mut masks[0]));
        i8_add_up_to_b(&add, &a, &mut in_b, Some(&mut masks[1]));
        assert_eq!((&in_a, &in_b, &masks), (&y, &y, &[mask.clone(), mask]));
    }
}

/// The elements of the windows that see something, with their place in `x`.
fn window(d: &Conv, at: [usize; 3], c: usize) -> Vec<usize> {
    naive::taps(d).into_iter().filter_map(|tap| naive::under(d, at, tap)).map(|q| q * d.in_channels + c).collect()
}

#[test]
fn pools_look_at_the_taps_inside() {
    let quant = Quant { zero_x: -9, zero_y: -9, lo: -110, hi: 100 };
    for (i, dims) in shapes(40).iter().enumerate() {
        let dims = &Conv { out_channels: dims.in_channels, ..*dims };
        let mut dice = Dice::new(i as u64);
        let (x, g) = (dice.i8s(dims.x_len()), dice.f32s(dims.y_len(), 1.0));
        let (mut avg, mut max) = (vec![0; dims.y_len()], vec![0; dims.y_len()]);
        let (mut avg_gx, mut max_gx) = (vec![9.0; dims.x_len()], vec![9.0; dims.x_len()]);
        i8_avg_pool(dims, &quant, &x, &mut avg);
        i8_max_pool(dims, &quant, &x, &mut max);
        i8_avg_pool_grad(dims, &g, &mut avg_gx);
        i8_max_pool_grad(dims, &g, &x, &mut max_gx);
        let (mut expected_avg, mut expected_max) = (vec![0.0f32; dims.x_len()], vec![0.0f32; dims.x_len()]);
        for (p, at) in naive::outputs(dims).enumerate() {
            for c in 0..dims.in_channels {
                let (taps, to) = (window(dims, at, c), p * dims.in_channels + c);
                let sum: i32 = taps.iter().map(|t| i32::from(x[*t]) + 9).sum();
                let mean = sum as f32 / taps.len().max(1) as f32;
                assert_eq!(avg[to], naive::stored(mean, -9, -110, 100).0, "{dims:?}");
                let greatest = taps.iter().map(|t| i32::from(x[*t])).max();
                assert_eq!(i32::from(max[to]), greatest.unwrap_or(-110).clamp(-110, 100), "{dims:?}");
                for t in &taps {
                    expected_avg[*t] += g[to] / taps.len() as f32;
                }
                if let Some(t) = taps.iter().find(|t| Some(i32::from(x[**t])) == greatest) {
                    expected_max[*t] += g[to];
                }
            }
        }
        assert_eq!(avg_gx, expected_avg, "{dims:?}");
        assert_eq!(max_gx, expected_max, "{dims:?}");
    }
}

#[test]
fn means_in_whole_numbers_go_away_from_zero_at_ties() {
    let quant = Quant { zero_x: -9, zero_y: -9, lo: -110, hi: 100 };
    for (i, dims) in shapes(40).iter().enumerate() {
        let dims = &Conv { out_channels: dims.in_channels, ..*dims };
        let x = Dice::new(i as u64).i8s(dims.x_len());
        let (mut avg, mut line, mut mask) =
            (vec![0; dims.y_len()], vec![0; dims.y_len()], vec![0xff; mask_bytes(dims.y_len())]);
        i8_avg_pool_away(dims, &quant, &x, &mut avg);
        let sums = SumPool { scale: 0.3, offset: -2.5, lo: -110, hi: 100 };
        i8_sum_pool(dims, &sums, &x, &mut line, Some(&mut mask));
        for (p, at) in naive::outputs(dims).enumerate() {
            for c in 0..dims.in_channels {
                let (taps, to) = (window(dims, at, c), p * dims.in_channels + c);
                let sum: i32 = taps.iter().map(|t| i32::from(x[*t])).sum();
                let shifted = f64::from(sum + 9 * taps.len() as i32);
                // `round` goes away from zero at ties.
                let mean = if taps.is_empty() { 0.0 } else { (shifted / taps.len() as f64).round() };
                assert_eq!(f64::from(avg[to]), (mean - 9.0).clamp(-110.0, 100.0), "{dims:?}");
                let expected = naive::stored(sum as f32 * 0.3 + -2.5, 0, -110, 100);
                assert_eq!((line[to], mask[to / 8] >> (to % 8) & 1 == 1), expected, "{dims:?}");
            }
        }
    }
}
