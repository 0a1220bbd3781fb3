// The kinds of norms: one type for kernels, ops and models.
#pragma once

#include <stdint.h>

namespace soma {

enum class NormKind : int32_t {
  kNone,
  kLayerNorm,  // (x - mean) / sqrt(var + eps) gamma + beta
  kRmsNorm,    // x / sqrt(mean(x^2) + eps) gamma
};

}  // namespace soma
