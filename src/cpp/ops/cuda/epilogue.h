// The epilogue of a product for kernels: two neighbouring numbers of C at a time, in the order of ops.h.
#pragma once

#include "ops/cuda/rows.h"

namespace soma::cuda {

// A matrix that a kernel reads: floats, or pairs.
struct Source {
  const float* data = nullptr;
  int64_t ld = 0;
  bool pairs = false;

  Source() = default;
  Source(const float* d, int64_t stride) : data(d), ld(stride) {}
  Source(const ConstMatrix& m) : data(m.data), ld(m.ld), pairs(m.pairs) {}
  __device__ float2 read(int64_t r, int64_t j, bool both) const {
    if (!pairs) return read_two(data + r * ld + j, both);
    const uint32_t pair = __float_as_uint(data[r * ld + j / 2]);
    return {low_of(pair), high_of(pair)};
  }
};

// The steps of Epilogue that need no whole row. Matrices without data are left out.
struct Finish {
  Rows c;
  const float* bias;
  Source residual;
  Drop drop;
  bool relu, erf, accumulate, symmetric, polynomial;
  Rows gelu, gelu_output, d_hidden, swiglu_output;
  Source gelu_input, relu_output, hidden, x;
  float constant, linear, square;

  __device__ Activation gelu_of(float v) const { return erf ? gelu_erf(v) : gelu_tanh(v); }

  // v: the product's numbers in row r, columns j and, if both, j + 1.
  __device__ void store(int64_t r, int64_t j, float2 v, bool both) const {
    if (symmetric) {
      mirror(r, j, v.x);
      if (both) mirror(r, j + 1, v.y);
      return;
    }
    if (bias != nullptr) v.x += bias[j], v.y += both ? bias[j + 1] : 0.0f;
    if (drop.on) v.x *= drop.factor(r, j), v.y *= drop.factor(r, j + 1);
    if (residual.data != nullptr) {
      const float2 more = residual.read(r, j, both);
      v = drop.on ? float2{more.x + v.x, more.y + v.y} : float2{v.x + more.x, v.y + more.y};
    }
    if (relu) v = {0.0f > v.x ? 0.0f : v.x, 0.0f > v.y ? 0.0f : v.y};  // keeps a NaN
    if (gelu.data != nullptr) gelu.write(r, j, {gelu_of(v.x).y, gelu_of(v.y).y}, both);
    if (gelu_input.data != nullptr) {
      const float2 x_in = gelu_input.read(r, j, both);
      const Activation first = gelu_of(x_in.x), second = gelu_of(x_in.y);
      v = {v.x * first.slope, v.y * second.slope};
      gelu_output.write(r, j, {first.y, second.y}, both);
    }
    if (relu_output.data != nullptr) {
      const float2 y = relu_output.read(r, j, both);
      v = {y.x > 0.0f ? v.x : 0.0f, y.y > 0.0f ? v.y : 0.0f};
    }
    if (hidden.data != nullptr) through_swiglu(r, j, v, both);
    if (c.data != nullptr) c.write(r, j, v, both);
  }

  __device__ void through_swiglu(int64_t r, int64_t j, float2 dy, bool both) const {
    const int64_t up = swiglu_output.cols + j;
    const float2 gate = hidden.read(r, j, both), more = hidden.read(r, up, both);
    const Activation first = silu(gate.x), second = silu(gate.y);
    swiglu_output.write(r, j, {first.y * more.x, second.y * more.y}, both);
    d_hidden.write(r, j, {(dy.x * more.x) * first.slope, (dy.y * more.y) * second.slope}, both);
    d_hidden.write(r, up, {dy.x * first.y, dy.y * second.y}, both);
  }

  // The number above the diagonal, and its image below.
  __device__ void mirror(int64_t r, int64_t j, float v) const {
    if (j < r) return;
    if (polynomial) {
      v = fmaf(square, v, linear * x.data[r * x.ld + j]);
      if (j == r) v += constant;
    }
    c.row(r)[j] = v;
    if (j != r) c.row(j)[r] = v;
  }
};

}  // namespace soma::cuda
