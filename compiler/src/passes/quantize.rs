//! A float network to int8, with the ranges that its values were seen to take.
//!
//! Before: a forward graph over `images f32[B,C,H,W]` (or `f32[B,F]`) of convolutions, linear layers, batch norms,
//! sums, pools and ReLUs, its weights in f32. After: an [`Int8Model`].
//! - Batch norms are folded into what stands before them: `W' = W w r`, `b' = (b - mean) w r + beta`,
//!   `r = 1/√(var+eps)`.
//! - Weights are symmetric, one scale an output channel: `s_w = max|W| / 127`. Biases are `i32` at `s_x s_w`.
//! - Values have one scale and zero point each, from their range; 0 is always a stored number.
//! - ReLU and ReLU6 become limits of the result before them.
//! - What an input's byte means goes into the input's scale, and by channel into the first layer's weights ([`Bytes`]).
//!
//! Where a batch norm has nothing before it to be folded into, it is a depthwise convolution of 1 x 1.
//! Source: Jacob et al. 2018; Nagel et al. 2021, "A White Paper on Neural Network Quantization".

mod bytes;
mod range;
mod units;
mod weights;

use std::collections::{HashMap, HashSet};

use tinyforge_plan::Source;

pub use bytes::Bytes;
pub use range::{Clipping, Observer, Range};
use units::{Unit, units};
use weights::Product;

use crate::import::int8::{
    Assembly, ConvSpec, Effective, Image, Int8Error, Int8Model, Limits, Pool, Quant, Rescale, Weights, Window,
};
use crate::ir::graph::{Graph, Kind, Node, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;

type Result<T> = std::result::Result<T, Int8Error>;

/// What an int8 network is made from.
pub struct Request<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The float network's forward graph, with one result.
    pub graph: &'a Graph,
    /// Height, width and channels of the input.
    pub shape: [u32; 3],
    /// What an input's byte means.
    pub bytes: &'a Bytes,
    /// Contents of the weights, by name.
    pub weights: &'a dyn Fn(&str) -> Option<Vec<f32>>,
    /// One range for every value of [`observed`], in order.
    pub ranges: &'a [Range],
}

/// The values whose ranges must be measured.
///
/// # Errors
/// The network has a part that int8 has no layer for.
pub fn observed(graph: &Graph) -> Result<Vec<Value>> {
    Ok(units(graph)?.iter().filter(|unit| unit.is_measured(graph)).map(|unit| unit.out).collect())
}

/// Makes the int8 network.
///
/// # Errors
/// The network has a part that int8 has no layer for, or a number that int8 cannot hold.
///
/// # Panics
/// There is not one range a value: a fault of the caller.
pub fn run(request: &Request) -> Result<Int8Model> {
    let graph = request.graph;
    let units = units(graph)?;
    let measured: Vec<Value> = units.iter().filter(|u| u.is_measured(graph)).map(|u| u.out).collect();
    assert_eq!(measured.len(), request.ranges.len(), "one range a measured value");
    let input = request.bytes.input(request.shape[2])?;
    let image = Image { name: "images".into(), shape: request.shape, quant: input.quant };
    let weights = graph.declared(Kind::Weight).map(|v| graph.ty(v).elems()).fold(0u64, u64::saturating_add);
    let mut assembly = Assembly::new(request.name, weights.saturating_mul(4), image)?;
    assembly.block("layers.0");
    let softmaxes = graph.nodes.iter().filter(|n| n.op == Op::Softmax).map(|n| n.args[0]);
    let whole = softmaxes.chain(graph.results.iter().map(|&(_, v)| v)).collect();
    let ranges = measured.into_iter().zip(request.ranges.iter().copied()).collect();
    let mut writer = Writer {
        request,
        assembly,
        input,
        ranges,
        images: HashMap::new(),
        whole,
        raw: vec![0],
        order: HashMap::new(),
        layers: 0,
    };
    writer.notes();
    for v in graph.declared(Kind::Input) {
        writer.images.insert(v, 0);
    }
    for unit in &units {
        writer.unit(unit)?;
    }
    let [(_, result)] = &graph.results[..] else {
        return Err(refuse("the result", format!("there are {} results, one is taken", graph.results.len())));
    };
    let output = writer.image(*result)?;
    if writer.order.contains_key(result) {
        return Err(refuse("the result", "it is a flattened image".into()));
    }
    let mut model = writer.assembly.finish(output);
    if let Ok(at) = model.head() {
        model.name_head(at);
    }
    Ok(model)
}

fn refuse(layer: &str, why: String) -> Int8Error {
    Int8Error::Layer { layer: layer.to_owned(), why }
}

/// Height, width and channels of a float value.
fn image_shape(ty: &Type) -> Option<[u32; 3]> {
    match ty.shape[..] {
        [_, c, h, w] => Some([h, w, c]),
        [_, f] => Some([1, 1, f]),
        _ => None,
    }
}

struct Writer<'a> {
    request: &'a Request<'a>,
    assembly: Assembly,
    input: bytes::Input,
    ranges: HashMap<Value, Range>,
    images: HashMap<Value, u32>,
    /// Results, and what a softmax reads: their ranges are not cut.
    whole: HashSet<Value>,
    /// The input, as it is and flattened: what its bytes mean by channel is still to be folded.
    raw: Vec<u32>,
    /// Flattened images, whose elements lie as `[H,W,C]` where the float network has `[C,H,W]`.
    order: HashMap<Value, [u32; 3]>,
    layers: u32,
}

impl Writer<'_> {
    fn notes(&mut self) {
        if let Some(note) = self.input.note.take() {
            self.assembly.note(note);
        }
    }

    fn graph(&self) -> &Graph {
        self.request.graph
    }

    fn name_of(&self, v: Value) -> &str {
        &self.request.graph.info(v).name
    }

    fn image(&self, v: Value) -> Result<u32> {
        self.images.get(&v).copied().ok_or_else(|| refuse(self.name_of(v), "it is no image of the network".into()))
    }

    /// The result of a unit, as a measured image of this name.
    fn output(&mut self, unit: &Unit, name: &str, is_result: bool) -> Result<(Image, Limits)> {
        let shape = image_shape(self.graph().ty(unit.out));
        let shape = shape.ok_or_else(|| refuse(name, format!("it gives {}", self.graph().ty(unit.out))))?;
        let range = self.ranges[&unit.out];
        if range.is_still() {
            self.assembly.note(format!("{name} gives 0 for all calibration samples; its range is a guess"));
        }
        let quant = range.quant(is_result);
        Ok((Image { name: format!("{name}.y"), shape, quant }, unit.limits(quant)))
    }

    fn unit(&mut self, unit: &Unit) -> Result<()> {
        let node = self.request.graph.nodes[unit.node].clone();
        let x = node.args[0];
        if !matches!(node.op, Op::Conv2d | Op::Linear | Op::BatchNormEval | Op::Reshape) {
            self.is_even(&node)?;
        }
        let image = match node.op {
            Op::Conv2d | Op::Linear | Op::BatchNormEval => self.product(unit, &node)?,
            Op::Add => {
                self.in_order(x)?;
                self.in_order(node.args[1])?;
                let (a, b) = (self.image(x)?, self.image(node.args[1])?);
                let name = self.name_of(node.outs[0]).to_owned();
                let (output, limits) = self.output(unit, &name, false)?;
                let factors = self.assembly.ratios([a, b], &output);
                self.assembly.add([a, b], factors, output, limits)?
            }
            Op::Relu | Op::Relu6 => {
                let (input, name) = (self.image(x)?, self.name_of(node.outs[0]).to_owned());
                self.pass_order(x, unit.out);
                let (mut output, limits) = self.output(unit, &name, false)?;
                let x_image = self.assembly.at(input);
                output.shape = x_image.shape;
                let scale = (x_image.quant.scale / output.quant.scale) as f32;
                let window = Window::POINT;
                self.assembly.rescale(Rescale { input, window, scale, output, limits })?
            }
            Op::MaxPool | Op::AvgPool | Op::GlobalAvgPool => self.pool(unit, &node)?,
            Op::Reshape => self.reshape(unit, x)?,
            // The last that `units` lets through.
            _ => {
                self.in_order(x)?;
                let x = self.image(x)?;
                let quant = Quant { scale: 1.0 / 256.0, zero: -128 };
                let output = Image { name: "softmax.y".into(), shape: self.assembly.at(x).shape, quant };
                self.assembly.softmax(x, output)?
            }
        };
        self.images.insert(unit.out, image);
        Ok(())
    }

    /// Refuses an op that cannot take over what the input's bytes mean by channel.
    fn is_even(&self, node: &Node) -> Result<()> {
        let reads_raw = node.args.iter().any(|v| self.images.get(v).is_some_and(|i| self.raw.contains(i)));
        if !reads_raw || self.input.is_even() {
            return Ok(());
        }
        let why =
            "it reads the input, whose mean or deviation differs by channel; a layer with weights must come first";
        Err(refuse(self.name_of(node.outs[0]), why.into()))
    }

    /// Refuses a flattened image where the order of its elements would matter.
    fn in_order(&self, v: Value) -> Result<()> {
        match self.order.get(&v) {
            Some(shape) => Err(refuse(
                self.name_of(v),
                format!("a flattened image {shape:?} is read by other than a linear layer"),
            )),
            None => Ok(()),
        }
    }

    fn pass_order(&mut self, from: Value, to: Value) {
        if let Some(&shape) = self.order.get(&from) {
            self.order.insert(to, shape);
        }
    }

    fn reshape(&mut self, unit: &Unit, x: Value) -> Result<u32> {
        let graph = self.request.graph;
        let (from, to) = (image_shape(graph.ty(x)), image_shape(graph.ty(unit.out)));
        let name = self.name_of(unit.out).to_owned();
        let (Some(from), Some(to)) = (from, to) else {
            return Err(refuse(&name, format!("{} becomes {}", graph.ty(x), graph.ty(unit.out))));
        };
        let image = self.image(x)?;
        self.pass_order(x, unit.out);
        let is_vector = |s: [u32; 3]| s[0] == 1 && s[1] == 1;
        match (is_vector(from), is_vector(to)) {
            _ if from == to => Ok(image),
            (false, true) => {
                self.order.insert(unit.out, from);
                let flat = self.assembly.reshape(image, to, &name)?;
                if self.raw.contains(&image) {
                    self.raw.push(flat);
                }
                Ok(flat)
            }
            _ => {
                Err(refuse(&name, format!("{} becomes {}; images are only flattened", graph.ty(x), graph.ty(unit.out))))
            }
        }
    }

    fn pool(&mut self, unit: &Unit, node: &Node) -> Result<u32> {
        self.in_order(node.args[0])?;
        let image = self.image(node.args[0])?;
        let x = self.assembly.at(image).clone();
        let name = self.name_of(node.outs[0]).to_owned();
        let window = match node.op {
            Op::GlobalAvgPool => Window::whole(x.shape),
            _ => units::pool_window(node).map_err(|why| refuse(&name, why))?,
        };
        let shape = image_shape(self.graph().ty(unit.out)).unwrap_or(x.shape);
        let output = Image { name: format!("{name}.y"), shape, quant: x.quant };
        let kind = if node.op == Op::MaxPool { Pool::Max } else { Pool::Mean };
        self.assembly.pool(image, kind, window, output, Limits::ALL)
    }

    /// A convolution, linear layer, or batch norm by itself, with the batch norms behind it.
    fn product(&mut self, unit: &Unit, node: &Node) -> Result<u32> {
        let name = format!("layers.{}", self.layers);
        self.layers += 1;
        let image = self.image(node.args[0])?;
        let x = self.assembly.at(image).clone();
        let product =
            Product::of(self.request, node, &x, self.order.get(&node.args[0])).map_err(|why| refuse(&name, why))?;
        let mut folded = product.folded;
        if self.raw.contains(&image) {
            folded.fold_input(&self.input);
        }
        for &norm in &unit.norms {
            folded.fold_norm(self.request, &self.request.graph.nodes[norm]).map_err(|why| refuse(&name, why))?;
        }
        let stored = folded.store(x.quant.scale).map_err(|why| refuse(&name, why))?;
        stored.notes(&name).into_iter().for_each(|note| self.assembly.note(note));
        self.assembly.block(&name);
        let (output, limits) = self.output(unit, &name, self.whole.contains(&unit.out))?;
        let bias: Vec<u8> = stored.bias.iter().flat_map(|b| b.to_le_bytes()).collect();
        self.assembly.conv(ConvSpec {
            name,
            input: image,
            window: product.window,
            multiplier: product.multiplier,
            weights: Weights {
                source: Source::Bytes(stored.weight.clone()),
                bytes: &stored.weight,
                channel_last: product.multiplier.is_some(),
            },
            bias: Some((Source::Bytes(bias.clone()), &bias)),
            w_scales: stored.scales,
            output,
            limits,
            effective: Effective::Once,
            is_trainable: true,
        })
    }
}
