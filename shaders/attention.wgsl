// Rotary positions, attention forward and backward, and attention to a cache. No matrix of scores is in memory.
//
// ```text
// for tile of 16 queries { for tile of 16 keys { s = scale q k'; p = exp(s - max); o = o exp(old max - max) + p v } }
// ```
// Backward recomputes the probabilities from the logarithms of their sums: `dv = p' do`, `ds = p (do v' - delta) scale`,
// `dq = ds k`, `dk = ds' q`. A workgroup has a tile of queries (or of keys) of one head; invocation `(y, x)` has the
// score of query `y` and key `x`, and of the result row `y` the columns `x, x + 16, ...`. Sums go over key tiles (for
// keys: over the heads that share them and their query tiles) in order. Bound: 4 d operations a pair forward, 10 back.

struct Params {
    step: u32,
    /// Tokens of a packed row, or all tokens where there is a cache.
    seq: u32,
    heads: u32,
    kv_heads: u32,
    /// Elements of a head, at most 256.
    dim: u32,
    scale: f32,
    causal: u32,
    /// Positions that a token sees, its own included; 0 for all.
    window: u32,
    /// Tokens in all, or positions of the cache.
    context: u32,
    /// Elements of a head that are rotated, by two; whether pairs are neighbours; whether the rotation goes back.
    half: u32,
    interleaved: u32,
    inverse: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

const LOWEST: f32 = -3.4028235e38;

/// Tiles of 16 rows, one element apart.
var<workgroup> left: array<f32, 272>;
var<workgroup> right: array<f32, 272>;
var<workgroup> left_2: array<f32, 272>;
var<workgroup> right_2: array<f32, 272>;
var<workgroup> weights: array<f32, 272>;
var<workgroup> weights_2: array<f32, 272>;
/// Positions that the token of a workgroup may see.
var<workgroup> last: u32;

/// Sine and cosine: the angle less its multiple of a half turn, which is taken off in three parts.
fn sin_cos(angle: f32) -> vec2<f32> {
    let turns = round(angle * 0.63661977);
    var r = fma(turns, -1.5703125, angle);
    r = fma(turns, -4.837512969970703e-4, r);
    r = fma(turns, -7.549789954891882e-8, r);
    let z = r * r;
    let s = fma(z * r, fma(z, fma(z, fma(z, 2.7557319e-6, -1.9841270e-4), 8.3333333e-3), -0.16666667), r);
    let c = fma(z, fma(z, fma(z, fma(z, 2.4801587e-5, -1.3888889e-3), 4.1666667e-2), -0.5), 1.0);
    let quadrant = i32(turns) & 3;
    let is_odd = (quadrant & 1) == 1;
    let sine = select(s, c, is_odd);
    let cosine = select(c, s, is_odd);
    return vec2<f32>(select(sine, -sine, (quadrant & 2) != 0), select(cosine, -cosine, ((quadrant + 1) & 2) != 0));
}

/// Rotates the first `2 half` elements of every head by `positions[t] inv_freq[i]`; the others are copied.
/// Operands `x, positions, inv_freq, y`.
@compute @workgroup_size(256)
fn rope(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let each = p.dim - p.half;
    let i = index_of(g, n, l);
    if (i >= p.context * p.heads * each) { return; }
    let first = i / each * p.dim;
    let part = i % each;
    if (part >= p.half) {
        let at = first + p.half + part;
        f3[at] = f0[at];
        return;
    }
    let a = first + select(part, 2u * part, p.interleaved != 0u);
    let b = select(a + p.half, a + 1u, p.interleaved != 0u);
    let both = sin_cos(f32(bitcast<i32>(u1[i / each / p.heads])) * f2[part]) * p.scale;
    let s = select(both.x, -both.x, p.inverse != 0u);
    let x = f0[a];
    let y = f0[b];
    f3[a] = fma(x, both.y, -(y * s));
    f3[b] = fma(y, both.y, x * s);
}

/// Whether query `i` of a packed row sees key `j`, whose segments are these.
fn sees(i: u32, j: u32, of_i: i32, of_j: i32) -> bool {
    let apart = select(j - i, i - j, i >= j);
    return i < p.seq && j < p.seq && of_i >= 0 && of_i == of_j && (p.causal == 0u || j <= i)
        && (p.window == 0u || apart < p.window);
}

/// The key tiles that a tile of queries from `first` on may see: from, to.
fn key_range(first: u32) -> vec2<u32> {
    var low = 0u;
    var high = p.seq;
    if (p.causal != 0u) { high = min(p.seq, first + 16u); }
    if (p.window != 0u && first + 1u > p.window) { low = (first + 1u - p.window) / 16u * 16u; }
    if (p.window != 0u) { high = min(high, first + 15u + p.window); }
    return vec2<u32>(low, high);
}

/// Operands `q, k, v, segments, o, lse`.
@compute @workgroup_size(256)
fn attention(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let y = l / 16u;
    let x = l % 16u;
    let row = g.z * p.seq;
    let query = g.x * 16u + y;
    let q_cols = p.heads * p.dim;
    let k_cols = p.kv_heads * p.dim;
    let kv = g.y / (p.heads / p.kv_heads) * p.dim;
    let is_query = query < p.seq;
    var of_query = -1;
    if (is_query) { of_query = bitcast<i32>(u3[row + query]); }
    var output: array<f32, 16>;
    var largest = LOWEST;
    var sum = 0.0;
    let range = key_range(g.x * 16u);
    for (var first = range.x; first < range.y; first += 16u) {
        var score = 0.0;
        for (var d = 0u; d < p.dim; d += 16u) {
            let is_in = d + x < p.dim;
            left[y * 17u + x] = 0.0;
            right[y * 17u + x] = 0.0;
            if (is_in && is_query) { left[y * 17u + x] = f0[(row + query) * q_cols + g.y * p.dim + d + x]; }
            if (is_in && first + y < p.seq) { right[y * 17u + x] = f1[(row + first + y) * k_cols + kv + d + x]; }
            workgroupBarrier();
            for (var e = 0u; e < 16u; e++) { score = fma(left[y * 17u + e], right[x * 17u + e], score); }
            workgroupBarrier();
        }
        let key = first + x;
        var of_key = -2;
        if (key < p.seq) { of_key = bitcast<i32>(u3[row + key]); }
        let is_seen = sees(query, key, of_query, of_key);
        score = select(LOWEST, score * p.scale, is_seen);
        weights[y * 17u + x] = score;
        workgroupBarrier();
        var top = largest;
        for (var j = 0u; j < 16u; j++) { top = max(top, weights[y * 17u + j]); }
        weights_2[y * 17u + x] = select(0.0, exp(score - top), is_seen);
        workgroupBarrier();
        let fade = exp(max(largest - top, -100.0));
        largest = top;
        var part = 0.0;
        for (var j = 0u; j < 16u; j++) { part += weights_2[y * 17u + j]; }
        sum = fma(sum, fade, part);
        let count = min(16u, p.seq - first);
        for (var i = 0u; i < 16u; i++) {
            let c = x + 16u * i;
            if (c < p.dim) {
                var mixed = 0.0;
                for (var j = 0u; j < count; j++) {
                    mixed = fma(weights_2[y * 17u + j], f2[(row + first + j) * k_cols + kv + c], mixed);
                }
                output[i] = fma(output[i], fade, mixed);
            }
        }
    }
    if (!is_query) { return; }
    let factor = select(0.0, 1.0 / sum, sum > 0.0);
    for (var i = 0u; i < 16u; i++) {
        let c = x + 16u * i;
        if (c < p.dim) { f4[(row + query) * q_cols + g.y * p.dim + c] = output[i] * factor; }
    }
    if (x == 0u) {
        u5[(row + query) * p.heads + g.y] = select(0xff800000u, bitcast<u32>(largest + log(sum)), sum > 0.0);
    }
}

/// `delta[t, h] = sum of o do over the head`. Operands `o, do, delta`.
@compute @workgroup_size(256)
fn attention_delta(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i >= p.context * p.heads) { return; }
    var sum = 0.0;
    for (var c = 0u; c < p.dim; c++) { sum = fma(f0[i * p.dim + c], f1[i * p.dim + c], sum); }
    f2[i] = sum;
}

/// Brings 16 elements of a tile's queries, keys, output gradients and values, and adds what they give to
/// `(q k', do v')` of the invocation's pair.
fn add_pair(row: u32, head: u32, kv: u32, query: u32, key: u32, l: u32, d: u32, so_far: vec2<f32>) -> vec2<f32> {
    let y = l / 16u;
    let x = l % 16u;
    let q_cols = p.heads * p.dim;
    let k_cols = p.kv_heads * p.dim;
    let at = y * 17u + x;
    left[at] = 0.0;
    left_2[at] = 0.0;
    right[at] = 0.0;
    right_2[at] = 0.0;
    if (d + x < p.dim && query + y < p.seq) {
        let i = (row + query + y) * q_cols + head * p.dim + d + x;
        left[at] = f0[i];
        left_2[at] = f6[i];
    }
    if (d + x < p.dim && key + y < p.seq) {
        let i = (row + key + y) * k_cols + kv + d + x;
        right[at] = f1[i];
        right_2[at] = f2[i];
    }
    workgroupBarrier();
    var both = so_far;
    for (var e = 0u; e < 16u; e++) {
        both.x = fma(left[y * 17u + e], right[x * 17u + e], both.x);
        both.y = fma(left_2[y * 17u + e], right_2[x * 17u + e], both.y);
    }
    workgroupBarrier();
    return both;
}

/// The probability of a pair and the gradient of its score, from `(q k', do v')`.
fn pair_grad(row: u32, head: u32, query: u32, key: u32, both: vec2<f32>) -> vec2<f32> {
    if (query >= p.seq || key >= p.seq) { return vec2<f32>(0.0); }
    let is_seen = sees(query, key, bitcast<i32>(u3[row + query]), bitcast<i32>(u3[row + key]));
    if (!is_seen) { return vec2<f32>(0.0); }
    let at = (row + query) * p.heads + head;
    let weight = exp(both.x * p.scale - f5[at]);
    return vec2<f32>(weight, weight * (both.y - f7[at]) * p.scale);
}

/// Operands `q, k, v, segments, o, lse, do, delta, dq`.
@compute @workgroup_size(256)
fn attention_grad_q(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let y = l / 16u;
    let x = l % 16u;
    let row = g.z * p.seq;
    let first_query = g.x * 16u;
    let k_cols = p.kv_heads * p.dim;
    let kv = g.y / (p.heads / p.kv_heads) * p.dim;
    var dq: array<f32, 16>;
    let range = key_range(first_query);
    for (var first = range.x; first < range.y; first += 16u) {
        var both = vec2<f32>(0.0);
        for (var d = 0u; d < p.dim; d += 16u) { both = add_pair(row, g.y, kv, first_query, first, l, d, both); }
        weights[y * 17u + x] = pair_grad(row, g.y, first_query + y, first + x, both).y;
        workgroupBarrier();
        let count = min(16u, p.seq - first);
        for (var i = 0u; i < 16u; i++) {
            let c = x + 16u * i;
            if (c < p.dim) {
                var sum = 0.0;
                for (var j = 0u; j < count; j++) {
                    sum = fma(weights[y * 17u + j], f1[(row + first + j) * k_cols + kv + c], sum);
                }
                dq[i] += sum;
            }
        }
        workgroupBarrier();
    }
    if (first_query + y >= p.seq) { return; }
    for (var i = 0u; i < 16u; i++) {
        let c = x + 16u * i;
        if (c < p.dim) { f8[(row + first_query + y) * p.heads * p.dim + g.y * p.dim + c] = dq[i]; }
    }
}

/// The query tiles that may see a tile of keys from `first` on: from, to.
fn query_range(first: u32) -> vec2<u32> {
    var low = 0u;
    var high = p.seq;
    if (p.causal != 0u) { low = first; }
    if (p.window != 0u) {
        high = min(p.seq, first + 15u + p.window);
        if (p.causal == 0u && first + 1u > p.window) { low = (first + 1u - p.window) / 16u * 16u; }
    }
    return vec2<u32>(low, high);
}

/// Operands `q, k, v, segments, o, lse, do, delta, dk, dv`.
@compute @workgroup_size(256)
fn attention_grad_kv(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let y = l / 16u;
    let x = l % 16u;
    let row = g.z * p.seq;
    let first_key = g.x * 16u;
    let q_cols = p.heads * p.dim;
    let group = p.heads / p.kv_heads;
    var dk: array<f32, 16>;
    var dv: array<f32, 16>;
    let range = query_range(first_key);
    for (var member = 0u; member < group; member++) {
        let head = g.y * group + member;
        for (var first = range.x; first < range.y; first += 16u) {
            var both = vec2<f32>(0.0);
            for (var d = 0u; d < p.dim; d += 16u) {
                both = add_pair(row, head, g.y * p.dim, first, first_key, l, d, both);
            }
            let pair = pair_grad(row, head, first + y, first_key + x, both);
            weights[y * 17u + x] = pair.x;
            weights_2[y * 17u + x] = pair.y;
            workgroupBarrier();
            let count = min(16u, p.seq - first);
            for (var i = 0u; i < 16u; i++) {
                let c = x + 16u * i;
                if (c < p.dim) {
                    var sum_k = 0.0;
                    var sum_v = 0.0;
                    for (var j = 0u; j < count; j++) {
                        let at = (row + first + j) * q_cols + head * p.dim + c;
                        sum_k = fma(weights_2[j * 17u + y], f0[at], sum_k);
                        sum_v = fma(weights[j * 17u + y], f6[at], sum_v);
                    }
                    dk[i] += sum_k;
                    dv[i] += sum_v;
                }
            }
            workgroupBarrier();
        }
    }
    if (first_key + y >= p.seq) { return; }
    for (var i = 0u; i < 16u; i++) {
        let c = x + 16u * i;
        if (c < p.dim) {
            let at = (row + first_key + y) * p.kv_heads * p.dim + g.y * p.dim + c;
            f8[at] = dk[i];
            f9[at] = dv[i];
        }
    }
}

/// `cache[positions[t], c] = x[t, c]` where the position is not negative; `dim` columns. Operands
/// `cache, x, positions`.
@compute @workgroup_size(256)
fn kv_write(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i >= p.seq * p.dim) { return; }
    let position = bitcast<i32>(u2[i / p.dim]);
    if (position < 0) { return; }
    if (u32(position) >= p.context) {
        refuse(p.step);
        return;
    }
    f0[u32(position) * p.dim + i % p.dim] = f1[i];
}

/// Attention of a token to the cache's rows up to its position: 64 keys at a time, a lane a score, and of the result
/// the columns `l, l + 64, ...`. Operands `q, keys, values, positions, o`.
@compute @workgroup_size(64)
fn attention_cached(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let token = g.x;
    let k_cols = p.kv_heads * p.dim;
    let kv = g.y / (p.heads / p.kv_heads) * p.dim;
    let q = (token * p.heads + g.y) * p.dim;
    var position = bitcast<i32>(u3[token]);
    if (position >= i32(p.context)) {
        refuse(p.step);
        position = -1;
    }
    if (l == 0u) { last = u32(position + 1); }
    let end = workgroupUniformLoad(&last);
    var output: array<f32, 4>;
    var largest = LOWEST;
    var sum = 0.0;
    for (var first = 0u; first < end; first += 64u) {
        let key = first + l;
        let is_seen = i32(key) <= position && (p.window == 0u || position - i32(key) < i32(p.window));
        var score = LOWEST;
        if (is_seen) {
            score = 0.0;
            for (var c = 0u; c < p.dim; c++) { score = fma(f0[q + c], f1[key * k_cols + kv + c], score); }
            score *= p.scale;
        }
        left[l] = score;
        workgroupBarrier();
        var top = largest;
        for (var j = 0u; j < 64u; j++) { top = max(top, left[j]); }
        right[l] = select(0.0, exp(score - top), is_seen);
        workgroupBarrier();
        let fade = exp(max(largest - top, -100.0));
        largest = top;
        var part = 0.0;
        for (var j = 0u; j < 64u; j++) { part += right[j]; }
        sum = fma(sum, fade, part);
        let count = min(64u, p.context - first);
        for (var i = 0u; i < 4u; i++) {
            let c = l + 64u * i;
            if (c < p.dim) {
                var mixed = 0.0;
                for (var j = 0u; j < count; j++) { mixed = fma(right[j], f2[(first + j) * k_cols + kv + c], mixed); }
                output[i] = fma(output[i], fade, mixed);
            }
        }
        workgroupBarrier();
    }
    let factor = select(0.0, 1.0 / sum, sum > 0.0);
    for (var i = 0u; i < 4u; i++) {
        let c = l + 64u * i;
        if (c < p.dim) { f4[q + c] = output[i] * factor; }
    }
}
