// One transformer block, three ways: forward over whole sequences, its exact backward (of what flows through it, then
// of its parameters), and decode of one new position per sequence from a cache. The styles are block_soma.cpp and
// block_gpt2.cpp; each shows the three side by side.
#pragma once

#include <initializer_list>

#include "model/activations.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/decode.h"
#include "ops/ops.h"

namespace soma {

struct BlockDecodeWeights;

// Some sequences of a batch, or all of it.
struct BlockContext {
  Ops& ops;
  const ModelConfig& config;
  int64_t batch, length;
  bool together = false;  // gradients of weights are one job, see Transformer's Plan

  int64_t rows() const { return batch * length; }
  Matrix operand(float* data, int64_t cols) const { return ops.operands().matrix(data, rows(), cols); }
  Matrix qkv(float* data) const {
    return qkv_operands(config, ops.operands()).matrix(data, rows(), 3 * config.d_model);
  }
  AttentionShape attention_shape() const { return {batch, length, config.n_heads, config.head_size()}; }
  void weight_gradients(std::initializer_list<WeightGradient> list) const {
    if (together) return ops.weight_gradients(list.begin(), static_cast<int64_t>(list.size()));
    for (const WeightGradient& g : list) {
      ops.matmul(g.dw, g.x.t(), g.dy, {.accumulate = true, .column_sums = g.column_sums});
    }
  }
};

// Scratch of decode for R rows; see decode_norm for the norms' outputs, decode_attention for the scores.
struct DecodeBuffers {
  Matrix stream, middle, qkv, heads, hidden;  // (R, C) but for qkv (R, 3C) and hidden (R, F)
  float *normed1, *normed2, *scores;
  const PromptMemory* prompt;  // null: rows are few
};

struct BlockDecodeContext {
  const Team& team;
  const ModelConfig& config;

  HeadShape heads() const { return {config.n_heads, config.head_size()}; }
};

// a.input -> output (M, C). output may be a.input.
void soma_block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                        float* output);
void gpt2_block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                        float* output);

// s.d_output -> s.d_input, and what the next needs. `output` is what forward wrote.
void soma_block_backward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                         const float* output);
void gpt2_block_backward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                         const float* output);

// Gradients of the parameters accumulate into dw: sums over all rows, so x is all of the batch.
void soma_block_gradients(const BlockContext& x, const BlockParameters& dw, const BlockActivations& a,
                          const Scratch& s);
void gpt2_block_gradients(const BlockContext& x, const BlockParameters& dw, const BlockActivations& a,
                          const Scratch& s);

// stream (R, C) -> what comes out, which is valid for the calling thread of the team alone until it waits; the new keys
// and values go to cache[r] at cache[r].length.
Matrix soma_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d,
                         Matrix stream, const CacheRow* cache);
Matrix gpt2_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d,
                         Matrix stream, const CacheRow* cache);

inline void block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                          float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_forward : gpt2_block_forward)(x, w, a, s, output);
}
inline void block_backward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                           const float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_backward : gpt2_block_backward)(x, w, a, s, output);
}
inline void block_gradients(const BlockContext& x, const BlockParameters& dw, const BlockActivations& a,
                            const Scratch& s) {
  (x.config.block == BlockStyle::kSoma ? soma_block_gradients : gpt2_block_gradients)(x, dw, a, s);
}
inline Matrix block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d,
                           Matrix stream, const CacheRow* cache) {
  return (x.config.block == BlockStyle::kSoma ? soma_block_decode : gpt2_block_decode)(x, w, d, stream, cache);
}

}  // namespace soma
