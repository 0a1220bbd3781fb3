// The kernels of the scalar level. Everything but install_scalar lives in an anonymous namespace: code compiled with
// this file's flags must never be the copy that the linker keeps for another file.
#include "kernels/kernels.h"

#include "kernels/compiler.h"

namespace soma {
namespace kernels {
namespace {
#include "kernels/vec_scalar.h"
#include "kernels/tails.inl.h"
#include "kernels/rowwise.inl.h"
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
