//! A model in the form that generated code has: slots of one arena, constants, one straight line of kernel calls for
//! inference and one for a training step.
//!
//! Written by hand, for the tests and examples of the firmware: images of 8 x 8 in four classes, of which it knows
//! three at the start; a convolution, a pool and a head, all trained but the convolution's last two channels.
//!
//! Invariant: what [`Model::STATE`] names is written by `start` and by updates only.

use tinyforge_firmware::kernels::int8::*;
use tinyforge_firmware::model::class_of;
use tinyforge_firmware::{Arena, Model, Read, Slot, Span, Step, Write};

/// Bytes of the arena: the highest end of a slot.
pub const ARENA_BYTES: usize = 4000 + SCRATCH_BYTES;
/// What a call may need beside its operands: the most of any.
const SCRATCH_BYTES: usize = most([
    i8_conv2d_scratch_bytes(&CONV),
    i8_conv2d_grad_w_scratch_bytes(&CONV),
    i8_conv2d_scratch_bytes(&HEAD),
    i8_conv2d_grad_x_scratch_bytes(&HEAD),
    i8_conv2d_grad_w_scratch_bytes(&HEAD),
]);

// What outlives a step.
type ConvW = Slot<i8, 0, 72>;
type ConvB = Slot<i32, 80, 8>;
type HeadW = Slot<i8, 112, 512>;
type HeadB = Slot<i32, 624, 4>;

// Of one step.
type Image = Slot<i8, 640, 64>;
type ConvY = Slot<i8, 704, 512>;
type ConvMask = Slot<u8, 1216, 64>;
type PoolY = Slot<i8, 1280, 128>;
type Logits = Slot<i8, 1408, 4>;
type LogitsMask = Slot<u8, 1412, 1>;
type Label = Slot<i32, 1416, 1>;
type Loss = Slot<f32, 1420, 1>;
type LogitsGrad = Slot<f32, 1424, 4>;
type PoolGrad = Slot<f32, 1440, 128>;
type ConvGrad = Slot<f32, 1952, 512>;
type Scratch = Slot<u8, 4000, SCRATCH_BYTES>;

const CONV: Conv = Conv {
    images: 1,
    in_size: [8, 8],
    in_channels: 1,
    out_size: [8, 8],
    out_channels: 8,
    kernel: [3, 3],
    stride: [1, 1],
    pad: [1, 1],
};
const CONV_QUANT: Quant = Quant { zero_x: 0, zero_y: -128, lo: -128, hi: 127 };
static CONV_SCALE: [f32; 8] = [0.008; 8];
/// One over the square of the weight's step; 0 where a channel is frozen.
static CONV_FACTOR: [f32; 8] = [64_516.0, 64_516.0, 64_516.0, 64_516.0, 64_516.0, 64_516.0, 0.0, 0.0];
/// One over the square of the bias's step.
static CONV_BIAS_FACTOR: [f32; 8] = [1.057e9, 1.057e9, 1.057e9, 1.057e9, 1.057e9, 1.057e9, 0.0, 0.0];

const POOL: Conv = Conv {
    images: 1,
    in_size: [8, 8],
    in_channels: 8,
    out_size: [4, 4],
    out_channels: 8,
    kernel: [2, 2],
    stride: [2, 2],
    pad: [0, 0],
};
const POOL_QUANT: Quant = Quant { zero_x: -128, zero_y: -128, lo: -128, hi: 127 };

const HEAD: Conv = Conv {
    images: 1,
    in_size: [4, 4],
    in_channels: 8,
    out_size: [1, 1],
    out_channels: 4,
    kernel: [4, 4],
    stride: [1, 1],
    pad: [0, 0],
};
const HEAD_QUANT: Quant = Quant { zero_x: -128, zero_y: 0, lo: -128, hi: 127 };
static HEAD_SCALE: [f32; 4] = [0.000_605_5; 4];
static HEAD_FACTOR: [f32; 4] = [64_516.0; 4];
static HEAD_BIAS_FACTOR: [f32; 4] = [4.363e9; 4];

const LOSS: CrossEntropy = CrossEntropy { classes: 4, scale: 0.025, zero: 0 };

/// What it begins with: it knows three of its four classes. `firmware/tests/common/known.rs` makes these bytes.
static START: [u8; 640] = *include_bytes!("known.bin");

const fn most<const N: usize>(all: [usize; N]) -> usize {
    let (mut most, mut i) = (0, 0);
    while i < N {
        most = if all[i] > most { all[i] } else { most };
        i += 1;
    }
    most
}

/// The model and its arena.
pub struct Net {
    arena: Arena<ARENA_BYTES>,
}

impl Net {
    /// Not started.
    pub const fn new() -> Net {
        Net { arena: Arena::new() }
    }

    /// Image to logits, with the masks that a training step reads.
    fn logits(&mut self) {
        let arena = &mut self.arena;
        let slots =
            arena.slots::<(Read<Image>, Read<ConvW>, Read<ConvB>, Write<ConvY>, Write<ConvMask>, Write<Scratch>)>();
        let (x, w, bias, y, mask, scratch) = slots;
        i8_conv2d(&CONV, &CONV_QUANT, x, &Weights { w, bias, scale: &CONV_SCALE }, y, Some(mask), scratch);
        let (x, y) = arena.slots::<(Read<ConvY>, Write<PoolY>)>();
        i8_avg_pool(&POOL, &POOL_QUANT, x, y);
        let slots =
            arena.slots::<(Read<PoolY>, Read<HeadW>, Read<HeadB>, Write<Logits>, Write<LogitsMask>, Write<Scratch>)>();
        let (x, w, bias, y, mask, scratch) = slots;
        i8_conv2d(&HEAD, &HEAD_QUANT, x, &Weights { w, bias, scale: &HEAD_SCALE }, y, Some(mask), scratch);
    }

    /// Gradients and updates, from the gradient of the logits.
    fn gradients(&mut self, step: &Step) {
        let arena = &mut self.arena;
        let (rng, [lr, bias_lr, ..]) = (step.rng(), step.hyper());
        let update = |lr, factor, tensor| Update { lr, factor, stream: update_stream(&rng, tensor) };
        let (g, mask) = arena.slots::<(Write<LogitsGrad>, Read<LogitsMask>)>();
        i8_scale_grad(g, Some(mask), &HEAD_SCALE);
        let (gc, w, gx, scratch) = arena.slots::<(Read<LogitsGrad>, Read<HeadW>, Write<PoolGrad>, Write<Scratch>)>();
        i8_conv2d_grad_x(&HEAD, gc, w, gx, scratch);
        let (gc, x, w, scratch) = arena.slots::<(Read<LogitsGrad>, Read<PoolY>, Write<HeadW>, Write<Scratch>)>();
        let from = WeightGrad { zero: HEAD_QUANT.zero_x, gc, x, index: None };
        i8_conv2d_grad_w_update(&HEAD, &from, &update(lr, &HEAD_FACTOR, 2), w, scratch);
        let (gc, bias) = arena.slots::<(Read<LogitsGrad>, Write<HeadB>)>();
        i8_grad_b_update(&update(bias_lr, &HEAD_BIAS_FACTOR, 3), gc, bias);
        let (g, gx) = arena.slots::<(Read<PoolGrad>, Write<ConvGrad>)>();
        i8_avg_pool_grad(&POOL, g, gx);
        let (g, mask) = arena.slots::<(Write<ConvGrad>, Read<ConvMask>)>();
        i8_scale_grad(g, Some(mask), &CONV_SCALE);
        let (gc, x, w, scratch) = arena.slots::<(Read<ConvGrad>, Read<Image>, Write<ConvW>, Write<Scratch>)>();
        let from = WeightGrad { zero: CONV_QUANT.zero_x, gc, x, index: None };
        i8_conv2d_grad_w_update(&CONV, &from, &update(lr, &CONV_FACTOR, 0), w, scratch);
        let (gc, bias) = arena.slots::<(Read<ConvGrad>, Write<ConvB>)>();
        i8_grad_b_update(&update(bias_lr, &CONV_BIAS_FACTOR, 1), gc, bias);
    }
}

impl Default for Net {
    fn default() -> Net {
        Net::new()
    }
}

impl Model for Net {
    const HASH: u64 = 0x8d1c_52f0_7e3a_9b64;
    const INPUT_LEN: usize = 64;
    const CLASSES: usize = 4;
    const BATCH: usize = 1;
    const STATE: &'static [Span] = &[Span { at: 0, len: 72 }, Span { at: 80, len: 560 }];

    fn memory(&self) -> &[u8] {
        self.arena.bytes()
    }

    fn memory_mut(&mut self) -> &mut [u8] {
        self.arena.bytes_mut()
    }

    fn start(&mut self) {
        self.arena.bytes_mut().iter_mut().zip(START).for_each(|(to, from)| *to = from);
    }

    fn infer_input(&mut self) -> &mut [i8] {
        self.arena.slot::<Image>()
    }

    fn infer(&mut self) -> u16 {
        self.logits();
        class_of(self.arena.slot::<Logits>())
    }

    fn train_input(&mut self) -> &mut [i8] {
        self.arena.slot::<Image>()
    }

    fn forward(&mut self, label: i32) -> f32 {
        *self.arena.slot::<Label>() = [label];
        self.logits();
        let (x, label, loss) = self.arena.slots::<(Read<Logits>, Read<Label>, Write<Loss>)>();
        i8_cross_entropy(&LOSS, x, label, &[1.0], loss);
        loss[0]
    }

    fn backward(&mut self, step: &Step) {
        let (x, label, g) = self.arena.slots::<(Read<Logits>, Read<Label>, Write<LogitsGrad>)>();
        i8_cross_entropy_grad(&LOSS, x, label, &[1.0], &[1.0], g);
        self.gradients(step);
    }

    fn update(&mut self, _step: &Step) {}
}
