// The kernels of the sse level. Everything but install_sse is in an anonymous namespace: the linker must never keep
// code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#if !defined(__SSE2__) && !defined(_M_X64)
#error "isa_sse.cpp needs -msse2: see cmake/isa.cmake"
#endif

#include <emmintrin.h>

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_sse.h"
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

void install_sse(Table* table) { install(table); }

}  // namespace kernels
}  // namespace soma
