// The updates as compositions of ops, which a device may replace.
#include "ops/ops.h"

#include <algorithm>
#include <cmath>

namespace soma {

Clip Ops::update(const Update& u) {
  const double norm = std::sqrt(sum_squares(u.g, u.size));
  if (!std::isfinite(norm)) return {norm, 0};
  const auto scale = static_cast<float>(u.max_norm > 0 ? std::min(1.0, u.max_norm / (norm + 1e-6)) : 1.0);
  AdamWOptions options = u.options;
  options.grad_scale = scale;
  if (u.count > 0) adamw(u.p, u.g, u.m, u.v, u.ranges, u.count, options);
  return {norm, scale};
}

void Ops::muon_direction(Matrix x, Matrix g, Matrix m, float momentum, float grad_scale) {
  const double norm = std::sqrt(muon_momentum(g, m, momentum, grad_scale));
  scale(x, g, static_cast<float>(1.0 / (1.01 * norm + 1e-6)));
}

}  // namespace soma
