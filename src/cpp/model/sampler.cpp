// Sampling: candidates are cut by top-k, then by top-p (Holtzman et al. 2020), and one uniform number picks among them.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/random.h"

namespace soma {

void SamplerConfig::validate() const {
  check(vocab_size >= 1, "vocab_size must be positive, got ", vocab_size);
  check(std::isfinite(temperature) && temperature >= 0, "temperature must be a finite number >= 0, got ", temperature);
  check(top_k >= 0, "top_k must be >= 0 (0 turns it off), got ", top_k);
  check(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  const auto penalty = static_cast<float>(repetition_penalty);  // what divides the logits
  check(std::isfinite(penalty) && penalty > 0, "repetition_penalty must be a finite single-precision number > 0, got ",
        repetition_penalty);
}

Sampler::Sampler(const SamplerConfig& config, const int32_t* banned, int64_t banned_count) : config_(config) {
  config_.validate();
  const auto v = static_cast<std::size_t>(config_.vocab_size);
  banned_.assign(v, 0);
  seen_.assign(v, 0);
  for (int64_t i = 0; i < banned_count; ++i) {
    check(banned[i] >= 0 && banned[i] < config_.vocab_size, "banned_ids must be from 0 to ", config_.vocab_size - 1,
          ", got ", banned[i]);
    banned_[static_cast<std::size_t>(banned[i])] = 1;
  }
  check(std::count(banned_.begin(), banned_.end(), 0) > 0, "every id is banned, so none can be sampled");
  candidates_.reserve(v);
  weights_.reserve(v);
}

void Sampler::observe(const int32_t* ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    check(ids[i] >= 0 && ids[i] < config_.vocab_size, "ids must be from 0 to ", config_.vocab_size - 1, ", got ",
          ids[i]);
    seen_[static_cast<std::size_t>(ids[i])] = 1;
  }
}

int32_t Sampler::sample(const float* logits) {
  const auto penalty = static_cast<float>(config_.repetition_penalty);
  candidates_.clear();
  for (int64_t i = 0; i < config_.vocab_size; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (banned_[at]) continue;
    float logit = logits[i];
    check(!std::isnan(logit) && logit < INFINITY, "logit ", i,
          " is not finite: the model's weights are broken or were trained to divergence");
    if (seen_[at]) logit = logit > 0 ? logit / penalty : logit * penalty;
    candidates_.push_back({logit, static_cast<int32_t>(i)});
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  int32_t chosen = 0;
  if (config_.temperature == 0) {
    chosen = std::min_element(candidates_.begin(), candidates_.end(), better)->id;
  } else {
    const auto size = static_cast<int64_t>(candidates_.size());
    const int64_t kept = config_.top_k > 0 ? std::min(config_.top_k, size) : size;
    if (kept < size) {
      std::nth_element(candidates_.begin(), candidates_.begin() + kept, candidates_.end(), better);
      candidates_.resize(static_cast<std::size_t>(kept));
    }
    // Sorted where an order matters: for top-p, and so that the draw does not depend on how nth_element left them.
    if (config_.top_p < 1 || kept < size) std::sort(candidates_.begin(), candidates_.end(), better);
    const float top = std::min_element(candidates_.begin(), candidates_.end(), better)->logit;
    weights_.clear();
    double total = 0;
    for (const Candidate& candidate : candidates_) {
      weights_.push_back(std::exp((static_cast<double>(candidate.logit) - top) / config_.temperature));
      total += weights_.back();
    }
    if (config_.top_p < 1) {
      double reached = 0;
      std::size_t count = 0;
      while (count < weights_.size() && reached < config_.top_p * total) reached += weights_[count++];
      weights_.resize(std::max<std::size_t>(count, 1));
      total = reached;
    }
    uint32_t words[4];
    Philox{config_.seed, 0x5A4D504CULL}.words(draws_++, words);
    const double uniform = ((static_cast<uint64_t>(words[0]) << 21) ^ (words[1] >> 11)) * (1.0 / 9007199254740992.0);
    double remaining = uniform * total;
    std::size_t pick = 0;
    while (pick + 1 < weights_.size() && remaining >= weights_[pick]) remaining -= weights_[pick++];
    chosen = candidates_[pick].id;
  }
  seen_[static_cast<std::size_t>(chosen)] = 1;
  return chosen;
}

}  // namespace soma
