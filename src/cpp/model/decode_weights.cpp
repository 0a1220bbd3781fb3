// Measures, then fills, the snapshot of a narrow format; float32 only takes addresses.
#include "model/decode_weights.h"

#include <algorithm>

#include "base/interrupt.h"

namespace soma {

DecodeWeights::DecodeWeights(Transformer& model, WeightFormat format)
    : wpe(nullptr), norm_w(nullptr), norm_b(nullptr), config_(model.config()), format_(format) {
  int64_t floats = 0;
  if (format_ != WeightFormat::kFloat32) {
    carve(model.parameters(), nullptr, false, &floats);
    storage_.reserve_dense(floats);
  }
  carve(model.parameters(), storage_.data(), format_ != WeightFormat::kFloat32, &floats);
}

void DecodeWeights::carve(const Parameters& from, float* base, bool pack, int64_t* floats) {
  const bool live = format_ == WeightFormat::kFloat32;
  Carver carver(base);
  const auto vector = [&](const Tensor& t) -> const float* {
    if (t.data == nullptr || live) return t.data;
    float* copy = carver.take(t.size());
    if (pack) std::copy(t.data, t.data + t.size(), copy);
    return copy;
  };
  const auto matrix = [&](ConstMatrix w) -> DecodeMatrix {
    if (live) return live_weights(w);
    float* packed = carver.take(packed_size(format_, w.height(), w.width()));
    float* scales = format_ == WeightFormat::kInt8 ? carver.take(w.width()) : nullptr;
    check_interrupt();
    return pack ? pack_weights(packed, scales, format_, w) : DecodeMatrix{};
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
  *floats = carver.used();
}

int64_t DecodeWeights::bytes_per_token() const {
  const auto bytes = [](const DecodeMatrix& w) {
    return 4 * (w.format == WeightFormat::kFloat32 ? w.inner * w.outer : packed_size(w.format, w.inner, w.outer));
  };
  int64_t total = bytes(head);
  for (const BlockDecodeWeights& b : blocks) total += bytes(b.w_qkv) + bytes(b.w_proj) + bytes(b.w_fc) + bytes(b.w_out);
  return total;
}

}  // namespace soma
