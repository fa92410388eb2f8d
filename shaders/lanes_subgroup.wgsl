// Sums and largest values of a workgroup's lanes, the same for each of them, where subgroups have one size: what
// `lanes.wgsl` adds, in its order and hence to the same bits, with few barriers.
//
// While more than eight lanes are left for each of a subgroup, they are halved as there. Then lane `s` of every subgroup
// adds the lanes `s, s + SUBGROUP, ...`, and the subgroup its lanes: at width `w` lanes `s` and `s xor w` both have the
// sum of both.

/// Lanes of a subgroup: a power of two, at most 64.
override SUBGROUP: u32 = 64u;

var<workgroup> lanes: array<f32, 256>;

fn sum_of_2(at: u32, step: u32) -> f32 {
    return lanes[at] + lanes[at + step];
}

fn sum_of_4(at: u32, step: u32) -> f32 {
    return sum_of_2(at, 2u * step) + sum_of_2(at + step, 2u * step);
}

fn sum_of_8(at: u32, step: u32) -> f32 {
    return sum_of_4(at, 2u * step) + sum_of_4(at + step, 2u * step);
}

/// The number of an invocation in its subgroup. Nothing is taken for granted of how subgroups are cut.
fn place_in_subgroup() -> u32 {
    return subgroupExclusiveAdd(1u);
}

/// The sum over `count` lanes, a power of two that is a multiple of a subgroup.
fn sum_of_lanes(l: u32, x: f32, count: u32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    var left = count;
    while (left > 8u * SUBGROUP) {
        left /= 2u;
        workgroupBarrier();
        if (l < left) { lanes[l] += lanes[l + left]; }
    }
    workgroupBarrier();
    let s = place_in_subgroup();
    var sum = 0.0;
    switch (left / SUBGROUP) {
        case 8u: { sum = sum_of_8(s, SUBGROUP); }
        case 4u: { sum = sum_of_4(s, SUBGROUP); }
        case 2u: { sum = sum_of_2(s, SUBGROUP); }
        default: { sum = lanes[s]; }
    }
    for (var width = SUBGROUP / 2u; width > 0u; width /= 2u) { sum += subgroupShuffleXor(sum, width); }
    return sum;
}

/// The largest over `count` lanes, a power of two that is a multiple of a subgroup.
fn max_of_lanes(l: u32, x: f32, count: u32) -> f32 {
    workgroupBarrier();
    lanes[l] = x;
    var left = count;
    while (left > 8u * SUBGROUP) {
        left /= 2u;
        workgroupBarrier();
        if (l < left) { lanes[l] = max(lanes[l], lanes[l + left]); }
    }
    workgroupBarrier();
    let s = place_in_subgroup();
    var largest = lanes[s];
    for (var at = s + SUBGROUP; at < left; at += SUBGROUP) { largest = max(largest, lanes[at]); }
    for (var width = SUBGROUP / 2u; width > 0u; width /= 2u) {
        largest = max(largest, subgroupShuffleXor(largest, width));
    }
    return largest;
}
