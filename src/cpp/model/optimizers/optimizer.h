// The common part of optimizers: clip by the global norm of the gradient, update, clear, and list the saved arrays.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

struct AdamWConfig {
  double lr, beta1, beta2, eps, weight_decay, max_grad_norm;  // max_grad_norm <= 0: no clipping
  bool cautious = false;                                      // no decay of a parameter whose update has the other sign
  // The parameters that are updated here, with their first row and the row after the last. None: all, whole. The rows
  // of AdamW's matrices may be a part, which begins and ends at whole cache lines. A vector has a row for each element.
  std::optional<std::map<std::string, std::pair<int64_t, int64_t>>> owned = {};

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

// Options that may differ from step to step.
struct StepOptions {
  double lr, weight_decay;
  double momentum = 0;  // for Muon
};

// Thrown if the gradient holds a NaN or an infinity. Nothing was updated.
struct NonFiniteGradient {
  double norm;
};

// An array of the state of a run: its kind and its parameter.
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
  int64_t steps = 0;  // steps taken so far

 protected:
  Optimizer(Transformer& model, const AdamWConfig& config);

  // The parameters that are updated here, of some a part: in blocks the hidden matrices, or the others; without a
  // choice both.
  static std::vector<ParameterInfo> parameters_of(const Transformer& model, const AdamWConfig& config,
                                                  std::optional<bool> hidden = std::nullopt);
  // Clips, updates, clears the gradients; returns their norm. Where it is not finite, nothing is updated.
  virtual double update(const StepOptions& options) = 0;

  Transformer& model_;
  const AdamWConfig config_;
};

}  // namespace soma
