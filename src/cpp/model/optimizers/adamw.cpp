// The AdamW pass over its parameters.
#include "model/optimizers/adamw.h"

#include <utility>

namespace soma {
AdamWPass::AdamWPass(Memory& memory, std::vector<ParameterInfo> parameters)
    : parameters_(std::move(parameters)), second_(memory) {
  int64_t floats = 0;
  for (const ParameterInfo& info : parameters_) {
    const int64_t size = Arena::padded(info.size());  // the padding is zero and stays zero
    AdamWRange* const last = ranges_.empty() ? nullptr : &ranges_.back();
    if (last != nullptr && last->decays == info.decays() && last->offset + last->size == info.offset) {
      last->size += size;
    } else {
      ranges_.push_back({info.offset, size, info.decays()});
    }
    floats += size;
  }
  second_.reserve(floats);
}

Clip AdamWPass::run(Transformer& model, float* first, const AdamWConfig& config, const StepOptions& options,
                    int64_t step) {
  return model.ops().update({.p = model.values(),
                             .g = model.gradients(),
                             .m = first,
                             .v = second_.data(),
                             .ranges = ranges_.data(),
                             .count = static_cast<int64_t>(ranges_.size()),
                             .size = model.arena_size(),
                             .max_norm = config.max_grad_norm,
                             .options = {.lr = static_cast<float>(options.lr),
                                         .beta1 = static_cast<float>(config.beta1),
                                         .beta2 = static_cast<float>(config.beta2),
                                         .eps = static_cast<float>(config.eps),
                                         .grad_scale = 1,
                                         .step = step,
                                         .weight_decay = static_cast<float>(options.weight_decay),
                                         .cautious = config.cautious}});
}

void AdamWPass::add_state(std::vector<StateArray>* state, float* first) {
  int64_t second = 0;
  for (const ParameterInfo& info : parameters_) {
    state->push_back({"first_moment", &info, first + info.offset});
    state->push_back({"second_moment", &info, second_.data() + second});
    second += Arena::padded(info.size());
  }
}

AdamW::AdamW(Transformer& model, const AdamWConfig& config)
    : Optimizer(model, config),
      first_(model.device().memory()),
      pass_(model.device().memory(), parameters_of(model, config)) {
  first_.reserve(model.arena_size());
}

double AdamW::update(const StepOptions& options) {
  return pass_.run(model_, first_.data(), config_, options, steps + 1).norm;
}

std::vector<StateArray> AdamW::state() {
  std::vector<StateArray> arrays;
  pass_.add_state(&arrays, first_.data());
  return arrays;
}

}  // namespace soma
