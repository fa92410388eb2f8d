//! Pooling over windows of images `[B,C,H,W]`, `kernel` high and `kernel_w` wide (0: `kernel`), that move as those of
//! convolutions do; padding is counted by no window.

use super::conv::{Moves, move_attrs};
use super::def::{OpDef, ROW, Saves, Tensor, Vjp, expect_shape, matrix};
use crate::ir::attrs::{AttrDef, Attrs, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;

const ATTRS: &[AttrDef] = move_attrs![2; int("kernel", 2), int("kernel_w", 0)];

/// Height and width of the window.
fn kernel(a: &Attrs) -> [u32; 2] {
    let kernel = a.size("kernel") as u32;
    [kernel, if a.int("kernel_w") == 0 { kernel } else { a.size("kernel_w") as u32 }]
}

fn image(ty: &Type) -> Result<[u32; 4], String> {
    ty.shape[..].try_into().map_err(|_| format!("images must be [B,C,H,W], found {ty}"))
}

fn pooled(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    let [b, c, h, w] = image(&x[0])?;
    let (moves, kernel) = (Moves::of(a)?, kernel(a));
    let mut sides = [h, w];
    for (d, side) in sides.iter_mut().enumerate() {
        let (len, pad) = (*side, moves.pad[d]);
        *side = moves.out_len(d, len, kernel[d])?;
        let last = u64::from(*side - 1) * u64::from(moves.stride[d]);
        if pad >= kernel[d] || last >= u64::from(len) + u64::from(pad) {
            return Err(format!("padding {pad} and {} leaves windows of {} empty", moves.pad_end[d], kernel[d]));
        }
    }
    Ok(vec![Type::f32(&[b, c, sides[0], sides[1]])])
}

/// Calls `f(index in y, indices in x of the window)`.
fn for_windows(x: &[usize], y: &[usize], a: &Attrs, mut f: impl FnMut(usize, &[usize])) {
    let (moves, kernel) = (Moves::of(a).expect("the shape rule has read them"), kernel(a).map(|d| d as usize));
    let ([down, across], [top, left]) = (moves.stride.map(|d| d as usize), moves.pad.map(|d| d as usize));
    for (plane, i, j) in (0..y[0] * y[1]).flat_map(|p| (0..y[2]).flat_map(move |i| (0..y[3]).map(move |j| (p, i, j)))) {
        let mut window = Vec::new();
        for (r, s) in (0..kernel[0]).flat_map(|r| (0..kernel[1]).map(move |s| (r, s))) {
            let (h, w) = (i * down + r, j * across + s);
            if h >= top && w >= left && h - top < x[2] && w - left < x[3] {
                window.push((plane * x[2] + h - top) * x[3] + w - left);
            }
        }
        f((plane * y[2] + i) * y[3] + j, &window);
    }
}

fn grads(v: &mut Vjp, op: Op, args: &[Value]) -> Vec<Option<Value>> {
    let ty = v.arg_ty(0);
    let shared: Vec<_> = v.attrs.iter().collect();
    let extra = [("h", ty.shape[2].into()), ("w", ty.shape[3].into())];
    vec![Some(v.push(0, op, args, &[&shared[..], &extra].concat()))]
}

/// `y = max` of each window. Gradient goes to the first largest element; it reads `x`.
pub const MAX_POOL: OpDef = OpDef {
    name: "max_pool",
    attrs: ATTRS,
    infer: pooled,
    eval: |x, y, a| {
        let shape = y[0].shape.clone();
        for_windows(&x[0].shape, &shape, a, |yi, window| y[0].data[yi] = x[0].data[first_max(&x[0], window)]);
    },
    saves: &[Saves::Arg(0)],
    vjp: Some(|v| {
        let args = [v.dy(), v.arg(0)];
        grads(v, Op::MaxPoolGrad, &args)
    }),
    ..ROW
};

fn first_max(x: &Tensor, window: &[usize]) -> usize {
    window[1..].iter().fold(window[0], |best, &i| if x.data[i] > x.data[best] { i } else { best })
}

const GRAD_ATTRS: &[AttrDef] = move_attrs![2; int("kernel", 2), int("kernel_w", 0), int("h", 1), int("w", 1)];

fn unpooled(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    let [b, c, ..] = image(&x[0])?;
    let ty = Type::f32(&[b, c, a.size("h") as u32, a.size("w") as u32]);
    expect_shape("dy", &x[0], &pooled(std::slice::from_ref(&ty), a)?[0].shape)?;
    if let Some(read) = x.get(1) {
        expect_shape("x", read, &ty.shape)?;
    }
    Ok(vec![ty])
}

/// `dx` of `max_pool`; operands `dy, x`.
pub const MAX_POOL_GRAD: OpDef = OpDef {
    name: "max_pool_grad",
    arity: (2, 2),
    attrs: GRAD_ATTRS,
    infer: unpooled,
    eval: |x, y, a| {
        let (dy, xs): (&Tensor, &Tensor) = (&x[0], &x[1]);
        for_windows(&xs.shape, &dy.shape, a, |yi, window| y[0].data[first_max(xs, window)] += dy.data[yi]);
    },
    ..ROW
};

/// `y = mean` of each window's elements, padding not counted. Gradient reads nothing.
pub const AVG_POOL: OpDef = OpDef {
    name: "avg_pool",
    attrs: ATTRS,
    infer: pooled,
    eval: |x, y, a| {
        let shape = y[0].shape.clone();
        for_windows(&x[0].shape, &shape, a, |yi, window| {
            y[0].data[yi] = window.iter().map(|&i| x[0].data[i]).sum::<f64>() / window.len() as f64;
        });
    },
    vjp: Some(|v| {
        let args = [v.dy()];
        grads(v, Op::AvgPoolGrad, &args)
    }),
    ..ROW
};

/// `dx` of `avg_pool`; operand `dy`.
pub const AVG_POOL_GRAD: OpDef = OpDef {
    name: "avg_pool_grad",
    attrs: GRAD_ATTRS,
    infer: unpooled,
    eval: |x, y, a| {
        let (dy, shape): (&Tensor, _) = (&x[0], y[0].shape.clone());
        for_windows(&shape, &dy.shape, a, |yi, window| {
            window.iter().for_each(|&i| y[0].data[i] += dy.data[yi] / window.len() as f64);
        });
    },
    ..ROW
};

/// `y[b,c] = mean` of the plane. Gradient reads nothing.
pub const GLOBAL_AVG_POOL: OpDef = OpDef {
    name: "global_avg_pool",
    infer: |x, _| image(&x[0]).map(|[b, c, ..]| vec![Type::f32(&[b, c])]),
    eval: |x, y, _| {
        let area = x[0].shape[2] * x[0].shape[3];
        y[0].data.iter_mut().zip(x[0].data.chunks(area)).for_each(|(y, x)| *y = x.iter().sum::<f64>() / area as f64);
    },
    vjp: Some(|v| {
        let (dy, ty) = (v.dy(), v.arg_ty(0));
        let attrs = [("h", ty.shape[2].into()), ("w", ty.shape[3].into())];
        vec![Some(v.push(0, Op::GlobalAvgPoolGrad, &[dy], &attrs))]
    }),
    flops: |x, _, _| x[0].elems(),
    ..ROW
};

/// `dx[b,c,i,j] = dy[b,c] / (h w)`; operand `dy`.
pub const GLOBAL_AVG_POOL_GRAD: OpDef = OpDef {
    name: "global_avg_pool_grad",
    attrs: &[int("h", 1), int("w", 1)],
    infer: |x, a| {
        let (b, c) = matrix(&x[0], "dy")?;
        Ok(vec![Type::f32(&[b, c, a.size("h") as u32, a.size("w") as u32])])
    },
    eval: |x, y, a| {
        let area = a.size("h") * a.size("w");
        y[0].data.iter_mut().enumerate().for_each(|(i, dx)| *dx = x[0].data[i / area] / area as f64);
    },
    ..ROW
};
