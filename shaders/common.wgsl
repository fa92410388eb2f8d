// What every family shares: places of operands, the status word, storage types, and functions of one number.
//
// Binding 0 is the launch's parameters, declared by the family; binding 1 is the status; operand `i` of a launch is
// binding `2 + i`, read as numbers (`f<i>`), as words (`u<i>`) or as words that several invocations change (`a<i>`).
// The parts of the arena that a launch's operands name may be the same bytes where the op may run in place: no
// invocation reads there after another has written.

/// Not zero once a step has met what it must not go on with: the complement of the first such step's number.
@group(0) @binding(1) var<storage, read_write> status: array<atomic<u32>>;

@group(0) @binding(2) var<storage, read_write> f0: array<f32>;
@group(0) @binding(3) var<storage, read_write> f1: array<f32>;
@group(0) @binding(4) var<storage, read_write> f2: array<f32>;
@group(0) @binding(5) var<storage, read_write> f3: array<f32>;
@group(0) @binding(6) var<storage, read_write> f4: array<f32>;
@group(0) @binding(7) var<storage, read_write> f5: array<f32>;
@group(0) @binding(8) var<storage, read_write> f6: array<f32>;
@group(0) @binding(9) var<storage, read_write> f7: array<f32>;
@group(0) @binding(10) var<storage, read_write> f8: array<f32>;
@group(0) @binding(11) var<storage, read_write> f9: array<f32>;
@group(0) @binding(12) var<storage, read_write> f10: array<f32>;

@group(0) @binding(2) var<storage, read_write> u0: array<u32>;
@group(0) @binding(3) var<storage, read_write> u1: array<u32>;
@group(0) @binding(4) var<storage, read_write> u2: array<u32>;
@group(0) @binding(5) var<storage, read_write> u3: array<u32>;
@group(0) @binding(6) var<storage, read_write> u4: array<u32>;
@group(0) @binding(7) var<storage, read_write> u5: array<u32>;
@group(0) @binding(8) var<storage, read_write> u6: array<u32>;
@group(0) @binding(9) var<storage, read_write> u7: array<u32>;

@group(0) @binding(2) var<storage, read_write> a0: array<atomic<u32>>;

/// How the operand that comes in several storage types is stored: the number of the type in the table of `DType`.
override STORAGE: u32 = 0u;

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const Q8_0: u32 = 8u;
const Q4_0: u32 = 9u;
const Q4_1: u32 = 10u;
const Q5_0: u32 = 11u;
const Q5_1: u32 = 12u;
const Q4_K: u32 = 13u;
const Q5_K: u32 = 14u;
const Q6_K: u32 = 15u;

/// The number of an invocation among all of its launch, for workgroups of 256.
fn index_of(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * 256u + local;
}

/// Marks step `step` as one that met bad data; the first step to do so stays marked.
fn refuse(step: u32) {
    atomicMax(&status[0], ~step);
}

fn is_stopped() -> bool {
    return atomicLoad(&status[0]) != 0u;
}

/// By its bits, since a comparison with itself may be taken for true.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn float_of_bf16(half: u32) -> f32 {
    return bitcast<f32>(half << 16u);
}

/// The nearest bf16, ties to even; a quiet NaN for NaN.
fn bf16_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, is_nan);
}

/// By its bits: not every adapter unpacks f16, and none needs to keep subnormal numbers.
fn float_of_f16(half: u32) -> f32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = (half & 0x7fffu) << 13u;
    var value = bitcast<f32>(magnitude + 0x38000000u);
    if ((half & 0x7c00u) == 0u) { value = f32(half & 0x3ffu) * 5.9604645e-8; }
    if ((half & 0x7c00u) == 0x7c00u) { value = bitcast<f32>(magnitude | 0x7f800000u); }
    return bitcast<f32>(bitcast<u32>(value) | sign);
}

/// `1 / (1 + e^-x)`; the exponent is kept where its power is finite.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(clamp(-x, -87.0, 87.0)));
}

/// An odd polynomial below 0.625, `1 - 2 / (e^2x + 1)` above, as on the CPU.
fn tanh_of(x: f32) -> f32 {
    let z = x * x;
    var q = fma(-0.006096714, z, 0.02099718);
    q = fma(q, z, -0.053850908);
    q = fma(q, z, 0.1333277);
    q = fma(q, z, -0.3333333);
    let small = fma(z * x, q, x);
    let large = 1.0 - 2.0 / (exp(min(2.0 * abs(x), 87.0)) + 1.0);
    return select(select(large, -large, x < 0.0), small, abs(x) < 0.625);
}

/// Byte `at` of operand 1.
fn byte_at(at: u32) -> u32 {
    return (u1[at / 4u] >> (8u * (at % 4u))) & 0xffu;
}

/// The f16 at byte `at`, an even number, of operand 1.
fn f16_at(at: u32) -> f32 {
    return float_of_f16((u1[at / 4u] >> (8u * (at % 4u))) & 0xffffu);
}

fn signed_byte_at(at: u32) -> f32 {
    return f32(bitcast<i32>(byte_at(at) << 24u) >> 24u);
}

/// The nibble of element `j` of a block of 32 whose nibbles begin at byte `at`.
fn nibble_at(at: u32, j: u32) -> u32 {
    return (byte_at(at + j % 16u) >> (4u * (j / 16u))) & 15u;
}

/// Bit `j` of the four bytes from `at` on, as a code's fifth bit.
fn fifth_at(at: u32, j: u32) -> u32 {
    return ((byte_at(at + j / 8u) >> (j % 8u)) & 1u) << 4u;
}

/// Scale and minimum of group `j` of a block of `q4_k` or `q5_k` that begins at byte `at`.
fn group_line(at: u32, j: u32) -> vec2<f32> {
    var scale = byte_at(at + 4u + j) & 63u;
    var least = byte_at(at + 8u + j) & 63u;
    if (j >= 4u) {
        let both = byte_at(at + 8u + j);
        scale = (both & 15u) | ((byte_at(at + j) >> 6u) << 4u);
        least = (both >> 4u) | ((byte_at(at + 4u + j) >> 6u) << 4u);
    }
    return vec2<f32>(f16_at(at) * f32(scale), f16_at(at + 2u) * f32(least));
}

fn stored_q4_k(i: u32) -> f32 {
    let at = i / 256u * 144u;
    let group = i % 256u / 32u;
    let code = (byte_at(at + 16u + 32u * (group / 2u) + i % 32u) >> (4u * (group % 2u))) & 15u;
    let scale = group_line(at, group);
    return f32(code) * scale.x - scale.y;
}

fn stored_q5_k(i: u32) -> f32 {
    let at = i / 256u * 176u;
    let group = i % 256u / 32u;
    let low = (byte_at(at + 48u + 32u * (group / 2u) + i % 32u) >> (4u * (group % 2u))) & 15u;
    let code = low | (((byte_at(at + 16u + i % 32u) >> group) & 1u) << 4u);
    let scale = group_line(at, group);
    return f32(code) * scale.x - scale.y;
}

fn stored_q6_k(i: u32) -> f32 {
    let at = i / 256u * 210u;
    let part = i % 256u / 128u;
    let quarter = i % 128u / 32u;
    let low = (byte_at(at + 64u * part + 32u * (quarter % 2u) + i % 32u) >> (4u * (quarter / 2u))) & 15u;
    let high = (byte_at(at + 128u + 32u * part + i % 32u) >> (2u * quarter)) & 3u;
    let scale = f16_at(at + 208u) * signed_byte_at(at + 192u + i % 256u / 16u);
    return (f32(low | (high << 4u)) - 32.0) * scale;
}

/// Element `i` of operand 1, decoded from its storage type. Blocks are GGML's.
fn stored(i: u32) -> f32 {
    let j = i % 32u;
    switch (STORAGE) {
        case F16: { return float_of_f16((u1[i / 2u] >> (16u * (i % 2u))) & 0xffffu); }
        case BF16: { return float_of_bf16((u1[i / 2u] >> (16u * (i % 2u))) & 0xffffu); }
        case Q8_0: {
            let at = i / 32u * 34u;
            return signed_byte_at(at + 2u + j) * f16_at(at);
        }
        case Q4_0: {
            let at = i / 32u * 18u;
            return (f32(nibble_at(at + 2u, j)) - 8.0) * f16_at(at);
        }
        case Q4_1: {
            let at = i / 32u * 20u;
            return f32(nibble_at(at + 4u, j)) * f16_at(at) + f16_at(at + 2u);
        }
        case Q5_0: {
            let at = i / 32u * 22u;
            return (f32(nibble_at(at + 6u, j) | fifth_at(at + 2u, j)) - 16.0) * f16_at(at);
        }
        case Q5_1: {
            let at = i / 32u * 24u;
            return f32(nibble_at(at + 8u, j) | fifth_at(at + 4u, j)) * f16_at(at) + f16_at(at + 2u);
        }
        case Q4_K: { return stored_q4_k(i); }
        case Q5_K: { return stored_q5_k(i); }
        case Q6_K: { return stored_q6_k(i); }
        default: { return bitcast<f32>(u1[i]); }
    }
}
