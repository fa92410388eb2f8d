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

/// Begins a kernel for blocks of so many threads.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

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

/// The sum of a block's 256 lanes, halved again and again; every thread gets it.
__device__ inline float sum_lanes(float *lanes) {
  for (u32 width = 128; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) lanes[threadIdx.x] += lanes[threadIdx.x + width];
  }
  __syncthreads();
  return lanes[0];
}
