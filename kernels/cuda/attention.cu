// Rotary positions, attention forward and backward, and attention to a cache. No matrix of scores is in memory.
//
// ```text
// for tile of 16 queries { for tile of 16 keys { s = scale q k'; p = exp(s - max); o = o exp(old max - max) + p v } }
// ```
// Backward recomputes the probabilities from the logarithms of their sums: `dv = p' do`, `ds = p (do v' - delta) scale`,
// `dq = ds k`, `dk = ds' q`. A block has a tile of queries (or of keys) of one head; thread `(y, x)` has the score of
// query `y` and key `x`, and of the result row `y` the columns `x, x + 16, ...`. Sums go over key tiles (for keys: over
// the heads that share them and their query tiles) in order. Bound: 4 d operations a pair forward, 10 back.
#include "common.cuh"

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

/// Whether query `i` of a packed row sees key `j`, whose segments are these.
__device__ inline bool sees(const Params &p, u32 i, u32 j, int of_i, int of_j) {
  u32 apart = i >= j ? i - j : j - i;
  return i < p.seq && j < p.seq && of_i >= 0 && of_i == of_j && (p.causal == 0 || j <= i) &&
         (p.window == 0 || apart < p.window);
}

struct Range {
  u32 from, to;
};

/// The key tiles that a tile of queries from `first` on may see.
__device__ inline Range key_range(const Params &p, u32 first) {
  u32 low = 0, high = p.seq;
  if (p.causal != 0) high = min(p.seq, first + TILE);
  if (p.window != 0 && first + 1 > p.window) low = (first + 1 - p.window) / TILE * TILE;
  if (p.window != 0) high = min(high, first + TILE - 1 + p.window);
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
  Range range = key_range(p, blockIdx.x * TILE);
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
  Range range = key_range(p, query);
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

/// The query tiles that may see a tile of keys from `first` on.
__device__ inline Range query_range(const Params &p, u32 first) {
  u32 low = 0, high = p.seq;
  if (p.causal != 0) low = first;
  if (p.window != 0) {
    high = min(p.seq, first + TILE - 1 + p.window);
    if (p.causal == 0 && first + 1 > p.window) low = (first + 1 - p.window) / TILE * TILE;
  }
  return {low, high};
}

KERNEL(256) attention_grad_kv(Params p, u32 *status, const float *q, const float *k, const float *v,
                              const int *segments, const float *o, const float *lse, const float *d_o,
                              const float *delta, float *dk, float *dv) {
  __shared__ GradTiles t;
  Given given = {q, k, v, segments, lse, d_o, delta};
  u32 y = threadIdx.x / TILE, x = threadIdx.x % TILE;
  u32 row = blockIdx.z * p.seq, key = blockIdx.x * TILE, group = p.heads / p.kv_heads;
  float sums_k[COLUMNS] = {}, sums_v[COLUMNS] = {};
  Range range = query_range(p, key);
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
