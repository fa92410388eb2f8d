// Rotary positions, attention forward and backward, and attention to a cache. No matrix of scores is in memory.
//
// ```text
// for tile of 16 queries { for tile of 16 keys { s = scale q k'; p = exp(s - max); o = o exp(old max - max) + p v } }
// ```
// Backward recomputes the probabilities from the logarithms of their sums: `dv = p' do`, `ds = p (do v' - delta) scale`,
// `dq = ds k`, `dk = ds' q`. A block has a tile of queries (or of keys) of one head; thread `(y, x)` has the score of
// query `y` and key `x`, and of the result row `y` the columns `x, x + 16, ...`. Sums go over key tiles (for keys: over
// the heads that share them and their query tiles) in order. Bound: 4 d operations a pair forward, 10 back.
//
// The kernels whose names end in `_bf16` do the same in matrix units: q, k, v and their gradients' factors rounded to
// bf16, scores, weights and sums in f32. A block has 64 queries (or keys), 32 of wide heads, and goes through keys (or
// queries) 64 or 32 at a time; a warp has 16 of its rows. What a block keeps lies in shared memory whole, what it goes
// through comes in slices: as rows for scores, turned for sums over tokens. A score goes from one product to the next
// in registers. Of heads wider than 128 two warps make the same scores, each for half of the columns.
#include "common.cuh"
#include "mma.cuh"

struct Params {
  u32 step;
  /// Tokens of a packed row, or all tokens where there is a cache.
  u32 seq;
  u32 heads, kv_heads;
  /// Elements of a head, at most 256.
  u32 dim;
  float scale;
  u32 causal;
  /// Positions that a token sees, its own included; 0 for all.
  u32 window;
  /// Tokens in all, or positions of the cache.
  u32 context;
  /// Elements of a head that are rotated, by two; whether pairs are neighbours; whether the rotation goes back.
  u32 half, interleaved, inverse;
};

constexpr float LOWEST = -3.4028235e38f;

/// Rows of a tile, one element apart, so that a column lies in 16 banks.
constexpr u32 TILE = 16, ROW = 17;
/// Columns of the result that a thread has, and those that it works on together.
constexpr u32 COLUMNS = 16, TOGETHER = 4;

struct SinCos {
  float sine, cosine;
};

/// The angle less its multiple of a half turn, which is taken off in three parts.
__device__ inline SinCos sin_cos(float angle) {
  float turns = rintf(angle * 0.63661977f);
  float r = fmaf(turns, -1.5703125f, angle);
  r = fmaf(turns, -4.837512969970703e-4f, r);
  r = fmaf(turns, -7.549789954891882e-8f, r);
  float z = r * r;
  float s = fmaf(z * r, fmaf(z, fmaf(z, fmaf(z, 2.7557319e-6f, -1.9841270e-4f), 8.3333333e-3f), -0.16666667f), r);
  float c = fmaf(z, fmaf(z, fmaf(z, fmaf(z, 2.4801587e-5f, -1.3888889e-3f), 4.1666667e-2f), -0.5f), 1.0f);
  int quadrant = static_cast<int>(turns) & 3;
  bool is_odd = (quadrant & 1) == 1;
  float sine = is_odd ? c : s, cosine = is_odd ? s : c;
  return {(quadrant & 2) != 0 ? -sine : sine, ((quadrant + 1) & 2) != 0 ? -cosine : cosine};
}

/// Rotates the first `2 half` elements of every head by `positions[t] inv_freq[i]`; the others are copied.
KERNEL(256) rope(Params p, u32 *status, const float *x, const int *positions, const float *inv_freq, float *y) {
  u32 each = p.dim - p.half, i = index_of();
  if (i >= p.context * p.heads * each) return;
  u32 first = i / each * p.dim, part = i % each;
  if (part >= p.half) {
    u32 at = first + p.half + part;
    y[at] = x[at];
    return;
  }
  u32 a = first + (p.interleaved != 0 ? 2 * part : part);
  u32 b = p.interleaved != 0 ? a + 1 : a + p.half;
  SinCos both = sin_cos(static_cast<float>(positions[i / each / p.heads]) * inv_freq[part]);
  float c = both.cosine * p.scale, s = both.sine * p.scale;
  if (p.inverse != 0) s = -s;
  float xa = x[a], xb = x[b];
  y[a] = fmaf(xa, c, -(xb * s));
  y[b] = fmaf(xb, c, xa * s);
}

/// Whether key `j` of a packed row lies where query `i` may see it.
__device__ inline bool is_near(const Params &p, u32 i, u32 j) {
  u32 apart = i >= j ? i - j : j - i;
  return (p.causal == 0 || j <= i) && (p.window == 0 || apart < p.window);
}

/// Whether query `i` of a packed row sees key `j`, whose segments are these.
__device__ inline bool sees(const Params &p, u32 i, u32 j, int of_i, int of_j) {
  return i < p.seq && j < p.seq && of_i >= 0 && of_i == of_j && is_near(p, i, j);
}

struct Range {
  u32 from, to;
};

/// The keys, in tiles of `step`, that a tile of `count` queries from `first` on may see.
__device__ inline Range key_range(const Params &p, u32 first, u32 count, u32 step) {
  u32 low = 0, high = p.seq;
  if (p.causal != 0) high = min(p.seq, first + count);
  if (p.window != 0 && first + 1 > p.window) low = (first + 1 - p.window) / step * step;
  if (p.window != 0) high = min(high, first + count - 1 + p.window);
  return {low, high};
}

/// The queries, in tiles of `step`, that may see a tile of `count` keys from `first` on.
__device__ inline Range query_range(const Params &p, u32 first, u32 count, u32 step) {
  u32 low = 0, high = p.seq;
  if (p.causal != 0) low = first / step * step;
  if (p.window != 0) {
    high = min(p.seq, first + count - 1 + p.window);
    if (p.causal == 0 && first + 1 > p.window) low = (first + 1 - p.window) / step * step;
  }
  return {low, high};
}

/// A tile's parts of queries and keys, and what its pairs weigh.
struct Tiles {
  float left[TILE * ROW], right[TILE * ROW], weights[TILE * ROW], shares[TILE * ROW];
};

/// `q k'` of a thread's pair.
__device__ inline float score_of(const Params &p, Tiles &t, const float *q, const float *k, u32 row, u32 first_query,
                                 u32 first_key) {
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE;
  u32 kv = blockIdx.y / (p.heads / p.kv_heads) * p.dim;
  float score = 0.0f;
  for (u32 d = 0; d < p.dim; d += TILE) {
    bool is_in = d + x < p.dim;
    u32 query = first_query + y, key = first_key + y;
    t.left[y * ROW + x] =
        is_in && query < p.seq ? q[(row + query) * p.heads * p.dim + blockIdx.y * p.dim + d + x] : 0.0f;
    t.right[y * ROW + x] = is_in && key < p.seq ? k[(row + key) * p.kv_heads * p.dim + kv + d + x] : 0.0f;
    __syncthreads();
#pragma unroll
    for (u32 e = 0; e < TILE; e++) score = fmaf(t.left[y * ROW + e], t.right[x * ROW + e], score);
    __syncthreads();
  }
  return score;
}

/// Adds `count` rows of a head, each by its weight, to the columns `c, c + 16, ...` of `sums`: a weight every `stride`.
__device__ inline void add_rows(float *sums, const Params &p, const float *weights, u32 stride, const float *rows,
                                u32 cols, u32 c, u32 count) {
  if (c >= p.dim) return;
#pragma unroll 1
  for (u32 j = 0; j < count; j++) {
    float weight = weights[j * stride];
#pragma unroll
    for (u32 e = 0; e < TOGETHER; e++) {
      if (c + TILE * e < p.dim) sums[e] = fmaf(weight, rows[j * cols + c + TILE * e], sums[e]);
    }
  }
}

KERNEL(256) attention(Params p, u32 *status, const float *q, const float *k, const float *v, const int *segments,
                      float *o, float *lse) {
  __shared__ Tiles t;
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE;
  u32 row = blockIdx.z * p.seq, query = blockIdx.x * TILE + y;
  u32 k_cols = p.kv_heads * p.dim, kv = blockIdx.y / (p.heads / p.kv_heads) * p.dim;
  bool is_query = query < p.seq;
  int of_query = is_query ? segments[row + query] : -1;
  float output[COLUMNS] = {};
  float largest = LOWEST, sum = 0.0f;
  Range range = key_range(p, blockIdx.x * TILE, TILE, TILE);
  for (u32 first = range.from; first < range.to; first += TILE) {
    u32 key = first + x;
    float score = score_of(p, t, q, k, row, blockIdx.x * TILE, first);
    int of_key = key < p.seq ? segments[row + key] : -2;
    bool is_seen = sees(p, query, key, of_query, of_key);
    score = is_seen ? score * p.scale : LOWEST;
    t.weights[y * ROW + x] = score;
    __syncthreads();
    float top = largest;
#pragma unroll
    for (u32 j = 0; j < TILE; j++) top = fmaxf(top, t.weights[y * ROW + j]);
    t.shares[y * ROW + x] = is_seen ? expf(score - top) : 0.0f;
    __syncthreads();
    float fade = expf(fmaxf(largest - top, -100.0f));
    largest = top;
    float part = 0.0f;
#pragma unroll
    for (u32 j = 0; j < TILE; j++) part += t.shares[y * ROW + j];
    sum = fmaf(sum, fade, part);
    u32 count = min(TILE, p.seq - first);
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += TOGETHER) {
      float mixed[TOGETHER] = {};
      add_rows(mixed, p, t.shares + y * ROW, 1, v + (row + first) * k_cols + kv, k_cols, x + TILE * i, count);
#pragma unroll
      for (u32 e = 0; e < TOGETHER; e++) output[i + e] = fmaf(output[i + e], fade, mixed[e]);
    }
  }
  if (!is_query) return;
  float by = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
  for (u32 i = 0; i < COLUMNS; i++) {
    u32 c = x + TILE * i;
    if (c < p.dim) o[(row + query) * p.heads * p.dim + blockIdx.y * p.dim + c] = output[i] * by;
  }
  if (x == 0) lse[(row + query) * p.heads + blockIdx.y] = sum > 0.0f ? largest + logf(sum) : float_of(0xff800000u);
}

/// `delta[t, h] = sum of o do over the head`.
KERNEL(256) attention_delta(Params p, u32 *status, const float *o, const float *d_o, float *delta) {
  u32 i = index_of();
  if (i >= p.context * p.heads) return;
  float sum = 0.0f;
  for (u32 c = 0; c < p.dim; c++) sum = fmaf(o[i * p.dim + c], d_o[i * p.dim + c], sum);
  delta[i] = sum;
}

/// What both gradients read.
struct Given {
  const float *q, *k, *v;
  const int *segments;
  const float *lse, *d_o, *delta;
};

/// 16 elements of a tile's queries, keys, output gradients and values; then the probabilities of its pairs and the
/// gradients of their scores.
struct GradTiles {
  float q[TILE * ROW], k[TILE * ROW], d_o[TILE * ROW], v[TILE * ROW], weights[TILE * ROW], grads[TILE * ROW];
};

/// Leaves the probability of each pair of a tile and the gradient of its score in `weights` and `grads`.
__device__ inline void pair_grads(const Params &p, GradTiles &t, const Given &g, u32 row, u32 head, u32 kv, u32 query,
                                  u32 key) {
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE, at = y * ROW + x;
  float score = 0.0f, reward = 0.0f;
  for (u32 d = 0; d < p.dim; d += TILE) {
    bool has_query = d + x < p.dim && query + y < p.seq, has_key = d + x < p.dim && key + y < p.seq;
    u32 i = (row + query + y) * p.heads * p.dim + head * p.dim + d + x;
    u32 j = (row + key + y) * p.kv_heads * p.dim + kv + d + x;
    t.q[at] = has_query ? g.q[i] : 0.0f;
    t.d_o[at] = has_query ? g.d_o[i] : 0.0f;
    t.k[at] = has_key ? g.k[j] : 0.0f;
    t.v[at] = has_key ? g.v[j] : 0.0f;
    __syncthreads();
#pragma unroll
    for (u32 e = 0; e < TILE; e++) {
      score = fmaf(t.q[y * ROW + e], t.k[x * ROW + e], score);
      reward = fmaf(t.d_o[y * ROW + e], t.v[x * ROW + e], reward);
    }
    __syncthreads();
  }
  float weight = 0.0f, grad = 0.0f;
  if (query + y < p.seq && key + x < p.seq &&
      sees(p, query + y, key + x, g.segments[row + query + y], g.segments[row + key + x])) {
    u32 of = (row + query + y) * p.heads + head;
    weight = expf(score * p.scale - g.lse[of]);
    grad = weight * (reward - g.delta[of]) * p.scale;
  }
  t.weights[at] = weight;
  t.grads[at] = grad;
  __syncthreads();
}

KERNEL(256) attention_grad_q(Params p, u32 *status, const float *q, const float *k, const float *v, const int *segments,
                             const float *o, const float *lse, const float *d_o, const float *delta, float *dq) {
  __shared__ GradTiles t;
  Given given = {q, k, v, segments, lse, d_o, delta};
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE;
  u32 row = blockIdx.z * p.seq, query = blockIdx.x * TILE;
  u32 k_cols = p.kv_heads * p.dim, kv = blockIdx.y / (p.heads / p.kv_heads) * p.dim;
  float sums[COLUMNS] = {};
  Range range = key_range(p, query, TILE, TILE);
  for (u32 first = range.from; first < range.to; first += TILE) {
    pair_grads(p, t, given, row, blockIdx.y, kv, query, first);
    u32 count = min(TILE, p.seq - first);
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += TOGETHER) {
      float part[TOGETHER] = {};
      add_rows(part, p, t.grads + y * ROW, 1, k + (row + first) * k_cols + kv, k_cols, x + TILE * i, count);
#pragma unroll
      for (u32 e = 0; e < TOGETHER; e++) sums[i + e] += part[e];
    }
  }
  if (query + y >= p.seq) return;
#pragma unroll
  for (u32 i = 0; i < COLUMNS; i++) {
    u32 c = x + TILE * i;
    if (c < p.dim) dq[(row + query + y) * p.heads * p.dim + blockIdx.y * p.dim + c] = sums[i];
  }
}

KERNEL(256) attention_grad_kv(Params p, u32 *status, const float *q, const float *k, const float *v,
                              const int *segments, const float *o, const float *lse, const float *d_o,
                              const float *delta, float *dk, float *dv) {
  __shared__ GradTiles t;
  Given given = {q, k, v, segments, lse, d_o, delta};
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE;
  u32 row = blockIdx.z * p.seq, key = blockIdx.x * TILE, group = p.heads / p.kv_heads;
  float sums_k[COLUMNS] = {}, sums_v[COLUMNS] = {};
  Range range = query_range(p, key, TILE, TILE);
  for (u32 member = 0; member < group; member++) {
    u32 head = blockIdx.y * group + member;
    for (u32 first = range.from; first < range.to; first += TILE) {
      pair_grads(p, t, given, row, head, blockIdx.y * p.dim, first, key);
      u32 count = min(TILE, p.seq - first);
      u32 at = (row + first) * p.heads * p.dim + head * p.dim;
#pragma unroll
      for (u32 i = 0; i < COLUMNS; i += TOGETHER) {
        float part_k[TOGETHER] = {}, part_v[TOGETHER] = {};
        add_rows(part_k, p, t.grads + y, ROW, q + at, p.heads * p.dim, x + TILE * i, count);
        add_rows(part_v, p, t.weights + y, ROW, d_o + at, p.heads * p.dim, x + TILE * i, count);
#pragma unroll
        for (u32 e = 0; e < TOGETHER; e++) {
          sums_k[i + e] += part_k[e];
          sums_v[i + e] += part_v[e];
        }
      }
    }
  }
  if (key + y >= p.seq) return;
#pragma unroll
  for (u32 i = 0; i < COLUMNS; i++) {
    u32 c = x + TILE * i;
    if (c >= p.dim) continue;
    u32 at = (row + key + y) * p.kv_heads * p.dim + blockIdx.y * p.dim + c;
    dk[at] = sums_k[i];
    dv[at] = sums_v[i];
  }
}

#ifdef MATRIX_UNITS
/// Threads of a block, columns of the result that a warp has, and factors of a slice.
constexpr u32 THREADS = 128, WIDE = 128, SLICE = 2048;
/// Tokens of a slice forward and back.
constexpr u32 FORWARD = 64, BACK = 32;
/// Units of what a block keeps, and of a slice.
constexpr u32 KEPT_UNITS = 16 * panel_units(32), SLICE_UNITS = 4 * panel_units(32);

/// Rows that a block keeps.
__device__ inline u32 kept_rows(const Params &p) { return p.dim > WIDE ? 32 : 64; }

/// The first of the 16 rows that a warp has, and of the columns of the result.
__device__ inline u32 own_row(const Params &p) { return threadIdx.x / 32 % (kept_rows(p) / 16) * 16; }
__device__ inline u32 own_col(const Params &p) { return threadIdx.x / 32 / (kept_rows(p) / 16) * WIDE; }

/// A head of a packed row's tokens: its first element, and elements from token to token.
struct Tokens {
  const float *x;
  u32 cols;
};

__device__ inline Tokens head_of(const Params &p, const float *x, u32 heads, u32 head) {
  return {x + (blockIdx.z * p.seq * heads + head) * p.dim, heads * p.dim};
}

/// The eight elements of a token from `d` on, zeros where there are none.
__device__ inline Octet eight_of(const Params &p, Tokens of, u32 token, u32 d) {
  return eight(of.x + token * of.cols + d, token < p.seq && d < p.dim ? p.dim - d : 0);
}

/// Keeps a tile's rows from token `first` on.
__device__ inline void keep(const Params &p, uint4 *kept, Tokens of, u32 first) {
  u32 rows = kept_rows(p), each = (p.dim + 15) / 16 * 2;
  for (u32 u = threadIdx.x; u < rows * each; u += THREADS) {
    u32 row = u / each, part = u % each;
    kept[part / 2 * panel_units(rows) + unit(row, part % 2)] = rounded(eight_of(p, of, first + row, 8 * part));
  }
}

/// What a thread brings of a slice.
struct Brought {
  Octet x[2];
};

/// The slices that a block goes through: one that is multiplied, one that is made, and what is on its way.
struct Slices {
  uint4 (*both)[SLICE_UNITS];
  u32 now;
  Brought next;
};

/// Of slice `s` of `COLS` tokens from `first` on: octets of neighbours in a token.
template <u32 COLS> __device__ inline Brought bring_rows(const Params &p, Tokens of, u32 first, u32 s) {
  constexpr u32 SPAN = SLICE / COLS, EACH = SPAN / 8;
  Brought b;
#pragma unroll
  for (u32 h = 0; h < 2; h++) {
    u32 u = threadIdx.x + THREADS * h;
    b.x[h] = eight_of(p, of, first + u / EACH, s * SPAN + u % EACH * 8);
  }
  return b;
}

/// Puts what was brought into the slice that is made next, which is multiplied then.
template <u32 COLS> __device__ inline const uint4 *put_rows(Slices &slices) {
  constexpr u32 EACH = SLICE / COLS / 8;
  uint4 *slice = slices.both[slices.now];
#pragma unroll
  for (u32 h = 0; h < 2; h++) {
    u32 u = threadIdx.x + THREADS * h, part = u % EACH;
    slice[part / 2 * panel_units(COLS) + unit(u / EACH, part % 2)] = rounded(slices.next.x[h]);
  }
  slices.now ^= 1;
  __syncthreads();
  return slice;
}

/// The same turned: octets of one element in several tokens, those that a lane's scores of 16 are of.
template <u32 COLS> __device__ inline Brought bring_turned(const Params &p, Tokens of, u32 first, u32 s) {
  constexpr u32 SPAN = SLICE / COLS;
  Brought b;
#pragma unroll
  for (u32 h = 0; h < 2; h++) {
    u32 u = threadIdx.x + THREADS * h, d = s * SPAN + u % SPAN, part = u / SPAN;
#pragma unroll
    for (u32 e = 0; e < 8; e++) {
      u32 token = first + part / 2 * 16 + part % 2 * 4 + e / 4 * 2 + e / 2 % 2 * 8 + e % 2;
      b.x[h].x[e] = token < p.seq && d < p.dim ? of.x[token * of.cols + d] : 0.0f;
    }
  }
  return b;
}

template <u32 COLS> __device__ inline const uint4 *put_turned(Slices &slices) {
  constexpr u32 SPAN = SLICE / COLS;
  uint4 *slice = slices.both[slices.now];
#pragma unroll
  for (u32 h = 0; h < 2; h++) {
    u32 u = threadIdx.x + THREADS * h, part = u / SPAN;
    slice[part / 2 * panel_units(SPAN) + unit(u % SPAN, part % 2)] = rounded(slices.next.x[h]);
  }
  slices.now ^= 1;
  __syncthreads();
  return slice;
}

/// Adds the products of a warp's rows with `COLS` tokens from `first` on, whose first slice is on its way; then `then`
/// says what comes next.
template <u32 COLS, class Then>
__device__ inline void add_scores(const Params &p, float (&scores)[COLS / 8][4], const uint4 *kept, Slices &slices,
                                  Tokens of, u32 first, Then then) {
  constexpr u32 SPAN = SLICE / COLS;
  for (u32 s = 0; s * SPAN < p.dim; s++) {
    const uint4 *slice = put_rows<COLS>(slices);
    slices.next = (s + 1) * SPAN < p.dim ? bring_rows<COLS>(p, of, first, s + 1) : then();
#pragma unroll
    for (u32 q = 0; q < SPAN / 16; q++) {
      u32 panel = s * (SPAN / 16) + q;
      if (16 * panel >= p.dim) break;
      Left a = left_of(kept + panel * panel_units(kept_rows(p)), own_row(p));
#pragma unroll
      for (u32 j = 0; j < COLS / 8; j++) multiply(scores[j], a, right_of(slice + q * panel_units(COLS), 8 * j));
    }
  }
}

/// Results of a warp as the left factor of the next product.
template <u32 COLS> __device__ inline void as_left(Left (&left)[COLS / 16], const float (&x)[COLS / 8][4]) {
#pragma unroll
  for (u32 q = 0; q < COLS / 16; q++) {
    const float(&a)[4] = x[2 * q], (&b)[4] = x[2 * q + 1];
    left[q] = {{bf16_pair(a[0], a[1]), bf16_pair(b[0], b[1])}, {bf16_pair(a[2], a[3]), bf16_pair(b[2], b[3])}};
  }
}

/// Adds `COLS` tokens from `first` on, each by its weight for a warp's rows, as above.
template <u32 COLS, class Then>
__device__ inline void add_tokens(const Params &p, float (&sums)[WIDE / 8][4], const Left (&weights)[COLS / 16],
                                  Slices &slices, Tokens of, u32 first, Then then) {
  constexpr u32 SPAN = SLICE / COLS;
  for (u32 s = 0; s * SPAN < p.dim; s++) {
    const uint4 *slice = put_turned<COLS>(slices);
    slices.next = (s + 1) * SPAN < p.dim ? bring_turned<COLS>(p, of, first, s + 1) : then();
#pragma unroll
    for (u32 part = 0; part < WIDE / SPAN; part++) {
      if (s * SPAN != own_col(p) + part * SPAN) continue;
#pragma unroll
      for (u32 j = 0; j < SPAN / 8; j++) {
#pragma unroll
        for (u32 q = 0; q < COLS / 16; q++) {
          multiply(sums[part * (SPAN / 8) + j], weights[q], right_of(slice + q * panel_units(SPAN), 8 * j));
        }
      }
    }
  }
}

/// Where element `i` of a lane's results is: in which of its two rows, and in which column.
__device__ inline u32 row_at(u32 i) { return i / 2 % 2; }
__device__ inline u32 col_at(u32 i) { return i / 4 * 8 + 2 * lane_part() + i % 2; }

/// Writes a warp's rows of a head, each by its factor.
__device__ inline void write_rows(const Params &p, float *y, u32 heads, u32 head, u32 first,
                                  const float (&sums)[WIDE / 8][4], const float (&by)[2]) {
#pragma unroll
  for (u32 i = 0; i < WIDE / 8 * 4; i++) {
    u32 token = first + own_row(p) + lane_row() + 8 * row_at(i), c = own_col(p) + col_at(i);
    if (token < p.seq && c < p.dim) {
      y[((blockIdx.z * p.seq + token) * heads + head) * p.dim + c] = sums[i / 4][i % 4] * by[row_at(i)];
    }
  }
}

/// The segments of a query and of a key; no two are equal where one of them is padding or behind the packed row.
__device__ inline int segment_of_query(const Params &p, const int *segments, u32 i) {
  int of = i < p.seq ? segments[blockIdx.z * p.seq + i] : -1;
  return of < 0 ? -1 : of;
}
__device__ inline int segment_of_key(const Params &p, const int *segments, u32 j) {
  int of = j < p.seq ? segments[blockIdx.z * p.seq + j] : -2;
  return of < 0 ? -2 : of;
}

/// Whether all of a warp's 16 rows from `row` on lie where all columns from `col` on are seen or see.
template <u32 COLS, bool ROWS_ARE_KEYS> __device__ inline bool are_near(const Params &p, u32 row, u32 col) {
  u32 i = ROWS_ARE_KEYS ? col : row, j = ROWS_ARE_KEYS ? row : col;
  u32 to_i = i + (ROWS_ARE_KEYS ? COLS : 16) - 1, to_j = j + (ROWS_ARE_KEYS ? 16 : COLS) - 1;
  u32 farthest = max(to_i - min(to_i, j), to_j - min(to_j, i));
  return (p.causal == 0 || to_j <= i) && (p.window == 0 || farthest < p.window);
}

/// Scales a warp's scores, and makes them the lowest where the query does not see the key. `row` is the lane's first.
template <u32 COLS, bool ROWS_ARE_KEYS>
__device__ inline void mask(const Params &p, float (&scores)[COLS / 8][4], u32 row, const int (&of_row)[2], u32 col,
                            const int *of_cols) {
#pragma unroll
  for (u32 i = 0; i < COLS / 2; i++) {
    float &score = scores[i / 4][i % 4];
    score = of_row[row_at(i)] == of_cols[col_at(i)] ? score * p.scale : LOWEST;
  }
  if (are_near<COLS, ROWS_ARE_KEYS>(p, row - lane_row(), col)) return;
#pragma unroll
  for (u32 i = 0; i < COLS / 2; i++) {
    u32 y = row + 8 * row_at(i), x = col + col_at(i);
    if (!(ROWS_ARE_KEYS ? is_near(p, x, y) : is_near(p, y, x))) scores[i / 4][i % 4] = LOWEST;
  }
}

/// What is known of a lane's two rows of queries on the way.
struct Running {
  float largest[2], sum[2];
};

/// Turns the scores of 64 keys into their weights beside the largest score until now, to which sums are brought, too.
__device__ inline void soften(float (&scores)[FORWARD / 8][4], float (&sums)[WIDE / 8][4], Running &of) {
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    float top = of.largest[r], part = 0.0f;
#pragma unroll
    for (u32 i = 0; i < FORWARD / 4; i++) top = fmaxf(top, scores[i / 2][2 * r + i % 2]);
    for (u32 step = 1; step < 4; step *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
#pragma unroll
    for (u32 i = 0; i < FORWARD / 4; i++) {
      float &score = scores[i / 2][2 * r + i % 2];
      score = score == LOWEST ? 0.0f : expf(score - top);
      part += score;
    }
    for (u32 step = 1; step < 4; step *= 2) part += __shfl_xor_sync(0xffffffffu, part, step);
    float fade = expf(fmaxf(of.largest[r] - top, -100.0f));
    of.largest[r] = top;
    of.sum[r] = fmaf(of.sum[r], fade, part);
#pragma unroll
    for (u32 i = 0; i < WIDE / 4; i++) sums[i / 2][2 * r + i % 2] *= fade;
  }
}

KERNEL(128) attention_bf16(Params p, u32 *status, const float *q, const float *k, const float *v, const int *segments,
                           float *o, float *lse) {
  __shared__ uint4 queries[KEPT_UNITS], both[2][SLICE_UNITS];
  __shared__ int of_keys[FORWARD];
  u32 rows = kept_rows(p), tile = blockIdx.x * rows, kv = blockIdx.y / (p.heads / p.kv_heads);
  Tokens keys = head_of(p, k, p.kv_heads, kv), values = head_of(p, v, p.kv_heads, kv);
  keep(p, queries, head_of(p, q, p.heads, blockIdx.y), tile);
  u32 query = tile + own_row(p) + lane_row();
  int of_query[2] = {segment_of_query(p, segments, query), segment_of_query(p, segments, query + 8)};
  float sums[WIDE / 8][4] = {};
  Running running = {{LOWEST, LOWEST}, {0.0f, 0.0f}};
  Range range = key_range(p, tile, rows, FORWARD);
  Slices slices = {both, 0, bring_rows<FORWARD>(p, keys, range.from, 0)};
  for (u32 first = range.from; first < range.to; first += FORWARD) {
    if (threadIdx.x < FORWARD) of_keys[threadIdx.x] = segment_of_key(p, segments, first + threadIdx.x);
    float scores[FORWARD / 8][4] = {};
    add_scores<FORWARD>(p, scores, queries, slices, keys, first,
                        [&] { return bring_turned<FORWARD>(p, values, first, 0); });
    mask<FORWARD, false>(p, scores, query, of_query, first, of_keys);
    soften(scores, sums, running);
    Left weights[FORWARD / 16];
    as_left<FORWARD>(weights, scores);
    add_tokens<FORWARD>(p, sums, weights, slices, values, first,
                        [&] { return bring_rows<FORWARD>(p, keys, first + FORWARD, 0); });
  }
  float by[2];
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    float sum = running.sum[r];
    by[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (query + 8 * r >= p.seq || lane_part() != 0 || own_col(p) != 0) continue;
    lse[(blockIdx.z * p.seq + query + 8 * r) * p.heads + blockIdx.y] =
        sum > 0.0f ? running.largest[r] + logf(sum) : float_of(0xff800000u);
  }
  write_rows(p, o, p.heads, blockIdx.y, tile, sums, by);
}

/// What a query has beside its elements and its segment.
struct Query {
  float lse, delta;
};

__device__ inline Query query_of(const Params &p, const float *lse, const float *delta, u32 query, u32 head) {
  u32 of = (blockIdx.z * p.seq + query) * p.heads + head;
  return query < p.seq ? Query{lse[of], delta[of]} : Query{0.0f, 0.0f};
}

/// Turns a pair's score into its probability, and what a query gains by it into the gradient of the score.
__device__ inline void pair_grad(const Params &p, float &score, float &reward, const Query &query) {
  bool is_seen = score != LOWEST;
  score = is_seen ? expf(score - query.lse) : 0.0f;
  reward = is_seen ? score * (reward - query.delta) * p.scale : 0.0f;
}

KERNEL(128) attention_grad_q_bf16(Params p, u32 *status, const float *q, const float *k, const float *v,
                                  const int *segments, const float *o, const float *lse, const float *d_o,
                                  const float *delta, float *dq) {
  __shared__ uint4 queries[KEPT_UNITS], grads[KEPT_UNITS], both[2][SLICE_UNITS];
  __shared__ int of_keys[BACK];
  u32 rows = kept_rows(p), tile = blockIdx.x * rows, kv = blockIdx.y / (p.heads / p.kv_heads);
  Tokens keys = head_of(p, k, p.kv_heads, kv), values = head_of(p, v, p.kv_heads, kv);
  keep(p, queries, head_of(p, q, p.heads, blockIdx.y), tile);
  keep(p, grads, head_of(p, d_o, p.heads, blockIdx.y), tile);
  u32 query = tile + own_row(p) + lane_row();
  int of_query[2] = {segment_of_query(p, segments, query), segment_of_query(p, segments, query + 8)};
  Query own_queries[2] = {query_of(p, lse, delta, query, blockIdx.y), query_of(p, lse, delta, query + 8, blockIdx.y)};
  float sums[WIDE / 8][4] = {};
  Range range = key_range(p, tile, rows, BACK);
  Slices slices = {both, 0, bring_rows<BACK>(p, keys, range.from, 0)};
  for (u32 first = range.from; first < range.to; first += BACK) {
    if (threadIdx.x < BACK) of_keys[threadIdx.x] = segment_of_key(p, segments, first + threadIdx.x);
    float scores[BACK / 8][4] = {}, rewards[BACK / 8][4] = {};
    add_scores<BACK>(p, scores, queries, slices, keys, first, [&] { return bring_rows<BACK>(p, values, first, 0); });
    add_scores<BACK>(p, rewards, grads, slices, values, first, [&] { return bring_turned<BACK>(p, keys, first, 0); });
    mask<BACK, false>(p, scores, query, of_query, first, of_keys);
#pragma unroll
    for (u32 i = 0; i < BACK / 2; i++) {
      pair_grad(p, scores[i / 4][i % 4], rewards[i / 4][i % 4], own_queries[row_at(i)]);
    }
    Left weights[BACK / 16];
    as_left<BACK>(weights, rewards);
    add_tokens<BACK>(p, sums, weights, slices, keys, first,
                     [&] { return bring_rows<BACK>(p, keys, first + BACK, 0); });
  }
  write_rows(p, dq, p.heads, blockIdx.y, tile, sums, {1.0f, 1.0f});
}

KERNEL(128) attention_grad_kv_bf16(Params p, u32 *status, const float *q, const float *k, const float *v,
                                   const int *segments, const float *o, const float *lse, const float *d_o,
                                   const float *delta, float *dk, float *dv) {
  __shared__ uint4 keys[KEPT_UNITS], values[KEPT_UNITS], both[2][SLICE_UNITS];
  __shared__ int of_queries[BACK];
  __shared__ Query all_queries[BACK];
  u32 tile = blockIdx.x * kept_rows(p), group = p.heads / p.kv_heads;
  keep(p, keys, head_of(p, k, p.kv_heads, blockIdx.y), tile);
  keep(p, values, head_of(p, v, p.kv_heads, blockIdx.y), tile);
  u32 key = tile + own_row(p) + lane_row();
  int of_key[2] = {segment_of_key(p, segments, key), segment_of_key(p, segments, key + 8)};
  float sums_k[WIDE / 8][4] = {}, sums_v[WIDE / 8][4] = {};
  Range range = query_range(p, tile, kept_rows(p), BACK);
  Slices slices = {both, 0, bring_rows<BACK>(p, head_of(p, q, p.heads, blockIdx.y * group), range.from, 0)};
  for (u32 head = blockIdx.y * group; head < (blockIdx.y + 1) * group; head++) {
    Tokens queries = head_of(p, q, p.heads, head), grads = head_of(p, d_o, p.heads, head);
    for (u32 first = range.from; first < range.to; first += BACK) {
      if (threadIdx.x < BACK) {
        of_queries[threadIdx.x] = segment_of_query(p, segments, first + threadIdx.x);
        all_queries[threadIdx.x] = query_of(p, lse, delta, first + threadIdx.x, head);
      }
      float scores[BACK / 8][4] = {}, rewards[BACK / 8][4] = {};
      add_scores<BACK>(p, scores, keys, slices, queries, first, [&] { return bring_rows<BACK>(p, grads, first, 0); });
      add_scores<BACK>(p, rewards, values, slices, grads, first,
                       [&] { return bring_turned<BACK>(p, grads, first, 0); });
      mask<BACK, true>(p, scores, key, of_key, first, of_queries);
#pragma unroll
      for (u32 i = 0; i < BACK / 2; i++) {
        pair_grad(p, scores[i / 4][i % 4], rewards[i / 4][i % 4], all_queries[col_at(i)]);
      }
      Left weights[BACK / 16];
      as_left<BACK>(weights, scores);
      add_tokens<BACK>(p, sums_v, weights, slices, grads, first,
                       [&] { return bring_turned<BACK>(p, queries, first, 0); });
      as_left<BACK>(weights, rewards);
      bool is_last = first + BACK >= range.to;
      Tokens after = is_last && head + 1 < (blockIdx.y + 1) * group ? head_of(p, q, p.heads, head + 1) : queries;
      add_tokens<BACK>(p, sums_k, weights, slices, queries, first,
                       [&] { return bring_rows<BACK>(p, after, is_last ? range.from : first + BACK, 0); });
    }
  }
  write_rows(p, dk, p.kv_heads, blockIdx.y, tile, sums_k, {1.0f, 1.0f});
  write_rows(p, dv, p.kv_heads, blockIdx.y, tile, sums_v, {1.0f, 1.0f});
}
#endif

/// `cache[positions[t], c] = x[t, c]` where the position is not negative; `dim` columns.
KERNEL(256) kv_write(Params p, u32 *status, float *cache, const float *x, const int *positions) {
  u32 i = index_of();
  if (i >= p.seq * p.dim) return;
  int position = positions[i / p.dim];
  if (position < 0) return;
  if (static_cast<u32>(position) >= p.context) {
    refuse(status, p.step);
    return;
  }
  cache[static_cast<u32>(position) * p.dim + i % p.dim] = x[i];
}

/// Attention of a token to the cache's rows up to its position: 64 keys at a time, a thread a score, and of the result
/// the columns `l, l + 64, ...`.
KERNEL(64) attention_cached(Params p, u32 *status, const float *q, const float *keys, const float *values,
                            const int *positions, float *o) {
  __shared__ float scores[64], shares[64];
  u32 l = threadIdx.x, k_cols = p.kv_heads * p.dim;
  u32 kv = blockIdx.y / (p.heads / p.kv_heads) * p.dim, of = (blockIdx.x * p.heads + blockIdx.y) * p.dim;
  int position = positions[blockIdx.x];
  if (position >= static_cast<int>(p.context)) {
    refuse(status, p.step);
    position = -1;
  }
  u32 end = static_cast<u32>(position + 1);
  float output[4] = {};
  float largest = LOWEST, sum = 0.0f;
  for (u32 first = 0; first < end; first += 64) {
    u32 key = first + l;
    int at = static_cast<int>(key);
    bool is_seen = at <= position && (p.window == 0 || position - at < static_cast<int>(p.window));
    float score = LOWEST;
    if (is_seen) {
      score = 0.0f;
      for (u32 c = 0; c < p.dim; c++) score = fmaf(q[of + c], keys[key * k_cols + kv + c], score);
      score *= p.scale;
    }
    scores[l] = score;
    __syncthreads();
    float top = largest;
    for (u32 j = 0; j < 64; j++) top = fmaxf(top, scores[j]);
    shares[l] = is_seen ? expf(score - top) : 0.0f;
    __syncthreads();
    float fade = expf(fmaxf(largest - top, -100.0f));
    largest = top;
    float part = 0.0f;
    for (u32 j = 0; j < 64; j++) part += shares[j];
    sum = fmaf(sum, fade, part);
    u32 count = min(64u, p.context - first);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      u32 c = l + 64 * i;
      if (c >= p.dim) continue;
      float mixed = 0.0f;
      for (u32 j = 0; j < count; j++) mixed = fmaf(shares[j], values[(first + j) * k_cols + kv + c], mixed);
      output[i] = fmaf(output[i], fade, mixed);
    }
    __syncthreads();
  }
  float by = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    u32 c = l + 64 * i;
    if (c < p.dim) o[of + c] = output[i] * by;
  }
}
