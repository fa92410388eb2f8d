// Sums and largest values of a workgroup's lanes, the same for each of them: halved again and again, so that lane `l`
// first takes in lane `l + count / 2`. What every adapter can do.

var<workgroup> lanes: array<f32, 256>;

/// The sum over `count` lanes, a power of two.
fn sum_of_lanes(l: u32, x: f32, count: u32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (l < width) { lanes[l] += lanes[l + width]; }
    }
    workgroupBarrier();
    return lanes[0];
}

/// The largest over `count` lanes, a power of two.
fn max_of_lanes(l: u32, x: f32, count: u32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (l < width) { lanes[l] = max(lanes[l], lanes[l + width]); }
    }
    workgroupBarrier();
    return lanes[0];
}
