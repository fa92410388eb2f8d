// Softmax and losses; a block has a row.
//
// ```text
// for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, labels[t]] }
// ```
// A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros. The
// cross-entropy of a linear layer takes its logits from `linear.cu`, a chunk of tokens at a time.
// Bound: bytes of the rows over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  /// Rows of this launch, and the token that the first of them belongs to.
  u32 rows, first;
  u32 cols;
  /// Whether the rows stay what they are.
  u32 keeps;
  /// What column 0 is a logit of.
  u32 vocab_first;
};

/// Below every logit that is finite.
constexpr float LOWEST = -3.4028235e38f;

/// The row of a block.
__device__ inline u32 row_of() { return blockIdx.y * gridDim.x + blockIdx.x; }

/// The largest element of a row and the sum of `exp(x - largest)`.
struct Line {
  float largest, sum;
};

__device__ inline Line line_of(const Params &p, float *lanes, const float *x, u32 r) {
  float largest = LOWEST, sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 256) largest = fmaxf(largest, x[r * p.cols + c]);
  largest = block_max<256>(lanes, largest);
  for (u32 c = threadIdx.x; c < p.cols; c += 256) sum += expf(x[r * p.cols + c] - largest);
  return {largest, block_sum<256>(lanes, sum)};
}

/// `y = exp(x - m) / sum(exp(x - m))`.
KERNEL(256) softmax(Params p, u32 *status, const float *x, float *y) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  Line m = line_of(p, lanes, x, r);
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    y[i] = expf(x[i] - m.largest) / m.sum;
  }
}

/// `dx = y (dy - sum(dy y))`.
KERNEL(256) softmax_grad(Params p, u32 *status, const float *y, const float *dy, float *dx) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 256) sum = fmaf(y[r * p.cols + c], dy[r * p.cols + c], sum);
  float dot = block_sum<256>(lanes, sum);
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    dx[i] = y[i] * (dy[i] - dot);
  }
}

/// The label of row `r`; one past the columns stops the run and counts for nothing.
__device__ inline int label_of(const Params &p, u32 *status, const int *labels, u32 r) {
  int label = labels[p.first + r];
  if (label >= static_cast<int>(p.cols)) {
    refuse(status, p.step);
    return -1;
  }
  return label;
}

/// `loss[t] = weights[t] (ln(sum(exp(x))) - x[labels[t]])`.
KERNEL(256) cross_entropy(Params p, u32 *status, const float *x, const int *labels, const float *weights, float *loss) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  Line m = line_of(p, lanes, x, r);
  if (threadIdx.x != 0) return;
  int label = label_of(p, status, labels, r);
  float weight = weights[p.first + r], y = 0.0f;
  if (label >= 0 && weight != 0.0f) {
    y = weight * (logf(m.sum) + m.largest - x[r * p.cols + static_cast<u32>(label)]);
  }
  loss[p.first + r] = y;
}

/// `dx = weights[t] dloss[t] (softmax(x) - [c = labels[t]])`.
KERNEL(256) cross_entropy_grad(Params p, u32 *status, const float *x, const int *labels, const float *weights,
                               const float *dloss, float *dx) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  Line m = line_of(p, lanes, x, r);
  int label = label_of(p, status, labels, r);
  float weight = weights[r] * dloss[r];
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    float d = 0.0f;
    if (label >= 0 && weight != 0.0f) {
      d = expf(x[i] - m.largest) * (weight / m.sum);
      if (static_cast<int>(c) == label) d -= weight;
    }
    dx[i] = d;
  }
}

/// Losses of rows of logits, which become their gradients unless they are kept.
KERNEL(256) head(Params p, u32 *status, float *x, const int *labels, const float *weights, float *loss) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  Line m = line_of(p, lanes, x, r);
  int label = label_of(p, status, labels, r);
  float weight = weights[p.first + r];
  bool counts = label >= 0 && weight != 0.0f;
  if (threadIdx.x == 0 && !counts) loss[p.first + r] = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    float value = x[i];
    bool is_label = counts && static_cast<int>(c) == label;
    if (is_label) loss[p.first + r] = weight * (logf(m.sum) + m.largest - value);
    if (p.keeps != 0) continue;
    float d = counts ? expf(value - m.largest) * (weight / m.sum) : 0.0f;
    x[i] = is_label ? d - weight : d;
  }
}

/// The largest of every row of logits, and the sum of `exp(x - largest)`; zeros where the token does not count.
KERNEL(256) row_sums(Params p, u32 *status, const float *x, const int *labels, const float *weights, float *sums) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  Line m = line_of(p, lanes, x, r);
  if (threadIdx.x != 0) return;
  u32 t = p.first + r;
  bool counts = labels[t] >= 0 && weights[t] != 0.0f;
  sums[2 * t] = counts ? m.largest : 0.0f;
  sums[2 * t + 1] = counts ? m.sum : 0.0f;
}

/// Turns rows of a panel of logits into their gradients.
KERNEL(256) panel(Params p, u32 *status, float *x, const int *labels, const float *weights, const float *sums) {
  u32 r = row_of();
  if (r >= p.rows) return;
  u32 t = p.first + r;
  int label = labels[t];
  float weight = weights[t];
  bool counts = label >= 0 && weight != 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    float d = counts ? expf(x[i] - sums[2 * t]) * (weight / sums[2 * t + 1]) : 0.0f;
    bool is_label = counts && static_cast<int>(p.vocab_first + c) == label;
    x[i] = is_label ? d - weight : d;
  }
}

/// `loss[t] = weights[t] mean((x - target)^2)`.
KERNEL(256) mse_loss(Params p, u32 *status, const float *x, const float *target, const float *weights, float *loss) {
  __shared__ float lanes[256];
  u32 r = row_of();
  if (r >= p.rows) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    float d = x[r * p.cols + c] - target[r * p.cols + c];
    sum = fmaf(d, d, sum);
  }
  float total = block_sum<256>(lanes, sum);
  if (threadIdx.x == 0) loss[r] = weights[r] * (total / static_cast<float>(p.cols));
}

/// `dx = weights[t] dloss[t] (2 / cols) (x - target)`.
KERNEL(256) mse_loss_grad(Params p, u32 *status, const float *x, const float *target, const float *weights,
                          const float *dloss, float *dx) {
  u32 r = row_of();
  if (r >= p.rows) return;
  float by = weights[r] * dloss[r] * (2.0f / static_cast<float>(p.cols));
  for (u32 c = threadIdx.x; c < p.cols; c += 256) {
    u32 i = r * p.cols + c;
    dx[i] = by * (x[i] - target[i]);
  }
}
