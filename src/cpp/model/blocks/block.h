// One transformer block: its tensors and buffers, forward, exact backward (of activations, then of parameters), and
// decode of one new position per sequence from a cache. An architecture is a file of this folder and a line of
// block.cpp. No other file of the core knows its name.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "model/activations.h"
#include "model/blocks/block_buffers.h"
#include "model/blocks/block_weights.h"
#include "model/config.h"
#include "model/noise.h"
#include "model/parameters.h"
#include "ops/decode_ops.h"
#include "ops/ops.h"

namespace soma {

using BlockDecodeWeights = BlockWeights<const float*, DecodeMatrix>;

// The parts of the matrix q | k | v.
inline MatrixParts qkv_parts(const ModelConfig& config) {
  return {{config.q_dim(), config.kv_dim(), config.kv_dim()}, Heads::kColumns};
}

// A call over some or all sequences of a batch.
struct BlockContext {
  Ops& ops;
  const ModelConfig& config;
  int64_t batch, length;
  const float* turns = nullptr;  // angles of at least `length` positions, see Rotation
  bool together = false;         // gradients of all weights are one job, see Transformer::Plan
  int64_t layer = 0;             // the layer that runs now
  Noise noise{};
  int64_t first_row = 0;  // of the sequences within the whole batch

  int64_t rows() const { return batch * length; }
  Matrix operand(float* data, int64_t cols) const { return ops.operands().matrix(data, rows(), cols); }
  Matrix qkv(float* data) const { return qkv_operands(config, ops.operands()).matrix(data, rows(), config.qkv_dim()); }
  Matrix gate_up(float* data) const {
    return hidden_operands(config, ops.operands()).matrix(data, rows(), 2 * config.d_ff);
  }
  AttentionShape attention_shape() const {
    return {batch, length, config.n_heads, config.head_size(), config.kv_heads(), config.attention_scale(layer)};
  }
  Dropout dropout(DropoutSite site) const { return noise.dropout(layer, site, first_row); }
  // The gradient d (M, C) through dropout: d itself where `dropped` has no memory, else an operand there, which
  // drop_gradient() makes.
  ConstMatrix dropped_gradient(float* dropped, float* d) const {
    return dropped != nullptr ? operand(dropped, config.d_model) : Matrix{d, rows(), config.d_model};
  }
  ConstMatrix drop_gradient(float* dropped, float* d, DropoutSite site) const {
    if (dropped != nullptr) ops.dropout(operand(dropped, config.d_model), {d, rows(), config.d_model}, dropout(site));
    return dropped_gradient(dropped, d);
  }
  void weight_gradients(std::initializer_list<WeightGradient> list) const {
    if (together) return ops.weight_gradients(list.begin(), static_cast<int64_t>(list.size()));
    for (const WeightGradient& g : list) {
      ops.matmul(g.dw, g.x.t(), g.dy, {.accumulate = true, .column_sums = g.column_sums});
    }
  }
};

struct BlockDecodeContext {
  DecodeOps& ops;
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

  // Declares its tensors, in the order of the arena.
  virtual void declare(const Declare& declare, const ModelConfig& config, BlockParameters& w) const = 0;
  // Place its buffers. Without a final norm, d_output and d_input may be the same memory.
  virtual void place_activations(const BufferPlan& plan, BlockActivations& a) const = 0;
  virtual void place_scratch(const BufferPlan& plan, Scratch& s) const = 0;

  // a.input -> output (M, C). output may be a.input.
  virtual void forward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                       float* output) const = 0;
  // s.d_output -> s.d_input, and the scratch that gradients() reads. `output` is the output of forward.
  virtual void backward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                        const float* output) const = 0;
  // Adds the gradients of the parameters to dw. They are sums over all rows, so ctx is the whole batch.
  virtual void gradients(const BlockContext& ctx, const BlockParameters& dw, const BlockActivations& a,
                         const Scratch& s) const = 0;
  virtual void place_decode(const DecodePlan& plan, DecodeBuffers& d) const;
  // stream (R, C) -> the output of the block. Until sync(), it is valid for the calling thread alone. The new
  // keys and values go to cache[r] at cache[r].length.
  virtual Matrix decode(const BlockDecodeContext& ctx, const BlockDecodeWeights& w, const DecodeBuffers& d,
                        Matrix stream, const CacheRow* cache) const = 0;
};

// All blocks.
const std::vector<const Block*>& blocks();
// Throws std::invalid_argument with the known names for an unknown name.
const Block& find_block(std::string_view name);

// Each has a file of its own.
const Block& soma_block();
const Block& gpt2_block();
const Block& llama_block();

}  // namespace soma
