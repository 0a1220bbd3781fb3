// A row of a matrix for the kernel of dropout.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/random.h"
#include "kernels/kernels.h"
#include "ops/ops.h"

namespace soma {

// y = residual (null: 0) + x after dropout: the n columns from `col` on of row `row`.
inline kernels::DropoutRow dropout_row(const Dropout& d, int64_t row, int64_t col, int64_t n, float* y, const float* x,
                                       const float* residual = nullptr) {
  const uint64_t bits = mix_bits(d.key + static_cast<uint64_t>(d.first_row + row));
  return {.y = y,
          .x = x,
          .residual = residual,
          .counter = static_cast<uint32_t>(bits) + static_cast<uint32_t>(col),
          .key = static_cast<uint32_t>(bits >> 32),
          .threshold = static_cast<int32_t>(std::floor(std::ldexp(d.rate, 32)) - 0x1p31),
          .scale = static_cast<float>(1 / (1 - d.rate)),
          .n = n};
}

}  // namespace soma
