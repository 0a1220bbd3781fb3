// The weights of a model for generation: live in place, or as a snapshot in another format.
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
  // Live views of the float32 memory of the model, which must outlive this object.
  explicit DecodeWeights(Transformer& model);
  // A snapshot: matrices, embedding and head in `format`, packed for streaming; positions, norms and biases in float32.
  // Later changes of the model do not affect it.
  DecodeWeights(Transformer& model, WeightFormat format);
  DecodeWeights(const DecodeWeights&) = delete;
  DecodeWeights& operator=(const DecodeWeights&) = delete;

  const ModelConfig& config() const { return config_; }
  Device& device() const { return device_; }
  int64_t bytes_per_token() const;          // bytes of the weights that a token reads
  int64_t multiply_adds() const;            // multiply-adds of a token in one block
  int64_t multiply_adds_per_token() const;  // in all blocks and the head
  int64_t widest_input() const;             // the largest inner dimension of its products

  DecodeMatrix wte, head;  // (C, V); the embedding of a token is an output of wte
  const float* wpe = nullptr;
  std::vector<BlockDecodeWeights> blocks;
  const float *norm_w = nullptr, *norm_b = nullptr;

 private:
  // Takes addresses in `from`, or with a format those of copies in `base` (null: only measures). Returns their floats.
  int64_t carve(const Parameters& from, const WeightFormat* format, float* base);

  ModelConfig config_;
  Device& device_;
  Arena storage_;
};

}  // namespace soma
