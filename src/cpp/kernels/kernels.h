// The kernels that every instruction-set level offers. Each family is one list: declaration, table and contract. The
// equation of a kernel is above its line; `=` overwrites, `+=` accumulates. A kernel uses one thread, no allocation, no
// STL, no exceptions. Matrices are row-major; ld is the distance between rows, in floats.
// Sums of gemm_rows_* and product_* run in the order of k, so results do not depend on the tiles. dot, dot_rows, attend
// and the row sums keep several partial sums, in an order that does not depend on the threads.
#pragma once

#include "kernels/attention_kernels.h"
#include "kernels/decode_kernels.h"
#include "kernels/gemm_kernels.h"
#include "kernels/optimizer_kernels.h"
#include "kernels/rowwise_kernels.h"

namespace soma {
namespace kernels {

#define SOMA_KERNELS(X)     \
  SOMA_GEMM_KERNELS(X)      \
  SOMA_ROWWISE_KERNELS(X)   \
  SOMA_OPTIMIZER_KERNELS(X) \
  SOMA_ATTENTION_KERNELS(X) \
  SOMA_DECODE_KERNELS(X)

struct Table {
  GemmShape gemm_f32, gemm_bf16;
#define SOMA_FIELD(result, name, arguments) result(*name) arguments;
  SOMA_KERNELS(SOMA_FIELD)
#undef SOMA_FIELD
};

// One per level, in isa_<level>.cpp: overwrites the slots for which the level has a faster kernel.
void install_scalar(Table* table);
void install_sse(Table* table);
void install_avx2(Table* table);
void install_avx512(Table* table);
void install_avx512_bf16(Table* table);
void install_amx(Table* table);
void install_neon(Table* table);
void install_neon_bf16(Table* table);

}  // namespace kernels
}  // namespace soma
