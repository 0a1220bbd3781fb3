// The kernels of the scalar level. Everything but install_scalar is in an anonymous namespace: the linker must never
// keep code with this file's compiler flags for another file.
#include "kernels/kernels.h"

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_scalar.h"
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

void install_scalar(Table* table) { install(table); }

}  // namespace kernels
}  // namespace soma
