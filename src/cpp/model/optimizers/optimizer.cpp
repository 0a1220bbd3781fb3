// Checks the options, and runs the common parts of a step.
#include "model/optimizers/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/fork.h"

namespace soma {
namespace {

void check_from_zero(const char* name, double value) {
  check(std::isfinite(static_cast<float>(value)) && value >= 0, name,
        " must be a finite single-precision number >= 0, got ", value);
}

ParameterInfo part_of(const ParameterInfo& info, std::pair<int64_t, int64_t> rows, bool may_be_cut) {
  const auto [first, end] = rows;
  if (first == 0 && end == (info.is_vector ? info.cols : info.rows)) return info;
  const auto is_aligned = [&](int64_t row) { return row == info.rows || row * info.cols % Arena::kGranule == 0; };
  check(may_be_cut && !info.is_vector && 0 <= first && first < end && end <= info.rows && is_aligned(first) &&
            is_aligned(end),
        "rows ", first, " to ", end, " of ", info.name, " cannot be updated without the others");
  ParameterInfo part = info;
  part.offset += first * info.cols;
  part.rows = end - first;
  return part;
}

}  // namespace

void AdamWConfig::validate() const {
  check_from_zero("lr", lr);
  // The arithmetic is in single precision, so the rounded values are checked.
  check(eps >= std::numeric_limits<float>::min() && eps <= std::numeric_limits<float>::max(),
        "eps must be a finite number > 0 (in single precision: from 1.2e-38), got ", eps);
  check_from_zero("weight_decay", weight_decay);
  check(beta1 >= 0 && static_cast<float>(beta1) < 1, "betas[0] must be in [0, 1), in single precision, got ", beta1);
  check(beta2 >= 0 && static_cast<float>(beta2) < 1, "betas[1] must be in [0, 1), in single precision, got ", beta2);
  check(!std::isnan(max_grad_norm), "max_grad_norm must be a number, got nan");
}

Optimizer::Optimizer(Transformer& model, const AdamWConfig& config) : model_(model), config_(config) {
  config_.validate();
}

std::vector<ParameterInfo> Optimizer::parameters_of(const Transformer& model, const AdamWConfig& config,
                                                    std::optional<bool> hidden) {
  std::vector<ParameterInfo> found;
  for (const ParameterInfo& info : model.parameter_infos()) {
    if (hidden && info.is_hidden != *hidden) continue;
    if (!config.owned) {
      found.push_back(info);
    } else if (const auto owned = config.owned->find(info.name); owned != config.owned->end()) {
      found.push_back(part_of(info, owned->second, !hidden || !*hidden));
    }
  }
  return found;
}

double Optimizer::step(const StepOptions& options) {
  check_from_zero("weight_decay", options.weight_decay);
  const float decay = std::max(1.0f, static_cast<float>(options.weight_decay));
  check(options.lr >= 0 && std::isfinite(static_cast<float>(options.lr) * decay),
        "lr must be a finite number >= 0, also after multiplication by weight_decay, got ", options.lr);
  model_.gradients();  // made here, since both hold off fork()
  const NoFork whole_steps_only;
  const double norm = update(options);
  if (!std::isfinite(norm)) throw NonFiniteGradient{norm};
  if (config_.owned) model_.zero_grad();  // of the parameters that are updated elsewhere too
  ++steps;
  return norm;
}

}  // namespace soma
