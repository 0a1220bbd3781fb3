// What a forward pass leaves for the backward pass, and the scratch both share. M = B*T rows.
#pragma once

#include <vector>

#include "model/blocks/block_buffers.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

struct Activations {
  std::vector<BlockActivations> blocks;
  float* output;                   // (M, C) after the last block
  float *final_mean, *final_rstd;  // (M) of the final norm; null where it has none
  float* final_normed;             // (M, C) what the head reads: the final norm's output, an operand; else `output`
  Scratch scratch;

  // Carves the plan out of `base` (null: only measures) and returns the floats it takes. Without `for_backward` the
  // blocks share one set of buffers and nothing is kept.
  int64_t carve(const ModelConfig& config, Operands operands, int64_t batch, int64_t length, bool for_backward,
                float* base);
};

// The same buffers from a sequence on.
BlockActivations activations_from(const BlockActivations& a, const BufferPlan& from);
Scratch scratch_from(const Scratch& s, const BufferPlan& from);

}  // namespace soma
