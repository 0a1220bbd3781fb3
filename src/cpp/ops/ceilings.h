// The highest rates of this machine, measured on the active instruction set and thread count. A profile compares its
// operations with them.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/device.h"

namespace soma {

// Bytes per second of all threads together, streaming over `bytes` of memory repeatedly. A small memory stays in a
// cache. read: every byte is read. update: two thirds of the traffic are reads, a third writes the same bytes back.
struct Bandwidth {
  int64_t bytes;
  double read, update;
};

struct Ceilings {
  double fma, bf16;                   // floating-point operations per second of all threads, in registers alone
  std::vector<Bandwidth> bandwidths;  // by rising size; the last is that of main memory
};

// Runs `rounds` of the multiply-adds of products in this precision, on one thread, in registers alone. Returns the
// number of floating-point operations. values(3): see peak_fma in gemm_kernels.h.
double multiply_add_registers(Precision precision, float* values, int64_t rounds);

// Of the processor. Takes about a second and 256 MB. Throws Interrupted.
Ceilings measure_ceilings();
// On a GPU, products and copies are those of its ops: fma and bf16 are of products in both precisions, read and update
// of copies within its memory. Takes at most 800 MB there.
Ceilings measure_ceilings(Device& device);

}  // namespace soma
