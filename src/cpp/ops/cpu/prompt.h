// Products of a prompt's many rows with the weights of a decoder, by the engine of the matrix product.
#pragma once

#include "ops/cpu/gemm.h"
#include "ops/decode.h"

namespace soma {

constexpr int64_t kDecodePanel = 64;  // outputs whose weights lie together

// What happens to the sums of y's outputs [begin, end): where they go, and what is added to them there.
kernels::RowsProduct finish_of(const Matrix& y, const DecodeMatrix& w, const RowEpilogue& e, int64_t begin,
                               int64_t end);

// Whether float32 weights are packed for tiles: those that lie where the model has them, on levels whose tiles have
// fewer than twelve rows. Every row of tiles reads all weights again, and rows of weights that are far apart share a
// few sets of each cache.
bool prompt_by_tiles(const Gemm& g, const DecodeMatrix& w);

// x in `rows` as pairs of bfloat16 for `g`, or as floats so rounded: all threads together.
GemmA prompt_pairs(const ParallelRegion& region, const Gemm& g, const Matrix& x, float* rows);
Matrix prompt_floats(const ParallelRegion& region, const Matrix& x, float* rows);

// y's outputs [begin, end), of which begin is the first of a panel; `panels` is this thread's piece of the memory.
void prompt_range(const Gemm& g, const Matrix& y, const GemmA& x, const DecodeMatrix& w, const RowEpilogue& e,
                  int64_t begin, int64_t end, float* panels);

}  // namespace soma
