// Pooling over windows of planes, and its gradients; padding is counted by no window.
//
// A thread an element: of the result forward, of the input backward, where it looks at all windows that hold it.
// Bound: bytes of input and output over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  u32 planes;
  /// Height and width of the input, of the window and of the output.
  u32 height, width, kernel_h, kernel_w, out_h, out_w;
  u32 stride_h, stride_w, top, left;
};

/// Rows and columns of a window inside the input; the last ones are past the end.
struct Box {
  u32 first_row, end_row, first_col, end_col;
};

/// The window of output `(i, j)`.
__device__ inline Box window(const Params &p, u32 i, u32 j) {
  u32 h = i * p.stride_h, w = j * p.stride_w;
  return {max(h, p.top) - p.top, min(h + p.kernel_h - min(p.top, h + p.kernel_h), p.height),
          max(w, p.left) - p.left, min(w + p.kernel_w - min(p.left, w + p.kernel_w), p.width)};
}

__device__ inline float size_of(const Box &box) {
  return static_cast<float>((box.end_row - box.first_row) * (box.end_col - box.first_col));
}

KERNEL(256) max_pool(Params p, u32 *status, const float *x, float *y) {
  u32 at = index_of(), area = p.out_h * p.out_w;
  if (at >= p.planes * area) return;
  u32 plane = at / area * p.height * p.width;
  Box box = window(p, at % area / p.out_w, at % p.out_w);
  float most = x[plane + box.first_row * p.width + box.first_col];
  for (u32 h = box.first_row; h < box.end_row; h++) {
    for (u32 w = box.first_col; w < box.end_col; w++) most = fmaxf(most, x[plane + h * p.width + w]);
  }
  y[at] = most;
}

/// The place of the first largest element of a window.
__device__ inline u32 first_max(const Params &p, const float *x, u32 plane, const Box &box) {
  u32 best = plane + box.first_row * p.width + box.first_col;
  for (u32 h = box.first_row; h < box.end_row; h++) {
    for (u32 w = box.first_col; w < box.end_col; w++) {
      u32 i = plane + h * p.width + w;
      if (x[i] > x[best]) best = i;
    }
  }
  return best;
}

/// The first output row or column whose windows may hold an input row or column.
__device__ inline u32 first_of(u32 at, u32 pad, u32 kernel, u32 stride) {
  return (max(at + pad + 1, kernel) - kernel + stride - 1) / stride;
}

KERNEL(256) max_pool_grad(Params p, u32 *status, const float *dy, const float *x, float *dx) {
  u32 at = index_of(), area = p.height * p.width;
  if (at >= p.planes * area) return;
  u32 plane = at / area, h = at % area / p.width, w = at % p.width;
  float sum = 0.0f;
  for (u32 i = first_of(h, p.top, p.kernel_h, p.stride_h); i < p.out_h && i * p.stride_h <= h + p.top; i++) {
    for (u32 j = first_of(w, p.left, p.kernel_w, p.stride_w); j < p.out_w && j * p.stride_w <= w + p.left; j++) {
      bool is_max = first_max(p, x, plane * area, window(p, i, j)) == at;
      if (is_max) sum += dy[(plane * p.out_h + i) * p.out_w + j];
    }
  }
  dx[at] = sum;
}

KERNEL(256) avg_pool(Params p, u32 *status, const float *x, float *y) {
  u32 at = index_of(), area = p.out_h * p.out_w;
  if (at >= p.planes * area) return;
  u32 plane = at / area * p.height * p.width;
  Box box = window(p, at % area / p.out_w, at % p.out_w);
  float sum = 0.0f;
  for (u32 h = box.first_row; h < box.end_row; h++) {
    for (u32 w = box.first_col; w < box.end_col; w++) sum += x[plane + h * p.width + w];
  }
  y[at] = sum / size_of(box);
}

KERNEL(256) avg_pool_grad(Params p, u32 *status, const float *dy, float *dx) {
  u32 at = index_of(), area = p.height * p.width;
  if (at >= p.planes * area) return;
  u32 plane = at / area, h = at % area / p.width, w = at % p.width;
  float sum = 0.0f;
  for (u32 i = first_of(h, p.top, p.kernel_h, p.stride_h); i < p.out_h && i * p.stride_h <= h + p.top; i++) {
    for (u32 j = first_of(w, p.left, p.kernel_w, p.stride_w); j < p.out_w && j * p.stride_w <= w + p.left; j++) {
      sum += dy[(plane * p.out_h + i) * p.out_w + j] / size_of(window(p, i, j));
    }
  }
  dx[at] = sum;
}

/// Mean of every plane; a thread a plane.
KERNEL(256) global_avg_pool(Params p, u32 *status, const float *x, float *y) {
  u32 at = index_of(), area = p.height * p.width;
  if (at >= p.planes) return;
  float sum = 0.0f;
  for (u32 i = 0; i < area; i++) sum += x[at * area + i];
  y[at] = sum / static_cast<float>(area);
}

KERNEL(256) global_avg_pool_grad(Params p, u32 *status, const float *dy, float *dx) {
  u32 at = index_of(), area = p.height * p.width;
  if (at < p.planes * area) dx[at] = dy[at / area] / static_cast<float>(area);
}
