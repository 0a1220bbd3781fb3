// Measures, then fills, a snapshot; live weights are addresses only.
#include "model/decode_weights.h"

#include <algorithm>

#include "base/interrupt.h"

namespace soma {
namespace {

constexpr int64_t kCached = int64_t{4} << 20;  // bytes that L2 holds, a core or two

}  // namespace

DecodeWeights::DecodeWeights(Transformer& model)
    : wpe(nullptr), norm_w(nullptr), norm_b(nullptr), config_(model.config()) {
  carve(model.parameters(), nullptr, nullptr);
}

DecodeWeights::DecodeWeights(Transformer& model, WeightFormat format)
    : wpe(nullptr), norm_w(nullptr), norm_b(nullptr), config_(model.config()) {
  storage_.reserve_dense(carve(model.parameters(), &format, nullptr));
  carve(model.parameters(), &format, storage_.data());
}

int64_t DecodeWeights::carve(const Parameters& from, const WeightFormat* format, float* base) {
  Carver carver(base);
  const auto vector = [&](const Tensor& t) -> const float* {
    if (t.data == nullptr || format == nullptr) return t.data;
    float* copy = carver.take(t.size());
    if (copy != nullptr) std::copy(t.data, t.data + t.size(), copy);
    return copy;
  };
  const auto matrix = [&](ConstMatrix w) -> DecodeMatrix {
    if (format == nullptr) return live_weights(w);
    float* packed = carver.take(packed_size(*format, w.height(), w.width()));
    float* scales = *format == WeightFormat::kInt8 ? carver.take(w.width()) : nullptr;
    if (packed == nullptr) return {};
    check_interrupt();
    return pack_weights(packed, scales, *format, w);
  };
  wte = matrix(ConstMatrix(from.wte).t());
  head = config_.tied_head ? wte : matrix(ConstMatrix(from.head).t());
  wpe = vector(from.wpe);
  norm_w = vector(from.norm_w);
  norm_b = vector(from.norm_b);
  blocks.clear();
  for (const BlockParameters& b : from.blocks) {
    blocks.push_back({vector(b.norm1_w), vector(b.norm1_b), matrix(b.w_qkv), matrix(b.w_proj), vector(b.b_qkv),
                      vector(b.b_proj), vector(b.norm2_w), vector(b.norm2_b), matrix(b.w_fc), matrix(b.w_out),
                      vector(b.b_fc), vector(b.b_out)});
  }
  const bool fetch = bytes_per_token() > kCached;
  head.fetch = fetch;
  for (BlockDecodeWeights& b : blocks) b.w_qkv.fetch = b.w_proj.fetch = b.w_fc.fetch = b.w_out.fetch = fetch;
  return carver.used();
}

int64_t DecodeWeights::bytes_per_token() const {
  int64_t total = head.bytes();
  for (const BlockDecodeWeights& b : blocks) {
    total += b.w_qkv.bytes() + b.w_proj.bytes() + b.w_fc.bytes() + b.w_out.bytes();
  }
  return total;
}

}  // namespace soma
