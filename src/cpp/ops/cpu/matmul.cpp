// Matrix products: operands packed into panels by all threads, then each thread computes a rectangle of C from register
// tiles, cut so that a panel of A stays in L1 and a group of panels of B in L2.
#include <algorithm>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;
using kernels::TileStore;

constexpr int64_t kPackBudget = int64_t{4} << 20;  // floats of one packed operand: 16 MB
constexpr int64_t kMaxDepth = 4096;                // k packed at once
constexpr int64_t kTileDepth = 384;                // k of one tile: 12 x 384 floats of A are 18 KB of L1
constexpr int64_t kGroup = 64 * 1024;              // floats of B kept in L2 while the rows pass: 256 KB

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Panels [first, last) of an operand's block: k in [k0, k0 + depth), rows of A or columns of B in [n0, n0 + n).
struct Packing {
  const ConstMatrix& operand;
  bool is_a;
  float* packed;
  int64_t k0, depth, n0, n, panel;

  int64_t panels() const { return ceil_div(n, panel); }
  void pack(const Table& t, int64_t index) const {
    const int64_t j = index * panel, width = std::min(panel, n - j);
    float* dst = packed + j * depth;
    // For A (rows x k) the panel runs over rows, for B (k x columns) over columns.
    const bool k_is_row = is_a == operand.transposed;
    const float* src = k_is_row ? operand.data + k0 * operand.ld + n0 + j : operand.data + (n0 + j) * operand.ld + k0;
    if (is_a) {
      (k_is_row ? t.pack_a_copy : t.pack_a_transpose)(dst, src, operand.ld, depth, width);
    } else {
      (k_is_row ? t.pack_b_copy : t.pack_b_transpose)(dst, src, operand.ld, depth, width);
    }
  }
};

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

}  // namespace

void CpuOps::matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e) {
  const Table& t = active_kernels();
  const int64_t m = c.rows, n = c.cols, k = a.width(), mr = t.gemm_rows, nr = t.gemm_cols;
  if (m == 0 || n == 0) return;
  const int64_t work = m * n * k / 8;
  const int64_t threads = std::min<int64_t>(call_threads(), std::max<int64_t>(1, work / kWorthAThread));

  const int64_t depth_limit = std::min(k, kMaxDepth);
  const int64_t rows_limit = std::min(ceil_div(m, mr), std::max<int64_t>(1, kPackBudget / depth_limit / mr)) * mr;
  const int64_t cols_limit = std::min(ceil_div(n, nr), std::max<int64_t>(1, kPackBudget / depth_limit / nr)) * nr;
  packed_a_.reserve(rows_limit * depth_limit);
  packed_b_.reserve(cols_limit * depth_limit);

  for (int64_t k0 = 0; k0 < k; k0 += depth_limit) {
    const int64_t depth = std::min(depth_limit, k - k0);
    const int64_t tile_depth = ceil_div(depth, ceil_div(depth, kTileDepth));
    for (int64_t n0 = 0; n0 < n; n0 += cols_limit) {
      const Packing pb{b, false, packed_b_.data(), k0, depth, n0, std::min(cols_limit, n - n0), nr};
      for (int64_t m0 = 0; m0 < m; m0 += rows_limit) {
        check_interrupt();
        const Packing pa{a, true, packed_a_.data(), k0, depth, m0, std::min(rows_limit, m - m0), mr};
        const int64_t panels_b = m0 == 0 ? pb.panels() : 0;  // B's block is packed once for all blocks of A
        const int64_t panels = pa.panels() + panels_b;
        const int64_t packers = threads == 1 ? 1 : range_count(panels, depth * mr, 1);
        const auto pack = [&](int64_t range) {
          for (int64_t i = panels * range / packers; i < panels * (range + 1) / packers; ++i) {
            i < panels_b ? pb.pack(t, i) : pa.pack(t, i - panels_b);
          }
        };

        int64_t grid_rows = 1, grid_cols = 1;
        choose_grid(pa.panels(), pb.panels(), threads, &grid_rows, &grid_cols);
        const auto multiply = [&](int64_t task) {
          const int64_t gr = task / grid_cols, gc = task % grid_cols;
          const int64_t r_begin = pa.panels() * gr / grid_rows, r_end = pa.panels() * (gr + 1) / grid_rows;
          const int64_t c_begin = pb.panels() * gc / grid_cols, c_end = pb.panels() * (gc + 1) / grid_cols;
          for (int64_t p = 0; p < depth; p += tile_depth) {
            const int64_t kc = std::min(tile_depth, depth - p);
            const bool first = k0 + p == 0, last = k0 + p + kc == k;
            const int64_t group = std::max<int64_t>(1, kGroup / (kc * nr));
            for (int64_t g = c_begin; g < c_end; g += group) {
              for (int64_t r = r_begin; r < r_end; ++r) {
                const int64_t row = m0 + r * mr, tile_rows = std::min(mr, m0 + pa.n - row);
                for (int64_t j = g; j < std::min(c_end, g + group); ++j) {
                  const int64_t col = n0 + j * nr, tile_cols = std::min(nr, n0 + pb.n - col);
                  TileStore store{};
                  store.accumulate = e.accumulate || !first;
                  if (last) {
                    store.relu = e.relu;
                    store.bias = e.bias != nullptr ? e.bias + col : nullptr;
                    store.residual = e.residual != nullptr ? e.residual + row * c.ld + col : nullptr;
                    store.ld_residual = c.ld;
                  }
                  t.gemm_tile(c.data + row * c.ld + col, c.ld, pa.packed + r * mr * depth + p * mr,
                              pb.packed + j * nr * depth + p * nr, kc, tile_rows, tile_cols, &store);
                }
              }
            }
          }
        };
        parallel_for_then(packers, pack, grid_rows * grid_cols, multiply);
      }
    }
  }
}

}  // namespace soma
