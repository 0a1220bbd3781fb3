// Causal attention, forward and backward. A task is one head of keys of one sequence, with the heads of queries that
// share it. Scores exist for one tile (forward) or block (backward) of query rows at a time, never T x T.
#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;

// The m rows from `row` on and the n columns from `col` on.
ConstMatrix piece(const ConstMatrix& x, int64_t row, int64_t m, int64_t col, int64_t n) {
  ConstMatrix p = x;
  p.data = x.at(row, col);
  p.rows = m;
  p.cols = n;
  return p;
}

// Rows of floats as A: in place, or as pairs in `memory`.
GemmA rows_of(const Gemm& g, float* memory, const ConstMatrix& x) {
  return g.bf16 ? g.copy_a(memory, x, 0, x.rows, 0, x.cols) : GemmA{x.data, x.ld, 1};
}

// Queries as A: in place, unless tiles would read into the next head.
GemmA queries_of(const Gemm& g, float* memory, const ConstMatrix& q) {
  if (!g.bf16) return {q.data, q.ld, 1};
  const bool whole = g.per_unit() * g.units(q.cols) == q.cols;
  return whole ? g.take_a(memory, q, 0, q.rows, 0, q.cols) : g.copy_a(memory, q, 0, q.rows, 0, q.cols);
}

// The distance between rows of scores. Kernels read and write up to 32 floats (two vectors) at a time. The 16 more keep
// rows in different sets of L1.
int64_t row_of_keys(int64_t keys) { return round_up(keys, 32) + 16; }

// Calls f(task, slot) for all tasks. Checks for an interrupt between groups of about a tenth of a second of work.
template <typename F>
void for_tasks(const Gemm& g, int64_t tasks, int64_t ranges, int64_t cost, F&& f) {
  constexpr int64_t kGroupCost = int64_t{1} << 31;
  const int64_t least = std::min<int64_t>(ranges, call_threads());
  const int64_t group = std::max(least, kGroupCost / std::max<int64_t>(cost, 1));
  for (int64_t first = 0; first < tasks; first += group) {
    check_interrupt();
    const int64_t count = std::min(group, tasks - first);
    for_numbered_ranges(count, std::min(ranges, count), 1, [&](int64_t range, int64_t begin, int64_t end) {
      const Gemm::Thread thread(g);
      for (int64_t task = begin; task < end; ++task) f(first + task, range);
    });
  }
}

// The first column of a head in a row of q | k | v.
int64_t q_col(const AttentionShape& s, int64_t head) { return head * s.head_size; }
int64_t k_col(const AttentionShape& s, int64_t head) { return s.q_dim() + head * s.head_size; }
int64_t v_col(const AttentionShape& s, int64_t head) { return s.q_dim() + s.kv_dim() + head * s.head_size; }

}  // namespace

void CpuOps::attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t len = s.length, d = s.head_size, depth = g.units(d), all = g.units(len);
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
  const int64_t tasks = s.batch * s.kv_heads, shared = s.heads / s.kv_heads;
  const int64_t ranges = range_count(tasks, shared * len * len * d / 8, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_tasks(g, tasks, ranges, shared * len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.kv_heads, kv_head = task % s.kv_heads, first = b * len;
    g.pack_b_panels(x.kt, piece(qkv, first, len, k_col(s, kv_head), d).t());
    g.pack_b_panels(x.v, piece(qkv, first, len, v_col(s, kv_head), d));
    for (int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
      const GemmA queries = queries_of(g, x.q, piece(qkv, first, len, q_col(s, h), d));
      const GemmA weights = g.bf16 ? GemmA{x.pairs, ld, 1} : GemmA{x.scores, ld, 1};
      float* const saved = lse != nullptr ? lse + (b * s.heads + h) * len : nullptr;
      for (int64_t i = 0; i < len; i += g.rows) {
        const int64_t m = std::min(g.rows, len - i), keys = i + m, deep = g.units(keys);
        g.multiply({x.scores, m, keys, ld}, queries.at(i, 0), {x.kt, depth}, depth, store);
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
        float* const to = out.data + (first + i) * out.ld + q_col(s, h);
        g.multiply({to, m, d, out.ld}, weights, {x.v, all}, deep, store);
        t.scale_rows(to, out.ld, m, d, x.sum);
        for (int64_t r = 0; saved != nullptr && r < m; ++r) saved[i + r] = x.max[r] + std::log(x.sum[r]);
      }
    }
  });
}

void CpuOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix, ConstMatrix qkv, const float* lse,
                                const AttentionShape& s, const RotationGradient* rotated) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t len = s.length, d = s.head_size, depth = g.units(d), all = g.units(len);
  const int64_t block = std::min(8 * g.rows, round_up(len, g.rows));  // query rows with probabilities at one time
  const int64_t ld = row_of_keys(len), ld_grad = round_up(d, 16) + 16;
  // Rows of p and ds in floats: a block in float32; in bfloat16 a tile, beside a block of units.
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
  const int64_t tasks = s.batch * s.kv_heads, shared = s.heads / s.kv_heads;
  const int64_t ranges = range_count(tasks, shared * len * len * d / 4, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_tasks(g, tasks, ranges, shared * len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.kv_heads, kv_head = task % s.kv_heads, first = b * len;
    const ConstMatrix k = piece(qkv, first, len, k_col(s, kv_head), d),
                      v = piece(qkv, first, len, v_col(s, kv_head), d);
    // The place of the gradient of a head of q, k or v: in dqkv, or in a buffer that is then rounded into pairs.
    const int64_t ldg = dqkv.pairs ? ld_grad : dqkv.ld;
    const auto place = [&](float* beside, int64_t col) { return dqkv.pairs ? beside : dqkv.row(first) + col; };
    const auto finish = [&](const float* from, int64_t col) {
      if (!dqkv.pairs) return;
      const int64_t end = col + d == s.qkv_dim() ? pairs_units(s.qkv_dim()) : (col + d) / 2;
      t.round_rows(dqkv.row(first) + col / 2, dqkv.ld, from, ldg, len, d, end - col / 2);
    };
    // Turns dx, the gradient of the head at `col`, into the gradient before the rotation, in place. Row `index` of
    // `gains` becomes the gradient of the gain.
    const auto rotate_back = [&](float* dx, int64_t col, const float* gamma, float* gains, int64_t index) {
      float* const gain = gamma != nullptr ? gains + index * d : nullptr;
      if (gamma != nullptr) std::fill(gain, gain + d, 0.0f);
      const kernels::HeadBackward head{.dx = dx,
                                       .ld = ldg,
                                       .x = gamma != nullptr ? rotated->before.at(first, col) : nullptr,
                                       .ld_x = rotated->before.ld,
                                       .gamma = gamma,
                                       .turns = rotated->rotation.turns,
                                       .dgamma = gain,
                                       .rows = len,
                                       .d = d,
                                       .eps = rotated->rotation.eps};
      t.rotate_head_backward(&head);
    };
    float *const dk = place(x.dk, k_col(s, kv_head)), *const dv = place(x.dv, v_col(s, kv_head));
    g.pack_b_panels(x.kt, k.t());
    g.pack_b_panels(x.vt, v.t());
    g.pack_b_panels(x.k, k);
    for (int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
      const ConstMatrix q = piece(qkv, first, len, q_col(s, h), d), go = piece(dout, first, len, q_col(s, h), d);
      float* const dq = place(x.dq, q_col(s, h));
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
                                            .lse = lse + (b * s.heads + h) * len + q0 + i,
                                            .ds_rows = x.ds_rows,
                                            .p_units = x.p_units + unit * ld,
                                            .ds_units = x.ds_units + unit * ld,
                                            .units = g.units(m)};
          g.multiply({tile.p, m, seen, ld}, q_rows.at(q0 + i, 0), {x.kt, depth}, depth, store);
          g.multiply({tile.dp, m, seen, ld}, go_rows.at(q0 + i, 0), {x.vt, depth}, depth, store);
          (g.bf16 ? t.attention_gradient_pairs : t.attention_gradient)(&tile);
          const GemmA ds{g.bf16 ? x.ds_rows : tile.dp, ld, 1};
          g.multiply({dq + (q0 + i) * ldg, m, d, ldg}, ds, {x.k, all}, deep, store);
        }
        // dk and dv: sums over the queries of the block, then over the heads. Queries before a key are skipped, since
        // they do not see it. No tile of keys reads the entries of a query beyond the keys of its own tile.
        const bool first_head = h == kv_head * shared;
        const auto accumulate = [&](float* to, const float* from, const float* panels) {
          for (int64_t j = 0; j < keys; j += g.rows) {
            const int64_t m = std::min(g.rows, keys - j), skip = std::max<int64_t>(0, j - q0) / g.per_unit();
            const GemmA a = g.columns_of(x.a, from, ld, j, m, skip, query_units - skip);
            g.multiply({to + j * ldg, m, d, ldg}, a, {panels, query_units, skip}, query_units - skip,
                       j < q0 || !first_head ? onto : store);
          }
        };
        accumulate(dk, g.bf16 ? x.ds_units : x.ds, x.q_block);
        accumulate(dv, g.bf16 ? x.p_units : x.p, x.dout_block);
      }
      if (rotated != nullptr) {
        rotate_back(dq, q_col(s, h), rotated->rotation.q_gain, rotated->q_gain, b * s.heads + h);
      }
      finish(dq, q_col(s, h));
    }
    if (rotated != nullptr) {
      rotate_back(dk, k_col(s, kv_head), rotated->rotation.k_gain, rotated->k_gain, task);
    }
    finish(dk, k_col(s, kv_head));
    finish(dv, v_col(s, kv_head));
  });
}

}  // namespace soma
