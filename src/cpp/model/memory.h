// What a model takes in memory, without allocating it.
#pragma once

#include "model/config.h"
#include "ops/ops.h"

namespace soma {

// Floats of training steps with batch x length tokens: values, gradients, moments of Muon or AdamW, buffers.
int64_t training_floats(const ModelConfig& config, Precision precision, bool muon, int64_t batch, int64_t length);

// Floats of a model that only makes the logits (batch, length, V): values, buffers, logits.
int64_t forward_floats(const ModelConfig& config, Precision precision, int64_t batch, int64_t length);

}  // namespace soma
