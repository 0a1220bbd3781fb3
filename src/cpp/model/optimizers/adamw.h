// AdamW (Loshchilov and Hutter 2019): decay on matrices and embeddings only.
#pragma once

#include <vector>

#include "model/optimizers/optimizer.h"

namespace soma {

// AdamW over some of a model's parameters. The first moments lie in an arena of the model's plan, the second ones only
// of these parameters, one behind the other.
class AdamWPass {
 public:
  explicit AdamWPass(std::vector<const ParameterInfo*> parameters);

  void run(Transformer& model, float* first, const AdamWConfig& config, const StepOptions& options, float grad_scale,
           int64_t step);
  // Adds its arrays to `state`.
  void add_state(std::vector<StateArray>* state, float* first);

 private:
  std::vector<const ParameterInfo*> parameters_;
  std::vector<AdamWRange> ranges_;  // neighbouring tensors that decay alike, as one
  Arena second_;
};

class AdamW final : public Optimizer {
 public:
  AdamW(Transformer& model, const AdamWConfig& config);
  std::vector<StateArray> state() override;

 private:
  void update(const StepOptions& options, float grad_scale) override;

  Arena first_;
  AdamWPass pass_;
};

}  // namespace soma
