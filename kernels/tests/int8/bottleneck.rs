//! The fused block against its three kernels, apart and in one buffer.

use super::{Aligned, Dice, conv};
use tinyforge_kernels::int8::*;

struct Tensors {
    w: Vec<i8>,
    bias: Vec<i32>,
    scale: Vec<f32>,
}

impl Tensors {
    fn new(dice: &mut Dice, conv: &Conv, w_len: usize, depth: usize) -> Tensors {
        let size = 1.0 / (60.0 * (depth as f32).sqrt());
        let scale = dice.f32s(conv.out_channels, 0.3).iter().map(|s| (s + 0.7) * size).collect();
        Tensors { w: dice.weights(w_len), bias: dice.i32s(conv.out_channels, 2000), scale }
    }

    fn weights(&self) -> Weights<'_> {
        Weights { w: &self.w, bias: &self.bias, scale: &self.scale }
    }
}

fn quant(dice: &mut Dice) -> Quant {
    Quant { zero_x: dice.below(200) as i32 - 100, zero_y: dice.below(200) as i32 - 100, lo: -128, hi: 127 }
}

/// A block on `[h, w, c]`: a first convolution of 1 x 1 or more, a depthwise one, and a projection.
fn block(dice: &mut Dice, with_expand: bool) -> Bottleneck {
    let images = 1 + dice.below(2);
    let window = |dice: &mut Dice, kernel_max: usize, size: [usize; 2]| {
        let kernel = [1 + dice.below(kernel_max), 1 + dice.below(kernel_max)];
        let stride = [1 + dice.below(2), 1 + dice.below(3)];
        let pad = [dice.below(kernel[0] + 1), dice.below(kernel[1])];
        let end = [dice.below(kernel[0] + 1), dice.below(kernel[1])];
        let out = |a: usize| (size[a] + pad[a] + end[a]).saturating_sub(kernel[a]) / stride[a] + 1;
        (kernel, stride, pad, [out(0), out(1)])
    };
    let size = [2 + dice.below(8), 2 + dice.below(8)];
    let (c, e, o) = (1 + dice.below(12), 1 + dice.below(20), 1 + dice.below(16));
    let kernel_max = 1 + 2 * dice.below(2);
    let (kernel, stride, pad, out) = window(dice, kernel_max, size);
    let expand = conv(images, size, c, e, kernel, stride, pad, out);
    let expand = with_expand.then(|| Stage { conv: expand, quant: quant(dice) });
    let (size, channels) = expand.map_or((size, c), |stage| (stage.conv.out_size, e));
    let kernel_max = 1 + dice.below(7);
    let (kernel, stride, pad, out) = window(dice, kernel_max, size);
    let depthwise = conv(images, size, channels, channels * (1 + dice.below(5) / 4), kernel, stride, pad, out);
    let project = conv(images, out, depthwise.out_channels, o, [1, 1], [1, 1], [0, 0], out);
    let (depthwise, project) =
        (Stage { conv: depthwise, quant: quant(dice) }, Stage { conv: project, quant: quant(dice) });
    Bottleneck { expand, depthwise, project }
}

/// The three kernels one after the other.
fn apart(dims: &Bottleneck, x: &[i8], weights: &[Weights; 3]) -> Vec<i8> {
    let mut x = x.to_vec();
    if let Some(Stage { conv, quant }) = &dims.expand {
        let mut y = vec![0; conv.y_len()];
        let mut scratch = Aligned::new(i8_conv2d_scratch_bytes(conv));
        i8_conv2d(conv, quant, &x, &weights[0], &mut y, None, scratch.bytes());
        x = y;
    }
    let Stage { conv, quant } = &dims.depthwise;
    let mut y = vec![0; conv.y_len()];
    let mut scratch = Aligned::new(i8_depthwise_scratch_bytes(conv));
    i8_depthwise(conv, quant, &x, &weights[1], &mut y, None, scratch.bytes());
    let Stage { conv, quant } = &dims.project;
    let mut z = vec![0; conv.y_len()];
    let mut scratch = Aligned::new(i8_conv2d_scratch_bytes(conv));
    i8_conv2d(conv, quant, &y, &weights[2], &mut z, None, scratch.bytes());
    z
}

#[test]
fn fused_blocks_give_the_same_bits() {
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let dims = &block(&mut dice, seed % 4 != 3);
        let first = dims.expand.unwrap_or(dims.depthwise).conv;
        let tensors = [
            Tensors::new(&mut dice, &first, first.w_len(), first.depth()),
            Tensors::new(&mut dice, &dims.depthwise.conv, dims.depthwise.conv.depthwise_w_len(), 9),
            Tensors::new(&mut dice, &dims.project.conv, dims.project.conv.w_len(), dims.project.conv.in_channels),
        ];
        let weights = [tensors[0].weights(), tensors[1].weights(), tensors[2].weights()];
        let x = dice.i8s(dims.x_len());
        let expected = apart(dims, &x, &weights);
        let mut scratch = Aligned::new(i8_bottleneck_scratch_bytes(dims));
        let mut y = vec![99; dims.y_len()];
        i8_bottleneck(dims, &x, &weights, &mut y, scratch.bytes());
        assert_eq!(y, expected, "{seed}: {dims:?}");
        for lead in [i8_bottleneck_lead_bytes(dims), i8_bottleneck_lead_bytes(dims).next_multiple_of(8)] {
            let mut buffer = vec![77; i8_bottleneck_overlay_bytes(dims, lead)];
            buffer[lead..lead + x.len()].copy_from_slice(&x);
            i8_bottleneck_overlay(dims, lead, &weights, &mut buffer, scratch.bytes());
            assert_eq!(buffer[..expected.len()], expected, "in one buffer, {lead} before: {seed}: {dims:?}");
        }
    }
}

#[test]
fn a_block_of_the_usual_form_takes_little_more_than_its_input() {
    let stage = |conv| Stage { conv, quant: Quant { zero_x: 0, zero_y: 0, lo: -128, hi: 127 } };
    // 16 x 16 x 24, expanded to 120, 3 x 3, projected to 24.
    let dims = Bottleneck {
        expand: Some(stage(conv(1, [16, 16], 24, 120, [1, 1], [1, 1], [0, 0], [16, 16]))),
        depthwise: stage(conv(1, [16, 16], 120, 120, [3, 3], [1, 1], [1, 1], [16, 16])),
        project: stage(conv(1, [16, 16], 120, 24, [1, 1], [1, 1], [0, 0], [16, 16])),
    };
    // An output row is written when the input rows up to the next one are expanded.
    assert_eq!(i8_bottleneck_lead_bytes(&dims), 0);
    assert_eq!(i8_bottleneck_overlay_bytes(&dims, 0), 16 * 16 * 24);
    assert!(i8_bottleneck_scratch_bytes(&dims) < 3 * 16 * 120 + 16 * 120 + 6000);
}
