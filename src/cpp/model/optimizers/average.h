// A running average of the parameters of a model, in an arena with the same layout.
#pragma once

#include "base/arena.h"
#include "model/transformer.h"

namespace soma {

class WeightAverage {
 public:
  // Begins as a copy of the parameters.
  explicit WeightAverage(Transformer& model);

  // average += rate (parameters - average); a copy if rate is 1. Throws std::logic_error while the average is applied.
  void update(double rate);
  // Exchanges the parameters and the average, or exchanges them back. No bit is lost.
  void apply(bool on);
  bool applied() const { return applied_; }
  float* values() { return values_.data(); }

 private:
  bool applied_ = false;
  Transformer& model_;
  Arena values_;
};

}  // namespace soma
