// Batch normalisation of images `[B, C, H, W]`; a block has a channel.
//
// ```text
// for c { mean, inverse = of x[:, c]; y[:, c] = (x[:, c] - mean) inverse w[c] + b[c] }
// ```
// The 64 threads take the channel's elements in turn, and their sums are added pair by pair. Bound: bytes over memory
// bandwidth: the input is read three times forward, input and gradient twice backward.
#include "common.cuh"

struct Params {
  u32 step;
  u32 images, channels, pixels;
  float eps, momentum;
};

/// The place of element `k` of channel `c`.
__device__ inline u32 place(const Params &p, u32 c, u32 k) {
  return (k / p.pixels * p.channels + c) * p.pixels + k % p.pixels;
}

KERNEL(64) batch_norm(Params p, u32 *status, float *running_mean, float *running_var, const float *x, const float *w,
                      const float *b, float *y, float *means, float *inverses) {
  __shared__ float lanes[64];
  u32 c = blockIdx.x, count = p.images * p.pixels;
  float number = static_cast<float>(count), sum = 0.0f, square = 0.0f;
  for (u32 k = threadIdx.x; k < count; k += 64) sum += x[place(p, c, k)];
  float mean = block_sum<64>(lanes, sum) / number;
  for (u32 k = threadIdx.x; k < count; k += 64) {
    float d = x[place(p, c, k)] - mean;
    square = fmaf(d, d, square);
  }
  float variance = block_sum<64>(lanes, square) / number;
  float inverse = 1.0f / sqrtf(variance + p.eps);
  for (u32 k = threadIdx.x; k < count; k += 64) {
    u32 i = place(p, c, k);
    y[i] = fmaf((x[i] - mean) * inverse, w[c], b[c]);
  }
  if (threadIdx.x != 0) return;
  means[c] = mean;
  inverses[c] = inverse;
  if (*status != 0) return;
  float unbiased = variance * (number / fmaxf(number - 1.0f, 1.0f));
  running_mean[c] += p.momentum * (mean - running_mean[c]);
  running_var[c] += p.momentum * (unbiased - running_var[c]);
}

KERNEL(64) batch_norm_grad(Params p, u32 *status, const float *x, const float *w, const float *means,
                           const float *inverses, const float *dy, float *dx, float *dw, float *db) {
  __shared__ float lanes[64];
  u32 c = blockIdx.x, count = p.images * p.pixels;
  float number = static_cast<float>(count), of_b = 0.0f, of_w = 0.0f;
  for (u32 k = threadIdx.x; k < count; k += 64) {
    u32 i = place(p, c, k);
    of_b += dy[i];
    of_w = fmaf(dy[i], (x[i] - means[c]) * inverses[c], of_w);
  }
  float all_b = block_sum<64>(lanes, of_b), all_w = block_sum<64>(lanes, of_w);
  for (u32 k = threadIdx.x; k < count; k += 64) {
    u32 i = place(p, c, k);
    float normal = (x[i] - means[c]) * inverses[c];
    dx[i] = w[c] * inverses[c] * (dy[i] - all_b / number - normal * (all_w / number));
  }
  if (threadIdx.x == 0) {
    dw[c] = all_w;
    db[c] = all_b;
  }
}

/// `y = w (x - mean) / sqrt(var + eps) + b`; a thread an element.
KERNEL(256) batch_norm_eval(Params p, u32 *status, const float *x, const float *w, const float *b, const float *mean,
                            const float *var, float *y) {
  u32 i = index_of();
  if (i >= p.images * p.channels * p.pixels) return;
  u32 c = i / p.pixels % p.channels;
  y[i] = fmaf((x[i] - mean[c]) * (1.0f / sqrtf(var[c] + p.eps)), w[c], b[c]);
}
