// The activation that a product applies to its sums before it stores them: one type for kernels, ops and models.
#pragma once

#include <stdint.h>

namespace soma {

enum class Activation : int32_t { kNone, kRelu, kGeluTanh, kGeluErf };

}  // namespace soma
