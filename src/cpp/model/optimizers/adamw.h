// AdamW (Loshchilov and Hutter 2019): decay on matrices and embeddings only.
#pragma once

#include <vector>

#include "model/optimizers/optimizer.h"

namespace soma {

// AdamW over some parameters of a model. First moments lie in an arena with the layout of the parameters. Second
// moments exist for these parameters alone, one after another.
class AdamWPass {
 public:
  AdamWPass(Memory& memory, std::vector<ParameterInfo> parameters);

  // Step number `step`, from 1 on; clips by the norm of the gradient of the whole model.
  Clip run(Transformer& model, float* first, const AdamWConfig& config, const StepOptions& options, int64_t step);
  // Adds its arrays to `state`.
  void add_state(std::vector<StateArray>* state, float* first);

 private:
  std::vector<ParameterInfo> parameters_;
  std::vector<AdamWRange> ranges_;  // adjacent tensors with the same decay form one range
  Arena second_;
};

class AdamW final : public Optimizer {
 public:
  AdamW(Transformer& model, const AdamWConfig& config);
  std::vector<StateArray> state() override;

 private:
  double update(const StepOptions& options) override;

  Arena first_;
  AdamWPass pass_;
};

}  // namespace soma
