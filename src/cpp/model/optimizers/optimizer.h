// What all optimizers do: clip by the global norm of the gradient, update, clear; and what is saved of them.
#pragma once

#include <vector>

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

struct AdamWConfig {
  double lr, beta1, beta2, eps, weight_decay, max_grad_norm;  // max_grad_norm <= 0: no clipping
  bool cautious = false;  // no decay of a parameter where it would push against the update

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

// What may differ from step to step.
struct StepOptions {
  double lr, weight_decay;
  double momentum = 0;  // of Muon
};

// The gradient holds a NaN or an infinity; nothing was updated.
struct NonFiniteGradient {
  double norm;
};

// An array that a run needs to go on: of what kind it is, and of which parameter.
struct StateArray {
  const char* kind;
  const ParameterInfo* parameter;
  float* data;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Clips, updates, clears the gradients; returns the global gradient norm before clipping. Throws NonFiniteGradient.
  double step(const StepOptions& options);

  virtual std::vector<StateArray> state() = 0;
  int64_t steps = 0;  // taken so far

 protected:
  Optimizer(Transformer& model, const AdamWConfig& config);

  // With gradients to be multiplied by `grad_scale` first.
  virtual void update(const StepOptions& options, float grad_scale) = 0;

  Transformer& model_;
  const AdamWConfig config_;
};

}  // namespace soma
