// Matrix products: B packed into panels by all threads, then each thread computes a rectangle of C from register tiles,
// cut so that a tile's rows of A stay in L1, and a block of A and a group of panels of B in L2.
#include <algorithm>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;
using kernels::TileStore;

constexpr int64_t kPackBudget = int64_t{4} << 20;  // floats of packed B: 16 MB
constexpr int64_t kMaxDepth = 1024;                // units of depth packed at once
constexpr int64_t kGroup = 64 * 1024;              // floats of B kept in L2 while the rows pass: 256 KB
constexpr int64_t kBlockRows = 192;                // rows of A taken at once: 192 x 384 floats are 288 KB of L2

// How to cut `rows` x `cols` panels among `threads`: the grid whose largest rectangle is smallest.
void choose_grid(int64_t rows, int64_t cols, int64_t threads, int64_t* grid_rows, int64_t* grid_cols) {
  int64_t best = -1;
  for (int64_t r = 1; r <= threads; ++r) {
    const int64_t c = threads / r;
    const int64_t largest = ceil_div(rows, r) * ceil_div(cols, c);
    if (best < 0 || largest < best || (largest == best && r > c)) {
      best = largest;
      *grid_rows = r;
      *grid_cols = c;
    }
  }
}

// How the tile whose first element is at `at`, in column `col`, is stored.
TileStore store_of(const Epilogue& e, int64_t ld, int64_t at, int64_t col, bool accumulate, bool last) {
  TileStore store{};
  store.accumulate = e.accumulate || accumulate;
  if (!last) return store;
  store.relu = e.relu;
  store.bias = e.bias != nullptr ? e.bias + col : nullptr;
  store.residual = e.residual != nullptr ? e.residual + at : nullptr;
  store.ld_residual = ld;
  return store;
}

// What needs more registers than a tile has left: `n` finished elements at `at`, which are still in cache. Whole pieces
// of a row, since the rows of one tile share their sets of L1 with those of the other operands here.
void activate(const Table& t, const Epilogue& e, float* c, int64_t at, int64_t n) {
  if (e.gelu != nullptr) t.gelu_forward(e.gelu + at, c + at, n);
  if (e.gelu_input != nullptr) t.gelu_backward(c + at, e.gelu_output + at, c + at, e.gelu_input + at, n);
  if (e.relu_output != nullptr) t.relu_backward(c + at, c + at, e.relu_output + at, n);
}

}  // namespace

void CpuOps::matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t m = c.rows, n = c.cols, k = a.width(), depth = g.units(k);
  if (m == 0 || n == 0) return;
  const int64_t work = m * n * k / 8;
  const int64_t threads = std::min<int64_t>(call_threads(), std::max<int64_t>(1, work / kWorthAThread));
  const int64_t panels_a = ceil_div(m, g.rows);
  const int64_t depth_limit = std::min(depth, kMaxDepth);
  const int64_t cols_limit = std::min(ceil_div(n, g.cols), std::max<int64_t>(1, kPackBudget / depth_limit / g.cols));
  packed_b_.reserve(cols_limit * g.cols * depth_limit);
  const int64_t block_rows = std::min(kBlockRows / g.rows * g.rows, panels_a * g.rows);
  // Floats along k are used where they lie, unless their rows share the sets of L1.
  const bool in_place = !g.bf16 && !a.transposed && a.ld % 512 != 0;
  reserve_scratch(threads, in_place ? 0 : g.a_floats(block_rows, g.per_unit() * g.tile_depth(depth_limit)));

  for (int64_t u0 = 0; u0 < depth; u0 += depth_limit) {
    const int64_t block_depth = std::min(depth_limit, depth - u0);
    const int64_t tile_depth = g.tile_depth(block_depth);
    for (int64_t n0 = 0; n0 < n; n0 += cols_limit * g.cols) {
      check_interrupt();
      const int64_t panels = std::min(cols_limit, ceil_div(n - n0, g.cols));
      const int64_t packers = threads == 1 ? 1 : range_count(panels, block_depth * g.cols / 4, 1);
      const int64_t k0 = u0 * g.per_unit(), k_count = std::min(k - k0, block_depth * g.per_unit());
      float* packed = packed_b_.data();
      const auto pack = [&](int64_t range) {
        for (int64_t i = panels * range / packers; i < panels * (range + 1) / packers; ++i) {
          const int64_t col = n0 + i * g.cols;
          const float* from = b.data + (b.transposed ? col * b.ld + k0 : k0 * b.ld + col);
          const int64_t width = std::min(g.cols, n - col);
          g.pack_b(packed + i * g.cols * block_depth, from, b.ld, k_count, width, b.transposed);
          if (e.column_sums != nullptr) t.column_sum(e.column_sums + col, from, b.ld, k_count, width);
        }
      };

      int64_t grid_rows = 1, grid_cols = 1;
      choose_grid(panels_a, panels, threads, &grid_rows, &grid_cols);
      const auto compute = [&](int64_t task) {
        const Gemm::Thread thread(g);
        const int64_t gr = task / grid_cols, gc = task % grid_cols;
        const int64_t row_begin = panels_a * gr / grid_rows * g.rows;
        const int64_t row_end = std::min(m, panels_a * (gr + 1) / grid_rows * g.rows);
        const int64_t c_begin = panels * gc / grid_cols, c_end = panels * (gc + 1) / grid_cols;
        for (int64_t r0 = row_begin; r0 < row_end; r0 += block_rows) {
          const int64_t r1 = std::min(row_end, r0 + block_rows);
          for (int64_t u = 0; u < block_depth; u += tile_depth) {
            const int64_t tile_units = std::min(tile_depth, block_depth - u);
            const int64_t ka = (u0 + u) * g.per_unit(), ka_count = std::min(k - ka, tile_units * g.per_unit());
            const float* from = a.data + (a.transposed ? ka * a.ld + r0 : r0 * a.ld + ka);
            const GemmA block =
                in_place ? GemmA{from, a.ld, 1} : g.copy_a(scratch(task), from, a.ld, r1 - r0, ka_count, a.transposed);
            const bool first = u0 + u == 0, last = u0 + u + tile_units == depth;
            const int64_t group = std::max<int64_t>(1, kGroup / (tile_units * g.cols));
            for (int64_t j0 = c_begin; j0 < c_end; j0 += group) {
              for (int64_t row = r0; row < r1; row += g.rows) {
                const int64_t j1 = std::min(c_end, j0 + group), tile_rows = std::min(g.rows, r1 - row);
                const int64_t col = n0 + j0 * g.cols, at = row * c.ld + col,
                              width = std::min(n, n0 + j1 * g.cols) - col;
                g.multiply(c.data + at, c.ld, block.at(row - r0, 0), packed + j0 * block_depth * g.cols, block_depth, u,
                           tile_units, tile_rows, width, store_of(e, c.ld, at, col, !first, last));
                for (int64_t i = row; last && i < row + tile_rows; ++i) activate(t, e, c.data, i * c.ld + col, width);
              }
            }
          }
        }
      };
      parallel_for_then(packers, pack, grid_rows * grid_cols, compute);
    }
  }
}

}  // namespace soma
