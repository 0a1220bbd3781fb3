// The kernels of the neon level. Everything but install_neon is in an anonymous namespace: the linker must never keep
// code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#if !defined(__aarch64__) && !defined(_M_ARM64)
#error "isa_neon.cpp needs a target of aarch64: see cmake/isa.cmake"
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
#include "kernels/decode.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/install.inl.h"
}  // namespace

void install_neon(Table* table) { install(table); }

}  // namespace kernels
}  // namespace soma
