// 2-dimensional convolutions and their gradients: images `[B, C, H, W]`, weights `[O, C / groups, R, S]`.
//
// ```text
// y[b, o, i, j] = bias[o] + sum over c, r, s of x[b, first + c, i down + r - top, j across + s - left] w[o, c, r, s]
// ```
// Direct: a thread an element of the result, sums in the order of the loops; for the weight's gradient a block an
// element, whose 64 threads take the pixels of an image in turn. Bound: 2 C R S operations an element.
#include "common.cuh"

struct Params {
  u32 step;
  u32 images, in_channels, out_channels, groups;
  /// Height and width of the input, of the kernel and of the output.
  u32 height, width, kernel_h, kernel_w, out_h, out_w;
  u32 stride_h, stride_w, top, left;
  /// Whether there is a bias, or a sum to start from.
  u32 has_more;
};

__device__ inline u32 x_at(const Params &p, u32 b, u32 c, u32 h, u32 w) {
  return ((b * p.in_channels + c) * p.height + h) * p.width + w;
}

__device__ inline u32 y_at(const Params &p, u32 b, u32 o, u32 i, u32 j) {
  return ((b * p.out_channels + o) * p.out_h + i) * p.out_w + j;
}

__device__ inline u32 w_at(const Params &p, u32 o, u32 c, u32 r, u32 s) {
  return ((o * (p.in_channels / p.groups) + c) * p.kernel_h + r) * p.kernel_w + s;
}

KERNEL(256) conv2d(Params p, u32 *status, const float *x, const float *w, const float *bias, float *y) {
  u32 at = index_of(), area = p.out_h * p.out_w;
  if (at >= p.images * p.out_channels * area) return;
  u32 b = at / area / p.out_channels, o = at / area % p.out_channels;
  u32 i = at % area / p.out_w * p.stride_h, j = at % p.out_w * p.stride_w;
  u32 each = p.in_channels / p.groups, first = o / (p.out_channels / p.groups) * each;
  float sum = 0.0f;
  for (u32 c = 0; c < each; c++) {
    for (u32 r = 0; r < p.kernel_h; r++) {
      // What lies above or left of the input wraps around, and is past its end.
      u32 row = i + r - p.top;
      if (row >= p.height) continue;
      for (u32 s = 0; s < p.kernel_w; s++) {
        u32 col = j + s - p.left;
        if (col < p.width) sum = fmaf(x[x_at(p, b, first + c, row, col)], w[w_at(p, o, c, r, s)], sum);
      }
    }
  }
  if (p.has_more != 0) sum += bias[o];
  y[at] = sum;
}

KERNEL(256) conv2d_grad_x(Params p, u32 *status, const float *dy, const float *w, float *dx) {
  u32 at = index_of(), area = p.height * p.width;
  if (at >= p.images * p.in_channels * area) return;
  u32 b = at / area / p.in_channels, channel = at / area % p.in_channels;
  u32 row = at % area / p.width + p.top, col = at % p.width + p.left;
  u32 each = p.out_channels / p.groups;
  u32 group = channel / (p.in_channels / p.groups), c = channel % (p.in_channels / p.groups);
  float sum = 0.0f;
  for (u32 k = 0; k < each; k++) {
    u32 o = group * each + k;
    for (u32 r = 0; r < min(p.kernel_h, row + 1); r++) {
      u32 i = (row - r) / p.stride_h;
      if ((row - r) % p.stride_h != 0 || i >= p.out_h) continue;
      for (u32 s = 0; s < min(p.kernel_w, col + 1); s++) {
        u32 j = (col - s) / p.stride_w;
        if ((col - s) % p.stride_w == 0 && j < p.out_w) {
          sum = fmaf(dy[y_at(p, b, o, i, j)], w[w_at(p, o, c, r, s)], sum);
        }
      }
    }
  }
  dx[at] = sum;
}

/// Images are summed one by one.
KERNEL(64) conv2d_grad_w(Params p, u32 *status, const float *dy, const float *x, const float *acc, float *dw) {
  __shared__ float lanes[64];
  u32 at = blockIdx.y * gridDim.x + blockIdx.x;
  u32 each = p.in_channels / p.groups, taps = p.kernel_h * p.kernel_w;
  if (at >= p.out_channels * each * taps) return;
  u32 o = at / taps / each, channel = o / (p.out_channels / p.groups) * each + at / taps % each;
  u32 r = at % taps / p.kernel_w, s = at % p.kernel_w;
  float total = p.has_more != 0 ? acc[at] : 0.0f;
  for (u32 b = 0; b < p.images; b++) {
    float sum = 0.0f;
    for (u32 pixel = threadIdx.x; pixel < p.out_h * p.out_w; pixel += 64) {
      u32 row = pixel / p.out_w * p.stride_h + r - p.top, col = pixel % p.out_w * p.stride_w + s - p.left;
      if (row < p.height && col < p.width) {
        sum = fmaf(dy[y_at(p, b, o, 0, 0) + pixel], x[x_at(p, b, channel, row, col)], sum);
      }
    }
    total += block_sum<64>(lanes, sum);
  }
  if (threadIdx.x == 0) dw[at] = total;
}

/// `y[c] = acc[c] + sum over images of the sum of its plane`; a block a channel.
KERNEL(64) sum_channels(Params p, u32 *status, const float *x, const float *acc, float *y) {
  __shared__ float lanes[64];
  u32 c = blockIdx.y * gridDim.x + blockIdx.x, area = p.height * p.width;
  if (c >= p.in_channels) return;
  float total = p.has_more != 0 ? acc[c] : 0.0f;
  for (u32 b = 0; b < p.images; b++) {
    float sum = 0.0f;
    for (u32 pixel = threadIdx.x; pixel < area; pixel += 64) sum += x[(b * p.in_channels + c) * area + pixel];
    total += block_sum<64>(lanes, sum);
  }
  if (threadIdx.x == 0) y[c] = total;
}
