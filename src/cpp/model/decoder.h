// Generation with cached keys and values: independent rows, each at its own position.
#pragma once

#include <memory>
#include <vector>

#include "base/arena.h"
#include "model/blocks/block.h"
#include "model/decode_weights.h"
#include "model/rotation_table.h"

namespace soma {

class Decoder {
 public:
  // The weights must outlive the decoder.
  Decoder(const DecodeWeights& weights, int64_t rows);

  int64_t rows() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t row) const;
  int64_t vocab_size() const { return weights_.config().vocab_size; }
  float* logits() { return logits_.data(); }  // (rows, V), on the host: after the last token of each row

  // Replaces a row by ids, 1 <= length <= max_seq_len. Throws Interrupted when asked to stop; the row is then empty.
  void prefill(int64_t row, const int32_t* ids, int64_t length);
  // Appends ids[i] to rows[i]. Throws if a row is empty, full or named twice.
  void step(const int32_t* rows, const int32_t* ids, int64_t count);

 private:
  // Runs `count` tokens, each at a place (row, position), through all layers. Computes the logits of the last `heads`.
  struct Place {
    int64_t row, position;
  };
  // With `heads`, `logits` is memory of the device.
  void advance(const Place* places, const int32_t* ids, int64_t count, float* logits, int64_t heads, bool prompt);
  void decode_head(const BlockDecodeContext& ctx, float* logits, const DecodeBuffers& d, Matrix stream, int64_t count);
  CacheRow cache_row(std::size_t layer, const Place& place);
  // Memory of the device for the logits of `count` rows from `row` on, or of rows that do not follow each other (-1).
  float* results(int64_t row, int64_t count);
  void fetch(int64_t row, const float* result, int64_t count);
  void check_row(int64_t row) const;
  void check_id(int32_t id) const;

  const DecodeWeights& weights_;
  int64_t capacity_;  // positions of a cache row: max_seq_len, rounded up to a block of keys
  std::vector<int64_t> lengths_;
  std::unique_ptr<Decoding> decoding_;
  Arena cache_, logits_, results_, buffer_arena_;
  RotationTable rotation_;
  std::vector<CacheRow> layer_cache_;
  std::vector<Place> places_;
  std::vector<int32_t> rows_, ids_;
  std::vector<int64_t> positions_;
};

}  // namespace soma
