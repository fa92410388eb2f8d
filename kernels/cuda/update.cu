// Optimizer updates: SGD, AdamW, and AdamW with 8-bit states.
//
// ```text
// for i { g = grad_scale grad[i]; m[i], v[i] = ...; w[i] = store(w[i] - lr step(m[i], v[i])) }
// ```
// Nothing is changed once the run is stopped. Bound: bytes of weights, gradient and states over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  /// Elements of this panel, and the flat index of its first one among the trained elements, in the gradient that is
  /// there, and among the elements that the states are of.
  u32 len, first, grad_first, state_first;
  /// The row that the weight that is there begins with.
  u32 weight_row;
  /// Columns of the whole weight, and trained ones.
  u32 cols, trained;
  u32 has_clip, has_index, has_momentum;
  float beta1, beta2, eps, weight_decay;
  /// Names the tensor to the random numbers.
  u32 stream;
};

/// Words of a random number.
struct Words {
  u32 x[4];
};

/// Philox4x32-10 of Salmon et al. 2011, as in `kernels/src/random.rs`.
__device__ inline Words philox(u32 key_0, u32 key_1, Words counter) {
  u32 *x = counter.x;
#pragma unroll
  for (u32 round = 0; round < 10; round++) {
    u64 a = 0xd2511f53ull * x[0], b = 0xcd9e8d57ull * x[2];
    u32 next[4] = {static_cast<u32>(b >> 32) ^ x[1] ^ key_0, static_cast<u32>(b),
                   static_cast<u32>(a >> 32) ^ x[3] ^ key_1, static_cast<u32>(a)};
    for (u32 k = 0; k < 4; k++) x[k] = next[k];
    key_0 += 0x9e3779b9u;
    key_1 += 0xbb67ae85u;
  }
  return counter;
}

/// Sixteen random bits for trained element `i`: `Stream::bits16`. `rng` is the seed, low word first, and the step.
__device__ inline u32 bits16(const Params &p, const u32 *rng, u32 i) {
  u32 part = i % 256 / 32;
  Words words = philox(rng[0], rng[1], {{i / 256 * 32 + i % 32, 0, p.stream, rng[2]}});
  u32 word = part / 2 == 0 ? words.x[0] : part / 2 == 1 ? words.x[1] : part / 2 == 2 ? words.x[2] : words.x[3];
  return (word >> (16 * (part % 2))) & 0xffffu;
}

/// The place of trained element `i` in the weight that is there.
__device__ inline u32 place_of(const Params &p, const u32 *index, u32 i) {
  u32 col = i % p.trained, row = i / p.trained - p.weight_row;
  if (p.has_index == 0) return row * p.cols + col;
  return row * p.cols + min(index[col], p.cols - 1);
}

__device__ inline float weight_at(const void *w, u32 place) {
  if (STORAGE == BF16) return float_of_bf16(static_cast<const u16 *>(w)[place]);
  return static_cast<const float *>(w)[place];
}

/// Stores a weight, in bf16 rounded stochastically.
__device__ inline void store_weight(const Params &p, void *w, const u32 *rng, u32 place, u32 i, float x) {
  if (STORAGE == BF16) {
    u32 half = is_finite(x) ? (bits_of(x) + bits16(p, rng, i)) >> 16 : bf16_of(x);
    static_cast<u16 *>(w)[place] = static_cast<u16>(half);
  } else {
    static_cast<float *>(w)[place] = x;
  }
}

__device__ inline float scaled_grad(const Params &p, const float *grads, const float *clip, u32 at) {
  float grad = grads[p.grad_first + at];
  return p.has_clip != 0 ? grad * clip[0] : grad;
}

/// `m = beta1 m + (g + weight_decay w)`, `w -= lr m`.
KERNEL(256) sgd(Params p, u32 *status, void *w, const float *grad, const float *hyper, const u32 *rng, const float *clip,
                const u32 *index, float *momentum) {
  u32 at = index_of();
  if (at >= p.len || *status != 0) return;
  u32 i = p.first + at, place = place_of(p, index, i);
  float before = weight_at(w, place);
  float m = scaled_grad(p, grad, clip, at) + p.weight_decay * before;
  if (p.has_momentum != 0) {
    m += p.beta1 * momentum[p.state_first + at];
    momentum[p.state_first + at] = m;
  }
  store_weight(p, w, rng, place, i, before - hyper[0] * m);
}

/// A weight and its moments.
struct Adam {
  float w, m, v;
};

__device__ inline Adam adam(const Params &p, const float *hyper, Adam before, float grad) {
  float m = p.beta1 * before.m + (1.0f - p.beta1) * grad;
  float v = p.beta2 * before.v + (1.0f - p.beta2) * (grad * grad);
  float moved = m / (sqrtf(v) * (1.0f / sqrtf(hyper[2])) + p.eps);
  return {before.w * (1.0f - hyper[0] * p.weight_decay) - hyper[0] / hyper[1] * moved, m, v};
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - lr weight_decay) - lr / bias1 m / (sqrt(v) / sqrt(bias2) + eps)`.
KERNEL(256) adamw(Params p, u32 *status, void *w, const float *grad, const float *hyper, const u32 *rng,
                  const float *clip, const u32 *index, float *m, float *v) {
  u32 at = index_of();
  if (at >= p.len || *status != 0) return;
  u32 i = p.first + at, own = p.state_first + at, place = place_of(p, index, i);
  Adam after = adam(p, hyper, {weight_at(w, place), m[own], v[own]}, scaled_grad(p, grad, clip, at));
  m[own] = after.m;
  v[own] = after.v;
  store_weight(p, w, rng, place, i, after.w);
}

/// Lines that lead from a magnitude to its code, and the numbers of a table of them: the code of 0, then of every line
/// the magnitude behind which it counts, slope, offset, first and last step.
constexpr u32 LINES = 8, LINE_NUMBERS = 1 + 5 * LINES;

/// The code of the value nearest to `x`, rounded as on the CPU.
__device__ inline u32 code_of(const float *table, float x) {
  float magnitude = fabsf(x), zero = table[0], slope = 0.0f, offset = 0.0f, first = 0.0f, last = 0.0f;
  for (u32 i = 0; i < LINES; i++) {
    const float *line = table + 1 + 5 * i;
    if (line[0] < magnitude) {
      slope = line[1];
      offset = line[2];
      first = line[3];
      last = line[4];
    }
  }
  float step = rintf(fminf(fmaxf(fmaf(magnitude, slope, offset), first), last));
  // Only the positive side has a code for 1.
  return static_cast<u32>(x < 0.0f ? zero - fminf(step, zero) : zero + step);
}

/// `adamw` with moments in codes of 8 bits, relative to the largest magnitude of a block of 256 elements, which a block
/// of threads has. `codes` are what signed ones stand for, then unsigned ones, then the lines that lead to both.
KERNEL(256) adamw8(Params p, u32 *status, void *w, const float *grad, const float *hyper, const u32 *rng,
                   const float *clip, const u32 *index, u8 *m, u8 *v, float *m_scale, float *v_scale,
                   const float *codes) {
  __shared__ float lanes[256];
  u32 at = (blockIdx.y * gridDim.x + blockIdx.x) * 256 + threadIdx.x;
  u32 i = p.first + at, own = p.state_first + at, whole = own / 256;
  bool is_there = at < p.len && *status == 0;
  Adam after = {};
  if (is_there) {
    u32 place = place_of(p, index, i);
    Adam before = {weight_at(w, place), codes[m[own]] * m_scale[whole], codes[256 + v[own]] * v_scale[whole]};
    after = adam(p, hyper, before, scaled_grad(p, grad, clip, at));
    store_weight(p, w, rng, place, i, after.w);
  }
  float largest_m = block_max<256>(lanes, fabsf(after.m)), largest_v = block_max<256>(lanes, fabsf(after.v));
  if (!is_there) return;
  const float *lines = codes + 512;
  m[own] = static_cast<u8>(code_of(lines, after.m * (largest_m > 0.0f ? 1.0f / largest_m : 0.0f)));
  v[own] = static_cast<u8>(code_of(lines + LINE_NUMBERS, after.v * (largest_v > 0.0f ? 1.0f / largest_v : 0.0f)));
  if (threadIdx.x == 0) {
    m_scale[whole] = largest_m;
    v_scale[whole] = largest_v;
  }
}
