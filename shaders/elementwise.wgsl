// Sums, products, and moving columns about: `y[i] = a[i] + b[i]`.
//
// Bound: bytes moved over memory bandwidth.

struct Params {
    step: u32,
    /// Elements, or words, of the result.
    len: u32,
    /// A factor, or what is filled in.
    factor: f32,
    /// Columns of the operand and of the result.
    x_cols: u32,
    y_cols: u32,
    /// First columns of what is moved, and how many.
    x_start: u32,
    y_start: u32,
    count: u32,
    /// Tokens, tokens of a packed row, and whether there is a sum to start from.
    rows: u32,
    seq: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// `y = a + b`. Operands `a, b, y`.
@compute @workgroup_size(256)
fn add(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = f0[i] + f1[i]; }
}

/// `y = a b`. Operands `a, b, y`.
@compute @workgroup_size(256)
fn mul(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = f0[i] * f1[i]; }
}

/// `y = a + factor b`. Operands `a, b, y`.
@compute @workgroup_size(256)
fn add_scaled(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = fma(p.factor, f1[i], f0[i]); }
}

/// `y[t, c] = x[t, c] + b[c]`. Operands `x, b, y`.
@compute @workgroup_size(256)
fn add_row(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = f0[i] + f1[i % p.x_cols]; }
}

/// `y = factor x`. Operands `x, y`.
@compute @workgroup_size(256)
fn scale(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = p.factor * f0[i]; }
}

/// `y = factor`. Operand `y`.
@compute @workgroup_size(256)
fn fill(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f0[i] = p.factor; }
}

/// `y = x`, word by word. Operands `x, y`.
@compute @workgroup_size(256)
fn copy(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { u1[i] = u0[i]; }
}

/// `y[t, y_start + j] = x[t, x_start + j]` for `j < count`. Operands `x, y`.
@compute @workgroup_size(256)
fn move_cols(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let t = i / p.count;
        let j = i % p.count;
        f1[t * p.y_cols + p.y_start + j] = f0[t * p.x_cols + p.x_start + j];
    }
}

/// `y[t, j] = x[t, index[j]]`. Operands `x, index, y`.
@compute @workgroup_size(256)
fn gather_cols(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let k = u1[i % p.y_cols];
        if (k < p.x_cols) { f2[i] = f0[i / p.y_cols * p.x_cols + k]; } else { refuse(p.step); }
    }
}

/// `y[t, k] = sum of x[t, j] over index[j] = k`, in the order of `j`. Operands `x, index, y`.
@compute @workgroup_size(256)
fn scatter_cols(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let k = i % p.y_cols;
        let row = i / p.y_cols * p.x_cols;
        var sum = 0.0;
        for (var j = 0u; j < p.x_cols; j++) {
            if (u1[j] == k) { sum += f0[row + j]; }
        }
        f2[i] = sum;
    }
}

/// `y[c] = acc[c] + sum over packed rows of (sum over their tokens of x[t, c])`. A workgroup has 16 columns and 16
/// lanes of tokens, whose sums are added in the order of lanes. Operands `x, acc, y`.
@compute @workgroup_size(256)
fn sum_rows(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let c = g.x * 16u + l % 16u;
    let lane = l / 16u;
    var total = 0.0;
    if (lane == 0u && c < p.y_cols && p.accumulate != 0u) { total = f1[c]; }
    for (var first = 0u; first < p.rows; first += p.seq) {
        var sum = 0.0;
        if (c < p.y_cols) {
            for (var t = lane; t < p.seq; t += 16u) { sum += f0[(first + t) * p.y_cols + c]; }
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
    if (lane == 0u && c < p.y_cols) { f2[c] = total; }
}

/// Stops the run where one of `len` elements from `x_start` on is not finite. Operand `x`.
@compute @workgroup_size(256)
fn check_finite(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len && !is_finite(f0[p.x_start + i])) { refuse(p.step); }
}

/// Sums of squares of 4096 elements each. Operands `x, partial`.
@compute @workgroup_size(256)
fn norm_sq_parts(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let part = g.y * n.x + g.x;
    var sum = 0.0;
    for (var k = 0u; k < 16u; k++) {
        let i = part * 4096u + k * 256u + l;
        if (i < p.len) { sum = fma(f0[i], f0[i], sum); }
    }
    let total = sum_of_lanes(l, sum, 256u);
    if (l == 0u && part * 4096u < p.len) { f1[part] = total; }
}

/// `y = acc + sum of partial`, in f64 that is made of words: f32 would lose small tensors beside large ones.
/// Operands `partial, acc, y`; one workgroup.
@compute @workgroup_size(256)
fn norm_sq(@builtin(local_invocation_index) l: u32) {
    var sum = 0.0;
    for (var i = l; i < p.len; i += 256u) { sum += f0[i]; }
    let total = sum_of_lanes(l, sum, 256u);
    if (l == 0u) {
        var all = f64_of(total);
        if (p.accumulate != 0u) { all = f64_add(vec2<u32>(u1[0], u1[1]), all); }
        u2[0] = all.x;
        u2[1] = all.y;
    }
}

/// The f64, low word first, that is `x`, which is not negative; what is subnormal counts as 0.
fn f64_of(x: f32) -> vec2<u32> {
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    let exponent = bits >> 23u;
    let mantissa = bits & 0x7fffffu;
    if (exponent == 0u) { return vec2<u32>(0u, 0u); }
    if (exponent == 255u) { return vec2<u32>(0u, 0x7ff00000u | mantissa); }
    return vec2<u32>(mantissa << 29u, ((exponent + 896u) << 20u) | (mantissa >> 3u));
}

/// The sum of two f64 that are not negative, cut off after its last bit.
fn f64_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let is_less = a.y < b.y || (a.y == b.y && a.x < b.x);
    let x = select(a, b, is_less);
    let y = select(b, a, is_less);
    let exponent = x.y >> 20u;
    let shift = exponent - (y.y >> 20u);
    if (exponent == 0x7ffu || (y.y >> 20u) == 0u || shift > 52u) { return x; }
    var low = y.x;
    var high = (y.y & 0xfffffu) | 0x100000u;
    if (shift >= 32u) {
        low = high >> (shift - 32u);
        high = 0u;
    } else if (shift > 0u) {
        low = (low >> shift) | (high << (32u - shift));
        high = high >> shift;
    }
    let sum = x.x + low;
    let carry = select(0u, 1u, sum < low);
    let top = ((x.y & 0xfffffu) | 0x100000u) + high + carry;
    if (top >= 0x200000u) {
        return vec2<u32>((sum >> 1u) | (top << 31u), ((exponent + 1u) << 20u) | ((top >> 1u) & 0xfffffu));
    }
    return vec2<u32>(sum, (exponent << 20u) | (top & 0xfffffu));
}

/// The f32 nearest to an f64 that is not negative.
fn f32_of(x: vec2<u32>) -> f32 {
    let exponent = x.y >> 20u;
    if (exponent < 897u) { return 0.0; }
    if (exponent > 1150u) { return bitcast<f32>(x.y | 0x7f800000u); }
    let mantissa = ((x.y & 0xfffffu) << 3u) | (x.x >> 29u);
    return bitcast<f32>((((exponent - 896u) << 23u) | mantissa) + ((x.x >> 28u) & 1u));
}

/// `y = [min(1, max_norm / (n + 1e-6)), n]`, `n = sqrt(x)`; a sum that is past the range of f32 stops the run.
/// Operands `x, y`; one invocation.
@compute @workgroup_size(1)
fn clip_scale() {
    let sum = f32_of(vec2<u32>(u0[0], u0[1]));
    if (!is_finite(sum)) { refuse(p.step); }
    let norm = sqrt(sum);
    f1[0] = min(p.factor / (norm + 1e-6), 1.0);
    f1[1] = norm;
}
