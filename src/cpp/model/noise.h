// The noise of a training step: dropout of activations, masking of input tokens. Each bit of it is a function of the
// numbers that name the micro-batch, of layer, place, row and column. So nothing of it is stored.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace soma {

// The places of dropout: the sum of the embeddings, and what each branch adds to the residual stream.
enum class DropoutSite { kEmbedding, kAttention, kMlp };

class Noise {
 public:
  Noise() = default;
  // `numbers` name the micro-batch: other numbers, other noise. A part of a batch gets the batch's own noise from its
  // `first_row` on. Throws std::invalid_argument unless both rates are at least 0 and below 1.
  Noise(double dropout, double token_mask, const std::vector<uint64_t>& numbers, int64_t first_row = 0);

  bool drops() const { return dropout_ > 0; }
  // For rows from `first_row` of the batch on. The embedding has layer 0.
  Dropout dropout(int64_t layer, DropoutSite site, int64_t first_row) const;
  // Replaces each id by kMaskedToken with the probability `token_mask`: word dropout (Gal & Ghahramani 2016).
  // Returns whether it may have replaced any.
  bool mask_tokens(int32_t* ids, int64_t count) const;

 private:
  double dropout_ = 0, token_mask_ = 0;
  uint64_t key_ = 0;
  int64_t first_row_ = 0;
};

}  // namespace soma
