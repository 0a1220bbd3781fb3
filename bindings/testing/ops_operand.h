// An operand of a single operation, kept as models keep it: floats, or rows of bfloat16 pairs. Memory that no operation
// may read holds NaN: behind the last row, behind the zeros of a row, and a result before it is written. Rounding and
// widening are written out here, because the kernels' own are under test.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "testing/ops_arrays.h"

namespace arrays {

class Operand {
 public:
  Operand(Operand&&) = default;

  // An operand of an array that operations only read.
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
  // An operand whose array finish() fills, or the operation itself.
  static Operand into(Floats& x, bool pairs) {
    x.mutable_data();  // raises for a read-only array
    return Operand(matrix(std::as_const(x)), pairs);
  }

  const Matrix& get() const { return matrix_; }

  // Widens pairs to floats. Raises if a row does not end in zeros, or if an operation wrote behind the last row.
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
      : floats_(const_cast<float*>(x.data)), matrix_(floats_, x.rows, x.cols) {  // of(): operations only read the array
    if (!pairs) return;
    const soma::Operands kept{true};
    memory_.assign(static_cast<std::size_t>(kept.floats(x.rows, x.cols)), std::bit_cast<float>(kNan));
    matrix_ = kept.matrix(memory_.data(), x.rows, x.cols);
  }

  // Number of floats that hold the pairs and zeros of a row.
  static int64_t zeroed(int64_t cols) { return (cols + 31) / 32 * 16; }
  // Rounds to nearest, ties to even; NaN stays NaN.
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

// Checks `pairs`: its letters name the operands that are kept as pairs.
inline void expect_pairs(const std::string& pairs, const char* letters, const std::string& precision) {
  check(pairs.find_first_not_of(letters) == std::string::npos, "pairs must be some of '", letters, "', got '", pairs,
        "'");
  check(pairs.empty() || precision == "bfloat16", "only products in bfloat16 take pairs");
}
inline bool has(const std::string& pairs, char letter) { return pairs.find(letter) != std::string::npos; }

}  // namespace arrays
