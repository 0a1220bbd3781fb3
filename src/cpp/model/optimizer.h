// AdamW over a model's arenas, with clipping by the global norm.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

struct AdamWConfig {
  double lr, beta1, beta2, eps, weight_decay, max_grad_norm;  // max_grad_norm <= 0: no clipping

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

// The gradient holds a NaN or an infinity; nothing was updated.
struct NonFiniteGradient {
  double norm;
};

class AdamW {
 public:
  AdamW(Transformer& model, const AdamWConfig& config);

  // Clips, updates, clears the gradients; returns the global gradient norm before clipping. Throws NonFiniteGradient.
  double step(double lr);

  float* first_moments() { return first_.data(); }
  float* second_moments() { return second_.data(); }
  int64_t steps = 0;  // taken so far

 private:
  Transformer& model_;
  AdamWConfig config_;
  Arena first_, second_;
  std::vector<AdamWRange> ranges_;  // neighbouring tensors with the same decay, as one
};

}  // namespace soma
