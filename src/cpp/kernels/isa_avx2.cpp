// The kernels of the avx2 level. Everything but install_avx2 is in an anonymous namespace: the linker must never keep
// code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#if !defined(__AVX2__) || (!defined(__FMA__) && !defined(_MSC_VER))
#error "isa_avx2.cpp needs -mavx2 -mfma: see cmake/isa.cmake"
#endif

#include <immintrin.h>

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_avx2.h"
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

void install_avx2(Table* table) { install(table); }

}  // namespace kernels
}  // namespace soma
