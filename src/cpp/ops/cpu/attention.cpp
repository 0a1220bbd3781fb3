// Causal attention, forward and backward. One task is one head of one sequence. The scores of a tile of
// query rows (forward) or of a block of them (backward) exist at a time, never T x T.
#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;

// Columns col.. , n of them, of rows row.. , m of them.
ConstMatrix piece(const ConstMatrix& x, int64_t row, int64_t m, int64_t col, int64_t n) {
  ConstMatrix p = x;
  p.data = x.at(row, col);
  p.rows = m;
  p.cols = n;
  return p;
}

// Rows of floats as A: where they lie, or as pairs in `memory`.
GemmA rows_of(const Gemm& g, float* memory, const ConstMatrix& x) {
  return g.bf16 ? g.copy_a(memory, x, 0, x.rows, 0, x.cols) : GemmA{x.data, x.ld, 1};
}

// Queries as A: where they lie, unless tiles would read on into the next head.
GemmA queries_of(const Gemm& g, float* memory, const ConstMatrix& q) {
  if (!g.bf16) return {q.data, q.ld, 1};
  const bool whole = g.per_unit() * g.units(q.cols) == q.cols;
  return whole ? g.take_a(memory, q, 0, q.rows, 0, q.cols) : g.copy_a(memory, q, 0, q.rows, 0, q.cols);
}

// The distance between rows of scores: kernels read and write two vectors at a time, 32 floats at most. + 16: rows must
// not share their sets of L1.
int64_t row_of_keys(int64_t keys) { return round_up(keys, 32) + 16; }

// f(head, slot) over all heads, in groups of about a tenth of a second of work between which the caller may stop.
template <typename F>
void for_heads(const Gemm& g, int64_t heads, int64_t ranges, int64_t cost, F&& f) {
  constexpr int64_t kGroupCost = int64_t{1} << 31;
  const int64_t least = std::min<int64_t>(ranges, call_threads());
  const int64_t group = std::max(least, kGroupCost / std::max<int64_t>(cost, 1));
  for (int64_t first = 0; first < heads; first += group) {
    check_interrupt();
    const int64_t count = std::min(group, heads - first);
    for_numbered_ranges(count, std::min(ranges, count), 1, [&](int64_t range, int64_t begin, int64_t end) {
      const Gemm::Thread thread(g);
      for (int64_t head = begin; head < end; ++head) f(first + head, range);
    });
  }
}

}  // namespace

void CpuOps::attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t len = s.length, d = s.head_size, c = s.channels(), depth = g.units(d), all = g.units(len);
  const int64_t ld = row_of_keys(len);

  struct Buffers {
    float *kt, *v, *q, *scores, *pairs, *max, *sum;
    int64_t size;
  };
  const auto carve = [&](float* memory) {
    Carver carver(memory);
    Buffers x{};
    x.kt = carver.take(round_up(len, g.cols) * depth);
    x.v = carver.take(round_up(d, g.cols) * all);
    x.q = carver.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.scores = carver.take(g.rows * ld);
    x.pairs = carver.take(g.bf16 ? g.rows * ld : 0);
    x.max = carver.take(g.rows);
    x.sum = carver.take(g.rows);
    x.size = carver.used();
    return x;
  };
  const kernels::TileStore store{};
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 8, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_heads(g, heads, ranges, len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.heads, h = task % s.heads;
    const ConstMatrix q = piece(qkv, b * len, len, h * d, d), k = piece(qkv, b * len, len, c + h * d, d),
                      v = piece(qkv, b * len, len, 2 * c + h * d, d);
    g.pack_b_panels(x.kt, k.t());
    g.pack_b_panels(x.v, v);
    const GemmA queries = queries_of(g, x.q, q);
    const GemmA weights = g.bf16 ? GemmA{x.pairs, ld, 1} : GemmA{x.scores, ld, 1};
    for (int64_t i = 0; i < len; i += g.rows) {
      const int64_t m = std::min(g.rows, len - i), keys = i + m, deep = g.units(keys);
      g.multiply(x.scores, ld, queries.at(i, 0), x.kt, depth, 0, depth, m, keys, store);
      const kernels::AttentionScores tile{.x = x.scores,
                                          .pairs = x.pairs,
                                          .ld = ld,
                                          .m = m,
                                          .n = i + 1,
                                          .width = deep * g.per_unit(),
                                          .scale = s.scale,
                                          .max = x.max,
                                          .sum = x.sum};
      t.attention_weights(&tile);
      float* const to = out.data + (b * len + i) * out.ld + h * d;
      g.multiply(to, out.ld, weights, x.v, all, 0, deep, m, d, store);
      t.scale_rows(to, out.ld, m, d, x.sum);
      for (int64_t r = 0; lse != nullptr && r < m; ++r) lse[task * len + i + r] = x.max[r] + std::log(x.sum[r]);
    }
  });
}

void CpuOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix qkv, const float* lse,
                                const AttentionShape& s) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t len = s.length, d = s.head_size, c = s.channels(), depth = g.units(d), all = g.units(len);
  const int64_t block = std::min(8 * g.rows, round_up(len, g.rows));  // query rows whose probabilities exist at once
  const int64_t ld = row_of_keys(len), ld_grad = round_up(d, 16) + 16;
  // In float32 a block of rows of p and ds, in bfloat16 a tile of them and a block of units.
  const int64_t kept = g.bf16 ? g.rows : block, block_units = g.units(block);

  struct Buffers {
    float *kt, *vt, *k, *q, *dout, *q_block, *dout_block, *p, *ds, *ds_rows, *p_units, *ds_units, *a, *dq, *dk, *dv;
    int64_t size;
  };
  const auto carve = [&](float* memory) {
    Carver carver(memory);
    Buffers x{};
    x.kt = carver.take(round_up(len, g.cols) * depth);
    x.vt = carver.take(round_up(len, g.cols) * depth);
    x.k = carver.take(round_up(d, g.cols) * all);
    x.q = carver.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.dout = carver.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.q_block = carver.take(round_up(d, g.cols) * block_units);
    x.dout_block = carver.take(round_up(d, g.cols) * block_units);
    x.p = carver.take(kept * ld);
    x.ds = carver.take(kept * ld);
    x.ds_rows = carver.take(g.bf16 ? g.rows * ld : 0);
    x.p_units = carver.take(g.bf16 ? block_units * ld : 0);
    x.ds_units = carver.take(g.bf16 ? block_units * ld : 0);
    x.a = carver.take(g.bf16 ? g.a_floats(g.rows, block) : 0);
    x.dq = carver.take(dqkv.pairs ? len * ld_grad : 0);
    x.dk = carver.take(dqkv.pairs ? len * ld_grad : 0);
    x.dv = carver.take(dqkv.pairs ? len * ld_grad : 0);
    x.size = carver.used();
    return x;
  };
  kernels::TileStore store{}, onto{};
  onto.accumulate = 1;
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 4, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_heads(g, heads, ranges, len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.heads, h = task % s.heads, first = b * len;
    const ConstMatrix q = piece(qkv, first, len, h * d, d), k = piece(qkv, first, len, c + h * d, d),
                      v = piece(qkv, first, len, 2 * c + h * d, d), go = piece(dout, first, len, h * d, d);
    float* const grad = dqkv.data + first * dqkv.ld + h * d;
    const int64_t ldg = dqkv.pairs ? ld_grad : dqkv.ld;
    float *const dq = dqkv.pairs ? x.dq : grad, *const dk = dqkv.pairs ? x.dk : grad + c,
                 *const dv = dqkv.pairs ? x.dv : grad + 2 * c;
    g.pack_b_panels(x.kt, k.t());
    g.pack_b_panels(x.vt, v.t());
    g.pack_b_panels(x.k, k);
    const GemmA q_rows = queries_of(g, x.q, q), go_rows = rows_of(g, x.dout, go);
    for (int64_t q0 = 0; q0 < len; q0 += block) {
      const int64_t queries = std::min(block, len - q0), keys = q0 + queries, query_units = g.units(queries);
      g.pack_b_panels(x.q_block, piece(q, q0, queries, 0, d));
      g.pack_b_panels(x.dout_block, piece(go, q0, queries, 0, d));
      for (int64_t i = 0; i < queries; i += g.rows) {
        const int64_t m = std::min(g.rows, queries - i), seen = q0 + i + m, deep = g.units(seen);
        const int64_t at = g.bf16 ? 0 : i * ld, unit = g.bf16 ? i / 2 : 0;
        const kernels::AttentionTile tile{.p = x.p + at,
                                          .dp = x.ds + at,
                                          .ld = ld,
                                          .m = m,
                                          .n = q0 + i + 1,
                                          .width = deep * g.per_unit(),
                                          .scale = s.scale,
                                          .lse = lse + task * len + q0 + i,
                                          .ds_rows = x.ds_rows,
                                          .p_units = x.p_units + unit * ld,
                                          .ds_units = x.ds_units + unit * ld,
                                          .units = g.units(m)};
        g.multiply(tile.p, ld, q_rows.at(q0 + i, 0), x.kt, depth, 0, depth, m, seen, store);
        g.multiply(tile.dp, ld, go_rows.at(q0 + i, 0), x.vt, depth, 0, depth, m, seen, store);
        (g.bf16 ? t.attention_gradient_pairs : t.attention_gradient)(&tile);
        const GemmA ds{g.bf16 ? x.ds_rows : tile.dp, ld, 1};
        g.multiply(dq + (q0 + i) * ldg, ldg, ds, x.k, all, 0, deep, m, d, store);
      }
      // dk and dv: the sum runs over the block's queries, of which those before a key do not see it. What a query has
      // beyond the keys of its own tile no tile of keys reads.
      const auto accumulate = [&](float* to, const float* from, const float* panels) {
        for (int64_t j = 0; j < keys; j += g.rows) {
          const int64_t m = std::min(g.rows, keys - j), skip = std::max<int64_t>(0, j - q0) / g.per_unit();
          const GemmA a = g.columns_of(x.a, from, ld, j, m, skip, query_units - skip);
          g.multiply(to + j * ldg, ldg, a, panels, query_units, skip, query_units - skip, m, d, j < q0 ? onto : store);
        }
      };
      accumulate(dk, g.bf16 ? x.ds_units : x.ds, x.q_block);
      accumulate(dv, g.bf16 ? x.p_units : x.p, x.dout_block);
    }
    if (dqkv.pairs) {
      const float* const parts[] = {dq, dk, dv};
      for (int64_t part = 0; part < 3; ++part) {
        const int64_t col = (part * c + h * d) / 2,
                      end = part == 2 && h + 1 == s.heads ? pairs_units(3 * c) : col + d / 2;
        t.round_rows(dqkv.data + first * dqkv.ld + col, dqkv.ld, parts[part], ldg, len, d, end - col);
      }
    }
  });
}

}  // namespace soma
