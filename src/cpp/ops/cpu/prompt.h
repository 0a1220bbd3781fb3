// Products of the many rows of a prompt with the weights of a decoder, by the tiles of the matrix product.
#pragma once

#include "ops/cpu/gemm.h"
#include "ops/decode.h"

namespace soma {

constexpr int64_t kDecodePanel = 64;  // outputs of a packed panel

// The destination of outputs [begin, end) of y, and the terms that are added to them.
kernels::RowsProduct finish_of(const Matrix& y, const DecodeMatrix& w, const RowEpilogue& e, int64_t begin,
                               int64_t end);

// Whether float32 weights are packed for tiles: live weights of the model, on levels with tiles of fewer than twelve
// rows. Every row of tiles reads all weights again, and distant rows of weights share a few sets of each cache.
bool prompt_by_tiles(const Gemm& g, const DecodeMatrix& w);

// Rounds x to bfloat16 into `rows`, on all threads together: as pairs for `g`, or as floats.
GemmA prompt_pairs(const ParallelRegion& region, const Gemm& g, const Matrix& x, float* rows);
Matrix prompt_floats(const ParallelRegion& region, const Matrix& x, float* rows);

// y = x W with its epilogue. Tiles read the rows of x.
struct PromptProduct {
  const Gemm& g;
  const Matrix& y;
  const GemmA& x;
  const DecodeMatrix& w;
  const RowEpilogue& e;
};

// Computes outputs [begin, end) of y; a panel begins at begin. `panels`: the piece of PromptMemory of this thread.
void prompt_range(const PromptProduct& product, int64_t begin, int64_t end, float* panels);

}  // namespace soma
