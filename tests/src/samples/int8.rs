//! Samples of the int8 family.

use super::{Fill, Maker, Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::Value;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_plan::DType;

/// Samples of this family's ops.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    let bottlenecks = [bottleneck(op, z), bottleneck_grad(op, z)].concat();
    [convolutions(op, z), scaled(op, z), bottlenecks, sums(op, z), pools(op, z), losses(op, z), updates(op, z)].concat()
}

/// A convolution: what moves over the image, and its channels.
#[derive(Clone, Copy)]
struct Conv {
    /// Height and width of the image.
    image: [u32; 2],
    ins: u32,
    /// Output channels, or the multiplier of a depthwise convolution.
    outs: u32,
    is_depthwise: bool,
    kernel: [u32; 2],
    stride: [u32; 2],
    pad: [u32; 2],
    out: [u32; 2],
}

type Attrs = Vec<(&'static str, Attr)>;

impl Conv {
    /// With `pad` on all sides.
    fn new(image: [u32; 2], channels: [u32; 2], kernel: [u32; 2], stride: [u32; 2], pad: [u32; 2]) -> Conv {
        let out = |d: usize| (image[d] + 2 * pad[d] - kernel[d]) / stride[d] + 1;
        let [ins, outs] = channels;
        Conv { image, ins, outs, is_depthwise: false, kernel, stride, pad, out: [out(0), out(1)] }
    }

    fn depthwise(self, multiplier: u32) -> Conv {
        Conv { outs: multiplier, is_depthwise: true, ..self }
    }

    fn out_channels(&self) -> u32 {
        if self.is_depthwise { self.ins * self.outs } else { self.outs }
    }

    fn weight(&self) -> Vec<u32> {
        let [r, s] = self.kernel;
        if self.is_depthwise { vec![r, s, self.out_channels()] } else { vec![self.outs, r, s, self.ins] }
    }

    fn x(&self, n: u32) -> [u32; 4] {
        [n, self.image[0], self.image[1], self.ins]
    }

    fn y(&self, n: u32) -> [u32; 4] {
        [n, self.out[0], self.out[1], self.out_channels()]
    }

    fn window(&self) -> Attrs {
        let lens = [self.stride, self.pad, self.out];
        let names = [["stride_h", "stride_w"], ["pad_top", "pad_left"], ["out_h", "out_w"]];
        names.iter().flatten().copied().zip(lens.iter().flatten().map(|&len| len.into())).collect()
    }

    fn multiplier(&self) -> Attrs {
        if self.is_depthwise { vec![("multiplier", self.outs.into())] } else { vec![] }
    }

    /// Factors that leave most results inside int8, and some not.
    fn scale(&self) -> Fill {
        let terms = self.kernel[0] * self.kernel[1] * if self.is_depthwise { 1 } else { self.ins };
        let spread = 74.0 * 73.0 * f64::from(terms).sqrt();
        Fill::Within(40.0 / spread, 80.0 / spread)
    }

    /// `w, bias, scale`.
    fn parameters(&self, m: &mut Maker) -> Vec<Value> {
        let outs = self.out_channels();
        let w = m.trained(Type::new(DType::I8, &self.weight()), Fill::Whole(-127, 127));
        let bias = m.trained(Type::i32(&[outs]), Fill::Whole(-5000, 5000));
        vec![w, bias, m.given(&[outs], self.scale())]
    }
}

fn image(m: &mut Maker, shape: &[u32]) -> Value {
    m.trained(Type::new(DType::I8, shape), Fill::Whole(-128, 127))
}

/// Sides of an image: not equal, small.
fn sides(z: Size) -> [u32; 2] {
    [z.t.min(9) + 3, z.t.min(9) + 4]
}

fn all(z: Size, is_depthwise: bool) -> Vec<Conv> {
    let (c, o, image) = (z.k.min(33), z.n.min(33), sides(z));
    if is_depthwise {
        let conv = |kernel: u32, stride, pad| Conv::new(image, [z.k, 1], [kernel; 2], [stride; 2], [pad; 2]);
        return vec![
            conv(3, 1, 1).depthwise(1),
            conv(3, 2, 1).depthwise(1),
            Conv { pad: [0, 1], ..Conv::new(image, [c, 1], [3, 2], [2, 1], [1, 1]) }.depthwise(2),
            conv(4, 1, 0).depthwise(1),
            Conv::new(image, [c, 1], [5, 3], [1, 2], [2, 1]).depthwise(3),
        ];
    }
    vec![
        Conv::new([3, 2], [z.k, z.n], [1, 1], [1, 1], [0, 0]),
        Conv::new([1, 1], [z.k, z.n], [1, 1], [1, 1], [0, 0]),
        Conv::new(image, [c, o], [3, 3], [1, 1], [1, 1]),
        // What is padded only at the end: the last windows reach over the image's edge.
        Conv { pad: [0, 0], ..Conv::new(image, [3, o], [3, 3], [2, 2], [1, 1]) },
        Conv::new(image, [c, 3], [4, 2], [3, 1], [2, 0]),
    ]
}

fn convolutions(op: Op, z: Size) -> Vec<Sample> {
    let is_depthwise = match op {
        Op::I8Conv2d | Op::I8Conv2dGradX | Op::I8Conv2dGradW | Op::I8Conv2dGradWUpdate => false,
        Op::I8Depthwise | Op::I8DepthwiseGradX | Op::I8DepthwiseGradW | Op::I8DepthwiseGradWUpdate => true,
        _ => return vec![],
    };
    let convs = all(z, is_depthwise);
    let plain = convs.iter().flat_map(|&c| [convolution(op, z, c, false), convolution(op, z, c, true)]);
    let is_update = matches!(op, Op::I8Conv2dGradWUpdate | Op::I8DepthwiseGradWUpdate);
    let kept = convs.iter().zip(KEPT.iter().cycle()).filter(|_| is_update);
    plain.chain(kept.map(|(&c, &kept)| fused_update(op, z, c, true, kept))).collect()
}

/// What an update keeps: momentum, and whether the error of rounding.
type Kept = (f64, bool);

const NOTHING: Kept = (0.0, false);
const KEPT: [Kept; 3] = [(0.0, true), (0.75, false), (0.75, true)];

fn kept_attrs((momentum, has_error): Kept) -> Attrs {
    vec![("momentum", momentum.into()), ("accumulate", has_error.into())]
}

/// The states of a tensor whose trained elements have this shape.
fn states(m: &mut Maker, (momentum, has_error): Kept, trained: &[u32]) -> Vec<Value> {
    let sum = (momentum != 0.0).then(|| m.state(Type::f32(trained), Fill::Real));
    let error = has_error.then(|| m.state(Type::f32(trained), Fill::Within(-0.5, 0.5)));
    sum.into_iter().chain(error).collect()
}

/// The update of a convolution's weight with the gradient in it, of some of the columns with `sub`.
fn fused_update(op: Op, z: Size, c: Conv, sub: bool, kept: Kept) -> Sample {
    let mut attrs = [c.window(), vec![("zero_x", Attr::Int(-3))], c.multiplier(), kept_attrs(kept)].concat();
    attrs.extend([("sub", sub.into()), ("stream", 7u32.into())]);
    let columns = some_columns(*c.weight().last().expect("a weight has dimensions"));
    one(op, z, &attrs, |m| {
        let w = m.state(Type::new(DType::I8, &c.weight()), Fill::Whole(-127, 127));
        let mut trained = c.weight();
        if sub {
            *trained.last_mut().expect("a weight has dimensions") = columns.len() as u32;
        }
        let mut args = vec![w];
        args.extend(states(m, kept, &trained));
        args.extend([m.real(&c.y(z.rows)), image(m, &c.x(z.rows))]);
        args.extend(update_operands(m, c.out_channels()));
        args.extend(sub.then(|| m.ints(columns.len() as u32, Fill::Values(columns))));
        args
    })
}

/// Some of the columns of a weight, in no order.
fn some_columns(count: u32) -> Vec<f64> {
    (0..count).rev().filter(|c| c % 3 != 1).map(f64::from).collect()
}

/// `optional` adds the mask, or the list of trained columns.
fn convolution(op: Op, z: Size, c: Conv, optional: bool) -> Sample {
    let mut attrs = [c.window(), vec![("zero_x", Attr::Int(-3))], c.multiplier()].concat();
    let columns = some_columns(*c.weight().last().expect("a weight has dimensions"));
    let list = move |m: &mut Maker, args: &mut Vec<Value>| {
        if optional {
            args.push(m.ints(columns.len() as u32, Fill::Values(columns)));
        }
    };
    match op {
        Op::I8Conv2d | Op::I8Depthwise => {
            let clamp = if optional { (-100, 90) } else { (-128, 127) };
            attrs.extend([("zero_y", Attr::Int(5)), ("lo", clamp.0.into()), ("hi", clamp.1.into())]);
            attrs.push(("mask", optional.into()));
            one(op, z, &attrs, |m| [vec![image(m, &c.x(z.rows))], c.parameters(m)].concat())
        }
        Op::I8Conv2dGradX | Op::I8DepthwiseGradX => {
            attrs.extend([("h", c.image[0].into()), ("w", c.image[1].into())]);
            one(op, z, &attrs, |m| vec![m.real(&c.y(z.rows)), c.parameters(m)[0]])
        }
        Op::I8Conv2dGradW | Op::I8DepthwiseGradW => {
            attrs.extend([("kh", c.kernel[0].into()), ("kw", c.kernel[1].into()), ("sub", optional.into())]);
            one(op, z, &attrs, |m| {
                let mut args = vec![m.real(&c.y(z.rows)), image(m, &c.x(z.rows))];
                list(m, &mut args);
                args
            })
        }
        _ => fused_update(op, z, c, optional, NOTHING),
    }
}

/// `factor, hyper, rng`; the factor freezes some channels and makes others move far.
fn update_operands(m: &mut Maker, channels: u32) -> [Value; 3] {
    let factor = (0..channels).map(|o| [0.01, 0.0, 1.5, 40.0][o as usize % 4]).collect();
    let factor = m.given(&[channels], Fill::Values(factor));
    let hyper = m.given(&[4], Fill::Values(vec![0.05, 0.5, 0.0, 0.0]));
    let rng = m.input(Type::new(DType::U32, &[4]), Fill::Values(vec![4294967000.0, 17.0, 3.0, 0.0]));
    [factor, hyper, rng]
}

fn mask(m: &mut Maker, elems: u32) -> Value {
    m.input(Type::new(DType::U8, &[elems.div_ceil(8)]), Fill::Whole(0, 255))
}

fn scaled(op: Op, z: Size) -> Vec<Sample> {
    let shape = [z.rows, z.t.min(9), 2, z.n];
    match op {
        Op::I8ScaleGrad => {
            let make = |has_mask: bool| {
                one(op, z, &[("has_mask", has_mask.into())], |m| {
                    let mut args = vec![m.real(&shape)];
                    args.extend(has_mask.then(|| mask(m, shape.iter().product())));
                    args.push(m.given(&[z.n], Fill::Positive));
                    args
                })
            };
            vec![make(false), make(true)]
        }
        Op::I8GradB => vec![one(op, z, &[], |m| vec![m.real(&shape)])],
        Op::I8GradBUpdate => {
            let make = |kept: Kept| {
                one(op, z, &[kept_attrs(kept), vec![("stream", 2u32.into())]].concat(), |m| {
                    let bias = m.state(Type::i32(&[z.n]), Fill::Whole(-5000, 5000));
                    let kept = states(m, kept, &[z.n]);
                    [vec![bias], kept, vec![m.real(&shape)], update_operands(m, z.n).to_vec()].concat()
                })
            };
            vec![make(NOTHING), make(KEPT[0]), make(KEPT[1]), make(KEPT[2])]
        }
        _ => vec![],
    }
}

/// Three convolutions of which each reads what the one before gives.
fn bottleneck(op: Op, z: Size) -> Vec<Sample> {
    if op != Op::I8Bottleneck {
        return vec![];
    }
    let (c, wide, o, image_sides) = (z.k.min(17), z.n.min(33), z.n.min(9), sides(z));
    let make = |first: Conv, kernel: u32, stride: u32, pad: u32| {
        let second = Conv::new(first.out, [first.outs, 1], [kernel; 2], [stride; 2], [pad; 2]).depthwise(1);
        let third = Conv::new(second.out, [first.outs, o], [1, 1], [1, 1], [0, 0]);
        let parts = [first, second, third];
        let names = [
            ["a_stride_h", "a_stride_w", "a_pad_top", "a_pad_left", "a_out_h", "a_out_w"],
            ["b_stride_h", "b_stride_w", "b_pad_top", "b_pad_left", "b_out_h", "b_out_w"],
            ["c_stride_h", "c_stride_w", "c_pad_top", "c_pad_left", "c_out_h", "c_out_w"],
        ];
        let windows = parts.iter().zip(names);
        let mut attrs: Attrs =
            windows.flat_map(|(p, names)| names.into_iter().zip(p.window().into_iter().map(|w| w.1))).collect();
        attrs.extend([("a_zero_x", Attr::Int(-3)), ("a_zero_y", 5.into()), ("b_zero_x", 5.into())]);
        attrs.extend([("b_zero_y", Attr::Int(-128)), ("c_zero_x", Attr::Int(-128)), ("a_hi", 90.into())]);
        one(op, z, &attrs, |m| {
            let x = image(m, &first.x(z.rows));
            let rest: Vec<Value> = parts.iter().flat_map(|p| p.parameters(m)).collect();
            [vec![x], rest].concat()
        })
    };
    vec![
        make(Conv::new(image_sides, [c, wide], [1, 1], [1, 1], [0, 0]), 3, 1, 1),
        make(Conv::new(image_sides, [c, wide], [1, 1], [1, 1], [0, 0]), 5, 2, 2),
        make(Conv::new(image_sides, [3, wide], [3, 3], [2, 2], [1, 1]), 3, 1, 1),
    ]
}

/// The backward pass of three convolutions, the first of which trains all, some or none of its weight.
fn bottleneck_grad(op: Op, z: Size) -> Vec<Sample> {
    if op != Op::I8BottleneckGradUpdate {
        return vec![];
    }
    let (c, inner, o, image_sides) = (z.k.min(17), z.n.min(40), z.n.min(9), sides(z));
    let make = |kernel: u32, stride: u32, train: bool, sub: bool| {
        let b = Conv::new(image_sides, [inner, 1], [kernel; 2], [stride; 2], [kernel / 2; 2]).depthwise(1);
        let (x, wide, narrow) = ([z.rows, b.image[0], b.image[1], c], b.x(z.rows), b.y(z.rows));
        let gc = [narrow[0], narrow[1], narrow[2], o];
        let elems = |dims: &[u32]| dims.iter().product::<u32>();
        let mut attrs = b.window();
        attrs.extend([("h", b.image[0].into()), ("w", b.image[1].into()), ("zero_x", Attr::Int(-3))]);
        attrs.extend([("stream1", 4u32.into()), ("stream2", 5u32.into()), ("stream_w", 6u32.into())]);
        attrs.extend([("train", Attr::from(train)), ("sub", sub.into())]);
        one(op, z, &attrs, |m| {
            let bias = |m: &mut Maker| m.state(Type::i32(&[inner]), Fill::Whole(-5000, 5000));
            let w1 = Type::new(DType::I8, &[inner, 1, 1, c]);
            let mut args = vec![bias(m), bias(m), m.state(w1, Fill::Whole(-127, 127)), m.real(&gc)];
            args.push(image(m, &[o, 1, 1, inner]));
            args.push(image(m, &b.weight()));
            let [factor, hyper, rng] = update_operands(m, inner);
            for dims in [&wide, &narrow] {
                args.extend([mask(m, elems(dims)), m.given(&[inner], Fill::Positive), factor]);
            }
            args.extend([hyper, rng]);
            args.extend(train.then(|| image(m, &x)));
            args.extend(train.then_some(factor));
            let columns = some_columns(c);
            args.extend(sub.then(|| m.ints(columns.len() as u32, Fill::Values(columns))));
            args
        })
    };
    vec![make(3, 1, false, false), make(3, 2, true, false), make(5, 1, true, true)]
}

fn sums(op: Op, z: Size) -> Vec<Sample> {
    let shape = [z.rows, 2, 3, z.k];
    match op {
        Op::I8Add | Op::I8AddUp => {
            // Ties, and whole numbers of 21 bits.
            let rb = if op == Op::I8Add { 0.6 } else { f64::from((1 << 19) + 1) / f64::from(1 << 21) };
            let make = |mask: bool| {
                let attrs = [
                    ("ra", Attr::from(0.75)),
                    ("rb", rb.into()),
                    ("zero_a", Attr::Int(-4)),
                    ("zero_b", 9.into()),
                    ("zero_y", 2.into()),
                    ("hi", if mask { 70.into() } else { 127.into() }),
                    ("mask", mask.into()),
                ];
                one(op, z, &attrs, |m| vec![image(m, &shape), image(m, &shape)])
            };
            vec![make(false), make(true)]
        }
        Op::I8Softmax => {
            let attrs = [("scale_x", Attr::from(0.05)), ("zero_x", Attr::Int(7)), ("scale_y", (1.0 / 256.0).into())];
            let attrs = [&attrs[..], &[("zero_y", Attr::Int(-128))]].concat();
            vec![one(op, z, &attrs, |m| vec![image(m, &[z.rows, z.n])])]
        }
        _ => vec![],
    }
}

fn pools(op: Op, z: Size) -> Vec<Sample> {
    let image_sides = sides(z);
    let conv = |kernel: u32, stride: u32, pad: u32| {
        Conv::new(image_sides, [z.k, 1], [kernel; 2], [stride; 2], [pad; 2]).depthwise(1)
    };
    let whole = Conv::new(image_sides, [z.k, 1], image_sides, [1, 1], [0, 0]).depthwise(1);
    let make = |c: Conv| {
        let kernel = vec![("kh", Attr::from(c.kernel[0])), ("kw", c.kernel[1].into())];
        let mut attrs = [c.window(), kernel].concat();
        let side = [("h", Attr::from(c.image[0])), ("w", c.image[1].into())];
        let (x, y) = (c.x(z.rows), c.y(z.rows));
        match op {
            Op::I8AvgPool | Op::I8AvgPoolAway => {
                attrs.push(("zero", Attr::Int(-5)));
                one(op, z, &attrs, |m| vec![image(m, &x)])
            }
            Op::I8SumPool => {
                attrs.extend([("scale", Attr::from(0.7)), ("offset", 3.5.into()), ("hi", 90.into())]);
                attrs.push(("mask", true.into()));
                one(op, z, &attrs, |m| vec![image(m, &x)])
            }
            // No two elements of a window are equal, so that there is one largest.
            Op::I8MaxPool => one(op, z, &attrs, |m| {
                let apart = (0..x.iter().product::<u32>()).map(|i| f64::from((i * 89) % 251) - 125.0).collect();
                vec![m.trained(Type::new(DType::I8, &x), Fill::Values(apart))]
            }),
            Op::I8MaxPoolGrad => {
                attrs.extend(side);
                one(op, z, &attrs, |m| vec![m.real(&y), image(m, &x)])
            }
            _ => {
                attrs.extend(side);
                one(op, z, &attrs, |m| vec![m.real(&y)])
            }
        }
    };
    match op {
        Op::I8SumPool => vec![make(conv(1, 1, 0)), make(conv(2, 1, 0)), make(whole)],
        Op::I8AvgPool | Op::I8AvgPoolAway | Op::I8AvgPoolGrad | Op::I8MaxPool | Op::I8MaxPoolGrad => {
            vec![make(conv(2, 2, 0)), make(conv(3, 2, 1)), make(conv(3, 1, 1)), make(whole)]
        }
        _ => vec![],
    }
}

fn losses(op: Op, z: Size) -> Vec<Sample> {
    let attrs = [("scale", Attr::from(0.05)), ("zero", Attr::Int(-11))];
    match op {
        Op::I8CrossEntropy | Op::I8CrossEntropyGrad => vec![one(op, z, &attrs, |m| {
            let rows = z.rows + 1;
            let x = image(m, &[rows, 1, 1, z.n]);
            let mut args = vec![x, m.ints(rows, Fill::Labels(z.n)), m.given(&[rows], Fill::Positive)];
            args.extend((op == Op::I8CrossEntropyGrad).then(|| m.real(&[rows])));
            args
        })],
        _ => vec![],
    }
}

fn updates(op: Op, z: Size) -> Vec<Sample> {
    if op != Op::I8Update {
        return vec![];
    }
    let make = |shape: &[u32], is_last: bool, sub: bool, kept: Kept| {
        let attrs = [("stream", Attr::from(3u32)), ("sub", sub.into()), ("channel_last", is_last.into())];
        let attrs = [&attrs[..], &kept_attrs(kept)].concat();
        let columns = some_columns(*shape.last().expect("it has dimensions"));
        let channels = if is_last { shape[shape.len() - 1] } else { shape[0] };
        let dtype = if shape.len() == 1 { DType::I32 } else { DType::I8 };
        let mut trained = shape.to_vec();
        if sub {
            *trained.last_mut().expect("it has dimensions") = columns.len() as u32;
        }
        one(op, z, &attrs, |m| {
            let mut args = vec![m.state(Type::new(dtype, shape), Fill::Whole(-127, 127))];
            args.extend(states(m, kept, &trained));
            args.push(m.wide(&trained));
            args.extend(update_operands(m, channels));
            args.extend(sub.then(|| m.ints(columns.len() as u32, Fill::Values(columns))));
            args
        })
    };
    let (full, depthwise) = ([z.n, 3, 3, z.k], [3, 3, z.k]);
    vec![
        make(&full, false, false, NOTHING),
        make(&full, false, true, NOTHING),
        make(&depthwise, true, false, NOTHING),
        make(&depthwise, true, true, NOTHING),
        make(&[z.n], false, false, NOTHING),
        make(&full, false, true, KEPT[2]),
        make(&full, false, false, KEPT[0]),
        make(&depthwise, true, true, KEPT[1]),
        make(&[z.n], false, false, KEPT[2]),
    ]
}
