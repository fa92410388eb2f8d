// Rows of a table by token, and the table's gradient.
//
// Bound: 8 bytes an element over memory bandwidth.
#include "common.cuh"

struct Params {
  u32 step;
  u32 tokens, cols, vocab;
  /// Tokens of a packed row.
  u32 seq;
  /// Whether each packed row's sum is added to the table on its own.
  u32 running;
  /// The first row that is there, or that the gradient is of, and how many.
  u32 first, rows;
};

/// `y[t, c] = w[tokens[t] - first, c]`; of a token with another row it stays.
KERNEL(256) embedding(Params p, u32 *status, const u32 *tokens, const void *w, float *y) {
  u32 i = index_of();
  if (i >= p.tokens * p.cols) return;
  u32 token = tokens[i / p.cols];
  if (token >= p.vocab) {
    refuse(status, p.step);
    return;
  }
  if (token >= p.first && token - p.first < p.rows) y[i] = stored(w, (token - p.first) * p.cols + i % p.cols);
}

/// Adds to `dw[v, :]` the rows of `dx` whose token is `first + v`, packed row by packed row: the tokens of a packed row
/// are summed from zero in order, then added; where not `running`, the packed rows' sum is added once.
///
/// A block stands at a token and a thread at a column; the first token of its kind does the work of all.
KERNEL(64) embedding_grad(Params p, u32 *status, const u32 *tokens, const float *dx, float *dw) {
  u32 at = blockIdx.y * gridDim.x + blockIdx.x;
  if (at >= p.tokens) return;
  u32 token = tokens[at];
  if (token >= p.vocab) {
    refuse(status, p.step);
    return;
  }
  if (token < p.first || token - p.first >= p.rows) return;
  for (u32 t = 0; t < at; t++) {
    if (tokens[t] == token) return;
  }
  for (u32 c = threadIdx.x; c < p.cols; c += 64) {
    u32 place = (token - p.first) * p.cols + c;
    float total = p.running != 0 ? dw[place] : 0.0f;
    for (u32 first = at / p.seq * p.seq; first < p.tokens; first += p.seq) {
      float sum = 0.0f;
      for (u32 t = max(first, at); t < first + p.seq; t++) {
        if (tokens[t] == token) sum += dx[t * p.cols + c];
      }
      total += sum;
    }
    if (p.running == 0) total += dw[place];
    dw[place] = total;
  }
}
