// Prefill and single-position steps over a key/value cache laid out (layer, row, keys | values, max_seq_len, C).
#include "model/decoder.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace soma {

Decoder::Decoder(Transformer& model, int64_t rows) : model_(model) {
  check(rows >= 1 && rows <= 1 << 16, "batch_size must be from 1 to 65536, got ", rows);
  const ModelConfig& config = model.config();
  lengths_.assign(static_cast<std::size_t>(rows), 0);
  cache_.reserve(config.n_layers * rows * 2 * config.max_seq_len * config.d_model);
  logits_.reserve(rows * config.vocab_size);
  layer_cache_.resize(static_cast<std::size_t>(std::max(config.n_layers, rows)));
}

CacheRow Decoder::cache_row(std::size_t layer, int64_t row) {
  const int64_t half = model_.config().max_seq_len * model_.config().d_model;
  float* keys = cache_.data() + (static_cast<int64_t>(layer) * rows() + row) * 2 * half;
  return {keys, keys + half, lengths_[static_cast<std::size_t>(row)]};
}

void Decoder::check_row(int64_t row) const {
  check(row >= 0 && row < rows(), "row must be from 0 to ", rows() - 1, ", got ", row);
}

int64_t Decoder::length(int64_t row) const {
  check_row(row);
  return lengths_[static_cast<std::size_t>(row)];
}

void Decoder::prefill(int64_t row, const int32_t* ids, int64_t length) {
  check_row(row);
  const auto layers = static_cast<std::size_t>(model_.config().n_layers);
  for (std::size_t l = 0; l < layers; ++l) layer_cache_[l] = cache_row(l, row);
  lengths_[static_cast<std::size_t>(row)] = 0;
  model_.prefill(logits_.data() + row * model_.config().vocab_size, ids, length, layer_cache_.data());
  lengths_[static_cast<std::size_t>(row)] = length;
}

void Decoder::step(const int32_t* rows, const int32_t* ids, int64_t count) {
  const ModelConfig& config = model_.config();
  const int64_t c = config.d_model;
  if (count == 0) return;
  rows_.assign(rows, rows + count);  // copies: another thread may be writing to the caller's
  ids_.assign(ids, ids + count);
  rows = rows_.data();
  ids = ids_.data();
  order_ = rows_;
  std::sort(order_.begin(), order_.end());
  check(std::adjacent_find(order_.begin(), order_.end()) == order_.end(), "rows must differ from each other");
  for (int64_t i = 0; i < count; ++i) {
    check_row(rows[i]);
    const int64_t filled = lengths_[static_cast<std::size_t>(rows[i])];
    check(filled > 0, "row ", rows[i], " is empty: prefill it first");
    check(filled < config.max_seq_len, "row ", rows[i], " is full: it holds max_seq_len = ", config.max_seq_len,
          " tokens");
    check(ids[i] >= 0 && ids[i] < config.vocab_size, "ids must be from 0 to ", config.vocab_size - 1, ", got ", ids[i]);
  }

  const auto carve = [&](Carver carver) {
    DecodeBuffers d{};
    d.stream = carver.take(count * c);
    d.middle = carver.take(count * c);
    d.normed = carver.take(count * c);
    d.qkv = carver.take(count * 3 * c);
    d.attention = carver.take(count * c);
    d.hidden = carver.take(count * config.d_ff);
    float* logits = carver.take(count * config.vocab_size);
    return std::tuple{d, logits, carver.used()};
  };
  buffer_arena_.reserve(std::get<2>(carve(Carver(nullptr))));
  const auto [d, logits, used] = carve(Carver(buffer_arena_.data()));

  Ops& ops = model_.ops();
  const Parameters& w = model_.parameters();
  const BlockContext context{ops, config, count, 1};
  for (int64_t i = 0; i < count; ++i) {
    const float* token = w.wte.data + ids[i] * c;
    const float* position = w.wpe.data + lengths_[static_cast<std::size_t>(rows[i])] * c;
    for (int64_t j = 0; j < c; ++j) d.stream[i * c + j] = token[j] + position[j];
  }
  for (std::size_t l = 0; l < w.blocks.size(); ++l) {
    for (int64_t i = 0; i < count; ++i) layer_cache_[static_cast<std::size_t>(i)] = cache_row(l, rows[i]);
    block_decode(context, w.blocks[l], d, layer_cache_.data());
  }
  float* last = d.stream;
  if (config.block == BlockStyle::kGpt2) {
    last = d.normed;
    ops.norm({last, count, c}, {nullptr, nullptr}, {d.stream, count, c}, w.norm_w.data, w.norm_b.data,
             config.norm_eps());
  }
  ops.project_rows({logits, count, config.vocab_size}, ConstMatrix{last, count, c}, w.head);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = logits + i * config.vocab_size;
    std::copy(row, row + config.vocab_size, logits_.data() + rows[i] * config.vocab_size);
    ++lengths_[static_cast<std::size_t>(rows[i])];
  }
}

}  // namespace soma
