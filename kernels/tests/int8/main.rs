//! The int8 family against definitions written out naively: integers and f32 sums bit for bit.

mod add_pool;
mod backward;
mod bottleneck;
mod forward;
mod loss;
mod naive;
mod states;
mod update;

use tinyforge_kernels::int8::Conv;

/// Numbers for tests: a linear congruence, upper bits.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn i8s(&mut self, len: usize) -> Vec<i8> {
        (0..len).map(|_| (self.below(256) as i32 - 128) as i8).collect()
    }

    fn weights(&mut self, len: usize) -> Vec<i8> {
        (0..len).map(|_| (self.below(255) as i32 - 127) as i8).collect()
    }

    fn f32s(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| (self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0) * size).collect()
    }

    fn i32s(&mut self, len: usize, size: i32) -> Vec<i32> {
        (0..len).map(|_| self.below(2 * size as usize + 1) as i32 - size).collect()
    }

    /// Some of the numbers below `n`, in no order.
    fn some(&mut self, n: usize) -> Vec<i32> {
        let mut all: Vec<i32> = (0..n as i32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all.truncate(1 + self.below(n));
        all
    }
}

/// Runs with each instruction set that the machine has. The limit is the process's, and tests that run meanwhile check
/// less, but never something wrong: all sets give the same bits.
fn each_instruction_set(test: fn()) {
    #[cfg(feature = "std")]
    {
        use tinyforge_kernels::f32::simd::{Isa, limit_isa};
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            limit_isa(isa);
            test();
        }
    }
    #[cfg(not(feature = "std"))]
    test();
}

/// Scratch bytes that begin at a multiple of 16.
struct Aligned(Vec<u128>, usize);

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        Aligned(vec![u128::MAX / 3; bytes.div_ceil(16)], bytes)
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..self.1]
    }
}

#[expect(clippy::too_many_arguments, reason = "a table's columns")]
const fn conv(
    images: usize,
    in_size: [usize; 2],
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    out_size: [usize; 2],
) -> Conv {
    Conv { images, in_size, in_channels, out_size, out_channels, kernel, stride, pad }
}

/// Shapes that have gone wrong somewhere: one of everything, tails, windows larger than the image or all in padding.
const EDGES: &[Conv] = &[
    conv(1, [1, 1], 1, 1, [1, 1], [1, 1], [0, 0], [1, 1]),
    conv(2, [1, 1], 37, 10, [1, 1], [1, 1], [0, 0], [1, 1]),
    conv(1, [4, 4], 96, 20, [1, 1], [1, 1], [0, 0], [4, 4]),
    conv(1, [8, 8], 40, 16, [1, 1], [1, 1], [0, 0], [8, 8]),
    conv(2, [5, 3], 7, 9, [1, 1], [1, 1], [0, 0], [5, 3]),
    conv(1, [5, 5], 8, 8, [1, 1], [2, 2], [0, 0], [3, 3]),
    conv(1, [12, 12], 3, 16, [3, 3], [2, 2], [1, 1], [6, 6]),
    conv(1, [12, 12], 3, 16, [3, 3], [2, 2], [0, 0], [6, 6]),
    conv(2, [7, 5], 5, 3, [3, 2], [1, 2], [2, 1], [8, 3]),
    conv(1, [3, 3], 2, 4, [5, 5], [1, 1], [2, 2], [3, 3]),
    conv(1, [2, 2], 4, 4, [7, 7], [1, 1], [3, 3], [2, 2]),
    conv(1, [3, 4], 1, 6, [2, 2], [3, 3], [4, 4], [4, 4]),
    conv(1, [6, 1], 33, 17, [4, 1], [1, 1], [0, 0], [3, 1]),
    conv(1, [9, 9], 20, 34, [3, 3], [1, 1], [1, 1], [9, 9]),
    conv(3, [2, 3], 16, 32, [1, 1], [1, 1], [0, 0], [2, 3]),
];

/// [`EDGES`] and `count` shapes drawn at random.
fn shapes(count: usize) -> Vec<Conv> {
    let mut dice = Dice::new(7);
    let mut all = EDGES.to_vec();
    for _ in 0..count {
        let mut pair = |n: usize| [1 + dice.below(n), 1 + dice.below(n)];
        let (in_size, kernel, stride) = (pair(9), pair(5), pair(3));
        let pad = [dice.below(4), dice.below(4)];
        let end = [dice.below(4), dice.below(4)];
        let out = |axis: usize| (in_size[axis] + pad[axis] + end[axis]).saturating_sub(kernel[axis]) / stride[axis] + 1;
        let (in_channels, out_channels) = (1 + dice.below(40), 1 + dice.below(40));
        all.push(conv(1 + dice.below(3), in_size, in_channels, out_channels, kernel, stride, pad, [out(0), out(1)]));
    }
    all
}

/// The same windows as depthwise convolutions: multipliers of 1 to 3.
fn depthwise_shapes(count: usize) -> Vec<Conv> {
    let all = shapes(count).into_iter().enumerate();
    let mut all: Vec<Conv> = all
        .map(|(i, dims)| Conv { out_channels: dims.in_channels * if i % 3 == 2 { 1 + i % 4 } else { 1 }, ..dims })
        .collect();
    for (size, kernel, stride, channels) in
        [(8, 3, 1, 16), (9, 3, 2, 8), (8, 5, 1, 20), (9, 5, 2, 12), (8, 7, 1, 7), (16, 7, 2, 24), (4, 7, 1, 48)]
    {
        let out = size / stride + usize::from(size % stride > 0);
        let pad = [kernel / 2; 2];
        all.push(conv(2, [size; 2], channels, channels, [kernel; 2], [stride; 2], pad, [out; 2]));
    }
    // Wider than any tile.
    all.push(conv(1, [3, 401], 5, 5, [3, 3], [1, 1], [1, 1], [3, 401]));
    all
}
