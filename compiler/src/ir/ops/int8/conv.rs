//! Convolutions of int8 images, full and depthwise, and their gradients.

use super::super::def::{OpDef, ROW, Saves, Tensor, Vjp, expect, expect_indices, list_len};
use super::{Clamp, Window, at, bit, check_zero, fma, image, must_be, nearest, pairs, product, put, with_mask};
use crate::ir::attrs::{Attr, AttrDef, Attrs, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// The two forms of weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `[O,R,S,I]`: every input channel to every output channel.
    Full,
    /// `[R,S,C*M]`: every input channel to `M` output channels of its own.
    Depthwise,
}

/// Lengths of a weight: output channels, kernel, and what its last dimension counts.
#[derive(Clone, Copy)]
pub struct Weight {
    /// Output channels.
    pub outs: u32,
    /// Height and width.
    pub kernel: [u32; 2],
    /// Input channels.
    pub ins: u32,
}

/// Reads the lengths of a weight of this form.
pub fn weight(ty: &Type, form: Form, multiplier: usize) -> Result<Weight, String> {
    let m = multiplier as u32;
    match (form, &ty.shape[..]) {
        (Form::Full, &[outs, r, s, ins]) => Ok(Weight { outs, kernel: [r, s], ins }),
        (Form::Depthwise, &[r, s, outs]) if m > 0 && outs.is_multiple_of(m) => {
            Ok(Weight { outs, kernel: [r, s], ins: outs / m })
        }
        (Form::Full, _) => Err(format!("w must be [O,R,S,I], found {ty}")),
        (Form::Depthwise, _) => Err(format!("w must be [R,S,C*{multiplier}], found {ty}")),
    }
}

/// The type of a convolution's result; operands `x, w, bias, scale`.
pub(super) fn out_type(x: &[Type], window: &Window, form: Form, multiplier: usize) -> Result<Type, String> {
    let [n, h, width, c] = image(&x[0], DType::I8, "x")?;
    let w = weight(&x[1], form, multiplier)?;
    expect("input channels of w", w.ins, c)?;
    window.check([h, width], w.kernel)?;
    must_be("w", &x[1], DType::I8, &x[1].shape)?;
    must_be("bias", &x[2], DType::I32, &[w.outs])?;
    must_be("scale", &x[3], DType::F32, &[w.outs])?;
    Ok(Type::new(DType::I8, &[n, window.out[0] as u32, window.out[1] as u32, w.outs]))
}

fn infer(x: &[Type], a: &Attrs, form: Form) -> Result<Vec<Type>, String> {
    Clamp::of(a, "zero_y").check()?;
    check_zero(a.float("zero_x"))?;
    with_mask(out_type(x, &Window::of(a), form, multiplier(a, form))?, a)
}

fn multiplier(a: &Attrs, form: Form) -> usize {
    if form == Form::Depthwise { a.size("multiplier") } else { 1 }
}

/// Index in the weight of tap `(r, s)` from input channel `i` to output channel `o`.
fn weight_at(w: &[usize], form: Form, [o, r, s, i]: [usize; 4]) -> usize {
    match form {
        Form::Full => at(w, [o, r, s, i]),
        Form::Depthwise => (r * w[1] + s) * w[2] + o,
    }
}

/// Height and width of a weight.
fn kernel(w: &[usize], form: Form) -> [usize; 2] {
    if form == Form::Full { [w[1], w[2]] } else { [w[0], w[1]] }
}

/// The input channels that output channel `o` reads.
fn inputs(w: &[usize], form: Form, multiplier: usize, o: usize) -> std::ops::Range<usize> {
    if form == Form::Full { 0..w[3] } else { o / multiplier..o / multiplier + 1 }
}

/// What a forward convolution is beside its operands.
#[derive(Clone, Copy)]
pub(super) struct Forward {
    pub(super) window: Window,
    pub(super) form: Form,
    pub(super) multiplier: usize,
    pub(super) zero_x: f64,
    pub(super) clamp: Clamp,
}

impl Forward {
    fn of(a: &Attrs, form: Form) -> Forward {
        let (window, clamp) = (Window::of(a), Clamp::of(a, "zero_y"));
        Forward { window, form, multiplier: multiplier(a, form), zero_x: a.float("zero_x"), clamp }
    }

    /// The result, and its mask when there is a second. `exact` is the definition; otherwise nothing is rounded.
    pub(super) fn run(&self, x: &[&Tensor], y: &mut [Tensor], exact: bool) {
        let (xs, ws) = (x[0].shape.clone(), x[1].shape.clone());
        let [kh, kw] = kernel(&ws, self.form);
        let shape = y[0].shape.clone();
        for (n, (i, j)) in (0..shape[0]).flat_map(|n| pairs(shape[1], shape[2]).map(move |p| (n, p))) {
            for o in 0..shape[3] {
                let mut acc = x[2].data[o];
                for (r, s) in pairs(kh, kw) {
                    let (h, w) = (self.window.source(0, i, r, xs[1]), self.window.source(1, j, s, xs[2]));
                    let (Some(h), Some(w)) = (h, w) else { continue };
                    for c in inputs(&ws, self.form, self.multiplier, o) {
                        let weight = x[1].data[weight_at(&ws, self.form, [o, r, s, c])];
                        acc += (x[0].data[at(&xs, [n, h, w, c])] - self.zero_x) * weight;
                    }
                }
                let v = nearest(product(acc, x[3].data[o], exact), exact);
                put(y, at(&shape, [n, i, j, o]), self.clamp.apply(v));
            }
        }
    }
}

fn forward(x: &mut [Tensor], y: &mut [Tensor], a: &Attrs, form: Form, exact: bool) {
    Forward::of(a, form).run(&x.iter().collect::<Vec<_>>(), y, exact);
}

pub(super) fn flops(x: &[Type], y: &Type) -> u64 {
    let w = &x[1];
    let taps = if w.shape.len() == 4 { w.elems() / u64::from(w.shape[0]) } else { w.elems() / u64::from(w.cols()) };
    2 * y.elems() * taps
}

const WINDOW: [&str; 7] = ["stride_h", "stride_w", "pad_top", "pad_left", "out_h", "out_w", "zero_x"];

/// The scaled gradient of the result, and from it those of `x, w, bias`.
fn gradients(v: &mut Vjp, form: Form) -> Vec<Option<Value>> {
    let (dy, mask, scale) = (v.dy(), v.out(1), v.arg(3));
    let (tx, tw) = (v.arg_ty(0), v.arg_ty(1));
    let name = format!("{}.gc", v.builder.graph.info(v.outs[0]).name);
    let gc = v.builder.push1(&name, Op::I8ScaleGrad, &[dy, mask, scale], &[("has_mask", true.into())]);
    let mut shared: Vec<(&str, Attr)> = v.attrs.iter().filter(|(n, _)| WINDOW.contains(n)).collect();
    shared.extend(v.attrs.iter().filter(|(n, _)| *n == "multiplier"));
    let (grad_x, grad_w) = match form {
        Form::Full => (Op::I8Conv2dGradX, Op::I8Conv2dGradW),
        Form::Depthwise => (Op::I8DepthwiseGradX, Op::I8DepthwiseGradW),
    };
    let dx = v.needs[0].then(|| {
        let w = v.arg(1);
        let extra = [("h", tx.shape[1].into()), ("w", tx.shape[2].into())];
        v.push(0, grad_x, &[gc, w], &[&shared[..], &extra].concat())
    });
    let dw = v.needs[1].then(|| {
        let x = v.arg(0);
        let [kh, kw] = if form == Form::Full { [tw.shape[1], tw.shape[2]] } else { [tw.shape[0], tw.shape[1]] };
        let index = v.columns(1);
        let args: Vec<Value> = [gc, x].into_iter().chain(index).collect();
        let extra = [("kh", kh.into()), ("kw", kw.into()), ("sub", index.is_some().into())];
        v.push(1, grad_w, &args, &[&shared[..], &extra].concat())
    });
    let db = v.needs[2].then(|| v.push(2, Op::I8GradB, &[gc], &[]));
    vec![dx, dw, db, None]
}

/// `y = clamp(nearest(acc scale[o]) + zero_y, lo, hi)`, `acc = bias[o] + Σ_{r,s,i} (x - zero_x) w[o,r,s,i]`, a whole
/// number; padding counts as `zero_x`. Operands `x i8[N,H,W,I], w i8[O,R,S,I], bias i32[O], scale f32[O]`; the second
/// result, with `mask`, says where nothing was clamped. Gradients of `x`, `w` and `bias` read `x`, `w`, `scale`, mask.
pub const CONV2D: OpDef = OpDef {
    name: "i8_conv2d",
    arity: (4, 4),
    attrs: window_attrs![int("zero_x", 0), int("zero_y", 0), int("lo", -128), int("hi", 127), int("mask", 0)],
    infer: |x, a| infer(x, a, Form::Full),
    eval: |x, y, a| forward(x, y, a, Form::Full, true),
    smooth: Some(|x, y, a| forward(x, y, a, Form::Full, false)),
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(3), Saves::Out(1)],
    vjp: Some(|v| gradients(v, Form::Full)),
    tape: Some("mask"),
    flops: |x, y, _| flops(x, &y[0]),
    ..ROW
};

/// `i8_conv2d` of which output channel `c*M+m` reads input channel `c` alone: `w i8[R,S,C*M]`, `M` the `multiplier`.
pub const DEPTHWISE: OpDef = OpDef {
    name: "i8_depthwise",
    arity: (4, 4),
    attrs: window_attrs![
        int("zero_x", 0),
        int("zero_y", 0),
        int("lo", -128),
        int("hi", 127),
        int("mask", 0),
        int("multiplier", 1)
    ],
    infer: |x, a| infer(x, a, Form::Depthwise),
    eval: |x, y, a| forward(x, y, a, Form::Depthwise, true),
    smooth: Some(|x, y, a| forward(x, y, a, Form::Depthwise, false)),
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(3), Saves::Out(1)],
    vjp: Some(|v| gradients(v, Form::Depthwise)),
    tape: Some("mask"),
    flops: |x, y, _| flops(x, &y[0]),
    ..ROW
};

/// `gc[p,o] = g[p,o] scale[o]` where bit `p,o` of the mask is set or there is no mask, else 0: one f32 product.
/// Operands `g f32[..,O]`, the mask with `has_mask`, `scale f32[O]`.
pub const SCALE_GRAD: OpDef = OpDef {
    name: "i8_scale_grad",
    arity: (2, 3),
    attrs: &[int("has_mask", 0)],
    infer: |x, a| {
        let has_mask = a.flag("has_mask");
        expect("count of operands", x.len() as u32, 2 + u32::from(has_mask))?;
        must_be("g", &x[0], DType::F32, &x[0].shape)?;
        if has_mask && x[1] != super::mask_type(&x[0])? {
            return Err(format!("mask is {}, must be {}", x[1], super::mask_type(&x[0])?));
        }
        must_be("scale", &x[x.len() - 1], DType::F32, &[x[0].cols()])?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, a| {
        let (scale, cols) = (&x[x.len() - 1], x[0].cols());
        for (i, out) in y[0].data.iter_mut().enumerate() {
            let inside = !a.flag("has_mask") || bit(&x[1], i);
            *out = if inside { product(x[0].data[i], scale.data[i % cols], true) } else { 0.0 };
        }
    },
    in_place: &[(0, 0)],
    ..ROW
};

/// `gb[o] = Σ_p gc[p,o]`, `p` ascending, from 0.0 in f32. Operand `gc f32[..,O]`.
pub const GRAD_B: OpDef = OpDef {
    name: "i8_grad_b",
    infer: |x, _| {
        must_be("gc", &x[0], DType::F32, &x[0].shape)?;
        Ok(vec![Type::f32(&[x[0].cols()])])
    },
    eval: |x, y, _| y[0].data = sum_channels(&x[0]),
    flops: |x, _, _| x[0].elems(),
    ..ROW
};

/// The gradient of a bias.
pub(super) fn sum_channels(gc: &Tensor) -> Vec<f64> {
    let mut sums = vec![0.0f32; gc.cols()];
    for p in 0..gc.rows() {
        sums.iter_mut().zip(gc.row(p)).for_each(|(sum, &g)| *sum += g as f32);
    }
    sums.into_iter().map(f64::from).collect()
}

const GRAD_X_ATTRS: &[AttrDef] = window_attrs![int("zero_x", 0), int("h", 1), int("w", 1)];
const DEPTHWISE_GRAD_X_ATTRS: &[AttrDef] =
    window_attrs![int("zero_x", 0), int("h", 1), int("w", 1), int("multiplier", 1)];

fn infer_grad_x(x: &[Type], a: &Attrs, form: Form) -> Result<Vec<Type>, String> {
    let (window, side) = (Window::of(a), [a.size("h") as u32, a.size("w") as u32]);
    let [n, ..] = image(&x[0], DType::F32, "gc")?;
    let w = weight(&x[1], form, multiplier(a, form))?;
    must_be("w", &x[1], DType::I8, &x[1].shape)?;
    window.check(side, w.kernel)?;
    must_be("gc", &x[0], DType::F32, &[n, window.out[0] as u32, window.out[1] as u32, w.outs])?;
    Ok(vec![Type::f32(&[n, side[0], side[1], w.ins])])
}

fn eval_grad_x(x: &[Tensor], y: &mut Tensor, a: &Attrs, form: Form) {
    let (window, m) = (Window::of(a), multiplier(a, form));
    let (gs, ws, shape) = (&x[0].shape, &x[1].shape, y.shape.clone());
    let [kh, kw] = kernel(ws, form);
    for (n, (h, w)) in (0..shape[0]).flat_map(|n| pairs(shape[1], shape[2]).map(move |p| (n, p))) {
        for c in 0..shape[3] {
            let mut acc = 0.0f32;
            for (r, s) in pairs(kh, kw) {
                let (Some(i), Some(j)) = (window.reader(0, h, r), window.reader(1, w, s)) else { continue };
                let outs = if form == Form::Full { 0..gs[3] } else { c * m..(c + 1) * m };
                for o in outs {
                    acc = fma(x[0].data[at(gs, [n, i, j, o])], x[1].data[weight_at(ws, form, [o, r, s, c])], acc);
                }
            }
            y.data[at(&shape, [n, h, w, c])] = f64::from(acc);
        }
    }
}

/// `gx[q,i] = Σ gc[p,o] w[o,r,s,i]` over the taps `(r,s)` that reach `q`, ascending, and inside each over `o`
/// ascending: fused multiply-adds in f32 from 0.0. Operands `gc f32[N,out_h,out_w,O], w`; images of `h x w`.
pub const CONV2D_GRAD_X: OpDef = OpDef {
    name: "i8_conv2d_grad_x",
    arity: (2, 2),
    attrs: GRAD_X_ATTRS,
    infer: |x, a| infer_grad_x(x, a, Form::Full),
    eval: |x, y, a| eval_grad_x(x, &mut y[0], a, Form::Full),
    flops: |x, _, _| flops(&[x[0].clone(), x[1].clone()], &x[0]),
    ..ROW
};

/// `i8_conv2d_grad_x` of a depthwise convolution.
pub const DEPTHWISE_GRAD_X: OpDef = OpDef {
    name: "i8_depthwise_grad_x",
    arity: (2, 2),
    attrs: DEPTHWISE_GRAD_X_ATTRS,
    infer: |x, a| infer_grad_x(x, a, Form::Depthwise),
    eval: |x, y, a| eval_grad_x(x, &mut y[0], a, Form::Depthwise),
    flops: |x, _, _| flops(&[x[0].clone(), x[1].clone()], &x[0]),
    ..ROW
};

/// The type of a weight's gradient. Operands `gc, x`, and `index` when there is one.
pub(super) fn grad_w_type(
    [gc, x]: [&Type; 2],
    index: Option<&Type>,
    a: &Attrs,
    (form, kernel): (Form, [u32; 2]),
) -> Result<Type, String> {
    let window = Window::of(a);
    let ([n, h, w, c], [_, _, _, o]) = (image(x, DType::I8, "x")?, image(gc, DType::F32, "gc")?);
    check_zero(a.float("zero_x"))?;
    window.check([h, w], kernel)?;
    must_be("gc", gc, DType::F32, &[n, window.out[0] as u32, window.out[1] as u32, o])?;
    if form == Form::Depthwise {
        expect("output channels", o, u64::from(c) * multiplier(a, form) as u64)?;
    }
    let all = if form == Form::Full { c } else { o };
    let last = match index {
        Some(index) => {
            let len = list_len(index)?;
            expect_indices("index", index, len)?;
            if len > all {
                return Err(format!("{len} of {all} channels cannot be trained"));
            }
            len
        }
        None => all,
    };
    Ok(match form {
        Form::Full => Type::f32(&[o, kernel[0], kernel[1], last]),
        Form::Depthwise => Type::f32(&[kernel[0], kernel[1], last]),
    })
}

fn infer_grad_w(x: &[Type], a: &Attrs, form: Form) -> Result<Vec<Type>, String> {
    expect("count of operands", x.len() as u32, 2 + u32::from(a.flag("sub")))?;
    let kernel = [a.size("kh") as u32, a.size("kw") as u32];
    Ok(vec![grad_w_type([&x[0], &x[1]], x.get(2), a, (form, kernel))?])
}

/// A weight's gradient in all its elements, or the columns in `index`; `gw` has its shape.
pub(super) fn eval_grad_w([gc, x]: [&Tensor; 2], index: Option<&[f64]>, gw: &mut Tensor, a: &Attrs, form: Form) {
    let (window, m, zero) = (Window::of(a), multiplier(a, form), a.float("zero_x"));
    let (gs, xs, shape) = (&gc.shape, &x.shape, gw.shape.clone());
    let [kh, kw] = kernel(&shape, form);
    let cols = gw.cols();
    let outs = if form == Form::Full { gs[3] } else { 1 };
    for (k, (r, s)) in (0..outs).flat_map(|k| pairs(kh, kw).map(move |t| (k, t))) {
        for col in 0..cols {
            let chosen = index.map_or(col, |index| index[col] as usize);
            let (o, c) = if form == Form::Full { (k, chosen) } else { (chosen, chosen / m) };
            let mut acc = 0.0f32;
            for (n, (i, j)) in (0..gs[0]).flat_map(|n| pairs(gs[1], gs[2]).map(move |p| (n, p))) {
                let (h, w) = (window.source(0, i, r, xs[1]), window.source(1, j, s, xs[2]));
                let (Some(h), Some(w)) = (h, w) else { continue };
                acc = fma(x.data[at(xs, [n, h, w, c])] - zero, gc.data[at(gs, [n, i, j, o])], acc);
            }
            gw.data[((k * kh + r) * kw + s) * cols + col] = f64::from(acc);
        }
    }
}

fn eval_grad_w_op(x: &[Tensor], y: &mut [Tensor], a: &Attrs, form: Form) {
    let index = x.get(2).map(|index| index.data.as_slice());
    eval_grad_w([&x[0], &x[1]], index, &mut y[0], a, form);
}

/// `gw[o,r,s,i] = Σ_p (x - zero_x) gc[p,o]`, output positions `p` ascending, taps outside the image left out: fused
/// multiply-adds in f32 from 0.0. Operands `gc f32[N,out_h,out_w,O], x`, and with `sub` the input channels
/// `index i32[J]` of which alone there is a gradient, `f32[O,R,S,J]`. Kernels of `kh x kw`.
pub const CONV2D_GRAD_W: OpDef = OpDef {
    name: "i8_conv2d_grad_w",
    arity: (2, 3),
    attrs: window_attrs![int("zero_x", 0), int("kh", 1), int("kw", 1), int("sub", 0)],
    infer: |x, a| infer_grad_w(x, a, Form::Full),
    eval: |x, y, a| eval_grad_w_op(x, y, a, Form::Full),
    flops: |x, y, _| 2 * x[0].elems() * y[0].elems() / u64::from(y[0].shape[0]),
    ..ROW
};

/// `i8_conv2d_grad_w` of a depthwise convolution: `f32[R,S,C*M]`, or the channels in `index`.
pub const DEPTHWISE_GRAD_W: OpDef = OpDef {
    name: "i8_depthwise_grad_w",
    arity: (2, 3),
    attrs: window_attrs![int("zero_x", 0), int("kh", 1), int("kw", 1), int("sub", 0), int("multiplier", 1)],
    infer: |x, a| infer_grad_w(x, a, Form::Depthwise),
    eval: |x, y, a| eval_grad_w_op(x, y, a, Form::Depthwise),
    flops: |x, y, _| 2 * u64::from(x[0].rows()) * y[0].elems(),
    ..ROW
};
