// The kernels of optimizers, over n neighbouring numbers of a tensor.
#pragma once

#include <stdint.h>

namespace soma {
namespace kernels {

// Decoupled weight decay, then Adam (Loshchilov & Hutter, 2019, algorithm 2).
struct AdamWStep {
  float lr, beta1, beta2, eps, weight_decay;
  float grad_scale;                               // every gradient is multiplied by it first (clipping)
  float bias_correction1, bias_correction2_sqrt;  // 1 - beta1^t and sqrt(1 - beta2^t)
  int32_t cautious;                               // 1: where the update's sign is not the parameter's, no decay
};

// Muon's step with the orthogonal factor o.
struct MuonStep {
  float lr, scale, weight_decay;
  int32_t cautious;  // 1: decay only where o p >= 0
};

// X(result, name, (arguments))
#define SOMA_OPTIMIZER_KERNELS(X)                                                                           \
  /* p -= lr weight_decay p; m, v = Adam's moments of grad_scale g; p -= lr m^ / (sqrt(v^) + eps); g = 0 */ \
  X(void, adamw, (float* p, float* g, float* m, float* v, int64_t n, const AdamWStep* step))                \
  /* g *= scale; m = momentum m + (1 - momentum) g; g = (1 - momentum) g + momentum m; returns sum g^2 */   \
  X(double, muon_momentum, (float* g, float* m, int64_t n, float momentum, float scale))                    \
  /* p -= lr (scale o + weight_decay p), cautiously or not; o = 0 */                                        \
  X(void, muon, (float* p, float* o, int64_t n, const MuonStep* step))                                      \
  /* y = s x; y may be x */                                                                                 \
  X(void, scale_by, (float* y, const float* x, float s, int64_t n))                                         \
  /* y = linear x + square y */                                                                             \
  X(void, combine, (float* y, const float* x, float linear, float square, int64_t n))                       \
  /* y += rate (x - y); where rate is 1, y = x */                                                           \
  X(void, average, (float* y, const float* x, float rate, int64_t n))

}  // namespace kernels
}  // namespace soma
