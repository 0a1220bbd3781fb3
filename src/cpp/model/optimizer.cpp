// AdamW (Loshchilov and Hutter 2019): decay on matrices and embeddings only, gradients scaled to the global norm first.
#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/fork.h"

namespace soma {

void AdamWConfig::validate() const {
  const auto finite_from_zero = [](const char* name, double value) {
    check(std::isfinite(static_cast<float>(value)) && value >= 0, name,
          " must be a finite single-precision number >= 0, got ", value);
  };
  finite_from_zero("lr", lr);
  // The arithmetic is in single precision: what counts is what arrives there.
  check(eps >= std::numeric_limits<float>::min() && eps <= std::numeric_limits<float>::max(),
        "eps must be a finite number > 0 (in single precision: from 1.2e-38), got ", eps);
  finite_from_zero("weight_decay", weight_decay);
  check(beta1 >= 0 && static_cast<float>(beta1) < 1, "betas[0] must be in [0, 1), in single precision, got ", beta1);
  check(beta2 >= 0 && static_cast<float>(beta2) < 1, "betas[1] must be in [0, 1), in single precision, got ", beta2);
  check(!std::isnan(max_grad_norm), "max_grad_norm must be a number, got nan");
}

AdamW::AdamW(Transformer& model, const AdamWConfig& config) : model_(model), config_(config) {
  config_.validate();
  first_.reserve(model.arena_size());
  second_.reserve(model.arena_size());
  for (const ParameterInfo& info : model.parameter_infos()) {
    const int64_t size = Arena::padded(info.size());  // the padding is zero and stays zero
    const float decay = info.decays() ? static_cast<float>(config_.weight_decay) : 0.0f;
    if (!ranges_.empty() && ranges_.back().weight_decay == decay) {
      ranges_.back().size += size;
    } else {
      ranges_.push_back({info.offset, size, decay});
    }
  }
}

double AdamW::step(double lr) {
  check(lr >= 0 && std::isfinite(static_cast<float>(lr) * std::max(1.0f, static_cast<float>(config_.weight_decay))),
        "lr must be a finite number >= 0, also after multiplication by weight_decay, got ", lr);
  float* gradients = model_.gradients();
  Ops& ops = model_.ops();
  const double norm = std::sqrt(ops.sum_squares(gradients, model_.arena_size()));
  if (!std::isfinite(norm)) throw NonFiniteGradient{norm};
  const double scale = config_.max_grad_norm > 0 ? std::min(1.0, config_.max_grad_norm / (norm + 1e-6)) : 1.0;
  const NoFork whole_steps_only;
  ++steps;
  AdamWOptions options{};
  options.lr = static_cast<float>(lr);
  options.beta1 = static_cast<float>(config_.beta1);
  options.beta2 = static_cast<float>(config_.beta2);
  options.eps = static_cast<float>(config_.eps);
  options.grad_scale = static_cast<float>(scale);
  options.step = steps;
  ops.adamw(model_.values(), gradients, first_.data(), second_.data(), ranges_.data(),
            static_cast<int64_t>(ranges_.size()), options);
  return norm;
}

}  // namespace soma
