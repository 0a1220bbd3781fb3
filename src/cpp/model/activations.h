// The values that a forward pass saves for the backward pass, and their common scratch. M = B*T rows.
#pragma once

#include <vector>

#include "model/blocks/block_buffers.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

struct Activations {
  std::vector<BlockActivations> blocks;
  float* output;                   // (M, C) after the last block
  float *final_mean, *final_rstd;  // (M) statistics of the final norm; null without one
  float* final_normed;             // (M, C) the input of the head: the output of the final norm, or `output`
  Scratch scratch;

  // Carves the buffers out of `base` (null: only measures). Returns their floats. Without `for_backward`, nothing is
  // kept, and the blocks share one set of buffers. `drops`: with memory for the gradients through dropout.
  int64_t carve(const ModelConfig& config, Operands operands, int64_t batch, int64_t length, bool for_backward,
                bool drops, float* base);
};

// The memory of the loss, whose logits exist for some rows at a time.
struct HeadBuffers {
  LogitsLayout layout;
  float* losses;                          // of all rows
  float* logits;                          // (rows, V)
  float* gradient;                        // (rows, V) operand; in float32 the memory of the logits
  float *probabilities, *of_one_teacher;  // (rows, V) with a teacher; with several

  // Likewise, for a loss over `all` rows.
  int64_t carve(const ModelConfig& config, const Ops& ops, int64_t all, bool for_backward, int64_t teachers,
                float* base);
};

// The memory of scores, whose logits exist for some rows at a time.
struct ScoreBuffers {
  LogitsLayout layout;
  float* rows;    // (rows, C) as final_normed has them, if they do not lie side by side there
  float* logits;  // (rows, V)
  RowScores scores;

  // Likewise, for `all` rows.
  int64_t carve(const ModelConfig& config, const Ops& ops, int64_t all, int64_t top, float* base);
};

// The same buffers from the sequence `first` on.
BlockActivations activations_from(const BlockActivations& a, const BufferPlan& from);
Scratch scratch_from(const Scratch& s, const BufferPlan& from);

}  // namespace soma
