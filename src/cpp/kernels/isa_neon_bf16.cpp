// The kernels of the neon_bf16 level. Everything but install_neon_bf16 is in an anonymous namespace: the linker must
// never keep code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#if !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#error "isa_neon_bf16.cpp needs -march=armv8.2-a+bf16: see cmake/isa.cmake"
#endif

#include <arm_neon.h>

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_neon.h"
#include "kernels/tails.inl.h"
#include "kernels/rowwise.inl.h"
#include "kernels/norms.inl.h"
#include "kernels/optimizer.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/epilogue.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/gemm_squares.inl.h"
#include "kernels/decode.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/install.inl.h"
}  // namespace

void install_neon_bf16(Table* table) {
  install(table);
  table->gemm_bf16 = {kSquareRows, kSquareCols, 2, kSquareDepth, 1, 1, arrange_panel};
}

}  // namespace kernels
}  // namespace soma
