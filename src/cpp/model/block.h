// One transformer block, three ways: forward over whole sequences, its exact backward, and decode of one new position
// per sequence from a cache. The styles are block_soma.cpp and block_gpt2.cpp; each shows the three side by side.
#pragma once

#include "model/activations.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/ops.h"

namespace soma {

struct BlockContext {
  Ops& ops;
  const ModelConfig& config;
  int64_t batch, length;

  int64_t rows() const { return batch * length; }
  AttentionShape attention_shape() const { return {batch, length, config.n_heads, config.head_size()}; }
};

// Scratch of decode for R rows.
struct DecodeBuffers {
  float *stream, *middle, *normed, *qkv, *attention, *hidden;  // (R, C) but for qkv (R, 3C) and hidden (R, F)
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

// buffers.stream (R, C) in place; the new keys and values go to cache[r] at cache[r].length.
void soma_block_decode(const BlockContext& x, const BlockParameters& w, const DecodeBuffers& d, const CacheRow* cache);
void gpt2_block_decode(const BlockContext& x, const BlockParameters& w, const DecodeBuffers& d, const CacheRow* cache);

inline void block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                          float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_forward : gpt2_block_forward)(x, w, a, s, output);
}
inline void block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                           const BlockActivations& a, const Scratch& s, const float* output) {
  (x.config.block == BlockStyle::kSoma ? soma_block_backward : gpt2_block_backward)(x, w, dw, a, s, output);
}
inline void block_decode(const BlockContext& x, const BlockParameters& w, const DecodeBuffers& d,
                         const CacheRow* cache) {
  (x.config.block == BlockStyle::kSoma ? soma_block_decode : gpt2_block_decode)(x, w, d, cache);
}

}  // namespace soma
