// Generation with cached keys and values: independent rows, each at its own position.
#pragma once

#include <memory>
#include <vector>

#include "base/arena.h"
#include "model/blocks/block.h"
#include "model/decode_weights.h"
#include "model/rotation_table.h"

namespace soma {

// Tokens of a prompt for a row: `count` ids after its first `keep` positions. What the row held after those is dropped.
struct PromptPiece {
  int64_t row, keep;
  const int32_t* ids;
  int64_t count;
};

class Decoder {
 public:
  // The weights must outlive the decoder.
  Decoder(const DecodeWeights& weights, int64_t rows, CacheFormat format = CacheFormat::kFloat32);

  int64_t rows() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t row) const;
  int64_t vocab_size() const { return weights_.config().vocab_size; }
  int64_t max_length() const { return weights_.config().max_seq_len; }
  float* logits() { return logits_.data(); }  // (rows, V), on the host: after the last token of each row
  const float* logits() const { return logits_.data(); }

  // Bytes of keys, values and logits of a row.
  static int64_t bytes_per_row(const ModelConfig& config, CacheFormat format);
  // Multiply-adds of a token, without attention.
  int64_t multiply_adds() const { return weights_.multiply_adds_per_token(); }

  // Reads pieces of prompts together, each into another row. Checks all before it changes a row. Throws Interrupted
  // when asked to stop; the rows then keep what they were to keep. The bits are those of whole prompts, however these
  // are cut into pieces, if all pieces but the last of a prompt have at least kPromptRows tokens.
  void extend(const PromptPiece* pieces, int64_t count);
  // Replaces a row by ids, 1 <= length <= max_seq_len.
  void prefill(int64_t row, const int32_t* ids, int64_t length);
  // Appends ids[i] to rows[i]. Throws if a row is empty, full or named twice.
  void step(const int32_t* rows, const int32_t* ids, int64_t count);
  // Replaces row `to` by the first `length` tokens of row `from`. Logits come along if these are all its tokens.
  void copy_row(int64_t from, int64_t to, int64_t length);

 private:
  struct Place {
    int64_t row, position;
  };
  // Runs ids_, at places_, through all layers. Those from `bodies` on are the last tokens of their rows, which get
  // their logits. With `rounded`, inputs of products are rounded to bfloat16.
  void run(int64_t bodies, bool rounded);
  // `count` of them at once; the last `heads` get their logits.
  void advance(const Place* places, const int32_t* ids, int64_t count, int64_t heads, bool rounded);
  void decode_head(const BlockDecodeContext& ctx, float* logits, const DecodeBuffers& d, Matrix stream, int64_t count);
  CacheRow cache_row(std::size_t layer, const Place& place);
  void check_row(int64_t row) const;
  void check_id(int32_t id) const;
  void check_distinct();  // the rows of rows_

  const DecodeWeights& weights_;
  CacheFormat format_;
  int64_t capacity_;  // positions of a cache row: max_seq_len, rounded up to a block of keys
  std::vector<int64_t> lengths_;
  Repeats repeats_;
  std::unique_ptr<Decoding> decoding_;
  Arena cache_, logits_, results_, buffer_arena_;
  RotationTable rotation_;
  std::vector<CacheRow> layer_cache_;
  std::vector<Place> places_;
  std::vector<int32_t> rows_, ids_;
  std::vector<int64_t> positions_;
};

}  // namespace soma
