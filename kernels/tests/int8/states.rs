//! Updates that keep momentum and the error of rounding: the rules, parts of tensors, and gradients fused in.

use super::{Aligned, Dice, depthwise_shapes, each_instruction_set, shapes};
use tinyforge_kernels::int8::*;

const RNG: [u32; 4] = [11, 22, 33, 0];

fn update(factor: &[f32], lr: f32) -> Update<'_> {
    Update { lr, factor, stream: update_stream(&RNG, 4) }
}

fn states<'a>(momentum: f32, sum: &'a mut [f32], error: &'a mut [f32]) -> States<'a> {
    States { momentum, sum, error }
}

#[test]
fn weight_and_error_are_the_weight_before_rounding() {
    let (channels, inner) = (3, 8);
    let shape = Shape::ChannelFirst { channels, inner };
    let factor = [1.0, 0.25, 0.0];
    let mut dice = Dice::new(1);
    let start = dice.weights(channels * inner);
    let (mut w, mut error) = (start.clone(), vec![0.0; start.len()]);
    let mut real: Vec<f64> = start.iter().map(|&w| f64::from(w)).collect();
    for _ in 0..200 {
        let g = dice.f32s(w.len(), 0.4);
        i8_update_with(shape, &update(&factor, 0.5), &mut states(0.0, &mut [], &mut error), &mut w, &g, None);
        for (at, real) in real.iter_mut().enumerate() {
            *real -= f64::from((0.5 * factor[at / inner]) * g[at]);
            // What leaves the limits by more than the error can hold is dropped.
            *real = real.clamp(-127.5, 127.5);
        }
        assert!(error.iter().all(|e| e.abs() <= 0.5));
    }
    for (at, real) in real.iter().enumerate().filter(|(at, _)| start[*at].abs() < 100) {
        let found = f64::from(w[at]) + f64::from(error[at]);
        // Each of 200 sums rounds by at most half a unit in the last place of 1/2.
        assert!((found - real).abs() < 200.0 * 3e-8, "element {at}: {found} and {real}");
    }
    assert!(w != start && w[2 * inner..] == start[2 * inner..], "a factor of 0 freezes");
}

#[test]
fn ties_go_to_even_and_limits_hold() {
    let shape = Shape::ChannelLast { channels: 8 };
    let g = [-0.5, -1.5, 0.5, 2.5, -300.0, 300.0, f32::NAN, f32::NEG_INFINITY];
    let (mut w, mut error) = ([0i8; 8], [0.0; 8]);
    let factor = [1.0; 8];
    i8_update_with(shape, &update(&factor, 1.0), &mut states(0.0, &mut [], &mut error), &mut w, &g, None);
    assert_eq!(w, [0, 2, 0, -2, 127, -127, 0, 127]);
    assert_eq!(error, [0.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0]);
    // From its limit a weight comes back by the first step that points back.
    i8_update_with(shape, &update(&factor, 1.0), &mut states(0.0, &mut [], &mut error), &mut w, &[1.0; 8], None);
    assert_eq!((w[4], w[5]), (126, -127));
    let mut b = [i32::MAX - 5, i32::MIN + 5, 7, 0, 0, 0, 0, 0];
    let g = [-1e9, 1e9, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0];
    let mut error = [0.0; 8];
    i32_update_with(shape, &update(&factor, 1.0), &mut states(0.0, &mut [], &mut error), &mut b, &g, None);
    assert_eq!((&b[..4], &error[..4]), (&[i32::MAX, i32::MIN, 7, 0][..], &[0.0, 0.0, -0.25, -0.25][..]));
}

#[test]
fn momentum_stands_for_the_gradient() {
    let (len, momentum) = (24, 0.9f32);
    let shape = Shape::ChannelLast { channels: len };
    let factor = vec![1.0; len];
    let mut dice = Dice::new(2);
    let (mut w, mut plain) = (vec![0i8; len], vec![0i8; len]);
    let (mut sum, mut by_hand) = (vec![0.0; len], vec![0.0f32; len]);
    for _ in 0..30 {
        let g = dice.f32s(len, 2.0);
        by_hand.iter_mut().zip(&g).for_each(|(m, g)| *m = momentum.mul_add(*m, *g));
        i8_update_with(shape, &update(&factor, 0.3), &mut states(momentum, &mut sum, &mut []), &mut w, &g, None);
        i8_update(shape, &update(&factor, 0.3), &mut plain, &by_hand, None);
        assert_eq!((&sum, &w), (&by_hand, &plain));
    }
    assert!(w.iter().any(|w| *w != 0));
}

#[test]
fn a_part_keeps_states_of_its_own_elements() {
    let (channels, inner) = (4, 9);
    let shape = Shape::ChannelFirst { channels, inner };
    let index = [7, 0, 3];
    let factor = [1.0, 0.3, 2.0, 0.7];
    let mut dice = Dice::new(3);
    let (mut all, mut some) = (vec![0i8; channels * inner], vec![0i8; channels * inner]);
    let (mut sums, mut errors) = (vec![0.0; all.len()], vec![0.0; all.len()]);
    let (mut part_sums, mut part_errors) = (vec![0.0; channels * 3], vec![0.0; channels * 3]);
    for _ in 0..5 {
        let whole = dice.f32s(all.len(), 2.0);
        let part: Vec<f32> = whole.chunks(inner).flat_map(|row| index.map(|i| row[i as usize])).collect();
        let (mut a, mut b) = (states(0.5, &mut sums, &mut errors), states(0.5, &mut part_sums, &mut part_errors));
        i8_update_with(shape, &update(&factor, 0.9), &mut a, &mut all, &whole, None);
        i8_update_with(shape, &update(&factor, 0.9), &mut b, &mut some, &part, Some(&index));
    }
    let chosen = |x: &[f32]| x.chunks(inner).flat_map(|row| index.map(|i| row[i as usize])).collect::<Vec<_>>();
    assert_eq!((part_sums, part_errors), (chosen(&sums), chosen(&errors)));
    for at in 0..all.len() {
        assert_eq!(some[at], if index.contains(&((at % inner) as i32)) { all[at] } else { 0 });
    }
}

/// The gradient with the update in one, against the two.
fn fused(dims: &Conv, seed: u64, is_depthwise: bool) {
    let mut dice = Dice::new(seed);
    let (gc, x) = (dice.f32s(dims.y_len(), 0.02), dice.i8s(dims.x_len()));
    let o = dims.out_channels;
    let columns = if is_depthwise { o } else { dims.in_channels };
    let (w_len, shape) = match is_depthwise {
        true => (dims.depthwise_w_len(), Shape::ChannelLast { channels: o }),
        false => (dims.w_len(), Shape::ChannelFirst { channels: o, inner: columns }),
    };
    let some = dice.some(columns);
    let (w, factor) = (dice.weights(w_len), dice.f32s(o, 1.0));
    for (momentum, keeps_error, index) in [(0.9, true, None), (0.0, true, Some(&some[..])), (0.7, false, None)] {
        let from = WeightGrad { zero: -3, gc: &gc, x: &x, index };
        let trained = w_len / columns * index.map_or(columns, <[i32]>::len);
        let sums = dice.f32s(if momentum == 0.0 { 0 } else { trained }, 0.5);
        let errors = dice.f32s(if keeps_error { trained } else { 0 }, 0.5);
        let (mut apart, mut together) = ((w.clone(), sums.clone(), errors.clone()), (w.clone(), sums, errors));
        let mut gw = vec![0.0; trained];
        let update = update(&factor, 0.7);
        let mut kept = states(momentum, &mut together.1, &mut together.2);
        if is_depthwise {
            let mut scratch = Aligned::new(i8_depthwise_grad_w_scratch_bytes(dims));
            i8_depthwise_grad_w(dims, &from, &mut gw, scratch.bytes());
            i8_depthwise_grad_w_update_with(dims, &from, &update, &mut kept, &mut together.0, scratch.bytes());
        } else {
            let mut scratch = Aligned::new(i8_conv2d_grad_w_scratch_bytes(dims));
            i8_conv2d_grad_w(dims, &from, &mut gw, scratch.bytes());
            i8_conv2d_grad_w_update_with(dims, &from, &update, &mut kept, &mut together.0, scratch.bytes());
        }
        let mut kept = states(momentum, &mut apart.1, &mut apart.2);
        i8_update_with(shape, &update, &mut kept, &mut apart.0, &gw, index);
        assert_eq!(together, apart, "{dims:?} {index:?}");
    }
}

#[test]
fn fused_updates_keep_the_same_states() {
    each_instruction_set(|| {
        shapes(20).iter().enumerate().for_each(|(i, dims)| fused(dims, i as u64, false));
        depthwise_shapes(20).iter().enumerate().for_each(|(i, dims)| fused(dims, i as u64, true));
    });
    for o in [1, 7, 24] {
        let mut dice = Dice::new(o as u64);
        let (gc, factor, bias) = (dice.f32s(9 * o, 1.0), dice.f32s(o, 50.0), dice.i32s(o, 1000));
        let (sums, errors) = (dice.f32s(o, 1.0), dice.f32s(o, 0.5));
        let (mut apart, mut together) = ((bias.clone(), sums.clone(), errors.clone()), (bias, sums, errors));
        let mut gb = vec![0.0; o];
        i8_grad_b(&gc, &mut gb);
        let mut kept = states(0.8, &mut apart.1, &mut apart.2);
        i32_update_with(Shape::ChannelLast { channels: o }, &update(&factor, 0.3), &mut kept, &mut apart.0, &gb, None);
        let mut kept = states(0.8, &mut together.1, &mut together.2);
        i8_grad_b_update_with(&update(&factor, 0.3), &mut kept, &gc, &mut together.0);
        assert_eq!(together, apart);
    }
}
