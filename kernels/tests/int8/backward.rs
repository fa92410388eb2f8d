//! Gradients: the sums in their stated order, parts of tensors, and updates fused with them.

use super::{Aligned, Dice, depthwise_shapes, each_instruction_set, naive, shapes};
use tinyforge_kernels::int8::*;

const RNG: [u32; 4] = [11, 22, 33, 0];

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Gradients as they come: a third is masked out.
fn gradients(dice: &mut Dice, len: usize) -> Vec<f32> {
    let mut g = dice.f32s(len, 0.02);
    for g in &mut g {
        if dice.below(3) == 0 {
            *g = 0.0;
        }
    }
    g
}

#[test]
fn gradients_of_the_input_keep_their_order() {
    each_instruction_set(gradients_of_the_input);
}

fn gradients_of_the_input() {
    for (i, dims) in shapes(40).iter().enumerate() {
        let mut dice = Dice::new(i as u64);
        let (gc, w) = (gradients(&mut dice, dims.y_len()), dice.weights(dims.w_len()));
        let mut gx = vec![9.0; dims.x_len()];
        let mut scratch = Aligned::new(i8_conv2d_grad_x_scratch_bytes(dims));
        i8_conv2d_grad_x(dims, &gc, &w, &mut gx, scratch.bytes());
        assert_eq!(bits(&gx), bits(&naive::conv2d_grad_x(dims, &gc, &w)), "{dims:?}");
    }
    for (i, dims) in depthwise_shapes(40).iter().enumerate() {
        let mut dice = Dice::new(i as u64);
        let (gc, w) = (gradients(&mut dice, dims.y_len()), dice.weights(dims.depthwise_w_len()));
        let mut gx = vec![9.0; dims.x_len()];
        let mut scratch = Aligned::new(i8_depthwise_grad_x_scratch_bytes(dims));
        i8_depthwise_grad_x(dims, &gc, &w, &mut gx, scratch.bytes());
        assert_eq!(bits(&gx), bits(&naive::depthwise_grad_x(dims, &gc, &w)), "{dims:?}");
    }
}

/// The whole, a part, and each of them with the update fused.
fn weight(dims: &Conv, seed: u64, is_depthwise: bool) {
    let mut dice = Dice::new(seed);
    let (gc, x) = (gradients(&mut dice, dims.y_len()), dice.i8s(dims.x_len()));
    let (o, zero) = (dims.out_channels, dice.below(256) as i32 - 128);
    let columns = if is_depthwise { o } else { dims.in_channels };
    let (w_len, shape) = if is_depthwise {
        (dims.depthwise_w_len(), Shape::ChannelLast { channels: o })
    } else {
        (dims.w_len(), Shape::ChannelFirst { channels: o, inner: columns })
    };
    let all: Vec<i32> = (0..columns as i32).collect();
    let some = dice.some(columns);
    let (w, factor) = (dice.weights(w_len), dice.f32s(o, 1.0));
    let update = Update { lr: 0.7, factor: &factor, stream: update_stream(&RNG, 4) };
    for index in [None, Some(&some[..])] {
        let from = WeightGrad { zero, gc: &gc, x: &x, index };
        let used = index.unwrap_or(&all);
        let mut gw = vec![9.0; w_len / columns * used.len()];
        let (mut apart, mut fused) = (w.clone(), w.clone());
        let expected = if is_depthwise {
            let mut scratch = Aligned::new(i8_depthwise_grad_w_scratch_bytes(dims));
            i8_depthwise_grad_w(dims, &from, &mut gw, scratch.bytes());
            i8_depthwise_grad_w_update(dims, &from, &update, &mut fused, scratch.bytes());
            naive::depthwise_grad_w(dims, zero, &gc, &x, used)
        } else {
            let mut scratch = Aligned::new(i8_conv2d_grad_w_scratch_bytes(dims));
            i8_conv2d_grad_w(dims, &from, &mut gw, scratch.bytes());
            i8_conv2d_grad_w_update(dims, &from, &update, &mut fused, scratch.bytes());
            naive::conv2d_grad_w(dims, zero, &gc, &x, used)
        };
        assert_eq!(bits(&gw), bits(&expected), "{dims:?} {index:?}");
        i8_update(shape, &update, &mut apart, &gw, index);
        assert_eq!(fused, apart, "fused: {dims:?} {index:?}");
    }
}

#[test]
fn gradients_of_the_weight_keep_their_order() {
    each_instruction_set(gradients_of_the_weight);
}

fn gradients_of_the_weight() {
    for (i, dims) in shapes(40).iter().enumerate() {
        weight(dims, i as u64, false);
    }
    for (i, dims) in depthwise_shapes(40).iter().enumerate() {
        weight(dims, i as u64, true);
    }
}

#[test]
fn a_column_outside_of_the_tensor_moves_nothing() {
    let dims = super::EDGES[2];
    let mut dice = Dice::new(1);
    let (gc, x) = (gradients(&mut dice, dims.y_len()), dice.i8s(dims.x_len()));
    let index = [-1, 96, 5];
    let from = WeightGrad { zero: 0, gc: &gc, x: &x, index: Some(&index) };
    let mut gw = vec![9.0; dims.out_channels * 3];
    let mut scratch = Aligned::new(i8_conv2d_grad_w_scratch_bytes(&dims));
    i8_conv2d_grad_w(&dims, &from, &mut gw, scratch.bytes());
    assert!(gw.chunks(3).all(|row| row[0] == 0.0 && row[1] == 0.0 && row[2] != 0.0));
    let factor = vec![1.0; dims.out_channels];
    let update = Update { lr: 10.0, factor: &factor, stream: update_stream(&RNG, 0) };
    let mut w = vec![0; dims.w_len()];
    i8_conv2d_grad_w_update(&dims, &from, &update, &mut w, scratch.bytes());
    assert!(w.iter().enumerate().all(|(at, w)| at % 96 == 5 || *w == 0) && w.iter().any(|w| *w != 0));
}

#[test]
fn masked_gradients_are_zero_and_the_bias_sums_in_order() {
    for (pixels, o) in [(1, 1), (7, 3), (16, 10), (9, 24), (64, 40)] {
        let mut dice = Dice::new(o as u64);
        let (g, scale) = (dice.f32s(pixels * o, 1.0), dice.f32s(o, 0.1));
        let mask: Vec<u8> = (0..mask_bytes(g.len())).map(|_| dice.below(256) as u8).collect();
        let (mut gc, mut all) = (g.clone(), g.clone());
        i8_scale_grad(&mut gc, Some(&mask), &scale);
        i8_scale_grad(&mut all, None, &scale);
        for at in 0..g.len() {
            let scaled = g[at] * scale[at % o];
            assert_eq!(all[at], scaled);
            assert_eq!(gc[at], if mask[at / 8] >> (at % 8) & 1 == 1 { scaled } else { 0.0 });
        }
        let mut gb = vec![9.0; o];
        i8_grad_b(&gc, &mut gb);
        let sum = |k: usize| (0..pixels).fold(0.0f32, |sum, p| sum + gc[p * o + k]);
        assert_eq!(bits(&gb), bits(&(0..o).map(sum).collect::<Vec<_>>()));
        let (factor, bias) = (dice.f32s(o, 50.0), dice.i32s(o, 1000));
        let update = Update { lr: 0.3, factor: &factor, stream: update_stream(&RNG, 9) };
        let (mut apart, mut fused) = (bias.clone(), bias);
        i32_update(Shape::ChannelLast { channels: o }, &update, &mut apart, &gb, None);
        i8_grad_b_update(&update, &gc, &mut fused);
        assert_eq!(apart, fused);
    }
}

#[test]
fn floats_add_and_scale() {
    let (a, b) = ([1.0, 2.5], [3.0, -1.0]);
    let mut y = [0.0; 2];
    f32_add(&a, &b, &mut y);
    assert_eq!(y, [4.0, 1.5]);
    f32_add_to(&mut y, &b);
    assert_eq!(y, [7.0, 0.5]);
    f32_scale(0.5, &a, &mut y);
    assert_eq!(y, [0.5, 1.25]);
    f32_scale_in_place(2.0, &mut y);
    assert_eq!(y, a);
}
