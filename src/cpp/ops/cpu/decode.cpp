// Operations of generation on the CPU: packing of weights, and the division of outputs, heads and rows among threads.
#include "ops/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/arena.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/prompt.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

using kernels::RowsProduct;
using kernels::Table;

constexpr int64_t kPanel = kDecodePanel;
constexpr int64_t kOwnNorm = 4;  // for at most so few rows, norming in each thread is faster than waiting

int64_t weight_bytes(WeightFormat format) {
  return format == WeightFormat::kFloat32 ? 4 : format == WeightFormat::kBfloat16 ? 2 : 1;
}

uint32_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bits >> 16) | 0x40u;  // NaN stays NaN
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

// Reads one panel of W(k, n) row by row. Missing outputs of the last panel are zero.
struct Panel {
  const ConstMatrix& w;
  int64_t first, count;
  const float* row(int64_t k, float* buffer) const {
    const float* from = w.transposed ? w.data + first * w.ld + k : w.data + k * w.ld + first;
    if (!w.transposed && count == kPanel) return from;
    const int64_t step = w.transposed ? w.ld : 1;
    for (int64_t j = 0; j < kPanel; ++j) buffer[j] = j < count ? from[j * step] : 0.0f;
    return buffer;
  }
};

void pack_float32(char* dst, const Panel& panel, int64_t inner) {
  float buffer[kPanel];
  for (int64_t k = 0; k < inner; ++k, dst += 4 * kPanel) std::memcpy(dst, panel.row(k, buffer), 4 * kPanel);
}

void pack_bfloat16(char* dst, const Panel& panel, int64_t inner) {
  float buffer[kPanel];
  for (int64_t k = 0; k < inner; ++k, dst += 2 * kPanel) {
    const float* row = panel.row(k, buffer);
    uint32_t pairs[kPanel / 2];
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t i = 0; i < 16; ++i) {
        const float* pair = row + half * 32 + i;
        pairs[half * 16 + i] = to_bfloat16(pair[0]) | to_bfloat16(pair[16]) << 16;
      }
    }
    std::memcpy(dst, pairs, sizeof(pairs));
  }
}

void pack_int8(char* dst, float* scales, const Panel& panel, int64_t inner) {
  float buffer[kPanel], most[kPanel] = {}, inverse[kPanel] = {}, infinite[kPanel] = {};
  for (int64_t k = 0; k < inner; ++k) {
    const float* row = panel.row(k, buffer);
    for (int64_t j = 0; j < kPanel; ++j) {
      const float size = std::fabs(row[j]);
      most[j] = size > most[j] ? size : most[j];
      infinite[j] += 0.0f * row[j];  // NaN once a weight is not finite
    }
  }
  for (int64_t j = 0; j < panel.count; ++j) {
    scales[j] = most[j] / 127.0f + infinite[j];
    inverse[j] = 1.0f / scales[j];
    if (!std::isfinite(inverse[j])) inverse[j] = 0.0f;  // the weights are 0, or too small to scale
  }
  for (int64_t k = 0; k < inner; ++k, dst += kPanel) {
    const float* row = panel.row(k, buffer);
    for (int64_t j = 0; j < kPanel; ++j) {
      const float q = inverse[j] == 0.0f ? 0.0f : row[j] * inverse[j];
      dst[j] = static_cast<char>(static_cast<int>(std::nearbyint(std::clamp(q, -127.0f, 127.0f))));
    }
  }
}

// Computes outputs [begin, end) of y. A panel begins at begin.
void linear_range(const Matrix& y, const Matrix& x, const DecodeMatrix& w, const RowEpilogue& e, int64_t begin,
                  int64_t end) {
  const Table& t = active_kernels();
  if (w.layout == WeightLayout::kLiveTransposed) {  // a head: no epilogue
    const auto* data = reinterpret_cast<const float*>(w.data);
    constexpr int64_t kChunk = 16;  // rows of w that stay in cache while the rows of x pass
    for (int64_t j = begin; j < end; j += kChunk) {
      for (int64_t r = 0; r < x.rows; ++r) {
        t.dot_rows(y.row(r) + j, x.row(r), data + j * w.inner, w.inner, std::min(kChunk, end - j), w.inner);
      }
    }
    return;
  }
  const int64_t bytes = weight_bytes(w.format);
  const bool packed = w.layout == WeightLayout::kPanels;
  RowsProduct p = finish_of(y, w, e, begin, end);
  p.x = x.data;
  p.ldx = x.ld;
  p.row_stride = bytes * (packed ? kPanel : w.outer);
  p.panel_stride = bytes * (packed ? kPanel * w.inner : kPanel);
  p.w = w.data + begin / kPanel * p.panel_stride;
  p.k = w.inner;
  p.fetch = w.fetch;
  switch (w.format) {
    case WeightFormat::kFloat32:
      return t.product_float32(&p);
    case WeightFormat::kBfloat16:
      return t.product_bfloat16(&p);
    case WeightFormat::kInt8:
      return t.product_int8(&p);
  }
}

// The share of a thread in a product. The constructor may round the rows first, on all threads of the region.
class LinearTask {
 public:
  LinearTask(const ParallelRegion& region, const Matrix& y, const Matrix& x, const DecodeMatrix& w,
             const RowEpilogue& e, const PromptMemory* memory)
      : y_(y),
        x_(x),
        w_(w),
        e_(e),
        gemm_(active_kernels(), w.format == WeightFormat::kFloat32 ? Precision::kFloat32 : Precision::kBfloat16) {
    if (memory == nullptr) return;
    if (w.format == WeightFormat::kFloat32) {
      if (!prompt_by_tiles(gemm_, w)) return;
      rows_ = {x.data, x.ld, 1};
    } else if (!gemm_.has_instruction()) {  // widened weights and float32 sums are faster, with the same products
      x_ = prompt_floats(region, x, memory->rows);
      return;
    } else {
      rows_ = prompt_pairs(region, gemm_, x, memory->rows);
    }
    panels_ = memory->panels + region.rank * kPromptPanels;
  }
  // Computes outputs [begin, end). A panel begins at begin.
  void run(int64_t begin, int64_t end) const {
    if (panels_ == nullptr) return linear_range(y_, x_, w_, e_, begin, end);
    prompt_range({gemm_, y_, rows_, w_, e_}, begin, end, panels_);
  }

 private:
  const Matrix& y_;
  Matrix x_;
  const DecodeMatrix& w_;
  const RowEpilogue e_;  // a copy: callers may pass a temporary
  const Gemm gemm_;
  GemmA rows_;
  float* panels_ = nullptr;
};

// Whether each thread can compute q, k and v of its own heads of attention.
bool heads_are_own(const ParallelRegion& region, const HeadShape& s) {
  return s.kv_heads % region.size == 0 && s.kv_dim() / region.size % kPanel == 0;
}

// Writes the key and the value of a head behind the positions that its row has. In bfloat16 two positions share a
// dword, so each half is written by itself.
void append(const CacheRow& row, int64_t head, const float* k, const float* v, int64_t d) {
  const int64_t j = row.length, block = cache_block(row.format);
  const int64_t start = cache_floats(row.format, head * row.capacity, d);
  float* const keys = row.keys + start + j / block * 16 * d + j % 16;
  if (row.format == CacheFormat::kFloat32) {
    for (int64_t i = 0; i < d; ++i) keys[i * 16] = k[i];
    std::copy(v, v + d, row.values + start + j * d);
    return;
  }
  auto* const key = reinterpret_cast<uint16_t*>(keys) + j % block / 16;
  auto* const value = reinterpret_cast<uint16_t*>(row.values + start + j / 2 * d) + j % 2;
  for (int64_t i = 0; i < d; ++i) {
    key[32 * i] = static_cast<uint16_t>(to_bfloat16(k[i]));
    value[2 * i] = static_cast<uint16_t>(to_bfloat16(v[i]));
  }
}

}  // namespace

DecodeMatrix live_weights(ConstMatrix w) {
  const WeightLayout layout = w.transposed ? WeightLayout::kLiveTransposed : WeightLayout::kLive;
  return {WeightFormat::kFloat32, layout, w.height(), w.width(), reinterpret_cast<const char*>(w.data), nullptr, false};
}

int64_t DecodeMatrix::bytes() const {
  return layout == WeightLayout::kPanels ? 4 * packed_size(format, inner, outer) : 4 * inner * outer;
}

int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer) {
  return ceil_div(outer, kPanel) * kPanel * inner * weight_bytes(format) / 4;
}

DecodeMatrix pack_weights(float* packed, float* scales, WeightFormat format, ConstMatrix w) {
  const int64_t inner = w.height(), outer = w.width(), stride = kPanel * inner * weight_bytes(format);
  char* data = reinterpret_cast<char*>(packed);
  parallel_for(ceil_div(outer, kPanel), [&](int64_t i) {
    const Panel panel{w, i * kPanel, std::min(kPanel, outer - i * kPanel)};
    switch (format) {
      case WeightFormat::kFloat32:
        return pack_float32(data + i * stride, panel, inner);
      case WeightFormat::kBfloat16:
        return pack_bfloat16(data + i * stride, panel, inner);
      case WeightFormat::kInt8:
        return pack_int8(data + i * stride, scales + i * kPanel, panel, inner);
    }
  });
  return {format, WeightLayout::kPanels, inner, outer, data, format == WeightFormat::kInt8 ? scales : nullptr, false};
}

void decode_embed(float* out, const DecodeMatrix& table, int64_t output) {
  const auto* floats = reinterpret_cast<const float*>(table.data);
  if (table.layout == WeightLayout::kLiveTransposed) {
    std::copy(floats + output * table.inner, floats + (output + 1) * table.inner, out);
    return;
  }
  const int64_t bytes = weight_bytes(table.format), j = output % kPanel;
  const char* panel = table.data + output / kPanel * kPanel * table.inner * bytes;
  for (int64_t k = 0; k < table.inner; ++k, panel += kPanel * bytes) {
    if (table.format == WeightFormat::kFloat32) {
      std::memcpy(out + k, panel + 4 * j, 4);
    } else if (table.format == WeightFormat::kInt8) {
      out[k] = table.scales[output] * static_cast<float>(static_cast<signed char>(panel[j]));
    } else {
      uint32_t bits;
      std::memcpy(&bits, panel + 4 * (j / 32 * 16 + j % 16), 4);
      bits = j % 32 < 16 ? bits << 16 : bits & 0xFFFF0000u;
      std::memcpy(out + k, &bits, 4);
    }
  }
}

void decode_linear(const ParallelRegion& region, const Matrix& y, const Matrix& x, const DecodeMatrix& w,
                   const RowEpilogue& e, const PromptMemory* memory) {
  const LinearTask task(region, y, x, w, e, memory);
  region.share(w.outer, kPanel, [&](int64_t begin, int64_t end) { task.run(begin, end); });
}

void decode_qkv(const ParallelRegion& region, const Matrix& qkv, const Matrix& x, const DecodeMatrix& w,
                const float* bias, const HeadShape& s, const PromptMemory* memory) {
  const RowEpilogue e{.bias = bias};
  if (!heads_are_own(region, s)) {
    decode_linear(region, qkv, x, w, e, memory);
    return region.wait();
  }
  const LinearTask task(region, qkv, x, w, e, memory);
  if (region.size == 1) return task.run(0, w.outer);
  const auto part = [&](int64_t begin, int64_t width) {
    task.run(begin + width * region.rank / region.size, begin + width * (region.rank + 1) / region.size);
  };
  part(0, s.q_dim());
  part(s.q_dim(), s.kv_dim());
  part(s.q_dim() + s.kv_dim(), s.kv_dim());
}

void decode_swiglu(const ParallelRegion& region, const Matrix& y, const Matrix& hidden, const Matrix& x,
                   const DecodeMatrix& w, const PromptMemory* memory) {
  const Table& t = active_kernels();
  const int64_t f = y.cols;
  const auto activate = [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < y.rows; ++r) {
      const float* const gate = hidden.row(r) + begin;
      t.swiglu_forward(y.row(r) + begin, gate, gate + f, end - begin);
    }
  };
  if (f % kPanel != 0) {  // `up` begins within a panel
    decode_linear(region, hidden, x, w, {}, memory);
    region.wait();
    return region.share(f, 16, activate);
  }
  const LinearTask task(region, hidden, x, w, {}, memory);
  region.share(f, kPanel, [&](int64_t begin, int64_t end) {
    task.run(begin, end);
    task.run(f + begin, f + end);
    activate(begin, end);
  });
}

void decode_attention(const ParallelRegion& region, const Matrix& out, const Matrix& qkv, const CacheRow* cache,
                      const HeadShape& s, float* scores, const Rotation* rotation) {
  const Table& t = active_kernels();
  const int64_t d = s.head_size, shared = s.heads / s.kv_heads;
  scores += region.rank * (cache[0].capacity + 16);
  // Calls f(columns of the head in a row of qkv, head, row) for all rows of a head, then the next head. So a thread
  // with heads of its own appends all that it reads.
  const auto each_head = [&](int64_t heads, int64_t first, auto&& f) {
    region.share(heads * out.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / out.rows, r = task % out.rows;
        f(qkv.row(r) + first + head * d, head, r);
      }
    });
  };
  const auto rotate = [&](float* head, const float* gain, int64_t position) {
    if (rotation == nullptr) return;
    const kernels::HeadsForward how{.y = head,
                                    .x = head,
                                    .gamma = gain,
                                    .turn = rotation->turns + position * d,
                                    .heads = 1,
                                    .d = d,
                                    .eps = rotation->eps};
    t.rotate_heads(&how);
  };
  each_head(s.kv_heads, s.q_dim(), [&](float* k, int64_t head, int64_t r) {
    rotate(k, rotation != nullptr ? rotation->k_gain : nullptr, cache[r].length);
    append(cache[r], head, k, k + s.kv_dim(), d);
  });
  if (!heads_are_own(region, s)) region.wait();
  each_head(s.heads, 0, [&](float* q, int64_t h, int64_t r) {
    const int64_t start = cache_floats(cache[r].format, h / shared * cache[r].capacity, d);
    rotate(q, rotation != nullptr ? rotation->q_gain : nullptr, cache[r].length);
    const kernels::CachedHead head{.out = out.row(r) + h * d,
                                   .q = q,
                                   .keys = cache[r].keys + start,
                                   .values = cache[r].values + start,
                                   .n = cache[r].length + 1,
                                   .head_size = d,
                                   .scale = s.scale,
                                   .scores = scores};
    cache[r].format == CacheFormat::kBfloat16 ? t.attend_bfloat16(&head) : t.attend_float32(&head);
  });
}

int64_t norm_rows(int64_t rows, int64_t threads) { return rows <= kOwnNorm ? rows * threads : rows; }

Matrix decode_norm(const ParallelRegion& region, float* buffer, const Matrix& x, const NormWeights& w, float eps) {
  const Table& t = active_kernels();
  const auto forward = w.kind == NormKind::kRmsNorm ? t.rms_norm_forward : t.norm_forward;
  Matrix y{buffer, x.rows, x.cols, x.ld};
  const auto norm = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const kernels::NormForward row{.y = y.row(r),
                                     .mean = nullptr,
                                     .rstd = nullptr,
                                     .x = x.row(r),
                                     .gamma = w.gamma,
                                     .beta = w.beta,
                                     .rows = 1,
                                     .c = x.cols,
                                     .eps = eps};
      forward(&row);
    }
  };
  if (x.rows <= kOwnNorm) {
    y.data += region.rank * x.rows * x.ld;
    norm(0, x.rows);
  } else {
    region.share(x.rows, 1, norm);
    region.wait();
  }
  return y;
}

}  // namespace soma
