// What this machine can do at most, measured on the active instruction set and thread count: what a profile is held
// against.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace soma {

// Bytes per second of all threads together, streaming over `bytes` of memory again and again: small ones stay in a
// cache. read: every byte is read. update: two thirds of the traffic reads, a third writes what was read.
struct Bandwidth {
  int64_t bytes;
  double read, update;
};

struct Ceilings {
  double fma, bf16;                   // floating-point operations per second of all threads, in registers alone
  std::vector<Bandwidth> bandwidths;  // by rising size; the last is memory's
};

// `rounds` of the multiply-adds that products of this precision are made of, on one thread, in registers alone. Returns
// their floating-point operations; values(3) as peak_fma of gemm_kernels.h has it.
double multiply_add_registers(Precision precision, float* values, int64_t rounds);

// Takes about a second and 256 MB. Throws Interrupted.
Ceilings measure_ceilings();

}  // namespace soma
