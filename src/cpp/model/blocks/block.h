// One transformer block: its tensors and buffers, forward over whole sequences, its exact backward (of what flows
// through it, then of its parameters), and decode of one new position per sequence from a cache. An architecture is one
// file of this folder, which shows them side by side, and a line in block.cpp: the only places that know it by name.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "model/activations.h"
#include "model/blocks/block_buffers.h"
#include "model/blocks/block_weights.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/decode.h"
#include "ops/ops.h"

namespace soma {

using BlockDecodeWeights = BlockWeights<const float*, DecodeMatrix>;

// Of the matrix q | k | v.
inline MatrixParts qkv_parts(const ModelConfig& config) {
  return {{config.q_dim(), config.kv_dim(), config.kv_dim()}, Heads::kColumns};
}

// Some sequences of a batch, or all of it.
struct BlockContext {
  Ops& ops;
  const ModelConfig& config;
  int64_t batch, length;
  const float* turns = nullptr;  // angles of at least `length` positions, see Rotation
  bool together = false;         // gradients of weights are one job, see Transformer's Plan
  int64_t layer = 0;             // the layer that runs now

  int64_t rows() const { return batch * length; }
  Matrix operand(float* data, int64_t cols) const { return ops.operands().matrix(data, rows(), cols); }
  Matrix qkv(float* data) const { return qkv_operands(config, ops.operands()).matrix(data, rows(), config.qkv_dim()); }
  Matrix gate_up(float* data) const {
    return hidden_operands(config, ops.operands()).matrix(data, rows(), 2 * config.d_ff);
  }
  AttentionShape attention_shape() const {
    return {batch, length, config.n_heads, config.head_size(), config.kv_heads(), config.attention_scale(layer)};
  }
  void weight_gradients(std::initializer_list<WeightGradient> list) const {
    if (together) return ops.weight_gradients(list.begin(), static_cast<int64_t>(list.size()));
    for (const WeightGradient& g : list) {
      ops.matmul(g.dw, g.x.t(), g.dy, {.accumulate = true, .column_sums = g.column_sums});
    }
  }
};

struct BlockDecodeContext {
  const ParallelRegion& region;
  const ModelConfig& config;
  const float* turns;  // see Rotation
  int64_t layer = 0;

  HeadShape heads() const {
    return {config.n_heads, config.head_size(), config.kv_heads(), config.attention_scale(layer)};
  }
};

class Block {
 public:
  explicit Block(const BlockTraits& t) : traits(t) {}
  virtual ~Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const BlockTraits traits;

  // Its tensors, in the order of the arena.
  virtual void declare(const Declare& declare, const ModelConfig& config, BlockParameters& w) const = 0;
  // Its buffers. d_output and d_input may be the same memory where there is no final norm.
  virtual void place_activations(const BufferPlan& plan, BlockActivations& a) const = 0;
  virtual void place_scratch(const BufferPlan& plan, Scratch& s) const = 0;

  // a.input -> output (M, C). output may be a.input.
  virtual void forward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                       float* output) const = 0;
  // s.d_output -> s.d_input, and what gradients() needs. `output` is what forward wrote.
  virtual void backward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                        const float* output) const = 0;
  // Gradients of the parameters accumulate into dw: sums over all rows, so ctx is all of the batch.
  virtual void gradients(const BlockContext& ctx, const BlockParameters& dw, const BlockActivations& a,
                         const Scratch& s) const = 0;
  virtual void place_decode(const DecodePlan& plan, DecodeBuffers& d) const;
  // stream (R, C) -> what comes out, which is valid for the calling thread of the region alone until it waits; the new
  // keys and values go to cache[r] at cache[r].length.
  virtual Matrix decode(const BlockDecodeContext& ctx, const BlockDecodeWeights& w, const DecodeBuffers& d,
                        Matrix stream, const CacheRow* cache) const = 0;
};

// All there are.
const std::vector<const Block*>& blocks();
// Throws std::invalid_argument naming them for a name that is none of theirs.
const Block& find_block(std::string_view name);

// One a file.
const Block& soma_block();
const Block& gpt2_block();
const Block& llama_block();

}  // namespace soma
