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

// One head of one sequence inside packed buffers: x(T, D) with distance ld between rows.
struct Head {
  const float* data;
  int64_t ld;
  const float* row(int64_t i) const { return data + i * ld; }
};

// Hands out pieces of a thread's scratch; with a null base it only measures.
struct Pieces {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* piece = base == nullptr ? nullptr : base + used;
    used += round_up(floats, 16);
    return piece;
  }
};

// f(head, slot) over all heads, in groups of about a tenth of a second of work between which the caller may stop.
template <typename F>
void for_heads(const Gemm& g, int64_t heads, int64_t ranges, int64_t cost, F&& f) {
  constexpr int64_t kGroupCost = int64_t{1} << 31;
  const int64_t group = std::max(ranges, kGroupCost / std::max<int64_t>(cost, 1));
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
  const int64_t ld = round_up(len, g.cols) + 16;  // + 16: rows must not share their L1 sets
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));

  struct Buffers {
    float *kt, *v, *q, *scores, *p;
    int64_t size;
  };
  const auto carve = [&](float* memory) {
    Pieces pieces{memory};
    Buffers x{};
    x.kt = pieces.take(round_up(len, g.cols) * depth);
    x.v = pieces.take(round_up(d, g.cols) * all);
    x.q = pieces.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.scores = pieces.take(g.rows * ld);
    x.p = pieces.take(g.bf16 ? g.a_floats(g.rows, len) : 0);
    x.size = pieces.used;
    return x;
  };
  const kernels::TileStore store{};
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 8, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_heads(g, heads, ranges, len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.heads, h = task % s.heads;
    const float* base = qkv.data + b * len * qkv.ld + h * d;
    const Head k{base + c, qkv.ld}, v{base + 2 * c, qkv.ld};
    g.pack_b_panels(x.kt, k.data, k.ld, d, len, true);
    g.pack_b_panels(x.v, v.data, v.ld, len, d, false);
    const GemmA q = g.take_a(x.q, base, qkv.ld, len, d, false);
    for (int64_t i = 0; i < len; i += g.rows) {
      const int64_t m = std::min(g.rows, len - i), keys = i + m, seen = g.units(keys);
      g.multiply(x.scores, ld, q.at(i, 0), x.kt, depth, 0, depth, m, keys, store);
      for (int64_t r = 0; r < m; ++r) {
        float max = 0.0f, sum = 0.0f;
        float* row = x.scores + r * ld;
        t.softmax_row(row, i + r + 1, scale, &max, &sum);
        if (lse != nullptr) lse[task * len + i + r] = max + std::log(sum);
        std::fill(row + i + r + 1, row + keys, 0.0f);
      }
      const GemmA p = g.take_a(x.p, x.scores, ld, m, keys, false);
      g.multiply(out.data + (b * len + i) * out.ld + h * d, out.ld, p, x.v, all, 0, seen, m, d, store);
    }
  });
}

void CpuOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                                const AttentionShape& s) {
  const Table& t = active_kernels();
  const Gemm g(t, precision_);
  const int64_t len = s.length, d = s.head_size, c = s.channels(), depth = g.units(d), all = g.units(len);
  const int64_t block = 8 * g.rows;  // query rows whose probabilities exist at once
  const int64_t ld = round_up(len, g.cols) + 16;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));

  struct Buffers {
    float *kt, *vt, *k, *q, *dout, *q_block, *dout_block, *p, *ds, *a;
    int64_t size;
  };
  const auto carve = [&](float* memory) {
    Pieces pieces{memory};
    Buffers x{};
    x.kt = pieces.take(round_up(len, g.cols) * depth);
    x.vt = pieces.take(round_up(len, g.cols) * depth);
    x.k = pieces.take(round_up(d, g.cols) * all);
    x.q = pieces.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.dout = pieces.take(g.bf16 ? g.a_floats(len, d) : 0);
    x.q_block = pieces.take(round_up(d, g.cols) * g.units(block));
    x.dout_block = pieces.take(round_up(d, g.cols) * g.units(block));
    x.p = pieces.take(block * ld);
    x.ds = pieces.take(block * ld);
    x.a = pieces.take(g.bf16 ? std::max(g.a_floats(g.rows, len), g.a_floats(len, block)) : 0);
    x.size = pieces.used;
    return x;
  };
  kernels::TileStore store{}, onto{};
  onto.accumulate = 1;
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 4, 1);
  reserve_scratch(ranges, carve(nullptr).size);

  for_heads(g, heads, ranges, len * len * d, [&](int64_t task, int64_t range) {
    const Buffers x = carve(scratch(range));
    const int64_t b = task / s.heads, h = task % s.heads, first = b * len;
    const float* base = qkv.data + first * qkv.ld + h * d;
    float* grad = dqkv.data + first * dqkv.ld + h * d;
    const Head q{base, qkv.ld}, k{base + c, qkv.ld}, v{base + 2 * c, qkv.ld};
    const Head o{out.data + first * out.ld + h * d, out.ld}, go{dout.data + first * dout.ld + h * d, dout.ld};
    g.pack_b_panels(x.kt, k.data, k.ld, d, len, true);
    g.pack_b_panels(x.vt, v.data, v.ld, d, len, true);
    g.pack_b_panels(x.k, k.data, k.ld, len, d, false);
    const GemmA q_rows = g.take_a(x.q, q.data, q.ld, len, d, false);
    const GemmA go_rows = g.take_a(x.dout, go.data, go.ld, len, d, false);
    for (int64_t q0 = 0; q0 < len; q0 += block) {
      const int64_t queries = std::min(block, len - q0), keys = q0 + queries, query_units = g.units(queries);
      g.pack_b_panels(x.q_block, q.row(q0), q.ld, queries, d, false);
      g.pack_b_panels(x.dout_block, go.row(q0), go.ld, queries, d, false);
      for (int64_t i = 0; i < queries; i += g.rows) {
        const int64_t m = std::min(g.rows, queries - i), seen = q0 + i + m;
        float* p = x.p + i * ld;
        float* ds = x.ds + i * ld;
        g.multiply(p, ld, q_rows.at(q0 + i, 0), x.kt, depth, 0, depth, m, seen, store);
        g.multiply(ds, ld, go_rows.at(q0 + i, 0), x.vt, depth, 0, depth, m, seen, store);
        for (int64_t r = 0; r < m; ++r) {
          const int64_t position = q0 + i + r, n = position + 1;
          float* p_row = p + r * ld;
          float* ds_row = ds + r * ld;
          t.exp_row(p_row, p_row, n, scale, lse[task * len + position]);
          t.attention_dscores(ds_row, p_row, ds_row, t.dot(go.row(position), o.row(position), d), scale, n);
          std::fill(p_row + n, p_row + keys, 0.0f);
          std::fill(ds_row + n, ds_row + keys, 0.0f);
        }
        const GemmA a = g.take_a(x.a, ds, ld, m, seen, false);
        g.multiply(grad + (q0 + i) * dqkv.ld, dqkv.ld, a, x.k, all, 0, g.units(seen), m, d, store);
      }
      // dk and dv: the sum runs over the block's queries, of which those before a key do not see it.
      const auto accumulate = [&](float* to, const float* from, const float* panels) {
        const GemmA a = g.take_a(x.a, from, ld, keys, queries, true);
        for (int64_t j = 0; j < keys; j += g.rows) {
          const int64_t skip = std::max<int64_t>(0, j - q0) / g.per_unit() / g.depth_step * g.depth_step;
          g.multiply(to + j * dqkv.ld, dqkv.ld, a.at(j, skip), panels, query_units, skip, query_units - skip,
                     std::min(g.rows, keys - j), d, j < q0 ? onto : store);
        }
      };
      accumulate(grad + c, x.ds, x.q_block);
      accumulate(grad + 2 * c, x.p, x.dout_block);
    }
  });
}

}  // namespace soma
