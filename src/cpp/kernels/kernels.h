// The leaves of the core: what every instruction-set level offers, as one list. One thread, no allocation, no STL, no
// exceptions. `=` in an equation overwrites, `+=` accumulates. Matrices are row-major; ld is the distance between rows,
// in floats. Sums of gemm_rows_* and product_* run in the order of k, so a result never depends on how the work was
// cut into tiles; dot, dot_rows, attend and the row sums keep several partial sums, the same for any thread count.
#pragma once

#include <stdint.h>

#include "kernels/activation.h"

namespace soma {
namespace kernels {

// What happens to a tile of C on its way to memory. Pointers are to the tile's first column (bias) or element
// (residual).
struct TileStore {
  int32_t accumulate;     // 1: C += A B, 0: C = A B
  int32_t relu;           // 1: C = max(0, .) at the end
  const float* bias;      // (n) or null: added to every row
  const float* residual;  // (m, n) with ld_residual or null: added
  int64_t ld_residual;
};

// Decoupled weight decay: p -= lr weight_decay p; then Adam (Loshchilov & Hutter, 2019, algorithm 2).
struct AdamWStep {
  float lr, beta1, beta2, eps, weight_decay;
  float grad_scale;                               // every gradient is multiplied by it first (clipping)
  float bias_correction1, bias_correction2_sqrt;  // 1 - beta1^t and sqrt(1 - beta2^t)
};

// y(m, n) = activation(scales * x(m, k) W(k, n) + bias + residual). Pointers are to the first of the n columns, which
// is the first of a panel of 64; lds in floats, strides in bytes: row_stride from k to k + 1, panel_stride from a panel
// to the next. float32: plain floats. bfloat16: of each 32 outputs dword i holds output i in its low half, 16 + i in
// its high one. int8: bytes. Narrow panels are padded to 64 outputs. Sums run in the order of k. y is no other operand.
struct RowsProduct {
  float* y;
  int64_t ldy;
  const float* x;
  int64_t ldx;
  const char* w;
  int64_t row_stride, panel_stride;
  int64_t m, n, k;
  const float* scales;    // (n) or null: what the sum is multiplied by
  const float* bias;      // (n) or null
  const float* residual;  // (m, n) with ld_residual, or null
  int64_t ld_residual;
  Activation activation;
  int32_t fetch;  // 1: W comes from memory, and panels are asked for ahead of their use
};

// The tile of queries in backward attention: m rows, of which row r sees the first n + r keys. Rows and units are
// defined up to `width` columns; up to a multiple of 32 they can be read and written.
struct AttentionTile {
  float *p, *dp;            // the scores and the gradients of the probabilities
  int64_t ld, m, n, width;  // ld of every matrix here
  float scale;
  const float* lse;  // (m)
  // attention_gradient_pairs alone: ds as rows of pairs; p and ds as `units` of two rows, as interleave_rows makes
  // them, zero beyond m.
  float *ds_rows, *p_units, *ds_units;
  int64_t units;
};

// What the matrix product of one precision asks of its operands.
struct GemmShape {
  int32_t rows, cols;   // the largest tile; cols is the width of packed panels
  int32_t depth_step;   // depth is a multiple of this many units; what lies beyond k is zero in A and in B
  int32_t depth_limit;  // of one tile: its rows of A stay in L1 while panels of B pass
  int32_t row_major;  // 1: A's units of a row are neighbours (a_depth is 1), and all `rows` rows of a tile can be read
  int32_t instruction;  // 1: there is one that multiplies such units, faster than two floats
};

// X(return type, name, (arguments)); the equation stands above each line.
//
// Depth of a matrix product is counted in units of 32 bits: a float, or (kernels named bf16) a pair of bfloat16 of
//   neighbouring k, the lower in the low half, rounded to nearest even. A number below 2^-126 may count as zero there.
// pack_b_*: B as panels of cols columns, dst[u*cols + j], missing columns zero. copy: from src[u*ld + j];
//   transpose: from src[j*ld + u]; j < n <= cols. transpose_bf16: pairs from src[j*ld + 2u], src[j*ld + 2u+1], zero
//   from k on to 2 units.
// pack_a_copy: rows i < m of a transposed A, tile by tile: dst[i/rows*rows*k + p*rows + i%rows] = src[p*ld + i], p < k.
// round_rows: dst[r*ld_dst + u] = pair(src[r*ld + 2u], src[r*ld + 2u+1]), zero from k on to 2 units.
// interleave_rows: dst[u*ld_dst + j] = pair(src[2u*ld + j], src[(2u+1)*ld + j]), zero from k on and from n to width.
// transpose_rows: dst[i*ld_dst + u] = pair(src[2u*ld + i], src[(2u+1)*ld + i]), i < n, zero from k on to 2 units.
// interleave_pairs, transpose_pairs: the same from rows of pairs, whose element j is half j % 2 of src[r*ld + j/2].
// pack_pairs_transpose: dst[u*cols + j] = src[j*ld + u], u < given; zero on to `units`, and for columns from n to cols.
// pair_sums: out[j] += sum_u (lower half, then upper half of x[u*ld + j]), j < n <= cols, x a panel.
// widen_row: y = n elements of a row of pairs x.
// enter_bf16, leave_bf16: stand around this thread's calls of gemm_rows_bf16; they do not nest.
// gemm_rows_f32, gemm_rows_bf16: C(m, n) = sum_p A[i*a_row + p*a_depth] B[p*cols + j], p < k units, stored as
//   `store` says; 1 <= m <= rows, any n: the panels of B are `panel` floats apart.
// product_*: few rows times weights of that format, see RowsProduct. finish_product: y = activation(scales * y + bias +
//   residual) by its fields.
// round_row_bfloat16: y = x rounded to bfloat16, to nearest even.
// pair_*: a panel of 64 outputs of weights (k, 64) of that format, w, as 64 / cols panels of B behind each other, pairs
//   of bfloat16, `units` deep, zero from k on; int8 without its scales, which loses nothing.
// dot_rows: y[r] = sum_p W[r*ld + p] x[p], r < rows.              (float32 output heads)
// norm_forward: y = (x - mean) rstd gamma + beta, rstd = 1/sqrt(var + eps) over each row of c; gamma, beta may be null
//   (1, 0).
// norm_backward: dx = residual + rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma; xhat = (x - mean) rstd, or x
//   itself where mean is null; residual may be null (0). y = xhat gamma + beta again, or null; where it is
//   not, neither are gamma and beta.
// norm_grad: dgamma[j] += sum_r dy xhat, dbeta[j] += sum_r dy over `rows` rows, columns j < n (pointers are to the
//   first).
// column_sum: out[j] += sum_r x[r*ld + j], j < n.
// gelu_forward: y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). gelu_backward: y = gelu(x), dx = dy gelu'(x); dx may
//   be dy.
// relu_backward: dx = y > 0 ? dy : 0; dx may be dy.
// add: y = a + b. scale_add: y += s x.
// attention_weights: row r of m, of its first n + r columns: max = max scale x, sum = sum exp(scale x - max), and
//   those exponentials, zeros from there to width, in place or (pairs not null) as rows of pairs. Columns as in
//   AttentionTile.
// scale_rows: y[r] *= 1 / divisors[r], n columns of each.
// attention_gradient: p = exp(scale p - lse), dp = ds = scale p (dp - sum p dp / sum p), zero where a row does not see.
//   attention_gradient_pairs: the same p; ds and p as pairs, as AttentionTile says.
// max_sum_exp: *max = max x, *sum = sum exp(x - max).
// cross_entropy_row: x = grad_scale (softmax(x) - onehot(target)) in place; *max, *sum as above.
// attend: out(h) = sum_j softmax_j(scale q.K_j) V_j over n cached positions of one head. Keys lie in blocks of 16
//   positions, K_j[i] = keys[(j/16*h + i)*16 + j%16]; V_j[i] = values[j*h + i]. scores: scratch, n rounded up to 16.
// dot: sum a b. sum_squares: sum x^2, in double.
// adamw: one pass over p, g, m, v; g = 0 afterwards.
// peak_fma, peak_bf16: `rounds` of the multiply-adds that products are made of, in registers alone: sums += a b in
//   every lane; in bf16 a and b are pairs. values(3) is a, b and, afterwards, what all sums add up to. Returns the
//   floating-point operations, two a multiply-add.
#define SOMA_KERNELS(X)                                                                                               \
  X(void, pack_b_copy, (float* dst, const float* src, int64_t ld, int64_t k, int64_t n))                              \
  X(void, pack_b_transpose, (float* dst, const float* src, int64_t ld, int64_t k, int64_t n))                         \
  X(void, pack_b_transpose_bf16,                                                                                      \
    (float* dst, int64_t cols, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                    \
  X(void, pack_a_copy, (float* dst, const float* src, int64_t ld, int64_t k, int64_t m))                              \
  X(void, round_rows,                                                                                                 \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t rows, int64_t k, int64_t units))               \
  X(void, interleave_rows,                                                                                            \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units, int64_t width))   \
  X(void, transpose_rows,                                                                                             \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                  \
  X(void, interleave_pairs,                                                                                           \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units, int64_t width))   \
  X(void, transpose_pairs,                                                                                            \
    (float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units))                  \
  X(void, pack_pairs_transpose,                                                                                       \
    (float* dst, int64_t cols, const float* src, int64_t ld, int64_t given, int64_t units, int64_t n))                \
  X(void, pair_sums, (float* out, const float* x, int64_t ld, int64_t units, int64_t n))                              \
  X(void, widen_row, (float* y, const float* x, int64_t n))                                                           \
  X(void, enter_bf16, ())                                                                                             \
  X(void, leave_bf16, ())                                                                                             \
  X(void, gemm_rows_f32,                                                                                              \
    (float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t panel, int64_t k, \
     int64_t m, int64_t n, const TileStore* store))                                                                   \
  X(void, gemm_rows_bf16,                                                                                             \
    (float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t panel, int64_t k, \
     int64_t m, int64_t n, const TileStore* store))                                                                   \
  X(void, product_float32, (const RowsProduct* p))                                                                    \
  X(void, product_bfloat16, (const RowsProduct* p))                                                                   \
  X(void, product_int8, (const RowsProduct* p))                                                                       \
  X(void, finish_product, (const RowsProduct* p))                                                                     \
  X(void, round_row_bfloat16, (float* y, const float* x, int64_t n))                                                  \
  X(void, pair_bfloat16, (float* dst, int64_t cols, const char* w, int64_t k, int64_t units))                         \
  X(void, pair_int8, (float* dst, int64_t cols, const char* w, int64_t k, int64_t units))                             \
  X(void, dot_rows, (float* y, const float* x, const float* w, int64_t ld, int64_t rows, int64_t k))                  \
  X(void, norm_forward,                                                                                               \
    (float* y, float* mean, float* rstd, const float* x, const float* gamma, const float* beta, int64_t rows,         \
     int64_t c, float eps))                                                                                           \
  X(void, norm_backward,                                                                                              \
    (float* dx, float* y, const float* dy, const float* x, const float* mean, const float* rstd, const float* gamma,  \
     const float* beta, const float* residual, int64_t rows, int64_t c))                                              \
  X(void, norm_grad,                                                                                                  \
    (float* dgamma, float* dbeta, const float* dy, const float* x, const float* mean, const float* rstd, int64_t ld,  \
     int64_t rows, int64_t n))                                                                                        \
  X(void, column_sum, (float* out, const float* x, int64_t ld, int64_t rows, int64_t n))                              \
  X(void, gelu_forward, (float* y, const float* x, int64_t n))                                                        \
  X(void, gelu_backward, (float* dx, float* y, const float* dy, const float* x, int64_t n))                           \
  X(void, relu_backward, (float* dx, const float* dy, const float* y, int64_t n))                                     \
  X(void, add, (float* y, const float* a, const float* b, int64_t n))                                                 \
  X(void, scale_add, (float* y, const float* x, float s, int64_t n))                                                  \
  X(void, attention_weights,                                                                                          \
    (float* pairs, float* x, int64_t ld, int64_t m, int64_t n, int64_t width, float scale, float* max, float* sum))   \
  X(void, scale_rows, (float* y, int64_t ld, int64_t m, int64_t n, const float* divisors))                            \
  X(void, attention_gradient, (const AttentionTile* tile))                                                            \
  X(void, attention_gradient_pairs, (const AttentionTile* tile))                                                      \
  X(void, max_sum_exp, (const float* x, int64_t n, float* max, float* sum))                                           \
  X(void, cross_entropy_row, (float* x, int64_t n, int64_t target, float grad_scale, float* max, float* sum))         \
  X(void, attend,                                                                                                     \
    (float* out, const float* q, const float* keys, const float* values, int64_t n, int64_t head_size, float scale,   \
     float* scores))                                                                                                  \
  X(float, dot, (const float* a, const float* b, int64_t n))                                                          \
  X(double, sum_squares, (const float* x, int64_t n))                                                                 \
  X(void, adamw, (float* p, float* g, float* m, float* v, int64_t n, const AdamWStep* step))                          \
  X(int64_t, peak_fma, (float* values, int64_t rounds))                                                               \
  X(int64_t, peak_bf16, (float* values, int64_t rounds))

struct Table {
  GemmShape gemm_f32, gemm_bf16;
#define SOMA_FIELD(result, name, arguments) result(*name) arguments;
  SOMA_KERNELS(SOMA_FIELD)
#undef SOMA_FIELD
};

// One per level, in isa_<level>.cpp: overwrites the slots that the level does better.
void install_scalar(Table* table);
void install_sse(Table* table);
void install_avx2(Table* table);
void install_avx512(Table* table);
void install_avx512_bf16(Table* table);
void install_amx(Table* table);

}  // namespace kernels
}  // namespace soma
