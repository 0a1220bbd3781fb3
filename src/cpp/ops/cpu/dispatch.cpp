// Builds one kernel table for each ISA level that this machine can run: the portable kernels, then the kernels that
// each higher level replaces.
#include "base/fork.h"
#include "base/isa.h"
#include "ops/cpu/cpu_ops.h"

namespace soma {
namespace {

void install(Isa isa, kernels::Table* table) {
#ifdef SOMA_HAVE_SSE
  if (isa == Isa::kSse) kernels::install_sse(table);
#endif
#ifdef SOMA_HAVE_AVX2
  if (isa == Isa::kAvx2) kernels::install_avx2(table);
#endif
#ifdef SOMA_HAVE_AVX512
  if (isa == Isa::kAvx512) kernels::install_avx512(table);
#endif
#ifdef SOMA_HAVE_AVX512_BF16
  if (isa == Isa::kAvx512Bf16) kernels::install_avx512_bf16(table);
#endif
#ifdef SOMA_HAVE_AMX
  if (isa == Isa::kAmx) kernels::install_amx(table);
#endif
#ifdef SOMA_HAVE_NEON
  if (isa == Isa::kNeon) kernels::install_neon(table);
#endif
#ifdef SOMA_HAVE_NEON_BF16
  if (isa == Isa::kNeonBf16) kernels::install_neon_bf16(table);
#endif
  (void)isa;  // a build with the scalar level alone
  (void)table;
}

struct Tables {
  kernels::Table level[kIsaCount];

  Tables() {
    kernels::Table table{};
    kernels::install_scalar(&table);
    // An installer is compiled with the flags of its level. Calling install_avx2 on a CPU without AVX is an illegal
    // instruction.
    for (const Isa isa : available_isas()) {
      install(isa, &table);
      level[static_cast<int>(isa)] = table;
    }
  }
};

}  // namespace

const kernels::Table& active_kernels() {
  static MadeOnce<Tables> tables;
  return tables.get([] { return Tables(); }).level[static_cast<int>(active_isa())];
}

void CpuOps::reserve_scratch(int64_t slots, int64_t floats) {
  scratch_stride_ = Arena::padded(floats);
  scratch_.reserve(scratch_stride_ * slots);
}

}  // namespace soma
