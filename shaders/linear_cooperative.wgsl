// The dense product of `linear.wgsl` where an adapter multiplies matrices of 8 x 8 f32: its parameters, operands and
// grid, and nothing rounded that is not rounded there.
//
// A workgroup has eight subgroups and makes a tile of 64 x 64; a subgroup 16 x 32 of it, which are 2 x 4 matrices that
// stay with it through a chunk of `k`. Factors come to them by way of panels of 16 steps in workgroup memory, with
// zeros behind all edges; what a chunk has summed goes through the same memory to the invocation that an element
// belongs to, which adds it to the result with one `fma`. Segments and chunks are those of `linear.wgsl`; in which
// order a matrix adds its eight steps is the adapter's, and the same for all of its elements: `wgpu/cooperative.rs` makes
// sure of that before this kernel is taken.

/// Invocations of a subgroup, at most 32.
override LANES: u32 = 32u;

/// Elements between two steps of a panel: few steps of one row meet in one bank of workgroup memory.
const PITCH: u32 = 68u;
/// Where the panel of B begins, behind 16 steps of A.
const RIGHT: u32 = 1088u;

/// Both panels; or the tile, row by row.
var<workgroup> panels: array<f32, 4096>;

/// The row and the step of a panel's element `e`: neighbours read neighbouring elements.
fn place_in_panel(e: u32, is_along_k: bool) -> vec2<u32> {
    return select(vec2<u32>(e % TILE, e / TILE), vec2<u32>(e / STEPS, e % STEPS), is_along_k);
}

/// Brings the panels from step `first` on.
fn bring(l: u32, row: u32, col: u32, first: u32, end: u32) {
    for (var e = l; e < TILE * STEPS; e += 8u * LANES) {
        let a = place_in_panel(e, p.a_col == 1u);
        panels[PITCH * a.y + a.x] = a_at(row + a.x, first + a.y, end);
        let b = place_in_panel(e, p.b_col == 1u);
        panels[RIGHT + PITCH * b.y + b.x] = b_at(col + b.x, first + b.y, end);
    }
}

/// Adds the tile, which is the sums of a chunk, to the result: an invocation's elements are its own in every chunk.
fn add_tile(l: u32, row: u32, col: u32, is_first: bool, is_last: bool) {
    for (var e = l; e < TILE * TILE; e += 8u * LANES) {
        let i = row + e / TILE;
        let j = col + e % TILE;
        if (i < p.m && j < p.n) {
            let at = p.c_first + i * p.c_row + j;
            var total = 0.0;
            if (!is_first) { total = f4[at]; } else if (p.accumulate != 0u) { total = f3[at]; }
            total = fma(p.alpha, panels[e], total);
            if (is_last && p.has_bias != 0u) { total += f2[j]; }
            f4[at] = total;
        }
    }
}

/// Operands `A, B, bias, acc, C`.
@compute @workgroup_size(8u * LANES)
fn product_cooperative(
    @builtin(workgroup_id) g: vec3<u32>,
    @builtin(local_invocation_index) l: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let row = g.y * TILE;
    let col = g.x * TILE;
    let down = subgroup / 2u * 16u;
    let across = subgroup % 2u * 32u;
    for (var e = l; e < 64u; e += 8u * LANES) { panels[e] = 0.0; }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat8x8<f32, C>>(&panels[0], 8u);
    workgroupBarrier();
    var start = 0u;
    loop {
        let segment_end = min(p.k, (start / p.segment + 1u) * p.segment);
        let end = min(segment_end, start + CHUNK);
        var c00 = zero;
        var c01 = zero;
        var c02 = zero;
        var c03 = zero;
        var c10 = zero;
        var c11 = zero;
        var c12 = zero;
        var c13 = zero;
        for (var first = start; first < end; first += STEPS) {
            bring(l, row, col, first, end);
            workgroupBarrier();
            for (var s = 0u; s < STEPS; s += 8u) {
                let left = PITCH * s + down;
                let right = RIGHT + PITCH * s + across;
                let a0 = coopLoad<coop_mat8x8<f32, A>>(&panels[left], PITCH);
                let a1 = coopLoad<coop_mat8x8<f32, A>>(&panels[left + 8u], PITCH);
                let b0 = coopLoadT<coop_mat8x8<f32, B>>(&panels[right], PITCH);
                let b1 = coopLoadT<coop_mat8x8<f32, B>>(&panels[right + 8u], PITCH);
                let b2 = coopLoadT<coop_mat8x8<f32, B>>(&panels[right + 16u], PITCH);
                let b3 = coopLoadT<coop_mat8x8<f32, B>>(&panels[right + 24u], PITCH);
                c00 = coopMultiplyAdd(a0, b0, c00);
                c01 = coopMultiplyAdd(a0, b1, c01);
                c02 = coopMultiplyAdd(a0, b2, c02);
                c03 = coopMultiplyAdd(a0, b3, c03);
                c10 = coopMultiplyAdd(a1, b0, c10);
                c11 = coopMultiplyAdd(a1, b1, c11);
                c12 = coopMultiplyAdd(a1, b2, c12);
                c13 = coopMultiplyAdd(a1, b3, c13);
            }
            workgroupBarrier();
        }
        let at = TILE * down + across;
        coopStoreT(c00, &panels[at], TILE);
        coopStoreT(c01, &panels[at + 8u], TILE);
        coopStoreT(c02, &panels[at + 16u], TILE);
        coopStoreT(c03, &panels[at + 24u], TILE);
        coopStoreT(c10, &panels[at + 8u * TILE], TILE);
        coopStoreT(c11, &panels[at + 8u * TILE + 8u], TILE);
        coopStoreT(c12, &panels[at + 8u * TILE + 16u], TILE);
        coopStoreT(c13, &panels[at + 8u * TILE + 24u], TILE);
        workgroupBarrier();
        add_tile(l, row, col, start == 0u, end == p.k);
        workgroupBarrier();
        start = end;
        if (start == p.k) { break; }
    }
}
