// One transformer block, three ways: forward over whole sequences, its exact backward, and decode of one new position
// per sequence from a cache. The styles are block_soma.cpp and block_gpt2.cpp; each shows the three side by side.
#pragma once

#include "model/activations.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/decode.h"
#include "ops/ops.h"

namespace soma {

struct BlockDecodeWeights;

struct BlockContext {
  Ops& ops;
  const ModelConfig& config;
  int64_t batch, length;

  int64_t rows() const { return batch * length; }
  AttentionShape attention_shape() const { return {batch, length, config.n_heads, config.head_size()}; }
};

// Scratch of decode for R rows; see decode_norm for the norms' outputs, decode_attention for the scores.
struct DecodeBuffers {
  Rows stream, middle, qkv, heads, hidden;  // (R, C) but for qkv (R, 3C) and hidden (R, F)
  float *normed1, *normed2, *scores;
  const PromptMemory* prompt;  // null: rows enter products as they are
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

// s.d_stream: gradient of the output on the way in, of the input on the way out. Gradients of the parameters accumulate
// into dw. `output` is what forward wrote.
void soma_block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                         const BlockActivations& a, const Scratch& s, const float* output);
void gpt2_block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                         const BlockActivations& a, const Scratch& s, const float* output);

// stream (R, C) -> what comes out, which is valid for the calling thread of the team alone until it waits; the new keys
// and values go to cache[r] at cache[r].length.
Rows soma_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d, Rows stream,
                       const CacheRow* cache);
Rows gpt2_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d, Rows stream,
                       const CacheRow* cache);

inline void block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                          float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_forward : gpt2_block_forward)(x, w, a, s, output);
}
inline void block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                           const BlockActivations& a, const Scratch& s, const float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_backward : gpt2_block_backward)(x, w, dw, a, s, output);
}
inline Rows block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d, Rows stream,
                         const CacheRow* cache) {
  return (x.config.block == BlockStyle::kSoma ? soma_block_decode : gpt2_block_decode)(x, w, d, stream, cache);
}

}  // namespace soma
