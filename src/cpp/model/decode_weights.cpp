// Fills the weights of a decoder: a snapshot is measured, then packed; live weights are addresses.
#include "model/decode_weights.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "base/interrupt.h"

namespace soma {
namespace {

constexpr int64_t kCached = int64_t{4} << 20;  // bytes in the L2 of one or two cores

// Calls f(matrix) for every matrix of a block.
template <typename Weights, typename F>
void each_matrix(Weights& block, F&& f) {
  each_weight(
      [&](auto& w) {
        if constexpr (std::is_same_v<std::remove_const_t<std::remove_reference_t<decltype(w)>>, DecodeMatrix>) f(w);
      },
      block);
}

}  // namespace

DecodeWeights::DecodeWeights(Transformer& model)
    : config_(model.config()), device_(model.device()), storage_(device_.memory()) {
  carve(model.parameters(), nullptr, nullptr);
}

DecodeWeights::DecodeWeights(Transformer& model, WeightFormat format)
    : config_(model.config()), device_(model.device()), storage_(device_.memory()) {
  storage_.reserve_dense(carve(model.parameters(), &format, nullptr));
  carve(model.parameters(), &format, storage_.data());
}

int64_t DecodeWeights::carve(const Parameters& from, const WeightFormat* format, float* base) {
  const std::unique_ptr<Decoding> decoding = device_.make_decoding();
  Carver carver(base);
  const auto vector = [&](const Tensor& t) -> const float* {
    if (t.data == nullptr || format == nullptr) return t.data;
    float* copy = carver.take(t.size());
    if (copy != nullptr) device_.memory().copy(copy, t.data, static_cast<std::size_t>(t.size()) * sizeof(float));
    return copy;
  };
  const auto matrix = [&](ConstMatrix w) -> DecodeMatrix {
    if (format == nullptr) return live_weights(w);
    float* packed = carver.take(decoding->packed_size(*format, w.height(), w.width()));
    float* scales = *format == WeightFormat::kInt8 ? carver.take(w.width()) : nullptr;
    if (packed == nullptr) return {};
    check_interrupt();
    return decoding->pack(packed, scales, *format, w);
  };
  wte = matrix(ConstMatrix(from.wte).t());
  head = config_.tied_head ? wte : matrix(ConstMatrix(from.head).t());
  wpe = vector(from.wpe);
  norm_w = vector(from.norm_w);
  norm_b = vector(from.norm_b);
  blocks.clear();
  for (const BlockParameters& b : from.blocks) {
    const auto take = [&](const Tensor& t, auto& w) {
      if constexpr (std::is_same_v<decltype(w), DecodeMatrix&>) {
        if (t.data != nullptr) w = matrix(t);
      } else {
        w = vector(t);
      }
    };
    each_weight(take, b, blocks.emplace_back());
  }
  head.fetch = bytes_per_token() > kCached;
  for (BlockDecodeWeights& b : blocks) each_matrix(b, [&](DecodeMatrix& w) { w.fetch = head.fetch; });
  return carver.used();
}

int64_t DecodeWeights::bytes_per_token() const {
  int64_t total = head.bytes();
  for (const BlockDecodeWeights& b : blocks) each_matrix(b, [&](const DecodeMatrix& w) { total += w.bytes(); });
  return total;
}

int64_t DecodeWeights::multiply_adds() const {
  int64_t total = 0;
  each_matrix(blocks[0], [&](const DecodeMatrix& w) { total += w.inner * w.outer; });
  return total;
}

int64_t DecodeWeights::multiply_adds_per_token() const {
  return static_cast<int64_t>(blocks.size()) * multiply_adds() + head.inner * head.outer;
}

int64_t DecodeWeights::widest_input() const {
  int64_t widest = 0;
  each_matrix(blocks[0], [&](const DecodeMatrix& w) { widest = std::max(widest, w.inner); });
  return widest;
}

}  // namespace soma
