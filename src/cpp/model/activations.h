// What a forward pass leaves for the backward pass, and the scratch both share. M = B*T rows.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

// Saved by one block.
struct BlockActivations {
  float* input;                          // (M, C) the residual stream on the way in
  float* qkv;                            // (M, 3C)
  float* attention;                      // (M, C) heads side by side
  float* lse;                            // (B, H, T) log sum exp of the attention scores
  float* middle;                         // (M, C) soma: norm(input + attention); gpt2: input + attention
  float* hidden;                         // (M, F) soma: after ReLU; gpt2: before GELU
  float *mean1, *rstd1, *mean2, *rstd2;  // (M) norm statistics; soma has no use for the means
};

// Overwritten by every block.
struct Scratch {
  float* normed;     // (M, C)  a norm's output, computed again in backward
  float* activated;  // (M, F)  GELU's output, computed again in backward
  float* d_stream;   // (M, C)  gradient of the residual stream
  float* d_branch;   // (M, C)
  float* d_qkv;      // (M, 3C)
  float* d_hidden;   // (M, F)
};

struct Activations {
  std::vector<BlockActivations> blocks;
  float* output;                   // (M, C) after the last block
  float *final_mean, *final_rstd;  // (M) gpt2
  float* final_normed;             // (M, C) gpt2: what the head reads
  Scratch scratch;

  // Carves the plan out of `base` (null: only measures) and returns the floats it takes. Without `for_backward` the
  // blocks share one set of buffers and nothing is kept.
  int64_t carve(const ModelConfig& config, int64_t batch, int64_t length, bool for_backward, float* base);
};

}  // namespace soma
