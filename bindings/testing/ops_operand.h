// An operand of a single operation, as models keep it: floats, or rows of pairs of bfloat16 whose memory holds NaN
// wherever no operation may look: behind the last row, behind the zeros of a row and, before a result is written, in
// all of it. Rounding and widening are written out here, so that they are none of the kernels under test.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "testing/ops_arrays.h"

namespace arrays {

class Operand {
 public:
  Operand(Operand&&) = default;

  // Of an array that is only read.
  static Operand of(const Floats& x, bool pairs) {
    Operand operand(matrix(x), pairs);
    if (!pairs) return operand;
    const Matrix& m = operand.matrix_;
    for (int64_t r = 0; r < m.rows; ++r) {
      std::fill_n(m.data + r * m.ld, zeroed(m.cols), 0.0f);
      for (int64_t j = 0; j < m.cols; ++j) operand.set(r, j, rounded(x.data()[r * m.cols + j]));
    }
    return operand;
  }
  // Of an array that finish() fills, where it is not the operation itself that does.
  static Operand into(Floats& x, bool pairs) {
    x.mutable_data();  // refuses an array that is not to be written to
    return Operand(matrix(std::as_const(x)), pairs);
  }

  const Matrix& get() const { return matrix_; }

  // Pairs as floats; an error where a row does not end in zeros, or memory behind the last row was written to.
  void finish() const {
    if (!matrix_.pairs) return;
    for (int64_t r = 0; r < matrix_.rows; ++r) {
      for (int64_t j = 0; j < 2 * zeroed(matrix_.cols); ++j) {
        const float value = std::bit_cast<float>(uint32_t{half(r, j)} << 16);
        if (j < matrix_.cols) {
          floats_[r * matrix_.cols + j] = value;
        } else {
          check(half(r, j) == 0, "row ", r, " of the pairs is not zero at column ", j, " behind its last");
        }
      }
    }
    for (std::size_t i = static_cast<std::size_t>(matrix_.rows * matrix_.ld); i < memory_.size(); ++i) {
      check(std::bit_cast<uint32_t>(memory_[i]) == kNan, "something was written behind the last row of the pairs");
    }
  }

 private:
  static constexpr uint32_t kNan = 0x7fc07fc0;  // both halves

  Operand(const ConstMatrix& x, bool pairs)
      : floats_(const_cast<float*>(x.data)), matrix_(floats_, x.rows, x.cols) {  // of(): operations only read it
    if (!pairs) return;
    const soma::Operands kept{true};
    memory_.assign(static_cast<std::size_t>(kept.floats(x.rows, x.cols)), std::bit_cast<float>(kNan));
    matrix_ = kept.matrix(memory_.data(), x.rows, x.cols);
  }

  // Floats of a row that hold its pairs and zeros.
  static int64_t zeroed(int64_t cols) { return (cols + 31) / 32 * 16; }
  // To nearest, ties to even; a NaN stays one.
  static uint16_t rounded(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }

  uint16_t half(int64_t r, int64_t j) const {
    const auto pair = std::bit_cast<uint32_t>(matrix_.data[r * matrix_.ld + j / 2]);
    return static_cast<uint16_t>(j % 2 == 0 ? pair : pair >> 16);
  }
  void set(int64_t r, int64_t j, uint16_t value) {
    float& pair = matrix_.data[r * matrix_.ld + j / 2];
    pair = std::bit_cast<float>(std::bit_cast<uint32_t>(pair) | uint32_t{value} << (j % 2 == 0 ? 0 : 16));
  }

  std::vector<float> memory_;
  float* floats_;
  Matrix matrix_;
};

}  // namespace arrays
