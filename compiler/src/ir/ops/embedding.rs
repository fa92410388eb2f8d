//! Row lookups and their gradient.

use super::def::{Acc, OpDef, ROW, Saves, expect_indices, list_len, matrix, panel, part};
use super::elementwise::{accumulates, start_from};
use crate::ir::attrs::int;
use crate::ir::ops::Op;
use crate::ir::types::Type;

/// `y[t] = w[index[t]]`. `w`: `[V,D]` in any storage, `index`: `i32[T]`, each in `0..V`.
/// Gradient: `dw[v] = Σ_{t: index[t] = v} dy[t]`; reads the indices only.
pub const EMBEDDING: OpDef = OpDef {
    name: "embedding",
    arity: (2, 2),
    infer: |x, _| {
        let ((_, d), len) = (matrix(&x[0], "w")?, list_len(&x[1])?);
        expect_indices("indices", &x[1], len)?;
        Ok(vec![Type::f32(&[len, d])])
    },
    eval: |x, y, _| {
        for (t, &v) in x[1].data.iter().enumerate() {
            y[0].row_mut(t).copy_from_slice(x[0].row(v as usize));
        }
    },
    saves: &[Saves::Arg(1)],
    vjp: Some(|v| {
        let (dy, index, vocab, rows) = (v.dy(), v.arg(1), v.arg_ty(0).rows(), v.rows());
        let attrs = [("vocab", vocab.into()), ("rows", rows.into())];
        vec![v.needs[0].then(|| v.push(0, Op::EmbeddingGrad, &[dy, index], &attrs)), None]
    }),
    flops: super::def::no_flops,
    ..ROW
};

/// The same from some rows of the table: `y[t] = w[index[t] - first_row]` where that is a row of `w`, else `onto[t]`,
/// or 0. `w` is rows `first_row..first_row + P` of a table of `vocab`. Operands `w[P,D], index i32[T]`, each in
/// `0..vocab`, and `onto[T,D]` or none. Made by `split_tables`.
pub const EMBEDDING_PART: OpDef = OpDef {
    name: "embedding_part",
    arity: (2, 3),
    attrs: &[int("first_row", 0), int("vocab", 1)],
    infer: |x, a| {
        let ((_, d), len) = (matrix(&x[0], "w")?, list_len(&x[1])?);
        expect_indices("indices", &x[1], len)?;
        part(&x[0], a)?;
        accumulates(x, 2, Type::f32(&[len, d]))
    },
    eval: |x, y, a| {
        start_from(x, 2, y);
        for (t, &v) in x[1].data.iter().enumerate() {
            if let Some(row) = (v as usize).checked_sub(a.size("first_row")).filter(|row| *row < x[0].rows()) {
                y[0].row_mut(t).copy_from_slice(x[0].row(row));
            }
        }
    },
    in_place: &[(2, 0)],
    flops: super::def::no_flops,
    ..ROW
};

/// `dw[v] = acc[v] + Σ_{t: index[t] = v} dy[t]`, the sum taken packed row by packed row and
/// then added; with `running` the sum starts from `acc[v]` instead, so that several micro-batches make one sum.
/// With `panel_rows` it is the gradient of rows `first_row..first_row + panel_rows` of `vocab` alone.
/// Operands `dy[T,D], index[T]`, and `acc[vocab,D]`, or of the panel, or none.
pub const EMBEDDING_GRAD: OpDef = OpDef {
    name: "embedding_grad",
    arity: (2, 3),
    attrs: &[int("vocab", 1), int("running", 0), int("rows", 1), int("first_row", 0), int("panel_rows", 0)],
    infer: |x, a| {
        let (t, d) = matrix(&x[0], "dy")?;
        expect_indices("indices", &x[1], t)?;
        if a.size("rows") == 0 || !(t as usize).is_multiple_of(a.size("rows")) {
            return Err(format!("{t} tokens are not {} packed rows", a.size("rows")));
        }
        accumulates(x, 2, Type::f32(&[panel(a.size("vocab"), a)?.len() as u32, d]))
    },
    eval: |x, y, a| {
        start_from(x, 2, y);
        let rows = panel(a.size("vocab"), a).expect("`infer` asks for it");
        for (t, &v) in x[1].data.iter().enumerate().filter(|(_, v)| rows.contains(&(**v as usize))) {
            let row = y[0].row_mut(v as usize - rows.start);
            x[0].row(t).iter().zip(row).for_each(|(dy, dw)| *dw += dy);
        }
    },
    in_place: &[(2, 0)],
    flops: |x, _, _| x[0].elems(),
    acc: Some(Acc { arg: 2, out: 0, whole: true }),
    ..ROW
};
