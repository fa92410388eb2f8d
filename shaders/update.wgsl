// Optimizer updates: SGD, AdamW, and AdamW with 8-bit states.
//
// ```text
// for i { g = grad_scale grad[i]; m[i], v[i] = ...; w[i] = store(w[i] - lr step(m[i], v[i])) }
// ```
// Nothing is changed once the run is stopped. Bound: bytes of weights, gradient and states over memory bandwidth.
//
// Operands `w, grad, hyper, rng, clip, index`, then the states: `m, v` in f32, or the codes of both and their scales,
// and the table of codes.

struct Params {
    step: u32,
    /// Elements of this panel, and the flat index of its first one among the trained elements, in the gradient that
    /// is there, and among the elements that the states are of.
    len: u32,
    first: u32,
    grad_first: u32,
    state_first: u32,
    /// The row that the weight that is there begins with.
    weight_row: u32,
    /// Columns of the whole weight, and trained ones.
    cols: u32,
    trained: u32,
    has_clip: u32,
    has_index: u32,
    has_momentum: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    /// Names the tensor to the random numbers.
    stream: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// High and low word of a product.
fn multiply(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let cross = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (cross & 0xffffu);
    return vec2<u32>((a >> 16u) * (b >> 16u) + (cross >> 16u) + (other >> 16u), a * b);
}

/// Philox4x32-10 of Salmon et al. 2011, as in `kernels/src/random.rs`.
fn philox(seed: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var x = counter;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let a = multiply(0xd2511f53u, x.x);
        let b = multiply(0xcd9e8d57u, x.z);
        x = vec4<u32>(b.x ^ x.y ^ key.x, b.y, a.x ^ x.w ^ key.y, a.y);
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return x;
}

/// Sixteen random bits for trained element `i`: `Stream::bits16`.
fn bits16(i: u32) -> u32 {
    let part = i % 256u / 32u;
    let words = philox(vec2<u32>(u3[0], u3[1]), vec4<u32>(i / 256u * 32u + i % 32u, 0u, p.stream, u3[2]));
    return (words[part / 2u] >> (16u * (part % 2u))) & 0xffffu;
}

/// The place of trained element `i` in the weight that is there.
fn place_of(i: u32) -> u32 {
    let col = i % p.trained;
    let row = i / p.trained - p.weight_row;
    if (p.has_index == 0u) { return row * p.cols + col; }
    return row * p.cols + min(u5[col], p.cols - 1u);
}

fn weight_at(place: u32) -> f32 {
    if (STORAGE == BF16) { return float_of_bf16((atomicLoad(&a0[place / 2u]) >> (16u * (place % 2u))) & 0xffffu); }
    return bitcast<f32>(atomicLoad(&a0[place]));
}

/// Stores a weight, in bf16 rounded stochastically. Two invocations may share a word: each changes only its half.
fn store_weight(place: u32, i: u32, x: f32) {
    if (STORAGE == BF16) {
        let shift = 16u * (place % 2u);
        let before = (atomicLoad(&a0[place / 2u]) >> shift) & 0xffffu;
        var after = (bitcast<u32>(x) + bits16(i)) >> 16u;
        if (!is_finite(x)) { after = bf16_of(x); }
        atomicXor(&a0[place / 2u], (before ^ after) << shift);
    } else {
        atomicStore(&a0[place], bitcast<u32>(x));
    }
}

fn scaled_grad(i: u32) -> f32 {
    let grad = f1[p.grad_first + i];
    return select(grad, grad * f4[0], p.has_clip != 0u);
}

/// `m = beta1 m + (g + weight_decay w)`, `w -= lr m`.
@compute @workgroup_size(256)
fn sgd(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    if (at >= p.len || is_stopped()) { return; }
    let i = p.first + at;
    let place = place_of(i);
    let w = weight_at(place);
    var m = scaled_grad(at) + p.weight_decay * w;
    if (p.has_momentum != 0u) {
        m += p.beta1 * f6[p.state_first + at];
        f6[p.state_first + at] = m;
    }
    store_weight(place, i, w - f2[0] * m);
}

/// New weight, first and second moment.
fn adam(w: f32, grad: f32, m_before: f32, v_before: f32) -> vec3<f32> {
    let m = p.beta1 * m_before + (1.0 - p.beta1) * grad;
    let v = p.beta2 * v_before + (1.0 - p.beta2) * (grad * grad);
    let moved = m / (sqrt(v) * (1.0 / sqrt(f2[2])) + p.eps);
    return vec3<f32>(w * (1.0 - f2[0] * p.weight_decay) - f2[0] / f2[1] * moved, m, v);
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - lr weight_decay) - lr / bias1 m / (sqrt(v) / sqrt(bias2) + eps)`.
@compute @workgroup_size(256)
fn adamw(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    if (at >= p.len || is_stopped()) { return; }
    let i = p.first + at;
    let place = place_of(i);
    let own = p.state_first + at;
    let after = adam(weight_at(place), scaled_grad(at), f6[own], f7[own]);
    f6[own] = after.y;
    f7[own] = after.z;
    store_weight(place, i, after.x);
}

var<workgroup> pairs: array<vec2<f32>, 256>;
var<workgroup> codes: array<vec2<u32>, 256>;

/// The number of the entry of a table of 256, from `first` on, that is nearest to `x`.
fn nearest(first: u32, x: f32) -> u32 {
    var low = 0u;
    var high = 255u;
    while (high - low > 1u) {
        let middle = (low + high) / 2u;
        if (f10[first + middle] <= x) { low = middle; } else { high = middle; }
    }
    return select(low, high, x - f10[first + low] > f10[first + high] - x);
}

/// `adamw` with moments in codes of 8 bits, relative to the largest magnitude of a block of 256 elements, which a
/// workgroup has.
@compute @workgroup_size(256)
fn adamw8(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let block = g.y * n.x + g.x;
    let at = block * 256u + l;
    let i = p.first + at;
    let own = p.state_first + at;
    let whole = own / 256u;
    let is_there = at < p.len && !is_stopped();
    var after = vec3<f32>(0.0);
    if (is_there) {
        let shift = 8u * (own % 4u);
        let m = f10[(u6[own / 4u] >> shift) & 0xffu] * f8[whole];
        let v = f10[256u + ((u7[own / 4u] >> shift) & 0xffu)] * f9[whole];
        let place = place_of(i);
        after = adam(weight_at(place), scaled_grad(at), m, v);
        store_weight(place, i, after.x);
    }
    pairs[l] = abs(after.yz);
    for (var width = 128u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (l < width) { pairs[l] = max(pairs[l], pairs[l + width]); }
    }
    workgroupBarrier();
    let largest = pairs[0];
    codes[l] = vec2<u32>(0u);
    if (is_there) {
        let inverse = select(vec2<f32>(0.0), 1.0 / largest, largest > vec2<f32>(0.0));
        codes[l] = vec2<u32>(nearest(0u, after.y * inverse.x), nearest(256u, after.z * inverse.y));
    }
    workgroupBarrier();
    if (!is_there) { return; }
    if (l == 0u) {
        f8[whole] = largest.x;
        f9[whole] = largest.y;
    }
    if (l % 4u == 0u) {
        // Bytes behind the last element stay.
        let count = min(4u, p.len - at);
        var keep = 0u;
        if (count < 4u) { keep = 0xffffffffu << (8u * count); }
        var word = vec2<u32>(0u);
        for (var k = 0u; k < count; k++) { word |= codes[l + k] << vec2<u32>(8u * k); }
        u6[own / 4u] = (u6[own / 4u] & keep) | word.x;
        u7[own / 4u] = (u7[own / 4u] & keep) | word.y;
    }
}
