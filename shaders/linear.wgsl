// The dense product that all linear layers are: `C[i, j] (+)= alpha sum over k of A(i, k) B(j, k) (+ bias[j])`.
//
// ```text
// for segment of k { for chunk of at most 512 of it { sum = 0; for k in chunk { sum += A(i, k) B(j, k) } c += alpha sum } }
// ```
// A workgroup makes a tile of 64 x 64; an invocation 4 x 4 of it in registers, from panels of 16 steps of `k` in
// workgroup memory. Factors are addressed by their strides, so a transpose is no kernel of its own. The order of a sum
// follows from `k` and the segment alone, and every product and sum is one `fma`. Bound: 2 m n k operations.

struct Params {
    step: u32,
    m: u32,
    n: u32,
    k: u32,
    /// Elements between neighbours of A along `i` and `k`, and its first one.
    a_row: u32,
    a_col: u32,
    a_first: u32,
    /// The same of B along `j` and `k`.
    b_row: u32,
    b_col: u32,
    b_first: u32,
    /// Elements between rows of C, and its first one.
    c_row: u32,
    c_first: u32,
    /// Steps of `k` that are summed apart: a packed row's tokens.
    segment: u32,
    alpha: f32,
    has_bias: u32,
    accumulate: u32,
    /// Whether factors are rounded to bf16.
    rounds: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

const TILE: u32 = 64u;
const STEPS: u32 = 16u;
const CHUNK: u32 = 512u;

/// Step `s` of 64 rows of A is `left[16 s ..]`, four rows a vector; `right` the same of B.
var<workgroup> left: array<vec4<f32>, 256>;
var<workgroup> right: array<vec4<f32>, 256>;

fn factor(x: f32) -> f32 {
    if (p.rounds == 0u) { return x; }
    return float_of_bf16(bf16_of(x));
}

fn a_at(i: u32, k: u32, end: u32) -> f32 {
    if (i >= p.m || k >= end) { return 0.0; }
    return factor(f0[p.a_first + i * p.a_row + k * p.a_col]);
}

fn b_at(j: u32, k: u32, end: u32) -> f32 {
    if (j >= p.n || k >= end) { return 0.0; }
    return factor(stored(p.b_first + j * p.b_row + k * p.b_col));
}

/// Which four rows and which step an invocation brings: neighbours read neighbouring elements.
fn place(l: u32, is_along_k: bool) -> vec2<u32> {
    return select(vec2<u32>(l % 16u, l / 16u), vec2<u32>(l / 16u, l % 16u), is_along_k);
}

/// Operands `A, B, bias, acc, C`.
@compute @workgroup_size(256)
fn product(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = g.y * TILE;
    let col = g.x * TILE;
    let down = l / 16u;
    let across = l % 16u;
    var total: array<vec4<f32>, 4>;
    for (var r = 0u; r < 4u; r++) {
        let i = row + 4u * down + r;
        for (var c = 0u; c < 4u; c++) {
            let j = col + 4u * across + c;
            if (p.accumulate != 0u && i < p.m && j < p.n) { total[r][c] = f3[p.c_first + i * p.c_row + j]; }
        }
    }
    let a_place = place(l, p.a_col == 1u);
    let b_place = place(l, p.b_col == 1u);
    var start = 0u;
    while (start < p.k) {
        let segment_end = min(p.k, (start / p.segment + 1u) * p.segment);
        let end = min(segment_end, start + CHUNK);
        var sum: array<vec4<f32>, 4>;
        for (var first = start; first < end; first += STEPS) {
            let i = row + 4u * a_place.x;
            let j = col + 4u * b_place.x;
            let ka = first + a_place.y;
            let kb = first + b_place.y;
            left[16u * a_place.y + a_place.x] =
                vec4<f32>(a_at(i, ka, end), a_at(i + 1u, ka, end), a_at(i + 2u, ka, end), a_at(i + 3u, ka, end));
            right[16u * b_place.y + b_place.x] =
                vec4<f32>(b_at(j, kb, end), b_at(j + 1u, kb, end), b_at(j + 2u, kb, end), b_at(j + 3u, kb, end));
            workgroupBarrier();
            for (var s = 0u; s < min(STEPS, end - first); s++) {
                let a = left[16u * s + down];
                let b = right[16u * s + across];
                sum[0] = fma(vec4<f32>(a.x), b, sum[0]);
                sum[1] = fma(vec4<f32>(a.y), b, sum[1]);
                sum[2] = fma(vec4<f32>(a.z), b, sum[2]);
                sum[3] = fma(vec4<f32>(a.w), b, sum[3]);
            }
            workgroupBarrier();
        }
        for (var r = 0u; r < 4u; r++) { total[r] = fma(vec4<f32>(p.alpha), sum[r], total[r]); }
        start = end;
    }
    for (var r = 0u; r < 4u; r++) {
        let i = row + 4u * down + r;
        for (var c = 0u; c < 4u; c++) {
            let j = col + 4u * across + c;
            if (i < p.m && j < p.n) {
                var y = total[r][c];
                if (p.has_bias != 0u) { y += f2[j]; }
                f4[p.c_first + i * p.c_row + j] = y;
            }
        }
    }
}
