// Products of a prompt's many rows with the weights that decoding reads, by the engine of the matrix product.
#pragma once

#include "ops/cpu/gemm.h"
#include "ops/decode.h"

namespace soma {

constexpr int64_t kDecodePanel = 64;  // outputs whose weights lie together

// y's outputs [begin, end), of which begin is the first of a panel; `panels` is this thread's piece of the memory.
void prompt_range(const Gemm& g, const Rows& y, const GemmA& x, const DecodeMatrix& w, const RowEpilogue& e,
                  int64_t begin, int64_t end, float* panels);

// The precision of such a product, and x for it, in `rows` where it has to be rounded: all threads together.
Precision prompt_precision(WeightFormat format);
GemmA prompt_rows(const Team& team, const Gemm& g, const Rows& x, float* rows);

}  // namespace soma
