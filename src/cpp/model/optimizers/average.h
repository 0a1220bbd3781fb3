// A running average of a model's parameters, in an arena of the same plan.
#pragma once

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

class WeightAverage {
 public:
  // Begins as the parameters are.
  explicit WeightAverage(Transformer& model);

  // average += rate (parameters - average); where rate is 1, a copy. Throws std::logic_error while it is applied.
  void update(double rate);
  // Whether the parameters are the average from now on. They change places, so that not a bit is lost.
  void apply(bool on);
  bool applied() const { return applied_; }
  float* values() { return values_.data(); }

 private:
  bool applied_ = false;
  Transformer& model_;
  Arena values_;
};

}  // namespace soma
