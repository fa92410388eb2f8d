// Batch normalisation of images `[B, C, H, W]`; a workgroup has a channel.
//
// ```text
// for c { mean, inverse = of x[:, c]; y[:, c] = (x[:, c] - mean) inverse w[c] + b[c] }
// ```
// The 64 lanes take the channel's elements in turn, and their sums are added pair by pair. Bound: bytes over memory
// bandwidth: the input is read three times forward, input and gradient twice backward.

struct Params {
    step: u32,
    images: u32,
    channels: u32,
    pixels: u32,
    eps: f32,
    momentum: f32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// The place of element `k` of channel `c`.
fn place(c: u32, k: u32) -> u32 {
    return (k / p.pixels * p.channels + c) * p.pixels + k % p.pixels;
}

/// Operands `running_mean, running_var, x, w, b, y, mean, inverse`.
@compute @workgroup_size(64)
fn batch_norm(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let c = g.x;
    let count = p.images * p.pixels;
    var sum = 0.0;
    for (var k = l; k < count; k += 64u) { sum += f2[place(c, k)]; }
    let mean = sum_of_lanes(l, sum, 64u) / f32(count);
    var square = 0.0;
    for (var k = l; k < count; k += 64u) {
        let d = f2[place(c, k)] - mean;
        square = fma(d, d, square);
    }
    let variance = sum_of_lanes(l, square, 64u) / f32(count);
    let inverse = 1.0 / sqrt(variance + p.eps);
    for (var k = l; k < count; k += 64u) {
        let i = place(c, k);
        f5[i] = fma((f2[i] - mean) * inverse, f3[c], f4[c]);
    }
    if (l == 0u) {
        f6[c] = mean;
        f7[c] = inverse;
        if (!is_stopped()) {
            let unbiased = variance * (f32(count) / max(f32(count) - 1.0, 1.0));
            f0[c] += p.momentum * (mean - f0[c]);
            f1[c] += p.momentum * (unbiased - f1[c]);
        }
    }
}

/// Operands `x, w, mean, inverse, dy, dx, dw, db`.
@compute @workgroup_size(64)
fn batch_norm_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let c = g.x;
    let count = p.images * p.pixels;
    var db = 0.0;
    var dw = 0.0;
    for (var k = l; k < count; k += 64u) {
        let i = place(c, k);
        db += f4[i];
        dw = fma(f4[i], (f0[i] - f2[c]) * f3[c], dw);
    }
    let all_b = sum_of_lanes(l, db, 64u);
    let all_w = sum_of_lanes(l, dw, 64u);
    for (var k = l; k < count; k += 64u) {
        let i = place(c, k);
        let normal = (f0[i] - f2[c]) * f3[c];
        f5[i] = f1[c] * f3[c] * (f4[i] - all_b / f32(count) - normal * (all_w / f32(count)));
    }
    if (l == 0u) {
        f6[c] = all_w;
        f7[c] = all_b;
    }
}

/// `y = w (x - mean) / sqrt(var + eps) + b`; an invocation an element. Operands `x, w, b, mean, var, y`.
@compute @workgroup_size(256)
fn batch_norm_eval(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i >= p.images * p.channels * p.pixels) { return; }
    let c = i / p.pixels % p.channels;
    f5[i] = fma((f0[i] - f3[c]) * (1.0 / sqrt(f4[c] + p.eps)), f1[c], f2[c]);
}
