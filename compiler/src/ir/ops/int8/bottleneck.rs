//! Three convolutions in a row whose inner images exist for a few rows at a time, and whose inner gradients exist for a
//! few channels at a time.

use super::super::def::{OpDef, ROW, Tensor, expect, expect_indices, list_len};
use super::conv::{self, Form, Forward, flops, out_type};
use super::{Clamp, Window, check_zero, image, mask_type, must_be, update};
use crate::ir::attrs::{Attr, AttrDef, Attrs, int};
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// The attributes of one convolution, each name behind a prefix.
macro_rules! prefixed {
    ($($prefix:literal),*) => {
        &[$(
            int(concat!($prefix, "stride_h"), 1), int(concat!($prefix, "stride_w"), 1),
            int(concat!($prefix, "pad_top"), 0), int(concat!($prefix, "pad_left"), 0),
            int(concat!($prefix, "out_h"), 1), int(concat!($prefix, "out_w"), 1),
            int(concat!($prefix, "zero_x"), 0), int(concat!($prefix, "zero_y"), 0),
            int(concat!($prefix, "lo"), -128), int(concat!($prefix, "hi"), 127),
        )* int("b_multiplier", 1)]
    };
}

const ATTRS: &[AttrDef] = prefixed!["a_", "b_", "c_"];

/// The parts: prefix, form of the weight, first operand behind the image.
const PARTS: [(&str, Form, usize); 3] = [("a_", Form::Full, 1), ("b_", Form::Depthwise, 4), ("c_", Form::Full, 7)];

fn multiplier(a: &Attrs, form: Form) -> usize {
    if form == Form::Depthwise { a.size("b_multiplier") } else { 1 }
}

/// The images after each part.
fn images(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    let mut images = vec![x[0].clone()];
    for (prefix, form, first) in PARTS {
        Clamp::prefixed(a, prefix).check()?;
        check_zero(a.float(&format!("{prefix}zero_x")))?;
        let operands = [&images[images.len() - 1..], &x[first..first + 3]].concat();
        images.push(out_type(&operands, &Window::prefixed(a, prefix), form, multiplier(a, form))?);
    }
    let last = Window::prefixed(a, "c_");
    if x[7].shape[1..3] != [1, 1] || last.stride != [1, 1] {
        return Err(format!("the third convolution must be 1x1 and move by 1, its weight is {}", x[7]));
    }
    Ok(images)
}

/// `i8_conv2d`, `i8_depthwise` and a 1x1 `i8_conv2d` one after the other, bit for bit; attributes `a_..`, `b_..` and
/// `c_..`. Operands `x, w1, bias1, scale1, w2, bias2, scale2, w3, bias3, scale3`. Made by `fuse_rows`.
pub const BOTTLENECK: OpDef = OpDef {
    name: "i8_bottleneck",
    arity: (10, 10),
    attrs: ATTRS,
    infer: |x, a| Ok(vec![images(x, a)?.swap_remove(3)]),
    eval: |x, y, a| {
        let mut image = x[0].clone();
        for (prefix, form, first) in PARTS {
            let forward = Forward {
                window: Window::prefixed(a, prefix),
                form,
                multiplier: multiplier(a, form),
                zero_x: a.float(&format!("{prefix}zero_x")),
                clamp: Clamp::prefixed(a, prefix),
            };
            let outs = *x[first + 1].shape.first().unwrap_or(&1);
            let shape = vec![image.shape[0], forward.window.out[0], forward.window.out[1], outs];
            let mut out = [Tensor { data: vec![0.0; shape.iter().product()], shape }];
            let [w, b, s] = [&x[first], &x[first + 1], &x[first + 2]];
            forward.run(&[&image, w, b, s], &mut out, true);
            [image] = out;
        }
        y[0] = image;
    },
    flops: |x, _, a| match images(x, a) {
        Ok(images) => {
            PARTS.iter().zip(&images[1..]).map(|(&(_, _, w), y)| flops(&[x[0].clone(), x[w].clone()], y)).sum()
        }
        Err(_) => 0,
    },
    ..ROW
};

/// The lengths of a backward pass: operands `bias1, bias2, w1, gc, w3, w2, ..`.
struct Backward {
    /// Of the block's input.
    input: [u32; 4],
    /// After expansion and depthwise convolution.
    inner: [[u32; 4]; 2],
    kernel: [u32; 2],
}

impl Backward {
    fn of(x: &[Type], a: &Attrs) -> Result<Backward, String> {
        let ([n, h, w, outs], window) = (image(&x[3], DType::F32, "gc")?, Window::of(a));
        let (first, second) = (conv::weight(&x[2], Form::Full, 1)?, conv::weight(&x[5], Form::Depthwise, 1)?);
        let side = [a.size("h") as u32, a.size("w") as u32];
        window.check(side, second.kernel)?;
        let [out_h, out_w] = window.out.map(|len| len as u32);
        if [h, w] != [out_h, out_w] {
            return Err(format!("gc is {}, the depthwise convolution gives {out_h} x {out_w}", x[3]));
        }
        must_be("w1", &x[2], DType::I8, &[second.ins, 1, 1, first.ins])?;
        must_be("w3", &x[4], DType::I8, &[outs, 1, 1, second.ins])?;
        must_be("w2", &x[5], DType::I8, &x[5].shape)?;
        let wide = |[h, w]: [u32; 2]| [n, h, w, second.ins];
        let inner = [wide(side), wide([out_h, out_w])];
        Ok(Backward { input: [n, side[0], side[1], first.ins], inner, kernel: second.kernel })
    }

    /// Checks the operands behind the weights.
    fn check(&self, x: &[Type], a: &Attrs) -> Result<(), String> {
        let (train, sub) = (a.flag("train"), a.flag("sub"));
        if sub && !train {
            return Err("columns are given of a weight that is not trained".to_string());
        }
        expect("count of operands", x.len() as u32, 14 + 2 * u32::from(train) + u32::from(sub))?;
        for (k, inner) in self.inner.iter().enumerate() {
            let (mask, channels) = (&x[6 + 3 * k], [inner[3]]);
            let wanted = mask_type(&Type::f32(inner))?;
            must_be("mask", mask, DType::U8, &wanted.shape)?;
            must_be("bias", &x[k], DType::I32, &channels)?;
            must_be("scale", &x[7 + 3 * k], DType::F32, &channels)?;
            must_be("factor", &x[8 + 3 * k], DType::F32, &channels)?;
        }
        must_be("hyper", &x[12], DType::F32, &[4])?;
        must_be("rng", &x[13], DType::U32, &[4])?;
        check_zero(a.float("zero_x"))?;
        if train {
            must_be("x", &x[14], DType::I8, &self.input)?;
            must_be("factor", &x[15], DType::F32, &[self.inner[0][3]])?;
        }
        let Some(index) = x.get(16) else { return Ok(()) };
        let len = list_len(index)?;
        expect_indices("index", index, len)?;
        if len > self.input[3] {
            return Err(format!("{len} of {} channels cannot be trained", self.input[3]));
        }
        Ok(())
    }
}

/// Runs another op's definition on copies; gives its operands and results.
fn defined(def: &OpDef, x: &[&Tensor], shape: &[usize], given: &[(&str, Attr)]) -> (Vec<Tensor>, Tensor) {
    let mut x: Vec<Tensor> = x.iter().map(|&t| t.clone()).collect();
    let mut y = [Tensor { data: vec![0.0; shape.iter().product()], shape: shape.to_vec() }];
    (def.eval)(&mut x, &mut y, &Attrs::of(def.attrs, given));
    let [y] = y;
    (x, y)
}

fn backward(x: &mut [Tensor], y: &mut Tensor, a: &Attrs) {
    let point = |h: usize, w: usize| [("out_h", Attr::from(h)), ("out_w", w.into()), ("h", h.into()), ("w", w.into())];
    let [n, h, w, outs_h, outs_w] = [x[3].shape[0], y.shape[1], y.shape[2], x[3].shape[1], x[3].shape[2]];
    let inner = *x[5].shape.last().unwrap_or(&1);
    let (wide, narrow) = ([n, h, w, inner], [n, outs_h, outs_w, inner]);
    let masked = [("has_mask", Attr::from(true))];
    let moved = |bias: &Tensor, gc: &Tensor, [factor, hyper, rng]: [&Tensor; 3], stream: &str| {
        let given = [("stream", a.int(stream).into())];
        defined(&update::GRAD_B_UPDATE, &[bias, gc, factor, hyper, rng], &[0], &given).0.swap_remove(0)
    };
    let (_, g) = defined(&conv::CONV2D_GRAD_X, &[&x[3], &x[4]], &narrow, &point(outs_h, outs_w));
    let (_, g) = defined(&conv::SCALE_GRAD, &[&g, &x[9], &x[10]], &narrow, &masked);
    let second = moved(&x[1], &g, [&x[11], &x[12], &x[13]], "stream2");
    let names = ["stride_h", "stride_w", "pad_top", "pad_left", "out_h", "out_w", "h", "w"];
    let window: Vec<(&str, Attr)> = names.iter().map(|&name| (name, a.int(name).into())).collect();
    let (_, g) = defined(&conv::DEPTHWISE_GRAD_X, &[&g, &x[5]], &wide, &window);
    let (_, g) = defined(&conv::SCALE_GRAD, &[&g, &x[6], &x[7]], &wide, &masked);
    let first = moved(&x[0], &g, [&x[8], &x[12], &x[13]], "stream1");
    let (_, gx) = defined(&conv::CONV2D_GRAD_X, &[&g, &x[2]], &y.shape, &point(h, w));
    if a.flag("train") {
        let given = [("zero_x", a.int("zero_x").into()), ("stream", a.int("stream_w").into())];
        let given = [&point(h, w)[..2], &given, &[("sub", a.int("sub").into())]].concat();
        let operands = [&x[2], &g, &x[14], &x[15], &x[12], &x[13]].into_iter().chain(x.get(16)).collect::<Vec<_>>();
        x[2] = defined(&update::CONV2D_GRAD_W_UPDATE, &operands, &[0], &given).0.swap_remove(0);
    }
    (x[0], x[1], *y) = (first, second, gx);
}

/// The backward pass of a bottleneck with a 1x1 expansion, bit for bit: `i8_conv2d_grad_x` of the projection,
/// `i8_scale_grad`, `i8_grad_b_update` and `i8_depthwise_grad_x` of the depthwise convolution, `i8_scale_grad`,
/// `i8_grad_b_update`, `i8_conv2d_grad_x` and, with `train`, `i8_conv2d_grad_w_update` of the expansion, whose inner
/// gradients exist for some channels at a time. Operands `bias1, bias2, w1, gc, w3, w2, mask1, scale1, factor1, mask2,
/// scale2, factor2, hyper, rng`, with `train` also `x, factor`, and with `sub` `index`. Made by `fuse_channels`.
pub const BOTTLENECK_GRAD_UPDATE: OpDef = OpDef {
    name: "i8_bottleneck_grad_update",
    arity: (14, 17),
    attrs: window_attrs![
        int("h", 1),
        int("w", 1),
        int("zero_x", 0),
        int("stream1", 0),
        int("stream2", 0),
        int("stream_w", 0),
        int("train", 0),
        int("sub", 0)
    ],
    infer: |x, a| {
        let backward = Backward::of(x, a)?;
        backward.check(x, a)?;
        Ok(vec![Type::f32(&backward.input)])
    },
    eval: |x, y, a| backward(x, &mut y[0], a),
    mutates: |a| 2 + usize::from(a.flag("train")),
    flops: |x, y, a| {
        let Ok(Backward { inner: [wide, narrow], kernel, .. }) = Backward::of(x, a) else { return 0 };
        let elems = |dims: [u32; 4]| dims.iter().map(|&d| u64::from(d)).product::<u64>();
        let trained = if !a.flag("train") { 0 } else { u64::from(x.get(16).map_or(x[2].cols(), Type::cols)) };
        let taps = u64::from(kernel[0]) * u64::from(kernel[1]);
        let project = elems(narrow) * u64::from(x[3].cols());
        let expand = elems(wide) * (u64::from(y[0].cols()) + trained);
        2 * (project + elems(narrow) * taps + expand)
    },
    ..ROW
};
