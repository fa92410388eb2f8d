// Rows of a table by token, and the table's gradient.
//
// Bound: 8 bytes an element over memory bandwidth.

struct Params {
    step: u32,
    tokens: u32,
    cols: u32,
    vocab: u32,
    /// Tokens of a packed row.
    seq: u32,
    /// Whether each packed row's sum is added to the table on its own.
    running: u32,
    /// The first row that is there, or that the gradient is of, and how many.
    first: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

/// `y[t, c] = w[tokens[t] - first, c]`; of a token with another row it stays. Operands `tokens, w, y`.
@compute @workgroup_size(256)
fn embedding(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = index_of(g, n, l);
    if (i >= p.tokens * p.cols) { return; }
    let token = u0[i / p.cols];
    if (token >= p.vocab) {
        refuse(p.step);
        return;
    }
    if (token >= p.first && token - p.first < p.rows) { f2[i] = stored((token - p.first) * p.cols + i % p.cols); }
}

/// Adds to `dw[v, :]` the rows of `dx` whose token is `first + v`, packed row by packed row: the tokens of a packed row
/// are summed from zero in order, then added; where not `running`, the packed rows' sum is added once.
///
/// A workgroup stands at a token and an invocation at a column; the first token of its kind does the work of all.
/// Operands `tokens, dx, dw`.
@compute @workgroup_size(64)
fn embedding_grad(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let at = g.y * n.x + g.x;
    if (at >= p.tokens) { return; }
    let token = u0[at];
    if (token >= p.vocab) {
        refuse(p.step);
        return;
    }
    if (token < p.first || token - p.first >= p.rows) { return; }
    for (var t = 0u; t < at; t++) {
        if (u0[t] == token) { return; }
    }
    for (var c = l; c < p.cols; c += 64u) {
        let place = (token - p.first) * p.cols + c;
        var total = 0.0;
        if (p.running != 0u) { total = f2[place]; }
        for (var first = at / p.seq * p.seq; first < p.tokens; first += p.seq) {
            var sum = 0.0;
            for (var t = max(first, at); t < first + p.seq; t++) {
                if (u0[t] == token) { sum += f1[t * p.cols + c]; }
            }
            total += sum;
        }
        if (p.running == 0u) { total += f2[place]; }
        f2[place] = total;
    }
}
