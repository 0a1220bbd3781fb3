// Causal attention, forward and backward. One task is one head of one sequence. The scores of a tile of
// query rows (forward) or of a block of them (backward) exist at a time, never T x T.
#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::Table;
using kernels::TileStore;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// One head of one sequence inside packed buffers: x(T, D) with distance ld between rows.
struct Head {
  const float* data;
  int64_t ld;
  const float* row(int64_t i) const { return data + i * ld; }
};

// B operand from x^T: panels over positions, k over the head.
void pack_transposed(const Table& t, float* dst, Head x, int64_t length, int64_t head_size) {
  for (int64_t j = 0; j < length; j += t.gemm_cols) {
    t.pack_b_transpose(dst + j * head_size, x.row(j), x.ld, head_size, std::min<int64_t>(t.gemm_cols, length - j));
  }
}

// B operand from x: panels over the head, k over positions.
void pack_plain(const Table& t, float* dst, Head x, int64_t length, int64_t head_size) {
  for (int64_t j = 0; j < head_size; j += t.gemm_cols) {
    t.pack_b_copy(dst + j * length, x.data + j, x.ld, length, std::min<int64_t>(t.gemm_cols, head_size - j));
  }
}

// c(m, n) = or += a b for one tile of rows and every panel of columns; b's panels are `panel_depth` deep, used from
// `skip`.
void multiply(const Table& t, float* c, int64_t ldc, const float* a, const float* b, int64_t panel_depth, int64_t skip,
              int64_t k, int64_t m, int64_t n, bool accumulate) {
  TileStore store{};
  store.accumulate = accumulate;
  for (int64_t j = 0; j < n; j += t.gemm_cols) {
    t.gemm_tile(c + j, ldc, a, b + j * panel_depth + skip * t.gemm_cols, k, m, std::min<int64_t>(t.gemm_cols, n - j),
                &store);
  }
}

// f(head, slot) over all heads, in groups of about a tenth of a second of work between which the caller may stop.
template <typename F>
void for_heads(int64_t heads, int64_t ranges, int64_t cost, F&& f) {
  constexpr int64_t kGroupCost = int64_t{1} << 31;
  const int64_t group = std::max(ranges, kGroupCost / std::max<int64_t>(cost, 1));
  for (int64_t first = 0; first < heads; first += group) {
    check_interrupt();
    const int64_t count = std::min(group, heads - first);
    for_numbered_ranges(count, std::min(ranges, count), 1, [&](int64_t range, int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) f(first + head, range);
    });
  }
}

}  // namespace

void CpuOps::attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s) {
  const Table& t = active_kernels();
  const int64_t mr = t.gemm_rows, nr = t.gemm_cols, len = s.length, d = s.head_size, c = s.channels();
  const int64_t padded = round_up(len, nr), ld = padded + 16;  // + 16: rows must not share their L1 sets
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 8, 1);
  reserve_scratch(ranges, padded * d + round_up(d, nr) * len + d * mr + mr * ld + len * mr);

  const auto head_task = [&](int64_t task, float* memory) {
    const int64_t b = task / s.heads, h = task % s.heads;
    const float* base = qkv.data + b * len * qkv.ld + h * d;
    const Head q{base, qkv.ld}, k{base + c, qkv.ld}, v{base + 2 * c, qkv.ld};
    float* kt = memory;
    float* vp = kt + padded * d;
    float* q_tile = vp + round_up(d, nr) * len;
    float* scores = q_tile + d * mr;
    float* p_tile = scores + mr * ld;
    pack_transposed(t, kt, k, len, d);
    pack_plain(t, vp, v, len, d);
    for (int64_t i = 0; i < len; i += mr) {
      const int64_t m = std::min(mr, len - i), keys = i + m;
      t.pack_a_transpose(q_tile, q.row(i), q.ld, d, m);
      multiply(t, scores, ld, q_tile, kt, d, 0, d, m, keys, false);
      for (int64_t r = 0; r < m; ++r) {
        float max = 0.0f, sum = 0.0f;
        t.softmax_row(scores + r * ld, i + r + 1, scale, &max, &sum);
        if (lse != nullptr) lse[task * len + i + r] = max + std::log(sum);
        std::fill(scores + r * ld + i + r + 1, scores + r * ld + keys, 0.0f);
      }
      t.pack_a_transpose(p_tile, scores, ld, keys, m);
      multiply(t, out.data + (b * len + i) * out.ld + h * d, out.ld, p_tile, vp, len, 0, keys, m, d, false);
    }
  };
  for_heads(heads, ranges, len * len * d, [&](int64_t task, int64_t range) { head_task(task, scratch(range)); });
}

void CpuOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                                const AttentionShape& s) {
  const Table& t = active_kernels();
  const int64_t mr = t.gemm_rows, nr = t.gemm_cols, len = s.length, d = s.head_size, c = s.channels();
  const int64_t block = 8 * mr;  // query rows whose probabilities exist at once
  const int64_t padded = round_up(len, nr), padded_d = round_up(d, nr), ld = padded + 16;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const int64_t heads = s.batch * s.heads, ranges = range_count(heads, len * len * d / 4, 1);
  reserve_scratch(ranges, 2 * padded * d + padded_d * len + 2 * padded_d * block + 2 * block * ld + 2 * d * mr +
                              std::max(len, block) * mr);

  const auto head_task = [&](int64_t task, float* memory) {
    const int64_t b = task / s.heads, h = task % s.heads, first = b * len;
    const float* base = qkv.data + first * qkv.ld + h * d;
    float* grad = dqkv.data + first * dqkv.ld + h * d;
    const Head q{base, qkv.ld}, k{base + c, qkv.ld}, v{base + 2 * c, qkv.ld};
    const Head o{out.data + first * out.ld + h * d, out.ld}, g{dout.data + first * dout.ld + h * d, dout.ld};
    float* kt = memory;
    float* vt = kt + padded * d;
    float* kp = vt + padded * d;
    float* q_block = kp + padded_d * len;
    float* g_block = q_block + padded_d * block;
    float* p = g_block + padded_d * block;
    float* ds = p + block * ld;
    float* q_tile = ds + block * ld;
    float* g_tile = q_tile + d * mr;
    float* a_tile = g_tile + d * mr;
    pack_transposed(t, kt, k, len, d);
    pack_transposed(t, vt, v, len, d);
    pack_plain(t, kp, k, len, d);
    for (int64_t q0 = 0; q0 < len; q0 += block) {
      const int64_t queries = std::min(block, len - q0), keys = q0 + queries;
      pack_plain(t, q_block, {q.row(q0), q.ld}, queries, d);
      pack_plain(t, g_block, {g.row(q0), g.ld}, queries, d);
      for (int64_t i = 0; i < queries; i += mr) {
        const int64_t m = std::min(mr, queries - i), seen = q0 + i + m;
        float* p_rows = p + i * ld;
        float* ds_rows = ds + i * ld;
        t.pack_a_transpose(q_tile, q.row(q0 + i), q.ld, d, m);
        t.pack_a_transpose(g_tile, g.row(q0 + i), g.ld, d, m);
        multiply(t, p_rows, ld, q_tile, kt, d, 0, d, m, seen, false);
        multiply(t, ds_rows, ld, g_tile, vt, d, 0, d, m, seen, false);
        for (int64_t r = 0; r < m; ++r) {
          const int64_t position = q0 + i + r, n = position + 1;
          float* p_row = p_rows + r * ld;
          float* ds_row = ds_rows + r * ld;
          t.exp_row(p_row, p_row, n, scale, lse[task * len + position]);
          t.attention_dscores(ds_row, p_row, ds_row, t.dot(g.row(position), o.row(position), d), scale, n);
          std::fill(p_row + n, p_row + keys, 0.0f);
          std::fill(ds_row + n, ds_row + keys, 0.0f);
        }
        t.pack_a_transpose(a_tile, ds_rows, ld, seen, m);
        multiply(t, grad + (q0 + i) * dqkv.ld, dqkv.ld, a_tile, kp, len, 0, seen, m, d, false);
      }
      for (int64_t j = 0; j < keys; j += mr) {
        const int64_t m = std::min(mr, keys - j);
        const int64_t skip = std::max<int64_t>(0, j - q0), depth = queries - skip;  // earlier queries do not see key j
        t.pack_a_copy(a_tile, ds + skip * ld + j, ld, depth, m);
        multiply(t, grad + j * dqkv.ld + c, dqkv.ld, a_tile, q_block, queries, skip, depth, m, d, j < q0);
        t.pack_a_copy(a_tile, p + skip * ld + j, ld, depth, m);
        multiply(t, grad + j * dqkv.ld + 2 * c, dqkv.ld, a_tile, g_block, queries, skip, depth, m, d, j < q0);
      }
    }
  };
  for_heads(heads, ranges, len * len * d, [&](int64_t task, int64_t range) { head_task(task, scratch(range)); });
}

}  // namespace soma
