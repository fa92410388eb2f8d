//! Elementwise sums and products, and ops that move or sum columns and rows.
//!
//! Shapes: `T` tokens (or samples), `N` columns.

use super::def::{
    Acc, OpDef, ROW, Vjp, all_same, expect, expect_indices, expect_shape, list_len, matrix, no_flops, same,
};
use crate::ir::attrs::{Attrs, float, int};
use crate::ir::graph::Value;
use crate::ir::ops::Op;
use crate::ir::types::Type;
use crate::ir::verify::check_type;

fn pass_to_both(v: &mut Vjp) -> Vec<Option<Value>> {
    vec![Some(v.dy()), Some(v.dy())]
}

/// `y = a + b`, element by element. Gradient: `da = dy`, `db = dy`; reads nothing.
pub const ADD: OpDef = OpDef {
    name: "add",
    arity: (2, 2),
    infer: all_same,
    eval: |x, y, _| {
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] + x[1].data[i];
        }
    },
    vjp: Some(pass_to_both),
    in_place: &[(0, 0), (1, 0)],
    ..ROW
};

/// `y = a + scale * b`. Gradient: `da = dy`, `db = scale * dy`; reads nothing.
pub const ADD_SCALED: OpDef = OpDef {
    name: "add_scaled",
    arity: (2, 2),
    attrs: &[float("scale", 1.0)],
    infer: all_same,
    eval: |x, y, a| {
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] + a.float("scale") * x[1].data[i];
        }
    },
    vjp: Some(|v| {
        let (dy, scale) = (v.dy(), v.attrs.float("scale"));
        let db = v.needs[1].then(|| v.push(1, Op::Scale, &[dy], &[("scale", scale.into())]));
        vec![Some(dy), db]
    }),
    in_place: &[(0, 0)],
    flops: |_, outs, _| 2 * outs[0].elems(),
    ..ROW
};

/// `y[t,:] = x[t,:] + b`. `x`: `f32[.., N]`, `b`: `f32[N]`. Gradient: `dx = dy`, `db = Σ_t dy[t,:]`.
pub const ADD_ROW: OpDef = OpDef {
    name: "add_row",
    arity: (2, 2),
    infer: |x, _| {
        expect("length of the row", x[1].elems(), x[0].cols())?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, _| {
        let cols = x[1].data.len();
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] + x[1].data[i % cols];
        }
    },
    vjp: Some(|v| {
        let (dy, rows) = (v.dy(), v.rows());
        let db = v.needs[1].then(|| v.push(1, Op::SumRows, &[dy], &[("rows", rows.into())]));
        vec![Some(dy), db]
    }),
    in_place: &[(0, 0)],
    ..ROW
};

/// `y = a * b`, element by element. Gradient: `da = dy * b`, `db = dy * a`.
pub const MUL: OpDef = OpDef {
    name: "mul",
    arity: (2, 2),
    infer: all_same,
    eval: |x, y, _| {
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = x[0].data[i] * x[1].data[i];
        }
    },
    saves: &[super::Saves::Arg(0), super::Saves::Arg(1)],
    vjp: Some(|v| {
        let (dy, a, b) = (v.dy(), v.arg(0), v.arg(1));
        let da = v.needs[0].then(|| v.push(0, Op::Mul, &[dy, b], &[]));
        let db = v.needs[1].then(|| v.push(1, Op::Mul, &[dy, a], &[]));
        vec![da, db]
    }),
    in_place: &[(0, 0), (1, 0)],
    ..ROW
};

/// `y = scale * x`. Gradient: `dx = scale * dy`; reads nothing.
pub const SCALE: OpDef = OpDef {
    name: "scale",
    attrs: &[float("scale", 1.0)],
    eval: |x, y, a| {
        for (i, out) in y[0].data.iter_mut().enumerate() {
            *out = a.float("scale") * x[0].data[i];
        }
    },
    vjp: Some(|v| {
        let (dy, scale) = (v.dy(), v.attrs.float("scale"));
        vec![Some(v.push(0, Op::Scale, &[dy], &[("scale", scale.into())]))]
    }),
    in_place: &[(0, 0)],
    ..ROW
};

/// `y[i] = value`, `len` elements: seeds and constants.
pub const FILL: OpDef = OpDef {
    name: "fill",
    arity: (0, 0),
    attrs: &[int("len", 1), float("value", 0.0)],
    infer: |_, a| Ok(vec![Type::f32(&[a.size("len") as u32])]),
    eval: |_, y, a| y[0].data.fill(a.float("value")),
    flops: no_flops,
    ..ROW
};

/// Stores `x` in `state`; operands `state, x`. Costs nothing where `x` was added to the state in place.
pub const ASSIGN: OpDef = OpDef {
    name: "assign",
    arity: (2, 2),
    infer: |x, a| all_same(x, a).map(|_| vec![]),
    eval: |x, _, _| x[0].data = x[1].data.clone(),
    mutates: |_| 1,
    flops: no_flops,
    ..ROW
};

/// Sets every element of `state` to zero.
pub const ZERO: OpDef = OpDef {
    name: "zero",
    infer: |_, _| Ok(vec![]),
    eval: |x, _, _| x[0].data.fill(0.0),
    mutates: |_| 1,
    flops: no_flops,
    ..ROW
};

/// The same elements under the shape `[d0, d1, d2, d3]`, of which zeros are left out. Costs nothing: a result
/// takes its operand's place.
pub const RESHAPE: OpDef = OpDef {
    name: "reshape",
    attrs: &[int("d0", 0), int("d1", 0), int("d2", 0), int("d3", 0)],
    infer: |x, a| {
        let shape: Vec<u32> = ["d0", "d1", "d2", "d3"].iter().map(|d| a.size(d) as u32).filter(|&d| d > 0).collect();
        let ty = Type::new(x[0].dtype, &shape);
        check_type(&ty)?;
        if ty.elems() == x[0].elems() { Ok(vec![ty]) } else { Err(format!("{} has not the elements of {ty}", x[0])) }
    },
    eval: |x, y, _| y[0].data.copy_from_slice(&x[0].data),
    vjp: Some(|v| {
        let (dy, ty) = (v.dy(), v.arg_ty(0));
        let names = ["d0", "d1", "d2", "d3"];
        let attrs: Vec<_> = names.iter().zip(&ty.shape).map(|(n, &d)| (*n, d.into())).collect();
        vec![Some(v.push(0, Op::Reshape, &[dy], &attrs))]
    }),
    in_place: &[(0, 0)],
    flops: no_flops,
    ..ROW
};

/// Column sums `y[n] = acc[n] + Σ_t x[t,n]`, packed row by packed row: the gradient of a bias.
/// `x`: `f32[T,N]`, `acc`: `f32[N]` or absent (zero); `T` holds `rows` packed rows.
pub const SUM_ROWS: OpDef = OpDef {
    name: "sum_rows",
    arity: (1, 2),
    attrs: &[int("rows", 1)],
    infer: |x, a| {
        if a.size("rows") == 0 || !(x[0].rows() as usize).is_multiple_of(a.size("rows")) {
            return Err(format!("{} tokens are not {} packed rows", x[0].rows(), a.size("rows")));
        }
        accumulates(x, 1, Type::f32(&[x[0].cols()]))
    },
    eval: |x, y, _| {
        start_from(x, 1, y);
        for t in 0..x[0].rows() {
            x[0].row(t).iter().zip(&mut y[0].data).for_each(|(x, y)| *y += x);
        }
    },
    in_place: &[(1, 0)],
    flops: |x, _, _| x[0].elems(),
    acc: Some(Acc { arg: 1, out: 0, whole: false }),
    ..ROW
};

/// The result type of an op whose operand `i`, where present, is what the result is added to.
pub fn accumulates(args: &[Type], i: usize, ty: Type) -> Result<Vec<Type>, String> {
    match args.get(i) {
        Some(acc) if *acc != ty => Err(format!("accumulator is {acc}, must be {ty}")),
        _ => Ok(vec![ty]),
    }
}

/// Sets the result to the accumulator, operand `i`, where present.
pub fn start_from(args: &[super::Tensor], i: usize, outs: &mut [super::Tensor]) {
    if let Some(acc) = args.get(i) {
        outs[0].data.copy_from_slice(&acc.data);
    }
}

/// Chosen columns: `y[t,j] = x[t, index[j]]`. `x`: `f32[T,K]`, `index`: `i32[J]`, all below `K`.
pub const GATHER_COLS: OpDef = OpDef {
    name: "gather_cols",
    arity: (2, 2),
    infer: |x, _| {
        let ((t, _), len) = (matrix(&x[0], "x")?, list_len(&x[1])?);
        expect_indices("index", &x[1], len)?;
        Ok(vec![Type::f32(&[t, len])])
    },
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            for (j, &k) in x[1].data.iter().enumerate() {
                y[0].row_mut(t)[j] = x[0].row(t)[k as usize];
            }
        }
    },
    saves: &[super::Saves::Arg(1)],
    vjp: Some(|v| {
        let (dy, index, cols) = (v.dy(), v.arg(1), v.arg_ty(0).cols());
        vec![Some(v.push(0, Op::ScatterCols, &[dy, index], &[("cols", cols.into())])), None]
    }),
    flops: no_flops,
    ..ROW
};

/// The transpose of `gather_cols`: `y[t,k] = Σ_{j: index[j] = k} x[t,j]`, `cols` columns.
pub const SCATTER_COLS: OpDef = OpDef {
    name: "scatter_cols",
    arity: (2, 2),
    attrs: &[int("cols", 1)],
    infer: |x, a| {
        let (t, n) = matrix(&x[0], "x")?;
        expect_indices("index", &x[1], n)?;
        Ok(vec![Type::f32(&[t, a.size("cols") as u32])])
    },
    eval: |x, y, _| {
        for t in 0..x[0].rows() {
            for (j, &k) in x[1].data.iter().enumerate() {
                y[0].row_mut(t)[k as usize] += x[0].row(t)[j];
            }
        }
    },
    saves: &[super::Saves::Arg(1)],
    vjp: Some(|v| {
        let (dy, index) = (v.dy(), v.arg(1));
        vec![Some(v.push(0, Op::GatherCols, &[dy, index], &[])), None]
    }),
    flops: no_flops,
    ..ROW
};

/// Columns `start..start+len`: `y[t,j] = x[t, start+j]`. Gradients of slices of one value are put together by
/// `concat_cols` when they cover it, which `fuse` does.
pub const SLICE_COLS: OpDef = OpDef {
    name: "slice_cols",
    attrs: &[int("start", 0), int("len", 1)],
    infer: |x, a| {
        let (t, n) = matrix(&x[0], "x")?;
        let (start, len) = (a.size("start") as u32, a.size("len") as u32);
        if len == 0 || start.checked_add(len).is_none_or(|end| end > n) {
            return Err(format!("columns {start}+{len} are not in {}", x[0]));
        }
        Ok(vec![Type::f32(&[t, len])])
    },
    eval: |x, y, a| {
        let (start, len) = (a.size("start"), a.size("len"));
        for t in 0..x[0].rows() {
            y[0].row_mut(t).copy_from_slice(&x[0].row(t)[start..start + len]);
        }
    },
    vjp: Some(|v| {
        let ty = v.arg_ty(0);
        let (dy, rows) = (v.dy(), ty.rows());
        let (start, len) = (v.attrs.size("start") as u32, v.attrs.size("len") as u32);
        let mut parts = Vec::new();
        if start > 0 {
            parts.push(zeros(v, rows, start));
        }
        parts.push(dy);
        if start + len < ty.cols() {
            parts.push(zeros(v, rows, ty.cols() - start - len));
        }
        vec![Some(v.push(0, Op::ConcatCols, &parts, &[]))]
    }),
    flops: no_flops,
    ..ROW
};

fn zeros(v: &mut Vjp, rows: u32, cols: u32) -> Value {
    let flat = v.push(0, Op::Fill, &[], &[("len", (rows as usize * cols as usize).into())]);
    v.push(0, Op::Reshape, &[flat], &[("d0", rows.into()), ("d1", cols.into())])
}

/// Matrices side by side: `y = [x0 | x1 | ..]`. Gradient: the slices of `dy`.
pub const CONCAT_COLS: OpDef = OpDef {
    name: "concat_cols",
    arity: (1, 8),
    infer: |x, a: &Attrs| {
        let _ = a;
        let rows = x[0].rows();
        let mut cols = 0u32;
        for part in x {
            expect("rows of a part", matrix(part, "a part")?.0, rows)?;
            cols = cols.checked_add(part.cols()).ok_or("the parts have more than 2^32 columns")?;
        }
        Ok(vec![Type::f32(&[rows, cols])])
    },
    eval: |x, y, _| {
        for t in 0..y[0].rows() {
            let joined: Vec<f64> = x.iter().flat_map(|part| part.row(t).to_vec()).collect();
            y[0].row_mut(t).copy_from_slice(&joined);
        }
    },
    vjp: Some(|v| {
        let dy = v.dy();
        let mut start = 0u32;
        (0..v.args.len())
            .map(|i| {
                let len = v.arg_ty(i).cols();
                let at = start;
                start += len;
                let attrs = [("start", at.into()), ("len", len.into())];
                v.needs[i].then(|| v.push(i, Op::SliceCols, &[dy], &attrs))
            })
            .collect()
    }),
    flops: no_flops,
    ..ROW
};

/// The shape rule of ops whose second operand is the gradient of the result: `(x, dy) -> dx`.
pub fn like_first(x: &[Type], a: &Attrs) -> Result<Vec<Type>, String> {
    expect_shape("gradient", &x[1], &x[0].shape)?;
    same(x, a)
}
