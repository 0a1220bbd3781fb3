// Builds one kernel table per ISA level: the portable kernels first, then whatever each level overwrites on the way up.
#include "base/isa.h"
#include "ops/cpu/cpu_ops.h"

namespace soma {
namespace {

struct Tables {
  kernels::Table level[4];

  Tables() {
    kernels::Table table{};
    kernels::install_scalar(&table);
    for (auto& t : level) t = table;
#ifdef SOMA_HAVE_SSE
    kernels::install_sse(&table);
    level[static_cast<int>(Isa::kSse)] = table;
#endif
#ifdef SOMA_HAVE_AVX2
    kernels::install_avx2(&table);
    level[static_cast<int>(Isa::kAvx2)] = table;
#endif
#ifdef SOMA_HAVE_AVX512
    kernels::install_avx512(&table);
    level[static_cast<int>(Isa::kAvx512)] = table;
#endif
  }
};

}  // namespace

const kernels::Table& active_kernels() {
  static const Tables tables;
  return tables.level[static_cast<int>(active_isa())];
}

std::unique_ptr<Ops> make_cpu_ops() { return std::make_unique<CpuOps>(); }

void CpuOps::reserve_scratch(int64_t slots, int64_t floats) {
  scratch_stride_ = Arena::padded(floats);
  scratch_.reserve(scratch_stride_ * slots);
}

}  // namespace soma
