// The kernels of rows: norms, activations, rotary positions, softmax and cross entropy, sums.
#pragma once

#include <stdint.h>

namespace soma {
namespace kernels {

// Norms `rows` rows of c numbers. RMSNorm reads no mean and no beta.
struct NormForward {
  float *y, *mean, *rstd;  // y may be x; mean and rstd, one a row, may be null
  const float* x;
  const float *gamma, *beta;  // both may be null: 1 and 0
  int64_t rows, c;
  float eps;
};

struct NormBackward {
  float* dx;
  float* y;  // null: not made again; else gamma and beta are given
  const float *dy, *x;
  const float *mean, *rstd;   // mean may be null
  const float *gamma, *beta;  // gamma may be null: 1
  const float* residual;      // may be null (0), or dx
  int64_t rows, c;
};

// Over `rows` rows, ld floats apart, of n columns; pointers are to the first of these.
struct NormGrad {
  float *dgamma, *dbeta;
  const float *dy, *x;
  const float *mean, *rstd;
  int64_t ld, rows, n;
};

// A row of n logits x and of probabilities q.
// In place, x = grad_scale (softmax(x) - (1 - share) onehot(target) - share q).
struct SoftCrossEntropy {
  float* x;
  const float* q;
  int64_t n, target;
  float share, grad_scale;
  float max = 0, sum = 0, divergence = 0;  // results: max x; sum exp(x - max); sum q (log q - (x - max))
};

// A row of heads. Elements i of the two halves of a head are a point, which is turned by angle i of the position of the
// row. x^ = x, or x rstd gamma (RMSNorm of the head) if gamma is given.
struct HeadsForward {
  float* y;  // may be x
  const float *x, *gamma;
  const float* turn;  // (d): the cosines of the d/2 angles, then their sines
  int64_t heads, d;
  float eps;
};

// One head in `rows` rows, a row for each position. If gamma is given, x is the input of forward.
struct HeadBackward {
  float* dx;  // dy before
  int64_t ld;
  const float* x;
  int64_t ld_x;
  const float *gamma, *turns;  // turns: (rows, d)
  float* dgamma;               // (d), if gamma is given
  int64_t rows, d;
  float eps;
};

// A piece of a row. `counter` is random bits of the row plus the column of element 0, `key` other random bits.
struct DropoutRow {
  float* y;                   // may be x
  const float *x, *residual;  // residual may be null: 0
  uint32_t counter, key;
  int32_t threshold;  // the rate, from -2^31 (0) to 2^31 (1)
  float scale;        // 1 / (1 - rate)
  int64_t n;
};

// X(result, name, (arguments))
#define SOMA_ROWWISE_KERNELS(X)                                                                                     \
  /* y = (x - mean) rstd gamma + beta, rstd = 1/sqrt(var + eps) */                                                  \
  X(void, norm_forward, (const NormForward* norm))                                                                  \
  /* g = dy gamma; xhat = (x - mean) rstd, or x itself where mean is null; */                                       \
  /* dx = residual + rstd (g - mean(g) - xhat mean(g xhat)); y = xhat gamma + beta again */                         \
  X(void, norm_backward, (const NormBackward* norm))                                                                \
  /* dgamma[j] += sum_r dy xhat, dbeta[j] += sum_r dy */                                                            \
  X(void, norm_grad, (const NormGrad* norm))                                                                        \
  /* y = x rstd gamma, rstd = 1/sqrt(mean(x^2) + eps); gamma may be null: 1 */                                      \
  X(void, rms_norm_forward, (const NormForward* norm))                                                              \
  /* g = dy gamma; xhat = x rstd; dx = residual + rstd (g - xhat mean(g xhat)); y = xhat gamma again */             \
  X(void, rms_norm_backward, (const NormBackward* norm))                                                            \
  /* dgamma[j] += sum_r dy x rstd */                                                                                \
  X(void, rms_norm_grad, (const NormGrad* norm))                                                                    \
  /* each head, i < d/2: y[i] = x^[i] cos_i - x^[d/2 + i] sin_i, y[d/2 + i] = x^[d/2 + i] cos_i + x^[i] sin_i */    \
  X(void, rotate_heads, (const HeadsForward* heads))                                                                \
  /* dy turned back, then, where gamma is given, through the norm; dgamma += sum_r (dy turned back) x rstd */       \
  X(void, rotate_head_backward, (const HeadBackward* head))                                                         \
  /* y = silu(gate) up, silu(x) = x / (1 + e^-x) */                                                                 \
  X(void, swiglu_forward, (float* y, const float* gate, const float* up, int64_t n))                                \
  /* y = silu(gate) up, dgate = dy up silu'(gate), dup = dy silu(gate); dgate may be dy */                          \
  X(void, swiglu_backward,                                                                                          \
    (float* dgate, float* dup, float* y, const float* dy, const float* gate, const float* up, int64_t n))           \
  /* out[j] += sum_r x[r*ld + j], j < n */                                                                          \
  X(void, column_sum, (float* out, const float* x, int64_t ld, int64_t rows, int64_t n))                            \
  /* y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */                                                           \
  X(void, gelu_forward, (float* y, const float* x, int64_t n))                                                      \
  /* y = gelu(x), dx = dy gelu'(x); dx may be dy */                                                                 \
  X(void, gelu_backward, (float* dx, float* y, const float* dy, const float* x, int64_t n))                         \
  /* y = x Phi(x) = x/2 (1 + erf(x / sqrt(2))) */                                                                   \
  X(void, gelu_erf_forward, (float* y, const float* x, int64_t n))                                                  \
  /* the same y, dx = dy (Phi(x) + x Phi'(x)); dx may be dy */                                                      \
  X(void, gelu_erf_backward, (float* dx, float* y, const float* dy, const float* x, int64_t n))                     \
  /* dx = y > 0 ? dy : 0; dx may be dy */                                                                           \
  X(void, relu_backward, (float* dx, const float* dy, const float* y, int64_t n))                                   \
  /* y = residual + (hash(counter + i, key) < threshold ? 0 : scale) x; the hash has the same bits on each level */ \
  X(void, dropout, (const DropoutRow* row))                                                                         \
  /* y = a + b */                                                                                                   \
  X(void, add, (float* y, const float* a, const float* b, int64_t n))                                               \
  /* y += s x */                                                                                                    \
  X(void, scale_add, (float* y, const float* x, float s, int64_t n))                                                \
  /* *max = max x, *sum = sum exp(x - max) */                                                                       \
  X(void, max_sum_exp, (const float* x, int64_t n, float* max, float* sum))                                         \
  /* the number of j with x[j] > x[target], or with x[j] = x[target] and j < target; n <= 2^24 */                   \
  X(int64_t, count_better, (const float* x, int64_t n, int64_t target))                                             \
  /* x = grad_scale (softmax(x) - onehot(target)) in place; *max, *sum as above */                                  \
  X(void, cross_entropy_row, (float* x, int64_t n, int64_t target, float grad_scale, float* max, float* sum))       \
  /* x = grad_scale (softmax(x) - (1 - share) onehot(target) - share q) in place, and the sums of the loss */       \
  X(void, soft_cross_entropy_row, (SoftCrossEntropy * row))                                                         \
  /* q = (onto ? q : 0) + share softmax(x); x is overwritten, q may be x where not onto */                          \
  X(void, add_softmax_row, (float* q, float* x, int64_t n, float share, bool onto))                                 \
  /* sum a b */                                                                                                     \
  X(float, dot, (const float* a, const float* b, int64_t n))                                                        \
  /* sum x^2, in double */                                                                                          \
  X(double, sum_squares, (const float* x, int64_t n))

}  // namespace kernels
}  // namespace soma
