// Generation with cached keys and values: independent rows, each at its own position.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

class Decoder {
 public:
  Decoder(Transformer& model, int64_t rows);

  int64_t rows() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t row) const;
  float* logits() { return logits_.data(); }  // (rows, V): after the last token of each row

  // Replaces a row by ids, 1 <= length <= max_seq_len.
  void prefill(int64_t row, const int32_t* ids, int64_t length);
  // Appends ids[i] to rows[i]. Throws when a row is empty or full, or named twice.
  void step(const int32_t* rows, const int32_t* ids, int64_t count);

 private:
  CacheRow cache_row(std::size_t layer, int64_t row);
  void check_row(int64_t row) const;

  Transformer& model_;
  std::vector<int64_t> lengths_;
  Arena cache_, logits_, buffer_arena_;
  std::vector<CacheRow> layer_cache_;
  std::vector<int32_t> rows_, ids_, order_;
};

}  // namespace soma
