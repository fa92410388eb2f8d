// The dense product that all linear layers are: `C[i, j] (+)= alpha sum over k of A(i, k) B(j, k) (+ bias[j])`.
//
// ```text
// for segment of k { for chunk of 512 of it { sum = 0; for k in chunk { sum += A(i, k) B(j, k) } c += alpha sum } }
// ```
// A block makes a tile of 64 x 64; a thread 4 x 4 of it in registers, from panels of 16 steps of `k` in shared memory;
// while one panel is multiplied the next is on its way. Factors are addressed by their strides, so a transpose is no
// kernel of its own. The order of a sum follows from `k` and the segment alone, and every product and sum is one
// `fmaf`. Bound: 2 m n k operations.
//
// `product_bf16` is the same where factors are rounded to bf16 and the card has matrix units: a block makes 128 x 64,
// so that a weight is decoded once for 128 tokens; a warp 32 x 32 of it, from panels of 16 steps, two at a time. A chunk
// is summed from its first step to its last, 16 at a time, whatever `m` and `n` are.
#include "common.cuh"
#include "mma.cuh"

struct Params {
  u32 step;
  u32 m, n, k;
  /// Elements between neighbours of A along `i` and `k`, and its first one.
  u32 a_row, a_col, a_first;
  /// The same of B along `j` and `k`.
  u32 b_row, b_col, b_first;
  /// Elements between rows of C, and its first one.
  u32 c_row, c_first;
  /// Steps of `k` that are summed apart: a packed row's tokens.
  u32 segment;
  float alpha;
  u32 has_bias, accumulate;
  /// Whether factors are rounded to bf16.
  u32 rounds;
};

constexpr u32 TILE = 64, STEPS = 16, CHUNK = 512;

/// Where the chunk that begins at `start` ends.
__device__ inline u32 chunk_end(const Params &p, u32 start) {
  return min(min(p.k, (start / p.segment + 1) * p.segment), start + CHUNK);
}

/// Four rows of 64 a vector, a step of `k` after the other; one vector apart, so that neighbours along `k` lie in
/// different banks.
constexpr u32 STRIDE = TILE / 4 + 1;

struct Panel {
  float4 left[STEPS * STRIDE];
  float4 right[STEPS * STRIDE];
};

__device__ inline float factor(const Params &p, float x) {
  return p.rounds == 0 ? x : float_of_bf16(bf16_of(x));
}

__device__ inline float a_at(const Params &p, const float *a, u32 i, u32 k, u32 end) {
  if (i >= p.m || k >= end) return 0.0f;
  return factor(p, a[p.a_first + i * p.a_row + k * p.a_col]);
}

__device__ inline float b_at(const Params &p, const void *b, u32 j, u32 k, u32 end) {
  if (j >= p.n || k >= end) return 0.0f;
  return factor(p, stored(b, p.b_first + j * p.b_row + k * p.b_col));
}

/// Which four rows and which step a thread brings: neighbours read neighbouring elements.
struct Place {
  u32 rows, step;
};

__device__ inline Place place(bool is_along_k) {
  u32 high = threadIdx.x / 16, low = threadIdx.x % 16;
  return is_along_k ? Place{high, low} : Place{low, high};
}

/// What a thread brings of a panel.
struct Part {
  float4 a, b;
};

__device__ inline Part bring(const Params &p, const float *a, const void *b, Place at_a, Place at_b, u32 first, u32 end) {
  u32 i = blockIdx.y * TILE + 4 * at_a.rows, j = blockIdx.x * TILE + 4 * at_b.rows;
  u32 ka = first + at_a.step, kb = first + at_b.step;
  return {make_float4(a_at(p, a, i, ka, end), a_at(p, a, i + 1, ka, end), a_at(p, a, i + 2, ka, end),
                      a_at(p, a, i + 3, ka, end)),
          make_float4(b_at(p, b, j, kb, end), b_at(p, b, j + 1, kb, end), b_at(p, b, j + 2, kb, end),
                      b_at(p, b, j + 3, kb, end))};
}

__device__ inline void put(Panel &panel, const Part &part, Place at_a, Place at_b) {
  panel.left[at_a.step * STRIDE + at_a.rows] = part.a;
  panel.right[at_b.step * STRIDE + at_b.rows] = part.b;
}

__device__ inline void add_row(float *sum, float a, const float4 &b) {
  sum[0] = fmaf(a, b.x, sum[0]);
  sum[1] = fmaf(a, b.y, sum[1]);
  sum[2] = fmaf(a, b.z, sum[2]);
  sum[3] = fmaf(a, b.w, sum[3]);
}

/// Adds a panel's products to a thread's 4 x 4 sums. Steps behind the end hold zeros, which change no sum.
__device__ inline void multiply(const Panel &panel, float sum[4][4]) {
  u32 down = threadIdx.x / 16, across = threadIdx.x % 16;
#pragma unroll
  for (u32 s = 0; s < STEPS; s++) {
    float4 a = panel.left[s * STRIDE + down], b = panel.right[s * STRIDE + across];
    add_row(sum[0], a.x, b);
    add_row(sum[1], a.y, b);
    add_row(sum[2], a.z, b);
    add_row(sum[3], a.w, b);
  }
}

KERNEL(256) product(Params p, u32 *status, const float *a, const void *b, const float *bias, const float *acc, float *c) {
  __shared__ Panel panels[2];
  u32 row = blockIdx.y * TILE + 4 * (threadIdx.x / 16), col = blockIdx.x * TILE + 4 * (threadIdx.x % 16);
  float total[4][4];
#pragma unroll
  for (u32 r = 0; r < 4; r++) {
#pragma unroll
    for (u32 q = 0; q < 4; q++) {
      bool is_there = p.accumulate != 0 && row + r < p.m && col + q < p.n;
      total[r][q] = is_there ? acc[p.c_first + (row + r) * p.c_row + col + q] : 0.0f;
    }
  }
  Place at_a = place(p.a_col == 1), at_b = place(p.b_col == 1);
  u32 start = 0, now = 0;
  while (start < p.k) {
    u32 end = chunk_end(p, start);
    float sum[4][4] = {};
    put(panels[now], bring(p, a, b, at_a, at_b, start, end), at_a, at_b);
    __syncthreads();
    for (u32 first = start; first < end; first += STEPS) {
      bool has_next = first + STEPS < end;
      Part next = {};
      if (has_next) next = bring(p, a, b, at_a, at_b, first + STEPS, end);
      multiply(panels[now], sum);
      now ^= 1;
      if (has_next) put(panels[now], next, at_a, at_b);
      __syncthreads();
    }
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
      for (u32 q = 0; q < 4; q++) total[r][q] = fmaf(p.alpha, sum[r][q], total[r][q]);
    }
    start = end;
  }
#pragma unroll
  for (u32 r = 0; r < 4; r++) {
#pragma unroll
    for (u32 q = 0; q < 4; q++) {
      if (row + r >= p.m || col + q >= p.n) continue;
      float y = total[r][q];
      if (p.has_bias != 0) y += bias[col + q];
      c[p.c_first + (row + r) * p.c_row + col + q] = y;
    }
  }
}

#ifdef MATRIX_UNITS
/// The tile of a block, and the part of it that is a warp's.
constexpr u32 DOWN = 128, ACROSS = 64, OF_WARP = 32;

struct Panels {
  uint4 left[2 * panel_units(DOWN)], right[2 * panel_units(ACROSS)];
};

/// Which of 64 rows and which eight steps of a panel a thread brings: neighbours read neighbouring elements.
__device__ inline Place octet_place(bool is_along_k) {
  return is_along_k ? Place{threadIdx.x / 4, threadIdx.x % 4} : Place{threadIdx.x % 64, threadIdx.x / 64};
}

__device__ inline Octet a_octet(const Params &p, const float *a, u32 i, u32 k, u32 end) {
  u32 at = p.a_first + i * p.a_row + k * p.a_col, count = i < p.m && k < end ? end - k : 0;
  if (p.a_col == 1) return eight(a + at, count);
  Octet o;
#pragma unroll
  for (u32 e = 0; e < 8; e++) o.x[e] = e < count ? a[at + e * p.a_col] : 0.0f;
  return o;
}

__device__ inline Octet b_octet(const Params &p, const void *b, u32 j, u32 k, u32 end) {
  u32 at = p.b_first + j * p.b_row + k * p.b_col, count = j < p.n && k < end ? end - k : 0;
  if (p.b_col == 1 && count >= 8 && at % 8 == 0) return eight_stored(b, at);
  Octet o;
#pragma unroll
  for (u32 e = 0; e < 8; e++) o.x[e] = e < count ? stored(b, at + e * p.b_col) : 0.0f;
  return o;
}

/// What a thread brings of the panels of both factors: two rows of the left one and one of the right one.
struct Octets {
  Octet a[2], b;
};

__device__ inline Octets bring_octets(const Params &p, const float *a, const void *b, u32 first, u32 end) {
  Place at_a = octet_place(p.a_col == 1), at_b = octet_place(p.b_col == 1);
  u32 i = blockIdx.y * DOWN + at_a.rows, k = first + 8 * at_a.step;
  return {{a_octet(p, a, i, k, end), a_octet(p, a, i + DOWN / 2, k, end)},
          b_octet(p, b, blockIdx.x * ACROSS + at_b.rows, first + 8 * at_b.step, end)};
}

__device__ inline void put_octets(const Params &p, Panels &panels, const Octets &o) {
  Place at_a = octet_place(p.a_col == 1), at_b = octet_place(p.b_col == 1);
  uint4 *left = panels.left + at_a.step / 2 * panel_units(DOWN);
  uint4 *right = panels.right + at_b.step / 2 * panel_units(ACROSS);
  left[unit(at_a.rows, at_a.step % 2)] = rounded(o.a[0]);
  left[unit(at_a.rows + DOWN / 2, at_a.step % 2)] = rounded(o.a[1]);
  right[unit(at_b.rows, at_b.step % 2)] = rounded(o.b);
}

/// The first row and column of a warp in its block's tile.
__device__ inline u32 warp_row() { return threadIdx.x / 32 % (DOWN / OF_WARP) * OF_WARP; }
__device__ inline u32 warp_col() { return threadIdx.x / 32 / (DOWN / OF_WARP) * OF_WARP; }

/// Adds the products of two panels to a warp's 2 x 4 results of 16 x 8.
__device__ inline void multiply_panels(const Panels &panels, float (&sum)[2][4][4]) {
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    const uint4 *left = panels.left + half * panel_units(DOWN), *right = panels.right + half * panel_units(ACROSS);
    Left a[2] = {left_of(left, warp_row()), left_of(left, warp_row() + 16)};
#pragma unroll
    for (u32 q = 0; q < 4; q++) {
      uint2 b = right_of(right, warp_col() + 8 * q);
      multiply(sum[0][q], a[0], b);
      multiply(sum[1][q], a[1], b);
    }
  }
}

/// Where element `e` of a lane's result `(r, q)` is.
struct Spot {
  u32 row, col;
  bool is_in;
};

__device__ inline Spot spot(const Params &p, u32 r, u32 q, u32 e) {
  u32 row = blockIdx.y * DOWN + warp_row() + 16 * r + lane_row() + 8 * (e / 2);
  u32 col = blockIdx.x * ACROSS + warp_col() + 8 * q + 2 * lane_part() + e % 2;
  return {row, col, row < p.m && col < p.n};
}

KERNEL(256) product_bf16(Params p, u32 *status, const float *a, const void *b, const float *bias, const float *acc,
                         float *c) {
  __shared__ Panels panels[2];
  float total[2][4][4], sum[2][4][4] = {};
#pragma unroll
  for (u32 i = 0; i < 32; i++) {
    Spot at = spot(p, i / 16, i / 4 % 4, i % 4);
    bool is_there = p.accumulate != 0 && at.is_in;
    total[i / 16][i / 4 % 4][i % 4] = is_there ? acc[p.c_first + at.row * p.c_row + at.col] : 0.0f;
  }
  u32 first = 0, end = chunk_end(p, 0), now = 0;
  Octets next = bring_octets(p, a, b, first, end);
  while (first < p.k) {
    put_octets(p, panels[now], next);
    __syncthreads();
    u32 after = min(first + DEPTH, end), after_end = after < end ? end : chunk_end(p, after);
    if (after < p.k) next = bring_octets(p, a, b, after, after_end);
    multiply_panels(panels[now], sum);
    if (after == end) {
#pragma unroll
      for (u32 i = 0; i < 32; i++) {
        float &of_chunk = sum[i / 16][i / 4 % 4][i % 4], &all = total[i / 16][i / 4 % 4][i % 4];
        all = fmaf(p.alpha, of_chunk, all);
        of_chunk = 0.0f;
      }
    }
    first = after;
    end = after_end;
    now ^= 1;
  }
#pragma unroll
  for (u32 i = 0; i < 32; i++) {
    Spot at = spot(p, i / 16, i / 4 % 4, i % 4);
    if (!at.is_in) continue;
    float y = total[i / 16][i / 4 % 4][i % 4];
    if (p.has_bias != 0) y += bias[at.col];
    c[p.c_first + at.row * p.c_row + at.col] = y;
  }
}
#endif

/// Two of `m` elements a thread, rounded to bf16, for products of a library. Operands `x, y`.
KERNEL(256) narrow(Params p, u32 *status, const void *x, u32 *y) {
  u32 i = 2 * index_of();
  if (i >= p.m) return;
  u32 high = i + 1 < p.m ? bf16_of(stored(x, i + 1)) : 0;
  y[i / 2] = bf16_of(stored(x, i)) | (high << 16);
}
