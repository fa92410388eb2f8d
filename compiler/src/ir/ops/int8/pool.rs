//! Pooling over windows of int8 images. Padding is no part of a window.

use super::super::def::{OpDef, ROW, Saves, Tensor, Vjp};
use super::{Clamp, Window, at, image, must_be, nearest, pairs, product, put, with_mask};
use crate::ir::attrs::{AttrDef, Attrs, float, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;
use tinyforge_plan::DType;

const ATTRS: &[AttrDef] = window_attrs![int("kh", 1), int("kw", 1), int("zero", 0), int("lo", -128), int("hi", 127)];
const GRAD_ATTRS: &[AttrDef] = window_attrs![int("kh", 1), int("kw", 1), int("h", 1), int("w", 1)];

fn kernel(a: &Attrs) -> [u32; 2] {
    [a.size("kh") as u32, a.size("kw") as u32]
}

fn pooled(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    let ([n, h, w, c], window) = (image(&x[0], DType::I8, "x")?, Window::of(a));
    Clamp::of(a, "zero").check()?;
    window.check([h, w], kernel(a))?;
    Ok(vec![Type::new(DType::I8, &[n, window.out[0] as u32, window.out[1] as u32, c])])
}

/// Calls `f(index in y, indices in x of the window, row-major)`, results in row-major order.
fn for_windows(x: &[usize], y: &[usize], a: &Attrs, mut f: impl FnMut(usize, &[usize])) {
    let (window, taps) = (Window::of(a), (a.size("kh"), a.size("kw")));
    for (n, (i, j)) in (0..y[0]).flat_map(|n| pairs(y[1], y[2]).map(move |p| (n, p))) {
        for c in 0..y[3] {
            let inside = pairs(taps.0, taps.1).filter_map(|(r, s)| {
                let (h, w) = (window.source(0, i, r, x[1])?, window.source(1, j, s, x[2])?);
                Some(at(x, [n, h, w, c]))
            });
            f(at(y, [n, i, j, c]), &inside.collect::<Vec<_>>());
        }
    }
}

fn grads(v: &mut Vjp, op: Op, args: &[Value]) -> Vec<Option<Value>> {
    let ty = v.arg_ty(0);
    let shared: Vec<_> = v.attrs.iter().filter(|(n, _)| GRAD_ATTRS.iter().any(|d| d.name == *n)).collect();
    let extra = [("h", ty.shape[1].into()), ("w", ty.shape[2].into())];
    vec![Some(v.push(0, op, args, &[&shared[..], &extra].concat()))]
}

fn average(x: &[Tensor], y: &mut [Tensor], a: &Attrs, exact: bool) {
    let (clamp, shape) = (Clamp::of(a, "zero"), y[0].shape.clone());
    for_windows(&x[0].shape, &shape, a, |yi, window| {
        let sum: f64 = window.iter().map(|&i| x[0].data[i] - clamp.zero).sum();
        let v = match exact {
            true => f64::from(sum as f32 / window.len() as f32),
            false => sum / window.len() as f64,
        };
        y[0].data[yi] = clamp.apply(nearest(v, exact)).0;
    });
}

/// `y = clamp(nearest(Σ (x - zero) / count) + zero, lo, hi)` over each window of `kh x kw`, `count` its elements inside
/// the image; one f32 quotient. Gradient reads nothing.
pub const AVG_POOL: OpDef = OpDef {
    name: "i8_avg_pool",
    attrs: ATTRS,
    infer: pooled,
    eval: |x, y, a| average(x, y, a, true),
    smooth: Some(|x, y, a| average(x, y, a, false)),
    vjp: Some(|v| {
        let args = [v.dy()];
        grads(v, Op::I8AvgPoolGrad, &args)
    }),
    flops: |_, y, a| y[0].elems() * (a.size("kh") * a.size("kw")) as u64,
    ..ROW
};

/// `i8_avg_pool` in whole numbers, ties away from zero:
/// `y = clamp(sign(S) floor((|S| + floor(count / 2)) / count) + zero, lo, hi)`, `S = Σ (x - zero)`.
pub const AVG_POOL_AWAY: OpDef = OpDef {
    name: "i8_avg_pool_away",
    eval: |x, y, a| {
        let (clamp, shape) = (Clamp::of(a, "zero"), y[0].shape.clone());
        for_windows(&x[0].shape, &shape, a, |yi, window| {
            let (sum, count) = (window.iter().map(|&i| x[0].data[i] - clamp.zero).sum::<f64>(), window.len() as f64);
            let mean = ((sum.abs() + (count / 2.0).floor()) / count).floor();
            y[0].data[yi] = clamp.apply(sum.signum() * mean).0;
        });
    },
    ..AVG_POOL
};

fn sums(x: &[Tensor], y: &mut [Tensor], a: &Attrs, exact: bool) {
    let (clamp, shape) = (Clamp { zero: 0.0, lo: a.float("lo"), hi: a.float("hi") }, y[0].shape.clone());
    let (scale, offset) = (a.float("scale"), a.float("offset"));
    for_windows(&x[0].shape, &shape, a, |yi, window| {
        let scaled = product(window.iter().map(|&i| x[0].data[i]).sum(), scale, exact);
        let v = if exact { f64::from(scaled as f32 + offset as f32) } else { scaled + offset };
        put(y, yi, clamp.apply(nearest(v, exact)));
    });
}

/// Refuses windows that reach over the border.
fn check_inside(x: &Type, a: &Attrs) -> Result<(), String> {
    let (window, taps) = (Window::of(a), kernel(a));
    for (d, taps) in taps.into_iter().enumerate() {
        let end = (window.out[d] as u64 - 1) * window.stride[d] as u64 + u64::from(taps);
        if window.pad[d] > 0 || end > u64::from(x.shape[d + 1]) {
            return Err(format!("windows up to {end}, padding {}, reach out of {}", window.pad[d], x.shape[d + 1]));
        }
    }
    Ok(())
}

/// `y = clamp(nearest(scale Σ x + offset), lo, hi)` over each window of `kh x kw`, inside the image; product and sum
/// each rounded to f32. Of stored numbers, so that means and changes of scale have one row: `offset` holds both zero
/// points. The second result, with `mask`, says where nothing was clamped. Gradient is `dy scale` at each element; it
/// reads the mask alone.
pub const SUM_POOL: OpDef = OpDef {
    name: "i8_sum_pool",
    attrs: window_attrs![
        int("kh", 1),
        int("kw", 1),
        float("scale", 1.0),
        float("offset", 0.0),
        int("lo", -128),
        int("hi", 127),
        int("mask", 0)
    ],
    infer: |x, a| {
        let ([n, h, w, c], window) = (image(&x[0], DType::I8, "x")?, Window::of(a));
        Clamp { zero: 0.0, lo: a.float("lo"), hi: a.float("hi") }.check()?;
        window.check([h, w], kernel(a))?;
        check_inside(&x[0], a)?;
        with_mask(Type::new(DType::I8, &[n, window.out[0] as u32, window.out[1] as u32, c]), a)
    },
    eval: |x, y, a| sums(x, y, a, true),
    smooth: Some(|x, y, a| sums(x, y, a, false)),
    saves: &[Saves::Out(1)],
    vjp: Some(|v| {
        let (dy, mask, len) = (v.dy(), v.out(1), v.arg_ty(0).cols());
        let taps = u64::from(kernel(v.attrs)[0]) * u64::from(kernel(v.attrs)[1]);
        let factor = v.attrs.float("scale") * taps as f64;
        let scale = v.push(0, Op::Fill, &[], &[("len", len.into()), ("value", factor.into())]);
        let g = v.push(0, Op::I8ScaleGrad, &[dy, mask, scale], &[("has_mask", true.into())]);
        if taps == 1 && Window::of(v.attrs).stride == [1, 1] {
            vec![Some(g)]
        } else {
            grads(v, Op::I8AvgPoolGrad, &[g])
        }
    }),
    tape: Some("mask"),
    flops: |_, y, a| y[0].elems() * (a.size("kh") * a.size("kw")) as u64,
    ..ROW
};

fn first_max(x: &Tensor, window: &[usize]) -> usize {
    window[1..].iter().fold(window[0], |best, &i| if x.data[i] > x.data[best] { i } else { best })
}

/// `y = clamp(max, lo, hi)` of each window. Gradient goes to the first largest element, row-major; it reads `x`.
pub const MAX_POOL: OpDef = OpDef {
    name: "i8_max_pool",
    attrs: ATTRS,
    infer: pooled,
    eval: |x, y, a| {
        let (shape, lo, hi) = (y[0].shape.clone(), a.float("lo"), a.float("hi"));
        for_windows(&x[0].shape, &shape, a, |yi, window| {
            y[0].data[yi] = x[0].data[first_max(&x[0], window)].clamp(lo, hi);
        });
    },
    saves: &[Saves::Arg(0)],
    vjp: Some(|v| {
        let args = [v.dy(), v.arg(0)];
        grads(v, Op::I8MaxPoolGrad, &args)
    }),
    flops: |_, y, a| y[0].elems() * (a.size("kh") * a.size("kw")) as u64,
    ..ROW
};

fn unpooled(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    let ([n, .., c], window) = (image(&x[0], DType::F32, "g")?, Window::of(a));
    let side = [a.size("h") as u32, a.size("w") as u32];
    window.check(side, kernel(a))?;
    must_be("g", &x[0], DType::F32, &[n, window.out[0] as u32, window.out[1] as u32, c])?;
    let ty = Type::f32(&[n, side[0], side[1], c]);
    if let Some(read) = x.get(1) {
        must_be("x", read, DType::I8, &ty.shape)?;
    }
    Ok(vec![ty])
}

/// Adds to an f32 element.
fn add(y: &mut Tensor, i: usize, g: f32) {
    y.data[i] = f64::from(y.data[i] as f32 + g);
}

/// `gx[q] = Σ g[p] / count(p)` over the windows that hold `q`, ascending, in f32. Operand `g f32[N,out_h,out_w,C]`.
pub const AVG_POOL_GRAD: OpDef = OpDef {
    name: "i8_avg_pool_grad",
    attrs: GRAD_ATTRS,
    infer: unpooled,
    eval: |x, y, a| {
        let (g, shape): (&Tensor, _) = (&x[0], y[0].shape.clone());
        for_windows(&shape, &g.shape, a, |p, window| {
            let part = g.data[p] as f32 / window.len() as f32;
            window.iter().for_each(|&q| add(&mut y[0], q, part));
        });
    },
    flops: |x, _, a| x[0].elems() * (a.size("kh") * a.size("kw")) as u64,
    ..ROW
};

/// `gx[q] = Σ g[p]` over the windows whose first largest element `q` is, ascending, in f32. Operands `g, x`.
pub const MAX_POOL_GRAD: OpDef = OpDef {
    name: "i8_max_pool_grad",
    arity: (2, 2),
    attrs: GRAD_ATTRS,
    infer: unpooled,
    eval: |x, y, a| {
        let (g, xs): (&Tensor, &Tensor) = (&x[0], &x[1]);
        for_windows(&xs.shape, &g.shape, a, |p, window| add(&mut y[0], first_max(xs, window), g.data[p] as f32));
    },
    flops: |x, _, a| x[0].elems() * (a.size("kh") * a.size("kw")) as u64,
    ..ROW
};
