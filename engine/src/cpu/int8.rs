//! The int8 family. One thread: the images are small, and the sums' order is the kernels' own.

use super::call::Call;
use super::conv::image;
use super::{Kernel, KernelError, Query, plain};
use tinyforge_kernels::int8::{
    self as k, Add, Bottleneck, BottleneckGrad, BottleneckLayers, Conv, CrossEntropy, Expand, Hidden, Quant, Shape,
    Softmax, Stage, States, SumPool, Update, WeightGrad, Weights, update_stream,
};
use tinyforge_plan::Step;

pub(super) const KERNELS: &[Kernel] = &[
    Kernel { name: "i8_conv2d", run: conv2d, scratch: |q| Ok(k::i8_conv2d_scratch_bytes(&q.dims(0, Some(1), None))) },
    Kernel {
        name: "i8_depthwise",
        run: depthwise,
        scratch: |q| Ok(k::i8_depthwise_scratch_bytes(&q.dims(0, Some(1), None))),
    },
    plain("i8_scale_grad", scale_grad),
    plain("i8_grad_b", |c| {
        k::i8_grad_b(c.arg(0), c.out(0));
        Ok(())
    }),
    Kernel {
        name: "i8_conv2d_grad_x",
        run: conv2d_grad_x,
        scratch: |q| Ok(k::i8_conv2d_grad_x_scratch_bytes(&q.grad_x())),
    },
    Kernel {
        name: "i8_depthwise_grad_x",
        run: depthwise_grad_x,
        scratch: |q| Ok(k::i8_depthwise_grad_x_scratch_bytes(&q.grad_x())),
    },
    Kernel {
        name: "i8_conv2d_grad_w",
        run: conv2d_grad_w,
        scratch: |q| Ok(k::i8_conv2d_grad_w_scratch_bytes(&q.grad_w())),
    },
    Kernel {
        name: "i8_depthwise_grad_w",
        run: depthwise_grad_w,
        scratch: |q| Ok(k::i8_depthwise_grad_w_scratch_bytes(&q.grad_w())),
    },
    Kernel {
        name: "i8_conv2d_grad_w_update",
        run: conv2d_grad_w_update,
        scratch: |q| Ok(k::i8_conv2d_grad_w_scratch_bytes(&q.fused(q.kept()))),
    },
    Kernel {
        name: "i8_depthwise_grad_w_update",
        run: depthwise_grad_w_update,
        scratch: |q| Ok(k::i8_depthwise_grad_w_scratch_bytes(&q.fused(q.kept()))),
    },
    plain("i8_grad_b_update", |c| {
        let at = c.step.changes as usize;
        let (gc, update, bias) = (c.arg(at), update(c, at + 1, true), c.change(0));
        match states(c) {
            Some(mut states) => k::i8_grad_b_update_with(&update, &mut states, gc, bias),
            None => k::i8_grad_b_update(&update, gc, bias),
        }
        Ok(())
    }),
    plain("i8_update", i8_update),
    Kernel { name: "i8_bottleneck", run: bottleneck, scratch: |q| Ok(k::i8_bottleneck_scratch_bytes(&q.stages())) },
    Kernel {
        name: "i8_bottleneck_grad_update",
        run: bottleneck_grad_update,
        scratch: |q| {
            let shape = |i: usize| q.args[i].dims;
            let dims = bottleneck_grad(q.outs[0].dims, shape(3), shape(5), |name| q.size(name));
            if !k::i8_bottleneck_grad_update_supports(&dims) {
                return Err(format!("windows of {:?} are not supported", dims.depthwise.kernel));
            }
            Ok(k::i8_bottleneck_grad_update_scratch_bytes(&dims))
        },
    },
    plain("i8_add", |c| add(c, k::i8_add, k::i8_add_to_a, k::i8_add_to_b)),
    plain("i8_add_up", |c| add(c, k::i8_add_up, k::i8_add_up_to_a, k::i8_add_up_to_b)),
    plain("i8_softmax", |c| {
        let softmax = Softmax {
            scale_x: c.step.float("scale_x"),
            zero_x: int(c.step, "zero_x"),
            scale_y: c.step.float("scale_y"),
            zero_y: int(c.step, "zero_y"),
        };
        k::i8_softmax(&softmax, c.step.args[0].cols(), c.arg(0), c.out(0));
        Ok(())
    }),
    plain("i8_avg_pool", |c| {
        let (dims, quant) = pool(c.step);
        k::i8_avg_pool(&dims, &quant, c.arg(0), c.out(0));
        Ok(())
    }),
    plain("i8_avg_pool_away", |c| {
        let (dims, quant) = pool(c.step);
        k::i8_avg_pool_away(&dims, &quant, c.arg(0), c.out(0));
        Ok(())
    }),
    plain("i8_sum_pool", |c| {
        let step = c.step;
        let (dims, Quant { lo, hi, .. }) = pool(step);
        let sums = SumPool { scale: step.float("scale"), offset: step.float("offset"), lo, hi };
        k::i8_sum_pool(&dims, &sums, c.arg(0), c.out(0), mask(c));
        Ok(())
    }),
    plain("i8_max_pool", |c| {
        let (dims, quant) = pool(c.step);
        k::i8_max_pool(&dims, &quant, c.arg(0), c.out(0));
        Ok(())
    }),
    plain("i8_avg_pool_grad", |c| {
        k::i8_avg_pool_grad(&pool_grad(c.step), c.arg(0), c.out(0));
        Ok(())
    }),
    plain("i8_max_pool_grad", |c| {
        k::i8_max_pool_grad(&pool_grad(c.step), c.arg(0), c.arg(1), c.out(0));
        Ok(())
    }),
    plain("i8_cross_entropy", |c| {
        let (dims, labels) = (loss(c.step), labels(c)?);
        k::i8_cross_entropy(&dims, c.arg(0), labels, c.arg(2), c.out(0));
        Ok(())
    }),
    plain("i8_cross_entropy_grad", |c| {
        let (dims, labels) = (loss(c.step), labels(c)?);
        k::i8_cross_entropy_grad(&dims, c.arg(0), labels, c.arg(2), c.arg(3), c.out(0));
        Ok(())
    }),
];

fn int(step: &Step, name: &str) -> i32 {
    step.int(name) as i32
}

/// Dimensions from shapes: of the image read, of the image made, and of the window; moves by name.
fn dims(x: [usize; 4], y: [usize; 4], kernel: [usize; 2], size: impl Fn(&str) -> usize) -> Conv {
    Conv {
        images: x[0],
        in_size: [x[1], x[2]],
        in_channels: x[3],
        out_size: [y[1], y[2]],
        out_channels: y[3],
        kernel,
        stride: [size("stride_h"), size("stride_w")],
        pad: [size("pad_top"), size("pad_left")],
    }
}

/// Height and width of a weight `[O,R,S,I]`, or `[R,S,C]` of a depthwise convolution.
fn taps(w: &[u32]) -> [usize; 2] {
    let first = w.len() - 3;
    [w[first] as usize, w[first + 1] as usize]
}

impl Query<'_> {
    /// Where image and weight are operands, and the made image is a result unless it is an operand too.
    fn dims(&self, x: usize, w: Option<usize>, y: Option<usize>) -> Conv {
        let y = y.map_or_else(|| self.outs[0].dims, |y| self.args[y].dims);
        let kernel = w.map_or([self.size("kh"), self.size("kw")], |w| taps(self.args[w].dims));
        dims(image(self.args[x].dims), image(y), kernel, |name| self.size(name))
    }

    fn stages(&self) -> Bottleneck {
        stages(self.args.iter().map(|s| s.dims).collect(), self.outs[0].dims, |name| self.int(name))
    }

    fn grad_x(&self) -> Conv {
        dims(image(self.outs[0].dims), image(self.args[0].dims), taps(self.args[1].dims), |name| self.size(name))
    }

    fn grad_w(&self) -> Conv {
        self.dims(1, None, Some(0))
    }

    /// States that an update keeps.
    fn kept(&self) -> usize {
        usize::from(self.float("momentum") != 0.0) + self.size("accumulate")
    }

    fn fused(&self, kept: usize) -> Conv {
        self.dims(2 + kept, Some(0), Some(1 + kept))
    }
}

fn step_dims(step: &Step, x: &[u32], y: &[u32], kernel: [usize; 2]) -> Conv {
    dims(image(x), image(y), kernel, |name| step.size(name))
}

fn quant(step: &Step) -> Quant {
    Quant { zero_x: int(step, "zero_x"), zero_y: int(step, "zero_y"), lo: int(step, "lo"), hi: int(step, "hi") }
}

/// The mask, where the step has a second result.
fn mask<'a>(c: &mut Call<'a>) -> Option<&'a mut [u8]> {
    (c.step.outs.len() > 1).then(|| c.out(1))
}

type Forward = fn(&Conv, &Quant, &[i8], &Weights, &mut [i8], Option<&mut [u8]>, &mut [u8]);

fn forward(c: &mut Call, kernel: Forward) -> Result<(), KernelError> {
    let step = c.step;
    let dims = step_dims(step, &step.args[0].shape, &step.outs[0].shape, taps(&step.args[1].shape));
    let weights = Weights { w: c.arg(1), bias: c.arg(2), scale: c.arg(3) };
    let (x, y, mask, scratch) = (c.arg(0), c.out(0), mask(c), c.scratch());
    kernel(&dims, &quant(step), x, &weights, y, mask, scratch);
    Ok(())
}

fn conv2d(c: &mut Call) -> Result<(), KernelError> {
    forward(c, k::i8_conv2d)
}

fn depthwise(c: &mut Call) -> Result<(), KernelError> {
    forward(c, k::i8_depthwise)
}

/// The three convolutions of a bottleneck, from the shapes of `x, w1, .., w2, .., w3, ..` and of the result.
fn stages(args: Vec<&[u32]>, y: &[u32], int: impl Fn(&str) -> i64) -> Bottleneck {
    let get = |prefix: &str, name: &str| int(&format!("{prefix}{name}"));
    let stage = |prefix: &str, x: [usize; 4], y: [usize; 4], w: &[u32]| Stage {
        conv: dims(x, y, taps(w), |name| usize::try_from(get(prefix, name)).unwrap_or(0)),
        quant: Quant {
            zero_x: get(prefix, "zero_x") as i32,
            zero_y: get(prefix, "zero_y") as i32,
            lo: get(prefix, "lo") as i32,
            hi: get(prefix, "hi") as i32,
        },
    };
    let size = |prefix: &str, name: &str| usize::try_from(get(prefix, name)).unwrap_or(0);
    let (x, y) = (image(args[0]), image(y));
    let after = |prefix: &str, channels: u32| [x[0], size(prefix, "out_h"), size(prefix, "out_w"), channels as usize];
    let (first, second) = (after("a_", args[2][0]), after("b_", args[5][0]));
    Bottleneck {
        expand: Some(stage("a_", x, first, args[1])),
        depthwise: stage("b_", first, second, args[4]),
        project: stage("c_", second, y, args[7]),
    }
}

fn bottleneck(c: &mut Call) -> Result<(), KernelError> {
    let step = c.step;
    let shapes = step.args.iter().map(|t| t.shape.as_slice()).collect();
    let dims = stages(shapes, &step.outs[0].shape, |name| step.int(name));
    let weights = [1, 4, 7].map(|i| Weights { w: c.arg(i), bias: c.arg(i + 1), scale: c.arg(i + 2) });
    match c.maybe(0) {
        Some(x) => k::i8_bottleneck(&dims, x, &weights, c.out(0), c.scratch()),
        None => {
            let lead = (step.args[0].offset - step.outs[0].offset) as usize;
            k::i8_bottleneck_overlay(&dims, lead, &weights, c.out(0), c.scratch());
        }
    }
    Ok(())
}

/// How many bytes before its input a bottleneck's output must begin to lie over it.
pub(super) fn bottleneck_lead(q: &Query) -> usize {
    k::i8_bottleneck_lead_bytes(&q.stages())
}

/// From the shapes of the block's input, of the gradient that comes in, and of the depthwise weight.
fn bottleneck_grad(x: &[u32], gc: &[u32], w: &[u32], size: impl Fn(&str) -> usize) -> BottleneckGrad {
    let inner = w[2] as usize;
    let wide = |image: [usize; 4]| [image[0], image[1], image[2], inner];
    let (x, gc) = (image(x), image(gc));
    BottleneckGrad { depthwise: dims(wide(x), wide(gc), taps(w), size), in_channels: x[3], out_channels: gc[3] }
}

/// Operands `bias1, bias2, w1, gc, w3, w2, mask1, scale1, factor1, mask2, scale2, factor2, hyper, rng, x?, factor?,
/// index?`.
fn bottleneck_grad_update(c: &mut Call) -> Result<(), KernelError> {
    let step = c.step;
    let shape = |i: usize| step.args[i].shape.as_slice();
    let dims = bottleneck_grad(&step.outs[0].shape, shape(3), shape(5), |name| step.size(name));
    let (hyper, rng) = (c.arg::<f32>(12), c.arg::<u32>(13));
    let rng = [rng[0], rng[1], rng[2], rng[3]];
    let update = |factor, rate: usize, stream: &str| Update {
        lr: hyper[rate],
        factor,
        stream: update_stream(&rng, step.int(stream) as u32),
    };
    let mut hidden = |bias: usize, from: usize, stream: &str| Hidden {
        mask: c.arg(from),
        scale: c.arg(from + 1),
        update: update(c.arg(from + 2), 1, stream),
        bias: c.change(bias),
    };
    let (expand, depthwise) = (hidden(0, 6, "stream1"), hidden(1, 9, "stream2"));
    let expand_w = match step.int("train") == 1 {
        false => Expand::Frozen(c.arg(2)),
        true => Expand::Trained {
            update: update(c.arg(15), 0, "stream_w"),
            x: c.arg(14),
            zero: int(step, "zero_x"),
            index: (step.int("sub") == 1).then(|| c.arg(16)),
            w: c.change(2),
        },
    };
    let mut layers = BottleneckLayers { project_w: c.arg(4), depthwise_w: c.arg(5), depthwise, expand_w, expand };
    k::i8_bottleneck_grad_update(&dims, c.arg(3), &mut layers, c.out(0), c.scratch());
    Ok(())
}

/// The kernel works in place: what lies elsewhere is copied first.
fn scale_grad(c: &mut Call) -> Result<(), KernelError> {
    let has_mask = c.step.int("has_mask") == 1;
    let (g, mask, scale) = (c.maybe::<f32>(0), has_mask.then(|| c.arg(1)), c.arg(1 + usize::from(has_mask)));
    let gc = c.out::<f32>(0);
    if let Some(g) = g {
        gc.copy_from_slice(g);
    }
    k::i8_scale_grad(gc, mask, scale);
    Ok(())
}

type GradX = fn(&Conv, &[f32], &[i8], &mut [f32], &mut [u8]);

fn grad_x(c: &mut Call, kernel: GradX) -> Result<(), KernelError> {
    let step = c.step;
    let dims = step_dims(step, &step.outs[0].shape, &step.args[0].shape, taps(&step.args[1].shape));
    kernel(&dims, c.arg(0), c.arg(1), c.out(0), c.scratch());
    Ok(())
}

fn conv2d_grad_x(c: &mut Call) -> Result<(), KernelError> {
    grad_x(c, k::i8_conv2d_grad_x)
}

fn depthwise_grad_x(c: &mut Call) -> Result<(), KernelError> {
    grad_x(c, k::i8_depthwise_grad_x)
}

/// The operands of a weight's gradient, from `gc` on; the list of columns, where there is one, is operand `index`.
fn weight_grad<'a>(c: &Call<'a>, first: usize, index: usize) -> WeightGrad<'a> {
    let index = (c.step.int("sub") == 1).then(|| c.arg(index));
    WeightGrad { zero: int(c.step, "zero_x"), gc: c.arg(first), x: c.arg(first + 1), index }
}

type GradW = fn(&Conv, &WeightGrad, &mut [f32], &mut [u8]);

fn grad_w(c: &mut Call, kernel: GradW) -> Result<(), KernelError> {
    let step = c.step;
    let taps = [step.size("kh"), step.size("kw")];
    let dims = step_dims(step, &step.args[1].shape, &step.args[0].shape, taps);
    kernel(&dims, &weight_grad(c, 0, 2), c.out(0), c.scratch());
    Ok(())
}

fn conv2d_grad_w(c: &mut Call) -> Result<(), KernelError> {
    grad_w(c, k::i8_conv2d_grad_w)
}

fn depthwise_grad_w(c: &mut Call) -> Result<(), KernelError> {
    grad_w(c, k::i8_depthwise_grad_w)
}

/// The operands `factor, hyper, rng` from `after` on.
fn update<'a>(c: &Call<'a>, after: usize, is_bias: bool) -> Update<'a> {
    let (hyper, rng) = (c.arg::<f32>(after + 1), c.arg::<u32>(after + 2));
    let rng = [rng[0], rng[1], rng[2], rng[3]];
    let stream = update_stream(&rng, c.step.int("stream") as u32);
    Update { lr: hyper[usize::from(is_bias)], factor: c.arg(after), stream }
}

/// What the update keeps of the trained elements: the operands behind the one it moves.
fn states<'a>(c: &mut Call<'a>) -> Option<States<'a>> {
    let (momentum, has_error) = (c.step.float("momentum"), c.step.int("accumulate") == 1);
    let has_sum = momentum != 0.0;
    if !has_sum && !has_error {
        return None;
    }
    let sum = if has_sum { c.change(1) } else { &mut [] };
    let error = if has_error { c.change(1 + usize::from(has_sum)) } else { &mut [] };
    Some(States { momentum, sum, error })
}

type GradWUpdate = fn(&Conv, &WeightGrad, &Update, &mut [i8], &mut [u8]);
type GradWUpdateWith = fn(&Conv, &WeightGrad, &Update, &mut States, &mut [i8], &mut [u8]);

fn grad_w_update(c: &mut Call, kernel: GradWUpdate, with_states: GradWUpdateWith) -> Result<(), KernelError> {
    let (step, at) = (c.step, c.step.changes as usize);
    let dims = step_dims(step, &step.args[at + 1].shape, &step.args[at].shape, taps(&step.args[0].shape));
    let (from, update) = (weight_grad(c, at, at + 5), update(c, at + 2, false));
    let (w, states, scratch) = (c.change(0), states(c), c.scratch());
    match states {
        Some(mut states) => with_states(&dims, &from, &update, &mut states, w, scratch),
        None => kernel(&dims, &from, &update, w, scratch),
    }
    Ok(())
}

fn conv2d_grad_w_update(c: &mut Call) -> Result<(), KernelError> {
    grad_w_update(c, k::i8_conv2d_grad_w_update, k::i8_conv2d_grad_w_update_with)
}

fn depthwise_grad_w_update(c: &mut Call) -> Result<(), KernelError> {
    grad_w_update(c, k::i8_depthwise_grad_w_update, k::i8_depthwise_grad_w_update_with)
}

fn i8_update(c: &mut Call) -> Result<(), KernelError> {
    let (w, at) = (&c.step.args[0], c.step.changes as usize);
    let shape = match c.step.int("channel_last") == 1 {
        true => Shape::ChannelLast { channels: w.cols() },
        false => {
            Shape::ChannelFirst { channels: w.shape[0] as usize, inner: if w.shape.len() == 1 { 1 } else { w.cols() } }
        }
    };
    let index = (c.step.int("sub") == 1).then(|| c.arg::<i32>(at + 4));
    let is_bias = w.shape.len() == 1;
    let (g, update, states) = (c.arg(at), update(c, at + 1, is_bias), states(c));
    match (is_bias, states) {
        (true, None) => k::i32_update(shape, &update, c.change(0), g, index),
        (false, None) => k::i8_update(shape, &update, c.change(0), g, index),
        (true, Some(mut states)) => k::i32_update_with(shape, &update, &mut states, c.change(0), g, index),
        (false, Some(mut states)) => k::i8_update_with(shape, &update, &mut states, c.change(0), g, index),
    }
    Ok(())
}

/// Where a sum writes which results were not clamped.
type Mask<'a> = Option<&'a mut [u8]>;

/// Calls the sum's kernel for where the result lies: apart, over the first operand, over the second.
fn add(
    c: &mut Call,
    apart: fn(&Add, &[i8], &[i8], &mut [i8], Mask),
    to_a: fn(&Add, &mut [i8], &[i8], Mask),
    to_b: fn(&Add, &[i8], &mut [i8], Mask),
) -> Result<(), KernelError> {
    let step = c.step;
    let add = Add {
        ra: step.float("ra"),
        rb: step.float("rb"),
        zero_a: int(step, "zero_a"),
        zero_b: int(step, "zero_b"),
        zero_y: int(step, "zero_y"),
        lo: int(step, "lo"),
        hi: int(step, "hi"),
    };
    let (a, b, y, mask) = (c.maybe(0), c.maybe(1), c.out(0), mask(c));
    match (a, b) {
        (Some(a), Some(b)) => apart(&add, a, b, y, mask),
        (None, Some(b)) => to_a(&add, y, b, mask),
        (Some(a), None) => to_b(&add, a, y, mask),
        (None, None) => return Err(c.error("both operands lie where the result lies")),
    }
    Ok(())
}

fn pool(step: &Step) -> (Conv, Quant) {
    let zero = int(step, "zero");
    let dims = step_dims(step, &step.args[0].shape, &step.outs[0].shape, [step.size("kh"), step.size("kw")]);
    (dims, Quant { zero_x: zero, zero_y: zero, lo: int(step, "lo"), hi: int(step, "hi") })
}

fn pool_grad(step: &Step) -> Conv {
    step_dims(step, &step.outs[0].shape, &step.args[0].shape, [step.size("kh"), step.size("kw")])
}

fn loss(step: &Step) -> CrossEntropy {
    CrossEntropy { classes: step.args[0].cols(), scale: step.float("scale"), zero: int(step, "zero") }
}

/// The labels, all of them classes or negative.
fn labels<'a>(c: &Call<'a>) -> Result<&'a [i32], KernelError> {
    let (labels, classes) = (c.arg::<i32>(1), c.step.args[0].cols() as i64);
    match labels.iter().find(|&&l| i64::from(l) >= classes) {
        Some(label) => Err(c.error(format!("label {label} is none of {classes} classes"))),
        None => Ok(labels),
    }
}
