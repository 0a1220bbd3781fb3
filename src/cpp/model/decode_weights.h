// A model's weights as generation reads them: in place and live, or as a snapshot in a format of its own.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/blocks/block.h"
#include "model/config.h"
#include "model/transformer.h"
#include "ops/decode.h"

namespace soma {

class DecodeWeights {
 public:
  // Views of the model's float32 memory, which must outlive this: read live.
  explicit DecodeWeights(Transformer& model);
  // A copy of everything that generation reads: matrices, embedding and head in `format`, packed to be streamed;
  // positions, norms and biases in float32. What happens to the model after that does not reach it.
  DecodeWeights(Transformer& model, WeightFormat format);
  DecodeWeights(const DecodeWeights&) = delete;
  DecodeWeights& operator=(const DecodeWeights&) = delete;

  const ModelConfig& config() const { return config_; }
  int64_t bytes_per_token() const;  // of weights that a decoded token reads
  int64_t multiply_adds() const;    // of a token's products in one block
  int64_t widest_input() const;     // the largest inner dimension of those

  DecodeMatrix wte, head;  // (C, V): a token's embedding is an output of wte
  const float* wpe = nullptr;
  std::vector<BlockDecodeWeights> blocks;
  const float *norm_w = nullptr, *norm_b = nullptr;

 private:
  // Takes addresses of `from`, or, with a format, of copies in `base` (null: only measures); returns their floats.
  int64_t carve(const Parameters& from, const WeightFormat* format, float* base);

  ModelConfig config_;
  Arena storage_;
};

}  // namespace soma
