// Updates an average of weights, and exchanges it with the parameters.
#include "model/optimizers/average.h"

#include <stdexcept>

#include "base/check.h"
#include "base/fork.h"

namespace soma {

WeightAverage::WeightAverage(Transformer& model) : model_(model), values_(model.device().memory()) {
  values_.reserve(model.arena_size());
  model.device().memory().copy(values_.data(), model.values(), values_.bytes());
}

void WeightAverage::update(double rate) {
  check(rate >= 0 && rate <= 1, "rate must be from 0 to 1, got ", rate);
  if (applied_) throw std::logic_error("the average stands in the place of the parameters, so it cannot be updated");
  const NoFork whole_updates_only;
  model_.ops().average(values_.data(), model_.values(), static_cast<float>(rate), model_.arena_size());
}

void WeightAverage::apply(bool on) {
  if (on == applied_) return;
  const NoFork all_or_nothing;
  applied_ = on;
  model_.device().memory().exchange(values_.data(), model_.values(), values_.bytes());
}

}  // namespace soma
