//! Convolutions and depthwise convolutions.

use super::{Aligned, Dice, depthwise_shapes, each_instruction_set, naive, shapes};
use tinyforge_kernels::int8::{
    Conv, Quant, Weights, i8_conv2d, i8_conv2d_scratch_bytes, i8_depthwise, i8_depthwise_scratch_bytes, mask_bytes,
};

/// Zero points and limits: the usual ones, and a window of stored values in the middle.
const QUANTS: &[Quant] = &[
    Quant { zero_x: -128, zero_y: -128, lo: -128, hi: 127 },
    Quant { zero_x: 3, zero_y: -7, lo: -128, hi: 127 },
    Quant { zero_x: 127, zero_y: 5, lo: -20, hi: 60 },
    Quant { zero_x: 0, zero_y: 100, lo: 90, hi: 110 },
];

struct Case {
    x: Vec<i8>,
    w: Vec<i8>,
    bias: Vec<i32>,
    scale: Vec<f32>,
}

impl Case {
    fn new(dice: &mut Dice, dims: &Conv, w_len: usize, depth: usize) -> Case {
        // Sums spread over about twice the range of the output, so that both limits are met.
        let size = 1.0 / (40.0 * (depth as f32).sqrt());
        Case {
            x: dice.i8s(dims.x_len()),
            w: dice.weights(w_len),
            bias: dice.i32s(dims.out_channels, 3000),
            scale: (0..dims.out_channels)
                .map(|i| size * (0.3 + dice.below(100) as f32 / 100.0) / (1 + i % 3) as f32)
                .collect(),
        }
    }

    fn weights(&self) -> Weights<'_> {
        Weights { w: &self.w, bias: &self.bias, scale: &self.scale }
    }
}

#[test]
fn convolutions_are_exact() {
    each_instruction_set(convolutions);
}

fn convolutions() {
    for (i, dims) in shapes(60).iter().enumerate() {
        let quant = &QUANTS[i % QUANTS.len()];
        let case = Case::new(&mut Dice::new(i as u64), dims, dims.w_len(), dims.depth());
        let expected = naive::conv2d(dims, quant, &case.x, &case.w, &case.bias, &case.scale);
        let mut scratch = Aligned::new(i8_conv2d_scratch_bytes(dims));
        let (mut y, mut mask) = (vec![99; dims.y_len()], vec![0xff; mask_bytes(dims.y_len())]);
        i8_conv2d(dims, quant, &case.x, &case.weights(), &mut y, Some(&mut mask), scratch.bytes());
        assert_eq!(y, expected.y, "{dims:?}");
        assert_eq!(mask, expected.mask, "{dims:?}");
        y.fill(99);
        i8_conv2d(dims, quant, &case.x, &case.weights(), &mut y, None, scratch.bytes());
        assert_eq!(y, expected.y, "without a mask: {dims:?}");
    }
}

#[test]
fn depthwise_convolutions_are_exact() {
    each_instruction_set(depthwise_convolutions);
}

fn depthwise_convolutions() {
    for (i, dims) in depthwise_shapes(60).iter().enumerate() {
        let quant = &QUANTS[i % QUANTS.len()];
        let case = Case::new(&mut Dice::new(i as u64), dims, dims.depthwise_w_len(), dims.taps());
        let expected = naive::depthwise(dims, quant, &case.x, &case.w, &case.bias, &case.scale);
        let mut scratch = Aligned::new(i8_depthwise_scratch_bytes(dims));
        let (mut y, mut mask) = (vec![99; dims.y_len()], vec![0xff; mask_bytes(dims.y_len())]);
        i8_depthwise(dims, quant, &case.x, &case.weights(), &mut y, Some(&mut mask), scratch.bytes());
        assert_eq!(y, expected.y, "{dims:?}");
        assert_eq!(mask, expected.mask, "{dims:?}");
        y.fill(99);
        i8_depthwise(dims, quant, &case.x, &case.weights(), &mut y, None, scratch.bytes());
        assert_eq!(y, expected.y, "without a mask: {dims:?}");
    }
}

#[test]
fn halves_go_to_the_even_neighbour() {
    let dims = super::EDGES[0];
    let quant = Quant { zero_x: 0, zero_y: 0, lo: -128, hi: 127 };
    for (x, expected) in [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2), (127, 64), (-128, -64)] {
        let mut y = [99];
        let weights = Weights { w: &[1], bias: &[0], scale: &[0.5] };
        let mut scratch = Aligned::new(i8_conv2d_scratch_bytes(&dims));
        i8_conv2d(&dims, &quant, &[x], &weights, &mut y, None, scratch.bytes());
        assert_eq!(y, [expected], "half of {x}");
    }
}

#[test]
fn sums_far_outside_are_clamped() {
    let dims = super::EDGES[0];
    let quant = Quant { zero_x: 0, zero_y: -128, lo: -128, hi: 127 };
    for (bias, expected) in [(i32::MAX - 1000, 127), (i32::MIN + 1000, -128)] {
        let (mut y, mut mask) = ([99], [0xff]);
        let weights = Weights { w: &[0], bias: &[bias], scale: &[1e9] };
        let mut scratch = Aligned::new(i8_conv2d_scratch_bytes(&dims));
        i8_conv2d(&dims, &quant, &[5], &weights, &mut y, Some(&mut mask), scratch.bytes());
        assert_eq!((y, mask), ([expected], [0]));
    }
}
