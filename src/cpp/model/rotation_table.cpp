// Computes the angles of rotary positions: position p turns plane i by p theta^(-2i/D) (Su et al. 2021).
#include "model/rotation_table.h"

#include <algorithm>
#include <cmath>

namespace soma {

void RotationTable::reach(const ModelConfig& config, int64_t positions) {
  if (!config.rotary_positions()) return;
  const int64_t d = config.head_size(), half = d / 2, before = turns_.size() / d;
  if (positions <= before) return;
  // The size doubles, since generation asks for one more position at a time.
  const int64_t count = std::max(positions, std::min(2 * before, config.max_seq_len));
  turns_.reserve(count * d);
  const double theta = config.rope_theta > 0 ? config.rope_theta : kRopeTheta;
  write_floats(memory_, turns_.data(), count * d, [&](float* turns) {
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
      for (int64_t p = 0; p < count; ++p) {
        const double angle = static_cast<double>(p) * frequency;
        float* const row = turns + p * d;
        row[i] = static_cast<float>(std::cos(angle));
        row[half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

}  // namespace soma
