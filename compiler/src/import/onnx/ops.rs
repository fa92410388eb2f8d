//! Operators to ops of the table.
//!
//! Attributes and operands follow the version of the operator set where they moved from one to the other. What says the
//! same at inference is left out: dropout, identity, casts between floats.

use tinyforge_plan::Source;

use super::convert::{Converter, Held, Refused};
use super::schema::{ElemType, Node, Tensor, short};
use super::window::{self, Window};
use crate::ir::attrs::Attr;
use crate::ir::graph::{Kind, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;

/// A reader of one operator.
pub(super) type Read = for<'a> fn(&mut Converter<'a>, &'a Node<'a>) -> Refused<()>;

/// One row an operator.
pub(super) const OPERATORS: [(&str, Read); 27] = [
    ("Add", add),
    ("AveragePool", |c, node| pool(c, node, Op::AvgPool)),
    ("BatchNormalization", batch_norm),
    ("Cast", cast),
    ("Clip", clip),
    ("Constant", constant),
    ("Conv", conv),
    ("Div", |c, node| scaled(c, node, |k| 1.0 / k)),
    ("Dropout", same),
    ("Flatten", flatten),
    ("Gemm", gemm),
    ("GlobalAveragePool", global_average_pool),
    ("Identity", same),
    ("LogSoftmax", log_softmax),
    ("MatMul", mat_mul),
    ("MaxPool", |c, node| pool(c, node, Op::MaxPool)),
    ("Mul", |c, node| scaled(c, node, |k| k)),
    ("Pad", pad),
    ("ReduceMean", reduce_mean),
    ("Relu", |c, node| activation(c, node, Op::Relu)),
    ("Reshape", reshape),
    ("Softmax", softmax),
    ("Squeeze", squeeze),
    ("Sub", sub),
    ("Sum", add),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

/// The permutation of a Transpose.
pub(super) fn permutation<'n>(node: &'n Node) -> Option<&'n [i64]> {
    if node.op == "Transpose" { node.ints("perm") } else { None }
}

fn constant<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    match node.tensor("value") {
        Some(tensor) => c.hold(node, Held::Constant(tensor)),
        None => Err("only constants that are tensors are taken".into()),
    }
}

/// What says the same at inference.
fn same<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let held = c.held(node, 0)?;
    c.hold(node, held)
}

fn cast<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let to = ElemType(node.int("to", 0));
    if to != ElemType::F32 {
        return Err(format!("it casts to {}, f32 is taken", to.name()).into());
    }
    same(c, node)
}

fn activation<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, op: Op) -> Refused<()> {
    let x = c.value(node, 0)?;
    let name = format!("{}.{}", c.layer(), op.name());
    c.give(node, &name, op, &[x])
}

/// Limits of 0 and 6, or of 0 alone; constants, or attributes before version 11.
fn clip<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let mut limits = [node.float("min", f32::MIN), node.float("max", f32::MAX)];
    for (i, limit) in limits.iter_mut().enumerate() {
        if Converter::has(node, i + 1) {
            let tensor = c.constant(node, i + 1)?;
            *limit = c.floats(tensor)?.first().copied().ok_or("a limit is empty")?;
        }
    }
    match limits {
        [0.0, 6.0] => activation(c, node, Op::Relu6),
        [0.0, most] if most >= f32::MAX => activation(c, node, Op::Relu),
        [least, most] => Err(format!("it clips to {least}..{most}; 0..6 and 0.. are taken").into()),
    }
}

fn conv<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let (held, w) = (c.held(node, 0)?, c.constant(node, 1)?);
    let (x, around) = match held {
        Held::Padded(x, around) => (x, around),
        _ => (c.value(node, 0)?, [0; 4]),
    };
    let [_, channels, height, width] = c.image_dims(x)?;
    let &[o, i, r, s] = &w.dims[..] else {
        return Err(format!("weights have the shape {:?}, four dimensions are taken", w.dims).into());
    };
    let kernel = [window::len("weights", r)?, window::len("weights", s)?];
    let window = Window::of(node, kernel, [height, width], around)?;
    let groups = window::len("group", u64::try_from(node.int("group", 1)).unwrap_or(0))?;
    let shape = [window::len("weights", o)?, window::len("weights", i)?, kernel[0], kernel[1]];
    if u64::from(shape[1]) * u64::from(groups) != u64::from(channels) {
        let why = format!("weights {:?} in {groups} groups do not read {channels} channels", w.dims);
        return Err(why.into());
    }
    let bias = if Converter::has(node, 2) { Some(c.constant(node, 2)?) } else { None };
    let name = c.next_layer();
    let mut args = vec![x, c.weight(&format!("{name}.weight"), w, &shape, false)?];
    if let Some(bias) = bias {
        args.push(c.weight(&format!("{name}.bias"), bias, &shape[..1], false)?);
    }
    let attrs = [&window.attrs()[..], &[("groups", groups.into())]].concat();
    let y = c.push(&name, Op::Conv2d, &args, &attrs)?;
    c.hold(node, Held::Value(y))
}

/// Zeros around an image, for the convolution behind it.
fn pad<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let (x, _) = c.image(node, 0)?;
    if !matches!(node.text("mode", "constant"), "constant" | "") {
        return Err(format!("its mode is `{}`, constant zeros are taken", short(node.text("mode", ""))).into());
    }
    let value = match Converter::has(node, 2) {
        true => {
            let tensor = c.constant(node, 2)?;
            c.floats(tensor)?.first().copied().unwrap_or(0.0)
        }
        false => node.float("value", 0.0),
    };
    let pads = c.list(node, 1, "pads")?.ok_or("its pads are missing")?;
    let &[0, 0, top, left, 0, 0, bottom, right] = &pads[..] else {
        return Err(format!("pads {pads:?}; only height and width are padded").into());
    };
    if value != 0.0 || Converter::has(node, 3) {
        return Err(format!("it pads with {value}, or along axes that it names; zeros on every axis are taken").into());
    }
    let mut around = [0; 4];
    for (to, pad) in around.iter_mut().zip([top, left, bottom, right]) {
        *to = window::pad(pad)?;
    }
    c.hold(node, Held::Padded(x, around))
}

fn batch_norm<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    if node.int("training_mode", 0) != 0 {
        return Err("it is in training mode: export the model for inference".into());
    }
    let channels = c.builder.graph.ty(x).shape.get(1).copied().unwrap_or(0);
    let name = format!("{}.norm", c.layer());
    let mut args = Vec::new();
    for (i, part) in ["weight", "bias", "mean", "var"].into_iter().enumerate() {
        let tensor = c.constant(node, i + 1)?;
        args.push(c.weight(&format!("{name}.{part}"), tensor, &[channels], false)?);
    }
    let eps = f64::from(node.float("epsilon", 1e-5));
    let y = normalised(c, &name, x, &args, eps)?;
    c.hold(node, Held::Value(y))
}

/// A batch norm of an image, or of a vector as an image of 1 x 1.
fn normalised(c: &mut Converter, name: &str, x: Value, factors: &[Value], eps: f64) -> Refused<Value> {
    let shape = c.builder.graph.ty(x).shape.clone();
    let image = match shape[..] {
        [b, f] => reshaped(c, x, &[b, f, 1, 1])?,
        _ => x,
    };
    if !eps.is_finite() || eps < 0.0 {
        return Err(format!("its epsilon is {eps}").into());
    }
    let args = [&[image][..], factors].concat();
    let y = c.push(name, Op::BatchNormEval, &args, &[("eps", eps.into())])?;
    reshaped(c, y, &shape)
}

/// `y = w x + b` by channel, as a batch norm of mean 0 and variance 1.
fn affine(c: &mut Converter, x: Value, [w, b]: [Vec<f32>; 2]) -> Refused<Value> {
    let name = format!("{}.affine", c.layer());
    let ty = Type::f32(&[w.len() as u32]);
    let mut declare = |part: &str, source| c.declare(Kind::Weight, &format!("{name}.{part}"), ty.clone(), source);
    let factors = [
        declare("weight", Source::Table(w)),
        declare("bias", Source::Table(b)),
        declare("mean", Source::Zero),
        declare("var", Source::Fill(1.0)),
    ];
    normalised(c, &name, x, &factors, 0.0)
}

/// A value and a constant of one number, or of one a channel; which operand the constant is.
fn with_constant<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<Option<(Value, Vec<f32>, usize)>> {
    let held = [c.held(node, 0)?, c.held(node, 1)?];
    let (t, at) = match held {
        [Held::Constant(t), _] => (t, 0),
        [_, Held::Constant(t)] => (t, 1),
        _ => return Ok(None),
    };
    let x = c.value(node, 1 - at)?;
    let shape = c.builder.graph.ty(x).shape.clone();
    let channels = shape.get(1).copied().unwrap_or(0);
    if t.elems() == Some(1) {
        let value = c.floats(t)?[0];
        return Ok(Some((x, vec![value; channels as usize], at)));
    }
    // Aligned at the last dimension, as broadcasting does.
    let mut dims = vec![1; shape.len().saturating_sub(t.dims.len())];
    dims.extend(&t.dims);
    let by_channel = dims.len() == shape.len() && dims.get(1) == Some(&u64::from(channels));
    if !by_channel || t.elems() != Some(u64::from(channels)) {
        let why = format!("the constant `{}` is {:?}; one number, or one a channel, is taken", short(t.name), t.dims);
        return Err(why.into());
    }
    Ok(Some((x, c.floats(t)?, at)))
}

/// Sums of two images, or of a value and a constant.
fn add<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    if node.inputs.len() != 2 {
        return Err(format!("it adds {} operands, two are taken", node.inputs.len()).into());
    }
    if let Some((x, b, _)) = with_constant(c, node)? {
        let y = affine(c, x, [vec![1.0; b.len()], b])?;
        return c.hold(node, Held::Value(y));
    }
    let (a, b) = (c.value(node, 0)?, c.value(node, 1)?);
    let name = format!("{}.sum", c.layer());
    c.give(node, &name, Op::Add, &[a, b])
}

fn sub<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let Some((x, k, at)) = with_constant(c, node)? else { return Err("two computed values are subtracted".into()) };
    let factors = match at {
        1 => [vec![1.0; k.len()], k.iter().map(|k| -k).collect()],
        _ => [vec![-1.0; k.len()], k],
    };
    let y = affine(c, x, factors)?;
    c.hold(node, Held::Value(y))
}

/// A product or quotient of a value and a constant.
fn scaled<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, factor: fn(f32) -> f32) -> Refused<()> {
    let Some((x, k, at)) = with_constant(c, node)? else {
        return Err("two computed values are multiplied or divided (squeeze and excitation, gates)".into());
    };
    if node.op == "Div" && at == 0 {
        return Err("a constant is divided by a computed value".into());
    }
    let b = vec![0.0; k.len()];
    let y = affine(c, x, [k.into_iter().map(factor).collect(), b])?;
    c.hold(node, Held::Value(y))
}

fn pool<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, op: Op) -> Refused<()> {
    let (x, [_, _, height, width]) = c.image(node, 0)?;
    let &[r, s] = node.ints("kernel_shape").unwrap_or_default() else {
        return Err("its kernel_shape is not of two numbers".into());
    };
    let kernel = [r, s].map(|d| u64::try_from(d).unwrap_or(0));
    let kernel = [window::len("kernel_shape", kernel[0])?, window::len("kernel_shape", kernel[1])?];
    if node.outputs.len() > 1 && node.outputs[1..].iter().any(|name| !name.is_empty()) {
        return Err("it gives the indices of the largest as well".into());
    }
    let window = Window::of(node, kernel, [height, width], [0; 4])?;
    if op == Op::AvgPool && node.int("count_include_pad", 0) != 0 && window.is_padded() {
        return Err("its means count the padding: export it with count_include_pad=False".into());
    }
    let name = format!("{}.pool", c.layer());
    let sides = [("kernel", Attr::from(kernel[0])), ("kernel_w", kernel[1].into())];
    let y = c.push(&name, op, &[x], &[&window.attrs()[..], &sides].concat())?;
    c.hold(node, Held::Value(y))
}

fn global_average_pool<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    mean(c, node, true)
}

fn mean<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, keeps_dims: bool) -> Refused<()> {
    let (x, [b, channels, ..]) = c.image(node, 0)?;
    let name = format!("{}.mean", c.layer());
    let y = c.push(&name, Op::GlobalAvgPool, &[x], &[])?;
    let y = if keeps_dims { reshaped(c, y, &[b, channels, 1, 1])? } else { y };
    c.hold(node, Held::Value(y))
}

fn reduce_mean<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let mut axes = c.list(node, 1, "axes")?.unwrap_or_default();
    axes.iter_mut().for_each(|axis| *axis += if *axis < 0 { 4 } else { 0 });
    axes.sort_unstable();
    if axes != [2, 3] {
        return Err(format!("its axes are {axes:?}; the mean over height and width is taken").into());
    }
    mean(c, node, node.int("keepdims", 1) != 0)
}

/// The same elements in another shape; nothing where that is the shape.
fn reshaped(c: &mut Converter, x: Value, shape: &[u32]) -> Refused<Value> {
    if c.builder.graph.ty(x).shape == shape {
        return Ok(x);
    }
    let name = format!("{}.shape", c.layer());
    let attrs: Vec<(&str, Attr)> = ["d0", "d1", "d2", "d3"].into_iter().zip(shape.iter().map(|&d| d.into())).collect();
    if shape.len() > attrs.len() || shape.is_empty() {
        return Err(format!("its result has {} dimensions, up to four are taken", shape.len()).into());
    }
    c.push(&name, Op::Reshape, &[x], &attrs)
}

fn give_shape<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, x: Value, shape: &[u32]) -> Refused<()> {
    let y = reshaped(c, x, shape)?;
    c.hold(node, Held::Value(y))
}

fn flatten<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    let shape = c.builder.graph.ty(x).shape.clone();
    let axis = node.int("axis", 1);
    if axis != 1 && axis != 1 - shape.len() as i64 {
        return Err(format!("its axis is {axis}, 1 is taken").into());
    }
    let rest = shape[1..].iter().try_fold(1u32, |n, &d| n.checked_mul(d)).ok_or("the image is too large")?;
    give_shape(c, node, x, &[shape[0], rest])
}

/// A constant shape that keeps the batch.
fn reshape<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    let Some(wanted) = c.list(node, 1, "shape")? else { return Err("its shape is missing".into()) };
    let have = c.builder.graph.ty(x).shape.clone();
    let keeps_batch = match wanted.first() {
        Some(-1..=1) => true,
        first => first.is_some() && first == c.file_batch.as_ref(),
    };
    let why = || format!("{have:?} cannot take the shape {wanted:?} and keep the batch");
    if !keeps_batch {
        return Err(why().into());
    }
    let elems: u64 = have[1..].iter().map(|&d| u64::from(d)).product();
    let mut shape = vec![have[0]];
    for (i, &d) in wanted.iter().enumerate().skip(1) {
        let len = if d == 0 { have.get(i).map_or(0, |&d| i64::from(d)) } else { d };
        // 0 stands for the length that is not known yet.
        shape.push(if len == -1 { 0 } else { u32::try_from(len).map_err(|_| why())? });
    }
    let known = shape[1..].iter().filter(|&&d| d > 0).try_fold(1u64, |n, &d| n.checked_mul(d.into()));
    let known = known.ok_or_else(why)?;
    let rest = u32::try_from(elems / known).map_err(|_| why())?;
    let mut open = shape[1..].iter_mut().filter(|d| **d == 0);
    if let Some(d) = open.next() {
        *d = rest;
    }
    if open.next().is_some() || shape[1..].iter().map(|&d| u64::from(d)).product::<u64>() != elems {
        return Err(why().into());
    }
    give_shape(c, node, x, &shape)
}

/// Leaves out dimensions of length 1.
fn squeeze<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    let shape = c.builder.graph.ty(x).shape.clone();
    let rank = shape.len() as i64;
    let axes = match c.list(node, 1, "axes")? {
        Some(axes) => axes.into_iter().map(|a| if a < 0 { a + rank } else { a }).collect(),
        None => (1..rank).filter(|&a| shape[a as usize] == 1).collect::<Vec<_>>(),
    };
    if axes.iter().any(|&a| a < 1 || a >= rank || shape[a as usize] != 1) {
        return Err(format!("axes {axes:?} of {shape:?} are not of length 1, or the batch").into());
    }
    let kept: Vec<u32> = (0..rank).filter(|a| !axes.contains(a)).map(|a| shape[a as usize]).collect();
    give_shape(c, node, x, &kept)
}

/// Appends dimensions of length 1.
fn unsqueeze<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    let mut shape = c.builder.graph.ty(x).shape.clone();
    let axes = c.list(node, 1, "axes")?.unwrap_or_default();
    let rank = (shape.len() + axes.len()) as i64;
    let mut axes: Vec<i64> = axes.into_iter().map(|a| if a < 0 { a + rank } else { a }).collect();
    axes.sort_unstable();
    for axis in axes {
        match usize::try_from(axis).ok().filter(|&a| a >= 1 && a <= shape.len()) {
            Some(at) => shape.insert(at, 1),
            None => return Err(format!("axis {axis} of {shape:?} is the batch, or none").into()),
        }
    }
    give_shape(c, node, x, &shape)
}

/// Between images with channels first and channels last: only where the elements stay in their order, or the input
/// was declared for it.
fn transpose<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    if let (Held::ChannelsLast(x), Some(&[0, 3, 1, 2])) = (c.held(node, 0)?, permutation(node)) {
        return c.hold(node, Held::Value(x));
    }
    let x = c.value(node, 0)?;
    let shape = c.builder.graph.ty(x).shape.clone();
    let perm = permutation(node).unwrap_or_default();
    let is_known = perm.len() == shape.len() && perm.iter().all(|&p| usize::try_from(p).is_ok_and(|p| p < shape.len()));
    let long: Vec<i64> = perm.iter().copied().filter(|&p| is_known && shape[p as usize] != 1).collect();
    if !is_known || perm.first() != Some(&0) || !long.is_sorted() {
        return Err(format!("it permutes {shape:?} by {perm:?}; elements must stay in their order").into());
    }
    let shape: Vec<u32> = perm.iter().map(|&p| shape[p as usize]).collect();
    give_shape(c, node, x, &shape)
}

fn gemm<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let factors = [node.float("alpha", 1.0), node.float("beta", 1.0)];
    if factors != [1.0; 2] || node.int("transA", 0) != 0 {
        return Err(format!("alpha and beta are {factors:?}, or A is transposed; plain products are taken").into());
    }
    let bias = if Converter::has(node, 2) { Some(c.constant(node, 2)?) } else { None };
    linear(c, node, node.int("transB", 0) != 0, bias)
}

fn mat_mul<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    linear(c, node, false, None)
}

/// `y = x wᵀ + b`; `is_rows` where the file has a row an output.
fn linear<'a>(c: &mut Converter<'a>, node: &'a Node<'a>, is_rows: bool, bias: Option<&Tensor>) -> Refused<()> {
    let (x, w) = (c.value(node, 0)?, c.constant(node, 1)?);
    let ty = c.builder.graph.ty(x).clone();
    let (&[_, inputs], &[d0, d1]) = (&ty.shape[..], &w.dims[..]) else {
        return Err(format!("it multiplies {ty} with {:?}; vectors [N,F] and a matrix are taken", w.dims).into());
    };
    let (outs, ins) = if is_rows { (d0, d1) } else { (d1, d0) };
    if ins != u64::from(inputs) {
        return Err(format!("weights {:?} do not read {inputs} features", w.dims).into());
    }
    let outs = window::len("weights", outs)?;
    let name = c.next_layer();
    let mut args = vec![x, c.weight(&format!("{name}.weight"), w, &[outs, inputs], !is_rows)?];
    if let Some(bias) = bias {
        args.push(c.weight(&format!("{name}.bias"), bias, &[outs], false)?);
    }
    c.give(node, &name, Op::Linear, &args)
}

fn softmax<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    let rank = c.builder.graph.ty(x).shape.len();
    let axis = node.int("axis", if c.opset < 13 { 1 } else { -1 });
    if rank != 2 || ![1, -1].contains(&axis) {
        return Err(format!("it runs along axis {axis} of {rank}; the features of a vector [N,F] are taken").into());
    }
    let name = format!("{}.softmax", c.layer());
    c.give(node, &name, Op::Softmax, &[x])
}

/// Left out: it changes neither the order of classes nor the loss of what stands before it.
fn log_softmax<'a>(c: &mut Converter<'a>, node: &'a Node<'a>) -> Refused<()> {
    let x = c.value(node, 0)?;
    c.note("a log-softmax is left out: the result is its operand, the logits".to_owned());
    c.hold(node, Held::Value(x))
}
