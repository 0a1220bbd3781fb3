// The kernels of matrix products: packing operands, multiplying tiles. A unit of depth has 32 bits: a float, or (in
// kernels named bf16) a pair of bfloat16 of neighbouring k, the lower in the low half, rounded to nearest even. bf16
// kernels may treat a number below 2^-126 as zero.
#pragma once

#include <stdint.h>

namespace soma {
namespace kernels {

// The requirements of one precision's matrix product on its operands.
struct GemmShape {
  int32_t rows, cols;   // the largest tile; cols is the width of packed panels
  int32_t depth_step;   // depth is a multiple of this many units; A and B are zero beyond k
  int32_t depth_limit;  // of one tile: its rows of A stay in L1 while panels of B pass
  int32_t row_major;  // 1: A's units of a row are neighbours (a_depth is 1), and all `rows` rows of a tile can be read
  int32_t instruction;  // 1: the processor multiplies such units faster than floats
  // Null, or puts a packed panel of B into the order that tiles read, in place. An odd unit from `given` on, the last,
  // then adds nothing to any sum. `units` is even.
  void (*arrange)(float* panel, int64_t given, int64_t units);
};

// The epilogue of a tile of C. Pointers are to the tile's first column (bias) or element (residual).
struct TileStore {
  int32_t accumulate;     // 1: C += A B, 0: C = A B
  int32_t relu;           // 1: C = max(0, .) at the end
  const float* bias;      // (n) or null: added to every row
  const float* residual;  // (m, n) with ld_residual or null: added
  int64_t ld_residual;
};

// Some rows of C times all panels of columns.
struct RowOfTiles {
  float* c;
  const float *a, *b;
  int64_t ldc, a_row, panel;  // floats from a row of C, a row of A and a panel of B to the next
  int64_t k, m, n;            // units of depth; 1 <= m <= rows; any n
  // Floats from a unit of A to the next. Not beside a_row: GCC would load both at once and wait for two stores.
  int64_t a_depth;
  const TileStore* store;
};

// Two rows of src as one row of pairs.
struct Interleaving {
  float* dst;
  int64_t ld_dst;
  const float* src;
  int64_t ld;
  int64_t k, n;          // rows and columns of src
  int64_t units, width;  // rows and columns of dst
};

// X(result, name, (arguments))
#define SOMA_GEMM_KERNELS(X)                                                                                           \
  /* dst[j/cols*cols*k + u*cols + j%cols] = src[u*ld + j], j < n: panels of cols columns, missing columns zero */      \
  X(void, pack_b_copy, (float* dst, const float* src, int64_t ld, int64_t k, int64_t n))                               \
  /* dst[u*cols + j] = src[j*ld + u], a panel of cols columns; j < n <= cols, missing columns zero */                  \
  X(void, pack_b_transpose, (float* dst, const float* src, int64_t ld, int64_t k, int64_t n))                          \
  /* dst[u*cols + j] = pair(src[j*ld + 2u], src[j*ld + 2u+1]), likewise; zero from k on to 2 units */                  \
  X(void, pack_b_transpose_bf16,                                                                                       \
    (float* dst, int64_t cols, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                     \
  /* dst[u*cols + j] = src[j*ld + u], u < given; zero on to `units`, and for columns from n to cols */                 \
  X(void, pack_pairs_transpose,                                                                                        \
    (float* dst, int64_t cols, const float* src, int64_t ld, int64_t given, int64_t units, int64_t n))                 \
  /* dst[i/rows*rows*k + p*rows + i%rows] = src[p*ld + i], p < k, i < m: rows of a transposed A, tile by tile */       \
  X(void, pack_a_copy, (float* dst, const float* src, int64_t ld, int64_t k, int64_t m))                               \
  /* dst[r*ld_dst + u] = pair(src[r*ld + 2u], src[r*ld + 2u+1]), zero from k on to 2 units */                          \
  X(void, round_rows,                                                                                                  \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t rows, int64_t k, int64_t units))                \
  /* dst[u*ld_dst + j] = pair(src[2u*ld + j], src[(2u+1)*ld + j]), zero from k on and from n to width */               \
  X(void, interleave_rows, (const Interleaving* how))                                                                  \
  /* the same from rows of pairs, whose element j is half j % 2 of src[r*ld + j/2] */                                  \
  X(void, interleave_pairs, (const Interleaving* how))                                                                 \
  /* dst[i*ld_dst + u] = pair(src[2u*ld + i], src[(2u+1)*ld + i]), i < n, zero from k on to 2 units */                 \
  X(void, transpose_rows,                                                                                              \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                   \
  /* the same from rows of pairs */                                                                                    \
  X(void, transpose_pairs,                                                                                             \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                   \
  /* out[j] += sum_u (lower half, then upper half of x[u*ld + j]), j < n <= cols, x a panel before `arrange` */        \
  X(void, pair_sums, (float* out, const float* x, int64_t ld, int64_t units, int64_t n))                               \
  /* y = n elements of a row of pairs x */                                                                             \
  X(void, widen_row, (float* y, const float* x, int64_t n))                                                            \
  /* c[j*ld + i] = c[i*ld + j], first <= i < last, i < j < n: below the diagonal what stands above it */               \
  X(void, mirror, (float* c, int64_t ld, int64_t first, int64_t last, int64_t n))                                      \
  /* called before and after this thread's calls of gemm_rows_bf16; they do not nest */                                \
  X(void, enter_bf16, ())                                                                                              \
  X(void, leave_bf16, ())                                                                                              \
  /* C(m, n) = sum_p A[i*a_row + p*a_depth] B[p*cols + j], p < k units, stored as `store` says; B after `arrange` */   \
  X(void, gemm_rows_f32, (const RowOfTiles* tiles))                                                                    \
  X(void, gemm_rows_bf16, (const RowOfTiles* tiles))                                                                   \
  /* sums += a b in every lane, `rounds` times, in registers alone; in bf16 a and b are pairs. values(3): a, b and, */ \
  /* afterwards, the total of the sums. Returns the floating-point operations, two a multiply-add. */                  \
  X(int64_t, peak_fma, (float* values, int64_t rounds))                                                                \
  X(int64_t, peak_bf16, (float* values, int64_t rounds))

}  // namespace kernels
}  // namespace soma
