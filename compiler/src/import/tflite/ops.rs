//! Operators to layers.
//!
//! Every operator's shapes stand in the file, so each is read by itself and all that cannot be taken is told at once.

use tinyforge_plan::{DType, Source};

use super::litert;
use super::schema::{File, Operator, Range, Tensor, TensorType};
use super::window::{Kernels, Padding, fused, window};
use crate::import::int8::{
    Assembly, ConvSpec, Effective, Image, Int8Error, Int8Model, Limits, Line, Pool, Quant, Refusal, Weights, Window,
};

/// Why one operator cannot be taken.
type Refused<T> = Result<T, Stop>;

/// Why an operator gives no layer.
pub(super) enum Stop {
    /// Not supported, and why.
    Why(String),
    /// An operand's own operator was refused already.
    Cascade,
    /// The file is wrong, whatever is supported.
    Error(Int8Error),
}

impl From<Int8Error> for Stop {
    fn from(error: Int8Error) -> Stop {
        match error {
            Int8Error::Layer { why, .. } => Stop::Why(why),
            error => Stop::Error(error),
        }
    }
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Why(why)
    }
}

/// What a tensor of the file has become.
#[derive(Clone, Copy)]
pub(super) enum Held {
    /// An image.
    Image(u32),
    /// An image with rows above and below, columns left and right, that the windows behind it take as padding.
    Padded(u32, [[u32; 2]; 2]),
}

/// A reader of one operator.
type Read = fn(&mut Converter, &Operator) -> Refused<()>;

/// One row an operator: code in the schema, name there, how it is read.
const OPERATORS: [(i32, &str, Read); 16] = [
    (0, "ADD", add),
    (1, "AVERAGE_POOL_2D", average_pool),
    (3, "CONV_2D", conv),
    (4, "DEPTHWISE_CONV_2D", depthwise),
    (6, "DEQUANTIZE", dequantize),
    (9, "FULLY_CONNECTED", fully_connected),
    (17, "MAX_POOL_2D", max_pool),
    (19, "RELU", relu),
    (21, "RELU6", relu6),
    (22, "RESHAPE", reshape),
    (25, "SOFTMAX", softmax),
    (34, "PAD", pad),
    (40, "MEAN", mean),
    (43, "SQUEEZE", reshape),
    (70, "EXPAND_DIMS", reshape),
    (114, "QUANTIZE", quantize),
];

/// Codes of the operators that stand between float and int8.
const BOUNDARY: [i32; 2] = [6, 114];
const QUANTIZE: i32 = 114;
/// Codes of the convolutions, which take padding.
const CONVS: [i32; 2] = [3, 4];

pub(super) struct Converter<'a> {
    file: &'a File<'a>,
    bytes: &'a [u8],
    assembly: Assembly,
    held: Vec<Option<Held>>,
    /// The operator's place in the file.
    at: usize,
    /// Convolutions and fully connected layers so far.
    convs: u32,
}

/// Makes a model of a file's tables.
pub fn convert(file: &File, bytes: &[u8], file_name: &str) -> Result<Int8Model, Int8Error> {
    refuse_floats(file)?;
    let (tensors, input) = model_input(file)?;
    let mut assembly = Assembly::new(file_name, bytes.len() as u64, input)?;
    assembly.block("layers.0");
    let mut converter = Converter { file, bytes, assembly, held: vec![None; file.tensors.len()], at: 0, convs: 0 };
    tensors.iter().for_each(|&t| converter.held[t] = Some(Held::Image(0)));
    let mut refusals = Vec::new();
    for (at, operator) in file.operators.iter().enumerate() {
        converter.at = at;
        // The quantised input is there already.
        if operator.code == QUANTIZE && operator.outputs.iter().all(|t| tensors.contains(t)) {
            continue;
        }
        match converter.operator(operator) {
            Ok(()) | Err(Stop::Cascade) => {}
            Err(Stop::Why(why)) => refusals.push(Refusal { layer: file.describe(at), why }),
            Err(Stop::Error(error)) => return Err(error),
        }
    }
    if !refusals.is_empty() {
        return Err(Int8Error::Unsupported(refusals));
    }
    converter.finish()
}

impl File<'_> {
    /// An operator in words: its name, its place, its result.
    fn describe(&self, at: usize) -> String {
        let operator = &self.operators[at];
        let row = OPERATORS.iter().find(|row| row.0 == operator.code);
        let name = match row {
            Some(row) => row.1.to_owned(),
            None if operator.custom.is_empty() => format!("operator code {}", operator.code),
            None => format!("custom operator {}", operator.custom.chars().take(40).collect::<String>()),
        };
        let result = operator.outputs.first().map_or("", |&t| self.tensors[t].name.as_str());
        let result: String = result.chars().take(60).collect();
        format!("operator {at} ({name} `{result}`)")
    }
}

/// Refuses a model that computes in floats, naming the first place.
fn refuse_floats(file: &File) -> Result<(), Int8Error> {
    for (at, operator) in file.operators.iter().enumerate() {
        if BOUNDARY.contains(&operator.code) {
            continue;
        }
        let mut tensors = operator.inputs.iter().flatten().chain(&operator.outputs).map(|&t| &file.tensors[t]);
        if let Some(float) = tensors.find(|t| t.ty.is_float()) {
            return Err(Int8Error::Float { layer: file.describe(at), dtype: float.ty.name() });
        }
    }
    Ok(())
}

/// The int8 input: the tensors that hold it, and what it is. A float or u8 input is taken behind its QUANTIZE.
fn model_input(file: &File) -> Result<(Vec<usize>, Image), Int8Error> {
    let refuse = |why: String| Int8Error::Unsupported(vec![Refusal { layer: "the input".into(), why }]);
    let &[given] = &file.inputs[..] else {
        return Err(refuse(format!("there are {} inputs, one is taken", file.inputs.len())));
    };
    let tensors = if file.tensors[given].ty == TensorType::I8 {
        vec![given]
    } else {
        let readers = file.operators.iter().filter(|op| op.inputs.contains(&Some(given)));
        let results: Vec<usize> = readers.filter(|op| op.code == QUANTIZE).flat_map(|op| op.outputs.clone()).collect();
        if results.is_empty() {
            return Err(refuse(format!("it is {}, int8 is taken", file.tensors[given].ty.name())));
        }
        results
    };
    let first = &file.tensors[tensors[0]];
    let quant = quant(first).map_err(refuse)?;
    let shape = image_shape(first).map_err(refuse)?;
    for &t in &tensors[1..] {
        if self::quant(&file.tensors[t]) != Ok(quant) || image_shape(&file.tensors[t]) != Ok(shape) {
            return Err(refuse("it is quantised in several ways".into()));
        }
    }
    Ok((tensors, Image { name: "images".into(), shape, quant }))
}

/// One scale and zero point of an int8 tensor.
fn quant(tensor: &Tensor) -> Result<Quant, String> {
    if tensor.ty != TensorType::I8 {
        return Err(format!("`{}` is {}, int8 is taken", tensor.name, tensor.ty.name()));
    }
    match (&tensor.scales[..], &tensor.zeros[..]) {
        (&[scale], &[zero]) if (-128..=127).contains(&zero) => Ok(Quant { scale: scale.into(), zero: zero as i32 }),
        (&[scale], &[]) => Ok(Quant { scale: scale.into(), zero: 0 }),
        (scales, _) => Err(format!("`{}` has {} scales, an image has one", tensor.name, scales.len())),
    }
}

/// A tensor's shape as height, width and channels of one example.
fn image_shape(tensor: &Tensor) -> Result<[u32; 3], String> {
    let refuse = |why: &str| Err(format!("`{}` has the shape {:?}: {why}", tensor.name, tensor.shape));
    if tensor.shape.len() > 4 {
        return refuse("at most 4 dimensions are taken");
    }
    if tensor.shape.iter().any(|&d| d < 1) {
        return refuse("all dimensions must be known");
    }
    let Some((&batch, rest)) = tensor.shape.split_first() else { return Ok([1; 3]) };
    if batch != 1 {
        return refuse("convert the model for a batch of 1");
    }
    let mut shape = [1; 3];
    // Checked above: at most three remain, all positive.
    shape.iter_mut().rev().zip(rest.iter().rev()).for_each(|(s, &d)| *s = d as u32);
    Ok(shape)
}

impl<'a> Converter<'a> {
    fn operator(&mut self, operator: &Operator) -> Refused<()> {
        match OPERATORS.iter().find(|row| row.0 == operator.code) {
            Some(row) => (row.2)(self, operator),
            None => Err(Stop::Why("no layer stands for it".into())),
        }
    }

    fn finish(self) -> Result<Int8Model, Int8Error> {
        let refuse = |why: String| Int8Error::Unsupported(vec![Refusal { layer: "the result".into(), why }]);
        let &[wanted] = &self.file.outputs[..] else {
            return Err(refuse(format!("there are {} results, one is taken", self.file.outputs.len())));
        };
        let Some(Held::Image(output)) = self.held[wanted] else {
            return Err(refuse(format!("no operator gives `{}`", self.file.tensors[wanted].name)));
        };
        let mut model = self.assembly.finish(output);
        if let Ok(at) = model.head() {
            model.name_head(at);
        }
        Ok(model)
    }

    fn tensor(&self, operator: &Operator, i: usize) -> Refused<&'a Tensor> {
        match operator.inputs.get(i) {
            Some(&Some(t)) => Ok(&self.file.tensors[t]),
            _ => Err(Stop::Why(format!("operand {i} is missing"))),
        }
    }

    fn held(&self, operator: &Operator, i: usize) -> Refused<Held> {
        let tensor = self.tensor(operator, i)?;
        if tensor.data.is_some() {
            return Err(Stop::Why(format!("operand {i} (`{}`) is constant", tensor.name)));
        }
        // The tensor exists: `tensor` has looked it up.
        operator.inputs[i].and_then(|t| self.held[t]).ok_or(Stop::Cascade)
    }

    fn image(&self, operator: &Operator, i: usize) -> Refused<u32> {
        match self.held(operator, i)? {
            Held::Image(image) => Ok(image),
            Held::Padded(..) => Err(Stop::Why("padding stands before it; only convolutions take padding".into())),
        }
    }

    /// The operator's result as an image of this name, and the tensor's index.
    fn output(&self, operator: &Operator, name: String) -> Refused<(Image, usize)> {
        let &[t] = &operator.outputs[..] else {
            return Err(Stop::Why(format!("it has {} results", operator.outputs.len())));
        };
        let tensor = &self.file.tensors[t];
        Ok((Image { name, shape: image_shape(tensor)?, quant: quant(tensor)? }, t))
    }

    fn hold(&mut self, tensor: usize, image: u32) {
        self.held[tensor] = Some(Held::Image(image));
    }

    fn contents(&self, range: Range) -> &'a [u8] {
        // The schema's reader has checked that the range lies inside the file.
        &self.bytes[range.offset as usize..(range.offset + range.bytes) as usize]
    }

    /// The numbers of a constant `i32` operand.
    fn ints(&self, operator: &Operator, i: usize) -> Refused<Vec<i32>> {
        let tensor = self.tensor(operator, i)?;
        match tensor.data {
            // Axes and paddings: a longer list is none.
            Some(range) if tensor.ty == TensorType::I32 && range.bytes <= 64 => {
                let words = self.contents(range).chunks_exact(4);
                Ok(words.map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            _ => Err(Stop::Why(format!("operand {i} (`{}`) is no short constant list of i32", tensor.name))),
        }
    }

    /// A constant operand of this type.
    fn constant(&self, operator: &Operator, i: usize, ty: TensorType) -> Refused<(&'a Tensor, Source, &'a [u8])> {
        let tensor = self.tensor(operator, i)?;
        let refuse = |why: String| Err(Stop::Why(format!("operand {i} (`{}`) {why}", tensor.name)));
        if tensor.ty != ty {
            return refuse(format!("is {}, {} is taken", tensor.ty.name(), ty.name()));
        }
        let Some(range) = tensor.data else { return refuse("is not constant".into()) };
        if tensor.is_sparse {
            return refuse("is stored sparse".into());
        }
        if tensor.zeros.iter().any(|&z| z != 0) {
            return refuse("has a zero point; weights must be symmetric".into());
        }
        let dtype = if ty == TensorType::I8 { DType::I8 } else { DType::I32 };
        let source = Source::File { file: 0, offset: range.offset, dtype, transpose: false };
        Ok((tensor, source, self.contents(range)))
    }

    /// The bias operand: absent, or `i32[O]`.
    fn bias(&self, operator: &Operator) -> Refused<Option<(Source, &'a [u8])>> {
        match operator.inputs.get(2) {
            None | Some(None) => Ok(None),
            Some(Some(_)) => {
                self.constant(operator, 2, TensorType::I32).map(|(_, source, bytes)| Some((source, bytes)))
            }
        }
    }

    /// Names the next layer with weights and opens its block.
    fn next_conv(&mut self) -> String {
        let name = format!("layers.{}", self.convs);
        self.convs += 1;
        self.assembly.block(&name);
        name
    }
}

fn conv(c: &mut Converter, op: &Operator) -> Refused<()> {
    convolution(c, op, false)
}

fn depthwise(c: &mut Converter, op: &Operator) -> Refused<()> {
    convolution(c, op, true)
}

fn convolution(c: &mut Converter, op: &Operator, is_depthwise: bool) -> Refused<()> {
    let (input, padding) = match c.held(op, 0)? {
        Held::Image(x) => (x, None),
        Held::Padded(x, pads) => (x, Some(pads)),
    };
    let (tensor, source, bytes) = c.constant(op, 1, TensorType::I8)?;
    let &[d0, kh, kw, d3] = &tensor.shape[..] else {
        return Err(Stop::Why(format!("weights have the shape {:?}, four dimensions are taken", tensor.shape)));
    };
    let x = c.assembly.at(input).clone();
    let (output, t) = c.output(op, format!("layers.{}.y", c.convs))?;
    let (cin, cout) = if is_depthwise { (i64::from(x.shape[2]), d3) } else { (i64::from(d3), d0) };
    if (is_depthwise && d0 != 1) || cin != i64::from(x.shape[2]) || i64::from(cout) != i64::from(output.shape[2]) {
        let why = format!("weights {:?} do not turn {} channels into {}", tensor.shape, x.shape[2], output.shape[2]);
        return Err(Stop::Why(why + " (groups are not supported)"));
    }
    let options = op.options.as_ref();
    let size = [kh, kw].map(|d| u32::try_from(d).unwrap_or(0));
    let window = window(options, size, &x, &output, padding.map_or(Padding::Named, Padding::Given))?;
    litert::check_conv(x.quant, &tensor.scales, output.quant)?;
    let limits = fused(options, is_depthwise, output.quant)?;
    let multiplier = is_depthwise.then(|| output.shape[2] / x.shape[2]);
    let spec = ConvSpec {
        bias: c.bias(op)?,
        name: c.next_conv(),
        input,
        window,
        multiplier,
        weights: Weights { source, bytes, channel_last: is_depthwise },
        w_scales: tensor.scales.clone(),
        output,
        limits,
        effective: Effective::Each,
        is_trainable: true,
    };
    let y = c.assembly.conv(spec)?;
    c.hold(t, y);
    Ok(())
}

fn fully_connected(c: &mut Converter, op: &Operator) -> Refused<()> {
    let x = c.image(op, 0)?;
    let (tensor, source, bytes) = c.constant(op, 1, TensorType::I8)?;
    let &[cout, cin] = &tensor.shape[..] else {
        return Err(Stop::Why(format!("weights have the shape {:?}, two dimensions are taken", tensor.shape)));
    };
    let (mut output, t) = c.output(op, format!("layers.{}.y", c.convs))?;
    let shape = output.shape;
    let (cin, cout) = (u32::try_from(cin).unwrap_or(0), u32::try_from(cout).unwrap_or(0));
    let elems = c.assembly.at(x).elems();
    // Each row of `cin` elements gives a row of `cout`.
    let rows = elems.checked_div(u64::from(cin)).filter(|r| r * u64::from(cin) == elems);
    let Some(rows) = rows.and_then(|r| u32::try_from(r).ok()).filter(|r| *r > 0) else {
        return Err(Stop::Why(format!("rows of {cin} do not divide an image of {elems} elements")));
    };
    let limits = fused_only(op, output.quant)?;
    litert::check_conv(c.assembly.at(x).quant, &tensor.scales, output.quant)?;
    let bias = c.bias(op)?;
    let name = c.next_conv();
    let flat = c.assembly.reshape(x, [1, rows, cin], &format!("{name}.x"))?;
    output.shape = [1, rows, cout];
    let spec = ConvSpec {
        input: flat,
        window: Window::POINT,
        multiplier: None,
        weights: Weights { source, bytes, channel_last: false },
        bias,
        w_scales: tensor.scales.clone(),
        output,
        limits,
        effective: Effective::Each,
        is_trainable: true,
        name: name.clone(),
    };
    let y = c.assembly.conv(spec)?;
    let y = c.assembly.reshape(y, shape, &format!("{name}.out"))?;
    c.hold(t, y);
    Ok(())
}

/// The activation where it is the first of the options: of sums and fully connected layers.
fn fused_only(op: &Operator, quant: Quant) -> Refused<Limits> {
    super::window::fused_at(op.options.as_ref(), 0, quant, Kernels::Xnnpack)
}

fn add(c: &mut Converter, op: &Operator) -> Refused<()> {
    let (a, b) = (c.image(op, 0)?, c.image(op, 1)?);
    let (output, t) = c.output(op, format!("op{}.sum", c.at))?;
    let limits = fused_only(op, output.quant)?;
    let [scale_a, scale_b] = [a, b].map(|x| c.assembly.at(x).quant.scale);
    let factors = litert::sum_factors(scale_a, scale_b, output.quant.scale)?;
    let y = c.assembly.add_up([a, b], factors, output, limits)?;
    c.hold(t, y);
    Ok(())
}

fn average_pool(c: &mut Converter, op: &Operator) -> Refused<()> {
    pool(c, op, Pool::MeanAway)
}

fn max_pool(c: &mut Converter, op: &Operator) -> Refused<()> {
    pool(c, op, Pool::Max)
}

fn pool(c: &mut Converter, op: &Operator, kind: Pool) -> Refused<()> {
    let input = c.image(op, 0)?;
    let x = c.assembly.at(input).clone();
    let (output, t) = c.output(op, format!("op{}.pool", c.at))?;
    let options = op.options.as_ref();
    let size = super::window::pool_size(options)?;
    let window = window(options, size, &x, &output, Padding::Named)?;
    let overlaps = (0..2).all(|d| window.stride[d] <= window.size[d]);
    let kernels = if kind == Pool::Max && overlaps { Kernels::Xnnpack } else { Kernels::BuiltIn };
    let limits = super::window::fused_at(options, 5, output.quant, kernels)?;
    let y = c.assembly.pool(input, kind, window, output, limits)?;
    c.hold(t, y);
    Ok(())
}

/// A mean over height and width: a pool over the whole image.
fn mean(c: &mut Converter, op: &Operator) -> Refused<()> {
    let input = c.image(op, 0)?;
    let x = c.assembly.at(input).clone();
    let rank = c.tensor(op, 0)?.shape.len() as i32;
    let mut axes: Vec<i32> =
        c.ints(op, 1)?.into_iter().map(|a| if a < 0 { a.saturating_add(rank) } else { a }).collect();
    axes.sort_unstable();
    if rank != 4 || axes != [1, 2] {
        return Err(Stop::Why(format!(
            "a mean over the dimensions {axes:?} of {rank}; only height and width are taken"
        )));
    }
    let (mut output, t) = c.output(op, format!("op{}.mean", c.at))?;
    let shape = output.shape;
    output.shape = [1, 1, x.shape[2]];
    let window = Window::whole(x.shape);
    let line = litert::mean(x.quant, window.area(), output.quant);
    let y = c.assembly.sum_pool(input, window, line, output, Limits::ALL)?;
    let y = c.assembly.reshape(y, shape, &format!("op{}.out", c.at))?;
    c.hold(t, y);
    Ok(())
}

fn reshape(c: &mut Converter, op: &Operator) -> Refused<()> {
    let input = c.image(op, 0)?;
    let name = format!("op{}.shaped", c.at);
    let (output, t) = c.output(op, name.clone())?;
    if output.quant != c.assembly.at(input).quant {
        return Err(Stop::Why("it changes the quantisation".into()));
    }
    let y = c.assembly.reshape(input, output.shape, &name)?;
    c.hold(t, y);
    Ok(())
}

fn softmax(c: &mut Converter, op: &Operator) -> Refused<()> {
    let input = c.image(op, 0)?;
    let (output, t) = c.output(op, format!("op{}.softmax", c.at))?;
    let beta = super::window::beta(op.options.as_ref())?;
    if beta != 1.0 {
        return Err(Stop::Why(format!("its beta is {beta}, only 1 is taken")));
    }
    let y = c.assembly.softmax(input, output)?;
    c.hold(t, y);
    Ok(())
}

fn relu(c: &mut Converter, op: &Operator) -> Refused<()> {
    let (output, _) = c.output(op, String::new())?;
    let limits = super::window::limits(1, output.quant, Kernels::BuiltIn)?;
    change(c, op, limits, litert::relu)
}

fn relu6(c: &mut Converter, op: &Operator) -> Refused<()> {
    let (output, _) = c.output(op, String::new())?;
    let limits = super::window::limits(3, output.quant, Kernels::BuiltIn)?;
    change(c, op, limits, litert::relu)
}

/// Lines that, one after another, take an image to another quantisation; each with the one that it leads to.
type Lines = fn(Quant, Quant) -> Result<Vec<(Line, Quant)>, String>;

/// The image rescaled to the result's quantisation and clamped to limits.
fn change(c: &mut Converter, op: &Operator, limits: Limits, lines: Lines) -> Refused<()> {
    let mut input = c.image(op, 0)?;
    let (output, t) = c.output(op, format!("op{}.rescaled", c.at))?;
    let x = c.assembly.at(input).clone();
    if x.shape != output.shape {
        return Err(Stop::Why("it changes the shape".into()));
    }
    if x.quant != output.quant || limits != Limits::ALL {
        let lines = lines(x.quant, output.quant)?;
        for (i, (line, quant)) in lines.iter().enumerate() {
            let limits = if i + 1 == lines.len() { limits } else { Limits::ALL };
            let image = Image { quant: *quant, ..output.clone() };
            input = c.assembly.sum_pool(input, Window::POINT, *line, image, limits)?;
        }
    }
    c.hold(t, input);
    Ok(())
}

/// int8 to int8 of another scale; float to int8 only at the input, where it is taken away.
fn quantize(c: &mut Converter, op: &Operator) -> Refused<()> {
    change(c, op, Limits::ALL, |x, y| litert::change(x, y).map(|line| vec![(line, y)]))
}

/// Only at the end: the int8 numbers are the result.
fn dequantize(c: &mut Converter, op: &Operator) -> Refused<()> {
    let input = c.image(op, 0)?;
    match op.outputs[..] {
        [t] if c.file.outputs.contains(&t) => {
            c.hold(t, input);
            Ok(())
        }
        _ => Err(Stop::Why("it stands inside the model; the model must stay int8".into())),
    }
}

/// Padding by the zero point, which the convolutions behind it take up.
fn pad(c: &mut Converter, op: &Operator) -> Refused<()> {
    let input = c.image(op, 0)?;
    let (output, t) = c.output(op, String::new())?;
    let pads = c.ints(op, 1)?;
    let &[0, 0, top, bottom, left, right, 0, 0] = &pads[..] else {
        return Err(Stop::Why(format!("it pads by {pads:?}; only height and width of images are padded")));
    };
    let pads = [[top, bottom], [left, right]].map(|side| side.map(|p| u32::try_from(p).unwrap_or(u32::MAX)));
    let x = c.assembly.at(input);
    let sum = |d: usize| u64::from(x.shape[d]) + u64::from(pads[d][0]) + u64::from(pads[d][1]);
    if x.quant != output.quant || [0, 1].map(sum) != [0, 1].map(|d| u64::from(output.shape[d])) {
        return Err(Stop::Why("its result has not the padded size, or another quantisation".into()));
    }
    let mut readers = c.file.operators.iter().filter(|other| other.inputs.contains(&Some(t)));
    if c.file.outputs.contains(&t) || readers.any(|other| !CONVS.contains(&other.code)) {
        return Err(Stop::Why("something other than a convolution reads it".into()));
    }
    c.held[t] = Some(Held::Padded(input, pads));
    Ok(())
}
