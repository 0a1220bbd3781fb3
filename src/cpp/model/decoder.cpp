// Prompts and single tokens through all layers, over a cache laid out (layer, row, keys | values, head, position, D).
#include "model/decoder.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "base/interrupt.h"

namespace soma {
namespace {

constexpr int64_t kMostRows = 252;                    // tokens at a time: whole tiles of 12 and of 6 rows
constexpr int64_t kUninterrupted = int64_t{1} << 28;  // multiply-adds between two checks for an interrupt

// Positions of a cache row: max_seq_len, rounded up to a block of keys.
int64_t capacity_of(const ModelConfig& config, CacheFormat format) {
  const int64_t block = cache_block(format);
  return (config.max_seq_len + block - 1) / block * block;
}

// Floats of the keys, or the values, of a row in one layer.
int64_t half_of(const ModelConfig& config, CacheFormat format) {
  return cache_floats(format, config.kv_heads() * capacity_of(config, format), config.head_size());
}

}  // namespace

int64_t Decoder::bytes_per_row(const ModelConfig& config, CacheFormat format) {
  const int64_t cached = config.n_layers * 2 * half_of(config, format);
  return static_cast<int64_t>(sizeof(float)) * (cached + config.vocab_size);
}

Decoder::Decoder(const DecodeWeights& weights, int64_t rows, CacheFormat format)
    : weights_(weights),
      format_(format),
      capacity_(capacity_of(weights.config(), format)),
      repeats_(weights.device()),
      decoding_(weights.device().make_decoding()),
      cache_(weights.device().memory()),
      logits_(host_memory()),
      results_(weights.device().memory()),
      buffer_arena_(weights.device().memory()),
      rotation_(weights.device().memory()) {
  check(rows >= 1 && rows <= 1 << 16, "batch_size must be from 1 to 65536, got ", rows);
  const ModelConfig& config = weights_.config();
  lengths_.assign(static_cast<std::size_t>(rows), 0);
  cache_.reserve(config.n_layers * rows * 2 * half_of(config, format_));
  logits_.reserve(rows * config.vocab_size);
}

CacheRow Decoder::cache_row(std::size_t layer, const Place& place) {
  const int64_t half = half_of(weights_.config(), format_);
  float* keys = cache_.data() + (static_cast<int64_t>(layer) * rows() + place.row) * 2 * half;
  return {keys, keys + half, place.position, capacity_, format_};
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

void Decoder::check_distinct() {
  std::sort(rows_.begin(), rows_.end());
  check(std::adjacent_find(rows_.begin(), rows_.end()) == rows_.end(), "rows must differ from each other");
}

void Decoder::extend(const PromptPiece* pieces, int64_t count) {
  const int64_t limit = weights_.config().max_seq_len;
  std::vector<std::vector<int32_t>> ids;  // copies, since another thread may write to the arrays of the caller
  rows_.clear();
  for (int64_t i = 0; i < count; ++i) {
    const PromptPiece& p = pieces[i];
    check_row(p.row);
    check(p.count >= 1, "ids must hold at least one token, got ", p.count);
    check(p.keep >= 0 && p.keep <= length(p.row), "keep must be from 0 to the ", length(p.row), " tokens of row ",
          p.row, ", got ", p.keep);
    check(p.count <= limit - p.keep, "ids are ", p.keep + p.count, " tokens long, but max_seq_len is ", limit);
    for (const int32_t id : ids.emplace_back(p.ids, p.ids + p.count)) check_id(id);
    rows_.push_back(static_cast<int32_t>(p.row));
  }
  check_distinct();
  for (int64_t i = 0; i < count; ++i) lengths_[static_cast<std::size_t>(pieces[i].row)] = pieces[i].keep;

  for (const bool rounded : {false, true}) {
    places_.clear();
    ids_.clear();
    const auto take = [&](int64_t i, int64_t first, int64_t end) {
      const PromptPiece& p = pieces[i];
      const bool rounds = weights_.head.format != WeightFormat::kFloat32 && p.keep + p.count >= kPromptRows;
      for (int64_t t = first; rounds == rounded && t < end; ++t) {
        places_.push_back({p.row, p.keep + t});
        ids_.push_back(ids[static_cast<std::size_t>(i)][static_cast<std::size_t>(t)]);
      }
    };
    for (int64_t i = 0; i < count; ++i) take(i, 0, pieces[i].count - 1);
    const auto bodies = static_cast<int64_t>(places_.size());
    for (int64_t i = 0; i < count; ++i) take(i, pieces[i].count - 1, pieces[i].count);
    run(bodies, rounded);
  }
  for (int64_t i = 0; i < count; ++i) lengths_[static_cast<std::size_t>(pieces[i].row)] += pieces[i].count;
}

void Decoder::prefill(int64_t row, const int32_t* ids, int64_t length) {
  const PromptPiece piece{row, 0, ids, length};
  extend(&piece, 1);
}

void Decoder::step(const int32_t* rows, const int32_t* ids, int64_t count) {
  rows_.assign(rows, rows + count);
  ids_.assign(ids, ids + count);
  places_.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows_[static_cast<std::size_t>(i)];
    check_row(row);
    check_id(ids_[static_cast<std::size_t>(i)]);
    const int64_t filled = lengths_[static_cast<std::size_t>(row)], limit = weights_.config().max_seq_len;
    check(filled > 0, "row ", row, " is empty: prefill it first");
    check(filled < limit, "row ", row, " is full: it holds max_seq_len = ", limit, " tokens");
    places_.push_back({row, filled});
  }
  check_distinct();
  run(0, false);
  for (const Place& place : places_) ++lengths_[static_cast<std::size_t>(place.row)];
}

void Decoder::copy_row(int64_t from, int64_t to, int64_t length) {
  check_row(from);
  check_row(to);
  check(from != to, "row ", from, " cannot be copied to itself");
  const int64_t filled = lengths_[static_cast<std::size_t>(from)], d = weights_.config().head_size();
  check(length >= 1 && length <= filled, "length must be from 1 to the ", filled, " tokens of row ", from, ", got ",
        length);
  Memory& memory = weights_.device().memory();
  const auto copy = [&](float* target, const float* source, int64_t floats) {
    memory.copy(target, source, static_cast<std::size_t>(floats) * sizeof(float));
  };
  const int64_t keys = cache_floats(format_, length, d);  // whole blocks
  const int64_t values = format_ == CacheFormat::kBfloat16 ? (length + 1) / 2 * d : length * d;
  lengths_[static_cast<std::size_t>(to)] = 0;
  for (std::size_t l = 0; l < weights_.blocks.size(); ++l) {
    const CacheRow source = cache_row(l, {from, 0}), target = cache_row(l, {to, 0});
    for (int64_t head = 0; head < weights_.config().kv_heads(); ++head) {
      const int64_t at = cache_floats(format_, head * capacity_, d);
      copy(target.keys + at, source.keys + at, keys);
      copy(target.values + at, source.values + at, values);
    }
  }
  if (length == filled)
    std::copy_n(logits_.data() + from * vocab_size(), vocab_size(), logits_.data() + to * vocab_size());
  lengths_[static_cast<std::size_t>(to)] = length;
}

void Decoder::run(int64_t bodies, bool rounded) {
  const auto total = static_cast<int64_t>(places_.size());
  for (int64_t first = 0; first < total; first += kMostRows) {
    const int64_t count = std::min(kMostRows, total - first),
                  heads = std::clamp<int64_t>(first + count - bodies, 0, count);
    advance(places_.data() + first, ids_.data() + first, count, heads, rounded);
  }
}

void Decoder::advance(const Place* places, const int32_t* ids, int64_t count, int64_t heads, bool rounded) {
  const ModelConfig& config = weights_.config();
  const int64_t c = config.d_model, work = count * weights_.multiply_adds();
  const auto layers = weights_.blocks.size();
  const int64_t threads = decoding_->threads(work);
  const int64_t normed = std::max(norm_rows(count, threads), norm_rows(heads, threads));

  const bool tiles = rounded || (count >= kPromptRows && weights_.head.layout != WeightLayout::kPanels);
  PromptMemory memory{};

  // Logits of rows that follow each other are made in their place, if the host may write there.
  Memory& device = weights_.device().memory();
  const Place* const ends = places + count - heads;
  bool in_order = heads > 0;
  for (int64_t i = 0; i < heads; ++i) in_order = in_order && ends[i].row == ends[0].row + i;
  const bool in_place = in_order && device.on_host();
  if (!in_place) results_.reserve(heads * vocab_size());
  float* const logits = in_place ? logits_.data() + ends[0].row * vocab_size() : results_.data();

  const auto carve = [&](Carver carver) {
    const DecodePlan plan{config, count, carver};
    DecodeBuffers d;
    d.stream = plan.rows(c);
    config.block->place_decode(plan, d);
    d.normed1 = carver.take(normed * padded_ld(c));
    d.normed2 = carver.take(normed * padded_ld(c));
    d.scores = carver.take(threads * (capacity_ + 16));
    if (tiles) {
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
  const auto pass = [&] {
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
  };
  heads == count && !tiles ? repeats_.run(pass) : pass();
  const int64_t together = in_order ? heads : 1;
  for (int64_t i = in_place ? heads : 0; i < heads; i += together) {
    device.download(logits_.data() + ends[i].row * vocab_size(), logits + i * vocab_size(),
                    static_cast<std::size_t>(together * vocab_size()) * sizeof(float));
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
