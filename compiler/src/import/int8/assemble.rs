//! Puts an [`Int8Model`] together, checking every layer: the one place where its invariants are made true.

use std::collections::HashMap;

use tinyforge_plan::{DType, Source};

use super::{Conv, DeadChannel, Image, Int8Error, Int8Model, Layer, LayerOp, Limits, Line, Quant, Window};
use crate::ir::types::Type;
use crate::ir::verify::check_type;

type Result<T> = std::result::Result<T, Int8Error>;

/// Scales below this part of a layer's largest mark a dead channel.
const DEAD_SCALE: f32 = 1e-7;
/// First magnitude that an accumulator does not hold.
const ACCUMULATOR: i64 = 1 << 31;
/// Weights are looked at so many times a byte of the file before it counts as hostile.
const WORK_PER_BYTE: u64 = 16;

/// A layer's weights: where they come from, and their values for the accumulator's bound.
pub struct Weights<'a> {
    /// Their place; of a constant 1 it is not looked at.
    pub source: Source,
    /// The file's bytes of them, each an int8; empty for a constant 1.
    pub bytes: &'a [u8],
    /// Whether the output channel is the file's last dimension, else its first.
    pub channel_last: bool,
}

/// A convolution to be added.
pub struct ConvSpec<'a> {
    /// Name of the layer.
    pub name: String,
    /// Index of the image that it reads.
    pub input: u32,
    /// Where it reads.
    pub window: Window,
    /// Output channels an input channel, for depthwise ones.
    pub multiplier: Option<u32>,
    /// The weights.
    pub weights: Weights<'a>,
    /// The biases' place and bytes; `None` for zeros.
    pub bias: Option<(Source, &'a [u8])>,
    /// One scale, or one an output channel.
    pub w_scales: Vec<f32>,
    /// The image that it gives.
    pub output: Image,
    /// The fused activation.
    pub limits: Limits,
    /// How its effective scales are computed.
    pub effective: Effective,
    /// Whether it has parameters.
    pub is_trainable: bool,
}

/// `x_scale * w_scale / y_scale`, by the arithmetic of whoever made the file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Effective {
    /// In f64, rounded once.
    Once,
    /// In f32, each of the two operations rounded, in this order.
    Each,
    /// This number instead.
    Given(f32),
}

impl Effective {
    fn of(self, x: f64, w: f32, y: f64) -> f32 {
        match self {
            Effective::Once => (x * f64::from(w) / y) as f32,
            Effective::Each => x as f32 * w / y as f32,
            Effective::Given(scale) => scale,
        }
    }
}

/// An image with another scale, zero point or limits, or the means of its windows: `y = nearest(scale Σ x)`.
pub struct Rescale {
    /// Index of the image that it reads.
    pub input: u32,
    /// What it sums over.
    pub window: Window,
    /// The factor of the sum.
    pub scale: f32,
    /// The image that it gives.
    pub output: Image,
    /// The fused activation.
    pub limits: Limits,
}

/// What a pool gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// The largest.
    Max,
    /// The mean, ties to an even number of steps from zero.
    Mean,
    /// The mean of stored numbers, ties away from 0.
    MeanAway,
}

/// A model being put together.
pub struct Assembly {
    model: Int8Model,
    block: String,
    names: HashMap<String, u32>,
    work_left: u64,
}

impl Assembly {
    /// A model of this input, from a file of this name and length.
    pub fn new(file_name: &str, file_bytes: u64, input: Image) -> Result<Assembly> {
        let model = Int8Model {
            files: vec![file_name.to_owned()],
            images: Vec::new(),
            layers: Vec::new(),
            output: 0,
            notes: Vec::new(),
        };
        let work_left = file_bytes.saturating_mul(WORK_PER_BYTE).saturating_add(1 << 20);
        let mut assembly = Assembly { model, block: String::new(), names: HashMap::new(), work_left };
        assembly.image(input)?;
        Ok(assembly)
    }

    /// Sets the block of the layers to come.
    pub fn block(&mut self, name: &str) {
        self.block = name.to_owned();
    }

    /// Adds a remark for the user.
    pub fn note(&mut self, note: String) {
        self.model.notes.push(note);
    }

    /// An image that was added.
    pub fn at(&self, image: u32) -> &Image {
        &self.model.images[image as usize]
    }

    /// The finished model.
    pub fn finish(mut self, output: u32) -> Int8Model {
        self.model.output = output;
        let dead = self.model.dead_channels().count();
        let moved = self.model.dead_channels().filter(|(_, d)| d.bias != d.bias_used).count();
        if dead > 0 {
            let layers = self.model.convs().filter(|c| !c.dead.is_empty()).count();
            self.model.notes.push(format!(
                "{dead} dead channels in {layers} layers are frozen; the biases of {moved} of them were moved towards 0 \
                 to keep their sums inside 32 bits"
            ));
        }
        self.model
    }

    fn image(&mut self, mut image: Image) -> Result<u32> {
        let refuse = |why: String| Int8Error::Layer { layer: image.name.clone(), why };
        let [h, w, c] = image.shape;
        check_type(&Type::new(DType::I8, &[h, w, c])).map_err(refuse)?;
        if image.elems() > i32::MAX as u64 {
            return Err(refuse(format!("an image of {h} x {w} x {c} has more than 2147483647 elements")));
        }
        let Quant { scale, zero } = image.quant;
        // Kernels have it in f32.
        if !(scale > 0.0 && (scale as f32).is_normal() && (-128..=127).contains(&zero)) {
            return Err(refuse(format!("scale {scale} with zero point {zero} is no int8 quantisation")));
        }
        image.name = self.fresh(&image.name);
        self.model.images.push(image);
        Ok(self.model.images.len() as u32 - 1)
    }

    /// A name that no image has: `base`, or `base.1`, ...
    fn fresh(&mut self, base: &str) -> String {
        let taken = self.names.entry(base.to_owned()).or_insert(0);
        *taken += 1;
        if *taken == 1 { base.to_owned() } else { format!("{base}.{}", *taken - 1) }
    }

    fn push(&mut self, op: LayerOp, inputs: &[u32], output: Image) -> Result<u32> {
        let output = self.image(output)?;
        self.model.layers.push(Layer { block: self.block.clone(), op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Scales of two images over that of their sum, each computed in f64 and rounded once.
    pub fn ratios(&self, operands: [u32; 2], sum: &Image) -> [f32; 2] {
        operands.map(|x| (self.at(x).quant.scale / sum.quant.scale) as f32)
    }

    /// Adds the sum of two images, each times its factor: its scale over the sum's.
    pub fn add(&mut self, operands: [u32; 2], factors: [f32; 2], output: Image, limits: Limits) -> Result<u32> {
        self.sum(operands, factors, output, limits, false)
    }

    /// The same by factors that are whole numbers of 21 bits over one power of two, ties up.
    pub fn add_up(&mut self, operands: [u32; 2], factors: [f32; 2], output: Image, limits: Limits) -> Result<u32> {
        self.sum(operands, factors, output, limits, true)
    }

    fn sum(&mut self, [a, b]: [u32; 2], factors: [f32; 2], output: Image, limits: Limits, is_up: bool) -> Result<u32> {
        let shapes = [self.at(a).shape, self.at(b).shape];
        if shapes != [output.shape; 2] {
            let why =
                format!("a sum of {:?} and {:?} gives {:?}; shapes must be equal", shapes[0], shapes[1], output.shape);
            return Err(Int8Error::Layer { layer: output.name, why });
        }
        if let Some(factor) = factors.iter().find(|f| !f.is_normal()) {
            let why = format!("a scale is {factor} times the sum's, outside of f32");
            return Err(Int8Error::Layer { layer: output.name, why });
        }
        self.push(LayerOp::Add { factors, limits, is_up }, &[a, b], output)
    }

    /// Adds a softmax over the channels.
    pub fn softmax(&mut self, x: u32, output: Image) -> Result<u32> {
        if self.at(x).shape != output.shape {
            return Err(Int8Error::Layer { layer: output.name, why: "a softmax keeps the shape".into() });
        }
        self.push(LayerOp::Softmax, &[x], output)
    }

    /// The image in another shape; itself where that is its shape.
    pub fn reshape(&mut self, x: u32, shape: [u32; 3], name: &str) -> Result<u32> {
        let image = self.at(x);
        if image.shape == shape {
            return Ok(x);
        }
        let output = Image { name: name.to_owned(), shape, quant: image.quant };
        if shape.contains(&0) || image.elems() != output.elems() {
            let why = format!("{:?} cannot take the shape {shape:?}", image.shape);
            return Err(Int8Error::Layer { layer: output.name, why });
        }
        self.push(LayerOp::Reshape, &[x], output)
    }

    /// Adds a pool. Input and output have one quantisation.
    pub fn pool(&mut self, x: u32, kind: Pool, window: Window, output: Image, limits: Limits) -> Result<u32> {
        let image = self.at(x);
        if image.quant != output.quant || image.shape[2] != output.shape[2] {
            let why = "a pool keeps channels, scale and zero point".to_owned();
            return Err(Int8Error::Layer { layer: output.name, why });
        }
        check_window(image, &output, window)?;
        let op = match kind {
            Pool::Max => LayerOp::MaxPool(window, limits),
            Pool::Mean => LayerOp::AvgPool { window, limits, is_away: false },
            Pool::MeanAway => LayerOp::AvgPool { window, limits, is_away: true },
        };
        self.push(op, &[x], output)
    }

    /// Adds a mean or a change of scale: a line of the sum of each window, which lies inside the image.
    pub fn sum_pool(&mut self, x: u32, window: Window, line: Line, output: Image, limits: Limits) -> Result<u32> {
        let image = self.at(x);
        check_window(image, &output, window)?;
        if image.shape[2] != output.shape[2] || !(line.scale.is_normal() && line.offset.is_finite()) {
            let why = format!("{line:?} from {} channels to {} is none", image.shape[2], output.shape[2]);
            return Err(Int8Error::Layer { layer: output.name, why });
        }
        self.push(LayerOp::SumPool { window, line, limits }, &[x], output)
    }

    /// Adds a convolution; returns its result.
    pub fn conv(&mut self, spec: ConvSpec) -> Result<u32> {
        let refuse = |why: String| Int8Error::Layer { layer: spec.name.clone(), why };
        let (x, y) = (self.at(spec.input).clone(), &spec.output);
        check_window(&x, y, spec.window)?;
        let ([kh, kw], [cin, cout]) = (spec.window.size, [x.shape[2], y.shape[2]]);
        let weight_shape = match spec.multiplier {
            Some(m) if m == 0 || cin.checked_mul(m) != Some(cout) => {
                return Err(refuse(format!("{cin} channels times the multiplier {m} are not {cout}")));
            }
            Some(_) => vec![kh, kw, cout],
            None => vec![cout, kh, kw, cin],
        };
        let elems = weight_shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
        let is_ones = spec.weights.bytes.is_empty() && !spec.is_trainable;
        if elems != Some(spec.weights.bytes.len() as u64) && !is_ones {
            let have = spec.weights.bytes.len();
            return Err(refuse(format!("weights {weight_shape:?} need as many bytes, the file has {have}")));
        }
        // Nothing below allocates more than a few numbers for a weight.
        let left = self.work_left.checked_sub(elems.unwrap_or(u64::MAX));
        self.work_left = left.ok_or_else(|| refuse("the file describes more weights than it holds".into()))?;
        let biases = bias_values(&spec, cout).map_err(refuse)?;
        let w_scales = per_channel(&spec, cout).map_err(refuse)?;
        let scale = effective(&spec, &x, &w_scales).map_err(refuse)?;
        let reach = reaches(&spec, &x, cout as usize);
        let (dead, bias_used) = dead_channels(&spec, &w_scales, &biases, &reach)?;
        let bias = match (bias_used == biases, spec.bias) {
            (true, Some((source, _))) => source,
            (true, None) => Source::Zero,
            (false, _) => Source::Bytes(bias_used.iter().flat_map(|b| b.to_le_bytes()).collect()),
        };
        let weight = match is_ones {
            // As many as the weights whose work was counted.
            true => Source::Bytes(vec![1; elems.unwrap_or(0) as usize]),
            false => spec.weights.source,
        };
        let conv = Conv {
            name: spec.name,
            window: spec.window,
            multiplier: spec.multiplier,
            weight_shape,
            weight,
            bias,
            w_scales,
            x_scale: x.quant.scale,
            scale,
            limits: spec.limits,
            dead,
            is_trainable: spec.is_trainable,
        };
        self.push(LayerOp::Conv(Box::new(conv)), &[spec.input], spec.output)
    }

    /// Adds a depthwise convolution with weights of 1, exact up to its one rounding.
    pub fn rescale(&mut self, rescale: Rescale) -> Result<u32> {
        let Rescale { input, window, scale, output, limits } = rescale;
        self.conv(ConvSpec {
            name: output.name.clone(),
            input,
            window,
            multiplier: Some(1),
            weights: Weights { source: Source::Zero, bytes: &[], channel_last: true },
            bias: None,
            w_scales: vec![1.0],
            output,
            limits,
            effective: Effective::Given(scale),
            is_trainable: false,
        })
    }
}

/// Refuses a window that does not fit its images.
fn check_window(x: &Image, y: &Image, window: Window) -> Result<()> {
    for (d, side) in ["height", "width"].iter().enumerate() {
        let (size, stride, pad) = (window.size[d], window.stride[d], window.pad[d]);
        let last = u64::from(y.shape[d]).saturating_sub(1) * u64::from(stride);
        // Every position must have at least one tap inside, so that means and maxima are of something.
        let outside = pad >= size || last >= u64::from(x.shape[d]) + u64::from(pad);
        // What the rows of the op table take: padding at the end is at most one more than at the start.
        let outside = outside || u64::from(size) > u64::from(x.shape[d]) + 2 * u64::from(pad) + 1;
        if size == 0 || stride == 0 || outside || i32::try_from(size).is_err() || i32::try_from(stride).is_err() {
            let why = format!(
                "a window of {side} {size}, step {stride} and padding {pad} cannot make {} of {}",
                y.shape[d], x.shape[d]
            );
            return Err(Int8Error::Layer { layer: y.name.clone(), why });
        }
    }
    Ok(())
}

fn bias_values(spec: &ConvSpec, channels: u32) -> std::result::Result<Vec<i32>, String> {
    let Some((_, bytes)) = &spec.bias else { return Ok(vec![0; channels as usize]) };
    if bytes.len() as u64 != 4 * u64::from(channels) {
        return Err(format!("{channels} biases need {} bytes, the file has {}", 4 * u64::from(channels), bytes.len()));
    }
    Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// One scale for every output channel.
fn per_channel(spec: &ConvSpec, channels: u32) -> std::result::Result<Vec<f32>, String> {
    if let Some(bad) = spec.w_scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(format!("{bad} is no scale for weights"));
    }
    match spec.w_scales.len() {
        1 => Ok(vec![spec.w_scales[0]; channels as usize]),
        n if n == channels as usize => Ok(spec.w_scales.clone()),
        n => Err(format!("{n} scales for {channels} output channels")),
    }
}

fn effective(spec: &ConvSpec, x: &Image, w_scales: &[f32]) -> std::result::Result<Vec<f32>, String> {
    let (x, y) = (x.quant.scale, spec.output.quant.scale);
    let scales: Vec<f32> = w_scales.iter().map(|&w| spec.effective.of(x, w, y)).collect();
    match scales.iter().find(|s| !(s.is_normal() && **s > 0.0)) {
        Some(bad) => Err(format!("an effective scale is {bad}, outside of f32")),
        None => Ok(scales),
    }
}

/// Least and greatest `Σ (x - zero) w` of every output channel, over all inputs.
fn reaches(spec: &ConvSpec, x: &Image, channels: usize) -> Vec<(i64, i64)> {
    let zero = i64::from(x.quant.zero);
    let (low, high) = (-128 - zero, 127 - zero);
    let mut reach = vec![(0i64, 0i64); channels];
    if spec.weights.bytes.is_empty() {
        let taps = i64::from(spec.window.size[0]) * i64::from(spec.window.size[1]);
        reach.fill((low.saturating_mul(taps), high.saturating_mul(taps)));
        return reach;
    }
    let per_channel = spec.weights.bytes.len() / channels;
    for (i, &byte) in spec.weights.bytes.iter().enumerate() {
        let w = i64::from(byte as i8);
        let at = &mut reach[if spec.weights.channel_last { i % channels } else { i / per_channel }];
        at.0 += (w * low).min(w * high);
        at.1 += (w * low).max(w * high);
    }
    reach
}

/// Finds dead channels, and biases that keep every sum inside 32 bits: a dead channel's is moved, another's refused.
fn dead_channels(
    spec: &ConvSpec,
    w_scales: &[f32],
    biases: &[i32],
    reach: &[(i64, i64)],
) -> Result<(Vec<DeadChannel>, Vec<i32>)> {
    let largest = w_scales.iter().fold(0f32, |a, &b| a.max(b));
    let (mut dead, mut used) = (Vec::new(), biases.to_vec());
    for (o, (&bias, &(low, high))) in biases.iter().zip(reach).enumerate() {
        let at_limit = bias == i32::MAX || bias <= -i32::MAX;
        let is_dead = spec.is_trainable && (at_limit || w_scales[o] < DEAD_SCALE * largest);
        let (least, most) = (1 - ACCUMULATOR - low, ACCUMULATOR - 1 - high);
        let fits = least <= i64::from(bias) && i64::from(bias) <= most;
        if !fits && (!is_dead || least > most) {
            let reach = if i64::from(bias) < least { low } else { high } + i64::from(bias);
            return Err(Int8Error::Accumulator { layer: spec.name.clone(), channel: o as u32, reach });
        }
        if !fits {
            // Inside i32: the bounds lie between -2^31 and 2^31 because `low <= 0 <= high`.
            used[o] = i64::from(bias).clamp(least, most) as i32;
        }
        if is_dead {
            dead.push(DeadChannel { channel: o as u32, w_scale: w_scales[o], bias, bias_used: used[o] });
        }
    }
    Ok((dead, used))
}
