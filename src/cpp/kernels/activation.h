// The activation that a product applies to its sums before it stores them: one type for kernels, ops and models.
#pragma once

#include <stdint.h>

namespace soma {

// kSilu is the activation of SwiGLU. It needs two results of a product, so no product applies it alone.
enum class Activation : int32_t { kNone, kRelu, kGeluTanh, kGeluErf, kSilu };

}  // namespace soma
