// The kernels of the avx512 level. Everything but install_avx512 is in an anonymous namespace: the linker must never
// keep code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "isa_avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl: see cmake/isa.cmake"
#endif

#include <immintrin.h>

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_avx512.h"
#include "kernels/transpose_x86.h"
#include "kernels/tails.inl.h"
#include "kernels/rowwise.inl.h"
#include "kernels/norms.inl.h"
#include "kernels/optimizer.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/epilogue.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/decode.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/install.inl.h"
}  // namespace

void install_avx512(Table* table) { install(table); }

}  // namespace kernels
}  // namespace soma
