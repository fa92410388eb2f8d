//! Updates of int8 weights and int32 biases, which round at random so that a step below one unit still counts.
//!
//! `step = lr factor[o]`, `delta = -(step g)`: f32 products. `d = floor(delta)` within `±2^30`, and the stored number
//! becomes `w + d`, plus 1 where `u < delta - d`, within ±127 for int8 and the range of int32. `u` in `0..1` is a
//! multiple of 2^-24 that seed, step, stream and the element's place in the whole tensor determine.
//! `hyper`: `f32[4]`, the learning rates of weights and of biases, unused, unused. `rng`: `u32[4]`, seed (low, high),
//! step, unused. `factor`: `f32[O]` = `1/s_w²` for weights and `1/(s_w s_x)²` for biases makes this plain descent on
//! the real weights; 0 keeps a channel as it is. Source: Lin et al. 2022 (quantisation-aware scaling).

use super::super::def::{OpDef, ROW, Tensor, expect, expect_indices, list_len};
use super::conv::{Form, eval_grad_w, grad_w_type, sum_channels, weight};
use super::must_be;
use crate::ir::attrs::{Attrs, int};
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// Checks `w`, and behind the gradient (operand `after` and on) `factor, hyper, rng, index?`.
fn check(x: &[Type], after: usize, grad: &Type, (last, sub): (bool, bool)) -> Result<Vec<Type>, String> {
    expect("count of operands", x.len() as u32, after as u32 + 3 + u32::from(sub))?;
    let w = &x[0];
    if !matches!(w.dtype, DType::I8 | DType::I32) {
        return Err(format!("w must be i8 or i32, found {w}"));
    }
    if (w.dtype == DType::I32) != (w.shape.len() == 1) {
        return Err(format!("biases are i32[O] and weights i8 of more dimensions, found {w}"));
    }
    let channels = if last { w.cols() } else { w.shape[0] };
    must_be("factor", &x[after], DType::F32, &[channels])?;
    must_be("hyper", &x[after + 1], DType::F32, &[4])?;
    must_be("rng", &x[after + 2], DType::U32, &[4])?;
    let mut trained = w.shape.clone();
    if sub {
        let index = &x[after + 3];
        let len = list_len(index)?;
        expect_indices("index", index, len)?;
        if len > w.cols() {
            return Err(format!("{len} of {} columns cannot be trained", w.cols()));
        }
        *trained.last_mut().ok_or("w has no dimension")? = len;
    }
    must_be("gradient", grad, DType::F32, &trained)?;
    Ok(vec![])
}

/// Changes `w` by the gradient; operands behind it from `after`.
fn apply(x: &mut [Tensor], grad: &[f64], after: usize, (last, is_bias): (bool, bool), stream: i64) {
    let index: Option<Vec<f64>> = x.get(after + 3).map(|index| index.data.clone());
    let (factor, lr) = (x[after].data.clone(), x[after + 1].data[usize::from(is_bias)] as f32);
    let rng: Vec<u32> = x[after + 2].data.iter().map(|&word| word as u32).collect();
    let w = &mut x[0];
    let (cols, per_channel) = (w.cols(), w.data.len() / w.shape[0]);
    let trained_cols = index.as_ref().map_or(cols, Vec::len);
    for (k, &g) in grad.iter().enumerate() {
        let col = index.as_ref().map_or(k % cols, |index| index[k % trained_cols] as usize);
        let place = k / trained_cols * cols + col;
        let channel = if last { col } else { place / per_channel };
        let step = lr * factor[channel] as f32;
        let u = uniform(&rng, stream as u32, place as u64);
        w.data[place] = moved(w.data[place], step * g as f32, u, is_bias);
    }
}

/// `w` after a step of `step_g`, rounded by `u`.
fn moved(w: f64, step_g: f32, u: f32, is_bias: bool) -> f64 {
    const FARTHEST: f32 = (1 << 30) as f32;
    let delta = -step_g;
    let down = delta.floor().clamp(-FARTHEST, FARTHEST);
    let up = if u < delta - down { 1.0 } else { 0.0 };
    // The cast makes 0 of what is no number, as the kernels do.
    let sum = w + f64::from(down as i32) + up;
    if is_bias { sum.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) } else { sum.clamp(-127.0, 127.0) }
}

/// Element `index` of a stream of numbers in `0..1`: Philox4x32-10 of counter `(index/4, stream, step)` under the
/// seed, word `index % 4`, its upper 24 bits. Source: Salmon et al. 2011.
fn uniform(rng: &[u32], stream: u32, index: u64) -> f32 {
    let (mut key, block) = ([rng[0], rng[1]], index / 4);
    let mut words = [block as u32, (block >> 32) as u32, stream, rng[2]];
    for _ in 0..10 {
        let a = 0xd251_1f53 * u64::from(words[0]);
        let b = 0xcd9e_8d57 * u64::from(words[2]);
        words = [(b >> 32) as u32 ^ words[1] ^ key[0], b as u32, (a >> 32) as u32 ^ words[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    (words[(index % 4) as usize] >> 8) as f32 / (1 << 24) as f32
}

/// Changes `w` by gradient `g`. Operands `w i8|i32, g f32, factor f32[O], hyper, rng`, and with `sub` the trained
/// columns `index i32[J]` of the last dimension. The channel is the first dimension, or the last with `channel_last`.
pub const UPDATE: OpDef = OpDef {
    name: "i8_update",
    arity: (5, 6),
    attrs: &[int("stream", 0), int("sub", 0), int("channel_last", 0)],
    infer: |x, a| check(x, 2, &x[1], (a.flag("channel_last"), a.flag("sub"))),
    eval: |x, _, a| {
        let grad = x[1].data.clone();
        // Only biases have one dimension.
        let is_bias = x[0].shape.len() == 1;
        apply(x, &grad, 2, (a.flag("channel_last"), is_bias), a.int("stream"));
    },
    mutates: |_| 1,
    flops: |x, _, _| 12 * x[1].elems(),
    ..ROW
};

/// The type of the gradient that a fused update makes: operands `w, gc, x, .., index?`.
fn grad_type(x: &[Type], a: &Attrs, form: Form) -> Result<Type, String> {
    let multiplier = if form == Form::Depthwise { a.size("multiplier") } else { 1 };
    let w = weight(&x[0], form, multiplier)?;
    let index = if a.flag("sub") { x.get(6) } else { None };
    let grad = grad_w_type([&x[1], &x[2]], index, a, (form, w.kernel))?;
    must_be("w", &x[0], DType::I8, &x[0].shape)?;
    Ok(grad)
}

fn infer(x: &[Type], a: &Attrs, form: Form) -> Result<Vec<Type>, String> {
    expect("count of operands", x.len() as u32, 6 + u32::from(a.flag("sub")))?;
    let grad = grad_type(x, a, form)?;
    check(x, 3, &grad, (form == Form::Depthwise, a.flag("sub")))
}

fn run(x: &mut [Tensor], a: &Attrs, form: Form) {
    let index = x.get(6).map(|index| index.data.clone());
    let mut shape = x[0].shape.clone();
    if let (Some(index), Some(last)) = (&index, shape.last_mut()) {
        *last = index.len();
    }
    let mut gw = Tensor { data: vec![0.0; shape.iter().product()], shape };
    eval_grad_w([&x[1], &x[2]], index.as_deref(), &mut gw, a, form);
    apply(x, &gw.data, 3, (form == Form::Depthwise, false), a.int("stream"));
}

/// `i8_update` of a convolution's weight with the gradient of `i8_conv2d_grad_w`, which exists for an output channel at
/// a time. Operands `w, gc, x, factor, hyper, rng, index?`. Made by `fuse_update`.
pub const CONV2D_GRAD_W_UPDATE: OpDef = OpDef {
    name: "i8_conv2d_grad_w_update",
    arity: (6, 7),
    attrs: window_attrs![int("zero_x", 0), int("stream", 0), int("sub", 0)],
    infer: |x, a| infer(x, a, Form::Full),
    eval: |x, _, a| run(x, a, Form::Full),
    mutates: |_| 1,
    flops: |x, _, a| {
        let trained = if a.flag("sub") { u64::from(x[6].cols()) } else { u64::from(x[0].cols()) };
        let elems = x[0].elems() / u64::from(x[0].cols()) * trained;
        2 * u64::from(x[1].rows()) * elems + 12 * elems
    },
    ..ROW
};

/// `i8_conv2d_grad_w_update` of a depthwise weight.
pub const DEPTHWISE_GRAD_W_UPDATE: OpDef = OpDef {
    name: "i8_depthwise_grad_w_update",
    arity: (6, 7),
    attrs: window_attrs![int("zero_x", 0), int("multiplier", 1), int("stream", 0), int("sub", 0)],
    infer: |x, a| infer(x, a, Form::Depthwise),
    eval: |x, _, a| run(x, a, Form::Depthwise),
    mutates: |_| 1,
    flops: |x, _, a| {
        let trained = if a.flag("sub") { u64::from(x[6].cols()) } else { u64::from(x[0].cols()) };
        let elems = u64::from(x[0].rows()) * trained;
        2 * u64::from(x[1].rows()) * elems + 12 * elems
    },
    ..ROW
};

/// `i8_update` of a bias with the gradient of `i8_grad_b`. Operands `bias i32[O], gc, factor, hyper, rng`. Made by
/// `fuse_update`.
pub const GRAD_B_UPDATE: OpDef = OpDef {
    name: "i8_grad_b_update",
    arity: (5, 5),
    attrs: &[int("stream", 0)],
    infer: |x, _| {
        must_be("bias", &x[0], DType::I32, &[x[1].cols()])?;
        must_be("gc", &x[1], DType::F32, &x[1].shape)?;
        check(x, 2, &Type::f32(&[x[1].cols()]), (false, false))
    },
    eval: |x, _, a| {
        let grad = sum_channels(&x[1]);
        apply(x, &grad, 2, (false, true), a.int("stream"));
    },
    mutates: |_| 1,
    flops: |x, _, _| x[1].elems() + 12 * x[0].elems(),
    ..ROW
};
