// Functions of single numbers, by the polynomials of src/cpp/kernels: with one order of operations and explicit fmaf,
// so that a GPU, the emulation and a processor with FMA give the same bits.
#pragma once

#include <cmath>

#include "ops/cuda/language.h"

namespace soma::cuda {

// The larger or smaller, the second one where either is a NaN.
__device__ inline float larger(float a, float b) { return a > b ? a : b; }
__device__ inline float smaller(float a, float b) { return a < b ? a : b; }

// 2^n e^r for r in [-ln2/2, ln2/2] and shifted = n + 1.5 * 2^23.
__device__ inline float exp_reduced(float shifted, float r) {
  const float r2 = r * r;
  const float low = fmaf(r, 1.666651964e-1f, 4.999999404e-1f);
  const float middle = fmaf(r, 8.368751965e-3f, 4.166839272e-2f);
  const float high = fmaf(r2, 1.381449634e-3f, middle);
  const float p = fmaf(fmaf(high, r2, low), r2, r) + 1.0f;
  return p * __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
}

// e^x for x in [-87.5, 88].
__device__ inline float exp_within(float x) {
  const float shifted = fmaf(x, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  return exp_reduced(shifted, fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x)));
}

// x, or 0 below 2^-126: steps of the processor flush such numbers, since moments of dead units become denormal.
__device__ inline float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }

// e^x, saturated outside [-87, 88]; a NaN stays one.
__device__ inline float exp_of(float x) { return exp_within(smaller(88.0f, larger(-87.0f, x))); }

// ln x for x >= 0; -88 for 0. A NaN and infinity stay.
__device__ inline float log_of(float x) {
  if (!(x <= 3.402823466e38f)) return x;
  const int32_t bits = static_cast<int32_t>(__float_as_uint(x)), exponent = (bits - 0x3f3504f3) >> 23;
  const float n = static_cast<float>(exponent);
  const float m = __uint_as_float(static_cast<uint32_t>(bits - exponent * (1 << 23)));
  const float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  float p = fmaf(s2, 2.0f / 9, 2.0f / 7);
  p = fmaf(p, s2, 2.0f / 5);
  p = fmaf(p, s2, 2.0f / 3);
  p = fmaf(p, s2, 2.0f);
  return fmaf(n, 0.693359375f, fmaf(n, -2.12194440e-4f, p * s));
}

// An activation of x, and its slope there.
struct Activation {
  float y, slope;
};

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x s, s = 1/(1 + e^(-2u)).
__device__ inline Activation gelu_tanh(float x) {
  constexpr float kFar = 10.0f, kA = 1.5957691216f, kB = 0.07135481283f;
  const float far = larger(-kFar, x), v = smaller(kFar, far);
  const float s = 1.0f / (1.0f + exp_within(v * fmaf(v * v, -kB, -kA)));
  return {far * s, fmaf((v * s) * (1.0f - s), fmaf(v * v, 3.0f * kB, kA), s)};
}

// x Phi(x), with Phi(-t) = e^(-t^2/2) s P(s), s = 1/(1 + 0.34 t).
__device__ inline Activation gelu_erf(float x) {
  constexpr float kFar = 12.875f, kPlace = 98304.0f;
  const float far = larger(-kFar, x), v = smaller(kFar, far);
  const float t = larger(0.0f - v, v);
  const float head = (t + kPlace) - kPlace;
  const float shifted = fmaf(t * t, -0.72134752f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  float r = fmaf(n, -0.693359375f, (head * head) * -0.5f);
  r = fmaf(n, 2.12194440e-4f, r);
  r = fmaf((t - head) * -0.5f, t + head, r);
  const float density = exp_reduced(shifted, r), s = 1.0f / fmaf(t, 0.34f, 1.0f);
  float p = fmaf(s, -0.0266780779f, 0.14212133f);
  p = fmaf(s, p, -0.278351903f);
  p = fmaf(s, p, 0.207910299f);
  p = fmaf(s, p, -0.0484965257f);
  p = fmaf(s, p, 0.116888165f);
  p = fmaf(s, p, 0.114828005f);
  p = fmaf(s, p, 0.13616088f);
  p = fmaf(s, p, 0.135617837f);
  const float tail = (density * s) * p, upper = v > 0.0f ? 1.0f : 0.0f;
  const float gate = fmaf(fmaf(-2.0f, upper, 1.0f), tail, upper);
  return {far * gate, fmaf(v * 0.3989422804f, density, gate)};
}

// x / (1 + e^-x)
__device__ inline Activation silu(float x) {
  constexpr float kFar = 87.0f;
  const float far = larger(-kFar, x), v = smaller(kFar, far);
  const float s = 1.0f / (1.0f + exp_within(0.0f - v));
  return {far * s, fmaf(v * s, 1.0f - s, s)};
}

// Bits in which each bit of x changes each bit with even odds, as mix_bits in base/random.h.
__device__ inline uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// What Dropout says, for kernels: the factor of an element, 0 or `scale`, by the hash of the processor's kernel.
struct Drop {
  Varying<uint64_t> key;  // of the first row
  int32_t threshold;
  float scale;
  bool on;

  __device__ float factor(int64_t row, int64_t col) const {
    const uint64_t bits = mixed(key.get() + static_cast<uint64_t>(row));
    uint32_t hash = static_cast<uint32_t>(bits) + static_cast<uint32_t>(col);
    hash = ((hash ^ hash >> 16) * 0x7FEB352Du) ^ static_cast<uint32_t>(bits >> 32);
    hash = (hash ^ hash >> 15) * 0x846CA68Bu;
    return static_cast<int32_t>(hash ^ hash >> 16) < threshold ? 0.0f : scale;
  }
};

}  // namespace soma::cuda
