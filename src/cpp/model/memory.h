// What a model takes in the memory of a device, without allocating it.
#pragma once

#include "model/config.h"
#include "ops/device.h"

namespace soma {

// Floats of training steps with batch x length tokens: values, gradients, moments of Muon or AdamW, buffers. What the
// teachers themselves take is not counted.
int64_t training_floats(const ModelConfig& config, Device& device, Precision precision, bool muon, int64_t batch,
                        int64_t length, int64_t teachers);

// Floats of a teacher: values, and buffers without those of a head.
int64_t teacher_floats(const ModelConfig& config, Device& device, Precision precision, int64_t batch, int64_t length);

}  // namespace soma
