// What every family shares: names of types, the status word, storage types, and functions of one number.
//
// A kernel takes its family's parameters, the status, and a pointer an operand, in the order of the shader of the same
// name. Operands may be the same bytes where the op may run in place: no thread reads there after another has written.
// Products and sums are one operation each where `fmaf` says so and nowhere else (NVRTC is called with --fmad=false),
// so the order of every sum is the text's.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/// Begins a kernel for blocks of so many threads; one block at least is on a processor, so that registers suffice.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 2)

/// How the operand that comes in several storage types is stored: the number of the type in the table of `DType`.
#ifndef STORAGE
#define STORAGE 0
#endif

constexpr u32 F32 = 0, F16 = 1, BF16 = 2, Q8_0 = 8, Q4_0 = 9, Q4_1 = 10, Q5_0 = 11, Q5_1 = 12, Q4_K = 13, Q5_K = 14,
              Q6_K = 15;

/// The number of a thread among all of its launch, for blocks of 256.
__device__ inline u32 index_of() { return (blockIdx.y * gridDim.x + blockIdx.x) * 256 + threadIdx.x; }

/// Marks step `step` as one that met bad data; the first step to do so stays marked: the status is the complement of
/// its number.
__device__ inline void refuse(u32 *status, u32 step) { atomicMax(status, ~step); }

__device__ inline u32 bits_of(float x) { return __float_as_uint(x); }

__device__ inline float float_of(u32 bits) { return __uint_as_float(bits); }

__device__ inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

__device__ inline float float_of_bf16(u32 half) { return float_of(half << 16); }

/// The nearest bf16, ties to even; a quiet NaN for NaN.
__device__ inline u32 bf16_of(float x) {
  u32 bits = bits_of(x);
  bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

/// The number that the bits of an f16 are.
__device__ inline float float_of_f16(u32 half) {
  u32 sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
  if (exponent == 31u) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0u) return float_of(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: a multiple of 2^-24, exact in f32.
  float tiny = static_cast<float>(mantissa) * 5.9604645e-8f;
  return float_of(sign | bits_of(tiny));
}

/// `1 / (1 + e^-x)`; the exponent is kept where its power is finite.
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(fminf(fmaxf(-x, -87.0f), 87.0f))); }

/// An odd polynomial below 0.625, `1 - 2 / (e^2x + 1)` above, as on the CPU.
__device__ inline float tanh_of(float x) {
  float z = x * x;
  float q = fmaf(-0.006096714f, z, 0.02099718f);
  q = fmaf(q, z, -0.053850908f);
  q = fmaf(q, z, 0.1333277f);
  q = fmaf(q, z, -0.3333333f);
  float small = fmaf(z * x, q, x);
  float large = 1.0f - 2.0f / (expf(fminf(2.0f * fabsf(x), 87.0f)) + 1.0f);
  if (fabsf(x) < 0.625f) return small;
  return x < 0.0f ? -large : large;
}

/// The sum of what the threads of a block give, the same for each: halved again and again, between warps in `lanes`,
/// which has a place a thread, and in the first warp by shuffles. The order is that of the shaders.
template <u32 THREADS> __device__ inline float block_sum(float *lanes, float x) {
  u32 l = threadIdx.x;
  __syncthreads();
  lanes[l] = x;
  for (u32 width = THREADS / 2; width >= 32; width /= 2) {
    __syncthreads();
    if (l < width) lanes[l] += lanes[l + width];
  }
  __syncthreads();
  if (l < 32) {
    x = lanes[l];
    for (u32 width = 16; width > 0; width /= 2) x += __shfl_down_sync(0xffffffffu, x, width);
    if (l == 0) lanes[0] = x;
  }
  __syncthreads();
  return lanes[0];
}

/// The largest of what the threads of a block give, the same for each.
template <u32 THREADS> __device__ inline float block_max(float *lanes, float x) {
  u32 l = threadIdx.x;
  for (u32 width = 16; width > 0; width /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, width));
  __syncthreads();
  if (l % 32 == 0) lanes[l / 32] = x;
  __syncthreads();
  x = lanes[0];
  for (u32 k = 1; k < THREADS / 32; k++) x = fmaxf(x, lanes[k]);
  return x;
}

/// The f16 at byte `at`, an even number.
__device__ inline float f16_at(const u8 *w, u64 at) { return float_of_f16(*reinterpret_cast<const u16 *>(w + at)); }

/// The nibble of element `j` of a block of 32 whose nibbles begin at byte `at`.
__device__ inline u32 nibble_at(const u8 *w, u64 at, u32 j) { return (w[at + j % 16] >> (4 * (j / 16))) & 15u; }

/// Bit `j` of the four bytes from `at` on, as a code's fifth bit.
__device__ inline u32 fifth_at(const u8 *w, u64 at, u32 j) { return ((w[at + j / 8] >> (j % 8)) & 1u) << 4; }

/// The code of element `i` of `q4_k` or `q5_k`, whose block begins at byte `at`, by the scale and less the minimum of
/// its group of 32.
__device__ inline float of_group(const u8 *w, u64 at, u32 group, u32 code) {
  u32 scale = w[at + 4 + group] & 63u, least = w[at + 8 + group] & 63u;
  if (group >= 4) {
    u32 both = w[at + 8 + group];
    scale = (both & 15u) | ((w[at + group] >> 6) << 4);
    least = (both >> 4) | ((w[at + 4 + group] >> 6) << 4);
  }
  float by = f16_at(w, at) * static_cast<float>(scale);
  return static_cast<float>(code) * by - f16_at(w, at + 2) * static_cast<float>(least);
}

__device__ inline float stored_q4_k(const u8 *w, u32 i) {
  u64 at = static_cast<u64>(i / 256) * 144;
  u32 group = i % 256 / 32;
  return of_group(w, at, group, (w[at + 16 + 32 * (group / 2) + i % 32] >> (4 * (group % 2))) & 15u);
}

__device__ inline float stored_q5_k(const u8 *w, u32 i) {
  u64 at = static_cast<u64>(i / 256) * 176;
  u32 group = i % 256 / 32;
  u32 low = (w[at + 48 + 32 * (group / 2) + i % 32] >> (4 * (group % 2))) & 15u;
  return of_group(w, at, group, low | (((w[at + 16 + i % 32] >> group) & 1u) << 4));
}

__device__ inline float stored_q6_k(const u8 *w, u32 i) {
  u64 at = static_cast<u64>(i / 256) * 210;
  u32 part = i % 256 / 128, quarter = i % 128 / 32;
  u32 low = (w[at + 64 * part + 32 * (quarter % 2) + i % 32] >> (4 * (quarter / 2))) & 15u;
  u32 high = (w[at + 128 + 32 * part + i % 32] >> (2 * quarter)) & 3u;
  float scale = f16_at(w, at + 208) * static_cast<float>(static_cast<signed char>(w[at + 192 + i % 256 / 16]));
  return (static_cast<float>(low | (high << 4)) - 32.0f) * scale;
}

/// Element `i` of a tensor, decoded from its storage type. Blocks are GGML's.
__device__ inline float stored(const void *tensor, u32 i) {
  const u8 *w = static_cast<const u8 *>(tensor);
  const u16 *halves = static_cast<const u16 *>(tensor);
  u32 j = i % 32;
  u64 block = i / 32;
  switch (STORAGE) {
  case F16:
    return float_of_f16(halves[i]);
  case BF16:
    return float_of_bf16(halves[i]);
  case Q8_0:
    return static_cast<float>(static_cast<signed char>(w[block * 34 + 2 + j])) * f16_at(w, block * 34);
  case Q4_0:
    return (static_cast<float>(nibble_at(w, block * 18 + 2, j)) - 8.0f) * f16_at(w, block * 18);
  case Q4_1:
    return static_cast<float>(nibble_at(w, block * 20 + 4, j)) * f16_at(w, block * 20) + f16_at(w, block * 20 + 2);
  case Q5_0: {
    u32 code = nibble_at(w, block * 22 + 6, j) | fifth_at(w, block * 22 + 2, j);
    return (static_cast<float>(code) - 16.0f) * f16_at(w, block * 22);
  }
  case Q5_1: {
    u32 code = nibble_at(w, block * 24 + 8, j) | fifth_at(w, block * 24 + 4, j);
    return static_cast<float>(code) * f16_at(w, block * 24) + f16_at(w, block * 24 + 2);
  }
  case Q4_K:
    return stored_q4_k(w, i);
  case Q5_K:
    return stored_q5_k(w, i);
  case Q6_K:
    return stored_q6_k(w, i);
  default:
    return static_cast<const float *>(tensor)[i];
  }
}
