// Prompts and single tokens through all layers, over a cache laid out (layer, row, keys | values, head, position, D).
#include "model/decoder.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "base/interrupt.h"

namespace soma {
namespace {

constexpr int64_t kMostRows = 252;                    // rows of a prompt at a time: whole tiles of 12 and of 6 rows
constexpr int64_t kUninterrupted = int64_t{1} << 28;  // multiply-adds between two checks for an interrupt

}  // namespace

Decoder::Decoder(const DecodeWeights& weights, int64_t rows)
    : weights_(weights),
      decoding_(weights.device().make_decoding()),
      cache_(weights.device().memory()),
      logits_(host_memory()),
      results_(weights.device().memory()),
      buffer_arena_(weights.device().memory()),
      rotation_(weights.device().memory()) {
  check(rows >= 1 && rows <= 1 << 16, "batch_size must be from 1 to 65536, got ", rows);
  const ModelConfig& config = weights_.config();
  capacity_ = (config.max_seq_len + 15) / 16 * 16;
  lengths_.assign(static_cast<std::size_t>(rows), 0);
  cache_.reserve(config.n_layers * rows * 2 * capacity_ * config.kv_dim());
  logits_.reserve(rows * config.vocab_size);
}

CacheRow Decoder::cache_row(std::size_t layer, const Place& place) {
  const int64_t half = capacity_ * weights_.config().kv_dim();
  float* keys = cache_.data() + (static_cast<int64_t>(layer) * rows() + place.row) * 2 * half;
  return {keys, keys + half, place.position, capacity_};
}

void Decoder::check_row(int64_t row) const {
  check(row >= 0 && row < rows(), "row must be from 0 to ", rows() - 1, ", got ", row);
}

void Decoder::check_id(int32_t id) const {
  check(id >= 0 && id < vocab_size(), "ids must be from 0 to ", vocab_size() - 1, ", got ", id);
}

int64_t Decoder::length(int64_t row) const {
  check_row(row);
  return lengths_[static_cast<std::size_t>(row)];
}

void Decoder::prefill(int64_t row, const int32_t* ids, int64_t length) {
  check_row(row);
  const int64_t limit = weights_.config().max_seq_len;
  check(length >= 1, "ids must hold at least one token, got ", length);
  check(length <= limit, "ids are ", length, " tokens long, but max_seq_len is ", limit);
  ids_.assign(ids, ids + length);  // a copy, since another thread may write to the array of the caller
  for (const int32_t id : ids_) check_id(id);
  lengths_[static_cast<std::size_t>(row)] = 0;
  places_.resize(static_cast<std::size_t>(length));
  for (int64_t i = 0; i < length; ++i) places_[static_cast<std::size_t>(i)] = {row, i};
  float* const logits = results(row, 1);
  for (int64_t first = 0; first < length; first += kMostRows) {
    const int64_t count = std::min(kMostRows, length - first);
    advance(places_.data() + first, ids_.data() + first, count, logits, first + count == length ? 1 : 0, true);
  }
  fetch(row, logits, 1);
  lengths_[static_cast<std::size_t>(row)] = length;
}

void Decoder::step(const int32_t* rows, const int32_t* ids, int64_t count) {
  if (count == 0) return;
  rows_.assign(rows, rows + count);
  ids_.assign(ids, ids + count);
  places_.clear();
  bool in_order = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows_[static_cast<std::size_t>(i)];
    check_row(row);
    check_id(ids_[static_cast<std::size_t>(i)]);
    const int64_t filled = lengths_[static_cast<std::size_t>(row)], limit = weights_.config().max_seq_len;
    check(filled > 0, "row ", row, " is empty: prefill it first");
    check(filled < limit, "row ", row, " is full: it holds max_seq_len = ", limit, " tokens");
    in_order = in_order && row == rows_[0] + i;
    places_.push_back({row, filled});
  }
  std::sort(rows_.begin(), rows_.end());
  check(std::adjacent_find(rows_.begin(), rows_.end()) == rows_.end(), "rows must differ from each other");

  float* const logits = results(in_order ? places_[0].row : -1, count);
  advance(places_.data(), ids_.data(), count, logits, count, false);
  if (in_order) {
    fetch(places_[0].row, logits, count);
  } else {
    for (int64_t i = 0; i < count; ++i) fetch(places_[static_cast<std::size_t>(i)].row, logits + i * vocab_size(), 1);
  }
  for (const Place& place : places_) ++lengths_[static_cast<std::size_t>(place.row)];
}

float* Decoder::results(int64_t row, int64_t count) {
  if (row >= 0 && weights_.device().memory().on_host()) return logits_.data() + row * vocab_size();
  results_.reserve(count * vocab_size());
  return results_.data();
}

void Decoder::fetch(int64_t row, const float* result, int64_t count) {
  float* const to = logits_.data() + row * vocab_size();
  if (result == to) return;  // computed in place
  weights_.device().memory().download(to, result, static_cast<std::size_t>(count * vocab_size()) * sizeof(float));
}

void Decoder::advance(const Place* places, const int32_t* ids, int64_t count, float* logits, int64_t heads,
                      bool prompt) {
  const ModelConfig& config = weights_.config();
  const int64_t c = config.d_model, work = count * weights_.multiply_adds();
  const auto layers = weights_.blocks.size();
  const int64_t threads = decoding_->threads(work);
  const int64_t normed = std::max(norm_rows(count, threads), norm_rows(heads, threads));

  // Single tokens stay float32, so that the bits of a row do not depend on the rows beside it.
  const bool many = prompt && count >= kPromptRows, rounded = many && weights_.head.format != WeightFormat::kFloat32;
  PromptMemory memory{};

  const auto carve = [&](Carver carver) {
    const DecodePlan plan{config, count, carver};
    DecodeBuffers d;
    d.stream = plan.rows(c);
    config.block->place_decode(plan, d);
    d.normed1 = carver.take(normed * padded_ld(c));
    d.normed2 = carver.take(normed * padded_ld(c));
    d.scores = carver.take(threads * (capacity_ + 16));
    if (rounded || (many && weights_.head.layout != WeightLayout::kPanels)) {
      memory.panels = carver.take(threads * kPromptPanels);
      if (rounded) memory.rows = carver.take(prompt_floats(count, weights_.widest_input()));
      d.prompt = &memory;
    }
    return std::pair{d, carver.used()};
  };
  buffer_arena_.reserve(carve(Carver(nullptr)).second);
  const DecodeBuffers d = carve(Carver(buffer_arena_.data())).first;

  positions_.resize(static_cast<std::size_t>(count));
  layer_cache_.resize(layers * static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    positions_[static_cast<std::size_t>(i)] = places[i].position;
    for (std::size_t l = 0; l < layers; ++l) {
      layer_cache_[l * static_cast<std::size_t>(count) + static_cast<std::size_t>(i)] = cache_row(l, places[i]);
    }
  }

  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) longest = std::max(longest, places[i].position + 1);
  rotation_.reach(config, longest);
  decoding_->embed(d.stream, weights_.wte, weights_.wpe, ids, positions_.data());

  // Threads are woken once for a group of layers: all layers that may pass between two checks for an interrupt.
  const auto group = static_cast<std::size_t>(std::max<int64_t>(1, kUninterrupted / work));
  Matrix stream = d.stream;  // the result of the last block for this thread
  for (std::size_t first = 0; first < layers; first += group) {
    check_interrupt();
    const std::size_t last = std::min(layers, first + group);
    decoding_->run(threads, [&](DecodeOps& ops) {
      BlockDecodeContext ctx{ops, config, rotation_.turns()};
      Matrix own = stream;
      for (std::size_t l = first; l < last; ++l) {
        ctx.layer = static_cast<int64_t>(l);
        own = config.block->decode(ctx, weights_.blocks[l], d, own,
                                   layer_cache_.data() + l * static_cast<std::size_t>(count));
      }
      if (last == layers && heads > 0) decode_head(ctx, logits, d, own, heads);
      if (ops.first()) stream = own;
    });
  }
}

void Decoder::decode_head(const BlockDecodeContext& ctx, float* logits, const DecodeBuffers& d, Matrix stream,
                          int64_t count) {
  Matrix last{stream.row(stream.rows - count), count, stream.cols, stream.ld};
  if (ctx.config.final_norm()) {
    last = ctx.ops.norm(d.normed1, last, {weights_.norm_w, weights_.norm_b, ctx.config.final_norm().kind},
                        ctx.config.norm_eps());
  }
  ctx.ops.linear({logits, count, vocab_size(), vocab_size()}, last, weights_.head);
}

}  // namespace soma
