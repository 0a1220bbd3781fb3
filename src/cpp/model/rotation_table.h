// The cosines and sines of rotary positions, computed in double precision and stored in single.
#pragma once

#include <cstdint>

#include "base/arena.h"
#include "model/config.h"

namespace soma {

class RotationTable {
 public:
  explicit RotationTable(Memory& memory) : memory_(memory), turns_(memory) {}

  // Extends the table to `positions` positions, if the model has rotary positions. Earlier results of turns() are void.
  void reach(const ModelConfig& config, int64_t positions);
  // (positions, D), see Rotation; null before the first reach.
  const float* turns() const { return turns_.data(); }

 private:
  Memory& memory_;
  Arena turns_;
};

}  // namespace soma
