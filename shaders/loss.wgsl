// Softmax and losses; a workgroup has a row.
//
// ```text
// for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, labels[t]] }
// ```
// A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros. The
// cross-entropy of a linear layer takes its logits from `linear.wgsl`, a chunk of tokens at a time.
// Bound: bytes of the rows over memory bandwidth.

struct Params {
    step: u32,
    /// Rows of this launch, and the token that the first of them belongs to.
    rows: u32,
    first: u32,
    cols: u32,
    /// Whether the rows stay what they are.
    keeps: u32,
    /// What column 0 is a logit of.
    vocab_first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// Below every logit that is finite.
const LOWEST: f32 = -3.4028235e38;

/// The largest element of row `r` of operand 0 and the sum of `exp(x - largest)`.
fn max_and_sum(r: u32, l: u32) -> vec2<f32> {
    var largest = LOWEST;
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) { largest = max(largest, f0[r * p.cols + c]); }
    }
    largest = max_of_lanes(l, largest, 256u);
    var sum = 0.0;
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) { sum += exp(f0[r * p.cols + c] - largest); }
    }
    return vec2<f32>(largest, sum_of_lanes(l, sum, 256u));
}

/// `y = exp(x - m) / sum(exp(x - m))`. Operands `x, y`.
@compute @workgroup_size(256)
fn softmax(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let m = max_and_sum(r, l);
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) {
            let i = r * p.cols + c;
            f1[i] = exp(f0[i] - m.x) / m.y;
        }
    }
}

/// `dx = y (dy - sum(dy y))`. Operands `y, dy, dx`.
@compute @workgroup_size(256)
fn softmax_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    var sum = 0.0;
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) { sum = fma(f0[r * p.cols + c], f1[r * p.cols + c], sum); }
    }
    let dot = sum_of_lanes(l, sum, 256u);
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) {
            let i = r * p.cols + c;
            f2[i] = f0[i] * (f1[i] - dot);
        }
    }
}

/// The label of row `r`; one past the columns stops the run and counts for nothing.
fn label_of(r: u32) -> i32 {
    let label = bitcast<i32>(u1[p.first + r]);
    if (label >= i32(p.cols)) {
        refuse(p.step);
        return -1;
    }
    return label;
}

/// `loss[t] = weights[t] (ln(sum(exp(x))) - x[labels[t]])`. Operands `x, labels, weights, loss`.
@compute @workgroup_size(256)
fn cross_entropy(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let m = max_and_sum(r, l);
    if (r < p.rows && l == 0u) {
        let label = label_of(r);
        let weight = f2[p.first + r];
        var loss = 0.0;
        if (label >= 0 && weight != 0.0) { loss = weight * (log(m.y) + m.x - f0[r * p.cols + u32(label)]); }
        f3[p.first + r] = loss;
    }
}

/// `dx = weights[t] dloss[t] (softmax(x) - [c = labels[t]])`. Operands `x, labels, weights, dloss, dx`.
@compute @workgroup_size(256)
fn cross_entropy_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let m = max_and_sum(r, l);
    if (r >= p.rows) { return; }
    let label = label_of(r);
    let weight = f2[r] * f3[r];
    for (var c = l; c < p.cols; c += 256u) {
        let i = r * p.cols + c;
        var dx = 0.0;
        if (label >= 0 && weight != 0.0) {
            dx = exp(f0[i] - m.x) * (weight / m.y);
            if (i32(c) == label) { dx -= weight; }
        }
        f4[i] = dx;
    }
}

/// Losses of rows of logits, which become their gradients unless they are kept. Operands `x, labels, weights, loss`.
@compute @workgroup_size(256)
fn head(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let m = max_and_sum(r, l);
    if (r >= p.rows) { return; }
    let label = label_of(r);
    let weight = f2[p.first + r];
    let counts = label >= 0 && weight != 0.0;
    if (l == 0u && !counts) { f3[p.first + r] = 0.0; }
    for (var c = l; c < p.cols; c += 256u) {
        let i = r * p.cols + c;
        let x = f0[i];
        if (counts && i32(c) == label) { f3[p.first + r] = weight * (log(m.y) + m.x - x); }
        if (p.keeps == 0u) {
            var dx = 0.0;
            if (counts) {
                dx = exp(x - m.x) * (weight / m.y);
                if (i32(c) == label) { dx -= weight; }
            }
            f0[i] = dx;
        }
    }
}

/// The largest of every row of logits, and the sum of `exp(x - largest)`; zeros where the token does not count.
/// Operands `x, labels, weights, sums`.
@compute @workgroup_size(256)
fn row_sums(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let m = max_and_sum(r, l);
    if (r >= p.rows || l > 0u) { return; }
    let t = p.first + r;
    let counts = bitcast<i32>(u1[t]) >= 0 && f2[t] != 0.0;
    f3[2u * t] = select(0.0, m.x, counts);
    f3[2u * t + 1u] = select(0.0, m.y, counts);
}

/// Turns rows of a panel of logits into their gradients. Operands `x, labels, weights, sums`.
@compute @workgroup_size(256)
fn panel(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    if (r >= p.rows) { return; }
    let t = p.first + r;
    let label = bitcast<i32>(u1[t]);
    let weight = f2[t];
    let counts = label >= 0 && weight != 0.0;
    for (var c = l; c < p.cols; c += 256u) {
        let i = r * p.cols + c;
        var dx = 0.0;
        if (counts) {
            dx = exp(f0[i] - f3[2u * t]) * (weight / f3[2u * t + 1u]);
            if (i32(p.vocab_first + c) == label) { dx -= weight; }
        }
        f0[i] = dx;
    }
}

/// `loss[t] = weights[t] mean((x - target)^2)`. Operands `x, target, weights, loss`.
@compute @workgroup_size(256)
fn mse_loss(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    var sum = 0.0;
    if (r < p.rows) {
        for (var c = l; c < p.cols; c += 256u) {
            let d = f0[r * p.cols + c] - f1[r * p.cols + c];
            sum = fma(d, d, sum);
        }
    }
    let total = sum_of_lanes(l, sum, 256u);
    if (r < p.rows && l == 0u) { f3[r] = f2[r] * (total / f32(p.cols)); }
}

/// `dx = weights[t] dloss[t] (2 / cols) (x - target)`. Operands `x, target, weights, dloss, dx`.
@compute @workgroup_size(256)
fn mse_loss_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    if (r >= p.rows) { return; }
    let factor = f2[r] * f3[r] * (2.0 / f32(p.cols));
    for (var c = l; c < p.cols; c += 256u) {
        let i = r * p.cols + c;
        f4[i] = factor * (f0[i] - f1[i]);
    }
}
