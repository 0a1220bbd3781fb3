// The angles of rotary positions, as cosines and sines; computed in double precision, kept in single.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace soma {

class RotationTable {
 public:
  // Has at least so many positions from now on; nothing where the model has no rotary ones. What turns() gave is void.
  void reach(const ModelConfig& config, int64_t positions);
  // (positions, D), see Rotation; null before reach.
  const float* turns() const { return turns_.empty() ? nullptr : turns_.data(); }

 private:
  std::vector<float> turns_;
};

}  // namespace soma
