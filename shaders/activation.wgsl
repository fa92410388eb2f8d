// Activations, element by element: `y[i] = f(x[i])`, `dx[i] = dy[i] f'(x[i])`.
//
// Bound: 8 bytes an element forward, 12 backward, over memory bandwidth. In place: a result may be an operand.

struct Params {
    step: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// `y = max(x, 0)`. Operands `x, y`.
@compute @workgroup_size(256)
fn relu(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = max(f0[i], 0.0); }
}

/// `dx = dy` where `y > 0`, else 0. Operands `y, dy, dx`.
@compute @workgroup_size(256)
fn relu_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = select(0.0, f1[i], f0[i] > 0.0); }
}

/// `y = min(max(x, 0), 6)`. Operands `x, y`.
@compute @workgroup_size(256)
fn relu6(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = min(max(f0[i], 0.0), 6.0); }
}

/// `dx = dy` where `0 < y < 6`, else 0. Operands `y, dy, dx`.
@compute @workgroup_size(256)
fn relu6_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = select(0.0, f1[i], f0[i] > 0.0 && f0[i] < 6.0); }
}

/// The normal distribution's integral up to `x`, and its density. As on the CPU: `erfcx(a) = t q(t)`,
/// `t = 1 / (1 + 0.4 a)`, so that the lower tail keeps its relative accuracy.
fn normal(x: f32) -> vec2<f32> {
    let e = exp(max(-0.5 * x * x, -87.0));
    let t = 1.0 / (1.0 + abs(x) * 0.28284271);
    var q = fma(0.04912645, t, -0.17804977);
    q = fma(q, t, 0.1604475);
    q = fma(q, t, 0.0027128505);
    q = fma(q, t, 0.13672031);
    q = fma(q, t, 0.17013621);
    q = fma(q, t, 0.20753027);
    q = fma(q, t, 0.22570170);
    q = fma(q, t, 0.22567455);
    let tail = 0.5 * e * (t * q);
    return vec2<f32>(select(1.0 - tail, tail, x < 0.0), e * 0.3989423);
}

/// `y = x Phi(x)`. Operands `x, y`.
@compute @workgroup_size(256)
fn gelu(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = f0[i] * normal(f0[i]).x; }
}

/// `dx = dy (Phi(x) + x phi(x))`. Operands `x, dy, dx`.
@compute @workgroup_size(256)
fn gelu_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let x = f0[i];
        let both = normal(x);
        f2[i] = f1[i] * fma(x, both.y, both.x);
    }
}

/// `tanh(sqrt(2/pi) (x + 0.044715 x^3))`.
fn gelu_tanh_inner(x: f32) -> f32 {
    return tanh_of(x * fma(x * x, 0.044715, 1.0) * 0.7978846);
}

/// `y = x (1 + tanh(u)) / 2`. Operands `x, y`.
@compute @workgroup_size(256)
fn gelu_tanh(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let x = f0[i];
        f1[i] = 0.5 * x * (gelu_tanh_inner(x) + 1.0);
    }
}

/// `dx = dy ((1 + t) / 2 + x (1 - t^2) u' / 2)`. Operands `x, dy, dx`.
@compute @workgroup_size(256)
fn gelu_tanh_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let x = f0[i];
        let t = gelu_tanh_inner(x);
        let slope = fma(x * x, 3.0 * 0.044715, 1.0) * 0.7978846;
        let bend = x * slope * fma(-t, t, 1.0);
        f2[i] = 0.5 * f1[i] * (bend + (t + 1.0));
    }
}

/// `y = x sigmoid(x)`. Operands `x, y`.
@compute @workgroup_size(256)
fn silu(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = f0[i] * sigmoid(f0[i]); }
}

/// `silu'(x)` from `q = sigmoid(x)`.
fn silu_slope(x: f32, q: f32) -> f32 {
    return q * fma(x, 1.0 - q, 1.0);
}

/// `dx = dy q (1 + x (1 - q))`. Operands `x, dy, dx`.
@compute @workgroup_size(256)
fn silu_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let x = f0[i];
        f2[i] = f1[i] * silu_slope(x, sigmoid(x));
    }
}

/// `y = 1 / (1 + e^-x)`. Operands `x, y`. Named so because `sigmoid` is the function of a number.
@compute @workgroup_size(256)
fn sigmoid_all(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = sigmoid(f0[i]); }
}

/// `dx = dy y (1 - y)`. Operands `y, dy, dx`.
@compute @workgroup_size(256)
fn sigmoid_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let y = f0[i];
        f2[i] = f1[i] * (y * (1.0 - y));
    }
}

/// `y = tanh(x)`. Operands `x, y`.
@compute @workgroup_size(256)
fn tanh_all(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f1[i] = tanh_of(f0[i]); }
}

/// `dx = dy (1 - y^2)`. Operands `y, dy, dx`.
@compute @workgroup_size(256)
fn tanh_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) { f2[i] = f1[i] * fma(-f0[i], f0[i], 1.0); }
}

/// `y = silu(gate) up`. Operands `gate, up, y`.
@compute @workgroup_size(256)
fn swiglu(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let gate = f0[i];
        f2[i] = gate * sigmoid(gate) * f1[i];
    }
}

/// `dgate = dy up silu'(gate)`, `dup = dy silu(gate)`. Operands `gate, up, dy, dgate, dup`.
@compute @workgroup_size(256)
fn swiglu_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i < p.len) {
        let gate = f0[i];
        let up = f1[i];
        let dy = f2[i];
        let q = sigmoid(gate);
        f3[i] = dy * up * silu_slope(gate, q);
        f4[i] = dy * (gate * q);
    }
}
