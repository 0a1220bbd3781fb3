// Generation on a GPU: launches in `stream` for the operations of ops/decode.h. Packed weights lie output by output:
// WeightLayout::kPanels are rows of row_floats(format, inner) floats here, one an output. bfloat16 rows are pairs, as
// the products of training read them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "ops/decode.h"

namespace soma::cuda {

// Rows whose ids or places are arguments of one launch: these have 4 KB.
constexpr int64_t kRowsOfLaunch = 64;
// Calls f(first, count) for the rows of each launch.
template <typename F>
void each_launch(int64_t rows, F f) {
  for (int64_t first = 0; first < rows; first += kRowsOfLaunch) f(first, std::min(kRowsOfLaunch, rows - first));
}

int64_t row_floats(WeightFormat format, int64_t inner);
// The bits of pack_weights of the processor, in rows.
void pack(float* packed, float* scales, WeightFormat format, ConstMatrix w, cudaStream_t stream);
// int8 rows as rows of pairs, exactly, without their scales
void widen(Matrix pairs, const DecodeMatrix& w, cudaStream_t stream);

// out[r] = W[:, ids[r]] + wpe[positions[r]]; arrays of the host, which may go when it returns
void embed(Matrix out, const DecodeMatrix& table, const float* wpe, const int32_t* ids, const int64_t* positions,
           cudaStream_t stream);

// y = activation(scales * x W + bias + residual). 32 partial sums of every 128 inner numbers, four neighbours each, are
// added as a tree. So a row has the same bits alone and among others, and with live weights and a float32 copy.
void linear(Matrix y, ConstMatrix x, const DecodeMatrix& w, const RowEpilogue& e, cudaStream_t stream);
// y = activation(scales * y + bias + residual)
void finish_linear(Matrix y, const DecodeMatrix& w, const RowEpilogue& e, cudaStream_t stream);

// As decode_attention. Parts of 256 positions are joined in order; scratch is for their results.
int64_t attention_floats(int64_t rows, const CacheRow* cache, const HeadShape& shape);
void attention(Matrix out, Matrix qkv, const CacheRow* cache, const HeadShape& shape, const Rotation* rotation,
               float* scratch, cudaStream_t stream);

}  // namespace soma::cuda
