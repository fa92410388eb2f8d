// Softmax and losses; a workgroup has a row.
//
// ```text
// for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, labels[t]] }
// ```
// A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros. The
// cross-entropy of a linear layer takes its logits from `linear.wgsl`, a chunk of tokens at a time, and
// losses and gradients from the sums of these.
// Bound: bytes of the rows over memory bandwidth.

struct Params {
    step: u32,
    /// Rows of this launch, and the token that the first of them belongs to.
    rows: u32,
    first: u32,
    cols: u32,
    /// Whether sums are those of the columns before.
    carries: u32,
    /// What column 0 is a logit of, and how many there are in all.
    vocab_first: u32,
    vocab: u32,
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

/// The label of row `r`; one that is not below `limit` stops the run and counts for nothing.
fn label_of(r: u32, limit: u32) -> i32 {
    let label = bitcast<i32>(u1[p.first + r]);
    if (label >= i32(limit)) {
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
        let label = label_of(r, p.cols);
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
    let label = label_of(r, p.cols);
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

/// Logits that are summed apart, and the lanes that sum them.
const SEGMENT: u32 = 1024u;
const TEAM: u32 = 32u;

/// What the teams of a workgroup found: the largest logit of a segment each, and the sum of `exp(x - largest)`.
var<workgroup> found: array<vec2<f32>, 8>;

/// The largest over a team's lanes, halved as in `lanes.wgsl`.
fn max_of_team(l: u32, x: f32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    for (var width = TEAM / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (l % TEAM < width) { lanes[l] = max(lanes[l], lanes[l + width]); }
    }
    workgroupBarrier();
    return lanes[l / TEAM * TEAM];
}

/// The sum over a team's lanes, in the same order.
fn sum_of_team(l: u32, x: f32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    for (var width = TEAM / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (l % TEAM < width) { lanes[l] += lanes[l + width]; }
    }
    workgroupBarrier();
    return lanes[l / TEAM * TEAM];
}

/// Largest and sum of the logits of both.
fn of_both(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let largest = max(a.x, b.x);
    return vec2<f32>(largest, fma(a.y, exp(a.x - largest), b.y * exp(b.x - largest)));
}

/// Of every row of logits the largest, the sum of `exp(x - largest)` and the label's, three numbers a token: segment
/// after segment, each summed by a team from zero, so that logits may come in parts of whole segments. Where sums are
/// carried on, those of the segments before are in their place. All are 0 where the token does not count.
///
/// ```text
/// for segment { m' = max(x); z' = sum(exp(x - m')); (m, z) = (max(m, m'), z exp(m - max) + z' exp(m' - max)) }
/// ```
/// Operands `x, labels, weights, sums`.
@compute @workgroup_size(256)
fn row_sums(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let r = g.y * n.x + g.x;
    let at = 3u * (p.first + r);
    var total = vec2<f32>(LOWEST, 0.0);
    if (l == 0u && r < p.rows && p.carries != 0u) { total = vec2<f32>(f3[at], f3[at + 1u]); }
    for (var first = 0u; first < p.cols; first += 8u * SEGMENT) {
        let start = first + l / TEAM * SEGMENT;
        let end = select(0u, min(start + SEGMENT, p.cols), r < p.rows);
        var largest = LOWEST;
        for (var c = start + l % TEAM; c < end; c += TEAM) { largest = max(largest, f0[r * p.cols + c]); }
        largest = max_of_team(l, largest);
        var sum = 0.0;
        for (var c = start + l % TEAM; c < end; c += TEAM) { sum += exp(f0[r * p.cols + c] - largest); }
        sum = sum_of_team(l, sum);
        if (l % TEAM == 0u) { found[l / TEAM] = vec2<f32>(largest, sum); }
        workgroupBarrier();
        if (l == 0u) {
            for (var s = 0u; s < min(8u, (p.cols - first + SEGMENT - 1u) / SEGMENT); s++) {
                let is_first = p.carries == 0u && first + s == 0u;
                if (is_first) { total = found[s]; } else { total = of_both(total, found[s]); }
            }
        }
    }
    if (r >= p.rows || l > 0u) { return; }
    let label = label_of(r, p.vocab);
    if (label < 0 || f2[p.first + r] == 0.0) {
        total = vec2<f32>(0.0);
        f3[at + 2u] = 0.0;
    } else {
        let own = u32(label) - p.vocab_first;
        if (u32(label) >= p.vocab_first && own < p.cols) {
            f3[at + 2u] = f0[r * p.cols + own];
        } else if (p.carries == 0u) {
            f3[at + 2u] = 0.0;
        }
    }
    f3[at] = total.x;
    f3[at + 1u] = total.y;
}

/// `loss[t] = weights[t] (ln z + m - x[t, labels[t]])` of such sums. Operands `sums, weights, loss`.
@compute @workgroup_size(256)
fn cross_entropy_of_sums(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let t = index_of(g, n, l);
    if (t >= p.rows) { return; }
    var loss = 0.0;
    if (f0[3u * t + 1u] != 0.0) { loss = f1[t] * (log(f0[3u * t + 1u]) + f0[3u * t] - f0[3u * t + 2u]); }
    f2[t] = loss;
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
            dx = exp(f0[i] - f3[3u * t]) * (weight / f3[3u * t + 1u]);
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
