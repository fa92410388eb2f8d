// Root-mean-square and layer normalisation of vectors.
//
// ```text
// for v { inverse = 1 / sqrt(mean(x[v, :]^2) + eps); for c { y[v, c] = x[v, c] inverse w[c] } }
// ```
// A block has a vector; its 64 threads take elements in turn, and their sums are added pair by pair. Several vectors of
// a token (heads) share the weight. Bound: 8 bytes an element forward, 12 backward, over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  u32 vectors, cols;
  /// Vectors of a packed row.
  u32 seq;
  float eps;
  u32 accumulate;
};

/// The vector of a block.
__device__ inline u32 vector_of() { return blockIdx.y * gridDim.x + blockIdx.x; }

/// `1 / sqrt(sum / cols + eps)`.
__device__ inline float inverse_of(const Params &p, float sum) {
  return 1.0f / sqrtf(sum / static_cast<float>(p.cols) + p.eps);
}

/// `y = x w / sqrt(mean(x^2) + eps)`.
KERNEL(64) rms_norm(Params p, u32 *status, const float *x, const float *w, float *y) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) sum = fmaf(x[first + c], x[first + c], sum);
  float inverse = inverse_of(p, block_sum<64>(lanes, sum));
  for (u32 c = threadIdx.x; c < p.cols; c += 64) y[first + c] = x[first + c] * inverse * w[c];
}

/// `s = a + b`, `y = s w / sqrt(mean(s^2) + eps)`.
KERNEL(64) add_rms_norm(Params p, u32 *status, const float *a, const float *b, const float *w, float *s, float *y) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    float both = a[first + c] + b[first + c];
    s[first + c] = both;
    sum = fmaf(both, both, sum);
  }
  float inverse = inverse_of(p, block_sum<64>(lanes, sum));
  for (u32 c = threadIdx.x; c < p.cols; c += 64) y[first + c] = s[first + c] * inverse * w[c];
}

/// Mean of a vector and `1 / sqrt(variance + eps)`, the variance from the differences to the mean.
struct Moments {
  float mean, inverse;
};

__device__ inline Moments moments(const Params &p, float *lanes, const float *x, u32 v) {
  u32 first = v * p.cols;
  float sum = 0.0f, square = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) sum += x[first + c];
  float mean = block_sum<64>(lanes, sum) / static_cast<float>(p.cols);
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    float d = x[first + c] - mean;
    square = fmaf(d, d, square);
  }
  return {mean, inverse_of(p, block_sum<64>(lanes, square))};
}

/// `y = (x - mean) / sqrt(variance + eps) w + b`.
KERNEL(64) layer_norm(Params p, u32 *status, const float *x, const float *w, const float *b, float *y) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  Moments m = moments(p, lanes, x, v);
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    y[first + c] = fmaf((x[first + c] - m.mean) * m.inverse, w[c], b[c]);
  }
}

/// `dx = inv (w dy - xn mean(w dy xn))`, `xn = x inv`; added to `acc` where there is one.
KERNEL(64) rms_norm_grad_x(Params p, u32 *status, const float *x, const float *w, const float *dy, const float *acc,
                           float *dx) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  float sum = 0.0f, dot = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    float value = x[first + c];
    sum = fmaf(value, value, sum);
    dot = fmaf(w[c] * dy[first + c], value, dot);
  }
  float inverse = inverse_of(p, block_sum<64>(lanes, sum));
  float mean = block_sum<64>(lanes, dot) * inverse / static_cast<float>(p.cols);
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    u32 i = first + c;
    float d = inverse * (w[c] * dy[i] - x[i] * inverse * mean);
    if (p.accumulate != 0) d += acc[i];
    dx[i] = d;
  }
}

/// `dx = inv (g - mean(g) - xn mean(g xn))`, `g = w dy`, `xn = (x - mean) inv`; added to `acc` where there is one.
KERNEL(64) layer_norm_grad_x(Params p, u32 *status, const float *x, const float *w, const float *dy, const float *acc,
                             float *dx) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  Moments m = moments(p, lanes, x, v);
  float sum = 0.0f, dot = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    float d = w[c] * dy[first + c];
    sum += d;
    dot = fmaf(d, (x[first + c] - m.mean) * m.inverse, dot);
  }
  float mean = block_sum<64>(lanes, sum) / static_cast<float>(p.cols);
  float mean_dot = block_sum<64>(lanes, dot) / static_cast<float>(p.cols);
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    u32 i = first + c;
    float normal = (x[i] - m.mean) * m.inverse;
    float d = m.inverse * (w[c] * dy[i] - mean - normal * mean_dot);
    if (p.accumulate != 0) d += acc[i];
    dx[i] = d;
  }
}

/// Mean 0 and the inverse root mean square of every vector.
KERNEL(64) rms_stats(Params p, u32 *status, const float *x, float *stats) {
  __shared__ float lanes[64];
  u32 v = vector_of(), first = v * p.cols;
  if (v >= p.vectors) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 64) sum = fmaf(x[first + c], x[first + c], sum);
  float inverse = inverse_of(p, block_sum<64>(lanes, sum));
  if (threadIdx.x == 0) {
    stats[2 * v] = 0.0f;
    stats[2 * v + 1] = inverse;
  }
}

/// Mean and inverse standard deviation of every vector.
KERNEL(64) layer_stats(Params p, u32 *status, const float *x, float *stats) {
  __shared__ float lanes[64];
  u32 v = vector_of();
  if (v >= p.vectors) return;
  Moments m = moments(p, lanes, x, v);
  if (threadIdx.x == 0) {
    stats[2 * v] = m.mean;
    stats[2 * v + 1] = m.inverse;
  }
}

/// `dw[c] = acc[c] + sum over vectors of dy (x - mean) inv`, packed row by packed row; 16 columns a block and 16 lanes
/// of vectors, whose sums are added in the order of lanes.
KERNEL(256) grad_w(Params p, u32 *status, const float *x, const float *dy, const float *stats, const float *acc,
                   float *dw) {
  __shared__ float lanes[256];
  u32 l = threadIdx.x, c = blockIdx.x * 16 + l % 16, lane = l / 16;
  bool is_there = c < p.cols;
  float total = lane == 0 && is_there && p.accumulate != 0 ? acc[c] : 0.0f;
  for (u32 first = 0; first < p.vectors; first += p.seq) {
    float sum = 0.0f;
    for (u32 v = first + lane; is_there && v < first + p.seq; v += 16) {
      u32 i = v * p.cols + c;
      sum = fmaf(dy[i], (x[i] - stats[2 * v]) * stats[2 * v + 1], sum);
    }
    lanes[l] = sum;
    __syncthreads();
    if (lane == 0) {
      float row = lanes[l];
      for (u32 k = 1; k < 16; k++) row += lanes[k * 16 + l];
      total += row;
    }
    __syncthreads();
  }
  if (lane == 0 && is_there) dw[c] = total;
}
