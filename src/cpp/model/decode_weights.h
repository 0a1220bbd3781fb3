// A model's weights as generation reads them: float32 in place, live; bfloat16 or int8 as a snapshot of its own.
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
  // float32: views of the model's memory, which must outlive this. Else a copy of everything that generation reads:
  // matrices, embedding and head in `format`, positions, norms and biases in float32. What happens to the model after
  // that does not reach it.
  DecodeWeights(Transformer& model, WeightFormat format);
  DecodeWeights(const DecodeWeights&) = delete;
  DecodeWeights& operator=(const DecodeWeights&) = delete;

  const ModelConfig& config() const { return config_; }
  WeightFormat format() const { return format_; }
  int64_t bytes_per_token() const;  // of weights that a decoded token reads

  DecodeMatrix wte, head;  // (C, V): a token's embedding is an output of wte
  const float* wpe;
  std::vector<BlockDecodeWeights> blocks;
  const float *norm_w, *norm_b;

 private:
  void carve(const Parameters& from, float* base, bool pack, int64_t* floats);

  ModelConfig config_;
  WeightFormat format_;
  Arena storage_;
};

}  // namespace soma
