//! Int8 convolutional networks: what the importers of quantised files have in common.
//!
//! An [`Int8Model`] is a straight line of layers over int8 images with one scale and zero point each; weights are
//! named by file and offset, never copied, unless they had to be changed. Invariants, held by [`Assembly`]:
//! - a layer reads values that the input or an earlier layer gives; shapes fit the windows;
//! - weights and biases are as long as their shapes say and lie inside the file;
//! - no accumulator of an imported layer reaches 2^31, whatever the input: `|bias + Σ (x - zero) w| < 2^31`;
//! - scales are finite and positive, zero points fit int8.
//!
//! Images are `i8[N,H,W,C]`; a vector of C features is an image of 1 x 1. Weights are `i8[O,R,S,I]`, of depthwise
//! convolutions `i8[R,S,C*M]`. A fully connected layer is a 1x1 convolution.

mod assemble;
mod error;
mod graph;
mod head;
mod reference;

pub use assemble::{Assembly, ConvSpec, Effective, Pool, Rescale, Weights};
pub(crate) use error::refusals;
pub use error::{Int8Error, Refusal};
pub use graph::Entry;
pub use head::{CLASSES_MAX, HEAD};
use tinyforge_plan::Source;

/// `real = scale * (stored - zero)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quant {
    /// One step of the stored number in real units.
    pub scale: f64,
    /// The stored number that means 0.
    pub zero: i32,
}

impl Quant {
    /// The stored number nearest to `real` (ties to even), not clamped.
    pub fn store(self, real: f64) -> f64 {
        (real / self.scale).round_ties_even() + f64::from(self.zero)
    }
}

/// An int8 image inside the network.
#[derive(Clone, PartialEq, Debug)]
pub struct Image {
    /// Its name in the program.
    pub name: String,
    /// Height, width and channels.
    pub shape: [u32; 3],
    /// What its numbers mean.
    pub quant: Quant,
}

impl Image {
    /// Elements of one image.
    pub fn elems(&self) -> u64 {
        self.shape.iter().map(|&d| u64::from(d)).product()
    }
}

/// A sliding window. Padding below and to the right follows from the result's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Height and width.
    pub size: [u32; 2],
    /// Steps down and across.
    pub stride: [u32; 2],
    /// Rows of padding above, columns to the left.
    pub pad: [u32; 2],
}

impl Window {
    /// One element at a time.
    pub const POINT: Window = Window { size: [1, 1], stride: [1, 1], pad: [0, 0] };

    /// One window over all of an image of this shape.
    pub fn whole(shape: [u32; 3]) -> Window {
        Window { size: [shape[0], shape[1]], stride: [1, 1], pad: [0, 0] }
    }

    /// Elements under one window.
    pub fn area(&self) -> u64 {
        u64::from(self.size[0]) * u64::from(self.size[1])
    }
}

/// The limits of a fused activation, as stored numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The least.
    pub lo: i32,
    /// The greatest.
    pub hi: i32,
}

impl Limits {
    /// All of int8.
    pub const ALL: Limits = Limits { lo: -128, hi: 127 };
}

/// A stored number as a line of others: `nearest(scale x + offset)`, product and sum rounded to f32.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Line {
    /// What stored numbers are multiplied by.
    pub scale: f32,
    /// What is added.
    pub offset: f32,
}

impl Line {
    /// The stored number at `x`.
    pub fn at(&self, x: i8) -> i8 {
        (f32::from(x) * self.scale + self.offset).round_ties_even().clamp(-128.0, 127.0) as i8
    }
}

/// A channel whose weights or bias carry nothing: frozen in training.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DeadChannel {
    /// The output channel.
    pub channel: u32,
    /// Its weights' scale.
    pub w_scale: f32,
    /// Its bias as the file has it.
    pub bias: i32,
    /// Its bias as the program has it: nearer to 0 where the file's would overflow the accumulator.
    pub bias_used: i32,
}

/// A convolution, depthwise convolution or fully connected layer.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv {
    /// Name of the weights; the bias and scales stand beside them.
    pub name: String,
    /// Where it reads.
    pub window: Window,
    /// Output channels an input channel, for depthwise ones; `None` for dense ones.
    pub multiplier: Option<u32>,
    /// `[O,R,S,I]`, or `[R,S,C*M]`.
    pub weight_shape: Vec<u32>,
    /// The weights' place.
    pub weight: Source,
    /// The biases' place.
    pub bias: Source,
    /// Scale of every output channel's weights.
    pub w_scales: Vec<f32>,
    /// Scale of the input.
    pub x_scale: f64,
    /// `x_scale * w_scale / y_scale` of every output channel, as [`Effective`] says.
    pub scale: Vec<f32>,
    /// The fused activation.
    pub limits: Limits,
    /// Channels that are frozen.
    pub dead: Vec<DeadChannel>,
    /// Whether it has parameters: false for one that only changes scales.
    pub is_trainable: bool,
}

impl Conv {
    /// Output channels.
    pub fn channels(&self) -> u32 {
        self.scale.len() as u32
    }

    /// The name of the weights in programs and schemes.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// The name of the biases.
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// The name of the table of effective scales.
    pub fn scale_name(&self) -> String {
        format!("{}.scale", self.name)
    }

    fn factors(&self, of: impl Fn(f64) -> f64) -> Vec<f32> {
        let mut factors: Vec<f32> = self.w_scales.iter().map(|&s| of(f64::from(s)) as f32).collect();
        for dead in &self.dead {
            factors[dead.channel as usize] = 0.0;
        }
        factors
    }

    /// What quantisation-aware scaling multiplies the weights' gradients by: `1 / w_scale^2` a channel, 0 for dead
    /// ones. With `W = w_scale w` a step of `w` is then exactly a step of `W` at the same rate.
    pub fn weight_factors(&self) -> Vec<f32> {
        self.factors(|s| 1.0 / (s * s))
    }

    /// The same for the biases: `1 / (w_scale x_scale)^2`.
    pub fn bias_factors(&self) -> Vec<f32> {
        self.factors(|s| 1.0 / (s * self.x_scale * s * self.x_scale))
    }
}

/// What a layer computes.
#[derive(Clone, PartialEq, Debug)]
pub enum LayerOp {
    /// A convolution of any kind.
    Conv(Box<Conv>),
    /// The sum of two images.
    Add {
        /// Each operand's scale over the sum's.
        factors: [f32; 2],
        /// The fused activation.
        limits: Limits,
        /// Whether factors are whole numbers over a power of two and ties go up.
        is_up: bool,
    },
    /// The mean of a window; input and output have one quantisation.
    AvgPool {
        /// Where it reads.
        window: Window,
        /// The fused activation.
        limits: Limits,
        /// Whether ties go away from the stored 0; else to an even number of steps from zero.
        is_away: bool,
    },
    /// `nearest(scale Σ x + offset)` over the stored numbers of a window: a mean, or a change of scale.
    SumPool {
        /// Where it reads; all of it lies inside the image.
        window: Window,
        /// Scale and offset.
        line: Line,
        /// The fused activation.
        limits: Limits,
    },
    /// The largest of a window; input and output have one quantisation.
    MaxPool(Window, Limits),
    /// `exp` over its sum, along the channels.
    Softmax,
    /// The same elements in another shape.
    Reshape,
}

/// One layer.
#[derive(Clone, PartialEq, Debug)]
pub struct Layer {
    /// The block that it belongs to.
    pub block: String,
    /// What it computes.
    pub op: LayerOp,
    /// Indices into [`Int8Model::images`].
    pub inputs: Vec<u32>,
    /// Likewise.
    pub output: u32,
}

/// An int8 network.
#[derive(Clone, PartialEq, Debug)]
pub struct Int8Model {
    /// The model's files: one, which weights are in.
    pub files: Vec<String>,
    /// All images: the first is the input.
    pub images: Vec<Image>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// The result's index.
    pub output: u32,
    /// What was left out or changed, in words.
    pub notes: Vec<String>,
}

impl Int8Model {
    /// What the network is given.
    pub fn input(&self) -> &Image {
        &self.images[0]
    }

    /// What it gives.
    pub fn result(&self) -> &Image {
        &self.images[self.output as usize]
    }

    /// The convolutions and fully connected layers that have parameters, counted from the input.
    pub fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.layers.iter().filter_map(|layer| match &layer.op {
            LayerOp::Conv(conv) if conv.is_trainable => Some(&**conv),
            _ => None,
        })
    }

    /// Every frozen channel with the layer that it is in.
    pub fn dead_channels(&self) -> impl Iterator<Item = (&Conv, &DeadChannel)> {
        self.convs().flat_map(|conv| conv.dead.iter().map(move |dead| (conv, dead)))
    }

    /// What a tensor of the program holds after load: weights, biases, effective scales, and, as
    /// `<weight or bias>.factor`, what its gradient is multiplied by: with `scaled`, quantisation-aware scaling
    /// ([`Conv::weight_factors`], [`Conv::bias_factors`]), else 1; in both cases 0 for dead channels.
    pub fn source(&self, name: &str, scaled: bool) -> Option<Source> {
        let (tensor, is_factor) = match name.strip_suffix(".factor") {
            Some(tensor) => (tensor, true),
            None => (name, false),
        };
        let (layer, part) = tensor.rsplit_once('.')?;
        let conv = self.layers.iter().find_map(|l| match &l.op {
            LayerOp::Conv(conv) if conv.name == layer => Some(conv),
            _ => None,
        })?;
        match (part, is_factor) {
            ("weight", false) => Some(conv.weight.clone()),
            ("bias", false) => Some(conv.bias.clone()),
            ("scale", false) => Some(Source::Table(conv.scale.clone())),
            ("weight", true) if scaled => Some(Source::Table(conv.weight_factors())),
            ("bias", true) if scaled => Some(Source::Table(conv.bias_factors())),
            ("weight" | "bias", true) => Some(Source::Table(conv.factors(|_| 1.0))),
            _ => None,
        }
    }
}
