// Products of bf16 factors in matrix units, sums in f32: what kernels whose names end in `_bf16` are made of.
//
// A *panel* is rows of 16 factors each in shared memory, in two units of eight. Lane `4 g + t` of a warp reads half a
// unit, the `t`th, of rows `g` and `g + 8` of the left factor and of row `g` of the right one: its parts of a product
// of 16 x 16 by 16 x 8. Which of the 16 steps a half holds is no matter as long as both factors agree. Units are moved
// within a row so that lanes that read or write at one time find different banks.
// Two instructions have no name in the language: they are the only ones that are written out.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MATRIX_UNITS
#endif

#ifdef MATRIX_UNITS
/// Steps that are brought at a time: two panels.
constexpr u32 DEPTH = 32;

/// Both rounded to bf16, ties to even, the first one in the lower half.
__device__ inline u32 bf16_pair(float low, float high) {
#ifdef __CUDA_ARCH__
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return bf16_of(low) | (bf16_of(high) << 16);
#endif
}

/// `c += a b` of a warp: `c[e]` is row `g + 8 (e / 2)` and column `2 t + e % 2` of 16 x 8. Pairs of steps `2 t` and
/// `2 t + 8`: `a0` and `a2` of row `g`, `a1` and `a3` of row `g + 8`; `b0` and `b1` of column `g`.
__device__ inline void multiply_16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifdef __CUDA_ARCH__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  shim::multiply_16(c, {a0, a1, a2, a3, b0, b1});
#endif
}

/// Row and column of a lane in what a warp multiplies: `g` and `t`.
__device__ inline u32 lane_row() { return threadIdx.x % 32 / 4; }
__device__ inline u32 lane_part() { return threadIdx.x % 4; }

/// A lane's part of 16 rows of a left factor.
struct Left {
  uint2 low, high;
};

__device__ inline void multiply(float (&c)[4], const Left &a, const uint2 &b) {
  multiply_16(c, a.low.x, a.high.x, a.low.y, a.high.y, b.x, b.y);
}

/// Units of a panel of so many rows, a multiple of eight; a panel behind it begins in other banks.
__device__ constexpr u32 panel_units(u32 rows) { return 2 * rows + 4; }

/// Where unit `part` of a row lies.
__device__ inline u32 unit(u32 row, u32 part) { return 2 * row + (part ^ (row / 4 % 2)); }

/// A lane's part of a row.
__device__ inline uint2 half_unit(const uint4 *panel, u32 row) {
  return reinterpret_cast<const uint2 *>(panel)[4 * row + (lane_part() ^ (2 * (row / 4 % 2)))];
}

/// A lane's part of the 16 rows from `row` on, a multiple of eight.
__device__ inline Left left_of(const uint4 *panel, u32 row) {
  return {half_unit(panel, row + lane_row()), half_unit(panel, row + lane_row() + 8)};
}

/// A lane's part of the eight columns from `row` on, a multiple of eight.
__device__ inline uint2 right_of(const uint4 *panel, u32 row) { return half_unit(panel, row + lane_row()); }

/// Eight factors on their way to a unit.
struct Octet {
  float x[8];
};

__device__ inline uint4 rounded(const Octet &o) {
  return {bf16_pair(o.x[0], o.x[1]), bf16_pair(o.x[2], o.x[3]), bf16_pair(o.x[4], o.x[5]), bf16_pair(o.x[6], o.x[7])};
}

__device__ inline bool is_aligned(const void *at) { return (reinterpret_cast<u64>(at) & 15) == 0; }

/// `count` neighbours from `x` on, and zeros behind them.
__device__ inline Octet eight(const float *x, u32 count) {
  if (count >= 8 && is_aligned(x)) {
    float4 low = reinterpret_cast<const float4 *>(x)[0], high = reinterpret_cast<const float4 *>(x)[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }
  Octet o;
#pragma unroll
  for (u32 e = 0; e < 8; e++) o.x[e] = e < count ? x[e] : 0.0f;
  return o;
}

/// The elements of a tensor from `i` on, a multiple of 8, decoded from their storage type.
__device__ inline Octet eight_stored(const void *tensor, u32 i) {
  if (STORAGE == F32) return eight(static_cast<const float *>(tensor) + i, 8);
  Octet o;
  if ((STORAGE == BF16 || STORAGE == F16) && is_aligned(tensor)) {
    uint4 both = static_cast<const uint4 *>(tensor)[i / 8];
    u32 words[4] = {both.x, both.y, both.z, both.w};
#pragma unroll
    for (u32 e = 0; e < 8; e++) {
      u32 half = (words[e / 2] >> (16 * (e % 2))) & 0xffffu;
      o.x[e] = STORAGE == BF16 ? float_of_bf16(half) : float_of_f16(half);
    }
    return o;
  }
  // In this form the compiler sees that all are of one block.
#pragma unroll
  for (u32 e = 0; e < 8; e++) o.x[e] = stored(tensor, (i & ~7u) | e);
  return o;
}
#endif
