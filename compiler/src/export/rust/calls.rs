//! One row a kernel: how generated code calls it.

use super::ExportError;
use super::params::{self, Window, image, kernel};
use super::slots::Slots;
use tinyforge_kernels::int8::{Bottleneck, BottleneckGrad, Conv, Quant, Stage};
use tinyforge_plan::Step;

/// A kernel of generated code.
struct Row {
    /// The kernel's name in plans.
    name: &'static str,
    /// Binds the operands and writes the call.
    call: fn(&mut Slots) -> Result<String, String>,
}

const ROWS: &[Row] = &[
    Row { name: "i8_conv2d", call: |s| forward(s, "i8_conv2d", false) },
    Row { name: "i8_depthwise", call: |s| forward(s, "i8_depthwise", true) },
    Row { name: "i8_bottleneck", call: bottleneck },
    Row { name: "i8_bottleneck_grad_update", call: bottleneck_grad_update },
    Row { name: "i8_add", call: |s| add(s, "i8_add") },
    Row { name: "i8_add_up", call: |s| add(s, "i8_add_up") },
    Row { name: "i8_avg_pool", call: |s| pool(s, "i8_avg_pool") },
    Row { name: "i8_avg_pool_away", call: |s| pool(s, "i8_avg_pool_away") },
    Row { name: "i8_sum_pool", call: sum_pool },
    Row { name: "i8_max_pool", call: |s| pool(s, "i8_max_pool") },
    Row { name: "i8_avg_pool_grad", call: |s| pool_grad(s, "i8_avg_pool_grad") },
    Row { name: "i8_max_pool_grad", call: |s| pool_grad(s, "i8_max_pool_grad") },
    Row { name: "i8_softmax", call: softmax },
    Row { name: "i8_cross_entropy", call: cross_entropy },
    Row { name: "i8_cross_entropy_grad", call: cross_entropy_grad },
    Row { name: "i8_scale_grad", call: scale_grad },
    Row { name: "i8_conv2d_grad_x", call: |s| grad_x(s, "i8_conv2d_grad_x") },
    Row { name: "i8_depthwise_grad_x", call: |s| grad_x(s, "i8_depthwise_grad_x") },
    Row { name: "i8_conv2d_grad_w_update", call: |s| grad_w_update(s, "i8_conv2d_grad_w_update", false) },
    Row { name: "i8_depthwise_grad_w_update", call: |s| grad_w_update(s, "i8_depthwise_grad_w_update", true) },
    Row { name: "i8_grad_b_update", call: grad_b_update },
    Row { name: "i8_conv2d_grad_w", call: |s| grad_w(s, "i8_conv2d_grad_w") },
    Row { name: "i8_depthwise_grad_w", call: |s| grad_w(s, "i8_depthwise_grad_w") },
    Row { name: "i8_grad_b", call: grad_b },
    Row { name: "i8_update", call: update_alone },
    Row { name: "assign", call: assign },
    Row { name: "zero", call: zero },
    Row { name: "add", call: f32_add },
    Row { name: "scale", call: f32_scale },
    Row { name: "fill", call: fill },
    Row { name: "reshape", call: copy },
];

/// The lines of one step.
pub(super) fn call(step: &Step, number: usize, base: u64) -> Result<String, ExportError> {
    let error = |why: String| ExportError::Kernel { kernel: step.kernel.clone(), label: step.label.clone(), why };
    let row = ROWS.iter().find(|r| r.name == step.kernel).ok_or_else(|| error(String::new()))?;
    let mut slots = Slots::new(step, number, base);
    let line = (row.call)(&mut slots).map_err(|why| error(format!(": {why}")))?;
    Ok(if line.is_empty() { line } else { format!("{}    {line};\n", slots.binding()) })
}

/// The dimensions of a convolution or a pooling, as a constant.
fn dims(s: &mut Slots, dims: Conv) -> String {
    s.dims("Conv", &format!("{dims:?}"))
}

/// A parameter struct as source.
fn source(params: impl std::fmt::Debug) -> String {
    format!("&k::{params:?}")
}

fn window<'a>(s: &Slots<'a>) -> Window<'a> {
    Window { step: s.step, prefix: "" }
}

fn forward(s: &mut Slots, name: &str, is_depthwise: bool) -> Result<String, String> {
    let (x, (taps, channels)) = (image(&s.step.args[0]), kernel(&s.step.args[1]));
    debug_assert_eq!(is_depthwise, s.step.args[1].shape.len() == 3);
    let (conv, quant) = (window(s).conv(x, taps, channels), window(s).quant());
    let dims = dims(s, conv);
    let (x, w, bias, scale) = (s.arg(0, "x"), s.arg(1, "w"), s.arg(2, "bias"), s.arg(3, "scale"));
    let (y, mask) = (s.out(0, "y"), s.out_or_none(1, "mask"));
    let scratch = s.scratch(&format!("{name}_scratch_bytes"));
    Ok(format!(
        "k::{name}({dims}, {}, {x}, &k::Weights {{ w: {w}, bias: {bias}, scale: {scale} }}, {y}, {mask}, {scratch})",
        source(quant)
    ))
}

fn bottleneck(s: &mut Slots) -> Result<String, String> {
    let step = s.step;
    let stage = |prefix: &str, x: [usize; 4], w: usize| {
        let (window, (taps, channels)) = (Window { step, prefix }, kernel(&step.args[w]));
        Stage { conv: window.conv(x, taps, channels), quant: window.quant() }
    };
    let after = |Stage { conv, .. }: &Stage| [conv.images, conv.out_size[0], conv.out_size[1], conv.out_channels];
    let expand = stage("a_", image(&step.args[0]), 1);
    let depthwise = stage("b_", after(&expand), 4);
    let project = stage("c_", after(&depthwise), 7);
    let dims = parts(format!("{:?}", Bottleneck { expand: Some(expand), depthwise, project }));
    let dims = s.dims("Bottleneck", &dims);
    let over = s.lies_over();
    let images = match over {
        Some(lead) => format!("{lead}"),
        None => s.arg(0, "x"),
    };
    let mut weights = Vec::new();
    for (i, name) in [(1, "1"), (4, "2"), (7, "3")] {
        let [w, bias, scale] =
            [("w", i), ("bias", i + 1), ("scale", i + 2)].map(|(n, i)| s.arg(i, &format!("{n}{name}")));
        weights.push(format!("k::Weights {{ w: {w}, bias: {bias}, scale: {scale} }}"));
    }
    let (name, y) = match over {
        Some(_) => ("i8_bottleneck_overlay", s.out_over("images")),
        None => ("i8_bottleneck", s.out(0, "y")),
    };
    let scratch = s.scratch("i8_bottleneck_scratch_bytes");
    Ok(format!("k::{name}({dims}, {images}, &[{}], {y}, {scratch})", weights.join(", ")))
}

/// A parameter struct's source with the paths of the structs in it.
fn parts(mut source: String) -> String {
    for part in ["Stage", "Conv", "Quant"] {
        source = source.replace(&format!(" {part} {{"), &format!(" k::{part} {{"));
        source = source.replace(&format!("({part} {{"), &format!("(k::{part} {{"));
    }
    source
}

fn bottleneck_grad_update(s: &mut Slots) -> Result<String, String> {
    let (x, gc, (taps, inner)) = (image(&s.step.outs[0]), image(&s.step.args[3]), kernel(&s.step.args[5]));
    let depthwise = window(s).conv([x[0], x[1], x[2], inner], taps, inner);
    let dims = BottleneckGrad { depthwise, in_channels: x[3], out_channels: gc[3] };
    let dims = s.dims("BottleneckGrad", &parts(format!("{dims:?}")));
    let (hyper, rng) = (s.arg(12, "hyper"), s.arg(13, "rng"));
    let update = |factor: String, rate: usize, stream: i64| {
        format!("k::Update {{ lr: {hyper}[{rate}], factor: {factor}, stream: k::update_stream({rng}, {stream}) }}")
    };
    let hidden = |s: &mut Slots, at: usize, from: usize, stream: &str| {
        let (bias, mask) = (s.change(at, &format!("bias{}", at + 1)), s.arg(from, &format!("mask{}", at + 1)));
        let (scale, factor) = (s.arg(from + 1, "scale"), s.arg(from + 2, "factor"));
        let update = update(factor, 1, s.step.int(stream));
        format!("k::Hidden {{ mask: {mask}, scale: {scale}, bias: {bias}, update: {update} }}")
    };
    let (expand, depthwise) = (hidden(s, 0, 6, "stream1"), hidden(s, 1, 9, "stream2"));
    let expand_w = if s.step.int("train") == 1 {
        let (w, x, factor) = (s.change(2, "w"), s.arg(14, "x"), s.arg(15, "factor"));
        let (update, index) = (update(factor, 0, s.step.int("stream_w")), s.arg_or_none(16, "index"));
        let zero = s.step.int("zero_x");
        format!("k::Expand::Trained {{ w: {w}, update: {update}, x: {x}, zero: {zero}, index: {index} }}")
    } else {
        format!("k::Expand::Frozen({})", s.arg(2, "w"))
    };
    let (project_w, depthwise_w) = (s.arg(4, "w3"), s.arg(5, "w2"));
    let layers = format!(
        "&mut k::BottleneckLayers {{ project_w: {project_w}, depthwise_w: {depthwise_w}, depthwise: {depthwise}, \
         expand_w: {expand_w}, expand: {expand} }}"
    );
    let (gc, gx) = (s.arg(3, "gc"), s.out(0, "gx"));
    let scratch = s.scratch("i8_bottleneck_grad_update_scratch_bytes");
    Ok(format!("k::i8_bottleneck_grad_update({dims}, {gc}, {layers}, {gx}, {scratch})"))
}

fn add(s: &mut Slots, name: &str) -> Result<String, String> {
    let params = source(params::add(s.step));
    if s.in_place(0) {
        let (y, b, mask) = (s.out(0, "a"), s.arg(1, "b"), s.out_or_none(1, "mask"));
        return Ok(format!("k::{name}_to_a({params}, {y}, {b}, {mask})"));
    }
    if s.in_place(1) {
        let (a, y, mask) = (s.arg(0, "a"), s.out(0, "b"), s.out_or_none(1, "mask"));
        return Ok(format!("k::{name}_to_b({params}, {a}, {y}, {mask})"));
    }
    let (a, b, y, mask) = (s.arg(0, "a"), s.arg(1, "b"), s.out(0, "y"), s.out_or_none(1, "mask"));
    Ok(format!("k::{name}({params}, {a}, {b}, {y}, {mask})"))
}

/// The geometry of a pooling over images like `x`.
fn pool_dims(s: &Slots, x: [usize; 4]) -> Conv {
    window(s).conv(x, [s.step.size("kh"), s.step.size("kw")], x[3])
}

fn pool(s: &mut Slots, name: &str) -> Result<String, String> {
    let dims = pool_dims(s, image(&s.step.args[0]));
    let int = |name: &str| s.step.int(name) as i32;
    let quant = Quant { zero_x: int("zero"), zero_y: int("zero"), lo: int("lo"), hi: int("hi") };
    let (dims, x, y) = (self::dims(s, dims), s.arg(0, "x"), s.out(0, "y"));
    Ok(format!("k::{name}({dims}, {}, {x}, {y})", source(quant)))
}

fn sum_pool(s: &mut Slots) -> Result<String, String> {
    let dims = pool_dims(s, image(&s.step.args[0]));
    let (dims, params) = (self::dims(s, dims), source(params::sum_pool(s.step)));
    let (x, y, mask) = (s.arg(0, "x"), s.out(0, "y"), s.out_or_none(1, "mask"));
    Ok(format!("k::i8_sum_pool({dims}, {params}, {x}, {y}, {mask})"))
}

fn pool_grad(s: &mut Slots, name: &str) -> Result<String, String> {
    let dims = pool_dims(s, image(&s.step.outs[0]));
    let dims = self::dims(s, dims);
    let g = s.arg(0, "g");
    let x = if s.step.args.len() > 1 { format!("{}, ", s.arg(1, "x")) } else { String::new() };
    let gx = s.out(0, "gx");
    Ok(format!("k::{name}({dims}, {g}, {x}{gx})"))
}

fn softmax(s: &mut Slots) -> Result<String, String> {
    if s.in_place(0) {
        return Err("it runs in place here".to_string());
    }
    let (params, classes) = (source(params::softmax(s.step)), s.step.args[0].cols());
    let (x, y) = (s.arg(0, "x"), s.out(0, "y"));
    Ok(format!("k::i8_softmax({params}, {classes}, {x}, {y})"))
}

fn cross_entropy(s: &mut Slots) -> Result<String, String> {
    let params = source(params::cross_entropy(s.step));
    let (x, labels, weights, loss) = (s.arg(0, "x"), s.arg(1, "labels"), s.arg(2, "weights"), s.out(0, "loss"));
    Ok(format!("k::i8_cross_entropy({params}, {x}, {labels}, {weights}, {loss})"))
}

fn cross_entropy_grad(s: &mut Slots) -> Result<String, String> {
    let params = source(params::cross_entropy(s.step));
    let (x, labels, weights) = (s.arg(0, "x"), s.arg(1, "labels"), s.arg(2, "weights"));
    let (dloss, g) = (s.arg(3, "dloss"), s.out(0, "g"));
    Ok(format!("k::i8_cross_entropy_grad({params}, {x}, {labels}, {weights}, {dloss}, {g})"))
}

fn scale_grad(s: &mut Slots) -> Result<String, String> {
    let has_mask = s.step.int("has_mask") == 1;
    let copied = if s.in_place(0) { None } else { Some(s.arg(0, "from")) };
    let g = s.out(0, "g");
    let mask = if has_mask { format!("Some({})", s.arg(1, "mask")) } else { "None".to_string() };
    let scale = s.arg(1 + usize::from(has_mask), "scale");
    let copy = copied.map_or(String::new(), |from| format!("*{g} = *{from};\n    "));
    Ok(format!("{copy}k::i8_scale_grad({g}, {mask}, {scale})"))
}

fn grad_x(s: &mut Slots, name: &str) -> Result<String, String> {
    let (taps, channels) = kernel(&s.step.args[1]);
    let conv = window(s).conv(image(&s.step.outs[0]), taps, channels);
    let dims = dims(s, conv);
    let (gc, w, gx) = (s.arg(0, "gc"), s.arg(1, "w"), s.out(0, "gx"));
    let scratch = s.scratch(&format!("{name}_scratch_bytes"));
    Ok(format!("k::{name}({dims}, {gc}, {w}, {gx}, {scratch})"))
}

/// `k::Update { .. }` of operands from `factor` on; `rate` is the element of `hyper`.
fn update(s: &mut Slots, at: usize, rate: usize) -> String {
    let stream = s.step.int("stream");
    let (factor, hyper, rng) = (s.arg(at, "factor"), s.arg(at + 1, "hyper"), s.arg(at + 2, "rng"));
    format!("&k::Update {{ lr: {hyper}[{rate}], factor: {factor}, stream: k::update_stream({rng}, {stream}) }}")
}

/// What a call with states has more: the end of its name, and `&mut k::States { .. }` behind the update. Nothing where
/// the step keeps none.
fn states(s: &mut Slots) -> (&'static str, String) {
    let (momentum, has_error) = (s.step.float("momentum"), s.step.int("accumulate") == 1);
    let has_sum = momentum != 0.0;
    if !has_sum && !has_error {
        return ("", String::new());
    }
    let none = || "&mut []".to_string();
    let sum = if has_sum { s.change(1, "sum") } else { none() };
    let error = if has_error { s.change(1 + usize::from(has_sum), "error") } else { none() };
    ("_with", format!("&mut k::States {{ momentum: {momentum:?}, sum: {sum}, error: {error} }}, "))
}

fn grad_w_update(s: &mut Slots, name: &str, is_depthwise: bool) -> Result<String, String> {
    let (taps, channels) = kernel(&s.step.args[0]);
    debug_assert_eq!(is_depthwise, s.step.args[0].shape.len() == 3);
    let at = s.step.changes as usize;
    let (conv, zero) = (window(s).conv(image(&s.step.args[at + 1]), taps, channels), s.step.int("zero_x"));
    let dims = dims(s, conv);
    let (w, (with, states)) = (s.change(0, "w"), states(s));
    let (gc, x, update) = (s.arg(at, "gc"), s.arg(at + 1, "x"), update(s, at + 2, 0));
    let index = s.arg_or_none(at + 5, "index");
    let scratch = s.scratch(&format!("{}_scratch_bytes", name.trim_end_matches("_update")));
    let from = format!("&k::WeightGrad {{ zero: {zero}, gc: {gc}, x: {x}, index: {index} }}");
    Ok(format!("k::{name}{with}({dims}, {from}, {update}, {states}{w}, {scratch})"))
}

/// A weight's gradient alone, where a step has several examples.
fn grad_w(s: &mut Slots, name: &str) -> Result<String, String> {
    let (gc, zero) = (image(&s.step.args[0]), s.step.int("zero_x"));
    let conv = window(s).conv(image(&s.step.args[1]), [s.step.size("kh"), s.step.size("kw")], gc[3]);
    let dims = dims(s, conv);
    let (gc, x, index, gw) = (s.arg(0, "gc"), s.arg(1, "x"), s.arg_or_none(2, "index"), s.out(0, "gw"));
    let scratch = s.scratch(&format!("{name}_scratch_bytes"));
    let from = format!("&k::WeightGrad {{ zero: {zero}, gc: {gc}, x: {x}, index: {index} }}");
    Ok(format!("k::{name}({dims}, {from}, {gw}, {scratch})"))
}

fn grad_b(s: &mut Slots) -> Result<String, String> {
    let (gc, gb) = (s.arg(0, "gc"), s.out(0, "gb"));
    Ok(format!("k::i8_grad_b({gc}, {gb})"))
}

/// The update from a gradient that is there.
fn update_alone(s: &mut Slots) -> Result<String, String> {
    let w = &s.step.args[0];
    let (is_bias, cols) = (w.shape.len() == 1, w.cols());
    let shape = match (s.step.int("channel_last") == 1, is_bias) {
        (true, _) => format!("ChannelLast {{ channels: {cols} }}"),
        (false, true) => format!("ChannelFirst {{ channels: {cols}, inner: 1 }}"),
        (false, false) => format!("ChannelFirst {{ channels: {}, inner: {cols} }}", w.shape[0]),
    };
    let at = s.step.changes as usize;
    let (w, (with, states)) = (s.change(0, "w"), states(s));
    let (g, update) = (s.arg(at, "g"), update(s, at + 1, usize::from(is_bias)));
    let (index, kernel) = (s.arg_or_none(at + 4, "index"), if is_bias { "i32_update" } else { "i8_update" });
    Ok(format!("k::{kernel}{with}(k::Shape::{shape}, {update}, {states}{w}, {g}, {index})"))
}

fn grad_b_update(s: &mut Slots) -> Result<String, String> {
    let at = s.step.changes as usize;
    let (bias, (with, states)) = (s.change(0, "bias"), states(s));
    let (gc, update) = (s.arg(at, "gc"), update(s, at + 1, 1));
    Ok(format!("k::i8_grad_b_update{with}({update}, {states}{gc}, {bias})"))
}

fn f32_add(s: &mut Slots) -> Result<String, String> {
    if s.in_place(0) {
        let (a, b) = (s.out(0, "a"), s.arg(1, "b"));
        return Ok(format!("k::f32_add_to({a}, {b})"));
    }
    if s.in_place(1) {
        // Addition of two numbers commutes, bit for bit.
        let (a, b) = (s.arg(0, "a"), s.out(0, "b"));
        return Ok(format!("k::f32_add_to({b}, {a})"));
    }
    let (a, b, y) = (s.arg(0, "a"), s.arg(1, "b"), s.out(0, "y"));
    Ok(format!("k::f32_add({a}, {b}, {y})"))
}

fn f32_scale(s: &mut Slots) -> Result<String, String> {
    let factor = format!("{:?}", s.step.float("scale"));
    if s.in_place(0) {
        let x = s.out(0, "x");
        return Ok(format!("k::f32_scale_in_place({factor}, {x})"));
    }
    let (x, y) = (s.arg(0, "x"), s.out(0, "y"));
    Ok(format!("k::f32_scale({factor}, {x}, {y})"))
}

fn fill(s: &mut Slots) -> Result<String, String> {
    let value = format!("{:?}", s.step.float("value"));
    let y = s.out(0, "y");
    Ok(format!("{y}.fill({value})"))
}

/// Nothing where the state is what was computed in its place.
fn assign(s: &mut Slots) -> Result<String, String> {
    let args = &s.step.args;
    if args[0].offset == args[1].offset {
        return Ok(String::new());
    }
    let (state, x) = (s.change(0, "state"), s.arg(1, "x"));
    Ok(format!("*{state} = *{x}"))
}

fn zero(s: &mut Slots) -> Result<String, String> {
    let state = s.change(0, "state");
    Ok(format!("{state}.fill(Default::default())"))
}

/// Nothing in place.
fn copy(s: &mut Slots) -> Result<String, String> {
    if s.in_place(0) {
        return Ok(String::new());
    }
    let (x, y) = (s.arg(0, "x"), s.out(0, "y"));
    Ok(format!("*{y} = *{x}"))
}
