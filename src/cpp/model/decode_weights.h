// A model's weights as generation reads them: in place and live, or as a snapshot in a format of its own.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "model/transformer.h"
#include "ops/decode.h"

namespace soma {

// As BlockParameters; what a block style lacks is null.
struct BlockDecodeWeights {
  const float *norm1_w, *norm1_b;
  DecodeMatrix w_qkv, w_proj;
  const float *b_qkv, *b_proj;
  const float *norm2_w, *norm2_b;
  DecodeMatrix w_fc, w_out;
  const float *b_fc, *b_out;
};

class DecodeWeights {
 public:
  // Views of the model's float32 memory, which must outlive this: read live.
  explicit DecodeWeights(Transformer& model);
  // A copy of everything that generation reads: matrices, embedding and head in `format`, laid out to be streamed;
  // positions, norms and biases in float32. What happens to the model after that does not reach it.
  DecodeWeights(Transformer& model, WeightFormat format);
  DecodeWeights(const DecodeWeights&) = delete;
  DecodeWeights& operator=(const DecodeWeights&) = delete;

  const ModelConfig& config() const { return config_; }
  int64_t bytes_per_token() const;  // of weights that a decoded token reads

  DecodeMatrix wte, head;  // (C, V): a token's embedding is an output of wte
  const float* wpe;
  std::vector<BlockDecodeWeights> blocks;
  const float *norm_w, *norm_b;

 private:
  // Takes addresses of `from`, or, with a format, of copies in `base` (null: only measures); returns their floats.
  int64_t carve(const Parameters& from, const WeightFormat* format, float* base);

  ModelConfig config_;
  Arena storage_;
};

}  // namespace soma
