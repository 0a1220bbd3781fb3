// Counter-based random numbers. Value i of a stream depends on (seed, stream, i) alone. So any thread may compute any
// part, and every instruction set gives the same bits.
#pragma once

#include <cstdint>

namespace soma {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
struct Philox {
  uint64_t seed;
  uint64_t stream;

  // 32-bit words 4*block .. 4*block+3 of the stream.
  void words(uint64_t block, uint32_t out[4]) const;
};

// A permutation of 64 bits in which each bit of x changes each bit with even odds: the finalizer of SplitMix64 (Steele
// et al., "Fast splittable pseudorandom number generators", OOPSLA 2014).
inline uint64_t mix_bits(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// The normal quantile (Wichura, algorithm AS 241, 1988). It uses +, -, *, / and sqrt only, which IEEE 754 rounds alike
// everywhere. libm's log and cos differ in the last bit between processors.
double normal_quantile(double p);

// out[i] = element i of the stream (seed, stream): normal with mean 0 and standard deviation `stddev`.
void fill_normal(float* out, int64_t count, float stddev, uint64_t seed, uint64_t stream);

}  // namespace soma
