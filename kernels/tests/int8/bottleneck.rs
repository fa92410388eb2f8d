//! The fused block against its three kernels, apart and in one buffer, and its backward pass against those of the
//! kernels one after the other.

use super::{Aligned, Dice, conv};
use tinyforge_kernels::int8::*;
use tinyforge_kernels::random::Stream;

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
    // Four rows at a time: six expanded ones under their windows, and four behind the depthwise convolution.
    assert!(i8_bottleneck_scratch_bytes(&dims) < 6 * 16 * 120 + 4 * 16 * 120 + 6000);
}

/// All that a backward pass reads and changes.
#[derive(Clone)]
struct Backward {
    gc: Vec<f32>,
    weights: [Vec<i8>; 3],
    masks: [Vec<u8>; 2],
    scales: [Vec<f32>; 2],
    factors: [Vec<f32>; 3],
    biases: [Vec<i32>; 2],
    x: Vec<i8>,
    /// Trained input channels; absent where the first weight stays.
    index: Option<Option<Vec<i32>>>,
}

const ZERO: i32 = -7;

impl Backward {
    fn new(dice: &mut Dice, dims: &BottleneckGrad, trained: usize) -> Backward {
        let (conv, ins, outs) = (&dims.depthwise, dims.in_channels, dims.out_channels);
        let (inner, wide, narrow) = (conv.in_channels, conv.x_len(), conv.y_len());
        let mut bits = |len: usize| (0..mask_bytes(len)).map(|_| dice.below(256) as u8).collect::<Vec<u8>>();
        let masks = [bits(wide), bits(narrow)];
        let factors =
            |dice: &mut Dice| (0..inner).map(|k| [0.3, 0.0, 2.0][k % 3] * (1 + dice.below(4)) as f32).collect();
        Backward {
            gc: dice.f32s(conv.images * conv.out_size[0] * conv.out_size[1] * outs, 1.0),
            weights: [dice.weights(inner * ins), dice.weights(conv.depthwise_w_len()), dice.weights(outs * inner)],
            masks,
            scales: [dice.f32s(inner, 0.01), dice.f32s(inner, 0.01)],
            factors: [factors(dice), factors(dice), factors(dice)],
            biases: [dice.i32s(inner, 1000), dice.i32s(inner, 1000)],
            x: dice.i8s(wide / inner * ins),
            index: match trained {
                0 => None,
                1 => Some(None),
                _ => Some(Some(dice.some(ins))),
            },
        }
    }

    fn update<'a>(factor: &'a [f32], tensor: u32) -> Update<'a> {
        Update { lr: 0.05, factor, stream: Stream { seed: 9, step: 4, tensor } }
    }

    /// The kernels one after the other; gives the gradient of the input.
    fn apart(&mut self, dims: &BottleneckGrad) -> Vec<f32> {
        let conv = &dims.depthwise;
        let point =
            |size: [usize; 2], ins, outs| super::conv(conv.images, size, ins, outs, [1, 1], [1, 1], [0, 0], size);
        let project = point(conv.out_size, conv.in_channels, dims.out_channels);
        let expand = point(conv.in_size, dims.in_channels, conv.in_channels);
        let mut scratch =
            Aligned::new(i8_conv2d_grad_w_scratch_bytes(&expand).max(i8_depthwise_grad_x_scratch_bytes(conv)));
        let mut narrow = vec![0.0; conv.y_len()];
        i8_conv2d_grad_x(&project, &self.gc, &self.weights[2], &mut narrow, scratch.bytes());
        i8_scale_grad(&mut narrow, Some(&self.masks[1]), &self.scales[1]);
        let mut wide = vec![0.0; conv.x_len()];
        i8_depthwise_grad_x(conv, &narrow, &self.weights[1], &mut wide, scratch.bytes());
        i8_grad_b_update(&Backward::update(&self.factors[1], 2), &narrow, &mut self.biases[1]);
        i8_scale_grad(&mut wide, Some(&self.masks[0]), &self.scales[0]);
        i8_grad_b_update(&Backward::update(&self.factors[0], 1), &wide, &mut self.biases[0]);
        let mut gx = vec![0.0; expand.x_len()];
        i8_conv2d_grad_x(&expand, &wide, &self.weights[0], &mut gx, scratch.bytes());
        if let Some(index) = &self.index {
            let from = WeightGrad { zero: ZERO, gc: &wide, x: &self.x, index: index.as_deref() };
            let update = Backward::update(&self.factors[2], 3);
            i8_conv2d_grad_w_update(&expand, &from, &update, &mut self.weights[0], scratch.bytes());
        }
        gx
    }

    /// The same in one.
    fn fused(&mut self, dims: &BottleneckGrad) -> Vec<f32> {
        let Backward { gc, weights: [w1, w2, w3], masks, scales, factors, biases: [first, second], x, index } = self;
        let hidden = |k: usize, bias| Hidden {
            mask: &masks[k],
            scale: &scales[k],
            bias,
            update: Backward::update(&factors[k], 1 + k as u32),
        };
        let (expand, depthwise) = (hidden(0, first), hidden(1, second));
        let expand_w = match index {
            None => Expand::Frozen(w1),
            Some(index) => {
                let update = Backward::update(&factors[2], 3);
                Expand::Trained { w: w1, update, x, zero: ZERO, index: index.as_deref() }
            }
        };
        let mut layers = BottleneckLayers { project_w: w3, depthwise_w: w2, depthwise, expand_w, expand };
        let mut gx = vec![9.0; x.len()];
        let mut scratch = Aligned::new(i8_bottleneck_grad_update_scratch_bytes(dims));
        i8_bottleneck_grad_update(dims, gc, &mut layers, &mut gx, scratch.bytes());
        gx
    }
}

#[test]
fn fused_backward_passes_give_the_same_bits() {
    super::each_instruction_set(|| {
        for seed in 0..120 {
            let mut dice = Dice::new(seed);
            let mut dims = block(&mut dice, true);
            while dims.depthwise.conv.in_channels != dims.depthwise.conv.out_channels {
                dims = block(&mut dice, true);
            }
            // Sometimes whole bytes of a mask, and more than one group of channels.
            let inner = if seed % 2 == 0 { 8 * (1 + dice.below(20)) } else { dims.depthwise.conv.in_channels };
            let depthwise = Conv { in_channels: inner, out_channels: inner, ..dims.depthwise.conv };
            let (in_channels, out_channels) = (1 + dice.below(40), dims.project.conv.out_channels);
            let dims = BottleneckGrad { depthwise, in_channels, out_channels };
            assert!(i8_bottleneck_grad_update_supports(&dims));
            let mut expected = Backward::new(&mut dice, &dims, seed as usize % 3);
            let mut found = expected.clone();
            assert_eq!(found.fused(&dims), expected.apart(&dims), "{seed}: {dims:?}");
            assert_eq!(found.biases, expected.biases, "{seed}: {dims:?}");
            assert_eq!(found.weights, expected.weights, "{seed}: {dims:?}");
        }
    });
}
