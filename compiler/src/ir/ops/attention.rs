//! Rotary positions, attention and the key/value cache.
//!
//! Shapes: `T` tokens in `rows` packed rows of `seq`; `h` query heads, `g` key/value heads, `d` per head;
//! `C` capacity of a cache. Segments: tokens of one packed row see each other when their segment ids are equal;
//! a negative id is padding, which neither sees nor is seen. `compute`: 0 multiplies in f32; with 1 a device may round
//! the factors of its products to bf16, weights and gradients of scores too. Sums and softmax are f32.

use super::def::{OpDef, ROW, Saves, Tensor, expect, expect_indices, expect_shape, matrix, no_flops};
use crate::ir::attrs::{AttrDef, Attrs, float, int};
use crate::ir::ops::Op;
use crate::ir::types::Type;

/// Rotates pairs of each head's first `2 len(inv_freq)` features by `position * inv_freq[i]`.
/// Pairs are `(i, i + len)`, or `(2i, 2i+1)` when `interleaved`; both are multiplied by `factor`.
/// `inverse` rotates back, which is the gradient. Operands `x[T, heads*d], positions i32[T], inv_freq[len]`.
/// Source: Su et al. 2021.
pub const ROPE: OpDef = OpDef {
    name: "rope",
    arity: (3, 3),
    attrs: &[int("heads", 1), int("interleaved", 0), float("factor", 1.0), int("inverse", 0)],
    infer: |x, a| {
        let (t, cols) = matrix(&x[0], "x")?;
        expect_indices("positions", &x[1], t)?;
        let heads = a.size("heads") as u32;
        if heads == 0 || cols % heads != 0 || 2 * x[2].elems() > u64::from(cols / heads) {
            return Err(format!("{} rotations do not fit {heads} heads of {}", x[2].elems(), x[0]));
        }
        Ok(vec![x[0].clone()])
    },
    eval: rope,
    saves: &[Saves::Arg(1), Saves::Arg(2)],
    vjp: Some(|v| {
        let (dy, positions, inv_freq) = (v.dy(), v.arg(1), v.arg(2));
        let attrs = [
            ("heads", v.attrs.int("heads").into()),
            ("interleaved", v.attrs.int("interleaved").into()),
            ("factor", v.attrs.float("factor").into()),
            ("inverse", (1 - v.attrs.int("inverse")).into()),
        ];
        vec![Some(v.push(0, Op::Rope, &[dy, positions, inv_freq], &attrs)), None, None]
    }),
    in_place: &[(0, 0)],
    flops: |_, y, _| 4 * y[0].elems(),
    ..ROW
};

fn rope(x: &mut [Tensor], y: &mut [Tensor], a: &Attrs) {
    let (heads, half) = (a.size("heads"), x[2].data.len());
    let d = x[0].cols() / heads;
    let sign = if a.flag("inverse") { -1.0 } else { 1.0 };
    y[0].data.copy_from_slice(&x[0].data);
    for t in 0..x[0].rows() {
        for h in 0..heads {
            for i in 0..half {
                let (p, q) = if a.flag("interleaved") { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let angle = sign * x[1].data[t] * x[2].data[i];
                let (sin, cos) = (angle.sin() * a.float("factor"), angle.cos() * a.float("factor"));
                let (u, v) = (x[0].row(t)[h * d + p], x[0].row(t)[h * d + q]);
                y[0].row_mut(t)[h * d + p] = u * cos - v * sin;
                y[0].row_mut(t)[h * d + q] = u * sin + v * cos;
            }
        }
    }
}

const ATTRS: &[AttrDef] = &[
    int("compute", 0),
    int("seq", 1),
    int("heads", 1),
    int("kv_heads", 1),
    float("scale", 1.0),
    int("causal", 1),
    int("window", 0),
];

/// Checks `q, k, v` and returns `(T, h)`.
fn heads(x: &[Type], a: &Attrs) -> Result<(u32, u32), String> {
    let ((t, q), (_, k), (_, v)) = (matrix(&x[0], "q")?, matrix(&x[1], "k")?, matrix(&x[2], "v")?);
    let (h, g) = (a.size("heads") as u32, a.size("kv_heads") as u32);
    if h == 0 || g == 0 || h % g != 0 || q % h != 0 {
        return Err(format!("{q} columns are not {h} heads over {g} key/value heads"));
    }
    expect("columns of k", k, q / h * g)?;
    expect("columns of v", v, k)?;
    Ok((t, h))
}

fn same_rows(x: &[Type], a: &Attrs) -> Result<(u32, u32), String> {
    let (t, h) = heads(x, a)?;
    expect("tokens of k", x[1].rows(), t)?;
    expect("tokens of v", x[2].rows(), t)?;
    expect_indices("segments", &x[3], t)?;
    if a.size("seq") == 0 || !(t as usize).is_multiple_of(a.size("seq")) {
        return Err(format!("{t} tokens are not packed rows of {}", a.size("seq")));
    }
    Ok((t, h))
}

/// Whether the token at `i` of a packed row sees the one at `j`.
fn sees(segments: &[f64], row: usize, i: usize, j: usize, a: &Attrs) -> bool {
    let (si, sj) = (segments[row + i], segments[row + j]);
    let in_window = a.size("window") == 0 || i.abs_diff(j) < a.size("window");
    si >= 0.0 && si == sj && (!a.flag("causal") || j <= i) && in_window
}

/// The probabilities of query `i` of a packed row and head, over the row's tokens, and their log-sum-exp.
fn probabilities(x: &[Tensor], a: &Attrs, row: usize, i: usize, h: usize) -> (Vec<f64>, f64) {
    let d = x[0].cols() / a.size("heads");
    let kv = h / (a.size("heads") / a.size("kv_heads"));
    let q = &x[0].row(row + i)[h * d..(h + 1) * d];
    let scores: Vec<f64> = (0..a.size("seq"))
        .map(|j| {
            if !sees(&x[3].data, row, i, j, a) {
                return f64::NEG_INFINITY;
            }
            let k = &x[1].row(row + j)[kv * d..(kv + 1) * d];
            a.float("scale") * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        })
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    if max == f64::NEG_INFINITY {
        return (vec![0.0; scores.len()], max);
    }
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
}

fn pair_flops(x: &Type, a: &Attrs) -> u64 {
    // Each of two products does 2 d operations per pair of tokens and head; causal rows have half the pairs.
    let pairs = u64::from(x.rows()) * a.size("seq") as u64;
    4 * pairs * u64::from(x.cols()) / if a.flag("causal") { 2 } else { 1 }
}

/// `o[t] = Σ_j softmax_j(scale q[t]·k[j]) v[j]` per head, over the tokens that `t` sees; a token that sees none
/// gets zero. Operands `q[T,h*d], k[T,g*d], v[T,g*d], segments i32[T]`; results `o[T,h*d]` and the log-sum-exp
/// `lse[T,h]` that the gradient reads in place of the probabilities. No `seq x seq` matrix is stored.
/// Source: Dao et al. 2022.
pub const ATTENTION: OpDef = OpDef {
    name: "attention",
    arity: (4, 4),
    attrs: ATTRS,
    infer: |x, a| same_rows(x, a).map(|(t, h)| vec![x[0].clone(), Type::f32(&[t, h])]),
    eval: |x, y, a| {
        let (seq, heads) = (a.size("seq"), a.size("heads"));
        let d = x[0].cols() / heads;
        for t in 0..x[0].rows() {
            for h in 0..heads {
                let row = t / seq * seq;
                let (p, lse) = probabilities(x, a, row, t - row, h);
                let kv = h / (heads / a.size("kv_heads"));
                for c in 0..d {
                    y[0].row_mut(t)[h * d + c] = (0..seq).map(|j| p[j] * x[2].row(row + j)[kv * d + c]).sum();
                }
                y[1].row_mut(t)[h] = lse;
            }
        }
    },
    saves: &[Saves::Arg(0), Saves::Arg(1), Saves::Arg(2), Saves::Arg(3), Saves::Out(0), Saves::Out(1)],
    vjp: Some(|v| {
        let args = [v.arg(0), v.arg(1), v.arg(2), v.arg(3), v.out(0), v.out(1), v.dy()];
        let attrs: Vec<_> = v.attrs.iter().collect();
        let mut grads: Vec<_> = v.push_all(0, Op::AttentionGrad, &args, &attrs).into_iter().map(Some).collect();
        grads.push(None);
        grads
    }),
    flops: |x, _, a| pair_flops(&x[0], a),
    ..ROW
};

/// Gradients of `attention`: operands `q, k, v, segments, o, lse, do`; results `dq, dk, dv`. Probabilities are
/// computed again from `lse`.
pub const ATTENTION_GRAD: OpDef = OpDef {
    name: "attention_grad",
    arity: (7, 7),
    attrs: ATTRS,
    infer: |x, a| {
        let (t, h) = same_rows(x, a)?;
        expect_shape("o", &x[4], &x[0].shape)?;
        expect_shape("lse", &x[5], &[t, h])?;
        expect_shape("do", &x[6], &x[0].shape)?;
        Ok(vec![x[0].clone(), x[1].clone(), x[2].clone()])
    },
    eval: attention_grad,
    flops: |x, _, a| pair_flops(&x[0], a) * 5 / 2,
    ..ROW
};

fn attention_grad(x: &mut [Tensor], y: &mut [Tensor], a: &Attrs) {
    let (seq, heads) = (a.size("seq"), a.size("heads"));
    let d = x[0].cols() / heads;
    for t in 0..x[0].rows() {
        for h in 0..heads {
            let row = t / seq * seq;
            let (p, _) = probabilities(x, a, row, t - row, h);
            let kv = h / (heads / a.size("kv_heads")) * d;
            let dout = &x[6].row(t)[h * d..(h + 1) * d];
            let dp: Vec<f64> = (0..seq).map(|j| (0..d).map(|c| dout[c] * x[2].row(row + j)[kv + c]).sum()).collect();
            let mean: f64 = (0..seq).map(|j| p[j] * dp[j]).sum();
            for j in 0..seq {
                let ds = p[j] * (dp[j] - mean) * a.float("scale");
                for (c, dout) in dout.iter().enumerate() {
                    y[0].row_mut(t)[h * d + c] += ds * x[1].row(row + j)[kv + c];
                    y[1].row_mut(row + j)[kv + c] += ds * x[0].row(t)[h * d + c];
                    y[2].row_mut(row + j)[kv + c] += p[j] * dout;
                }
            }
        }
    }
}

/// Stores keys or values: `cache[positions[t]] = x[t]` where the position is not negative.
/// Operands `cache[C,n], x[T,n], positions i32[T]`.
pub const KV_WRITE: OpDef = OpDef {
    name: "kv_write",
    arity: (3, 3),
    infer: |x, _| {
        let ((_, n), (t, cols)) = (matrix(&x[0], "cache")?, matrix(&x[1], "x")?);
        expect("columns of x", cols, n)?;
        expect_indices("positions", &x[2], t)?;
        Ok(vec![])
    },
    eval: |x, _, _| {
        for t in 0..x[1].rows() {
            if x[2].data[t] >= 0.0 {
                let (row, at) = (x[1].row(t).to_vec(), x[2].data[t] as usize);
                x[0].row_mut(at).copy_from_slice(&row);
            }
        }
    },
    mutates: |_| 1,
    flops: no_flops,
    ..ROW
};

/// Attention of new tokens over a cache: the token at position `p` sees the cache's rows `0..=p`.
/// Operands `q[T,h*d], kcache[C,g*d], vcache[C,g*d], positions i32[T]`; a negative position gives zero.
pub const ATTENTION_CACHED: OpDef = OpDef {
    name: "attention_cached",
    arity: (4, 4),
    attrs: &[int("heads", 1), int("kv_heads", 1), float("scale", 1.0), int("window", 0)],
    infer: |x, a| {
        let (t, _) = heads(x, a)?;
        expect("rows of the value cache", x[2].rows(), x[1].rows())?;
        expect_indices("positions", &x[3], t)?;
        Ok(vec![x[0].clone()])
    },
    eval: |x, y, a| {
        let heads = a.size("heads");
        let d = x[0].cols() / heads;
        for t in 0..x[0].rows() {
            if x[3].data[t] < 0.0 {
                continue;
            }
            let last = x[3].data[t] as usize;
            let first = if a.size("window") == 0 { 0 } else { (last + 1).saturating_sub(a.size("window")) };
            for h in 0..heads {
                let kv = h / (heads / a.size("kv_heads")) * d;
                let q = &x[0].row(t)[h * d..(h + 1) * d];
                let score = |j: usize| a.float("scale") * (0..d).map(|c| q[c] * x[1].row(j)[kv + c]).sum::<f64>();
                let max = (first..=last).map(score).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = (first..=last).map(|j| (score(j) - max).exp()).sum();
                for c in 0..d {
                    let mixed: f64 = (first..=last).map(|j| (score(j) - max).exp() * x[2].row(j)[kv + c]).sum();
                    y[0].row_mut(t)[h * d + c] = mixed / sum;
                }
            }
        }
    },
    flops: |x, _, _| 4 * x[0].elems() * u64::from(x[1].rows()),
    ..ROW
};
