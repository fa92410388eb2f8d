// Softmax and losses; a block has a row.
//
// ```text
// for t { m = max(x[t, :]); z = sum(exp(x[t, :] - m)); nll = ln z + m - x[t, labels[t]] }
// ```
// A token whose label is negative or whose weight is 0 counts for nothing: its loss and gradient are exact zeros. The
// cross-entropy of a linear layer takes its logits from `linear.cu`, a chunk of tokens at a time, and
// losses and gradients from the sums of these.
// Bound: bytes of the rows over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  /// Rows of this launch, and the token that the first of them belongs to.
  u32 rows, first;
  u32 cols;
  /// Whether sums are those of the columns before.
  u32 carries;
  /// What column 0 is a logit of, and how many there are in all.
  u32 vocab_first, vocab;
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

/// The label of row `r`; one that is not below `limit` stops the run and counts for nothing.
__device__ inline int label_of(const Params &p, u32 *status, const int *labels, u32 r, u32 limit) {
  int label = labels[p.first + r];
  if (label >= static_cast<int>(limit)) {
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
  int label = label_of(p, status, labels, r, p.cols);
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
  int label = label_of(p, status, labels, r, p.cols);
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

/// Logits that are summed apart; a warp sums a segment.
constexpr u32 SEGMENT = 1024;

/// Largest and sum of what a warp's threads find in the elements from `start` to `end`, the same for each of them.
__device__ inline Line segment_of(const float *x, u32 start, u32 end) {
  float largest = LOWEST, sum = 0.0f;
  for (u32 c = start + threadIdx.x % 32; c < end; c += 32) largest = fmaxf(largest, x[c]);
  for (u32 width = 16; width > 0; width /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, width));
  for (u32 c = start + threadIdx.x % 32; c < end; c += 32) sum += expf(x[c] - largest);
  for (u32 width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, width);
  return {largest, sum};
}

/// Largest and sum of the logits of both.
__device__ inline Line of_both(Line a, Line b) {
  float largest = fmaxf(a.largest, b.largest);
  return {largest, fmaf(a.sum, expf(a.largest - largest), b.sum * expf(b.largest - largest))};
}

/// Of every row of logits the largest, the sum of `exp(x - largest)` and the label's, three numbers a token: segment
/// after segment, each summed by a warp from zero, so that logits may come in parts of whole segments. Where sums are
/// carried on, those of the segments before are in their place. All are 0 where the token does not count.
///
/// ```text
/// for segment { m' = max(x); z' = sum(exp(x - m')); (m, z) = (max(m, m'), z exp(m - max) + z' exp(m' - max)) }
/// ```
KERNEL(256) row_sums(Params p, u32 *status, const float *x, const int *labels, const float *weights, float *sums) {
  __shared__ Line found[8];
  u32 r = row_of();
  if (r >= p.rows) return;
  const float *row = x + static_cast<u64>(r) * p.cols;
  float *to = sums + 3 * (p.first + r);
  Line total = {LOWEST, 0.0f};
  if (threadIdx.x == 0 && p.carries != 0) total = {to[0], to[1]};
  for (u32 first = 0; first < p.cols; first += 8 * SEGMENT) {
    u32 start = first + threadIdx.x / 32 * SEGMENT;
    Line line = segment_of(row, start, min(start + SEGMENT, p.cols));
    __syncthreads();
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = line;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (u32 s = 0; s < 8 && first + s * SEGMENT < p.cols; s++) {
      bool is_first = p.carries == 0 && first + s == 0;
      total = is_first ? found[s] : of_both(total, found[s]);
    }
  }
  if (threadIdx.x != 0) return;
  int label = label_of(p, status, labels, r, p.vocab);
  bool counts = label >= 0 && weights[p.first + r] != 0.0f;
  u32 own = static_cast<u32>(label) - p.vocab_first;
  bool is_here = static_cast<u32>(label) >= p.vocab_first && own < p.cols;
  if (!counts) {
    total = {0.0f, 0.0f};
    to[2] = 0.0f;
  } else if (is_here) {
    to[2] = row[own];
  } else if (p.carries == 0) {
    to[2] = 0.0f;
  }
  to[0] = total.largest;
  to[1] = total.sum;
}

/// `loss[t] = weights[t] (ln z + m - x[t, labels[t]])` of such sums.
KERNEL(256) cross_entropy_of_sums(Params p, u32 *status, const float *sums, const float *weights, float *loss) {
  u32 t = index_of();
  if (t >= p.rows) return;
  float largest = sums[3 * t], sum = sums[3 * t + 1], own = sums[3 * t + 2];
  loss[t] = sum != 0.0f ? weights[t] * (logf(sum) + largest - own) : 0.0f;
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
    float d = counts ? expf(x[i] - sums[3 * t]) * (weight / sums[3 * t + 1]) : 0.0f;
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
