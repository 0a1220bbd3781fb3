// Rows for warps and blocks: columns of a lane, sums over lanes, rows in floats or in bfloat16 pairs.
#pragma once

#include <algorithm>
#include <limits>

#include "ops/cuda/numbers.h"
#include "ops/ops.h"

namespace soma::cuda {

constexpr unsigned kWarps = 8, kThreads = 32 * kWarps;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One warp a row.
inline dim3 grid_of_rows(int64_t rows) { return dim3(static_cast<unsigned>(ceil_div(rows, kWarps))); }
inline dim3 grid_of(int64_t threads) { return dim3(static_cast<unsigned>(ceil_div(threads, kThreads))); }

inline Drop drop_of(const Dropout& d) {
  if (!d) return {.key = {}, .threshold = std::numeric_limits<int32_t>::min(), .scale = 1.0f, .on = false};
  return {.key = d.key + static_cast<uint64_t>(d.first_row),
          .threshold = static_cast<int32_t>(std::floor(std::ldexp(d.rate, 32)) - 0x1p31),
          .scale = static_cast<float>(1 / (1 - d.rate)),
          .on = true};
}

__device__ inline int64_t row_of_warp() { return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; }
__device__ inline int64_t index_of_thread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// Calls f(j, both) for the columns j and, if both, j + 1 of this thread: `threads` threads share a row of c columns.
template <typename F>
__device__ inline void each_two(int64_t c, unsigned thread, unsigned threads, F f) {
  for (int64_t j = 2 * thread; j < c; j += 2 * threads) f(j, j + 1 < c);
}

// Two neighbours in one access where they are aligned.
__device__ inline float2 read_two(const float* p, bool both) {
  if (both && reinterpret_cast<uintptr_t>(p) % sizeof(float2) == 0) return load_2(p);
  return {p[0], both ? p[1] : 0.0f};
}
__device__ inline void write_two(float* p, float2 x, bool both) {
  if (both && reinterpret_cast<uintptr_t>(p) % sizeof(float2) == 0) {
    store_2(p, x);
  } else {
    p[0] = x.x;
    if (both) p[1] = x.y;
  }
}

// A matrix that a kernel writes by rows: floats, or pairs with zeros behind the last column.
struct Rows {
  float* data = nullptr;
  int64_t cols = 0, ld = 0;
  bool pairs = false;

  Rows() = default;
  Rows(const Matrix& m) : data(m.data), cols(m.cols), ld(m.ld), pairs(m.pairs) {}
  __device__ float* row(int64_t r) const { return data + r * ld; }
  __device__ void write(int64_t r, int64_t j, float2 x, bool both) const {
    if (pairs) {
      reinterpret_cast<uint32_t*>(row(r))[j / 2] = pair_of(x.x, both ? x.y : 0.0f);
    } else {
      write_two(row(r) + j, x, both);
    }
  }
  // The zeros behind a row in pairs.
  __device__ void finish(int64_t r, unsigned thread, unsigned threads) const {
    if (!pairs) return;
    for (int64_t u = (cols + 1) / 2 + thread; u < (cols + 31) / 32 * 16; u += threads) row(r)[u] = 0.0f;
  }
};

__device__ inline float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// The sum over the columns of a warp's row: term(j, both) is that of two of them.
template <typename F>
__device__ inline float row_sum(int64_t c, F term) {
  float sum = 0.0f;
  each_two(c, threadIdx.x % 32, 32, [&](int64_t j, bool both) { sum += term(j, both); });
  return warp_sum(sum);
}

// A head of d numbers by a warp: through RMSNorm where it has a gain, then turned, see Rotation. write(i, x) may write
// where x was, since each lane writes what it alone has read.
template <typename F>
__device__ inline void turn_head(const float* x, const float* gain, const float* cosines, int64_t d, float eps,
                                 F write) {
  const int half = static_cast<int>(d / 2), lane = static_cast<int>(threadIdx.x % 32);
  float rstd = 1.0f;
  if (gain != nullptr) {
    float squares = 0.0f;
    for (int i = lane; i < half; i += 32) squares += x[i] * x[i] + x[half + i] * x[half + i];
    rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(d) + eps);
  }
  const float* const sines = cosines + half;
  for (int i = lane; i < half; i += 32) {
    float a = x[i], b = x[half + i];
    if (gain != nullptr) a = a * rstd * gain[i], b = b * rstd * gain[half + i];
    write(i, a * cosines[i] - b * sines[i]);
    write(half + i, b * cosines[i] + a * sines[i]);
  }
}

}  // namespace soma::cuda
