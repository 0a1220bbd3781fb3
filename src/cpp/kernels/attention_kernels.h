// The kernels of causal attention over whole sequences: the softmax of a tile of queries, and its gradient. Row r of a
// tile sees the first n + r keys.
#pragma once

#include <stdint.h>

namespace soma {
namespace kernels {

// The scores of a tile of m queries. Columns as in AttentionTile.
struct AttentionScores {
  float* x;      // the scores, and the weights where there are no pairs
  float* pairs;  // the weights as rows of pairs, or null
  int64_t ld, m, n, width;
  float scale;
  float *max, *sum;  // (m)
};

// The tile of m queries in backward attention. Rows and units have values up to `width` columns, and memory up to the
// next multiple of 32.
struct AttentionTile {
  float *p, *dp;            // the scores and the gradients of the probabilities
  int64_t ld, m, n, width;  // ld of every matrix here
  float scale;
  const float* lse;  // (m)
  // For attention_gradient_pairs alone: ds as rows of pairs; p and ds as `units` of two rows, as interleave_rows makes
  // them, zero beyond m.
  float *ds_rows, *p_units, *ds_units;
  int64_t units;
};

// X(result, name, (arguments))
#define SOMA_ATTENTION_KERNELS(X)                                                                                     \
  /* row r, over the first n + r columns: max = max scale x, sum = sum exp(scale x - max), and those exponentials, */ \
  /* zeros from there to width: in place, or as rows of pairs */                                                      \
  X(void, attention_weights, (const AttentionScores* scores))                                                         \
  /* y[r] *= 1 / divisors[r], n columns of each */                                                                    \
  X(void, scale_rows, (float* y, int64_t ld, int64_t m, int64_t n, const float* divisors))                            \
  /* p = exp(scale p - lse), dp = ds = scale p (dp - sum p dp / sum p), zero where a row does not see */              \
  X(void, attention_gradient, (const AttentionTile* tile))                                                            \
  /* the same p; ds and p as pairs */                                                                                 \
  X(void, attention_gradient_pairs, (const AttentionTile* tile))

}  // namespace kernels
}  // namespace soma
