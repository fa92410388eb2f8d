// Root-mean-square and layer normalisation of vectors.
//
// ```text
// for v { inverse = 1 / sqrt(mean(x[v, :]^2) + eps); for c { y[v, c] = x[v, c] inverse w[c] } }
// ```
// A workgroup has a vector; its 64 lanes take elements in turn, and their sums are added pair by pair. Several vectors
// of a token (heads) share the weight. Bound: 8 bytes an element forward, 12 backward, over memory bandwidth.

struct Params {
    step: u32,
    vectors: u32,
    cols: u32,
    /// Vectors of a packed row.
    seq: u32,
    eps: f32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// `y = x w / sqrt(mean(x^2) + eps)`. Operands `x, w, y`.
@compute @workgroup_size(64)
fn rms_norm(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let first = v * p.cols;
    var sum = 0.0;
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) { sum = fma(f0[first + c], f0[first + c], sum); }
    }
    let inverse = 1.0 / sqrt(sum_of_lanes(l, sum, 64u) / f32(p.cols) + p.eps);
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) { f2[first + c] = f0[first + c] * inverse * f1[c]; }
    }
}

/// `s = a + b`, `y = s w / sqrt(mean(s^2) + eps)`. Operands `a, b, w, s, y`.
@compute @workgroup_size(64)
fn add_rms_norm(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let first = v * p.cols;
    var sum = 0.0;
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) {
            let s = f0[first + c] + f1[first + c];
            f3[first + c] = s;
            sum = fma(s, s, sum);
        }
    }
    let inverse = 1.0 / sqrt(sum_of_lanes(l, sum, 64u) / f32(p.cols) + p.eps);
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) { f4[first + c] = f3[first + c] * inverse * f2[c]; }
    }
}

/// Mean and `1 / sqrt(variance + eps)` of a vector of operand 0, the variance from the differences to the mean.
fn moments(v: u32, l: u32) -> vec2<f32> {
    let first = v * p.cols;
    let is_there = v < p.vectors;
    var sum = 0.0;
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) { sum += f0[first + c]; }
    }
    let mean = sum_of_lanes(l, sum, 64u) / f32(p.cols);
    var square = 0.0;
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) {
            let d = f0[first + c] - mean;
            square = fma(d, d, square);
        }
    }
    return vec2<f32>(mean, 1.0 / sqrt(sum_of_lanes(l, square, 64u) / f32(p.cols) + p.eps));
}

/// `y = (x - mean) / sqrt(variance + eps) w + b`. Operands `x, w, b, y`.
@compute @workgroup_size(64)
fn layer_norm(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let first = v * p.cols;
    let m = moments(v, l);
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) { f3[first + c] = fma((f0[first + c] - m.x) * m.y, f1[c], f2[c]); }
    }
}

/// `dx = inv (w dy - xn mean(w dy xn))`, `xn = x inv`; added to `acc` where there is one. Operands `x, w, dy, acc, dx`.
@compute @workgroup_size(64)
fn rms_norm_grad_x(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let first = v * p.cols;
    let is_there = v < p.vectors;
    var sum = 0.0;
    var dot = 0.0;
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) {
            let x = f0[first + c];
            sum = fma(x, x, sum);
            dot = fma(f1[c] * f2[first + c], x, dot);
        }
    }
    let inverse = 1.0 / sqrt(sum_of_lanes(l, sum, 64u) / f32(p.cols) + p.eps);
    let mean = sum_of_lanes(l, dot, 64u) * inverse / f32(p.cols);
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) {
            let i = first + c;
            var dx = inverse * (f1[c] * f2[i] - f0[i] * inverse * mean);
            if (p.accumulate != 0u) { dx += f3[i]; }
            f4[i] = dx;
        }
    }
}

/// `dx = inv (g - mean(g) - xn mean(g xn))`, `g = w dy`, `xn = (x - mean) inv`. Operands `x, w, dy, acc, dx`.
@compute @workgroup_size(64)
fn layer_norm_grad_x(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let first = v * p.cols;
    let is_there = v < p.vectors;
    let m = moments(v, l);
    var sum = 0.0;
    var dot = 0.0;
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) {
            let d = f1[c] * f2[first + c];
            sum += d;
            dot = fma(d, (f0[first + c] - m.x) * m.y, dot);
        }
    }
    let mean = sum_of_lanes(l, sum, 64u) / f32(p.cols);
    let mean_dot = sum_of_lanes(l, dot, 64u) / f32(p.cols);
    if (is_there) {
        for (var c = l; c < p.cols; c += 64u) {
            let i = first + c;
            let normal = (f0[i] - m.x) * m.y;
            var dx = m.y * (f1[c] * f2[i] - mean - normal * mean_dot);
            if (p.accumulate != 0u) { dx += f3[i]; }
            f4[i] = dx;
        }
    }
}

/// Mean 0 and the inverse root mean square of every vector. Operands `x, stats`.
@compute @workgroup_size(64)
fn rms_stats(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    var sum = 0.0;
    if (v < p.vectors) {
        for (var c = l; c < p.cols; c += 64u) { sum = fma(f0[v * p.cols + c], f0[v * p.cols + c], sum); }
    }
    let inverse = 1.0 / sqrt(sum_of_lanes(l, sum, 64u) / f32(p.cols) + p.eps);
    if (v < p.vectors && l == 0u) {
        f1[2u * v] = 0.0;
        f1[2u * v + 1u] = inverse;
    }
}

/// Mean and inverse standard deviation of every vector. Operands `x, stats`.
@compute @workgroup_size(64)
fn layer_stats(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let v = g.y * n.x + g.x;
    let m = moments(v, l);
    if (v < p.vectors && l == 0u) {
        f1[2u * v] = m.x;
        f1[2u * v + 1u] = m.y;
    }
}

/// `dw[c] = acc[c] + sum over vectors of dy (x - mean) inv`, packed row by packed row; 16 columns a workgroup and 16
/// lanes of vectors, whose sums are added in the order of lanes. Operands `x, dy, stats, acc, dw`.
@compute @workgroup_size(256)
fn grad_w(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let c = g.x * 16u + l % 16u;
    let lane = l / 16u;
    let is_there = c < p.cols;
    var total = 0.0;
    if (lane == 0u && is_there && p.accumulate != 0u) { total = f3[c]; }
    for (var first = 0u; first < p.vectors; first += p.seq) {
        var sum = 0.0;
        if (is_there) {
            for (var v = first + lane; v < first + p.seq; v += 16u) {
                let i = v * p.cols + c;
                sum = fma(f1[i], (f0[i] - f2[2u * v]) * f2[2u * v + 1u], sum);
            }
        }
        lanes[l] = sum;
        workgroupBarrier();
        if (lane == 0u) {
            var row = lanes[l];
            for (var k = 1u; k < 16u; k++) { row += lanes[k * 16u + l]; }
            total += row;
        }
        workgroupBarrier();
    }
    if (lane == 0u && is_there) { f4[c] = total; }
}
