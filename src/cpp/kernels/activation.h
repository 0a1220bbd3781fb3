// What the sum of a product goes through before it is stored: one type for kernels, ops and models.
#pragma once

#include <stdint.h>

namespace soma {

enum class Activation : int32_t { kNone, kRelu, kGelu };

}  // namespace soma
