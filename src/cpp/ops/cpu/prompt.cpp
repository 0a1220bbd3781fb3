// Products of many rows with the weights of a decoder. A thread packs some panels of its outputs for the matrix
// product, in its L2, and multiplies all rows with them.
#include "ops/cpu/prompt.h"

#include <algorithm>

#include "ops/cpu/cpu_ops.h"

namespace soma {
namespace {

// Packs outputs [j, j_end) of W, panel after panel: `units` units of depth from u on.
void pack(const Gemm& g, float* dst, const DecodeMatrix& w, int64_t j, int64_t j_end, int64_t u, int64_t units) {
  const kernels::Table& t = active_kernels();
  if (w.format == WeightFormat::kFloat32) {
    const ConstMatrix live(reinterpret_cast<const float*>(w.data), w.inner, w.outer);
    return t.pack_b_copy(dst, live.at(u, j), live.ld, units, j_end - j);
  }
  const bool bytes = w.format == WeightFormat::kInt8;
  const int64_t k = u * g.per_unit(), count = std::min(w.inner - k, units * g.per_unit());
  for (; j < j_end; j += kDecodePanel, dst += units * kDecodePanel) {
    const char* panel = w.data + (j * w.inner + k * kDecodePanel) * (bytes ? 1 : 2);
    (bytes ? t.pair_int8 : t.pair_bfloat16)(dst, g.cols, panel, count, units);
    for (int64_t at = 0; at < kDecodePanel; at += g.cols) g.arrange(dst + at * units, count);
  }
}

}  // namespace

bool prompt_by_tiles(const Gemm& g, const DecodeMatrix& w) { return w.layout == WeightLayout::kLive && g.rows < 12; }

int64_t prompt_floats(int64_t rows, int64_t inner) {
  const Gemm g(active_kernels(), Precision::kBfloat16);
  return g.has_instruction() ? g.a_floats(rows, inner) : rows * padded_ld(inner);
}

GemmA prompt_pairs(const ParallelRegion& region, const Gemm& g, const Matrix& x, float* rows) {
  ConstMatrix all{x.data, x.rows, x.cols};
  all.ld = x.ld;
  const int64_t distance = g.copy_a(rows, all, 0, 0, 0, x.cols).row;
  region.share(x.rows, 1, [&](int64_t begin, int64_t end) {
    g.copy_a(rows + begin * distance, all, begin, end - begin, 0, x.cols);
  });
  region.wait();
  return {rows, distance, 1};
}

Matrix prompt_floats(const ParallelRegion& region, const Matrix& x, float* rows) {
  const Matrix rounded{rows, x.rows, x.cols, padded_ld(x.cols)};
  region.share(x.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) active_kernels().round_row_bfloat16(rounded.row(r), x.row(r), x.cols);
  });
  region.wait();
  return rounded;
}

kernels::RowsProduct finish_of(const Matrix& y, const DecodeMatrix& w, const RowEpilogue& e, int64_t begin,
                               int64_t end) {
  kernels::RowsProduct p{};
  p.y = y.data + begin;
  p.ldy = y.ld;
  p.m = y.rows;
  p.n = end - begin;
  if (w.scales != nullptr) p.scales = w.scales + begin;
  if (e.bias != nullptr) p.bias = e.bias + begin;
  if (e.residual != nullptr) {
    p.residual = e.residual->data + begin;
    p.ld_residual = e.residual->ld;
  }
  p.activation = e.activation;
  return p;
}

void prompt_range(const PromptProduct& product, int64_t begin, int64_t end, float* panels) {
  const auto& [g, y, x, w, e] = product;
  const Gemm::Thread thread(g);
  const int64_t depth = g.units(w.inner), tile_depth = g.tile_depth(depth);
  const int64_t group = std::max<int64_t>(1, kPromptPanels / (tile_depth * kDecodePanel)) * kDecodePanel;
  for (int64_t j = begin; j < end; j += group) {
    const int64_t j_end = std::min(end, j + group), n = j_end - j;
    for (int64_t u = 0; u < depth; u += tile_depth) {
      const int64_t units = std::min(tile_depth, depth - u);
      kernels::TileStore store{};
      store.accumulate = u > 0;
      pack(g, panels, w, j, j_end, u, units);
      for (int64_t r = 0; r < y.rows; r += g.rows) {
        g.multiply({y.row(r) + j, std::min(g.rows, y.rows - r), n, y.ld}, x.at(r, u), {panels, units}, units, store);
      }
    }
    const kernels::RowsProduct p = finish_of(y, w, e, j, j + n);
    active_kernels().finish_product(&p);
  }
}

}  // namespace soma
