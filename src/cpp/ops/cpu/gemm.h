// The engine of a matrix product for one precision: how operands are packed, and the tile that multiplies them. Depth
// is counted in units: one float, or a pair of bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "ops/cpu/ranges.h"
#include "ops/ops.h"

namespace soma {

// A strided operand of a tile: element (row i, unit u) at data[i*row + u*depth].
struct GemmA {
  const float* data;
  int64_t row, depth;
  GemmA at(int64_t i, int64_t u) const { return {data + i * row + u * depth, row, depth}; }
};

class Gemm {
 public:
  Gemm(const kernels::Table& table, Precision precision)
      : Gemm(table, precision == Precision::kBfloat16 ? table.gemm_bf16 : table.gemm_f32,
             precision == Precision::kBfloat16) {}

  const int64_t rows, cols;  // the largest tile
  const int64_t depth_step;  // units(k) is a multiple of it
  const bool bf16;

  bool has_instruction() const { return shape_.instruction != 0; }

  // Stands around a thread's calls of tile() and multiply(); one at a time.
  class Thread {
   public:
    explicit Thread(const Gemm& gemm) : gemm_(gemm) {
      if (gemm_.bf16) gemm_.t_.enter_bf16();
    }
    ~Thread() {
      if (gemm_.bf16) gemm_.t_.leave_bf16();
    }
    Thread(const Thread&) = delete;
    Thread& operator=(const Thread&) = delete;

   private:
    const Gemm& gemm_;
  };

  int64_t per_unit() const { return bf16 ? 2 : 1; }
  int64_t units(int64_t k) const { return round_up(bf16 ? (k + 1) / 2 : k, depth_step); }
  // How deep one tile goes where a product is `units` deep: in equal parts, short enough for L1.
  int64_t tile_depth(int64_t units) const {
    return round_up(ceil_div(units, ceil_div(units, shape_.depth_limit)), depth_step);
  }

  // B from x(k, n), n <= cols, one panel: `transposed` says that column j lies along x.data + j*ld.
  void pack_b(float* dst, const float* x, int64_t ld, int64_t k, int64_t n, bool transposed) const {
    if (!bf16) return (transposed ? t_.pack_b_transpose : t_.pack_b_copy)(dst, x, ld, k, n);
    if (transposed) return t_.pack_b_transpose_bf16(dst, cols, x, ld, k, n, units(k));
    t_.interleave_rows(dst, cols, x, ld, k, n, units(k), cols);
  }

  // All panels of B from x(k, n), one behind the other, each units(k) deep.
  void pack_b_panels(float* dst, const float* x, int64_t ld, int64_t k, int64_t n, bool transposed) const {
    for (int64_t j = 0; j < n; j += cols) {
      pack_b(dst + j * units(k), x + (transposed ? j * ld : j), ld, k, std::min(cols, n - j), transposed);
    }
  }

  // A from x(m, k) with rows of x along k, or, transposed, from x(k, m). Floats are used where they lie; pairs are made
  // in `memory`, which holds a_floats(m, k).
  GemmA take_a(float* memory, const float* x, int64_t ld, int64_t m, int64_t k, bool transposed) const {
    if (!bf16) return transposed ? GemmA{x, 1, ld} : GemmA{x, ld, 1};
    return copy_a(memory, x, ld, m, k, transposed);
  }
  // The same, always into `memory`; in bfloat16 tiles may read rows up to a multiple of `rows`.
  GemmA copy_a(float* memory, const float* x, int64_t ld, int64_t m, int64_t k, bool transposed) const;
  int64_t a_floats(int64_t m, int64_t k) const {
    const int64_t row_major = round_up(m, shape_.row_major ? rows : 1) * spread(units(k));
    return shape_.row_major ? row_major : std::max(spread(m) * units(k), row_major);
  }

  // C(m, n) for up to `rows` rows and every panel of columns; b's panels are `panel_depth` units deep, used from
  // `skip`.
  void multiply(float* c, int64_t ldc, GemmA a, const float* b, int64_t panel_depth, int64_t skip, int64_t depth,
                int64_t m, int64_t n, const kernels::TileStore& store) const {
    (bf16 ? t_.gemm_rows_bf16 : t_.gemm_rows_f32)(c, ldc, a.data, a.row, a.depth, b + skip * cols, panel_depth * cols,
                                                  depth, m, n, &store);
  }

 private:
  Gemm(const kernels::Table& table, const kernels::GemmShape& shape, bool pairs)
      : rows(shape.rows), cols(shape.cols), depth_step(shape.depth_step), bf16(pairs), t_(table), shape_(shape) {}

  // A distance between rows that is an odd number of cache lines: rows at powers of two share their sets of L1.
  static int64_t spread(int64_t floats) { return round_up(floats, 32) + 16; }

  const kernels::Table& t_;
  const kernels::GemmShape& shape_;
};

inline GemmA Gemm::copy_a(float* memory, const float* x, int64_t ld, int64_t m, int64_t k, bool transposed) const {
  const int64_t u = units(k);
  if (transposed && shape_.row_major) {
    t_.transpose_rows(memory, spread(u), x, ld, k, m, u);
    return {memory, spread(u), 1};
  }
  if (transposed) {
    const int64_t distance = spread(m);
    if (bf16) {
      t_.interleave_rows(memory, distance, x, ld, k, m, u, m);
    } else {
      for (int64_t p = 0; p < k; ++p) std::copy(x + p * ld, x + p * ld + m, memory + p * distance);
    }
    return {memory, 1, distance};
  }
  const int64_t distance = spread(u);
  if (bf16) {
    t_.round_rows(memory, distance, x, ld, m, k, u);
  } else {
    for (int64_t i = 0; i < m; ++i) std::copy(x + i * ld, x + i * ld + k, memory + i * distance);
  }
  return {memory, distance, 1};
}

}  // namespace soma
