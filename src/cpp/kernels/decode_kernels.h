// The kernels of generation: products of few rows with weights in a format of their own, attention to cached positions.
#pragma once

#include <stdint.h>

#include "kernels/activation.h"

namespace soma {
namespace kernels {

// y(m, n) = activation(scales * x(m, k) W(k, n) + bias + residual), sums in the order of k. y is no other operand.
// Pointers are to the first of the n columns, which is the first of a panel of 64; a narrower panel is padded. lds are
// in floats, strides in bytes: row_stride from k to k + 1, panel_stride from a panel to the next. float32: floats.
// int8: bytes. bfloat16: of each 32 outputs, dword i holds output i in its low half and 16 + i in its high half.
struct RowsProduct {
  float* y;
  int64_t ldy;
  const float* x;
  int64_t ldx;
  const char* w;
  int64_t row_stride, panel_stride;
  int64_t m, n, k;
  const float* scales;    // (n) or null: factors of the sums
  const float* bias;      // (n) or null
  const float* residual;  // (m, n) with ld_residual, or null
  int64_t ld_residual;
  Activation activation;
  int32_t fetch;  // 1: W comes from memory, so panels are prefetched
};

// Attention of one query to n cached positions of one head. Keys lie in blocks of 16 positions, K_j[i] =
// keys[(j/16*head_size + i)*16 + j%16]; V_j[i] = values[j*head_size + i]. In bfloat16 a block has 32 positions, and
// dword (j/32*head_size + i)*16 + j%16 holds position j in its low half and j + 16 in its high half, j%32 < 16. Dword
// j/2*head_size + i of the values holds the even position below the odd one.
struct CachedHead {
  float* out;
  const float *q, *keys, *values;
  int64_t n, head_size;
  float scale;
  float* scores;  // scratch, n rounded up to a block
};

// X(result, name, (arguments))
#define SOMA_DECODE_KERNELS(X)                                                                                         \
  /* y = activation(scales * x W + bias + residual), W in that format */                                               \
  X(void, product_float32, (const RowsProduct* p))                                                                     \
  X(void, product_bfloat16, (const RowsProduct* p))                                                                    \
  X(void, product_int8, (const RowsProduct* p))                                                                        \
  /* y = activation(scales * y + bias + residual) */                                                                   \
  X(void, finish_product, (const RowsProduct* p))                                                                      \
  /* y = x rounded to bfloat16, to nearest even */                                                                     \
  X(void, round_row_bfloat16, (float* y, const float* x, int64_t n))                                                   \
  /* panels of B, one after another, from a panel w of 64 outputs (k, 64) in that format: pairs, `units` deep, zero */ \
  /* from k on; int8 without its scales, so exactly */                                                                 \
  X(void, pair_bfloat16, (float* dst, int64_t cols, const char* w, int64_t k, int64_t units))                          \
  X(void, pair_int8, (float* dst, int64_t cols, const char* w, int64_t k, int64_t units))                              \
  /* y[r] = sum_p W[r*ld + p] x[p], r < rows: float32 output heads */                                                  \
  X(void, dot_rows, (float* y, const float* x, const float* w, int64_t ld, int64_t rows, int64_t k))                   \
  /* out(h) = sum_j softmax_j(scale q.K_j) V_j, j < n, h < head_size; K and V in that format */                        \
  X(void, attend_float32, (const CachedHead* head))                                                                    \
  X(void, attend_bfloat16, (const CachedHead* head))

}  // namespace kernels
}  // namespace soma
