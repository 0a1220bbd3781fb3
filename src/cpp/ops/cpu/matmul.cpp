// Matrix products. All threads pack B into panels, unless it is packed already. Then each thread computes rectangles of
// C from register tiles. The rows of A in a tile stay in L1, a block of A and a group of panels of B in L2.
#include <algorithm>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/dropout.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;
using kernels::TileStore;

constexpr int64_t kPackBudget = int64_t{4} << 20;  // floats of packed B: 16 MB
constexpr int64_t kMaxDepth = 1024;                // units of depth packed at once
constexpr int64_t kGroup = 64 * 1024;              // floats of a group of panels of B in L2: 256 KB
constexpr int64_t kPackedRows = 64;                // rows of B packed at once: whole units on every level
constexpr int64_t kBlockRows = 192;                // rows of a block of A
constexpr int64_t kBlockFloats = 96 * 1024;        // floats of a block of A, at most: 384 KB of L2

// Cuts `rows` x `cols` panels among `threads`: the grid with the smallest largest rectangle.
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

// How to store the tile that begins in this row and column; C has n columns.
TileStore store_of(const Epilogue& e, int64_t row, int64_t col, int64_t n, bool accumulate, bool last) {
  TileStore store{};
  store.accumulate = e.accumulate || accumulate;
  if (!last) return store;
  store.relu = e.relu;
  store.bias = e.bias != nullptr ? e.bias + col : nullptr;
  store.residual = e.residual != nullptr && !e.dropout ? e.residual + row * n + col : nullptr;
  store.ld_residual = n;
  return store;
}

// Whether C is finished in a buffer from its whole depth: C in pairs, or without memory.
bool buffered(const Matrix& c) { return c.pairs || c.data == nullptr; }

// Whether the epilogue has steps on whole rows of C.
bool takes_rows(const Epilogue& e) { return e.swiglu != nullptr || e.rotated != nullptr; }

// A rectangle of C for one thread: its rows, and its panels of B.
struct Part {
  Matrix c;
  ConstMatrix a;
  const float* panels;  // the first panel has column `col`
  int64_t col, first_panel, last_panel;
  int64_t first_row, last_row;
  int64_t unit, depth;     // the first unit of the panels within the depth of A, and their depth
  bool complete = false;   // the rows of C are whole afterwards
  bool symmetric = false;  // panels below the diagonal are skipped
};

// Panels [begin, end) of B at depths [k0, k0 + k). sums, if not null, += the sums over these depths, in order.
struct PanelsOfB {
  ConstMatrix b;
  int64_t begin, end, k0, k;
  float* sums;
};

// Packs them to `to`. Takes a few rows across the panels at a time, since a panel has only a line or two of each row.
void pack_panels(const Gemm& g, float* to, const PanelsOfB& x) {
  const int64_t panel = g.units(x.k) * g.cols, together = x.b.transposed ? x.k : kPackedRows;
  for (int64_t p = 0; p < x.k; p += together) {
    const int64_t count = std::min(together, x.k - p);
    for (int64_t i = x.begin; i < x.end; ++i) {
      float* const dst = to + (i - x.begin) * panel + p / g.per_unit() * g.cols;
      g.pack_b(dst, x.b, i, x.k0 + p, count, x.sums);
    }
  }
}

// The rows of a block of A, `depth` units deep.
int64_t block_rows(const Gemm& g, int64_t m, int64_t depth) {
  const int64_t rows = std::clamp(kBlockFloats / depth, g.rows, kBlockRows);
  return std::min(rows / g.rows * g.rows, round_up(m, g.rows));
}

// The panels in the buffer in which a row of tiles is finished: about 16 KB.
int64_t finished_panels(const Gemm& g) { return 4096 / g.rows / g.cols; }
int64_t finished_ld(const Gemm& g) { return finished_panels(g) * g.cols + 16; }

// The depth of a block of A in units: all of it, if C is finished in a buffer.
int64_t block_depth(const Gemm& g, const Matrix& c, int64_t depth) { return buffered(c) ? depth : g.tile_depth(depth); }

// The floats of a finished piece of a row, at most.
int64_t piece_floats(const Matrix& c) { return Arena::padded(std::min(c.cols, kGroup)); }

// The scratch of a thread in compute: two finished pieces, the buffer above, a block of A.
int64_t scratch_floats(const Gemm& g, const Matrix& c, const ConstMatrix& a, int64_t depth) {
  const int64_t deep = block_depth(g, c, depth);
  return 2 * piece_floats(c) + g.rows * finished_ld(g) +
         (g.in_place(a) ? 0 : g.a_floats(block_rows(g, a.height(), deep), g.per_unit() * deep));
}

// Applies the steps of the epilogue that need more registers than a tile has left. Takes whole pieces of rows, since
// the rows of one tile share their sets of L1 with the other operands of these steps.
class Finish {
 public:
  Finish(const Table& t, const Epilogue& e, int64_t cols, float* y, float* widened)
      : t_(t), e_(e), cols_(cols), y_(y), widened_(widened) {}

  bool needed() const {
    return e_.dropout || e_.gelu != nullptr || e_.gelu_input != nullptr || e_.relu_output != nullptr ||
           e_.swiglu_gradient != nullptr;
  }

  // c: the n columns from `col` on of row i.
  void row(float* c, int64_t i, int64_t col, int64_t n) const {
    if (e_.dropout) {
      const float* const residual = e_.residual != nullptr ? e_.residual + i * cols_ + col : nullptr;
      const kernels::DropoutRow dropped = dropout_row(e_.dropout, i, col, n, c, c, residual);
      t_.dropout(&dropped);
    }
    if (e_.gelu != nullptr) {
      float* const y = place(*e_.gelu, i, col);
      (e_.gelu_erf ? t_.gelu_erf_forward : t_.gelu_forward)(y, c, n);
      keep(*e_.gelu, y, i, col, n);
    }
    if (e_.gelu_input != nullptr) {
      const Matrix& output = *e_.gelu_output;
      float* const y = place(output, i, col);
      const auto backward = e_.gelu_erf ? t_.gelu_erf_backward : t_.gelu_backward;
      backward(c, y, c, e_.gelu_input + i * output.cols + col, n);
      keep(output, y, i, col, n);
    }
    if (e_.relu_output != nullptr) {
      const ConstMatrix& output = *e_.relu_output;
      const float* y = output.at(i, col);
      if (output.pairs) t_.widen_row(widened_, y, n);
      t_.relu_backward(c, c, output.pairs ? widened_ : y, n);
    }
    if (e_.swiglu_gradient != nullptr) swiglu_gradient(c, *e_.swiglu_gradient, i, col, n);
  }

  // c: row i as a whole, in floats.
  void whole_row(float* c, int64_t i) const {
    if (e_.swiglu != nullptr) swiglu(c, *e_.swiglu, i);
    if (e_.rotated != nullptr) rotate(c, *e_.rotated, i);
  }

  // Rounds n columns from `col` on of the rows from i on into pairs. Writes zeros behind the last column.
  void round(const Matrix& to, const float* from, int64_t ld, int64_t i, int64_t rows, int64_t col, int64_t n) const {
    const int64_t units = col + n == to.cols ? pairs_units(to.cols) - col / 2 : n / 2;
    t_.round_rows(to.data + i * to.ld + col / 2, to.ld, from, ld, rows, n, units);
  }

 private:
  void swiglu(const float* c, const Matrix& output, int64_t i) const {
    for (int64_t col = 0; col < output.cols; col += kGroup) {
      const int64_t n = std::min(kGroup, output.cols - col);
      float* const y = place(output, i, col);
      t_.swiglu_forward(y, c + col, c + output.cols + col, n);
      keep(output, y, i, col, n);
    }
  }
  void swiglu_gradient(float* c, const SwigluGradient& g, int64_t i, int64_t col, int64_t n) const {
    const int64_t up = g.output.cols + col;
    const bool pairs = g.d_hidden.pairs;
    float* const y = place(g.output, i, col);
    float *const d_gate = pairs ? c : g.d_hidden.row(i) + col, *const d_up = pairs ? widened_ : g.d_hidden.row(i) + up;
    t_.swiglu_backward(d_gate, d_up, y, c, g.hidden.at(i, col), g.hidden.at(i, up), n);
    keep(g.output, y, i, col, n);
    keep(g.d_hidden, d_gate, i, col, n);
    keep(g.d_hidden, d_up, i, up, n);
  }
  void rotate(const float* c, const RotatedHeads& r, int64_t i) const {
    const AttentionShape& s = r.shape;
    const float* const turn = r.rotation.turns + i % s.length * s.head_size;
    rotate(c, r, i, 0, s.heads, r.rotation.q_gain, turn);
    rotate(c, r, i, s.q_dim(), s.kv_heads, r.rotation.k_gain, turn);
    const int64_t v = s.q_dim() + s.kv_dim();
    if (r.qkv.pairs) {
      round(r.qkv, c + v, 0, i, 1, v, s.kv_dim());
    } else if (r.qkv.row(i) != c) {
      std::copy(c + v, c + s.qkv_dim(), r.qkv.row(i) + v);
    }
  }
  // Rotates `heads` heads from column `col` on, in groups that fit into a piece.
  void rotate(const float* c, const RotatedHeads& r, int64_t i, int64_t col, int64_t heads, const float* gain,
              const float* turn) const {
    const int64_t d = r.shape.head_size, most = kGroup / d;
    for (int64_t h = 0; h < heads; h += most, col += most * d) {
      const int64_t count = std::min(most, heads - h);
      float* const y = place(r.qkv, i, col);
      const kernels::HeadsForward rotation{
          .y = y, .x = c + col, .gamma = gain, .turn = turn, .heads = count, .d = d, .eps = r.rotation.eps};
      t_.rotate_heads(&rotation);
      keep(r.qkv, y, i, col, count * d);
    }
  }

  float* place(const Matrix& m, int64_t i, int64_t col) const { return m.pairs ? y_ : m.data + i * m.ld + col; }
  void keep(const Matrix& m, const float* y, int64_t i, int64_t col, int64_t n) const {
    if (m.pairs) round(m, y, 0, i, 1, col, n);
  }

  const Table& t_;
  const Epilogue& e_;
  const int64_t cols_;   // of C
  float *y_, *widened_;  // pieces of rows
};

// A row of tiles: m rows of C from `row` on, panels [j0, j1), units [u, u + units) of the panels.
struct TileRow {
  int64_t row, m, j0, j1, u, units;
};

void compute(const Table& t, const Gemm& g, const Part& p, const Epilogue& e, float* scratch) {
  const Gemm::Thread thread(g);
  const ConstMatrix& a = p.a;
  const int64_t n = p.c.cols, ld = p.c.ld, k = a.width(), whole = g.units(k);
  const int64_t tile_depth = g.tile_depth(p.depth);
  const int64_t rows = block_rows(g, a.height(), block_depth(g, p.c, p.depth));
  float* const finished = scratch + 2 * piece_floats(p.c);
  float* const block_of_a = finished + g.rows * finished_ld(g);
  const Finish finish(t, e, n, scratch, scratch + piece_floats(p.c));
  const auto block = [&](int64_t r0, int64_t r1, int64_t u, int64_t units) {
    const int64_t ka = (p.unit + u) * g.per_unit();
    return g.take_a(block_of_a, a, r0, r1 - r0, ka, std::min(k - ka, units * g.per_unit()));
  };
  // Computes a row of tiles at c.
  const auto tiles = [&](float* c, int64_t ldc, const GemmA& from, const TileRow& x) {
    const int64_t col = p.col + x.j0 * g.cols, width = std::min(n, p.col + x.j1 * g.cols) - col;
    const bool first = p.unit + x.u == 0, last = p.unit + x.u + x.units == whole;
    g.multiply({c, x.m, width, ldc}, from, {p.panels + x.j0 * p.depth * g.cols, p.depth, x.u}, x.units,
               store_of(e, x.row, col, n, !first, last));
    for (int64_t i = 0; last && finish.needed() && i < x.m; ++i) finish.row(c + i * ldc, x.row + i, col, width);
  };

  for (int64_t r0 = p.first_row; r0 < p.last_row; r0 += rows) {
    const int64_t r1 = std::min(p.last_row, r0 + rows);
    if (buffered(p.c)) {  // the whole depth at once
      const GemmA from = block(r0, r1, 0, p.depth);
      const int64_t group = std::clamp<int64_t>(kGroup / (p.depth * g.cols), 1, finished_panels(g));
      for (int64_t j0 = p.first_panel; j0 < p.last_panel; j0 += group) {
        const int64_t j1 = std::min(p.last_panel, j0 + group), col = p.col + j0 * g.cols;
        for (int64_t row = r0; row < r1; row += g.rows) {
          const int64_t m = std::min(g.rows, r1 - row);
          for (int64_t u = 0; u < p.depth; u += tile_depth) {
            tiles(finished, finished_ld(g), from.at(row - r0, u),
                  {row, m, j0, j1, u, std::min(tile_depth, p.depth - u)});
          }
          if (p.c.pairs) {
            finish.round(p.c, finished, finished_ld(g), row, m, col, std::min(n, p.col + j1 * g.cols) - col);
          }
        }
      }
      continue;
    }
    for (int64_t u = 0; u < p.depth; u += tile_depth) {
      const int64_t units = std::min(tile_depth, p.depth - u);
      const GemmA from = block(r0, r1, u, units);
      const int64_t group = std::max<int64_t>(1, kGroup / (units * g.cols));
      for (int64_t j0 = p.first_panel; j0 < p.last_panel; j0 += group) {
        const int64_t j1 = std::min(p.last_panel, j0 + group);
        for (int64_t row = r0; row < r1; row += g.rows) {
          const int64_t j = p.symmetric ? std::max(j0, (row - p.col) / g.cols) : j0;
          if (j >= j1) break;
          tiles(p.c.data + row * ld + p.col + j * g.cols, ld, from.at(row - r0, 0),
                {row, std::min(g.rows, r1 - row), j, j1, u, units});
        }
      }
    }
    for (int64_t row = r0; p.complete && row < r1; ++row) finish.whole_row(p.c.row(row), row);
  }
}

// The polynomial above the diagonal, and what lies below.
void complete_symmetric(const Table& t, const Matrix& c, const Quadratic* q) {
  constexpr int64_t kRows = 16;
  for_ranges(c.rows, c.cols, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && q != nullptr; ++i) {
      t.combine(c.row(i) + i, q->x->row(i) + i, q->linear, q->square, c.cols - i);
      c.row(i)[i] += q->constant;
    }
    t.mirror(c.data, c.ld, begin, end, c.rows);
  });
}

}  // namespace

void CpuOps::matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t m = c.rows, n = c.cols, k = a.width(), depth = g.units(k);
  if (m == 0 || n == 0) return;
  const float* const prepacked = b.transposed ? b.panels_transposed : b.panels;
  const int64_t work = m * n * k / 8;
  const int64_t threads = threads_for(work);
  const int64_t panels_a = ceil_div(m, g.rows), all = ceil_div(n, g.cols);
  const int64_t depth_limit = prepacked != nullptr || buffered(c) ? depth : std::min(depth, kMaxDepth);
  const int64_t panels_limit =
      prepacked != nullptr ? all : std::min(all, std::max<int64_t>(1, kPackBudget / depth_limit / g.cols));
  if (prepacked == nullptr) packed_b_.reserve(panels_limit * g.cols * depth_limit);
  const int64_t parts = parts_a_thread(work, threads);
  reserve_scratch(threads * parts, scratch_floats(g, c, a, depth_limit));

  for (int64_t u0 = 0; u0 < depth; u0 += depth_limit) {
    const int64_t block_depth = std::min(depth_limit, depth - u0);
    for (int64_t first = 0; first < all; first += panels_limit) {
      check_interrupt();
      const int64_t panels = std::min(panels_limit, all - first);
      const int64_t packers = prepacked != nullptr ? 0
                              : threads == 1       ? 1
                                                   : range_count(panels, block_depth * g.cols / 4, 1);
      const int64_t k0 = u0 * g.per_unit(), k_count = std::min(k - k0, block_depth * g.per_unit());
      const float* const packed = prepacked != nullptr ? prepacked : packed_b_.data();
      const auto pack = [&](int64_t range) {
        const int64_t begin = panels * range / packers, end = panels * (range + 1) / packers;
        pack_panels(g, packed_b_.data() + begin * g.cols * block_depth,
                    {b, first + begin, first + end, k0, k_count, e.column_sums});
      };

      int64_t grid_rows = 1, grid_cols = 1;
      if (takes_rows(e)) {
        grid_rows = threads;
      } else {
        choose_grid(panels_a, panels, threads, &grid_rows, &grid_cols);
      }
      grid_rows = std::min(panels_a, grid_rows * parts);
      const auto rectangle = [&](int64_t task) {
        const int64_t gr = task / grid_cols, gc = task % grid_cols;
        const Part p{.c = c,
                     .a = a,
                     .panels = packed,
                     .col = first * g.cols,
                     .first_panel = panels * gc / grid_cols,
                     .last_panel = panels * (gc + 1) / grid_cols,
                     .first_row = panels_a * gr / grid_rows * g.rows,
                     .last_row = std::min(m, panels_a * (gr + 1) / grid_rows * g.rows),
                     .unit = u0,
                     .depth = block_depth,
                     .complete = takes_rows(e) && first + panels == all && u0 + block_depth == depth,
                     .symmetric = e.symmetric};
        compute(t, g, p, e, scratch(task));
      };
      parallel_for_then(packers, pack, grid_rows * grid_cols, rectangle);
    }
  }
  if (e.symmetric) complete_symmetric(t, c, e.quadratic);
}

// Packs all operands dy. Then cuts the rows of all results into equal parts, as if they were one product.
void CpuOps::weight_gradients(const WeightGradient* list, int64_t count) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t k = list->x.rows, depth = g.units(k), panel_floats = depth * g.cols;
  int64_t all_panels = 0, all_tiles = 0, floats = 0;
  for (const WeightGradient* w = list; w < list + count; ++w) {
    const int64_t panels = ceil_div(w->dy.cols, g.cols);
    all_panels += panels;
    all_tiles += panels * ceil_div(w->x.cols, g.rows);
    floats = std::max(floats, scratch_floats(g, w->dw, w->x.t(), depth));
  }
  check_interrupt();
  packed_b_.reserve(all_panels * panel_floats);
  const int64_t packers = range_count(all_panels, panel_floats / 4, 1);
  const int64_t parts = range_count(all_tiles, g.rows * g.cols * k / 8, 1);
  reserve_scratch(parts, floats);

  const auto pack = [&](int64_t range) {
    const int64_t begin = all_panels * range / packers, end = all_panels * (range + 1) / packers;
    int64_t before = 0;
    for (const WeightGradient* w = list; w < list + count; ++w) {
      const int64_t panels = ceil_div(w->dy.cols, g.cols);
      const int64_t from = std::max<int64_t>(0, begin - before), to = std::min(panels, end - before);
      pack_panels(g, packed_b_.data() + (before + from) * panel_floats, {w->dy, from, to, 0, k, w->column_sums});
      before += panels;
    }
  };
  const auto rows = [&](int64_t range) {
    const int64_t begin = all_tiles * range / parts, end = all_tiles * (range + 1) / parts;
    int64_t tiles_before = 0, panels_before = 0;
    for (const WeightGradient* w = list; w < list + count; ++w) {
      const int64_t panels = ceil_div(w->dy.cols, g.cols), tiles = panels * ceil_div(w->x.cols, g.rows);
      // A row of tiles belongs to the part in which it begins.
      const auto row_at = [&](int64_t tile) {
        return std::min(w->x.cols, ceil_div(std::clamp<int64_t>(tile - tiles_before, 0, tiles), panels) * g.rows);
      };
      const Part p{.c = w->dw,
                   .a = w->x.t(),
                   .panels = packed_b_.data() + panels_before * panel_floats,
                   .col = 0,
                   .first_panel = 0,
                   .last_panel = panels,
                   .first_row = row_at(begin),
                   .last_row = row_at(end),
                   .unit = 0,
                   .depth = depth,
                   .complete = false};
      if (p.first_row < p.last_row) compute(t, g, p, {.accumulate = true}, scratch(range));
      tiles_before += tiles;
      panels_before += panels;
    }
  };
  parallel_for_then(packers, pack, parts, rows);
}

int64_t CpuOps::packed_floats(int64_t k, int64_t n) const {
  const Gemm g(active_kernels(), precision_);
  return round_up(n, g.cols) * g.units(k);
}

void CpuOps::pack(const Packing* list, int64_t count) {
  const Gemm g(active_kernels(), precision_);
  int64_t floats = 0;
  for (const Packing* l = list; l < list + count; ++l) floats += packed_floats(l->b.height(), l->b.width());
  check_interrupt();
  const int64_t ranges = range_count(floats / g.cols, g.cols, 1);
  parallel_for(ranges, [&](int64_t range) {
    int64_t before = 0;  // floats; a panel belongs to the part in which it begins
    for (const Packing* l = list; l < list + count; ++l) {
      const int64_t k = l->b.height(), panel = g.units(k) * g.cols;
      for (int64_t i = 0; i < ceil_div(l->b.width(), g.cols); ++i, before += panel) {
        if (before * ranges / floats == range) g.pack_b(l->panels + i * panel, l->b, i, 0, k);
      }
    }
  });
}

}  // namespace soma
