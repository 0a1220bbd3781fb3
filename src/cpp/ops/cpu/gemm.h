// The parts of a matrix product in one precision: packing of operands, and the tile that multiplies them. Depth is
// counted in units: one float, or a pair of bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "ops/cpu/ranges.h"
#include "ops/ops.h"

namespace soma {

// A strided operand of tiles. Element (row i, unit u) of a tile is at data[i*row + u*depth]. The tile that begins in
// row i is at data[i*down].
struct GemmA {
  GemmA() : GemmA(nullptr, 0, 0) {}
  GemmA(const float* data, int64_t row, int64_t depth) : GemmA(data, row, depth, row) {}
  GemmA(const float* data, int64_t row, int64_t depth, int64_t down) : data(data), row(row), depth(depth), down(down) {}
  const float* data;
  int64_t row, depth, down;
  GemmA at(int64_t i, int64_t u) const { return {data + i * down + u * depth, row, depth, down}; }
};

// Packed panels of B, each `depth` units deep. Units from `skip` on are used.
struct GemmB {
  const float* panels;
  int64_t depth, skip = 0;
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

  // A thread holds one of these during its calls of multiply().
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
  // The depth of a tile in a product of depth `units`: equal parts, short enough for L1.
  int64_t tile_depth(int64_t units) const {
    return round_up(ceil_div(units, ceil_div(units, shape_.depth_limit)), depth_step);
  }

  // Packs panel `i` of B: the columns from i*cols on, at depths [k0, k0 + k). sums, if not null, += the sums of B's
  // columns over these depths.
  void pack_b(float* dst, const ConstMatrix& b, int64_t i, int64_t k0, int64_t k, float* sums = nullptr) const {
    const int64_t first = i * cols, n = std::min(cols, b.width() - first);
    const float* const from = b.transposed ? b.at(first, k0) : b.at(k0, first);
    if (!bf16) {
      (b.transposed ? t_.pack_b_transpose : t_.pack_b_copy)(dst, from, b.ld, k, n);
    } else if (!b.transposed) {
      interleave(b.pairs, {dst, cols, from, b.ld, k, n, units(k), cols});
    } else if (b.pairs) {
      t_.pack_pairs_transpose(dst, cols, from, b.ld, (k + 1) / 2, units(k), n);
    } else {
      t_.pack_b_transpose_bf16(dst, cols, from, b.ld, k, n, units(k));
    }
    if (sums != nullptr) (bf16 ? t_.pair_sums : t_.column_sum)(sums + first, dst, cols, units(k), n);
    arrange(dst, k);
  }
  // Puts a panel of k depths, unit after unit, into the order that tiles read. pack_b has done it.
  void arrange(float* panel, int64_t k) const {
    if (shape_.arrange != nullptr) shape_.arrange(panel, ceil_div(k, per_unit()), units(k));
  }
  // Packs all panels, one after another.
  void pack_b_panels(float* dst, const ConstMatrix& b) const {
    const int64_t k = b.height();
    for (int64_t i = 0; i * cols < b.width(); ++i) pack_b(dst + i * cols * units(k), b, i, 0, k);
  }

  // Whether tiles can read rows of A in place. Rows of floats along k can, unless they share the sets of L1.
  bool in_place(const ConstMatrix& a) const {
    if (a.transposed) return false;
    return bf16 ? a.pairs : a.ld % 512 != 0;
  }
  // Rows [r0, r0 + m) of A at depths [k0, k0 + k): in place, or as a copy in `memory`, which holds a_floats(m, k).
  GemmA take_a(float* memory, const ConstMatrix& a, int64_t r0, int64_t m, int64_t k0, int64_t k) const {
    if (in_place(a)) return {a.at(r0, k0), a.ld, 1};
    return copy_a(memory, a, r0, m, k0, k);
  }
  // The same, always a copy in `memory`. In bfloat16, tiles may read rows up to a multiple of `rows`.
  GemmA copy_a(float* memory, const ConstMatrix& a, int64_t r0, int64_t m, int64_t k0, int64_t k) const;
  int64_t a_floats(int64_t m, int64_t k) const { return std::max(spread(m), round_up(m, rows)) * spread(units(k)); }

  // The transpose of a part of a block as A: columns [first, first + m) are rows of A, units [skip, skip + depth) its
  // depth. The block is floats, or units of two rows from interleave_rows. `memory` holds a_floats(m, 2 * depth), since
  // tiles may read rows beyond m.
  GemmA columns_of(float* memory, const float* block, int64_t ld, int64_t first, int64_t m, int64_t skip,
                   int64_t depth) const {
    const float* const from = block + skip * ld + first;
    if (!shape_.row_major) return {from, 1, ld};
    t_.pack_pairs_transpose(memory, spread(depth), from, ld, m, m, depth);
    return {memory, spread(depth), 1};
  }

  // Up to `rows` rows of C and all panels of columns, over `depth` units.
  void multiply(const Matrix& c, const GemmA& a, const GemmB& b, int64_t depth, const kernels::TileStore& store) const {
    const kernels::RowOfTiles tiles{.c = c.data,
                                    .a = a.data,
                                    .b = b.panels + b.skip * cols,
                                    .ldc = c.ld,
                                    .a_row = a.row,
                                    .panel = b.depth * cols,
                                    .k = depth,
                                    .m = c.rows,
                                    .n = c.cols,
                                    .a_depth = a.depth,
                                    .store = &store};
    (bf16 ? t_.gemm_rows_bf16 : t_.gemm_rows_f32)(&tiles);
  }

 private:
  Gemm(const kernels::Table& table, const kernels::GemmShape& shape, bool pairs)
      : rows(shape.rows), cols(shape.cols), depth_step(shape.depth_step), bf16(pairs), t_(table), shape_(shape) {}

  void interleave(bool pairs, const kernels::Interleaving& how) const {
    (pairs ? t_.interleave_pairs : t_.interleave_rows)(&how);
  }

  // A distance between rows of an odd number of cache lines. Rows at powers of two share their sets of L1.
  static int64_t spread(int64_t floats) { return round_up(floats, 32) + 16; }

  const kernels::Table& t_;
  const kernels::GemmShape& shape_;
};

inline GemmA Gemm::copy_a(float* memory, const ConstMatrix& a, int64_t r0, int64_t m, int64_t k0, int64_t k) const {
  const int64_t u = units(k);
  if (a.transposed) {
    const float* from = a.at(k0, r0);
    if (shape_.row_major) {
      (a.pairs ? t_.transpose_pairs : t_.transpose_rows)(memory, spread(u), from, a.ld, k, m, u);
      return {memory, spread(u), 1};
    }
    if (!bf16) {
      t_.pack_a_copy(memory, from, a.ld, k, m);
      return {memory, 1, rows, k};
    }
    const int64_t distance = spread(m);
    interleave(a.pairs, {memory, distance, from, a.ld, k, m, u, m});
    return {memory, 1, distance};
  }
  const int64_t distance = spread(u);
  if (a.pairs) {
    for (int64_t i = 0; i < m; ++i) {
      const float* from = a.at(r0 + i, k0);
      std::fill(std::copy(from, from + (k + 1) / 2, memory + i * distance), memory + i * distance + u, 0.0f);
    }
  } else if (bf16) {
    t_.round_rows(memory, distance, a.at(r0, k0), a.ld, m, k, u);
  } else {
    for (int64_t i = 0; i < m; ++i) {
      const float* from = a.at(r0 + i, k0);
      std::copy(from, from + k, memory + i * distance);
    }
  }
  return {memory, distance, 1};
}

}  // namespace soma
