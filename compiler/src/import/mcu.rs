//! The published int8 backbones: a `.json` of the structure beside a `.safetensors` of weights.
//!
//! The structure is a first convolution, blocks of up to three (`pointwise1`, `depthwise`, `pointwise2`) with an
//! optional sum of a block's input and result, and a classifier over the mean of the last image. Weights are stored
//! `[O,I,R,S]`, depthwise ones `[C,1,R,S]`; the program wants `[O,R,S,I]` and `[R,S,C]`, so they are named by place
//! and permutation. Nothing that is missing is filled in. Windows are padded by half their size on every side.
//! Source: Lin et al. 2022, "On-Device Training Under 256KB Memory", its released models.

use serde::Deserialize;
use tinyforge_plan::{DType, Source};

use super::int8::{
    Assembly, ConvSpec, Effective, HEAD, Image, Int8Error, Int8Model, Limits, Pool, Quant, Weights, Window,
};
use super::safetensors::{Entry, Header, parse_header};

type Result<T> = std::result::Result<T, Int8Error>;

/// Most blocks.
const BLOCKS_MAX: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Net {
    first_conv: Conv,
    blocks: Vec<Block>,
    feature_mix: Option<Conv>,
    classifier: Option<Conv>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    pointwise1: Option<Conv>,
    depthwise: Option<Conv>,
    pointwise2: Option<Conv>,
    residual: Option<Residual>,
    se: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conv {
    in_channel: u32,
    out_channel: u32,
    in_shape: Option<u32>,
    out_shape: Option<u32>,
    kernel_size: [u32; 2],
    stride: u32,
    groups: u32,
    depthwise: Option<bool>,
    act: Option<serde_json::Value>,
    params: ConvParams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConvParams {
    weight: Tensor,
    bias: Tensor,
    w_scales: Tensor,
    x_scale: f64,
    x_zero: i32,
    y_scale: f64,
    y_zero: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Residual {
    in_channel: u32,
    in_shape: u32,
    params: ResidualParams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResidualParams {
    x_scale: f64,
    x_zero: i32,
    y_scale: f64,
    y_zero: i32,
}

/// A tensor of the safetensors file, and what it must be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    tensor: String,
    dtype: String,
    shape: Vec<u64>,
}

/// Whether a JSON text is a structure of this form, by its first key; says nothing of its being valid.
pub fn is_structure(json: &[u8]) -> bool {
    let text = json.trim_ascii_start();
    let key = text.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    key.is_some_and(|key| key.starts_with(b"\"first_conv\""))
}

/// Reads a network. `json` is the structure, `weights` all bytes of the safetensors file, which is named `file_name`.
///
/// # Errors
/// Either file is damaged, a tensor is missing or of another shape, or the structure has parts that are not
/// supported (squeeze and excitation, activations that are not folded).
pub fn import(json: &[u8], weights: &[u8], file_name: &str) -> Result<Int8Model> {
    let net: Net = serde_json::from_slice(json).map_err(|error| Int8Error::Json(error.to_string()))?;
    if net.blocks.len() > BLOCKS_MAX {
        return Err(Int8Error::Json(format!("{} blocks, at most {BLOCKS_MAX} are read", net.blocks.len())));
    }
    let header = parse_header(weights, weights.len() as u64)?;
    let first = &net.first_conv;
    let side = first.in_shape.ok_or_else(|| layer_error("first_conv", "`in_shape` is missing".into()))?;
    let quant = Quant { scale: first.params.x_scale, zero: first.params.x_zero };
    let input = Image { name: "images".into(), shape: [side, side, first.in_channel], quant };
    let assembly = Assembly::new(file_name, weights.len() as u64 + json.len() as u64, input)?;
    let mut reader = Reader { header, weights, assembly, at: 0 };
    reader.conv(first, "first_conv", "first_conv")?;
    for (i, block) in net.blocks.iter().enumerate() {
        reader.block(block, i)?;
    }
    if let Some(mix) = &net.feature_mix {
        reader.conv(mix, "feature_mix", "feature_mix")?;
    }
    if let Some(classifier) = &net.classifier {
        reader.mean()?;
        reader.conv(classifier, "classifier", HEAD)?;
    }
    let output = reader.at;
    Ok(reader.assembly.finish(output))
}

fn layer_error(layer: &str, why: String) -> Int8Error {
    Int8Error::Layer { layer: layer.to_owned(), why }
}

struct Reader<'a> {
    header: Header,
    weights: &'a [u8],
    assembly: Assembly,
    /// The last layer's image.
    at: u32,
}

impl<'a> Reader<'a> {
    fn block(&mut self, block: &Block, i: usize) -> Result<()> {
        let name = format!("blocks.{i}");
        if block.se.as_ref().is_some_and(|se| !se.is_null()) {
            return Err(layer_error(&name, "squeeze and excitation is not supported".into()));
        }
        let start = self.at;
        let parts =
            [("pointwise1", &block.pointwise1), ("depthwise", &block.depthwise), ("pointwise2", &block.pointwise2)];
        if parts.iter().all(|(_, conv)| conv.is_none()) {
            return Err(layer_error(&name, "the block is empty".into()));
        }
        for (part, conv) in parts {
            if let Some(conv) = conv {
                self.conv(conv, &format!("{name}.{part}"), &name)?;
            }
        }
        let Some(residual) = &block.residual else { return Ok(()) };
        let name = format!("{name}.residual");
        let (x, params) = (self.assembly.at(start), &residual.params);
        self.agrees(&name, x, residual.in_channel, Some(residual.in_shape), (params.x_scale, params.x_zero))?;
        let quant = Quant { scale: params.y_scale, zero: params.y_zero };
        let output = Image { name: format!("{name}.y"), shape: x.shape, quant };
        let factors = self.assembly.ratios([start, self.at], &output);
        self.at = self.assembly.add([start, self.at], factors, output, Limits::ALL)?;
        Ok(())
    }

    /// The mean over the last image.
    fn mean(&mut self) -> Result<()> {
        let x = self.assembly.at(self.at).clone();
        let [h, w, c] = x.shape;
        if (h, w) == (1, 1) {
            return Ok(());
        }
        self.assembly.block(HEAD);
        let window = Window::whole(x.shape);
        let output = Image { name: "pool.y".into(), shape: [1, 1, c], quant: x.quant };
        self.at = self.assembly.pool(self.at, Pool::Mean, window, output, Limits::ALL)?;
        Ok(())
    }

    /// Refuses a layer whose input is not what stands before it.
    fn agrees(&self, name: &str, x: &Image, channels: u32, side: Option<u32>, quant: (f64, i32)) -> Result<()> {
        let [h, w, c] = x.shape;
        if c != channels || side.is_some_and(|side| (h, w) != (side, side)) {
            let side = side.map_or("?".to_owned(), |s| s.to_string());
            let why = format!("it reads {side} x {side} x {channels}, what stands before it gives {h} x {w} x {c}");
            return Err(layer_error(name, why));
        }
        if quant != (x.quant.scale, x.quant.zero) {
            let why = format!(
                "it reads scale {} and zero point {}, what stands before it gives {} and {}",
                quant.0, quant.1, x.quant.scale, x.quant.zero
            );
            return Err(layer_error(name, why));
        }
        Ok(())
    }

    fn conv(&mut self, conv: &Conv, name: &str, block: &str) -> Result<()> {
        let (x, params) = (self.assembly.at(self.at).clone(), &conv.params);
        self.agrees(name, &x, conv.in_channel, conv.in_shape, (params.x_scale, params.x_zero))?;
        if conv.act.as_ref().is_some_and(|act| !act.is_null()) {
            return Err(layer_error(name, "it has an activation of its own; only folded ones are supported".into()));
        }
        let is_depthwise = conv.groups != 1 && conv.groups == conv.in_channel;
        if (conv.groups != 1 && !is_depthwise) || conv.depthwise.is_some_and(|d| d != is_depthwise && conv.groups != 1)
        {
            return Err(layer_error(name, format!("{} groups of {} channels", conv.groups, conv.in_channel)));
        }
        let window = Window { size: conv.kernel_size, stride: [conv.stride; 2], pad: conv.kernel_size.map(|k| k / 2) };
        let sides = [0, 1].map(|d| out_side(x.shape[d], &window, d));
        let [Some(h), Some(w)] = sides else {
            return Err(layer_error(name, format!("a window {window:?} does not fit {:?}", x.shape)));
        };
        if conv.out_shape.is_some_and(|side| (h, w) != (side, side)) {
            return Err(layer_error(
                name,
                format!("it gives {h} x {w}, not {:?} as the structure says", conv.out_shape),
            ));
        }
        let multiplier = is_depthwise.then(|| conv.out_channel / conv.in_channel);
        let w_scales = self.tensor(name, &params.w_scales, DType::F32)?.1;
        let w_scales = w_scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (place, bias) = self.tensor(name, &params.bias, DType::I32)?;
        let bias_source = file_source(place);
        let spec = ConvSpec {
            name: name.to_owned(),
            input: self.at,
            window,
            multiplier,
            weights: self.weights(conv, name, is_depthwise)?,
            bias: Some((bias_source, bias)),
            w_scales,
            output: Image {
                name: format!("{name}.y"),
                shape: [h, w, conv.out_channel],
                quant: Quant { scale: params.y_scale, zero: params.y_zero },
            },
            limits: Limits::ALL,
            effective: Effective::Once,
            is_trainable: true,
        };
        self.assembly.block(block);
        self.at = self.assembly.conv(spec)?;
        Ok(())
    }

    /// The weights, and the permutation that makes them the program's.
    fn weights(&self, conv: &Conv, name: &str, is_depthwise: bool) -> Result<Weights<'a>> {
        let (place, bytes) = self.tensor(name, &conv.params.weight, DType::I8)?;
        let [r, s] = conv.kernel_size;
        let inputs = if is_depthwise { 1 } else { conv.in_channel };
        let expected = [conv.out_channel, inputs, r, s].map(u64::from);
        if place.shape != expected {
            return Err(layer_error(name, format!("weights are {:?}, must be {expected:?}", place.shape)));
        }
        let point = (r, s) == (1, 1);
        let (shape, axes) = match is_depthwise {
            true => (vec![conv.out_channel, r, s], vec![1, 2, 0]),
            false => (vec![conv.out_channel, inputs, r, s], vec![0, 2, 3, 1]),
        };
        let source = match point {
            true => file_source(place),
            false => Source::Permuted { file: 0, offset: place.offset, dtype: DType::I8, shape, axes },
        };
        Ok(Weights { source, bytes, channel_last: false })
    }

    /// A tensor of the file, of this type and of the shape that the structure gives.
    fn tensor(&self, layer: &str, named: &Tensor, dtype: DType) -> Result<(&Entry, &'a [u8])> {
        let name = &named.tensor;
        let Some(entry) = self.header.tensors.iter().find(|t| t.name == *name) else {
            return Err(Int8Error::Weights(format!("{layer} names `{name}`, which is not in the file")));
        };
        if entry.shape != named.shape || entry.dtype != Some(dtype) {
            let why = format!(
                "`{name}` is {} {:?}, {layer} wants {} {:?} ({})",
                entry.dtype_name,
                entry.shape,
                dtype.name(),
                named.shape,
                named.dtype
            );
            return Err(Int8Error::Weights(why));
        }
        // The header's reader has checked that the tensor lies inside the file.
        Ok((entry, &self.weights[entry.offset as usize..(entry.offset + entry.bytes) as usize]))
    }
}

fn file_source(entry: &Entry) -> Source {
    // `Reader::tensor` has checked that the dtype is known.
    let dtype = entry.dtype.unwrap_or(DType::U8);
    Source::File { file: 0, offset: entry.offset, dtype, transpose: false }
}

/// Length of one side of a result.
fn out_side(len: u32, window: &Window, d: usize) -> Option<u32> {
    let room = (u64::from(len) + 2 * u64::from(window.pad[d])).checked_sub(u64::from(window.size[d]))?;
    u32::try_from(room.checked_div(u64::from(window.stride[d]))? + 1).ok()
}
