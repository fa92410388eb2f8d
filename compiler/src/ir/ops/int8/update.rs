//! Updates of int8 weights and int32 biases, by which a step below one unit still counts.
//!
//! `step = lr factor[o]`, `delta = -(step g)`: f32 products. Stochastic: `d = floor(delta)` within `±2^30`, and the
//! stored number becomes `w + d`, plus 1 where `u < delta - d`, within ±127 for int8 and the range of int32. `u` in
//! `0..1` is a multiple of 2^-24 that seed, step, stream and the element's place in the whole tensor determine.
//! With `accumulate`, an f32 state `error` for each trained element makes `w + error` the weight before rounding:
//! `t = error + delta` within `±2^30`, `d` the nearest integer (ties to even), `error' = t - d`, and `w + d` is stored
//! within the same limits; NaN leaves 0. With `momentum`, a state `m` for each trained element becomes
//! `fma(momentum, m, g)` and stands for `g`.
//! `hyper`: `f32[4]`, the learning rates of weights and of biases, unused, unused. `rng`: `u32[4]`, seed (low, high),
//! step, unused. `factor`: `f32[O]` = `1/s_w²` for weights and `1/(s_w s_x)²` for biases makes this plain descent on
//! the real weights; 0 keeps a channel as it is. Source: Lin et al. 2022 (quantisation-aware scaling).

use super::super::def::{OpDef, ROW, Tensor, expect, expect_indices, list_len};
use super::conv::{Form, eval_grad_w, grad_w_type, sum_channels, weight};
use super::must_be;
use crate::ir::attrs::{Attrs, float, int};
use crate::ir::types::Type;
use tinyforge_plan::DType;

/// How an update reads its operands `w, m?, error?, gradient.., factor, hyper, rng, index?`.
#[derive(Clone, Copy)]
struct Way {
    /// The channel is the last dimension.
    is_last: bool,
    /// Some columns are trained.
    is_sub: bool,
    has_error: bool,
    momentum: f32,
    stream: u32,
}

impl Way {
    fn of(a: &Attrs, is_last: bool, is_sub: bool) -> Way {
        let momentum = a.float("momentum") as f32;
        Way { is_last, is_sub, has_error: a.flag("accumulate"), momentum, stream: a.int("stream") as u32 }
    }

    /// How many states stand behind the weight.
    fn states(&self) -> usize {
        usize::from(self.momentum != 0.0) + usize::from(self.has_error)
    }
}

/// Tensors that an update changes: the weight and its states.
fn changed(a: &Attrs) -> usize {
    1 + usize::from(a.float("momentum") != 0.0) + usize::from(a.flag("accumulate"))
}

/// Checks `w` and its states, and behind the gradient (operand `after` and on) `factor, hyper, rng, index?`.
fn check(x: &[Type], after: usize, grad: &Type, way: Way) -> Result<Vec<Type>, String> {
    expect("count of operands", x.len() as u32, after as u32 + 3 + u32::from(way.is_sub))?;
    let w = &x[0];
    if !matches!(w.dtype, DType::I8 | DType::I32) {
        return Err(format!("w must be i8 or i32, found {w}"));
    }
    if (w.dtype == DType::I32) != (w.shape.len() == 1) {
        return Err(format!("biases are i32[O] and weights i8 of more dimensions, found {w}"));
    }
    if !(0.0..1.0).contains(&way.momentum) {
        return Err(format!("momentum must be at least 0 and below 1, found {}", way.momentum));
    }
    let channels = if way.is_last { w.cols() } else { w.shape[0] };
    must_be("factor", &x[after], DType::F32, &[channels])?;
    must_be("hyper", &x[after + 1], DType::F32, &[4])?;
    must_be("rng", &x[after + 2], DType::U32, &[4])?;
    let mut trained = w.shape.clone();
    if way.is_sub {
        let index = &x[after + 3];
        let len = list_len(index)?;
        expect_indices("index", index, len)?;
        if len > w.cols() {
            return Err(format!("{len} of {} columns cannot be trained", w.cols()));
        }
        *trained.last_mut().ok_or("w has no dimension")? = len;
    }
    for state in &x[1..=way.states()] {
        must_be("a state", state, DType::F32, &trained)?;
    }
    must_be("gradient", grad, DType::F32, &trained)?;
    Ok(vec![])
}

/// Changes `w` and its states by the gradient; operands behind it from `after`.
fn apply(x: &mut [Tensor], grad: &[f64], after: usize, way: Way) {
    let index: Option<Vec<f64>> = x.get(after + 3).map(|index| index.data.clone());
    // Only biases have one dimension.
    let is_bias = x[0].shape.len() == 1;
    let (factor, lr) = (x[after].data.clone(), x[after + 1].data[usize::from(is_bias)] as f32);
    let rng: Vec<u32> = x[after + 2].data.iter().map(|&word| word as u32).collect();
    let (w, rest) = x.split_at_mut(1);
    let (w, states) = (&mut w[0], &mut rest[..way.states()]);
    let (cols, per_channel) = (w.cols(), w.data.len() / w.shape[0]);
    let trained_cols = index.as_ref().map_or(cols, Vec::len);
    for (k, &g) in grad.iter().enumerate() {
        let col = index.as_ref().map_or(k % cols, |index| index[k % trained_cols] as usize);
        let place = k / trained_cols * cols + col;
        let channel = if way.is_last { col } else { place / per_channel };
        let mut g = g as f32;
        if way.momentum != 0.0 {
            let m = &mut states[0].data[k];
            g = way.momentum.mul_add(*m as f32, g);
            *m = f64::from(g);
        }
        let step = lr * factor[channel] as f32;
        let move_by = match way.has_error {
            true => nearest(&mut states[way.states() - 1].data[k], step * g),
            false => drawn(step * g, uniform(&rng, way.stream, place as u64)),
        };
        let sum = w.data[place] + move_by;
        w.data[place] =
            if is_bias { sum.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) } else { sum.clamp(-127.0, 127.0) };
    }
}

/// Steps beyond this are cut.
const FARTHEST: f32 = (1 << 30) as f32;

/// A move against `step_g`, rounded by `u`.
fn drawn(step_g: f32, u: f32) -> f64 {
    let delta = -step_g;
    let down = delta.floor().clamp(-FARTHEST, FARTHEST);
    let up = if u < delta - down { 1.0 } else { 0.0 };
    // The cast makes 0 of what is no number, as the kernels do.
    f64::from(down as i32) + up
}

/// A move against `step_g` with what earlier moves left, rounded to the nearest integer; `error` is what it leaves.
fn nearest(error: &mut f64, step_g: f32) -> f64 {
    let wanted = (*error as f32 - step_g).clamp(-FARTHEST, FARTHEST);
    let wanted = if wanted.is_nan() { 0.0 } else { f64::from(wanted) };
    *error = wanted - wanted.round_ties_even();
    wanted.round_ties_even()
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

/// Changes `w` by gradient `g`. Operands `w i8|i32, m?, error?, g f32, factor f32[O], hyper, rng`, and with `sub` the
/// trained columns `index i32[J]` of the last dimension; `m` with `momentum`, `error` with `accumulate`: f32 states of
/// the trained shape. The channel is the first dimension, or the last with `channel_last`.
pub const UPDATE: OpDef = OpDef {
    name: "i8_update",
    arity: (5, 8),
    attrs: &[int("stream", 0), int("sub", 0), int("channel_last", 0), int("accumulate", 0), float("momentum", 0.0)],
    infer: |x, a| {
        let at = changed(a);
        let grad = x.get(at).ok_or("there is no gradient")?;
        check(x, at + 1, grad, Way::of(a, a.flag("channel_last"), a.flag("sub")))
    },
    eval: |x, _, a| {
        let grad = x[changed(a)].data.clone();
        apply(x, &grad, changed(a) + 1, Way::of(a, a.flag("channel_last"), a.flag("sub")));
    },
    mutates: changed,
    flops: |x, _, a| 12 * x[changed(a)].elems(),
    ..ROW
};

/// The type of the gradient that a fused update makes: operands `w, m?, error?, gc, x, .., index?`.
fn grad_type(x: &[Type], a: &Attrs, form: Form) -> Result<Type, String> {
    let multiplier = if form == Form::Depthwise { a.size("multiplier") } else { 1 };
    let (w, at) = (weight(&x[0], form, multiplier)?, changed(a));
    let index = if a.flag("sub") { x.get(at + 5) } else { None };
    let grad = grad_w_type([&x[at], &x[at + 1]], index, a, (form, w.kernel))?;
    must_be("w", &x[0], DType::I8, &x[0].shape)?;
    Ok(grad)
}

fn infer(x: &[Type], a: &Attrs, form: Form) -> Result<Vec<Type>, String> {
    expect("count of operands", x.len() as u32, changed(a) as u32 + 5 + u32::from(a.flag("sub")))?;
    let grad = grad_type(x, a, form)?;
    check(x, changed(a) + 2, &grad, Way::of(a, form == Form::Depthwise, a.flag("sub")))
}

fn run(x: &mut [Tensor], a: &Attrs, form: Form) {
    let at = changed(a);
    let index = x.get(at + 5).map(|index| index.data.clone());
    let mut shape = x[0].shape.clone();
    if let (Some(index), Some(last)) = (&index, shape.last_mut()) {
        *last = index.len();
    }
    let mut gw = Tensor { data: vec![0.0; shape.iter().product()], shape };
    eval_grad_w([&x[at], &x[at + 1]], index.as_deref(), &mut gw, a, form);
    apply(x, &gw.data, at + 2, Way::of(a, form == Form::Depthwise, a.flag("sub")));
}

/// Of a fused update: the image's gradient, and how many columns are trained.
fn sizes<'a>(x: &'a [Type], a: &Attrs) -> (&'a Type, u64) {
    let at = changed(a);
    (&x[at], u64::from(if a.flag("sub") { x[at + 5].cols() } else { x[0].cols() }))
}

/// `i8_update` of a convolution's weight with the gradient of `i8_conv2d_grad_w`, which exists for an output channel at
/// a time. Operands `w, m?, error?, gc, x, factor, hyper, rng, index?`. Made by `fuse_update`.
pub const CONV2D_GRAD_W_UPDATE: OpDef = OpDef {
    name: "i8_conv2d_grad_w_update",
    arity: (6, 9),
    attrs: window_attrs![
        int("zero_x", 0),
        int("stream", 0),
        int("sub", 0),
        int("accumulate", 0),
        float("momentum", 0.0)
    ],
    infer: |x, a| infer(x, a, Form::Full),
    eval: |x, _, a| run(x, a, Form::Full),
    mutates: changed,
    flops: |x, _, a| {
        let (gc, trained) = sizes(x, a);
        let elems = x[0].elems() / u64::from(x[0].cols()) * trained;
        2 * u64::from(gc.rows()) * elems + 12 * elems
    },
    ..ROW
};

/// `i8_conv2d_grad_w_update` of a depthwise weight.
pub const DEPTHWISE_GRAD_W_UPDATE: OpDef = OpDef {
    name: "i8_depthwise_grad_w_update",
    arity: (6, 9),
    attrs: window_attrs![
        int("zero_x", 0),
        int("multiplier", 1),
        int("stream", 0),
        int("sub", 0),
        int("accumulate", 0),
        float("momentum", 0.0)
    ],
    infer: |x, a| infer(x, a, Form::Depthwise),
    eval: |x, _, a| run(x, a, Form::Depthwise),
    mutates: changed,
    flops: |x, _, a| {
        let (gc, trained) = sizes(x, a);
        let elems = u64::from(x[0].rows()) * trained;
        2 * u64::from(gc.rows()) * elems + 12 * elems
    },
    ..ROW
};

/// `i8_update` of a bias with the gradient of `i8_grad_b`. Operands `bias i32[O], m?, error?, gc, factor, hyper, rng`.
/// Made by `fuse_update`.
pub const GRAD_B_UPDATE: OpDef = OpDef {
    name: "i8_grad_b_update",
    arity: (5, 7),
    attrs: &[int("stream", 0), int("accumulate", 0), float("momentum", 0.0)],
    infer: |x, a| {
        let gc = x.get(changed(a)).ok_or("there is no gradient")?;
        must_be("bias", &x[0], DType::I32, &[gc.cols()])?;
        must_be("gc", gc, DType::F32, &gc.shape)?;
        check(x, changed(a) + 1, &Type::f32(&[gc.cols()]), Way::of(a, false, false))
    },
    eval: |x, _, a| {
        let grad = sum_channels(&x[changed(a)]);
        apply(x, &grad, changed(a) + 1, Way::of(a, false, false));
    },
    mutates: changed,
    flops: |x, _, a| x[changed(a)].elems() + 12 * x[0].elems(),
    ..ROW
};
