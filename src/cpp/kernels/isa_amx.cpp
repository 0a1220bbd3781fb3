// The kernels of the amx level: the bfloat16 matrix product, and the avx512_bf16 level for the rest. Everything but
// install_amx is in an anonymous namespace: the linker must never keep code with this file's compiler flags for another
// file.
#include "kernels/kernels.h"

#if !defined(SOMA_EMULATE_AMX) && \
    (!defined(__AVX512F__) || !defined(__AVX512BF16__) || !defined(__AMX_TILE__) || !defined(__AMX_BF16__))
#error "isa_amx.cpp needs the flags of isa_avx512_bf16.cpp and -mamx-tile -mamx-bf16: see cmake/isa.cmake"
#endif

#include <immintrin.h>
#ifdef SOMA_EMULATE_AMX
#include <unistd.h>
#endif

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#ifdef __AVX512F__
#include "kernels/vec_avx512.h"
#else
#include "kernels/vec_avx2.h"
#endif
#include "kernels/tails.inl.h"
#include "kernels/epilogue.inl.h"
#include "kernels/amx_tiles.h"
#include "kernels/gemm_amx.inl.h"
}  // namespace

void install_amx(Table* table) {
  table->gemm_bf16 = {kAmxRows, kAmxCols, kAmxUnits, kAmxDepth, 1, 1, nullptr};
  table->gemm_rows_bf16 = gemm_rows_bf16;
  table->enter_bf16 = enter_bf16;
  table->leave_bf16 = leave_bf16;
  table->peak_bf16 = peak_bf16;
}

}  // namespace kernels
}  // namespace soma
