//! Three convolutions in a row whose inner images exist for a few rows at a time.

use super::super::def::{OpDef, ROW, Tensor};
use super::conv::{Form, Forward, flops, out_type};
use super::{Clamp, Window, check_zero};
use crate::ir::attrs::{AttrDef, Attrs, int};
use crate::ir::types::Type;

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
