//! Rotary positions, attention and the key/value cache.

use super::call::Call;
use super::{Kernel, KernelError, Query, cols, plain, rows};
use tinyforge_kernels::f32::attention::{self as k, Attention, CachedAttention, Saved};
use tinyforge_kernels::f32::rope::{self, Rope};

pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "rope",
        run: rope,
        scratch: |q| {
            let heads = q.size("heads").max(1);
            let (head_dim, rotated) = (cols(&q.args[0]) / heads, 2 * cols(&q.args[2]));
            let supported = rope::rope_supports(heads, head_dim, rotated);
            supported.then_some(0).ok_or_else(|| format!("heads of {head_dim} elements, {rotated} of them rotated"))
        },
    },
    Kernel {
        name: "attention",
        run: attention,
        scratch: |q| supported(q).map(|dims| k::attention_scratch_bytes(&dims, q.threads)),
    },
    Kernel {
        name: "attention_grad",
        run: attention_grad,
        scratch: |q| supported(q).map(|dims| k::attention_grad_scratch_bytes(&dims, q.threads)),
    },
    plain("kv_write", |c| {
        let (cols, x, positions, cache) = (c.step.args[0].cols(), c.arg(1), c.arg(2), c.change(0));
        k::kv_write(cols, x, positions, cache).map_err(|e| c.error(e.to_string()))
    }),
    Kernel { name: "attention_cached", run: attention_cached, scratch: attention_cached_scratch_bytes },
];

fn rope(c: &mut Call) -> Result<(), KernelError> {
    let heads = c.step.size("heads").max(1);
    let rope = Rope {
        heads,
        head_dim: c.step.args[0].cols() / heads,
        inv_freq: c.arg(2),
        is_interleaved: c.step.int("interleaved") != 0,
        factor: c.step.float("factor"),
        is_inverse: c.step.int("inverse") != 0,
    };
    let (x, positions, y) = (c.maybe(0), c.arg(1), c.out(0));
    rope::rope(c.par, &rope, x, positions, y);
    Ok(())
}

fn supported(q: &Query) -> Result<Attention, String> {
    let (heads, seq) = (q.size("heads").max(1), q.size("seq").max(1));
    let window = q.size("window");
    let dims = Attention {
        rows: rows(&q.args[0]) / seq,
        seq,
        heads,
        kv_heads: q.size("kv_heads"),
        head_dim: cols(&q.args[0]) / heads,
        scale: q.float("scale"),
        is_causal: q.int("causal") != 0,
        window: (window > 0).then_some(window),
    };
    if k::attention_supports(&dims) { Ok(dims) } else { Err(format!("{dims:?} is not supported")) }
}

fn dims(c: &Call) -> Attention {
    let (heads, seq) = (c.step.size("heads").max(1), c.step.size("seq").max(1));
    let window = c.step.size("window");
    Attention {
        rows: c.step.args[0].rows() / seq,
        seq,
        heads,
        kv_heads: c.step.size("kv_heads"),
        head_dim: c.step.args[0].cols() / heads,
        scale: c.step.float("scale"),
        is_causal: c.step.int("causal") != 0,
        window: (window > 0).then_some(window),
    }
}

fn attention(c: &mut Call) -> Result<(), KernelError> {
    let dims = dims(c);
    let (q, kk, v, segments) = (c.arg(0), c.arg(1), c.arg(2), c.arg(3));
    let (o, lse, scratch) = (c.out(0), c.out(1), c.scratch());
    k::attention(c.par, &dims, q, kk, v, segments, o, lse, scratch);
    Ok(())
}

fn attention_grad(c: &mut Call) -> Result<(), KernelError> {
    let dims = dims(c);
    let saved =
        Saved { q: c.arg(0), k: c.arg(1), v: c.arg(2), segments: c.arg(3), o: c.arg(4), lse: c.arg(5), d_o: c.arg(6) };
    let (dq, dk, dv, scratch) = (c.out(0), c.out(1), c.out(2), c.scratch());
    k::attention_grad(c.par, &dims, &saved, dq, dk, dv, scratch);
    Ok(())
}

fn cached(Attention { heads, kv_heads, head_dim, scale, window, .. }: Attention) -> CachedAttention {
    CachedAttention { heads, kv_heads, head_dim, scale, window }
}

fn attention_cached_scratch_bytes(q: &Query) -> Result<usize, String> {
    let cached = cached(supported(q)?);
    Ok(k::attention_cached_scratch_bytes(&cached, rows(&q.args[0]), rows(&q.args[1]), q.threads))
}

fn attention_cached(c: &mut Call) -> Result<(), KernelError> {
    let cached = cached(dims(c));
    let (q, keys, values, positions) = (c.arg(0), c.arg(1), c.arg(2), c.arg(3));
    let (o, scratch) = (c.out(0), c.scratch());
    k::attention_cached(c.par, &cached, q, keys, values, positions, o, scratch).map_err(|e| c.error(e.to_string()))
}
