// Pooling over windows of planes, and its gradients; padding is counted by no window.
//
// An invocation an element: of the result forward, of the input backward, where it looks at all windows that hold it.
// Bound: bytes of input and output over memory bandwidth.

struct Params {
    step: u32,
    planes: u32,
    /// Height and width of the input, of the window and of the output.
    height: u32,
    width: u32,
    kernel_h: u32,
    kernel_w: u32,
    out_h: u32,
    out_w: u32,
    stride_h: u32,
    stride_w: u32,
    top: u32,
    left: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// First and last row, then first and last column, of the window of output `(i, j)` inside the input; the last ones
/// are past the end.
fn window(i: u32, j: u32) -> vec4<u32> {
    let h = i * p.stride_h;
    let w = j * p.stride_w;
    return vec4<u32>(
        max(h, p.top) - p.top,
        min(h + p.kernel_h - min(p.top, h + p.kernel_h), p.height),
        max(w, p.left) - p.left,
        min(w + p.kernel_w - min(p.left, w + p.kernel_w), p.width)
    );
}

/// Operands `x, y`.
@compute @workgroup_size(256)
fn max_pool(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.out_h * p.out_w;
    if (at >= p.planes * area) { return; }
    let plane = at / area * p.height * p.width;
    let box = window(at % area / p.out_w, at % p.out_w);
    var most = f0[plane + box.x * p.width + box.z];
    for (var h = box.x; h < box.y; h++) {
        for (var w = box.z; w < box.w; w++) { most = max(most, f0[plane + h * p.width + w]); }
    }
    f1[at] = most;
}

/// The place of the first largest element of operand 1 in a window.
fn first_max(plane: u32, box: vec4<u32>) -> u32 {
    var best = plane + box.x * p.width + box.z;
    for (var h = box.x; h < box.y; h++) {
        for (var w = box.z; w < box.w; w++) {
            let i = plane + h * p.width + w;
            if (f1[i] > f1[best]) { best = i; }
        }
    }
    return best;
}

/// The first output row and column whose windows may hold an input row and column.
fn first_of(at: u32, pad: u32, kernel: u32, stride: u32) -> u32 {
    let end = at + pad + 1u;
    return (max(end, kernel) - kernel + stride - 1u) / stride;
}

/// Operands `dy, x, dx`.
@compute @workgroup_size(256)
fn max_pool_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.height * p.width;
    if (at >= p.planes * area) { return; }
    let plane = at / area;
    let h = at % area / p.width;
    let w = at % p.width;
    var sum = 0.0;
    for (var i = first_of(h, p.top, p.kernel_h, p.stride_h); i < p.out_h && i * p.stride_h <= h + p.top; i++) {
        for (var j = first_of(w, p.left, p.kernel_w, p.stride_w); j < p.out_w && j * p.stride_w <= w + p.left; j++) {
            if (first_max(plane * area, window(i, j)) == at) { sum += f0[(plane * p.out_h + i) * p.out_w + j]; }
        }
    }
    f2[at] = sum;
}

/// Operands `x, y`.
@compute @workgroup_size(256)
fn avg_pool(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.out_h * p.out_w;
    if (at >= p.planes * area) { return; }
    let plane = at / area * p.height * p.width;
    let box = window(at % area / p.out_w, at % p.out_w);
    var sum = 0.0;
    for (var h = box.x; h < box.y; h++) {
        for (var w = box.z; w < box.w; w++) { sum += f0[plane + h * p.width + w]; }
    }
    f1[at] = sum / f32((box.y - box.x) * (box.w - box.z));
}

/// Operands `dy, dx`.
@compute @workgroup_size(256)
fn avg_pool_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.height * p.width;
    if (at >= p.planes * area) { return; }
    let plane = at / area;
    let h = at % area / p.width;
    let w = at % p.width;
    var sum = 0.0;
    for (var i = first_of(h, p.top, p.kernel_h, p.stride_h); i < p.out_h && i * p.stride_h <= h + p.top; i++) {
        for (var j = first_of(w, p.left, p.kernel_w, p.stride_w); j < p.out_w && j * p.stride_w <= w + p.left; j++) {
            let box = window(i, j);
            sum += f0[(plane * p.out_h + i) * p.out_w + j] / f32((box.y - box.x) * (box.w - box.z));
        }
    }
    f1[at] = sum;
}

/// Mean of every plane; an invocation a plane. Operands `x, y`.
@compute @workgroup_size(256)
fn global_avg_pool(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    if (at >= p.planes) { return; }
    let area = p.height * p.width;
    var sum = 0.0;
    for (var i = 0u; i < area; i++) { sum += f0[at * area + i]; }
    f1[at] = sum / f32(area);
}

/// Operands `dy, dx`.
@compute @workgroup_size(256)
fn global_avg_pool_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.height * p.width;
    if (at < p.planes * area) { f1[at] = f0[at / area] / f32(area); }
}
