// Activations, element by element: `y[i] = f(x[i])`, `dx[i] = dy[i] f'(x[i])`.
//
// Bound: 8 bytes an element forward, 12 backward, over memory bandwidth. In place: a result may be an operand.
#include "common.cuh"

struct Params {
  u32 step;
  u32 len;
};

/// `y = max(x, 0)`.
KERNEL(256) relu(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = fmaxf(x[i], 0.0f);
}

/// `dx = dy` where `y > 0`, else 0.
KERNEL(256) relu_grad(Params p, u32 *status, const float *y, const float *dy, float *dx) {
  u32 i = index_of();
  if (i < p.len) dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

/// `y = min(max(x, 0), 6)`.
KERNEL(256) relu6(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = fminf(fmaxf(x[i], 0.0f), 6.0f);
}

/// `dx = dy` where `0 < y < 6`, else 0.
KERNEL(256) relu6_grad(Params p, u32 *status, const float *y, const float *dy, float *dx) {
  u32 i = index_of();
  if (i < p.len) dx[i] = y[i] > 0.0f && y[i] < 6.0f ? dy[i] : 0.0f;
}

/// The normal distribution's integral up to `x`, and its density. As on the CPU: `erfcx(a) = t q(t)`,
/// `t = 1 / (1 + 0.4 a)`, so that the lower tail keeps its relative accuracy.
struct Normal {
  float integral, density;
};

__device__ inline Normal normal(float x) {
  float e = expf(fmaxf(-0.5f * x * x, -87.0f));
  float t = 1.0f / (1.0f + fabsf(x) * 0.28284271f);
  float q = fmaf(0.04912645f, t, -0.17804977f);
  q = fmaf(q, t, 0.1604475f);
  q = fmaf(q, t, 0.0027128505f);
  q = fmaf(q, t, 0.13672031f);
  q = fmaf(q, t, 0.17013621f);
  q = fmaf(q, t, 0.20753027f);
  q = fmaf(q, t, 0.22570170f);
  q = fmaf(q, t, 0.22567455f);
  float tail = 0.5f * e * (t * q);
  return {x < 0.0f ? tail : 1.0f - tail, e * 0.3989423f};
}

/// `y = x Phi(x)`.
KERNEL(256) gelu(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = x[i] * normal(x[i]).integral;
}

/// `dx = dy (Phi(x) + x phi(x))`.
KERNEL(256) gelu_grad(Params p, u32 *status, const float *x, const float *dy, float *dx) {
  u32 i = index_of();
  if (i >= p.len) return;
  Normal both = normal(x[i]);
  dx[i] = dy[i] * fmaf(x[i], both.density, both.integral);
}

/// `tanh(sqrt(2/pi) (x + 0.044715 x^3))`.
__device__ inline float gelu_tanh_inner(float x) {
  return tanh_of(x * fmaf(x * x, 0.044715f, 1.0f) * 0.7978846f);
}

/// `y = x (1 + tanh(u)) / 2`.
KERNEL(256) gelu_tanh(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = 0.5f * x[i] * (gelu_tanh_inner(x[i]) + 1.0f);
}

/// `dx = dy ((1 + t) / 2 + x (1 - t^2) u' / 2)`.
KERNEL(256) gelu_tanh_grad(Params p, u32 *status, const float *x, const float *dy, float *dx) {
  u32 i = index_of();
  if (i >= p.len) return;
  float t = gelu_tanh_inner(x[i]);
  float slope = fmaf(x[i] * x[i], 3.0f * 0.044715f, 1.0f) * 0.7978846f;
  float bend = x[i] * slope * fmaf(-t, t, 1.0f);
  dx[i] = 0.5f * dy[i] * (bend + (t + 1.0f));
}

/// `y = x sigmoid(x)`.
KERNEL(256) silu(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = x[i] * sigmoid(x[i]);
}

/// `silu'(x)` from `q = sigmoid(x)`.
__device__ inline float silu_slope(float x, float q) { return q * fmaf(x, 1.0f - q, 1.0f); }

/// `dx = dy q (1 + x (1 - q))`.
KERNEL(256) silu_grad(Params p, u32 *status, const float *x, const float *dy, float *dx) {
  u32 i = index_of();
  if (i < p.len) dx[i] = dy[i] * silu_slope(x[i], sigmoid(x[i]));
}

/// `y = 1 / (1 + e^-x)`. Named so because `sigmoid` is the function of a number.
KERNEL(256) sigmoid_all(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = sigmoid(x[i]);
}

/// `dx = dy y (1 - y)`.
KERNEL(256) sigmoid_grad(Params p, u32 *status, const float *y, const float *dy, float *dx) {
  u32 i = index_of();
  if (i < p.len) dx[i] = dy[i] * (y[i] * (1.0f - y[i]));
}

/// `y = tanh(x)`.
KERNEL(256) tanh_all(Params p, u32 *status, const float *x, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = tanh_of(x[i]);
}

/// `dx = dy (1 - y^2)`.
KERNEL(256) tanh_grad(Params p, u32 *status, const float *y, const float *dy, float *dx) {
  u32 i = index_of();
  if (i < p.len) dx[i] = dy[i] * fmaf(-y[i], y[i], 1.0f);
}

/// `y = silu(gate) up`.
KERNEL(256) swiglu(Params p, u32 *status, const float *gate, const float *up, float *y) {
  u32 i = index_of();
  if (i < p.len) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

/// `dgate = dy up silu'(gate)`, `dup = dy silu(gate)`.
KERNEL(256) swiglu_grad(Params p, u32 *status, const float *gate, const float *up, const float *dy, float *dgate,
                        float *dup) {
  u32 i = index_of();
  if (i >= p.len) return;
  float g = gate[i], u = up[i], d = dy[i], q = sigmoid(g);
  dgate[i] = d * u * silu_slope(g, q);
  dup[i] = d * (g * q);
}
