// 2-dimensional convolutions and their gradients: images `[B, C, H, W]`, weights `[O, C / groups, R, S]`.
//
// ```text
// y[b, o, i, j] = bias[o] + sum over c, r, s of x[b, first + c, i down + r - top, j across + s - left] w[o, c, r, s]
// ```
// Direct: an invocation an element of the result, sums in the order of the loops; for the weight's gradient a
// workgroup an element, whose 64 lanes take the pixels of an image in turn. Bound: 2 C R S operations an element.

struct Params {
    step: u32,
    images: u32,
    in_channels: u32,
    out_channels: u32,
    groups: u32,
    /// Height and width of the input, of the kernel and of the output.
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
    /// Whether there is a bias, or a sum to start from.
    has_more: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

fn x_at(b: u32, c: u32, h: u32, w: u32) -> u32 {
    return ((b * p.in_channels + c) * p.height + h) * p.width + w;
}

fn y_at(b: u32, o: u32, i: u32, j: u32) -> u32 {
    return ((b * p.out_channels + o) * p.out_h + i) * p.out_w + j;
}

fn w_at(o: u32, c: u32, r: u32, s: u32) -> u32 {
    return ((o * (p.in_channels / p.groups) + c) * p.kernel_h + r) * p.kernel_w + s;
}

/// Operands `x, w, bias, y`.
@compute @workgroup_size(256)
fn conv2d(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.out_h * p.out_w;
    if (at >= p.images * p.out_channels * area) { return; }
    let b = at / area / p.out_channels;
    let o = at / area % p.out_channels;
    let i = at % area / p.out_w * p.stride_h;
    let j = at % p.out_w * p.stride_w;
    let each = p.in_channels / p.groups;
    let first = o / (p.out_channels / p.groups) * each;
    var sum = 0.0;
    for (var c = 0u; c < each; c++) {
        for (var r = 0u; r < p.kernel_h; r++) {
            let h = i + r - p.top;
            if (h >= p.height) { continue; }
            for (var s = 0u; s < p.kernel_w; s++) {
                let w = j + s - p.left;
                if (w < p.width) { sum = fma(f0[x_at(b, first + c, h, w)], f1[w_at(o, c, r, s)], sum); }
            }
        }
    }
    if (p.has_more != 0u) { sum += f2[o]; }
    f3[at] = sum;
}

/// Operands `dy, w, dx`.
@compute @workgroup_size(256)
fn conv2d_grad_x(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = index_of(g, n, l);
    let area = p.height * p.width;
    if (at >= p.images * p.in_channels * area) { return; }
    let b = at / area / p.in_channels;
    let channel = at / area % p.in_channels;
    let h = at % area / p.width + p.top;
    let w = at % p.width + p.left;
    let each = p.out_channels / p.groups;
    let group = channel / (p.in_channels / p.groups);
    let c = channel % (p.in_channels / p.groups);
    var sum = 0.0;
    for (var k = 0u; k < each; k++) {
        let o = group * each + k;
        for (var r = 0u; r < min(p.kernel_h, h + 1u); r++) {
            let i = (h - r) / p.stride_h;
            if ((h - r) % p.stride_h != 0u || i >= p.out_h) { continue; }
            for (var s = 0u; s < min(p.kernel_w, w + 1u); s++) {
                let j = (w - s) / p.stride_w;
                if ((w - s) % p.stride_w == 0u && j < p.out_w) {
                    sum = fma(f0[y_at(b, o, i, j)], f1[w_at(o, c, r, s)], sum);
                }
            }
        }
    }
    f2[at] = sum;
}

/// Images are summed one by one. Operands `dy, x, acc, dw`.
@compute @workgroup_size(64)
fn conv2d_grad_w(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = g.y * n.x + g.x;
    let each = p.in_channels / p.groups;
    let taps = p.kernel_h * p.kernel_w;
    let is_there = at < p.out_channels * each * taps;
    let o = at / taps / each;
    let channel = o / (p.out_channels / p.groups) * each + at / taps % each;
    let r = at % taps / p.kernel_w;
    let s = at % p.kernel_w;
    var total = 0.0;
    if (is_there && p.has_more != 0u) { total = f2[at]; }
    for (var b = 0u; b < p.images; b++) {
        var sum = 0.0;
        if (is_there) {
            for (var pixel = l; pixel < p.out_h * p.out_w; pixel += 64u) {
                let h = pixel / p.out_w * p.stride_h + r - p.top;
                let w = pixel % p.out_w * p.stride_w + s - p.left;
                if (h < p.height && w < p.width) {
                    sum = fma(f0[y_at(b, o, 0u, 0u) + pixel], f1[x_at(b, channel, h, w)], sum);
                }
            }
        }
        total += sum_of_lanes(l, sum, 64u);
    }
    if (is_there && l == 0u) { f3[at] = total; }
}

/// `y[c] = acc[c] + sum over images of the sum of its plane`; a workgroup a channel. Operands `x, acc, y`.
@compute @workgroup_size(64)
fn sum_channels(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let c = g.y * n.x + g.x;
    let area = p.height * p.width;
    let is_there = c < p.in_channels;
    var total = 0.0;
    if (is_there && p.has_more != 0u) { total = f1[c]; }
    for (var b = 0u; b < p.images; b++) {
        var sum = 0.0;
        if (is_there) {
            for (var pixel = l; pixel < area; pixel += 64u) { sum += f0[(b * p.in_channels + c) * area + pixel]; }
        }
        total += sum_of_lanes(l, sum, 64u);
    }
    if (is_there && l == 0u) { f2[c] = total; }
}
