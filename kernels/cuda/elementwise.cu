// Sums, products, and moving columns about: `y[i] = a[i] + b[i]`.
//
// Bound: bytes moved over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  /// Elements, or words, of the result.
  u32 len;
  /// A factor, or what is filled in.
  float factor;
  /// Columns of the operand and of the result.
  u32 x_cols, y_cols;
  /// First columns of what is moved, and how many.
  u32 x_start, y_start, count;
  /// Tokens, tokens of a packed row, and whether there is a sum to start from.
  u32 rows, seq, accumulate;
};

/// `y = a + b`.
KERNEL(256) add(Params p, u32 *status, const float *a, const float *b, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = a[i] + b[i];
}

/// `y = a b`.
KERNEL(256) mul(Params p, u32 *status, const float *a, const float *b, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = a[i] * b[i];
}

/// `y = a + factor b`.
KERNEL(256) add_scaled(Params p, u32 *status, const float *a, const float *b, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = fmaf(p.factor, b[i], a[i]);
}

/// `y[t, c] = x[t, c] + b[c]`.
KERNEL(256) add_row(Params p, u32 *status, const float *x, const float *b, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = x[i] + b[i % p.x_cols];
}

/// `y = factor x`.
KERNEL(256) scale(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = p.factor * x[i];
}

/// `y = factor`.
KERNEL(256) fill(Params p, u32 *status, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = p.factor;
}

/// `y = x`, word by word.
KERNEL(256) copy(Params p, u32 *status, const u32 *x, u32 *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = x[i];
}

/// `y[t, y_start + j] = x[t, x_start + j]` for `j < count`.
KERNEL(256) move_cols(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i >= p.len) return;
  u32 t = i / p.count, j = i % p.count;
  y[t * p.y_cols + p.y_start + j] = x[t * p.x_cols + p.x_start + j];
}

/// `y[t, j] = x[t, index[j]]`.
KERNEL(256) gather_cols(Params p, u32 *status, const float *x, const u32 *index, float *y) {
  u32 i = index_of();
  if (i >= p.len) return;
  u32 k = index[i % p.y_cols];
  if (k < p.x_cols) {
    y[i] = x[i / p.y_cols * p.x_cols + k];
  } else {
    refuse(status, p.step);
  }
}

/// `y[t, k] = sum of x[t, j] over index[j] = k`, in the order of `j`.
KERNEL(256) scatter_cols(Params p, u32 *status, const float *x, const u32 *index, float *y) {
  u32 i = index_of();
  if (i >= p.len) return;
  u32 k = i % p.y_cols, row = i / p.y_cols * p.x_cols;
  float sum = 0.0f;
  for (u32 j = 0; j < p.x_cols; j++) {
    if (index[j] == k) sum += x[row + j];
  }
  y[i] = sum;
}

/// `y[c] = acc[c] + sum over packed rows of (sum over their tokens of x[t, c])`. A block has 16 columns and 16 lanes of
/// tokens, whose sums are added in the order of lanes.
KERNEL(256) sum_rows(Params p, u32 *status, const float *x, const float *acc, float *y) {
  __shared__ float lanes[256];
  u32 l = threadIdx.x, c = blockIdx.x * 16 + l % 16, lane = l / 16;
  float total = lane == 0 && c < p.y_cols && p.accumulate != 0 ? acc[c] : 0.0f;
  for (u32 first = 0; first < p.rows; first += p.seq) {
    float sum = 0.0f;
    if (c < p.y_cols) {
      for (u32 t = lane; t < p.seq; t += 16) sum += x[(first + t) * p.y_cols + c];
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
  if (lane == 0 && c < p.y_cols) y[c] = total;
}

/// Stops the run where one of `len` elements from `x_start` on is not finite.
KERNEL(256) check_finite(Params p, u32 *status, const float *x) {
  u32 i = index_of();
  if (i < p.len && !is_finite(x[p.x_start + i])) refuse(status, p.step);
}

/// Sums of squares of 4096 elements each.
KERNEL(256) norm_sq_parts(Params p, u32 *status, const float *x, float *partial) {
  __shared__ float lanes[256];
  u32 l = threadIdx.x, part = blockIdx.y * gridDim.x + blockIdx.x;
  float sum = 0.0f;
  for (u32 k = 0; k < 16; k++) {
    u32 i = part * 4096 + k * 256 + l;
    if (i < p.len) sum = fmaf(x[i], x[i], sum);
  }
  float total = block_sum<256>(lanes, sum);
  if (l == 0 && part * 4096 < p.len) partial[part] = total;
}

/// `y = acc + sum of partial`, in f64: f32 would lose small tensors beside large ones. One block.
KERNEL(256) norm_sq(Params p, u32 *status, const float *partial, const double *acc, double *y) {
  __shared__ float lanes[256];
  u32 l = threadIdx.x;
  float sum = 0.0f;
  for (u32 i = l; i < p.len; i += 256) sum += partial[i];
  float total = block_sum<256>(lanes, sum);
  if (l == 0) *y = (p.accumulate != 0 ? *acc : 0.0) + static_cast<double>(total);
}

/// `y = [min(1, max_norm / (n + 1e-6)), n]`, `n = sqrt(x)`; a sum that is past the range of f32 stops the run. One
/// thread.
KERNEL(1) clip_scale(Params p, u32 *status, const double *x, float *y) {
  float sum = static_cast<float>(*x);
  if (!is_finite(sum)) refuse(status, p.step);
  float norm = sqrtf(sum);
  y[0] = fminf(p.factor / (norm + 1e-6f), 1.0f);
  y[1] = norm;
}
