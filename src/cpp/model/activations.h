// What a forward pass leaves for the backward pass, and the scratch both share. M = B*T rows. An operand is a matrix
// that nothing but products and attention reads, and is kept as ops/ops.h says.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

// Of queries, keys and values: a head must begin with a whole pair.
inline Operands qkv_operands(const ModelConfig& config, Operands operands) {
  return {operands.pairs && config.head_size() % 2 == 0};
}

// Saved by one block.
struct BlockActivations {
  float* input;                          // (M, C) the residual stream on the way in
  float* qkv;                            // (M, 3C) operand, see qkv_operands
  float* attention;                      // (M, C) heads side by side
  float* lse;                            // (B, H, T) log sum exp of the attention scores
  float* middle;                         // (M, C) soma: norm(input + attention); gpt2: input + attention
  float* hidden;                         // (M, F) soma: after ReLU, operand; gpt2: before GELU
  float *mean1, *rstd1, *mean2, *rstd2;  // (M) norm statistics; soma has no use for the means

  BlockActivations from_row(const ModelConfig& config, Operands operands, int64_t row) const;  // of a sequence's first
};

// Overwritten by every block. What is left of backward is what the gradients of the parameters are made of.
struct Scratch {
  float *normed1, *normed2;      // (M, C) operands; gpt2: outputs of the norms, computed again in backward
  float* activated;              // (M, F) operand; gpt2: GELU's output, computed again in backward
  float *d_output, *d_input;     // (M, C) gradient of what the block makes and of what it gets; soma: the same memory
  float* d_middle;               // (M, C) gradient of `middle`; soma: the same memory too
  float *d_branch1, *d_branch2;  // (M, C) gpt2: gradients of the norms' outputs, soma: of what the norms get
  float* d_qkv;                  // (M, 3C) operand, see qkv_operands
  float* d_hidden;               // (M, F) operand

  Scratch from_row(const ModelConfig& config, Operands operands, int64_t row) const;
};

struct Activations {
  std::vector<BlockActivations> blocks;
  float* output;                   // (M, C) after the last block
  float *final_mean, *final_rstd;  // (M) gpt2
  float* final_normed;             // (M, C) gpt2: what the head reads, operand
  Scratch scratch;

  // Carves the plan out of `base` (null: only measures) and returns the floats it takes. Without `for_backward` the
  // blocks share one set of buffers and nothing is kept.
  int64_t carve(const ModelConfig& config, Operands operands, int64_t batch, int64_t length, bool for_backward,
                float* base);
};

}  // namespace soma
